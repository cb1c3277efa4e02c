"""DOP: off-policy policy gradients with a linearly decomposed critic (Wang et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from controllers.actor_controller import ActorMAC
from learners.base import make_optimiser
from learners.counterfactual import CounterfactualLearner
from learners.needs import Needs
from learners.returns import (
    FilledSteps,
    filled_steps,
    lambda_targets,
    taken_or_policy,
    tree_backup_targets,
)
from modules.critics.decomposed import LinearCritic
from utils.ranges import COUNT, POSITIVE, PROBABILITY


class Episodes(NamedTuple):
    """What an update reads of some episodes: N filled steps, M of them transitions."""

    filled: FilledSteps
    state: Tensor  # [N, S]
    policy: MaskedCategorical  # [N, A, U], that acts, its share of random actions included
    taken: Tensor  # [N, A, U], one-hot; meaningless at the end of an episode


class Regression(NamedTuple):
    """What the critic learns of some episodes, for a loss that counts by `share`."""

    episodes: Episodes
    targets: Tensor  # [M, 1]
    share: float


class DOPLearner(CounterfactualLearner):
    """Stochastic DOP: Q_tot = sum_i k_i(s) Q_i(s, o_i, a_i), from the newest episodes and replayed
    ones.

    Being linear, Q_tot has an exact mean over joint policies. The critic learns TD(lambda) returns
    of the newest episodes, and of replayed ones returns of a tree backup under the present
    policies. Each policy then takes a step along k_i grad log pi_i(a_i|o_i) (Q_i(a_i) - sum over a
    of pi_i(a|o_i) Q_i(a)) on the newest episodes, with the critic after its steps.

    Args:
        mac: an `ActorMAC`.
        scheme, logger: as for every learner.
        args: those of `CounterfactualLearner`, `td_lambda` and `latest_episodes` (on-policy),
            `tree_backup_lambda`, `tree_backup_steps` and `dop_replayed_share` (off-policy),
            `critic_lr`, `critic_grad_norm_clip`, `critic_by_step`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = CounterfactualLearner.needs | Needs(
        settings={"replay": "episodes", "common_reward": True},
        why={
            "replay": "it learns from replayed episodes beside the newest ones",
            "common_reward": "its critic values the team's reward",
        },
    )
    ranges: ClassVar = {
        **CounterfactualLearner.ranges,
        "latest_episodes": COUNT,
        "hard_target_interval": COUNT,
        "critic_lr": POSITIVE,
        "critic_grad_norm_clip": POSITIVE,
        "tree_backup_lambda": PROBABILITY,
        "tree_backup_steps": COUNT,
        "dop_replayed_share": PROBABILITY,
    }

    critic: LinearCritic
    target_critic: LinearCritic

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args, lr=args.critic_lr)

    def make_critic(self) -> LinearCritic:
        return LinearCritic(self.scheme, self.args)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on a batch whose first `latest_episodes` are the newest ones; see
        `Learner.train`. `per_weight` has no meaning here.
        """
        self.mac.agent.train()
        share, n_newest = self.args.dop_replayed_share, self.args.latest_episodes
        newest = self._read(batch[:n_newest])
        with torch.no_grad():
            replayed = self._read(batch[n_newest:])
        figures = self._critic_steps(
            [
                Regression(newest, self._newest_targets(newest), 1 - share),
                Regression(replayed, self._replayed_targets(replayed), share),
            ],
            t_env,
        )
        figures |= self._policy_step(newest, t_env)
        self.log_means(t_env, **figures, policy_entropy=newest.policy.entropy())

    def _read(self, batch: EpisodeBatch) -> Episodes:
        filled = filled_steps(batch, self.mac)
        policy = MaskedCategorical(filled.logits, filled.avail)
        acting = self.mac.action_selector.acting_policy(policy, filled.avail)
        taken = F.one_hot(filled.actions, self.args.n_actions).to(filled.obs)
        return Episodes(filled, filled.steps.pack(batch["state"]), acting, taken)

    # -- targets -----------------------------------------------------------------------------------
    @torch.no_grad()
    def _newest_targets(self, episodes: Episodes) -> Tensor:
        """TD(lambda) returns of the actions taken, [M, 1]; at the end of an episode that was cut
        the mean over the policies counts.
        """
        filled, probs = episodes.filled, episodes.policy.probs
        value = self.target_critic.decomposed(episodes.state, filled.obs)
        choices = taken_or_policy(probs, episodes.taken, filled.steps)
        return lambda_targets(
            filled.steps, filled.rewards, filled.goes_on, value.of(choices), self.args.gamma,
            self.args.td_lambda,
        )  # fmt: skip

    @torch.no_grad()
    def _replayed_targets(self, episodes: Episodes) -> Tensor:
        """Returns of the tree backup under the present policies, [M, 1] (Wang et al. 2021, eq. 8):
        a step goes on as far as all policies would have taken the replayed actions.
        """
        filled, probs, args = episodes.filled, episodes.policy.probs, self.args
        value = self.target_critic.decomposed(episodes.state, filled.obs)
        return tree_backup_targets(
            filled.steps, filled.rewards, filled.goes_on,
            expected=value.of(probs), taken=value.of(episodes.taken),
            probability=(probs * episodes.taken).sum(-1).prod(-1, keepdim=True),
            gamma=args.gamma, td_lambda=args.tree_backup_lambda, n_steps=args.tree_backup_steps,
        )  # fmt: skip

    # -- steps -------------------------------------------------------------------------------------
    def _critic_steps(self, parts: list[Regression], t_env: int) -> dict[str, Tensor]:
        """Steps of the critic towards targets that stay as they are; figures to log."""
        done = [self._critic_step(rows, t_env) for rows in self._rounds(parts)]
        return {name: torch.stack([each[name] for each in done]) for name in done[0]}

    def _rounds(self, parts: list[Regression]) -> Iterator[list[tuple[Regression, slice]]]:
        """Which transitions each step of the critic learns from: with `critic_by_step` those of one
        time step, from the first on, else all.
        """
        if not self.args.critic_by_step:
            yield [(part, slice(None)) for part in parts]
            return
        # Transitions are in the order of time.
        counts = [part.episodes.filled.steps.sizes[1:] for part in parts]
        begins = [0] * len(parts)
        for t in range(max(map(len, counts))):
            ends = [
                begin + (count[t] if t < len(count) else 0)
                for begin, count in zip(begins, counts, strict=True)
            ]
            spans = [slice(*bounds) for bounds in zip(begins, ends, strict=True)]
            yield [
                (part, span)
                for part, span in zip(parts, spans, strict=True)
                if span.start < span.stop
            ]
            begins = ends

    def _critic_step(self, rows: list[tuple[Regression, slice]], t_env: int) -> dict[str, Tensor]:
        """One step: the weighted sum of the parts' mean squared errors."""
        read = []
        for (episodes, targets, _), span in rows:
            at = episodes.filled.steps.rows_cur[span]
            read.append(
                (episodes.state[at], episodes.filled.obs[at], episodes.taken[at], targets[span])
            )
        state, obs, taken, targets = (torch.cat(each) for each in zip(*read, strict=True))
        q = self.critic.decomposed(state, obs).of(taken)
        errors = (q - targets).split([len(each[0]) for each in read])
        losses = [
            part.share * self.mean(error.square())
            for (part, _), error in zip(rows, errors, strict=True)
        ]
        loss = torch.stack(losses).sum()
        grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss, t_env,
            {"observations": obs, "states": state, "targets": targets, "q": q},
            max_norm=self.args.critic_grad_norm_clip,
        )  # fmt: skip
        self.finish_update()
        return {
            "loss_value": loss.detach(),
            "critic_grad_norm": grad_norm,
            "td_error_abs": (q - targets).detach().abs().mean(),
            "q_taken_mean": q.detach().mean(),
            "target_mean": targets.mean(),
        }

    def _policy_step(self, episodes: Episodes, t_env: int) -> dict[str, Tensor]:
        """A step of all policies on the newest episodes; figures to log."""
        filled, cur = episodes.filled, episodes.filled.steps.cur
        policy, taken = episodes.policy, episodes.taken[cur]
        with torch.no_grad():
            k, q = self.critic.decomposed(episodes.state[cur], filled.obs[cur])
            mean = (policy.probs[cur] * q).sum(-1)
            advantage = k * ((q * taken).sum(-1) - mean)
        log_prob = policy.log_prob(filled.actions)[cur]
        parts = {"observations": filled.obs, "states": episodes.state, "q": q}
        loss, grad_norm = self.policy_step(advantage, log_prob, t_env, parts)
        return {
            "loss_policy": loss,
            "grad_norm": grad_norm,
            "advantage_abs": advantage.abs(),
        }

    # -- for people who watch ---------------------------------------------------------------------
    @property
    def explained_by(self) -> tuple[str, ...]:
        return ("critic",)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """The mean of Q_tot over the policies, the agents' weights and utilities."""
        self.mac.agent.eval()
        steps = batch.steps()
        avail, state, obs = (steps.pack(batch[key]) for key in ("avail_actions", "state", "obs"))
        policy = MaskedCategorical(self.mac.unroll(batch, steps), avail)
        value = self.critic.decomposed(state, obs)
        return {
            "value": Inner(value.of(policy.probs).squeeze(-1)),
            "weights": Inner(value.k, ("agent",)),
            "critic's action values": Inner(value.q, ("agent", "action")),
        }
