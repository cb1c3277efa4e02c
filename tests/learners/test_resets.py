"""Periodic resets: the arithmetic, on every network of every learner that knows them."""

import pytest
import torch
from comm_fixtures import comm_args
from learner_fixtures import Log, make_batch, make_learner

from assembly import build_learner
from learners.base import Learner
from learners.resets import parameters_of
from utils.errors import ConfigError
from utils.state import capture, restore

# Every learner that can be reset, S2Q with each of its kinds of target network.
RESET = [
    *("qmix", "vdn", "qplex", "qtran", "ow_qmix", "i2q", "iql_ns", "dac"),
    *("masia", "cama", "pac", "s2q", "s2q_vdn", "s2q_qplex"),
]
ON = {"reset_interval": 10, "reset_keep": 0.8}


def learner_of(alg, seed=0, **settings):
    # With `updates` that would not copy targets.
    learner, _ = make_learner(comm_args(alg, target_update_interval=1000, **settings), seed)
    return learner


def tensors_of(state):
    """All floating tensors in what `capture` returns."""
    if isinstance(state, torch.Tensor):
        return [state] if state.is_floating_point() else []
    if isinstance(state, dict):
        return [x for value in state.values() for x in tensors_of(value)]
    if isinstance(state, list):
        return [x for value in state for x in tensors_of(value)]
    return []


@pytest.mark.parametrize("alg", RESET)
def test_every_weight_moves_towards_the_first_one(alg):
    torch.manual_seed(0)
    learner = build_learner(comm_args(alg, **ON), Log())[1]
    params = parameters_of(learner)
    first = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param in params:
            param.add_(torch.randn_like(param))
    moved = [param.detach().clone() for param in params]
    learner.resets.reset()
    for param, old, new in zip(params, first, moved, strict=True):
        assert torch.allclose(param, 0.8 * new + 0.2 * old, atol=1e-6)
    # Nothing that training changes is left out: what the optimisers know, and the weights.
    trained = {
        id(param)
        for optimiser in vars(learner).values()
        if isinstance(optimiser, torch.optim.Optimizer)
        for group in optimiser.param_groups
        for param in group["params"]
    }
    assert trained <= {id(param) for param in params}


@pytest.mark.parametrize("alg", RESET)
def test_target_networks_are_reset_too(alg):
    """Whatever holds weights: a reset that keeps nothing brings all of it back to the start."""
    torch.manual_seed(0)
    learner = build_learner(comm_args(alg, reset_interval=10, reset_keep=0.0), Log())[1]
    start = tensors_of(capture(learner))
    assert len(start) > 4
    learner.train(make_batch(learner.args), t_env=0, episode_num=1)
    learner.update_targets()
    for state in vars(learner).values():
        if isinstance(state, torch.optim.Optimizer):
            state.state.clear()  # the optimisers are not reset
    learner.resets.reset()
    learner.mac.hidden_states = None
    after = tensors_of(capture(learner))
    assert len(after) >= len(start)
    weights = [x.shape for x in start]
    assert [x.shape for x in after][: len(weights)] == weights
    for a, b in zip(start, after, strict=False):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("alg", ["qmix", "s2q_vdn"])
def test_fresh_weights_are_drawn_at_each_reset(alg):
    torch.manual_seed(0)
    learner = build_learner(comm_args(alg, reset_towards="fresh", **ON), Log())[1]
    params = parameters_of(learner)
    for _ in range(2):
        before = [param.detach().clone() for param in params]
        torch.manual_seed(5)
        other = build_learner(comm_args(alg), Log())[1]
        torch.manual_seed(5)
        learner.resets.reset()
        pairs = zip(params, before, parameters_of(other), strict=True)
        for param, old, drawn in pairs:
            assert torch.allclose(param, 0.8 * old + 0.2 * drawn, atol=1e-6)


def test_resets_come_every_so_many_episodes():
    learner = learner_of("qmix", **ON)
    done = []
    learner.resets.reset = lambda: done.append(episode)
    for episode in range(4, 44, 4):
        for _ in range(3):  # several updates of one round
            learner.resets.reset_if_due(episode)
    assert done == [12, 24, 36]


def test_without_an_interval_there_are_none():
    assert learner_of("qmix").resets is None


def test_who_knows_resets():
    with pytest.raises(ConfigError, match="learner 'coma_learner' does not know resets of its"):
        learner_of("coma", reset_interval=10)
    assert not Learner.resets_networks


def test_first_weights_are_part_of_a_checkpoint():
    """A run that goes on resets towards the weights it began with, not its present ones."""
    learner, other = learner_of("qmix", seed=0, **ON), learner_of("qmix", seed=1, **ON)
    learner.resets.last_reset_episode = 20
    state = capture(learner)
    restore(other, state)
    assert other.resets.last_reset_episode == 20
    for a, b in zip(learner.resets.initial, other.resets.initial, strict=True):
        assert torch.equal(a, b)
    learner.resets.reset()
    other.resets.reset()
    for a, b in zip(parameters_of(learner), parameters_of(other), strict=True):
        assert torch.equal(a, b)


def test_optimisers_keep_what_they_know():
    learner = learner_of("qmix", **ON)
    learner.train(make_batch(learner.args), t_env=0, episode_num=1)
    before = [
        {key: value.clone() for key, value in state.items()}
        for state in learner.optimiser.state.values()
    ]
    learner.resets.reset()
    for old, new in zip(before, learner.optimiser.state.values(), strict=True):
        assert all(torch.equal(value, new[key]) for key, value in old.items())
