"""What agents that learn on their own exchange: the channel between them, who uses it when, and
consensus over copies.

Every agent has a copy of the parameters that all of them share. "F2A2" in the docstrings is the
paper "F2A2: Flexible Fully-decentralized Approximate Actor-critic for Cooperative MARL" (Li et al.,
JMLR 2023). A agents; D entries of one agent's copy. All agents are computed at once: what agent i
would compute stands in row i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.ranges import NOT_NEGATIVE, Range, between, one_of
from utils.seeding import derive_seed

LINK_RANGES = {
    "topology": one_of("full", "ring", "none"),
    "topology_extra_edges": between(0, 100),
    # Never is not infinity: JSON has no such number, so a run could not be found again to be
    # resumed.
    "consensus_interval": Range(
        lambda mean: mean == 0 or 1 <= mean < math.inf, "0, which means never, or at least 1"
    ),
    "consensus_interval_std": Range(
        lambda std: 0 <= std < math.inf, "a number that is not negative"
    ),
}
# What the penalty pulls an agent's copy to before the agent has exchanged anything.
STARTS = ("nothing", "own_copy", "zero")
PRIMAL_DUAL_RANGES = {
    "consensus_beta": NOT_NEGATIVE,
    "consensus_beta_steps": NOT_NEGATIVE,
    "consensus_dual_scale": NOT_NEGATIVE,
    "consensus_start": one_of(*STARTS),
}


# -- The channel -----------------------------------------------------------------------------------
class Traffic(NamedTuple):
    """What every agent has sent, int64 [A] each; a message to k receivers counts k times."""

    messages: Tensor
    numbers: Tensor  # entries of the messages: of networks, their parameters
    bytes: Tensor


class Channel:
    """The only way from one agent to another: names what passes, refuses all else and counts it.

    Nothing that comes out of it carries gradients.

    Args:
        n_agents: A.
        carries: names of what may be sent.
    """

    def __init__(self, n_agents: int, carries: Sequence[str]) -> None:
        self.n_agents = n_agents
        # messages, numbers, bytes
        self._sent = {name: torch.zeros(3, n_agents, dtype=torch.int64) for name in carries}

    def share(self, name: str, values: Tensor, dim: int = 0) -> Tensor:
        """Every agent sends what it has to all others, and knows what all of them have: `values`
        without gradients.

        Args:
            values: any shape with A entries along `dim`, one per agent.

        Raises:
            ValueError: the channel does not carry `name`, or `dim` is not the agents'.
        """
        if values.shape[dim] != self.n_agents:
            raise ValueError(
                f"{tuple(values.shape)} has no {self.n_agents} agents along axis {dim}"
            )
        self.pool(name, values.numel() // self.n_agents, values.element_size())
        return values.detach()

    def average(self, name: str, values: Tensor, weights: Tensor) -> Tensor:
        """Every agent's weighted sum of its own values and of those that it receives: [A, D] -> [A,
        D].

        Args:
            values: [A, D].
            weights: float [A, A]: row i are the weights of agent i; j sends to i where the weight
                is not 0.

        Raises:
            ValueError: the channel does not carry `name`, or the shapes do not fit.
        """
        if (
            values.dim() != 2
            or len(values) != self.n_agents
            or weights.shape != (self.n_agents, self.n_agents)
        ):
            raise ValueError(
                f"need [{self.n_agents}, D] and [{self.n_agents}, {self.n_agents}], "
                f"got {tuple(values.shape)} and {tuple(weights.shape)}"
            )
        values = values.detach()
        receivers = (weights != 0).sum(0) - (weights.diagonal() != 0).long()
        self._count(name, receivers.cpu(), values.shape[1], values.element_size())
        if torch.equal(weights, torch.full_like(weights, 1 / self.n_agents)):
            # All agents get the mean: one sum instead of A, which is what many agents can afford.
            return values.mean(0, keepdim=True).expand_as(values)
        return weights.to(values) @ values

    def pool(self, name: str, numbers: int, size: int) -> None:
        """Counts what every agent sends to all others, moving nothing.

        For agents that are computed as one, which take the same step because all know all parts of
        its gradient.

        Args:
            numbers: that each sends.
            size: bytes of a number.

        Raises:
            ValueError: the channel does not carry `name`.
        """
        self._count(name, torch.full((self.n_agents,), self.n_agents - 1), numbers, size)

    def sent(self, name: str) -> Traffic:
        """What has been sent under a name so far."""
        return Traffic(*self._sent[name].clone())

    def total(self) -> Traffic:
        """What has been sent so far, all names together."""
        return Traffic(*torch.stack(list(self._sent.values())).sum(0))

    def figures(self, copies: Sequence[str]) -> dict[str, Tensor]:
        """What to log: what every agent has sent so far, float32 [A] each.

        `sent_parameters` and `sent_bytes` count what goes under the names `copies`,
        `sent_bytes_total` all.
        """
        sent = [self.sent(name) for name in copies]
        return {
            "sent_parameters": torch.stack([traffic.numbers for traffic in sent]).sum(0).float(),
            "sent_bytes": torch.stack([traffic.bytes for traffic in sent]).sum(0).float(),
            "sent_bytes_total": self.total().bytes.float(),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The counts."""
        return {name: counts.clone() for name, counts in self._sent.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the counts are those of a channel that carries something else.
        """
        if set(state) != set(self._sent):
            raise ValueError(
                f"counts of {sorted(state)} do not fit a channel that carries {sorted(self._sent)}"
            )
        self._sent = {name: counts.clone() for name, counts in state.items()}

    def _count(self, name: str, receivers: Tensor, numbers: int, size: int) -> None:
        if name not in self._sent:
            raise ValueError(
                f"'{name}' must not pass between agents; this channel carries {sorted(self._sent)}"
            )
        self._sent[name] += torch.stack(
            [receivers, receivers * numbers, receivers * numbers * size]
        )


# -- Who exchanges when ----------------------------------------------------------------------------
class Topology:
    """Which agents may exchange parameters (F2A2, section 6.4).

    Args:
        n_agents: A.
        kind: "full", "none", or "ring": a ring over the agents in random order, fixed per seed.
        extra_edges: percent of the edges that the ring lacks which `draw` adds at random, each time
            others; of a ring alone.
        seed: of the run.
    """

    def __init__(self, n_agents: int, kind: str, extra_edges: float, seed: int) -> None:
        self._rng = np.random.default_rng(derive_seed(seed, "topology"))
        self._fixed = torch.zeros(n_agents, n_agents, dtype=torch.bool)
        if kind == "full":
            self._fixed = ~torch.eye(n_agents, dtype=torch.bool)
        elif kind == "ring" and n_agents > 1:
            order = torch.from_numpy(self._rng.permutation(n_agents))
            self._fixed[order, order.roll(-1)] = True
            self._fixed |= self._fixed.T.clone()
        # [2, E]: the edges that may be added, each once
        self._others = (
            (~self._fixed).triu(1).nonzero().T
            if kind == "ring"
            else torch.zeros(2, 0, dtype=torch.int64)
        )
        self._n_extra = round(extra_edges / 100 * self._others.shape[1])

    def draw(self) -> Tensor:
        """The edges of one update: bool [A, A], symmetric, no agent with itself."""
        edges = self._fixed.clone()
        if self._n_extra:
            added = self._rng.permutation(self._others.shape[1])[: self._n_extra]
            first, second = self._others[:, torch.from_numpy(added)]
            edges[first, second] = edges[second, first] = True
        return edges


class Intervals:
    """When agents take their consensus steps: after each one an agent draws how many updates there
    are to its next.

    Args:
        n_agents: A.
        mean, std: of the normal distribution of the intervals, in updates; what is drawn is
            rounded, and at least 1. mean infinite: never.
        seed: of the run; every agent has a random stream of its own.
    """

    def __init__(self, n_agents: int, mean: float, std: float, seed: int) -> None:
        self._mean, self._std = float(mean), float(std)
        self._rngs = [
            np.random.default_rng(derive_seed(seed, "consensus_interval", i))
            for i in range(n_agents)
        ]
        self._left = np.array([self._draw(i) for i in range(n_agents)])

    def _draw(self, agent: int) -> float:
        return max(1.0, float(np.rint(self._rngs[agent].normal(self._mean, self._std))))

    def due(self) -> Tensor:
        """Who takes a consensus step at this update: bool [A]. Every call is one update."""
        self._left -= 1
        due = self._left <= 0
        for agent in np.flatnonzero(due):
            self._left[agent] = self._draw(int(agent))
        return torch.from_numpy(due)


class Links:
    """The edges over which agents exchange parameters at each update.

    An exchange is mutual: an agent that takes its consensus step exchanges copies with all its
    neighbours, and each of them averages over what it got. So the averaging weights stay symmetric,
    which keeps the sum of the dual variables at zero; otherwise the agents would agree on something
    else than the optimum of the summed objectives.
    """

    def __init__(self, topology: Topology, intervals: Intervals) -> None:
        self.topology, self.intervals = topology, intervals

    def draw(self) -> Tensor:
        """bool [A, A], symmetric, no agent with itself. Every call is one update."""
        edges, due = self.topology.draw(), self.intervals.due()
        return edges & (due.unsqueeze(0) | due.unsqueeze(1))


def check_links(args: SimpleNamespace) -> None:
    """Whether the settings of the links fit together; `LINK_RANGES` has what each may be.

    Raises:
        ConfigError: edges are added to anything but a ring.
    """
    if args.topology_extra_edges and args.topology != "ring":
        raise ConfigError(
            f"topology_extra_edges={args.topology_extra_edges} adds to a ring: set topology=ring "
            f"instead of '{args.topology}'"
        )


def make_links(args: SimpleNamespace) -> Links:
    """The links that a configuration asks for.

    Args:
        args: `n_agents`, `seed`, `topology`, `topology_extra_edges`, `consensus_interval` (0:
            never), `consensus_interval_std`; checked by `LINK_RANGES` and `check_links`.
    """
    mean = args.consensus_interval or float("inf")
    return Links(
        Topology(args.n_agents, args.topology, args.topology_extra_edges, args.seed),
        Intervals(args.n_agents, mean, args.consensus_interval_std, args.seed),
    )


def metropolis_weights(edges: Tensor) -> Tensor:
    """Metropolis weights of a graph: 1 / (1 + max(d_i, d_j)) for neighbours with d_i and d_j edges,
    the rest for i.

    Symmetric, rows sum to 1; in the full graph every weight is 1 / A.

    Args:
        edges: bool [A, A], symmetric, no agent with itself.

    Returns:
        float32 [A, A].
    """
    if edges.sum() == edges.numel() - len(edges):
        return torch.full(edges.shape, 1 / len(edges), device=edges.device)
    degrees = edges.sum(1)
    weights = edges / (1.0 + torch.maximum(degrees.unsqueeze(0), degrees.unsqueeze(1)))
    return weights + torch.diag(1.0 - weights.sum(1))


# -- Copies of shared parameters -------------------------------------------------------------------
def flat_copies(params: Sequence[nn.Parameter]) -> Tensor:
    """All agents' copies as rows, without gradients: parameters [A, ...] -> [A, D]."""
    return torch.cat([param.detach().flatten(1) for param in params], 1)


def disagreement(params: Sequence[nn.Parameter]) -> Tensor:
    """Root mean square distance of every copy from the mean of all copies: parameters [A, ...] ->
    [A].
    """
    copies = flat_copies(params)
    return (copies - copies.mean(0)).pow(2).mean(1).sqrt()


@torch.no_grad()
def equalise_(params: Sequence[nn.Parameter]) -> None:
    """Gives all agents the first one's copy, for a start that they can agree on by a common seed:
    nothing is sent.
    """
    for param in params:
        param.copy_(param[:1].clone().expand_as(param))


@torch.no_grad()
def average_copies_(
    params: Sequence[nn.Parameter], channel: Channel, edges: Tensor, name: str
) -> None:
    """Every agent's copy becomes its weighted average with the neighbours' (Zhang et al. 2018,
    algorithm 1).

    Args:
        params: [A, ...] each.
        edges: bool [A, A], of this update.
        name: under which the channel counts the copies.
    """
    averages = channel.average(name, flat_copies(params), metropolis_weights(edges))
    for param, part in zip(params, _split(averages, params), strict=True):
        param.copy_(part)


def _split(flat: Tensor, params: Sequence[nn.Parameter]) -> list[Tensor]:
    """Inverse of `flat_copies`: [A, D] -> tensors of the parameters' shapes."""
    parts = flat.split([param[0].numel() for param in params], 1)
    return [part.reshape(param.shape) for part, param in zip(parts, params, strict=True)]


def check_bypass(beta: float, lr: float) -> None:
    """Whether the penalty of `PrimalDual` can bypass an optimiser of this step size.

    Raises:
        ConfigError: lr beta is greater than 1: the copies would move beyond the average.
    """
    if lr * beta > 1:
        raise ConfigError(
            f"consensus_beta={beta} with lr={lr} overshoots: it must be at most 1 / lr"
        )


class PrimalDual(nn.Module):
    """Consensus on shared parameters by dual variables and a quadratic penalty (F2A2, eq. 5.2 to
    5.4, algorithm 1).

    At every update: gradients of the agents' objectives into `.grad` of their copies;
    `add_gradients_`; a step of their optimiser; `consensus_step`. The beta of an update rises
    linearly from 0 at the first one to `beta`.

    Algorithm 1 sets phi_sh to zero at the start, and its penalty always counts: a copy that is
    never exchanged is pulled to zero for good (`start="zero"`). With "own_copy" the pull is to the
    copy that the agent began with. With "nothing" the penalty counts only once the agent has
    exchanged anything, so that what is never exchanged binds nobody.

    The paper's formulas are those of plain gradient descent. Adam makes steps of about the same
    length from small and from large gradients, so that it follows neither the penalty nor the duals
    in proportion: the duals grow until they drown the objectives. For such optimisers the penalty
    can bypass the optimiser (`add_gradients_` with `lr`), and the duals take smaller steps than
    beta (`dual_scale`). With plain gradient descent the bypass changes no number.

    Args:
        params: the copies phi~, [A, ...] each; they stay outside of this module.
        beta: penalty parameter, not negative.
        beta_steps: updates until `beta` is reached; 0: from the first one.
        dual_scale: step of the dual variables as a share of beta; 1: the paper's.
        start: nothing | own_copy | zero: what the penalty pulls to before the first exchange.

    Attributes:
        shared: [A, D], phi_sh as agent i knows it: its last average.
        duals: [A, D], lambda_i.
        exchanged: bool [A], who has taken part in an exchange so far.
    """

    shared: Tensor
    duals: Tensor
    exchanged: Tensor
    updates: Tensor

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        beta: float,
        beta_steps: int,
        dual_scale: float = 1.0,
        start: str = "nothing",
    ) -> None:
        super().__init__()
        self.binds_at_once = start != "nothing"
        self.params = tuple(params)
        self.largest_beta, self.beta_steps, self.dual_scale = beta, beta_steps, dual_scale
        copies = flat_copies(self.params)
        self.register_buffer("shared", torch.zeros_like(copies) if start == "zero" else copies)
        self.register_buffer("duals", torch.zeros_like(copies))
        self.register_buffer(
            "exchanged", torch.zeros(len(copies), dtype=torch.bool, device=copies.device)
        )
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=copies.device))

    @property
    def beta(self) -> Tensor:
        """The penalty parameter of the current update: a scalar."""
        if not self.beta_steps:
            return self.duals.new_tensor(self.largest_beta)
        return self.largest_beta * (self.updates / self.beta_steps).clamp(max=1.0).to(self.duals)

    @torch.no_grad()
    def add_gradients_(self, lr: float | None = None) -> None:
        """Adds lambda_i - beta (phi_sh - phi~_i) to the gradients of the copies (step 1).

        Args:
            lr: the optimiser's step size, for the penalty to bypass it: the copies move by lr beta
                (phi_sh - phi~_i) here and now, and the gradients get lambda_i alone, as weight
                decay does in AdamW (Loshchilov and Hutter 2019). Call it after the gradients have
                been computed.

        Raises:
            ConfigError: see `check_bypass`.
        """
        if lr is not None:
            check_bypass(self.largest_beta, lr)
        copies = flat_copies(self.params)
        towards = self.beta * (self.shared - copies)
        if not self.binds_at_once:
            towards = towards * self.exchanged.unsqueeze(1)
        added = self.duals if lr is not None else self.duals - towards
        for param, part in zip(self.params, _split(added, self.params), strict=True):
            param.grad = part.clone() if param.grad is None else param.grad.add_(part)
        if lr is None:
            return
        for param, part in zip(self.params, _split(towards, self.params), strict=True):
            param.add_(part, alpha=lr)

    @torch.no_grad()
    def consensus_step(self, channel: Channel, edges: Tensor, name: str) -> None:
        """phi_sh becomes the average, lambda_i falls by beta (phi_sh - phi~_i), for all who
        exchange (step 3).

        Args:
            edges: bool [A, A], of this update (`Links.draw`).
            name: under which the channel counts the copies.
        """
        copies = flat_copies(self.params)
        averages = channel.average(name, copies, metropolis_weights(edges))
        met = edges.any(1).to(self.exchanged.device)
        self.shared.copy_(torch.where(met.unsqueeze(1), averages, self.shared))
        self.duals -= self.dual_scale * self.beta * met.unsqueeze(1) * (averages - copies)
        self.exchanged |= met
        self.updates += 1

    def consensus_error(self) -> Tensor:
        """See `disagreement`: [A]."""
        return disagreement(self.params)
