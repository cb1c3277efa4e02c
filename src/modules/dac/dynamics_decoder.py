"""DAC's decoder: what an agent's action leads to in a context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import StackedLinear

if TYPE_CHECKING:
    from modules.dac.windows import Windows


class DynamicsDecoder(nn.Module):
    """f_s(s_h, a_h, c_t) and f_r(s_h, a_h, c_t) of DAC (eq. 13): two MLPs with one hidden layer for
    each agent.

    The hidden layers of both are side by side in `fc1`: its first half is read by `fc_s`, the
    second by `fc_r`.

    Args:
        obs_size: O.
        args: `n_agents` (A), `n_actions` (U), `dac_m` (m), `dac_hidden_dim` (H).
    """

    def __init__(self, obs_size: int, args: SimpleNamespace) -> None:
        super().__init__()
        self.n_known = obs_size + args.n_actions
        self.fc1 = StackedLinear(self.n_known + args.dac_m, 2 * args.dac_hidden_dim, args.n_agents)
        self.fc_s = StackedLinear(args.dac_hidden_dim, obs_size, args.n_agents)
        self.fc_r = StackedLinear(args.dac_hidden_dim, 1, args.n_agents)

    def forward(self, obs: Tensor, actions: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions for single transitions.

        Args:
            obs: [A, R, O].
            actions: [A, R, U], one-hot.
            contexts: [A, R, m], one-hot.

        Returns:
            Next observations [A, R, O] and rewards [A, R].
        """
        for_s, for_r = F.relu(self.fc1(torch.cat([obs, actions, contexts], dim=-1))).chunk(2, -1)
        return self.fc_s(for_s), self.fc_r(for_r).squeeze(-1)

    def loss(
        self,
        obs: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_obs: Tensor,
        contexts: Tensor,
        windows: Windows,
        weights: Tensor | None = None,
    ) -> Tensor:
        """L_REC of DAC (eq. 13), the sum over a window's transitions of |s_{h+1} - f_s|^2 + (r_h -
        f_r)^2.

        Args:
            obs, next_obs: [A, M, O], of the transitions.
            actions: [A, M, U], one-hot.
            rewards: [A, M].
            contexts: [A, M, m], of the windows; gradients flow back to them.
            windows: of the M transitions.
            weights: [M], of the windows; None: 1.

        Returns:
            [A], the mean over the windows.
        """
        # A transition is in k windows and a window has one context: what either adds to the hidden
        # layer is computed once.
        by_known, by_context = self.fc1.weight.split([self.n_known, contexts.shape[-1]], dim=-1)
        known = torch.baddbmm(
            self.fc1.bias.unsqueeze(1), torch.cat([obs, actions], dim=-1), by_known.mT
        )
        of_context = torch.bmm(contexts, by_context.mT)
        out = self.fc_s.weight, self.fc_s.bias, self.fc_r.weight, self.fc_r.bias
        return _Reconstruction.apply(known, of_context, *out, next_obs, rewards, windows, weights)


class _Reconstruction(torch.autograd.Function):
    """`DynamicsDecoder.loss` from the hidden layer on, with its gradient.

    Nothing of the size of all windows' transitions is ever in memory, and no prediction of f_s is
    computed: with f_s = W z + b and e = s' - b, the error |W z - e|^2 has the gradient 2 (W^T W z -
    W^T e) for z, in which W^T e belongs to a transition, not to each of the windows that hold it;
    the other gradients and the sum of the errors follow from sums of z z^T and z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        known: Tensor,  # [A, M, 2 H]
        of_context: Tensor,  # [A, M, 2 H]
        w_s: Tensor,  # [A, O, H]
        b_s: Tensor,  # [A, O]
        w_r: Tensor,  # [A, 1, H]
        b_r: Tensor,  # [A, 1]
        next_obs: Tensor,  # [A, M, O]
        rewards: Tensor,  # [A, M]
        windows: Windows,
        weights: Tensor | None,  # [M]
    ) -> Tensor:
        n_agents, n, width = known.shape
        wanted = next_obs - b_s.unsqueeze(1)
        gram, pull = 2 * (w_s.mT @ w_s), -2 * torch.bmm(wanted, w_s)
        d_known, d_context = torch.zeros_like(known), torch.zeros_like(known)
        buffers = torch.empty_like(known), torch.empty_like(known)
        held = known.new_zeros(n, 1)  # how often a transition is in a window
        z_sum = known.new_zeros(n_agents, n, width // 2)
        zz_sum, d_w_r = torch.zeros_like(gram), torch.zeros_like(w_r)
        d_b_r, error_r = torch.zeros_like(b_r), known.new_zeros(n_agents)
        for j in range(min(windows.k, windows.longest)):
            to, rows = windows.lag(j)
            z, d_z = (buffer[:, : n - to.start] for buffer in buffers)
            torch.add(known[:, rows], of_context[:, to], out=z).relu_()
            (z_s, z_r), (d_s, d_r) = z.chunk(2, -1), d_z.chunk(2, -1)
            miss = torch.bmm(z_r, w_r.mT) + b_r.unsqueeze(1) - rewards[:, rows].unsqueeze(-1)
            torch.baddbmm(pull[:, rows], z_s, gram, out=d_s)
            torch.mul(miss, 2 * w_r, out=d_r)
            torch.ops.aten.threshold_backward.grad_input(d_z, z, 0, grad_input=d_z)
            if weights is None:
                weighted_z, weighted_miss, share = z_s, miss, z.new_ones(1, 1)
            else:
                share = weights[to].unsqueeze(-1)
                weighted_z, weighted_miss = z_s * share, miss * share
                d_z *= share
            error_r += (miss * weighted_miss).sum((1, 2))
            d_w_r += 2 * torch.bmm(weighted_miss.mT, z_r)
            d_b_r += 2 * weighted_miss.sum(1)
            zz_sum.baddbmm_(weighted_z.mT, z_s)
            d_context[:, to] += d_z
            for total, part in ((z_sum, weighted_z), (d_known, d_z)):
                if isinstance(rows, slice):
                    total[:, rows] += part
                else:
                    total.index_add_(1, rows, part)
            held[rows] += share
        error_s = (
            0.5 * (gram * zz_sum).sum((1, 2))
            + (pull * z_sum).sum((1, 2))
            + (held * wanted.pow(2)).sum((1, 2))
        )
        d_w_s = 2 * (torch.bmm(w_s, zz_sum) - torch.bmm(wanted.mT, z_sum))
        d_b_s = 2 * (
            torch.bmm(w_s, z_sum.sum(1).unsqueeze(-1)).squeeze(-1) - (held * wanted).sum(1)
        )
        ctx.n = n
        ctx.save_for_backward(d_known, d_context, d_w_s, d_b_s, d_w_r, d_b_r)
        return (error_s + error_r) / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.n
        grads = (part * scale.view(-1, *[1] * (part.dim() - 1)) for part in ctx.saved_tensors)
        return *grads, None, None, None, None
