"""Agents that do not talk act on what they themselves see and did, to the last bit: no other agent
and no state reaches them.
"""

import copy

import pytest
import torch
from learner_fixtures import N_AGENTS, make_args, make_batch, make_mac

ALGORITHMS = ["qmix", "qatten", "qplex", "riskq", "dop", "fop"]


def outputs(mac, batch):
    """Of all steps, [T, B, A, U], as in training and in tests."""
    both = []
    for test_mode in (False, True):
        mac.init_hidden(batch.batch_size)
        with torch.no_grad():
            steps = range(batch.max_seq_length)
            both.append(torch.stack([mac.forward(batch, t, test_mode=test_mode) for t in steps]))
    return torch.stack(both)


def with_other_data(batch, agent):
    """The batch with other states, and other observations and actions of all but one agent."""
    batch = copy.deepcopy(batch)
    others = [j for j in range(N_AGENTS) if j != agent]
    for key in ("obs", "actions"):
        stored = batch.stored(key)
        stored[:, :, others] = stored[:, :, others].flip(0)
    batch.stored("state").mul_(-3)
    batch.changed("obs", "actions", "state")
    return batch


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_of_others_reaches_an_agent(algorithm):
    args = make_args(algorithm)
    torch.manual_seed(0)
    mac = make_mac(args)
    batch = make_batch(args, lengths=(6, 6, 6), terminated=(True, True, False))
    before = outputs(mac, batch)
    for agent in range(N_AGENTS):
        after = outputs(mac, with_other_data(batch, agent))
        assert torch.equal(after[..., agent, :], before[..., agent, :])
        others = [j for j in range(N_AGENTS) if j != agent]
        assert not torch.equal(after[..., others, :], before[..., others, :])
