"""How a joint trust region is split among the agents: fixed splits, and MAMT's learned one.

"MAMT" in the docstrings is the paper "Dealing with Non-Stationarity in MARL via Trust-Region
Decomposition" (Li et al., ICLR 2022). A split is asked for the local sizes delta_i and shown, at
every update, what they can be learned from (`learners.mamt.situation`). `LearnedSplit.learn` takes
the paper's equations 5 to 8 in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.distributions import Policy, policy_distribution
from learners.base import make_optimiser
from learners.mamt.mirror_descent import (
    coordination,
    fixed_coordination,
    local_divergences,
    mirror_values,
    random_coordination,
    weighted_sum_divergences,
)
from learners.mamt.situation import Situation
from modules.mamt import LocalRegions, OpponentPolicies, Pairs, TRDNet
from modules.mamt.local_trust_regions import LARGEST, SMALLEST
from utils.errors import ConfigError, Diverged
from utils.ranges import COUNT, FINITE_POSITIVE, NOT_NEGATIVE, POSITIVE, PROBABILITY, Range, one_of

Optimise = Callable[..., Tensor]

# For the learners that use a split.
RANGES: dict[str, Range] = {
    "trust_region_split": one_of("learned", "equal", "known", "none"),
    "trust_region_delta": FINITE_POSITIVE,
    "trust_region_penalty": NOT_NEGATIVE,
    "trust_region_batch_size": NOT_NEGATIVE,
    "coordination": one_of("learned", "fixed", "random"),
    "coordination_sigma": PROBABILITY,
    "coordination_unit": one_of("values", "reward", "spread"),
    "divergence": one_of("opponents", "weighted_sum"),
    "divergence_min": NOT_NEGATIVE,
    "divergence_max": POSITIVE,
    "trd_steps": COUNT,
    "trd_grad_norm_clip": POSITIVE,
    "opponent_weight_decay": NOT_NEGATIVE,
    "opponent_grad_norm_clip": POSITIVE,
}


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


class Graph(NamedTuple):
    """What TRD-Net reads besides the sizes: agents as nodes, coefficients as edges."""

    obs: Tensor  # [N, A, O]
    actions: Tensor  # [N, A, U], one-hot or continuous
    coefficients: Tensor  # C, [N, A, A]


class LearnedSplit:
    """MAMT's: every agent's models of the others tell how far the joint policy has moved, TRD-Net
    how that depends on the local trust regions, which follow the gradient of F (eq. 8).

    Args:
        args: `coordination` (learned | fixed | random), `coordination_sigma`, `coordination_unit`
            (values | reward | spread), `divergence` (opponents | weighted_sum), `divergence_min`,
            `divergence_max`, `trust_region_delta`, `trust_region_penalty`, `trd_steps`,
            `trd_grad_norm_clip` (times A), `opponent_weight_decay`, `opponent_grad_norm_clip`,
            `policy_hidden_dim`, and what
            `make_optimiser` reads.
        optimise: the learner's `Learner.optimise`.

    Attributes:
        modules, optimisers: name -> part, for the files of a model.
    """

    def __init__(self, args: SimpleNamespace, optimise: Optimise) -> None:
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
        """One round, in the paper's order.

        | | what | from what |
        | --- | --- | --- |
        | eq. 5 | coefficients C | the critic's values of what others could have done |
        | eq. 6 | divergences D_i | C, and every agent's models of the others beside these |
        | eq. 6 | a step of these models | the actions that the others took in the batch |
        | eq. 7 | `trd_steps` steps of TRD-Net | the sum of the D_i |
        | eq. 8 | a step of the sizes delta_i | values after mirror steps, less TRD-Net's estimate |

        Returns:
            Figures by name: scalars, and per agent [A] or pair [A, A]. `coordination_first` is the
            share of rows in which C_ij is agent i's largest coefficient (all zero: none is).

        Raises:
            Diverged: a loss or gradient is not finite.
        """
        c = self.coefficients(situation)
        first = F.one_hot(c.argmax(-1), c.shape[-1]) * (c.sum(-1, keepdim=True) > 0)
        models = self.models_of_others(situation)
        divergences = self.divergences(situation, c, models)
        figures = {} if models is None else self._fit_models(models, situation, t_env)
        graph = self._graph(situation, c)
        loss_trd = self._fit_net(graph, divergences.sum(-1), t_env)
        objective, excess = self._move_regions(situation, graph, t_env)
        return figures | {
            "loss_trd": loss_trd,
            "trust_region_objective": objective,
            "trust_region_excess": excess,
            "non_stationarity": divergences.mean(0),
            "coordination": c.mean(0),
            "coordination_variance": c.var(0, correction=0),
            "coordination_first": first.float().mean(0),
        }

    @torch.no_grad()
    def coefficients(self, situation: Situation) -> Tensor:
        """C (eq. 5): [N, A, A]."""
        n, n_agents = situation.obs.shape[:2]
        if self.args.coordination == "fixed":
            return fixed_coordination(n_agents, situation.obs).expand(n, -1, -1)
        if self.args.coordination == "random":
            return random_coordination(n, n_agents, situation.obs)
        return coordination(self.effects(situation), self.args.coordination_sigma)

    @torch.no_grad()
    def effects(self, situation: Situation) -> Tensor:
        """|Q_i(o, a_\\j) - Q_i(o, a)| in the unit that `coordination_unit` names: [N, A, A].

        The softmax over the others is flat where differences are far below 1, as those of values of
        standardised rewards are, so the unit decides whether a coefficient finds anybody. The paper
        does not say which one it takes.
        """
        effects = situation.effects()
        if self.args.coordination_unit == "reward":
            assert situation.reward_unit is not None, "`check_settings` of the learner tells"
            return effects * situation.reward_unit.unsqueeze(-1)
        if self.args.coordination_unit == "spread":
            spread = situation.values.std(dim=(0, 2), correction=0)
            return effects / torch.where(spread > 0, spread, 1.0).unsqueeze(-1)
        return effects

    def models_of_others(self, situation: Situation) -> Policy | None:
        """h_ij(. | o_i), agent i's model of agent j's policy, of every pair: P x N policies with
        gradient.

        None where the divergence is a weighted sum of the agents' own.
        """
        if self.opponents is None:
            return None
        avail = self.opponents.pairs.of_second(situation.avail_actions)
        return policy_distribution(self.opponents(situation.obs), avail, self.continuous)

    @torch.no_grad()
    def divergences(self, situation: Situation, c: Tensor, models: Policy | None) -> Tensor:
        """D_i of every row (eq. 6): [N, A]."""
        bounds = self.args.divergence_min, self.args.divergence_max
        if models is None or self.opponents is None:
            return weighted_sum_divergences(c, situation.kl, *bounds)
        pairs = self.opponents.pairs
        outputs, avail = map(pairs.of_second, (situation.outputs, situation.avail_actions))
        present = policy_distribution(outputs, avail, self.continuous)
        return local_divergences(c, pairs.matrix(models.kl(present)), *bounds)

    def _fit_models(self, models: Policy, situation: Situation, t_env: int) -> dict[str, Tensor]:
        """A step of the models by cross-entropy on replayed actions, each clipped on its own.

        What they have learned from replayed actions lags behind: they stand for the old policies.
        """
        assert self.opponents is not None
        log_probs = models.log_prob(self.opponents.pairs.of_second(situation.replayed))
        losses = -log_probs.mean(1)
        parts = {"observations": situation.obs, "models of other agents": log_probs}
        self._step("opponents", losses, self.args.opponent_grad_norm_clip, t_env, parts)
        return {"loss_opponents": losses.detach().mean()}

    def _graph(self, situation: Situation, c: Tensor) -> Graph:
        """The rows for TRD-Net."""
        obs, actions = situation.obs, situation.actions
        if not self.continuous:
            actions = F.one_hot(actions, situation.avail_actions.shape[-1]).to(obs)
        return Graph(obs, actions, c)

    def _fit_net(self, graph: Graph, joint: Tensor, t_env: int) -> Tensor:
        """`trd_steps` steps of TRD-Net, each on another part of the rows: the mean of their losses
        (eq. 7).

        Args:
            joint: [N], the divergence of the joint policy.
        """
        sizes, n_steps = self.sizes(), self.args.trd_steps
        max_norm = self.args.trd_grad_norm_clip * self.args.n_agents
        losses = []
        parts = (x.tensor_split(n_steps) for x in (*graph, joint))
        for obs_k, actions_k, c_k, joint_k in zip(*parts, strict=True):
            estimates = self.net(obs_k, actions_k, sizes, c_k).sum(-1)
            loss = (estimates - joint_k).pow(2).mean()
            parts_k = {"observations": obs_k, "divergences": joint_k, "trd_net": estimates}
            self._step("trd_net", loss, max_norm, t_env, parts_k)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _move_regions(
        self, situation: Situation, graph: Graph, t_env: int
    ) -> tuple[Tensor, Tensor]:
        """One step of the local trust regions up the gradient of F (eq. 8): F, and by how much
        delta is exceeded.
        """
        sizes = self.regions.sizes()
        values = mirror_values(situation.log_weights, situation.values, situation.baselines, sizes)
        # TRD-Net's estimate needs no more rows than one of its own steps.
        n = -(-len(graph.obs) // self.args.trd_steps)
        obs, actions, c = (x[:n] for x in graph)
        costs = self.net(obs, actions, sizes, c)
        excess = self.regions.excess(sizes)
        objective = (
            values.sum(-1).mean() - costs.sum(-1).mean() - self.args.trust_region_penalty * excess
        )
        # Of all that F depends on only the sizes are wanted: `optimise` would compute TRD-Net's
        # gradients too.
        (gradient,) = torch.autograd.grad(-objective, [self.regions.log_sizes])
        # On a device `optimise` finds it in the policies' loss, without waiting here.
        if gradient.device.type == "cpu" and not torch.isfinite(gradient).all():
            raise Diverged(
                f"trust regions: gradient {gradient.tolist()} at t_env={t_env}; lower lr, or look "
                "at the rewards and observations"
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
    """The split that `args.trust_region_split` names, for a learner with this `optimise`."""
    return (
        LearnedSplit(args, optimise) if args.trust_region_split == "learned" else FixedSplit(args)
    )


# -- settings --------------------------------------------------------------------------------------
def check_split(args: SimpleNamespace, n_rows: int) -> None:
    """What of a split's settings depends on others, on the agents or on the map.

    Args:
        n_rows: transitions of a batch, at least.

    Raises:
        ConfigError: a setting that does not fit.
    """
    if args.trust_region_split == "known":
        known_members(args)
    if args.trust_region_split != "learned":
        return
    if args.n_agents < 2:
        raise ConfigError(
            "trust_region_split=learned needs at least two agents: set trust_region_split=equal"
        )
    least, most = SMALLEST * args.n_agents, LARGEST * args.n_agents
    if not least <= args.trust_region_delta <= most:
        raise ConfigError(
            f"trust_region_delta is {args.trust_region_delta}; for {args.n_agents} agents it must "
            f"be from {least:g} to {most:g}, that is from {SMALLEST} to {LARGEST:g} for each"
        )
    if args.divergence_min >= args.divergence_max:
        raise ConfigError(
            f"divergence_min ({args.divergence_min}) must be less than divergence_max "
            f"({args.divergence_max})"
        )
    seen = min(args.trust_region_batch_size or n_rows, n_rows)
    if seen < 2 * args.trd_steps:
        raise ConfigError(
            f"trd_steps ({args.trd_steps}) need at least 2 transitions each, the trust regions see "
            f"{seen}: raise trust_region_batch_size or batch_size"
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
            f"with trust_region_split=known and trust_region_members.{name}=[...], a list of "
            "agents from 0"
        )
    members = args.trust_region_members[name]
    if len(set(members)) < len(members) or not set(members) <= set(range(args.n_agents)):
        raise ConfigError(
            f"trust_region_members.{name} is {members}; it must list different agents, 0 to "
            f"{args.n_agents - 1}"
        )
    return members
