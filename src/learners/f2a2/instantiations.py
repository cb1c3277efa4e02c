"""The five instantiations of F2A2: what each supplies to the framework (F2A2, section 5.1,
appendices D and E).

An instantiation says how many critics an agent has, how own actions are drawn, what the value of
the next step is, and which losses move critics and actors. Shapes: A agents, C critics, M rows, U
actions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from components.distributions import MaskedCategorical
from learners.f2a2.losses import (
    Weights,
    off_policy_critic_loss,
    on_policy_actor_loss,
    on_policy_critic_loss,
    pathwise_actor_loss,
    soft_actor_loss,
    truncated_ratio,
)
from learners.needs import Needs
from utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, one_of
from utils.registry import Registry
from utils.seeding import derive_seed

REGISTRY = Registry("instantiation of F2A2")
RANGES = {
    "importance_bound": POSITIVE,
    "twin_target": one_of("max", "min"),
    "alpha_entropy": NOT_NEGATIVE,
    "gumbel_temperature": POSITIVE,
    "policy_delay": COUNT,
    "target_noise": NOT_NEGATIVE,
    "target_noise_clip": NOT_NEGATIVE,
}


class Actions(NamedTuple):
    """Actions at M rows, replayed or resampled, from the view of each agent."""

    own: Tensor  # [A, M, U], one-hot; of resampled ones possibly with a gradient
    # [A, M, A, U], one-hot, as agent i knows or imagines them; the own ones in it are not read
    joint: Tensor
    log_prob: Tensor  # [A, M], of the own ones under the present policy, with gradient
    behaviour: Tensor  # [A, M], of the own ones under what the replayed actions were drawn from
    target: Tensor | None = None  # [A, 1 or C, M], of the critics at them; None: there is no error

    def ratio(self, bound: float) -> Tensor:
        """rho = min(bound, pi / pi_0), [A, M]."""
        return truncated_ratio(self.log_prob, self.behaviour, bound)

    def inverse_ratio(self, bound: float) -> Tensor:
        """rho' = min(bound, pi_0 / pi), [A, M]."""
        return truncated_ratio(self.behaviour, self.log_prob, bound)


class Values(NamedTuple):
    """What the critics say of joint actions."""

    actions: Actions
    all_q: Tensor  # [A, C, M, U], of every own action
    q: Tensor  # [A, C, M], of the own action in question
    error: Tensor  # [A, C, M], delta; 0 without a target

    def baseline(self, policy: MaskedCategorical) -> Tensor:
        """B(o, a_-i) = sum over own actions of pi_i Q_i of the first critic: [A, M]."""
        return (self.all_q[:, 0] * policy.probs.transpose(0, 1)).sum(-1)


def values_of(actions: Actions, all_q: Tensor) -> Values:
    """The values of actions, from those of all own ones [A, C, M, U]."""
    q = (all_q * actions.own.unsqueeze(1)).sum(-1)
    error = torch.zeros_like(q) if actions.target is None else q - actions.target
    return Values(actions, all_q, q, error)


class Instantiation:
    """Base.

    Args:
        args: the run's configuration.
        weights: of the two objectives.

    Attributes:
        needs: what it needs of the settings.
        n_critics: C.
        on_policy: whether it learns from the newest episodes, with TD(lambda) targets, instead of
            replay.
        target_policies: whether the next own action comes from slowly following copies of the
            policies.
        consensus_of_actors: whether the agents agree on their policies too.
        actors_read_replayed: whether the actors' loss needs the values of the replayed actions, of
            the first critics.
    """

    needs = Needs(
        settings={"replay": ("transitions", "episodes"), "share_params": False},
        why={
            "replay": "of the instantiations of F2A2 only coma learns on-policy",
            "share_params": "only the agents of isac share policies",
        },
    )
    n_critics = 1
    on_policy = False
    target_policies = False
    consensus_of_actors = False
    actors_read_replayed = True

    def __init__(self, args: SimpleNamespace, weights: Weights) -> None:
        self.args, self.weights = args, weights
        self.ratio_bound = args.importance_bound

    def draw(self, policy: MaskedCategorical) -> Tensor:
        """Own actions from policies [M, A, U] -> one-hot [A, M, U]."""
        return F.one_hot(policy.sample(), policy.probs.shape[-1]).to(policy.probs).transpose(0, 1)

    def next_policy(self, logits: Tensor, avail: Tensor) -> MaskedCategorical:
        """What the own next action is drawn from: [M, A, U]."""
        return MaskedCategorical(logits, avail)

    def next_value(self, all_q: Tensor, own: Tensor, policy: MaskedCategorical) -> Tensor:
        """The value that a target bootstraps from: [A, C, M, U], [A, M, U] -> [A, M]."""
        return self.combined((all_q * own.unsqueeze(1)).sum(-1))

    def combined(self, q: Tensor) -> Tensor:
        """[A, C, M] -> [A, M]: of twin critics the more pessimistic value, the larger cost
        (`twin_target: max`).
        """
        return q.amax(1) if self.args.twin_target == "max" else q.amin(1)

    def critic_loss(self, replayed: Values, resampled: Values) -> Tensor:
        """[A]. On-policy, the replayed actions are given as the resampled ones too."""
        return off_policy_critic_loss(
            replayed.q,
            replayed.error,
            replayed.actions.ratio(self.ratio_bound),
            resampled.q,
            resampled.error,
            resampled.actions.inverse_ratio(self.ratio_bound),
            self.weights,
        )

    def actor_loss(self, replayed: Values, resampled: Values, policy: MaskedCategorical) -> Tensor:
        """[A], with the critics after their step; not to read `replayed` where
        `actors_read_replayed` says so.
        """
        raise NotImplementedError

    def actors_due(self) -> Tensor | None:
        """bool [A], whose policies take a step at this update; None: all."""
        return None


@REGISTRY.register("coma")
class COMA(Instantiation):
    """On-policy, with the counterfactual baseline (F2A2, proposition 3)."""

    needs = Instantiation.needs | Needs(
        settings={"replay": "latest"}, why={"replay": "F2A2 with coma learns on-policy"}
    )
    on_policy = True

    def critic_loss(self, replayed: Values, resampled: Values) -> Tensor:
        return on_policy_critic_loss(replayed.q, replayed.error, self.weights)

    def actor_loss(self, replayed: Values, resampled: Values, policy: MaskedCategorical) -> Tensor:
        return on_policy_actor_loss(
            replayed.actions.log_prob,
            replayed.q[:, 0],
            replayed.baseline(policy),
            replayed.error[:, 0],
            self.weights,
        )


@REGISTRY.register("ddpg")
class DDPG(Instantiation):
    """Own actions by the Gumbel-softmax, whose gradient goes through the critic (F2A2, proposition
    4).
    """

    target_policies = True
    actors_read_replayed = False

    def draw(self, policy: MaskedCategorical) -> Tensor:
        return policy.rsample(self.args.gumbel_temperature).transpose(0, 1)

    def actor_loss(self, replayed: Values, resampled: Values, policy: MaskedCategorical) -> Tensor:
        inverse_ratio = resampled.actions.inverse_ratio(self.ratio_bound)
        return pathwise_actor_loss(resampled.q, resampled.error, inverse_ratio, self.weights)


@REGISTRY.register("td3")
class TD3(DDPG):
    """DDPG with twin critics, delayed policies and smoothed targets (F2A2, proposition 5).

    Every agent has its own delay and its own noise, drawn once per run: the delay uniformly from 1
    to 2 `policy_delay` - 1 updates, the deviation of the noise on the target policy's logits
    uniformly from 0 to 2 `target_noise`.
    """

    n_critics = 2

    def __init__(self, args: SimpleNamespace, weights: Weights) -> None:
        super().__init__(args, weights)
        rngs = [
            np.random.default_rng(derive_seed(args.seed, "td3_agent", i))
            for i in range(args.n_agents)
        ]
        self.delays = torch.tensor([int(rng.integers(1, 2 * args.policy_delay)) for rng in rngs])
        self.noise = torch.tensor(
            [rng.uniform(0, 2 * args.target_noise) for rng in rngs], dtype=torch.float32
        )
        self.updates = 0

    def next_policy(self, logits: Tensor, avail: Tensor) -> MaskedCategorical:
        noise = torch.randn_like(logits) * self.noise.to(logits.device).unsqueeze(-1)
        return MaskedCategorical(
            logits + noise.clamp(-self.args.target_noise_clip, self.args.target_noise_clip), avail
        )

    def actors_due(self) -> Tensor | None:
        self.updates += 1
        return self.updates % self.delays == 0


@REGISTRY.register("sac")
class SAC(Instantiation):
    """Soft actor-critic with twin critics and the counterfactual baseline (F2A2, proposition 6)."""

    n_critics = 2

    def next_value(self, all_q: Tensor, own: Tensor, policy: MaskedCategorical) -> Tensor:
        # Entropy is worth something: alpha log pi is a cost.
        log_prob = (policy.log_probs.transpose(0, 1) * own).sum(-1)
        return super().next_value(all_q, own, policy) + self.args.alpha_entropy * log_prob

    def actor_loss(self, replayed: Values, resampled: Values, policy: MaskedCategorical) -> Tensor:
        return soft_actor_loss(
            replayed.actions.log_prob,
            self._advantage(replayed, policy),
            replayed.actions.ratio(self.ratio_bound),
            resampled.actions.log_prob,
            self._advantage(resampled, policy),
            resampled.error,
            resampled.actions.inverse_ratio(self.ratio_bound),
            self.weights,
        )

    def _advantage(self, values: Values, policy: MaskedCategorical) -> Tensor:
        soft = values.q[:, 0] + self.args.alpha_entropy * values.actions.log_prob
        return soft - values.baseline(policy)


@REGISTRY.register("isac")
class ISAC(SAC):
    """SAC for very many agents: the critic sees own observation and action, agents agree on
    policies too (sec. 6.3).
    """

    needs = SAC.needs | Needs(settings={"share_params": (True, False)})
    consensus_of_actors = True
