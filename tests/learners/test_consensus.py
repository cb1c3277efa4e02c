"""Channel, links and consensus: counted by hand, compared with agents in a loop, and solved on a
convex toy.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from learners.f2a2.consensus import (
    LINK_RANGES,
    PRIMAL_DUAL_RANGES,
    Channel,
    Intervals,
    Links,
    PrimalDual,
    Topology,
    average_copies_,
    check_links,
    equalise_,
    flat_copies,
    make_links,
    metropolis_weights,
)
from utils.errors import ConfigError
from utils.ranges import check_ranges
from utils.state import capture, restore

A = 6


def links(topology="full", extra=0.0, mean=1.0, std=0.0, seed=0, n_agents=A):
    return Links(Topology(n_agents, topology, extra, seed), Intervals(n_agents, mean, std, seed))


def graph(n_agents, *edges):
    out = torch.zeros(n_agents, n_agents, dtype=torch.bool)
    for i, j in edges:
        out[i, j] = out[j, i] = True
    return out


def copies(n_agents=A, seed=0):
    """Two parameters with one copy per agent."""
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(n_agents, *shape, generator=generator)) for shape in ((2, 3), (4,))
    ]


# -- The channel -----------------------------------------------------------------------------------


def test_sharing_is_counted_per_agent():
    channel = Channel(3, ["obs", "critic"])
    obs = torch.randn(5, 3, 4, requires_grad=True)
    shared = channel.share("obs", obs, dim=1)
    assert torch.equal(shared, obs)
    assert not shared.requires_grad
    sent = channel.sent("obs")
    # Each agent sends 5 x 4 numbers of 4 bytes to 2 others.
    assert sent.messages.tolist() == [2, 2, 2]
    assert sent.numbers.tolist() == [40, 40, 40]
    assert sent.bytes.tolist() == [160, 160, 160]
    assert channel.sent("critic").messages.tolist() == [0, 0, 0]
    channel.share("obs", torch.zeros(3, 1, dtype=torch.uint8))
    assert channel.sent("obs").numbers.tolist() == [42, 42, 42]
    assert channel.sent("obs").bytes.tolist() == [162, 162, 162]


def test_averages_are_counted_by_who_sends():
    channel = Channel(4, ["critic"])
    # A star around agent 0 and one agent on its own.
    weights = metropolis_weights(graph(4, (0, 1), (0, 2)))
    channel.average("critic", torch.randn(4, 7), weights)
    sent = channel.sent("critic")
    assert sent.messages.tolist() == [2, 1, 1, 0]
    assert sent.numbers.tolist() == [14, 7, 7, 0]
    assert sent.bytes.tolist() == [56, 28, 28, 0]
    channel.average("critic", torch.randn(4, 7), torch.full((4, 4), 0.25))
    assert channel.sent("critic").messages.tolist() == [5, 4, 4, 3]
    # Weights need not be symmetric: only agent 2 receives, from agent 3.
    one_way = torch.eye(4)
    one_way[2, 3] = one_way[2, 2] = 0.5
    channel.average("critic", torch.randn(4, 7), one_way)
    assert channel.sent("critic").messages.tolist() == [5, 4, 4, 4]


def test_gradients_that_are_pooled_are_counted():
    channel = Channel(3, ["critic"])
    channel.pool("critic", 7, 4)
    sent = channel.sent("critic")
    assert sent.messages.tolist() == [2, 2, 2]
    assert sent.numbers.tolist() == [14, 14, 14]
    assert sent.bytes.tolist() == [56, 56, 56]
    with pytest.raises(ValueError, match="'actor' must not pass"):
        channel.pool("actor", 7, 4)


def test_total_is_over_all_names():
    channel = Channel(2, ["obs", "critic"])
    channel.share("obs", torch.zeros(2, 3))
    channel.average("critic", torch.zeros(2, 5), torch.full((2, 2), 0.5))
    assert channel.total().messages.tolist() == [2, 2]
    assert channel.total().numbers.tolist() == [8, 8]
    assert channel.total().bytes.tolist() == [32, 32]


def test_counts_that_were_read_do_not_change():
    channel = Channel(2, ["obs"])
    before = channel.sent("obs")
    channel.share("obs", torch.zeros(2, 3))
    assert before.messages.tolist() == [0, 0]


def test_what_is_not_named_does_not_pass():
    channel = Channel(3, ["critic"])
    with pytest.raises(ValueError, match="'policy' must not pass between agents"):
        channel.share("policy", torch.zeros(3, 2))
    with pytest.raises(ValueError, match="'policy' must not pass between agents"):
        channel.average("policy", torch.zeros(3, 2), torch.eye(3))
    assert channel.total().messages.sum() == 0


def test_wrong_shapes_do_not_pass():
    channel = Channel(3, ["critic"])
    with pytest.raises(ValueError, match="no 3 agents along axis 1"):
        channel.share("critic", torch.zeros(3, 2), dim=1)
    for values, weights in (
        (torch.zeros(2, 2), torch.eye(3)),
        (torch.zeros(3, 2, 2), torch.eye(3)),
    ):
        with pytest.raises(ValueError, match=r"need \[3, D\]"):
            channel.average("critic", values, weights)
    with pytest.raises(ValueError, match=r"need \[3, D\]"):
        channel.average("critic", torch.zeros(3, 2), torch.eye(2))


def test_averages_have_no_gradients():
    values = torch.randn(3, 2, requires_grad=True)
    for weights in (torch.full((3, 3), 1 / 3), metropolis_weights(graph(3, (0, 1)))):
        assert not Channel(3, ["critic"]).average("critic", values, weights).requires_grad


# -- Graphs and weights ----------------------------------------------------------------------------


def n_edges(edges):
    assert torch.equal(edges, edges.T)
    assert not edges.diagonal().any()
    return int(edges.sum()) // 2


def is_connected(edges):
    reached = {0}
    for _ in range(len(edges)):
        reached |= {j for i in reached for j in range(len(edges)) if edges[i, j]}
    return len(reached) == len(edges)


def test_full_and_empty_topology():
    assert n_edges(Topology(5, "full", 0.0, 0).draw()) == 10
    assert n_edges(Topology(5, "none", 0.0, 0).draw()) == 0


def test_ring_is_one_cycle_fixed_per_seed():
    ring = Topology(8, "ring", 0.0, 3)
    edges = ring.draw()
    assert n_edges(edges) == 8
    assert edges.sum(1).tolist() == [2] * 8
    assert is_connected(edges)
    assert torch.equal(ring.draw(), edges)
    assert torch.equal(Topology(8, "ring", 0.0, 3).draw(), edges)
    assert any(not torch.equal(Topology(8, "ring", 0.0, seed).draw(), edges) for seed in range(3))
    in_order = graph(8, *[(i, (i + 1) % 8) for i in range(8)])
    assert any(
        not torch.equal(Topology(8, "ring", 0.0, seed).draw(), in_order) for seed in range(3)
    )


@pytest.mark.parametrize(("percent", "added"), [(0.0, 0), (20.0, 4), (50.0, 10), (100.0, 20)])
def test_edges_are_added_to_the_ring(percent, added):
    ring = Topology(8, "ring", 0.0, 1).draw()
    topology = Topology(8, "ring", percent, 1)
    drawn = [topology.draw() for _ in range(40)]
    assert all(n_edges(edges) == 8 + added for edges in drawn)
    assert all((edges & ring).equal(ring) for edges in drawn)
    if 0 < added < 20:
        assert len({tuple(edges.flatten().tolist()) for edges in drawn}) > 30
        # Over many updates every edge is used.
        assert n_edges(torch.stack(drawn).any(0)) == 28


@pytest.mark.parametrize(("n_agents", "ring_edges"), [(1, 0), (2, 1), (3, 3)])
def test_small_rings(n_agents, ring_edges):
    assert n_edges(Topology(n_agents, "ring", 50.0, 0).draw()) == ring_edges


def test_metropolis_weights_by_hand():
    # A path 0 - 1 - 2 - 3 and an agent on its own; degrees 1, 2, 2, 1, 0.
    weights = metropolis_weights(graph(5, (0, 1), (1, 2), (2, 3)))
    third = 1 / 3
    expected = [
        [2 * third, third, 0, 0, 0],
        [third, third, third, 0, 0],
        [0, third, third, third, 0],
        [0, 0, third, 2 * third, 0],
        [0, 0, 0, 0, 1],
    ]
    assert torch.allclose(weights, torch.tensor(expected))


def test_metropolis_weights_are_the_mean_on_the_full_graph_and_doubly_stochastic_elsewhere():
    assert torch.equal(
        metropolis_weights(Topology(7, "full", 0.0, 0).draw()), torch.full((7, 7), 1 / 7)
    )
    assert torch.equal(metropolis_weights(torch.zeros(1, 1, dtype=torch.bool)), torch.ones(1, 1))
    weights = metropolis_weights(Topology(9, "ring", 30.0, 0).draw())
    assert torch.allclose(weights.sum(0), torch.ones(9))
    assert torch.allclose(weights.sum(1), torch.ones(9))
    assert (weights >= 0).all()


# -- Intervals -------------------------------------------------------------------------------------


def test_every_update_and_never():
    always, never = Intervals(4, 1.0, 0.0, 0), Intervals(4, math.inf, 0.0, 0)
    for _ in range(50):
        assert always.due().all()
        assert not never.due().any()


def test_intervals_are_normal_and_each_agents_own():
    intervals = Intervals(3, 20.0, 5.0, 0)
    due = torch.stack([intervals.due() for _ in range(20000)])
    found = [due[:, i].nonzero().flatten().diff().float() for i in range(3)]
    for gaps in found:
        assert gaps.mean().item() == pytest.approx(20.0, abs=0.6)
        assert gaps.std().item() == pytest.approx(5.0, abs=0.4)
        assert gaps.min() >= 1
    assert (due.sum(1) == 1).sum() > 1000
    # The first interval is drawn as well.
    assert 1 <= due[:, 0].nonzero()[0].item() + 1 <= 45


def test_intervals_are_at_least_one_update():
    intervals = Intervals(2, 1.0, 3.0, 0)
    due = torch.stack([intervals.due() for _ in range(300)])
    assert (due.sum(0) > 80).all()
    assert (due.sum(0) < 300).all()


def test_edges_are_used_where_one_end_is_due():
    used = links(mean=3.0, std=1.0)
    same = Intervals(A, 3.0, 1.0, 0)
    for _ in range(30):
        due = same.due()
        edges = used.draw()
        for i in range(A):
            for j in range(A):
                assert edges[i, j] == (i != j and bool(due[i] or due[j]))


def test_links_from_a_configuration():
    args = SimpleNamespace(
        n_agents=8,
        seed=5,
        topology="ring",
        topology_extra_edges=20.0,
        consensus_interval=4,
        consensus_interval_std=1,
    )
    made, expected = make_links(args), links("ring", 20.0, 4.0, 1.0, seed=5, n_agents=8)
    drawn = [made.draw() for _ in range(20)]
    assert all(torch.equal(edges, expected.draw()) for edges in drawn)
    assert 0 < sum(n_edges(edges) > 0 for edges in drawn) < 20
    args.consensus_interval, args.consensus_interval_std = 0.0, 0.0
    never = make_links(args)
    assert not any(never.draw().any() for _ in range(50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "star"}, "topology must be one of full, ring, none, got 'star'"),
        (
            {"topology": "ring", "topology_extra_edges": 101.0},
            "topology_extra_edges must be between 0 and 100, got 101",
        ),
        (
            {"topology": "ring", "topology_extra_edges": -1.0},
            "topology_extra_edges must be between 0 and 100, got -1",
        ),
        ({"topology": "full", "topology_extra_edges": 20.0}, "set topology=ring"),
        ({"consensus_interval": 0.5}, "consensus_interval must be .* at least 1, got 0.5"),
        ({"consensus_interval": math.nan}, "consensus_interval must be .*, got nan"),
        ({"consensus_interval": math.inf}, "consensus_interval must be 0, which means never, or"),
        ({"consensus_interval_std": -1.0}, "consensus_interval_std must be .*, got -1"),
        ({"consensus_interval_std": math.inf}, "consensus_interval_std must be .*, got inf"),
    ],
)
def test_settings_out_of_range(changes, message):
    fine = {
        "topology": "full",
        "topology_extra_edges": 0.0,
        "consensus_interval": 1.0,
        "consensus_interval_std": 0.0,
    }
    args = SimpleNamespace(**(fine | changes))

    def check(args):
        check_ranges(vars(args), LINK_RANGES)
        check_links(args)

    check(SimpleNamespace(**fine))
    with pytest.raises(ConfigError, match=message):
        check(args)


# -- The primal-dual scheme ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "beta_steps", "dual_scale"), [(-0.1, 0, 1.0), (0.1, -1, 1.0), (0.1, 0, -1.0)]
)
def test_beta_is_not_negative(beta, beta_steps, dual_scale):
    settings = {
        "consensus_beta": beta,
        "consensus_beta_steps": beta_steps,
        "consensus_dual_scale": dual_scale,
    }
    with pytest.raises(ConfigError, match="must be at least 0, got -"):
        check_ranges(settings, PRIMAL_DUAL_RANGES)


def test_beta_rises_to_its_largest_value():
    channel, edges = Channel(A, ["critic"]), links().draw()
    ramp = PrimalDual(copies(), 0.4, 4)
    found = []
    for _ in range(7):
        found.append(ramp.beta.item())
        ramp.consensus_step(channel, edges, "critic")
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert PrimalDual(copies(), 0.4, 0).beta.item() == pytest.approx(0.4)


def test_penalty_gradient_and_duals_by_hand():
    param = nn.Parameter(torch.tensor([[1.0], [5.0]]))
    consensus, channel = PrimalDual([param], 0.5, 0), Channel(2, ["critic"])
    edges = graph(2, (0, 1))
    param.grad = torch.tensor([[10.0], [20.0]])
    consensus.add_gradients_()
    assert param.grad.tolist() == [[10.0], [20.0]]  # nothing has been exchanged yet
    consensus.consensus_step(channel, edges, "critic")
    assert consensus.shared.tolist() == [[3.0], [3.0]]
    # lambda - beta (3 - phi)
    assert consensus.duals.tolist() == [[-1.0], [1.0]]
    param.data = torch.tensor([[2.0], [7.0]])
    consensus.add_gradients_()
    # grad + lambda - beta (3 - phi)
    assert param.grad.tolist() == [[10.0 - 1.0 - 0.5], [20.0 + 1.0 + 2.0]]
    param.grad = None
    consensus.add_gradients_()
    assert param.grad.tolist() == [[-1.5], [3.0]]


@pytest.mark.parametrize(("start", "target"), [("own_copy", (1.0, 5.0)), ("zero", (0.0, 0.0))])
@pytest.mark.parametrize("lr", [None, 0.2])
def test_what_the_penalty_pulls_to_before_the_first_exchange(start, target, lr):
    """Algorithm 1 starts at phi_sh = 0 and never leaves the penalty out."""
    param = nn.Parameter(torch.tensor([[1.0], [5.0]]))
    consensus, channel = PrimalDual([param], 0.5, 0, start=start), Channel(2, ["critic"])
    for _ in range(2):  # an update without an exchange changes nothing
        param.data = torch.tensor([[2.0], [7.0]])
        param.grad = torch.tensor([[10.0], [20.0]])
        consensus.add_gradients_(lr)
        pull = [0.5 * (end - copy) for end, copy in zip(target, (2.0, 7.0), strict=True)]
        if lr is None:
            assert param.grad.flatten().tolist() == pytest.approx([10 - pull[0], 20 - pull[1]])
            assert param.flatten().tolist() == [2.0, 7.0]
        else:
            assert param.grad.flatten().tolist() == [10.0, 20.0]
            moved = [2 + lr * pull[0], 7 + lr * pull[1]]
            assert param.flatten().tolist() == pytest.approx(moved)
        consensus.consensus_step(channel, torch.zeros(2, 2, dtype=torch.bool), "critic")
        assert not consensus.duals.any()
    param.data = torch.tensor([[2.0], [7.0]])
    consensus.consensus_step(channel, graph(2, (0, 1)), "critic")
    assert consensus.shared.flatten().tolist() == [4.5, 4.5]
    state = consensus.state_dict()
    again = PrimalDual([param], 0.5, 0, start=start)
    again.load_state_dict(state)
    assert again.shared.flatten().tolist() == [4.5, 4.5]


def test_the_penalty_bypasses_the_optimiser_by_hand():
    param = nn.Parameter(torch.tensor([[1.0], [5.0]]))
    consensus, channel = PrimalDual([param], 0.5, 0, dual_scale=0.1), Channel(2, ["critic"])
    consensus.consensus_step(channel, graph(2, (0, 1)), "critic")
    assert torch.allclose(consensus.duals, torch.tensor([[-0.1], [0.1]]))
    param.grad = torch.tensor([[10.0], [20.0]])
    consensus.add_gradients_(lr=0.2)
    assert torch.allclose(param.grad, torch.tensor([[9.9], [20.1]]))
    assert torch.allclose(param, torch.tensor([[1.2], [4.8]]))  # by 0.2 * 0.5 of the way to 3
    with pytest.raises(ConfigError, match="at most 1 / lr"):
        consensus.add_gradients_(lr=2.5)


class LoopAgent:
    """One agent of the scheme, which knows its own numbers and what arrives."""

    def __init__(self, params):
        self.phi = [p.clone() for p in params]
        self.shared = [p.clone() for p in params]
        self.dual = [torch.zeros_like(p) for p in params]
        self.exchanged = False

    def critic_step(self, grads, lr, beta):
        for k, grad in enumerate(grads):
            if self.exchanged:
                grad = grad + self.dual[k] - beta * (self.shared[k] - self.phi[k])
            self.phi[k] = self.phi[k] - lr * grad

    def consensus_step(self, received, degrees, my_degree, beta):
        """received: neighbour -> its copy, degrees: neighbour -> its number of neighbours."""
        if not received:
            return
        for k in range(len(self.phi)):
            average, rest = 0.0, 1.0
            for j, phi in received.items():
                weight = 1 / (1 + max(my_degree, degrees[j]))
                average, rest = average + weight * phi[k], rest - weight
            self.shared[k] = average + rest * self.phi[k]
            self.dual[k] = self.dual[k] - beta * (self.shared[k] - self.phi[k])
        self.exchanged = True


@pytest.mark.parametrize(
    "settings",
    [{}, {"topology": "ring", "extra": 40.0}, {"mean": 3.0, "std": 2.0}, {"topology": "none"}],
)
def test_all_agents_at_once_are_agents_in_a_loop(settings):
    params, channel, lr = copies(), Channel(A, ["critic"]), 0.1
    agents = [LoopAgent([p[i].detach() for p in params]) for i in range(A)]
    consensus, drawn = PrimalDual(params, 0.6, 5), links(**settings)
    optimiser = torch.optim.SGD(params, lr=lr)
    messages = [0] * A
    generator = torch.Generator().manual_seed(9)
    for update in range(25):
        grads = [torch.randn(p.shape, generator=generator) for p in params]
        beta = 0.6 * min(update / 5, 1.0)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        consensus.add_gradients_()
        optimiser.step()
        edges = drawn.draw()
        consensus.consensus_step(channel, edges, "critic")

        for i, agent in enumerate(agents):
            agent.critic_step([grad[i] for grad in grads], lr, beta)
        sent = [agent.phi for agent in agents]
        degrees = {j: int(edges[j].sum()) for j in range(A)}
        for i, agent in enumerate(agents):
            received = {j: sent[j] for j in range(A) if edges[i, j]}
            for j in received:
                messages[j] += 1
            agent.consensus_step(received, degrees, degrees[i], beta)
    for i, agent in enumerate(agents):
        for param, phi in zip(params, agent.phi, strict=True):
            assert torch.allclose(param[i], phi, atol=1e-5)
        assert torch.allclose(
            consensus.shared[i], torch.cat([s.flatten() for s in agent.shared]), atol=1e-5
        )
        assert torch.allclose(
            consensus.duals[i], torch.cat([d.flatten() for d in agent.dual]), atol=1e-5
        )
        assert bool(consensus.exchanged[i]) == agent.exchanged
    assert channel.sent("critic").messages.tolist() == messages
    assert channel.sent("critic").numbers.tolist() == [m * 10 for m in messages]
    # Symmetric weights: the duals cancel each other.
    assert torch.allclose(consensus.duals.sum(0), torch.zeros(10), atol=1e-5)


def test_consensus_error_is_the_distance_from_the_mean():
    params = copies()
    flat = flat_copies(params)
    consensus = PrimalDual(params, 0.1, 0)
    for i in range(A):
        square = sum((flat[i, d] - flat[:, d].mean()) ** 2 for d in range(10)) / 10
        assert consensus.consensus_error()[i].item() == pytest.approx(math.sqrt(square), rel=1e-5)
    equalise_(params)
    assert consensus.consensus_error().abs().max() < 1e-6
    assert torch.equal(flat_copies(params), flat[:1].expand(A, -1))


def test_the_state_is_not_the_parameters():
    consensus = PrimalDual(copies(), 0.1, 0)
    assert set(consensus.state_dict()) == {"shared", "duals", "exchanged", "updates"}
    assert not list(consensus.parameters())


# -- A convex toy ----------------------------------------------------------------------------------


class Quadratics:
    """f_i(x) = (x - b_i)' H_i (x - b_i) / 2 for every agent, H_i positive definite."""

    def __init__(self, n_agents=A, size=4, seed=0):
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(n_agents, size, size, generator=generator)
        self.h = root @ root.mT / size + 0.3 * torch.eye(size)
        self.b = torch.randn(n_agents, size, generator=generator) * 2

    def optimum(self):
        """Of the sum of all f_i."""
        return torch.linalg.solve(self.h.sum(0), (self.h @ self.b.unsqueeze(-1)).sum(0).squeeze(-1))

    def grad(self, x):
        return (self.h @ (x - self.b).unsqueeze(-1)).squeeze(-1)


def solve(
    drawn,
    updates,
    beta=1.0,
    beta_steps=20,
    lr=0.2,
    dual_scale=1.0,
    optimiser=torch.optim.SGD,
    bypass=False,
):
    """(copies, consensus errors over time, the scheme, the toy) after so many updates."""
    toy = Quadratics()
    param = nn.Parameter(torch.zeros(A, 4))
    consensus, channel = PrimalDual([param], beta, beta_steps, dual_scale), Channel(A, ["critic"])
    optimiser = optimiser([param], lr=lr)
    errors = []
    for _ in range(updates):
        param.grad = toy.grad(param.detach())
        consensus.add_gradients_(lr if bypass else None)
        optimiser.step()
        consensus.consensus_step(channel, drawn.draw(), "critic")
        errors.append(consensus.consensus_error().max().item())
    return param.detach(), errors, consensus, toy


@pytest.mark.parametrize(
    "settings",
    [
        {"topology": "full"},
        {"topology": "ring"},
        {"topology": "ring", "extra": 50.0},
        {"topology": "full", "mean": 4.0, "std": 2.0},
        {"topology": "ring", "extra": 50.0, "mean": 4.0, "std": 2.0},
    ],
)
def test_agents_agree_on_the_optimum_of_the_sum(settings):
    found, errors, consensus, toy = solve(links(**settings), 1500)
    optimum = toy.optimum()
    assert torch.allclose(found, optimum.expand(A, -1), atol=1e-3)
    # No agent wants this point: its own optimum lies elsewhere, and its dual variable holds it.
    assert (toy.b - optimum).norm(dim=1).min() > 0.5
    assert torch.allclose(consensus.duals, -toy.grad(found), atol=1e-2)
    assert errors[0] > 0.05
    assert errors[-1] < 1e-3
    assert max(errors[-100:]) < 0.01 * max(errors)
    if settings == {"topology": "full"}:
        assert errors[100] < 0.1 * max(errors)


@pytest.mark.parametrize("settings", [{"topology": "none"}, {"mean": math.inf}])
def test_copies_drift_apart_without_exchange(settings):
    found, errors, consensus, toy = solve(links(**settings), 300)
    # Every agent finds its own optimum.
    assert torch.allclose(found, toy.b, atol=1e-2)
    # They started equal.
    assert 0 < errors[0] < errors[20] < errors[-1]
    assert errors[-1] > 2.0
    assert not consensus.duals.any()
    assert not consensus.exchanged.any()


def test_the_penalty_alone_is_not_enough():
    """Without dual variables the agents stay apart: what the scheme adds to averaging."""
    toy, drawn, channel = Quadratics(), links(), Channel(A, ["critic"])
    param = nn.Parameter(torch.zeros(A, 4))
    consensus = PrimalDual([param], 1.0, 0)
    for _ in range(1500):
        param.grad = toy.grad(param.detach())
        consensus.add_gradients_()
        with torch.no_grad():
            param -= 0.2 * param.grad
        consensus.consensus_step(channel, drawn.draw(), "critic")
        consensus.duals.zero_()
    assert consensus.consensus_error().max() > 0.1


def test_bypassing_plain_gradient_descent_changes_no_number():
    settings = {"topology": "ring", "extra": 30.0, "mean": 2.0, "std": 1.0}
    through, around = (solve(links(**settings), 40, bypass=bypass) for bypass in (False, True))
    assert torch.allclose(through[0], around[0], atol=1e-5)
    assert torch.allclose(through[2].duals, around[2].duals, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"topology": "ring"}, {"mean": 3.0, "std": 1.0}])
def test_adam_finds_the_optimum_if_the_penalty_bypasses_it(settings):
    how = {"beta": 20.0, "beta_steps": 100, "lr": 0.02, "optimiser": torch.optim.Adam}
    found, errors, _, toy = solve(links(**settings), 1000, dual_scale=0.05, bypass=True, **how)
    assert (found - toy.optimum()).norm(dim=1).max() < 0.05
    assert errors[-1] < 0.03
    if not settings:
        found, errors, consensus, toy = solve(links(), 500, **how)
        assert errors[-1] > 0.5
        assert consensus.duals.norm(dim=1).max() > 10 * toy.grad(toy.optimum()).norm(dim=1).max()


def test_copies_become_their_average():
    params, channel = copies(), Channel(A, ["critic"])
    before = flat_copies(params)
    edges = links("ring").draw()
    average_copies_(params, channel, edges, "critic")
    weights = metropolis_weights(edges)
    for i in range(A):
        expected = sum(weights[i, j] * before[j] for j in range(A))
        assert torch.allclose(flat_copies(params)[i], expected, atol=1e-6)
    assert channel.sent("critic").messages.tolist() == [2] * A


# -- Checkpoints -----------------------------------------------------------------------------------


class Holder:
    """What a learner holds of the scheme; 7 agents on a ring with added edges, irregular
    intervals.
    """

    def __init__(self):
        self.network = nn.Module()
        self.network.weight = copies(7)[0]
        self.channel = Channel(7, ["critic"])
        self.links = links("ring", 40.0, 3.0, 1.5, n_agents=7)
        self.consensus = PrimalDual([self.network.weight], 0.5, 10)

    def run(self, updates):
        edges = []
        for _ in range(updates):
            self.network.weight.grad = torch.sin(self.network.weight.detach() * 3)
            self.consensus.add_gradients_()
            with torch.no_grad():
                self.network.weight -= 0.1 * self.network.weight.grad
            edges.append(self.links.draw())
            self.consensus.consensus_step(self.channel, edges[-1], "critic")
        return torch.stack(edges)


def test_the_scheme_goes_on_after_a_checkpoint(tmp_path):
    straight = Holder()
    straight.run(7)
    torch.save(capture(straight), tmp_path / "state.pt")
    expected = straight.run(30)

    resumed = Holder()
    restore(resumed, torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(resumed.run(30), expected)
    assert resumed.consensus.updates == 37
    assert resumed.consensus.duals.abs().max() > 0
    for name, value in straight.consensus.state_dict().items():
        assert torch.equal(resumed.consensus.state_dict()[name], value), name
    assert torch.equal(resumed.network.weight, straight.network.weight)
    for a, b in zip(resumed.channel.total(), straight.channel.total(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(Holder().run(37)[7:], Holder().run(30))  # else nothing was tested


def test_counts_of_another_channel_are_refused():
    channel = Channel(2, ["critic"])
    with pytest.raises(ValueError, match="do not fit a channel"):
        channel.load_state_dict(Channel(2, ["actor"]).state_dict())
