"""Joint values that other values follow: with a target network, from which the targets y come.

Weighted QMIX and S2Q follow an unrestricted Q* (`UnrestrictedValue`); S2Q on mixers that are
expressive enough follows its own first value (`learners.s2q.first_value`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from controllers.basic_central_controller import central_args
from controllers.basic_controller import ALL, BasicMAC
from controllers.unroll import sequence_inputs, unroll
from learners.replayed import ReplayedSteps
from modules.mixers import make_mixer
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from utils.ranges import COUNT, Range


class FollowedValue(ABC):
    """A joint value that a learner's own values follow, and its target network.

    Shapes: J joint actions in every state, each int64 [N, A], are [J, N, A].

    Args:
        args: `q_lambda`, and what `ReplayedSteps.returns` reads.

    Attributes:
        modules: file name stem -> network that is trained with the learner's own.
        params: of these.
        target_mac, target_mixer: the target network's two parts.
        targets: for `Learner.targets`.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        self.args = args
        self.modules: dict[str, nn.Module] = {}
        self.targets: list[tuple[Any, Any]] = []
        self.target_mac: Any
        self.target_mixer: Any

    @property
    def params(self) -> list[nn.Parameter]:
        """Of `modules`."""
        return [param for module in self.modules.values() for param in module.parameters()]

    @abstractmethod
    def target_outputs(self, rows: ReplayedSteps) -> Tensor:
        """Outputs of the target agent network at all filled steps, [N, A, ...]."""

    @abstractmethod
    def target_values(self, outputs: Tensor, joint: Tensor, state: Tensor, avail: Tensor) -> Tensor:
        """Values of joint actions under the target network.

        Args:
            outputs: [N, A, ...], of the target agent network.
            joint: int64 [J, N, A].
            state: [N, S].
            avail: [N, A, U].

        Returns:
            [J, N, 1].
        """

    @abstractmethod
    def taken(self, rows: ReplayedSteps, own: Tensor, at: Any = ALL) -> Tensor:
        """Values of the actions taken, whose gradients reach what is trained: [N', 1].

        Args:
            own: [N', 1], the learner's own first value of the same actions.
            at: which N' of the N rows.
        """

    @abstractmethod
    def losses(self, taken: Tensor, targets: Tensor, rows: ReplayedSteps) -> dict[str, Tensor]:
        """Losses of what is trained, by name; both arguments are [M, 1]."""

    @abstractmethod
    def update_targets(self) -> None:
        """Copies the weights that are not in `targets`."""

    def targets_of(
        self, rows: ReplayedSteps, outputs: Tensor, greedy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Target values of greedy joint actions, and the targets y that bootstrap from the first.

        Args:
            outputs: those of `target_outputs`.
            greedy: int64 [J, N, A].

        Returns:
            [J, N, 1] and [M, 1].
        """
        if not self.args.q_lambda:
            values = self.target_values(outputs, greedy, rows.state, rows.avail)
            return values, rows.returns(self.args, values[0])
        joint = torch.cat([greedy, rows.actions.unsqueeze(0)])
        values = self.target_values(outputs, joint, rows.state, rows.avail)
        return values[:-1], rows.returns(self.args, values[0], values[-1])


def freeze(*networks: Any) -> None:
    """No parameter of these networks or controllers is trained any more."""
    for network in networks:
        for param in network.parameters():
            param.requires_grad_(False)


class UnrestrictedValue(FollowedValue):
    """Q* of weighted QMIX: agent networks of its own and a mixer that is not monotone (Rashid et
    al. 2020).

    Args:
        mac: the learner's controller, whose inputs Q* shares where they are the usual ones.
        scheme: of the episode batch.
        args: `central_agent`, `central_rnn_hidden_dim`, and what the networks read.
        state_once: compute what depends on the state alone once for several joint actions, which
            rounds in another way.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "central_rnn_hidden_dim": COUNT,
        **QMixerCentralFF.ranges,
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], args: SimpleNamespace, state_once: bool = False
    ) -> None:
        super().__init__(args)
        self.mac = central_controller(scheme, args)
        self.mixer: Any = make_mixer("qmix_central_ff", args)
        self.modules = {"central_agent": self.mac.agent, "central_mixer": self.mixer}
        self.target_mac, self.target_mixer = copy.deepcopy(self.mac), copy.deepcopy(self.mixer)
        freeze(self.target_mac, self.target_mixer)
        self.targets = [(self.mac, self.target_mac), (self.mixer, self.target_mixer)]
        self._state_once = state_once
        # A controller that builds its inputs in another way keeps them to itself.
        own = ("_build_inputs", "sequence_inputs")
        self._shares_inputs = all(
            getattr(type(mac), name, None) is getattr(BasicMAC, name) for name in own
        )

    def target_outputs(self, rows: ReplayedSteps) -> Tensor:
        return self._unroll(self.target_mac, rows)

    def target_values(self, outputs: Tensor, joint: Tensor, state: Tensor, avail: Tensor) -> Tensor:
        return self._values(self.target_mixer, outputs, joint, state)

    def taken(self, rows: ReplayedSteps, own: Tensor, at: Any = ALL) -> Tensor:
        outputs, joint = self._unroll(self.mac, rows)[at], rows.actions[at].unsqueeze(0)
        return self._values(self.mixer, outputs, joint, rows.state[at])[0]

    def update_targets(self) -> None:
        """Nothing: all are in `targets`."""

    def losses(self, taken: Tensor, targets: Tensor, rows: ReplayedSteps) -> dict[str, Tensor]:
        return {"central_loss": rows.mean((taken - targets).pow(2))}

    def _unroll(self, mac: BasicMAC, rows: ReplayedSteps) -> Tensor:
        if self._shares_inputs:
            return rows.unroll(mac)
        inputs = sequence_inputs(mac, rows.batch, rows.steps)
        return unroll(mac, rows.batch, rows.steps, inputs)

    def _values(self, mixer: Any, outputs: Tensor, joint: Tensor, state: Tensor) -> Tensor:
        """Outputs [N, A, U * E], joint actions [J, N, A], state [N, S] -> [J, N, 1]."""
        q = outputs.unflatten(-1, (self.args.n_actions, -1))
        index = joint[..., None, None].expand(*joint.shape, 1, q.shape[-1])
        chosen = q.expand(len(joint), *q.shape).gather(-2, index).flatten(2)
        if self._state_once and hasattr(mixer, "of_several"):  # a plug-in may not have it
            return mixer.of_several(chosen, state)
        # PyMARL2's gives one axis more.
        return torch.stack([mixer(rows, state).view(*state.shape[:-1], 1) for rows in chosen])


def central_controller(scheme: Mapping[str, Any], args: SimpleNamespace) -> BasicMAC:
    """The controller of Q*: the inputs of `BasicMAC`, `central_agent` as its network."""
    return BasicMAC(scheme, {"agents": args.n_agents}, central_args(args))
