"""Replayed episodes as learners of action values compute on them: rows taken once from a batch, and
values, returns and means of such rows.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import PymarlSteps, Steps
from controllers.basic_controller import BasicMAC
from controllers.unroll import sequence_inputs, unroll
from modules.comm.agent import Talk
from utils.errors import ConfigError
from utils.rl_utils import build_q_lambda_targets, build_td_lambda_targets


@dataclass(frozen=True)
class ReplayedSteps:
    """What an update of a Q-learner reads of a batch: its filled steps, in the order of `steps`.

    Attributes:
        batch: where they come from.
        steps: N filled steps, M of which have a successor.
        state: [N, S].
        avail: [N, A, U].
        actions: int64 [N, A].
        inputs: [N, A, F], of the agent network; None if the controller keeps them to itself.
        per_weight: [B], importance weights of the episodes; None: 1.

    With `td_lambda_pymarl` the rows are all steps, padding included, and the transitions those of
    PyMARL's mask (`PymarlSteps`).
    """

    batch: EpisodeBatch
    steps: Steps
    state: Tensor
    avail: Tensor
    actions: Tensor
    inputs: Tensor | None
    per_weight: Tensor | None

    @classmethod
    def of(
        cls,
        batch: EpisodeBatch,
        mac: Any,
        per_weight: Tensor | np.ndarray | None = None,
        pymarl: bool = False,
    ) -> ReplayedSteps:
        """The filled steps of a batch, with the inputs that `mac` builds.

        Args:
            pymarl: `td_lambda_pymarl`.
        """
        steps = _pymarl_steps(batch) if pymarl else batch.steps()
        read = steps.padded if isinstance(steps, PymarlSteps) else steps
        inputs = sequence_inputs(mac, batch, read)
        if pymarl and inputs is not None and _reads_last_actions(mac):
            # In PyMARL's padding there is no last action, not even the first one.
            done = F.pad(batch["filled"][:, :-1].to(inputs), (0, 0, 1, 0))
            first = batch["obs"].shape[-1]
            inputs[..., first : first + batch["avail_actions"].shape[-1]] *= read.pack(done)[
                :, None
            ]
        return cls(
            batch,
            steps,
            state=steps.pack(batch["state"]),
            avail=steps.pack(batch["avail_actions"]),
            actions=steps.pack(batch["actions"]).squeeze(-1),
            inputs=inputs,
            per_weight=None if per_weight is None else torch.as_tensor(per_weight),
        )

    def unroll(self, mac: Any) -> Tensor:
        """Outputs of a controller that reads the same inputs, [N, A, U]."""
        return unroll(mac, self.batch, self._read, self.inputs)

    @property
    def _read(self) -> Steps:
        """The rows as networks read them."""
        return self.steps.padded if isinstance(self.steps, PymarlSteps) else self.steps

    def unroll_quantiles(self, mac: Any) -> Tensor:
        """Sorted quantiles [N, A, U, W] of a controller's `QuantileAgent`."""
        return mac.agent.unroll_quantiles(self.inputs, self._read)

    def talk(self, mac: Any) -> Talk:
        """What communicating agents that read the same inputs compute and say."""
        return mac.talk(self.batch, self.steps, self.inputs)

    def unroll_hidden(self, mac: Any) -> tuple[Tensor, Tensor]:
        """Hidden states [N, A, H] and values [N, A, U] of a controller's agent network; see
        `check_hidden_states`.
        """
        hidden = mac.agent.unroll_hidden(self.inputs, self._read)
        return hidden, mac.agent.head(hidden)

    def returns(
        self,
        args: SimpleNamespace,
        values: Tensor,
        taken: Tensor | None = None,
        td_lambda: float | None = None,
    ) -> Tensor:
        """Targets of the transitions, [M, 1 or A]: TD(lambda), or Q(lambda) where `taken` is given.

        Args:
            args: `gamma`, `td_lambda`, `td_lambda_pymarl`, `n_agents`.
            values: [N, 1 or A], bootstrap values of all filled steps.
            taken: [N, 1 or A], values of the actions that were taken, under the same network.
            td_lambda: lambda; that of `args` unless given.
        """
        rewards = self.batch["reward"][:, :-1]
        ended = self.batch["terminated"][:, :-1].float()
        bootstrap = self.steps.unpack(values)
        lam = args.td_lambda if td_lambda is None else td_lambda
        if taken is None:
            targets = build_td_lambda_targets(
                rewards, ended, self.steps.mask, bootstrap, args.n_agents, args.gamma, lam,
                pymarl=args.td_lambda_pymarl,
            )  # fmt: skip
        else:
            targets = build_q_lambda_targets(
                rewards, ended, self.steps.mask, bootstrap, self.steps.unpack(taken), args.gamma,
                lam, pymarl=args.td_lambda_pymarl,
            )  # fmt: skip
        return self.steps.pack_transitions(targets)

    def mean(self, losses: Tensor, per_agent: bool = False) -> Tensor:
        """Mean over transitions of losses [M, ...], each weighted by its episode's `per_weight`.

        Returns:
            A scalar, or with `per_agent` [A], the mean of every column of [M, A].
        """
        if self.per_weight is not None:
            losses = losses * transition_weights(self.per_weight.to(losses), self.steps)
        return losses.mean(0) if per_agent else losses.mean()

    def errors(self, td_error: Tensor) -> dict[str, Tensor]:
        """What `train` returns of TD errors [M, ...]; see `episode_errors`."""
        return episode_errors(td_error, self.steps, self.per_weight)


def _reads_last_actions(mac: Any) -> bool:
    usual = getattr(type(mac), "_build_inputs", None) is BasicMAC._build_inputs
    return usual and mac.args.obs_last_action


def _pymarl_steps(batch: EpisodeBatch) -> PymarlSteps:
    ended = (batch["terminated"] != 0).flatten(1).any(1).cpu()
    return PymarlSteps(batch.lengths(), ended, batch.max_seq_length, batch.device)


def joint_value(mixer: Any, q: Tensor, actions: Tensor, avail: Tensor, state: Tensor) -> Tensor:
    """The value that a mixer gives to joint actions, J of them in every state or one.

    Args:
        mixer: None for independent values; a stack of J mixers, or one for all.
        q: [(J,) N, A, U], values of the agents' actions.
        actions: int64 [(J,) N, A].
        avail: [N, A, U].
        state: [N, S], or [J, N, S] for one mixer.

    Returns:
        [(J,) N, 1], or [(J,) N, A] without a mixer.
    """
    chosen = q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    if mixer is None:
        return chosen
    if getattr(mixer, "takes_actions", False):  # PyMARL's mixers do not know the attribute
        # Duplex duelling (QPLEX): the advantages are weighted by what the others do. Finite where
        # nothing is available (after the end of an episode): an infinite advantage would make the
        # gradient NaN.
        best = q.detach().masked_fill(avail == 0, -1e10).amax(-1)
        return mixer.joint(chosen, state, F.one_hot(actions, q.shape[-1]), best)
    if _is_pymarls_duplex(mixer.__class__):
        best = q.detach().masked_fill(avail == 0, -1e10).amax(-1)
        onehot = F.one_hot(actions, q.shape[-1])
        values, states, best = (x.unsqueeze(-2) for x in (chosen, state, best))
        onehot = onehot.unsqueeze(-3)
        mixed = mixer(values, states, is_v=True) + mixer(
            values, states, actions=onehot, max_q_i=best, is_v=False
        )
        return mixed.view(*chosen.shape[:-1], 1)
    # With an axis of time of length 1: PyMARL's mixers are written for [B, T, A] and [B, T, S].
    mixed = mixer(chosen.unsqueeze(-2), state.unsqueeze(-2))
    return mixed.view(*chosen.shape[:-1], 1)


@cache
def _is_pymarls_duplex(mixer_class: Any) -> bool:
    """Whether a mixer gives the two terms of QPLEX one by one, as PyMARL2's does."""
    return {"max_q_i", "is_v"} <= set(inspect.signature(mixer_class.forward).parameters)


def transition_weights(per_weight: Tensor, steps: Steps) -> Tensor:
    """Weights of episodes [B] -> of their transitions [M, 1]."""
    return steps.pack_transitions(per_weight.view(-1, 1, 1).expand(-1, steps.max_steps, 1))


def episode_errors(td_error: Tensor, steps: Steps, per_weight: Tensor | None) -> dict[str, Tensor]:
    """`td_errors_abs` [B], PyMARL2's priority of every episode: the sum of its absolute TD errors
    [M, ...], each the mean over agents, divided by the root of their number.

    Only a prioritised buffer reads it: without its `per_weight` (PyMARL2 trains with it then) the
    dict is empty.
    """
    if per_weight is None:
        return {}
    means = td_error.detach().abs().flatten(1).mean(1, keepdim=True)
    padded = means.new_zeros(steps.n_rows, 1).index_copy(0, steps.rows_cur, means)
    total = steps.unpack(padded).sum(dim=(1, 2))
    return {"td_errors_abs": total / (steps.lengths.to(total) - 1).clamp(min=1).sqrt()}


def check_hidden_states(mac: Any, args: SimpleNamespace) -> None:
    """Makes sure that a controller's agent network shows its hidden states.

    Raises:
        ConfigError: naming what cannot.
    """
    if not (
        hasattr(mac, "sequence_inputs")
        and hasattr(mac.agent, "unroll_hidden")
        and hasattr(mac.agent, "head")
    ):
        raise ConfigError(
            f"{args.learner} needs the agents' hidden states, but agent '{args.agent}' or its "
            "controller cannot unroll them (unroll_hidden, head); set agent=rnn"
        )
