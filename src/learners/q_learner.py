"""Q-learning with value decomposition: IQL, VDN, QMIX, Qatten and QPLEX are this learner with
another mixer.

VDN: Sunehag et al. 2018; QMIX: Rashid et al. 2018; Qatten: Yang et al. 2020; QPLEX: Wang et al.
    2021. The keys
`td_lambda` (0 for one-step targets), `q_lambda` and `double_q` choose the targets;
`hysteretic_beta` below 1 makes an independent learner optimistic (Matignon et al. 2007; 0:
distributed Q-learning, Lauer and Riedmiller 2000).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from controllers.unroll import sequence_inputs, unroll
from learners.base import Learner, make_optimiser, parts_of
from modules.mixers import REGISTRY as MIXERS
from utils.errors import ConfigError
from utils.rl_utils import build_q_lambda_targets, build_td_lambda_targets


class Rows(NamedTuple):
    """What an update computes on: the filled steps of a batch, in the order of `steps`."""

    steps: Steps
    state: Tensor  # [N, S]
    avail: Tensor  # [N, A, U]
    actions: Tensor  # int64 [N, A]
    inputs: (
        Tensor | None
    )  # [N, A, F], of the agent network; None if the controller keeps them to itself


class QLearner(Learner):
    """TD learning of a joint value that a mixer builds from the agents' values.

    Without a mixer and without parameter sharing the agents learn as if each were alone: nothing of
    an agent's loss, gradient or clipping depends on another agent's data or weights.

    Raises:
        ConfigError: individual rewards or `hysteretic_beta` with a mixer, or that is not in [0, 1].
    """

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.params = list(mac.parameters())
        self.mixer = None if args.mixer is None else MIXERS[args.mixer](args)
        if self.mixer is not None and not args.common_reward:
            raise ConfigError(
                f"mixer '{args.mixer}' learns one joint value: set common_reward=True, or use iql"
            )
        check_hysteretic_beta(args)
        self.decentralised = self.mixer is None and not args.share_params
        if self.mixer is not None:
            self.modules["mixer"] = self.mixer
            self.params += list(self.mixer.parameters())
        self.build_targets()
        self.optimiser = make_optimiser(self.params, args)

    def build_targets(self) -> None:
        """The networks that the targets come from, and the parameters of those that are trained for
        it.
        """
        self.target_mac = self.with_target(self.mac)
        self.target_mixer = None if self.mixer is None else self.with_target(self.mixer)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_error_abs` [B] if `per_weight` is given, see `episode_errors`.
        """
        rows = self.rows(batch)
        q = unroll(self.mac, batch, rows.steps, rows.inputs)
        with torch.no_grad():
            target_q = unroll(self.target_mac, batch, rows.steps, rows.inputs)
            targets = self.value_targets(batch, rows, q, target_q)
        return self.fit(batch, rows, q, targets, t_env, episode_num, per_weight)

    def rows(self, batch: EpisodeBatch) -> Rows:
        """The filled steps of a batch."""
        steps = batch.steps()
        return Rows(
            steps,
            state=steps.pack(batch["state"]),
            avail=steps.pack(batch["avail_actions"]),
            actions=steps.pack(batch["actions"]).squeeze(-1),
            inputs=sequence_inputs(self.mac, batch, steps),
        )

    def value_targets(self, batch: EpisodeBatch, rows: Rows, q: Tensor, target_q: Tensor) -> Tensor:
        """Targets of the values of the actions taken, [M, 1 or A]; q and target_q [N, A, U]."""
        greedy = masked_argmax(q if self.args.double_q else target_q, rows.avail)
        target_max = self.mix(self.target_mixer, target_q, greedy, rows.avail, rows.state)
        if not self.args.q_lambda:
            return self.returns(batch, rows.steps, target_max)
        taken = self.mix(self.target_mixer, target_q, rows.actions, rows.avail, rows.state)
        return self.returns(batch, rows.steps, target_max, taken)

    def fit(
        self,
        batch: EpisodeBatch,
        rows: Rows,
        q: Tensor,
        targets: Tensor,
        t_env: int,
        episode_num: int,
        per_weight: Tensor | None,
        **figures: Tensor,
    ) -> dict[str, Tensor]:
        """One step of the values q [N, A, U] of the actions taken towards `targets` [M, 1 or A].

        Args:
            figures: more to log.

        Returns:
            That of `train`.
        """
        q_taken = self.mix(self.mixer, q, rows.actions, rows.avail, rows.state)[rows.steps.cur]
        td_error = q_taken - targets
        loss = weighted_mean(
            self.td_losses(td_error), rows.steps, per_weight, per_agent=self.decentralised
        )
        parts = parts_of(batch, targets=targets, q=q_taken)
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        self.update_targets_if_due(episode_num)
        self.log_means(
            t_env,
            loss_td=loss,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q_taken,
            target_mean=targets,
            **figures,
        )
        return episode_errors(td_error, rows.steps, per_weight)

    def td_losses(self, td_error: Tensor) -> Tensor:
        """Half the squared errors of the same shape, those of estimates above their target weighted
        by beta.

        Hysteretic Q-learning, DAC's eq. 19; beta = 1 is plain Q-learning, 0 distributed Q-learning
        (eq. 17).

        Args:
            td_error: [M, 1 or A], estimate minus target.
        """
        losses, beta = 0.5 * td_error.pow(2), self.args.hysteretic_beta
        return losses if beta == 1.0 else torch.where(td_error > 0, beta * losses, losses)

    def mix(self, mixer: Any, q: Tensor, actions: Tensor, avail: Tensor, state: Tensor) -> Tensor:
        """The value of joint actions.

        Args:
            mixer: None for independent values.
            q: [N, A, U] values of the agents' actions.
            actions: int64 [N, A].
            avail: [N, A, U].
            state: [N, S].

        Returns:
            [N, 1], or [N, A] without a mixer.
        """
        chosen = q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        if mixer is None:
            return chosen
        if hasattr(mixer, "joint"):
            # Duplex duelling (QPLEX): the advantages are weighted by what the others do. Finite
            # where nothing is available (after the end of an episode): an infinite advantage would
            # make the gradient NaN.
            best = q.detach().masked_fill(avail == 0, -1e10).amax(-1)
            return mixer.joint(chosen, state, F.one_hot(actions, q.shape[-1]), best)
        # As an axis of time of length 1: PyMARL's mixers are written for [B, T, A] and [B, T, S].
        return mixer(chosen.unsqueeze(1), state.unsqueeze(1)).view(-1, 1)

    def returns(
        self,
        batch: EpisodeBatch,
        steps: Steps,
        values: Tensor,
        taken: Tensor | None = None,
        td_lambda: float | None = None,
    ) -> Tensor:
        """Targets of the transitions, [M, 1 or A]: TD(lambda), or Q(lambda) where `taken` is given.

        Args:
            values: [N, 1 or A] bootstrap values of all filled steps.
            taken: [N, 1 or A] values of the actions that were taken, under the same network.
            td_lambda: lambda; that of the configuration unless given.
        """
        rewards = batch["reward"][:, :-1]
        terminated = batch["terminated"][:, :-1].float()
        args = self.args
        lam = args.td_lambda if td_lambda is None else td_lambda
        if taken is None:
            targets = build_td_lambda_targets(
                rewards, terminated, steps.mask, steps.unpack(values), args.n_agents, args.gamma,
                lam,
                pymarl=args.td_lambda_pymarl,
            )  # fmt: skip
        else:
            targets = build_q_lambda_targets(
                rewards, terminated, steps.mask, steps.unpack(values), steps.unpack(taken),
                args.gamma, lam,
                pymarl=args.td_lambda_pymarl,
            )  # fmt: skip
        return steps.pack_transitions(targets)


def check_hysteretic_beta(args: SimpleNamespace) -> None:
    """ConfigError where `hysteretic_beta` is out of range or would have no meaning."""
    if not 0.0 <= args.hysteretic_beta <= 1.0:
        raise ConfigError(
            f"hysteretic_beta is {args.hysteretic_beta}; it is a weight, choose 0 to 1"
        )
    if args.hysteretic_beta != 1.0 and args.mixer is not None:
        raise ConfigError(
            f"hysteretic_beta is for independent learners: set mixer=null instead of '{args.mixer}'"
        )


def weighted_mean(
    losses: Tensor, steps: Steps, per_weight: Tensor | None, per_agent: bool = False
) -> Tensor:
    """Mean over transitions of losses [M, ...], each weighted by its episode's `per_weight` [B] if
    given.

    Returns:
        A scalar, or with `per_agent` [A], the mean of every column of [M, A].
    """
    if per_weight is not None:
        weights = per_weight.to(losses).view(-1, 1, 1).expand(-1, steps.max_steps, 1)
        losses = losses * steps.pack_transitions(weights)
    return losses.mean(0) if per_agent else losses.mean()


def episode_errors(td_error: Tensor, steps: Steps, per_weight: Tensor | None) -> dict[str, Tensor]:
    """`td_error_abs` [B], the mean absolute TD error [M, ...] of every episode over its transitions
    and agents.

    Only a prioritised buffer reads it: without its `per_weight` (PyMARL2 trains with it then) the
    dict is empty.
    """
    if per_weight is None:
        return {}
    means = td_error.detach().abs().flatten(1).mean(1, keepdim=True)
    padded = means.new_zeros(steps.n_rows, 1).index_copy(0, steps.rows_cur, means)
    total = steps.unpack(padded).sum(dim=(1, 2))
    return {"td_error_abs": total / (steps.lengths.to(total.device) - 1).clamp(min=1)}


def check_hidden_states(mac: Any, args: SimpleNamespace) -> None:
    """ConfigError where a controller's agent network does not show its hidden states
    (`hidden_and_values`).
    """
    if not (
        hasattr(mac, "sequence_inputs")
        and hasattr(mac.agent, "unroll_hidden")
        and hasattr(mac.agent, "head")
    ):
        raise ConfigError(
            f"{args.learner} needs the agents' hidden states, but agent '{args.agent}' or its "
            "controller cannot unroll "
            "them (unroll_hidden, head); set agent=rnn"
        )


def hidden_and_values(mac: Any, rows: Rows) -> tuple[Tensor, Tensor]:
    """Hidden states [N, A, H] and values [N, A, U] of a controller's agent network at all filled
    steps.
    """
    hidden = mac.agent.unroll_hidden(rows.inputs, rows.steps)
    return hidden, mac.agent.head(hidden)
