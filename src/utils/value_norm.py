"""Running normalisation of value targets (Yu et al. 2022, MAPPO)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueNorm(nn.Module):
    """Exponential moving mean and mean square with debiasing, to learn values at unit scale.

    The averages are buffers in float64: the variance is a difference of large numbers where returns
    are far from 0.

    Args:
        input_shape: shape of one value, an int or a tuple.
        norm_axes: number of leading axes of a batch to average over.
        beta: decay of the averages, per update.
        per_element_update: True: beta is the decay per sample, an update with n samples decays by
            beta ** n.
        epsilon: smallest divisor in the debiasing.
        device: where the buffers live.
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        norm_axes: int = 1,
        beta: float = 0.99999,
        per_element_update: bool = False,
        epsilon: float = 1e-5,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        self.norm_axes, self.beta, self.per_element_update = norm_axes, beta, per_element_update
        self.epsilon = epsilon
        self.running_mean: Tensor
        self.running_mean_sq: Tensor
        self.debiasing_term: Tensor
        self.register_buffer("running_mean", torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer(
            "running_mean_sq", torch.zeros(shape, dtype=torch.float64, device=device)
        )
        self.register_buffer("debiasing_term", torch.zeros((), dtype=torch.float64, device=device))

    def running_mean_var(self) -> tuple[Tensor, Tensor]:
        """Debiased mean and variance, of `input_shape`; the variance is at least 0.01. Before any
        update: 0 and 1.
        """
        weight = self.debiasing_term.clamp(min=self.epsilon)
        mean = self.running_mean / weight
        var = (self.running_mean_sq / weight - mean.square()).clamp(min=1e-2)
        return mean, torch.where(self.debiasing_term > 0, var, 1.0)

    @torch.no_grad()
    def update(self, input_vector: Tensor) -> None:
        """Takes values [n_1, ..., n_norm_axes, *input_shape] into the averages; an empty batch
        changes nothing.
        """
        x = input_vector.to(self.running_mean)
        axes = tuple(range(self.norm_axes))
        n = x.shape[: self.norm_axes].numel()
        if n == 0:
            return
        keep = self.beta**n if self.per_element_update else self.beta
        self.running_mean.lerp_(x.mean(dim=axes), 1.0 - keep)
        self.running_mean_sq.lerp_(x.square().mean(dim=axes), 1.0 - keep)
        self.debiasing_term.mul_(keep).add_(1.0 - keep)

    def normalize(self, input_vector: Tensor) -> Tensor:
        """[..., *input_shape] -> the same at zero mean and unit variance, in the dtype of the
        input.
        """
        mean, var = self.running_mean_var()
        return ((input_vector - mean) / var.sqrt()).to(input_vector.dtype)

    def denormalize(self, input_vector: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        mean, var = self.running_mean_var()
        return (input_vector * var.sqrt() + mean).to(input_vector.dtype)
