"""How MAMT's joint trust region is split: one update by hand, the bounds, what is learned on a
recorded batch.
"""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from components.distributions import policy_distribution
from learners.base import Learner
from learners.mamt.mirror_descent import coordination, fixed_coordination
from learners.mamt.situation import Situation
from learners.mamt.trust_region import (
    RANGES,
    FixedSplit,
    LearnedSplit,
    check_split,
    make_split,
)
from utils.errors import ConfigError, Diverged
from utils.ranges import check_ranges

N, A, O, U = 16, 3, 5, 4
OBS_SIZES, ACTION_SIZES = [5, 3, 4], [4, 2, 3]


def make_args(**overrides):
    settings = {
        "n_agents": A, "n_actions": U, "continuous_actions": False, "device": "cpu",
        "env_info": {"obs_sizes": OBS_SIZES, "action_sizes": ACTION_SIZES},
        "optimizer": "adam", "lr": 0.01, "optim_eps": 1e-7, "weight_decay": 0.0,
        "trust_region_split": "learned", "trust_region_delta": 3.0, "trust_region_members": {},
        "trust_region_penalty": 1.0, "trust_region_batch_size": 0,
        "coordination": "learned", "coordination_sigma": 0.2, "coordination_unit": "values",
        "divergence": "opponents", "divergence_min": 0.0, "divergence_max": 10.0,
        "trd_steps": 4, "trd_grad_norm_clip": 10.0, "opponent_weight_decay": 0.001,
        "opponent_grad_norm_clip": 0.5,
        "policy_hidden_dim": 8, "env_args": {},
    }  # fmt: skip
    unknown = set(overrides) - set(settings)
    assert not unknown, unknown
    return SimpleNamespace(**(settings | overrides))


def make_situation(args, seed=0, scale=1.0):
    """Random policies, values and effects; `scale` is that of the values."""
    rng = torch.Generator().manual_seed(seed)
    continuous = args.continuous_actions
    exists = torch.arange(U) < torch.tensor(ACTION_SIZES)[:, None]
    obs = torch.randn(N, A, O, generator=rng) * (torch.arange(O) < torch.tensor(OBS_SIZES)[:, None])
    avail = exists.expand(N, -1, -1).to(torch.uint8)
    outputs, old = (torch.randn(N, A, 2 * U if continuous else U, generator=rng) for _ in range(2))
    policy, old_policy = (policy_distribution(x, avail, continuous) for x in (outputs, old))
    torch.manual_seed(seed)
    effects = 2 * torch.rand(N, A, A, generator=rng)
    values = scale * torch.randn(N, A, U, generator=rng)
    if continuous:
        log_weights = torch.randn(N, A, U, generator=rng)
        baselines = values.mean(-1)
    else:
        log_weights = old_policy.log_probs
        baselines = (policy.probs * values).sum(-1)
    return Situation(
        obs, avail, policy.sample(), policy.sample(), outputs, policy.kl(old_policy),
        lambda: effects,
        values, log_weights, baselines, 1 + torch.rand(A, generator=rng),
    )  # fmt: skip


def make_learned(args, seed=0):
    torch.manual_seed(seed)
    return LearnedSplit(args, optimise_with(args))


def optimise_with(args):
    """`optimise` of a learner with these settings."""
    return partial(Learner.optimise, SimpleNamespace(args=args))


def check(args):
    """As `check_settings` of the learners that use a split."""
    check_ranges(vars(args), RANGES)
    check_split(args, N)


# -- fixed splits ----------------------------------------------------------------------------------


def test_equal_split():
    split = make_split(make_args(trust_region_split="equal"), None)
    assert split.sizes().tolist() == [1.0, 1.0, 1.0]
    assert split.learn(None, 0) == {}


def test_split_that_is_known_beforehand():
    members = {"apart": [], "two": [0, 2], "all": [0, 1, 2]}
    sizes = {}
    for name in members:
        args = make_args(
            trust_region_split="known", trust_region_members=members, env_args={"map_name": name}
        )
        sizes[name] = make_split(args, None).sizes().tolist()
    assert sizes == {"apart": [math.inf] * 3, "two": [1.5, math.inf, 1.5], "all": [1.0] * 3}
    assert FixedSplit(make_args(trust_region_split="none")).sizes().tolist() == [math.inf] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trust_region_split": "even"},
            "trust_region_split must be one of learned, equal, known, none, got 'even'",
        ),
        (
            {"trust_region_delta": 0.0},
            "trust_region_delta must be greater than 0 and finite, got 0.0",
        ),
        ({"trust_region_delta": 0.02}, "from 0.03 to 300"),
        ({"trust_region_split": "known", "env_args": {"map_name": "x"}}, "map 'x'"),
        (
            {
                "trust_region_split": "known",
                "env_args": {"map_name": "x"},
                "trust_region_members": {"x": [0, 3]},
            },
            "different agents, 0 to 2",
        ),
        (
            {"coordination": "none"},
            "coordination must be one of learned, fixed, random, got 'none'",
        ),
        ({"divergence": "none"}, "divergence must be one of opponents, weighted_sum, got 'none'"),
        (
            {"divergence_min": 2.0, "divergence_max": 1.0},
            r"divergence_min \(2.0\) must be less than divergence_max \(1.0\)",
        ),
        ({"divergence_min": -1.0}, "divergence_min must be at least 0, got -1.0"),
        ({"trd_steps": 0}, "trd_steps must be at least 1, got 0"),
        ({"n_agents": 1}, "two agents"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(make_args(**settings))


# -- one round of the learned split ----------------------------------------------------------------


def adam(param, gradient, state, lr=0.01, decay=0.0):
    """A step of Adam by hand, from its step count and moments in `state`."""
    gradient = gradient + decay * param
    state["t"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * gradient
    state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
    mean, square = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return param - lr * mean / (square.sqrt() + 1e-7)


@pytest.mark.parametrize("divergence", ["opponents", "weighted_sum"])
@pytest.mark.parametrize("continuous", [False, True])
def test_divergences_by_loops(divergence, continuous):
    args = make_args(
        divergence=divergence,
        continuous_actions=continuous,
        divergence_max=1.0,
        coordination_sigma=0.6,
    )
    split, s = make_learned(args), make_situation(args)
    c = coordination(s.effects(), 0.6)
    with torch.no_grad():
        models = split.opponents(s.obs) if divergence == "opponents" else None
    expected = torch.zeros(N, A)
    for i in range(A):
        others = [j for j in range(A) if j != i]
        for position, j in enumerate(others):
            if divergence == "opponents":
                model = policy_distribution(
                    models[i * (A - 1) + position], s.avail_actions[:, j], continuous
                )
                present = policy_distribution(s.outputs[:, j], s.avail_actions[:, j], continuous)
                kl = model.kl(present)
            else:
                kl = s.kl[:, j] / A
            expected[:, i] += c[:, i, j] * kl
    figures = split.learn(s, 0)
    assert torch.allclose(figures["non_stationarity"], expected.clamp(0.0, 1.0).mean(0), atol=1e-6)
    assert torch.allclose(figures["coordination"], c.mean(0))
    assert torch.allclose(
        figures["coordination_variance"], (c - c.mean(0)).pow(2).mean(0), atol=1e-7
    )
    assert (c == 0).sum() > N * A
    assert ("loss_opponents" in figures) == (divergence == "opponents")
    if divergence == "opponents":
        assert expected.max() > 1.0


@pytest.mark.parametrize("unit", ["values", "reward", "spread"])
def test_unit_of_the_coefficients_by_loops(unit):
    args = make_args(coordination_unit=unit, coordination_sigma=0.3)
    split, s = make_learned(args), make_situation(args, scale=0.2)
    found = split.coefficients(s)
    first = torch.zeros(A, A)
    for n in range(N):
        for i in range(A):
            unit_of_i = {
                "values": 1.0,
                "reward": s.reward_unit[i].item(),
                "spread": 1 / s.values[:, i].double().std(correction=0).item(),
            }[unit]
            shares = {j: math.exp(s.effects()[n, i, j] * unit_of_i) for j in range(A) if j != i}
            total = sum(shares.values())
            kept = {j: x / total for j, x in shares.items() if x / total >= 0.3}
            for j in range(A):
                assert found[n, i, j].item() == pytest.approx(kept.get(j, 0.0), rel=1e-4)
            first[i, max(kept, key=kept.get)] += 1 / N
    figures = split.learn(s, 0)
    assert torch.allclose(figures["coordination_first"], first, atol=1e-5)


def test_models_of_others_learn_the_replayed_actions_by_cross_entropy():
    args = make_args()
    split, s = make_learned(args), make_situation(args)
    before = {name: param.detach().clone() for name, param in split.opponents.named_parameters()}
    outputs = split.opponents(s.obs)
    losses = []
    for row, j in enumerate(j for i in range(A) for j in range(A) if j != i):
        size = ACTION_SIZES[j]
        losses.append(F.cross_entropy(outputs[row, :, :size], s.replayed[:, j]))
    gradients = dict(
        zip(before, torch.autograd.grad(sum(losses), split.opponents.parameters()), strict=True)
    )
    figures = split.learn(s, 0)
    assert figures["loss_opponents"].item() == pytest.approx(
        sum(losses).item() / len(losses), rel=1e-5
    )
    norms = [
        math.sqrt(sum(g[row].pow(2).sum().item() for g in gradients.values()))
        for row in range(A * (A - 1))
    ]
    assert max(norms) > 0.5 > min(norms)  # some are clipped, some are not
    for name, param in split.opponents.named_parameters():
        for row, norm in enumerate(norms):
            clipped = gradients[name][row] * min(1.0, 0.5 / (norm + 1e-6))
            state = {"t": 0, "m": 0.0, "v": 0.0}
            expected = adam(before[name][row], clipped, state, decay=0.001)
            assert torch.allclose(param[row], expected, atol=2e-5), (name, row)


def test_trd_net_and_regions_by_hand():
    """theta takes its steps on a quarter of the rows each, then the sizes one step up the gradient
    of F.
    """
    args = make_args(divergence="weighted_sum", coordination="fixed", lr=0.001)
    split, reference, s = make_learned(args), make_learned(args), make_situation(args)
    split.learn(s, 0)

    net, c = reference.net, fixed_coordination(A, s.obs).expand(N, -1, -1)
    actions = F.one_hot(s.actions, U).float()
    joint = s.kl.mean(-1)  # 1/A sum_i sum_j 1/(A - 1) KL_j = 1/A sum_j KL_j
    assert joint.max() < 10 / A
    states = {name: {"t": 0, "m": 0.0, "v": 0.0} for name, _ in net.named_parameters()}
    for k in range(4):
        rows = slice(4 * k, 4 * k + 4)
        loss = (
            (net(s.obs[rows], actions[rows], torch.ones(A), c[rows]).sum(-1) - joint[rows])
            .pow(2)
            .mean()
        )
        gradients = torch.autograd.grad(loss, net.parameters())
        norm = math.sqrt(sum(g.pow(2).sum().item() for g in gradients))
        with torch.no_grad():
            for (name, param), gradient in zip(net.named_parameters(), gradients, strict=True):
                param.copy_(adam(param, gradient * min(1.0, 30.0 / norm), states[name], lr=0.001))
    for name, param in split.net.named_parameters():
        assert torch.allclose(param, dict(net.named_parameters())[name], atol=3e-6), name

    # F at sum = delta, where the penalty has no slope yet.
    log_sizes = torch.zeros(A, requires_grad=True)
    sizes, objective = log_sizes.exp(), 0.0
    for n in range(N):
        for i in range(A):
            old, q = s.log_weights[n, i].exp(), s.values[n, i]
            weights = old * (sizes[i] * (q - s.baselines[n, i])).exp()
            objective = objective + (weights / weights.sum() * q).sum() / N
    costs = net(s.obs[:4], actions[:4], sizes, c[:4]).sum(-1).mean()
    (gain,) = torch.autograd.grad(objective, log_sizes, retain_graph=True)
    (cost,) = torch.autograd.grad(costs, log_sizes)
    assert (cost.abs() > 3e-3 * gain.abs()).all()
    assert torch.allclose(-split.regions.log_sizes.grad, gain - cost, rtol=1e-3, atol=1e-6)
    # Adam's first step is lr
    assert torch.allclose(split.regions.log_sizes, 0.001 * (gain - cost).sign(), rtol=1e-2)


# -- what must hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("continuous", [False, True])
def test_trd_net_learns_a_recorded_batch(continuous):
    args = make_args(coordination_sigma=0.0, continuous_actions=continuous)
    split, s = make_learned(args), make_situation(args)
    losses = [split.learn(s, 0)["loss_trd"].item() for _ in range(60)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_models_of_others_learn_a_recorded_batch():
    args = make_args()
    split, s = make_learned(args), make_situation(args)
    losses = [split.learn(s, 0)["loss_opponents"].item() for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_sizes_stay_within_delta_and_their_bounds(scale):
    sums = {}
    for penalty in (1.0, 0.0):
        split = make_learned(make_args(lr=0.05, trust_region_penalty=penalty))
        sums[penalty] = [3.0]
        for step in range(40):
            figures = split.learn(make_situation(split.args, seed=step, scale=scale), 0)
            sizes = split.sizes()
            assert ((sizes >= 0.0099999) & (sizes <= 100.0001)).all()
            excess = max(sums[penalty][-1] - 3.0, 0.0)
            assert figures["trust_region_excess"].item() == pytest.approx(excess, abs=1e-4)
            sums[penalty].append(sizes.sum().item())
    assert max(sums[1.0]) < 1.1 * 3.0
    assert sums[1.0][-1] <= 1.01 * 3.0
    assert max(sums[0.0]) > 1.5 * 3.0  # nothing else would keep them there


def test_sizes_cannot_leave_their_bounds():
    args = make_args(trust_region_delta=0.03)
    split = make_learned(args)
    for step in range(30):
        split.learn(make_situation(args, seed=step, scale=0.01), 0)
        assert (split.sizes() >= 0.0099999).all()


def test_a_wider_region_goes_to_the_agent_that_gains_by_it():
    args = make_args(coordination="fixed", divergence="weighted_sum")
    split = make_learned(args)
    for step in range(40):
        s = make_situation(args, seed=step, scale=1.0)
        s.values[:, 0] *= 0.0
        s.baselines[:, 0] *= 0.0
        split.learn(s, 0)
    sizes = split.sizes()
    assert sizes[0] < sizes[1:].min()


def test_random_and_fixed_coordination():
    torch.manual_seed(0)
    args = make_args(coordination="random", coordination_sigma=0.9)
    s = make_situation(args)
    c = make_learned(args).coefficients(s)
    assert torch.allclose(c.sum(-1), torch.ones(N, A))
    assert c.std(0).max() > 0.05
    fixed = make_learned(make_args(coordination="fixed", coordination_sigma=0.9)).coefficients(s)
    assert torch.equal(fixed[3], (1 - torch.eye(A)) / 2)
    learned = make_learned(make_args(coordination_sigma=0.3)).coefficients(s)
    assert torch.equal(learned, coordination(s.effects(), 0.3))


def test_what_is_not_finite_ends_the_run():
    args = make_args()
    split, s = make_learned(args), make_situation(args)
    s.values[0, 0, 0] = math.nan
    with pytest.raises(Diverged, match=r"trust regions.*t_env=7"):
        split.learn(s, 7)


def test_observations_that_are_not_finite_end_the_run():
    args = make_args()
    split, s = make_learned(args), make_situation(args)
    s.obs[0, 0, 0] = math.inf
    with pytest.raises(Diverged, match=r"t_env=8.*observations"):
        split.learn(s, 8)
