"""What a Q-learner minimises beside its temporal-difference loss: one interface for all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor, nn

from controllers.comm_controller import CommMAC
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.comm.agent import Talk
from utils.ranges import Range


class AuxiliaryLoss(ABC):
    """Further losses on what agents say and hear, added to those of the Q-learner.

    `QLearner` builds the one that `auxiliary_loss` names, trains its networks with its own
    optimiser and saves them with its own.

    Args:
        mac: the learner's controller.
        args: the run's configuration.

    Attributes:
        modules: file name stem -> network that only training needs.
        targets: (online, target) pairs of networks, kept equal as the learner's own.
        needs: what it needs of the settings, the controller and the agent network.
        ranges: key -> what values of the keys that only it reads must be.
        of_parts: whether it is the mean over transitions, so that the loss of a batch is the
            weighted mean of those of its episodes.
    """

    needs = Needs(mac=CommMAC)
    ranges: ClassVar[Mapping[str, Range]] = {}
    of_parts = True

    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        self.needs.check_built(mac, args)
        self.args = args
        self.modules: dict[str, nn.Module] = {}
        self.targets: list[tuple[nn.Module, nn.Module]] = []

    @abstractmethod
    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """Losses by name, each with its weight.

        Args:
            online, target: what the agents computed at all filled steps with the networks in
                training and with the target networks.
        """
