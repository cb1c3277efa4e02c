"""The policies of the actor-critic learners: one feed-forward network per agent, computed side by
side, or for all.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modules.layers import LEAKY, StackedBatchNorm, StackedLinear
from utils.errors import ConfigError

if TYPE_CHECKING:
    from components.steps import Steps


class PolicyAgent(nn.Module):
    """Batch norm without affine parameters, two hidden layers, LeakyReLU (Iqbal and Sha 2019):
    `mlp_policy`.

    An agent reads its own observation alone. Agents may have observations and action sets of
    different size: both are zero padded to the largest, and padding adds nothing. The outputs are
    logits [N, A, U] (those of padded actions mean nothing: they are never available) or, where
    actions are continuous, means and logarithms of standard deviations [N, A, 2U];
    `components.distributions.policy_distribution` makes policies of them.

    With `share_params` all agents have one network, whose batch norm takes the rows of all agents
    together.

    Args:
        input_shape: O.
        args: `n_agents`, `n_actions` (U), `obs_shape`, `env_info` (`obs_sizes`, `action_sizes`),
            `continuous_actions`, `policy_hidden_dim`, `share_params`.

    Attributes:
        used_outputs: bool [A or 1, U or 2U], which outputs are not padding.

    Raises:
        ConfigError: inputs besides the observation, or one network for agents that see or can do
            different things.
    """

    used_outputs: Tensor

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        obs_sizes, action_sizes = args.env_info["obs_sizes"], args.env_info["action_sizes"]
        if args.share_params:
            obs_sizes, action_sizes = sorted(set(obs_sizes)), sorted(set(action_sizes))
            if len(obs_sizes) > 1 or len(action_sizes) > 1:
                raise ConfigError(
                    "agents with observations or action sets of different size have no network in "
                    "common: set share_params=False"
                )
        if input_shape != args.obs_shape:
            raise ConfigError(
                "agent mlp_policy reads the observation alone: set obs_last_action=False and "
                "obs_agent_id=False"
            )
        self.groups, width, n_actions = len(obs_sizes), args.policy_hidden_dim, args.n_actions
        n_out = 2 * n_actions if args.continuous_actions else n_actions
        self.norm = StackedBatchNorm(input_shape, self.groups)
        leaky: dict[str, Any] = {"rectify": True, "slope": LEAKY}
        self.fc1 = StackedLinear(input_shape, width, self.groups, obs_sizes, **leaky)
        self.fc2 = StackedLinear(width, width, self.groups, **leaky)
        self.fc3 = StackedLinear(width, n_out, self.groups, head=True)
        used = torch.arange(n_actions) < torch.tensor(action_sizes).unsqueeze(1)
        self.register_buffer("used_outputs", used.repeat(1, n_out // n_actions), persistent=False)

    def logits(self, obs: Tensor) -> Tensor:
        """Observations [N, A, O] -> outputs [N, A, U], or [N, A, 2U] for continuous actions.

        In training mode with the statistics of this batch (N >= 2), in evaluation mode with the
        running ones.
        """
        rows = obs.reshape(-1, self.groups, obs.shape[-1])
        x = self.norm(rows.transpose(0, 1))
        return self.fc3(self.fc2(self.fc1(x))).transpose(0, 1).reshape(*obs.shape[:-1], -1)

    def mean_square(self, outputs: Tensor) -> Tensor:
        """Of every agent's outputs [N, A, U or 2U] without padding: [A]. Also of the means alone,
        the first U of 2U.

        Of agents with one network [N, A, U or 2U], and [N * A, 1, U or 2U] for their common mean,
        [1].
        """
        used = self.used_outputs[:, : outputs.shape[-1]]
        return (outputs.pow(2) * used).mean(0).sum(-1) / used.sum(-1)

    def init_hidden(self) -> Tensor:
        """[1, 0]: there is no memory."""
        return self.fc1.weight.new_zeros(1, 0)

    def unroll(self, inputs: Tensor, steps: Steps | None = None) -> Tensor:
        """All filled steps, each by itself: `logits`."""
        return self.logits(inputs)

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, A, O] -> (`logits`, hidden unchanged)."""
        return self.logits(inputs), hidden

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """PyMARL's step: inputs [B * A, O] -> ([B * A, U or 2U], hidden unchanged)."""
        return self.logits(inputs), hidden_state
