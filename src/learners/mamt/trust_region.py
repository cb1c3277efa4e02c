"""How a joint trust region is split among the agents: fixed splits, and MAMT's learned one.

"MAMT" in the docstrings is the paper "Dealing with Non-Stationarity in MARL via Trust-Region
Decomposition" (Li et al., ICLR 2022). A split is asked for the local sizes delta_i and shown, at
every update, what they can be learned from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.distributions import Policy, policy_distribution
from learners.base import make_optimiser
from learners.mamt.mirror_descent import (
    coordination,
    counterfactual_effects,
    fixed_coordination,
    local_divergences,
    mirror_values,
    random_coordination,
    weighted_sum_divergences,
)
from modules.critics.attention import AttentionCritic
from modules.mamt import LocalRegions, OpponentPolicies, Pairs, TRDNet
from modules.mamt.local_trust_regions import LARGEST, SMALLEST
from utils.errors import ConfigError, Diverged

SPLITS = ("learned", "equal", "known", "none")
COORDINATIONS = ("learned", "fixed", "random")
DIVERGENCES = ("opponents", "weighted_sum")

Optimise = Callable[..., Tensor]


class Situation(NamedTuple):
    """What the trust regions are learned from: N rows, A agents, K choices of an agent (its
    actions, or samples).
    """

    obs: Tensor  # [N, A, O]
    avail_actions: Tensor  # [N, A, U]
    replayed: Tensor  # [N, A] or [N, A, U], the actions of the batch
    actions: Tensor  # of the same kind, drawn from the present policies
    outputs: Tensor  # [N, A, U or 2 U], what the policy networks put out
    kl: Tensor  # [N, A], KL[pi_i || pi_old_i]
    effects: Callable[[], Tensor]  # [N, A, A], see `mirror_descent.counterfactual_effects`
    values: Tensor  # [N, A, K], Q_i of agent i's choices
    log_weights: Tensor  # [N, A, K], see `mirror_descent.mirror_step`
    baselines: Tensor  # [N, A]


@torch.no_grad()
def make_situation(
    critic: AttentionCritic,
    *,
    obs: Tensor,
    avail_actions: Tensor,
    replayed: Tensor,
    actions: Tensor,
    samples: Tensor | None,
    outputs: Tensor,
    old_outputs: Tensor,
    values: Tensor,
    baselines: Tensor,
) -> Situation:
    """The situation of these rows.

    Args:
        critic: that gave `values`.
        samples: for continuous actions [N, A, K, U], the own choices that `values` are of, drawn
            from the policies.
        old_outputs: of the old policy networks, [N, A, U or 2U].
        others: as in `Situation`.
    """
    continuous = samples is not None
    policy, old = (
        policy_distribution(x.detach(), avail_actions, continuous) for x in (outputs, old_outputs)
    )
    log_weights = old.log_prob(samples) - policy.log_prob(samples) if continuous else old.log_probs
    return Situation(
        obs=obs,
        avail_actions=avail_actions,
        replayed=replayed,
        actions=actions,
        outputs=outputs.detach(),
        kl=policy.kl(old),
        effects=lambda: effects_of(critic, obs, actions, policy, samples),
        values=values,
        log_weights=log_weights,
        baselines=baselines.detach(),
    )


def effects_of(
    critic: AttentionCritic, obs: Tensor, actions: Tensor, policy: Policy, samples: Tensor | None
) -> Tensor:
    """What the action of agent j matters to agent i, see `counterfactual_effects`: [N, A, A].

    Args:
        obs: [N, A, O].
        actions: [N, A] or [N, A, U].
        policy: of these rows.
        samples: for continuous actions [N, A, K, U], drawn from `policy`.
    """
    values = critic.counterfactual(obs, actions, samples)
    probs = (
        policy.probs
        if samples is None
        else values.new_full(values.shape[:1] + values.shape[2:], 1 / values.shape[3])
    )
    return counterfactual_effects(values, probs, values[..., 0].diagonal(dim1=1, dim2=2))


class FixedSplit:
    """Local trust regions that stay as they are.

    Args:
        args: `trust_region_split`: equal (delta / A for every agent), known
            (`trust_region_members[map_name]` share delta equally, the other agents have no bound)
            or none (no agent has one); `trust_region_delta`.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        members: list[int] = []
        if args.trust_region_split == "equal":
            members = list(range(args.n_agents))
        elif args.trust_region_split == "known":
            members = known_members(args)
        sizes = torch.full((args.n_agents,), math.inf)
        sizes[members] = args.trust_region_delta / max(len(members), 1)
        self._sizes = sizes.to(args.device)
        self.modules: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    def sizes(self) -> Tensor:
        """delta_i: [A], infinite for agents without a bound."""
        return self._sizes

    def learn(self, situation: Situation, t_env: int) -> dict[str, Tensor]:
        """Nothing to learn, nothing to tell."""
        return {}


class LearnedSplit:
    """MAMT's: every agent's models of the others tell how far the joint policy has moved, TRD-Net
    how that depends on the local trust regions, which follow the gradient of F (eq. 8).

    Args:
        args: `coordination` (learned | fixed | random), `coordination_sigma`, `divergence`
            (opponents | weighted_sum), `divergence_min`, `divergence_max`, `trust_region_delta`,
            `trust_region_penalty`, `trd_steps`, `trd_grad_norm_clip` (times A),
            `opponent_weight_decay`, `opponent_grad_norm_clip`, `policy_hidden_dim`, and what
            `make_optimiser` reads.
        optimise: the learner's `Learner.optimise`.

    Attributes:
        modules, optimisers: name -> part, for the files of a model.
    """

    def __init__(self, args: SimpleNamespace, optimise: Optimise) -> None:
        _check_learned(args)
        self.args = args
        self.optimise = optimise
        self.continuous = args.continuous_actions
        obs_sizes, action_sizes = args.env_info["obs_sizes"], args.env_info["action_sizes"]
        self.regions = LocalRegions(args.n_agents, args.trust_region_delta)
        self.net = TRDNet(obs_sizes, action_sizes, args.n_actions)
        self.modules: dict[str, nn.Module] = {"regions": self.regions, "trd_net": self.net}
        self.optimisers = {
            "regions_opt": make_optimiser(self.regions.parameters(), args),
            "trd_net_opt": make_optimiser(self.net.parameters(), args),
        }
        self.opponents: OpponentPolicies | None = None
        if args.divergence == "opponents":
            n_outputs = 2 * args.n_actions if self.continuous else args.n_actions
            self.opponents = OpponentPolicies(
                Pairs(args.n_agents), obs_sizes, n_outputs, args.policy_hidden_dim
            )
            self.modules["opponents"] = self.opponents
            self.optimisers["opponents_opt"] = make_optimiser(
                self.opponents.parameters(), args, args.opponent_weight_decay
            )

    def sizes(self) -> Tensor:
        """delta_i: [A]."""
        return self.regions.sizes().detach()

    def learn(self, situation: Situation, t_env: int) -> dict[str, Tensor]:
        """One round: models of the others, TRD-Net (`trd_steps` steps), one step of the local trust
        regions.

        Returns:
            Figures by name: scalars, and per agent [A] or pair [A, A].

        Raises:
            Diverged: a loss or gradient is not finite.
        """
        figures: dict[str, Tensor] = {}
        with torch.no_grad():
            c = self.coefficients(situation)
        divergences = self._divergences(situation, c, t_env, figures)
        actions = situation.actions
        if not self.continuous:
            actions = F.one_hot(actions, situation.avail_actions.shape[-1]).to(situation.obs)
        loss = self._fit_net(situation.obs, actions, c, divergences.sum(-1), t_env)
        objective, excess = self._move_regions(situation, actions, c, t_env)
        return figures | {
            "loss_trd": loss,
            "trust_region_objective": objective,
            "trust_region_excess": excess,
            "non_stationarity": divergences.mean(0),
            "coordination": c.mean(0),
            "coordination_variance": c.var(0, correction=0),
        }

    def coefficients(self, situation: Situation) -> Tensor:
        """C: [N, A, A]."""
        n, n_agents = situation.obs.shape[:2]
        if self.args.coordination == "fixed":
            return fixed_coordination(n_agents, situation.obs).expand(n, -1, -1)
        if self.args.coordination == "random":
            return random_coordination(n, n_agents, situation.obs)
        return coordination(situation.effects(), self.args.coordination_sigma)

    def _divergences(
        self, situation: Situation, c: Tensor, t_env: int, figures: dict[str, Tensor]
    ) -> Tensor:
        """D_i of every row [N, A] (eq. 6); the models of the others learn on the way."""
        bounds = self.args.divergence_min, self.args.divergence_max
        if self.opponents is None:
            return weighted_sum_divergences(c, situation.kl, *bounds)
        pairs = self.opponents.pairs
        avail = pairs.of_second(situation.avail_actions)
        models = policy_distribution(self.opponents(situation.obs), avail, self.continuous)
        with torch.no_grad():
            present = policy_distribution(
                pairs.of_second(situation.outputs), avail, self.continuous
            )
            divergences = local_divergences(c, pairs.matrix(models.kl(present)), *bounds)
        log_probs = models.log_prob(pairs.of_second(situation.replayed))
        losses = -log_probs.mean(1)
        parts = {"observations": situation.obs, "models of other agents": log_probs}
        self._step("opponents", losses, self.args.opponent_grad_norm_clip, t_env, parts)
        figures["loss_opponents"] = losses.detach().mean()
        return divergences

    def _fit_net(
        self, obs: Tensor, actions: Tensor, c: Tensor, joint: Tensor, t_env: int
    ) -> Tensor:
        """`trd_steps` steps of TRD-Net, each on another part of the rows: the mean of their losses
        (eq. 7).
        """
        sizes, steps = self.sizes(), self.args.trd_steps
        losses = []
        parts = (x.tensor_split(steps) for x in (obs, actions, c, joint))
        for obs_k, actions_k, c_k, joint_k in zip(*parts, strict=True):
            estimates = self.net(obs_k, actions_k, sizes, c_k).sum(-1)
            loss = (estimates - joint_k).pow(2).mean()
            parts_k = {"observations": obs_k, "divergences": joint_k, "trd_net": estimates}
            self._step(
                "trd_net", loss, self.args.trd_grad_norm_clip * self.args.n_agents, t_env, parts_k
            )
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _move_regions(
        self, situation: Situation, actions: Tensor, c: Tensor, t_env: int
    ) -> tuple[Tensor, Tensor]:
        """One step of the local trust regions up the gradient of F (eq. 8): F, and by how much
        delta is exceeded.
        """
        sizes = self.regions.sizes()
        values = mirror_values(situation.log_weights, situation.values, situation.baselines, sizes)
        # TRD-Net's estimate needs no more rows than one of its own steps.
        n = -(-len(actions) // self.args.trd_steps)
        costs = self.net(situation.obs[:n], actions[:n], sizes, c[:n])
        excess = self.regions.excess(sizes)
        objective = (
            values.sum(-1).mean() - costs.sum(-1).mean() - self.args.trust_region_penalty * excess
        )
        # Of all that F depends on only the sizes are wanted: `optimise` would compute TRD-Net's
        # gradients too.
        (gradient,) = torch.autograd.grad(-objective, [self.regions.log_sizes])
        if not torch.isfinite(gradient).all():
            raise Diverged(
                f"trust regions: gradient {gradient.tolist()} at t_env={t_env}; lower lr, or look "
                "at the rewards and "
                "observations"
            )
        self.regions.log_sizes.grad = gradient
        self.optimisers["regions_opt"].step()
        self.regions.clip_()
        return objective.detach(), excess.detach()

    def _step(
        self, name: str, loss: Tensor, max_norm: float, t_env: int, parts: dict[str, Tensor]
    ) -> None:
        """One step of a network; with a vector of losses each of those side by side is clipped on
        its own.
        """
        params = list(self.modules[name].parameters())
        self.optimise(self.optimisers[f"{name}_opt"], params, loss, t_env, parts, max_norm)


def make_split(args: SimpleNamespace, optimise: Optimise) -> FixedSplit | LearnedSplit:
    """The split that `args.trust_region_split` names, for a learner with this `optimise`.

    Raises:
        ConfigError: a setting out of range.
    """
    if args.trust_region_split not in SPLITS:
        raise ConfigError(
            f"trust_region_split is '{args.trust_region_split}'; choose one of {', '.join(SPLITS)}"
        )
    if args.trust_region_delta <= 0.0:
        raise ConfigError(
            f"trust_region_delta is {args.trust_region_delta}; it must be greater than 0"
        )
    return (
        LearnedSplit(args, optimise) if args.trust_region_split == "learned" else FixedSplit(args)
    )


def check_rows(args: SimpleNamespace, n_rows: int) -> None:
    """Whether batches of at least `n_rows` transitions are enough for what a learned split does
    with them.

    Raises:
        ConfigError: they are not, or `trust_region_batch_size` is negative.
    """
    n = args.trust_region_batch_size
    if n < 0:
        raise ConfigError(f"trust_region_batch_size is {n}; it must be at least 0 (all)")
    seen = min(n or n_rows, n_rows)
    if args.trust_region_split == "learned" and seen < 2 * args.trd_steps:
        raise ConfigError(
            f"trd_steps ({args.trd_steps}) need at least 2 transitions each, the trust regions see "
            f"{seen}: raise "
            "trust_region_batch_size or batch_size"
        )


def known_members(args: SimpleNamespace) -> list[int]:
    """The agents that `trust_region_members` lists for this map.

    Raises:
        ConfigError: none, or numbers that are not agents.
    """
    name = args.env_args.get("map_name")
    if name not in args.trust_region_members:
        known = ", ".join(args.trust_region_members) or "none"
        raise ConfigError(
            f"trust_region_members has no entry for map '{name}' (there: {known}): choose mamd "
            "with "
            f"trust_region_split=known and trust_region_members.{name}=[...], a list of agents "
            "from 0"
        )
    members = args.trust_region_members[name]
    if len(set(members)) < len(members) or not set(members) <= set(range(args.n_agents)):
        raise ConfigError(
            f"trust_region_members.{name} is {members}; it must list different agents, 0 to "
            f"{args.n_agents - 1}"
        )
    return members


def _check_learned(args: Any) -> None:
    if args.n_agents < 2:
        raise ConfigError(
            "trust_region_split=learned needs at least two agents: set trust_region_split=equal"
        )
    if args.coordination not in COORDINATIONS:
        raise ConfigError(
            f"coordination is '{args.coordination}'; choose one of {', '.join(COORDINATIONS)}"
        )
    if args.divergence not in DIVERGENCES:
        raise ConfigError(
            f"divergence is '{args.divergence}'; choose one of {', '.join(DIVERGENCES)}"
        )
    least, most = SMALLEST * args.n_agents, LARGEST * args.n_agents
    if not least <= args.trust_region_delta <= most:
        raise ConfigError(
            f"trust_region_delta is {args.trust_region_delta}; for {args.n_agents} agents it must "
            f"be from {least:g} to "
            f"{most:g}, that is from {SMALLEST} to {LARGEST:g} for each"
        )
    if not 0.0 <= args.divergence_min < args.divergence_max:
        raise ConfigError("divergence_min must be at least 0 and less than divergence_max")
    if args.trd_steps < 1:
        raise ConfigError(f"trd_steps is {args.trd_steps}; it must be at least 1")
