"""DAC's encoder: from the last transitions of an agent to the logits of its context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import StackedLinear

if TYPE_CHECKING:
    from modules.dac.windows import Windows


class ContextEncoder(nn.Module):
    """q(c_t | window) of DAC (eq. 5): an MLP with one hidden layer for each agent, computed side by
    side.

    Its input is the flattened window: for each of k transitions, the oldest first, the agent's
    observation, its action (one-hot), the reward and the next observation; zeros in place of
    transitions before the episode's start.

    Args:
        obs_size: O.
        args: `n_agents` (A), `n_actions` (U), `dac_k` (k), `dac_m` (m), `dac_hidden_dim` (H).
    """

    def __init__(self, obs_size: int, args: SimpleNamespace) -> None:
        super().__init__()
        self.k, self.obs_size = args.dac_k, obs_size
        n_in = 2 * obs_size + args.n_actions + 1
        self.fc1 = StackedLinear(self.k * n_in, args.dac_hidden_dim, args.n_agents)
        self.fc2 = StackedLinear(args.dac_hidden_dim, args.dac_m, args.n_agents)

    def forward(
        self, obs: Tensor, actions: Tensor, rewards: Tensor, next_obs: Tensor, windows: Windows
    ) -> Tensor:
        """Logits of the contexts of all transitions.

        Args:
            obs, next_obs: [A, M, O].
            actions: [A, M, U], one-hot.
            rewards: [A, M].
            windows: of the M transitions.

        Returns:
            [A, M, m].
        """
        # What a transition adds to the hidden layer is a product with the weights of its place in
        # the window. A next observation is the following transition's observation: it is multiplied
        # once, with the sum of both weights, and only the oldest transition's own observation is
        # left over.
        weight = self.fc1.weight.unflatten(-1, (self.k, -1))  # [A, H, k, 2 O + U + 1]
        by_obs, by_rest = weight[..., : self.obs_size], weight[..., self.obs_size :]
        n_rest = by_rest.shape[-1] - self.obs_size
        by_rest = by_rest + F.pad(by_obs[:, :, 1:], (n_rest, 0, 0, 1))
        rest = torch.cat([actions, rewards.unsqueeze(-1), next_obs], dim=-1)
        hidden = _LaggedProducts.apply(rest, by_rest, windows) + self._oldest(obs, by_obs, windows)
        return self.fc2(F.relu(hidden + self.fc1.bias.unsqueeze(1)))

    def _oldest(self, obs: Tensor, by_obs: Tensor, windows: Windows) -> Tensor:
        """What the observations of the windows' oldest transitions add.

        Args:
            obs: [A, M, O].
            by_obs: [A, H, k, O].

        Returns:
            [A, M, H].
        """
        to, rows = windows.lag(self.k - 1)
        full = torch.bmm(obs[:, rows], by_obs[:, :, 0].mT)
        # The windows that are not full yet begin with the episode, at the place k - 1 - t.
        first = obs[:, : windows.starts[1]]
        at_places = torch.einsum("ano,ahpo->anph", first, by_obs)
        return torch.cat(
            [at_places[:, windows.place[: to.start], self.k - 1 - windows.time[: to.start]], full],
            dim=1,
        )


class _LaggedProducts(torch.autograd.Function):
    """The sum over the transitions of a window of products with weights that depend on the place in
    it.

    A convolution over time that knows where episodes begin: x [A, M, D], weight [A, H, k, D] -> [A,
    M, H]. There is no gradient for x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
        ctx.save_for_backward(x)
        ctx.windows, ctx.shape = windows, weight.shape
        out = x.new_zeros(*x.shape[:2], weight.shape[1])
        weight = weight.permute(2, 0, 3, 1).contiguous()
        for j in range(min(windows.k, windows.longest)):
            to, rows = windows.lag(j)
            out[:, to].baddbmm_(x[:, rows], weight[windows.k - 1 - j])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,), windows = ctx.saved_tensors, ctx.windows
        of_weight = grad.new_zeros(ctx.shape)
        for j in range(min(windows.k, windows.longest)):
            to, rows = windows.lag(j)
            of_weight[:, :, windows.k - 1 - j] = torch.bmm(grad[:, to].mT, x[:, rows])
        return None, of_weight, None
