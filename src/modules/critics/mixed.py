"""Values of all agents that a mixer combines into one: the critic of VDAC."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from modules.critics.value import ObservationCritic
from modules.mixers import make_mixer
from utils.errors import ConfigError

if TYPE_CHECKING:
    from components.steps import Steps


class MixedCritic(nn.Module):
    """V_tot = f(V_1, ..., V_A; s), with V_i of what agent i has seen (Su et al. 2021).

    VDAC-sum adds the values (`critic_mixer: vdn`); VDAC-mix has QMIX's network, in which V_tot
    rises with every V_i (`qmix`).

    Args:
        input_shape: F.
        args: those of `ObservationCritic`, and `critic_mixer` and what the mixer reads.

    Raises:
        ConfigError: individual rewards.
    """

    n_values = 1

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        if not args.common_reward:
            raise ConfigError("critic 'mixed' learns one joint value: set common_reward=True")
        self.local = ObservationCritic(input_shape, args)
        self.mixer = make_mixer(args.critic_mixer, args)

    def forward(self, state: Tensor, inputs: Tensor, steps: Steps) -> Tensor:
        """[N, 1]."""
        return self.mixer(self.local(state, inputs, steps), state)
