"""Q_0 in place of Q*: for mixers that are expressive enough, S2Q follows its own first value (S2Q,
appendix G.3).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from controllers.basic_controller import ALL
from controllers.s2q_controller import S2QMAC
from learners.joint_values import FollowedValue, freeze
from learners.replayed import ReplayedSteps, joint_value
from modules.stacks import copy_first


class FirstValue(FollowedValue):
    """Q_0 and a target network of it, its encoder included; nothing more is trained.

    Args:
        mac: the learner's controller.
        mixer: its stack of K + 1 mixers.
        scheme: of the episode batch.
        args: what the controller and the mixer were built with.
    """

    def __init__(
        self, mac: S2QMAC, mixer: nn.Module, scheme: Mapping[str, Any], args: SimpleNamespace
    ) -> None:
        super().__init__(args)
        only_first = copy.copy(args)
        only_first.s2q_k = 0
        self.target_mac = S2QMAC(scheme, {"agents": args.n_agents}, only_first)
        self.target_mixer = type(mixer)(only_first)
        freeze(self.target_mac, self.target_mixer)
        self.targets = [(mac, self.target_mac)]
        self._mixers = mixer
        self.target_mac.load_state(mac)
        self.update_targets()

    def target_outputs(self, rows: ReplayedSteps) -> Tensor:
        return rows.unroll(self.target_mac)

    def target_values(self, outputs: Tensor, joint: Tensor, state: Tensor, avail: Tensor) -> Tensor:
        # Every joint action is mixed under the same state.
        outputs, states = (x.expand(len(joint), *x.shape) for x in (outputs, state))
        return joint_value(self.target_mixer, outputs, joint, avail, states)

    def taken(self, rows: ReplayedSteps, own: Tensor, at: Any = ALL) -> Tensor:
        return own

    def losses(self, taken: Tensor, targets: Tensor, rows: ReplayedSteps) -> dict[str, Tensor]:
        return {}

    def update_targets(self) -> None:
        copy_first(self._mixers, self.target_mixer)
