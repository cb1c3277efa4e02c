"""`capture` and `restore`: everything that training changes comes back, bit for bit."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.state import capture, restore


class Part:
    def __init__(self):
        self.epsilon = 1.0
        self.rng = np.random.default_rng(3)
        self.generator = torch.Generator().manual_seed(3)
        self.mean = np.zeros(3)


class Learner:
    def __init__(self, seed):
        torch.manual_seed(seed)
        self.args = SimpleNamespace(lr=0.1)
        self.logger = object()
        self.agent = nn.Linear(3, 2)
        self.target = copy.deepcopy(self.agent)
        self.pair = [nn.Linear(2, 2), nn.Linear(2, 1)]
        self.modules = {"agent": self.agent, "extra": nn.Linear(2, 2)}
        self.optimiser = torch.optim.Adam(self.agent.parameters(), lr=0.1)
        self.params = list(self.agent.parameters())
        self.steps, self.best, self.name = 0, None, "x"
        self.history = [1.0, 2.0]
        self.running = torch.zeros(2)
        self.part = Part()
        self.part.owner = self  # a cycle

    def train(self):
        loss = self.agent(torch.randn(4, 3)).pow(2).sum() + self.pair[0].weight.sum() * 0
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.target.load_state_dict(self.agent.state_dict())
        self.steps += 1
        self.best = float(loss.detach())
        self.history = [*self.history, float(loss.detach())]
        self.running = self.running + 1
        self.part.epsilon *= 0.9
        self.part.mean = self.part.mean + self.part.rng.normal(size=3)
        return (
            loss.item()
            + self.part.rng.random()
            + torch.rand(1, generator=self.part.generator).item()
        )


def test_a_restored_learner_continues_with_the_same_numbers(tmp_path):
    one, two = Learner(0), Learner(1)
    for _ in range(3):
        one.train()
    state = capture(one)
    torch.save(state, tmp_path / "state.pt")
    restore(two, torch.load(tmp_path / "state.pt", weights_only=True))
    assert (two.steps, two.best, two.history) == (one.steps, one.best, one.history)
    assert two.part.epsilon == one.part.epsilon
    for a, b in ((one.agent, two.agent), (one.target, two.target), (one.pair[1], two.pair[1])):
        assert torch.equal(a.weight, b.weight)
    assert torch.equal(one.modules["extra"].weight, two.modules["extra"].weight)
    results = []
    for learner in (one, two):
        torch.manual_seed(9)
        results.append([learner.train() for _ in range(3)])
    assert results[0] == results[1]
    assert torch.equal(one.running, two.running)
    assert np.array_equal(one.part.mean, two.part.mean)


def test_the_state_is_a_copy_where_training_would_change_it():
    learner = Learner(0)
    state = capture(learner)
    before = state["running"]["value"].clone()
    learner.running += 5
    assert torch.equal(state["running"]["value"], before)


def test_what_is_shared_is_left_alone():
    state = capture(Learner(0))
    assert "args" not in state
    assert "logger" not in state


def test_a_state_of_another_class_is_refused():
    state = capture(Learner(0))
    other = Learner(1)
    del other.pair
    with pytest.raises(UserError, match="pair"):
        restore(other, state)
