"""Steps of a bounded divergence along the natural gradient (Schulman et al. 2015, appendix C).

F is the Fisher information of the policies: the Hessian of KL[old || new], a mean over rows, where
both are the same. It is never built; products with it are what conjugate gradients need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector [P] of all entries."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def assign(params: Sequence[Tensor], vector: Tensor) -> None:
    """Copies a vector [P] into parameters, which stay where they are."""
    sizes = [param.numel() for param in params]
    for param, values in zip(params, vector.split(sizes), strict=True):
        param.copy_(values.view_as(param))


def fisher_product(kl: Tensor, params: Sequence[Tensor], damping: float) -> Product:
    """v [P] -> (F + damping I) v [P].

    Args:
        kl: scalar, KL[old || new] with the gradient of the new policy, which equals the old one.
        params: P numbers in all.
        damping: added to the diagonal.
    """
    slope = flat(torch.autograd.grad(kl, params, create_graph=True))  # zero; its slope is F

    def product(v: Tensor) -> Tensor:
        rows = torch.autograd.grad(slope @ v, params, retain_graph=True)
        return flat(rows) + damping * v

    return product


def conjugate_gradients(
    product: Product, b: Tensor, n_steps: int, tolerance: float = 1e-10
) -> Tensor:
    """An approximation of the x with product(x) = b, [P] (Hestenes and Stiefel 1952).

    Args:
        product: of a symmetric, positive definite matrix.
        b: [P].
        n_steps: at most so many products.
        tolerance: it ends where the squared residual is below this share of b's.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, size = residual.clone(), b @ b
    least = tolerance * size
    for _ in range(n_steps):
        if size <= least:
            break
        along = product(direction)
        length = size / (direction @ along)
        x = x + length * direction
        residual = residual - length * along
        before, size = size, residual @ residual
        direction = residual + size / before * direction
    return x
