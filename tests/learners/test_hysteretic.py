"""Hysteretic and distributed Q-learning: the weights of the TD errors, and what they are for.

`test_q_learner.py` compares loss and gradients of both with plain loops.
"""

import numpy as np
import pytest
import torch
from learner_fixtures import make_args, make_batch, make_learner, weights_of

from utils.errors import ConfigError

CLIMBING = torch.tensor([[8.0, -12.0, -12.0], [-12.0, 6.0, 0.0], [-12.0, 0.0, 6.0]])  # DAC, table 1


@pytest.mark.parametrize(
    ("beta", "weights"), [(1.0, (1, 1, 1)), (0.25, (1, 1, 0.25)), (0.0, (1, 1, 0))]
)
def test_weights_by_hand(beta, weights):
    learner, _ = make_learner(make_args("hysteretic", hysteretic_beta=beta))
    # estimate minus target: too low, right, too high
    losses = learner.td_losses(torch.tensor([[-2.0, 0.0, 4.0]]))
    assert losses.tolist() == [[2.0 * weights[0], 0.0, 8.0 * weights[2]]]


def test_distributed_q_learning_never_lowers_an_estimate():
    """No gradient where the target is below the estimate (DAC, eq. 17)."""
    args = make_args("distributed_q", td_lambda=0.0, gamma=0.0)
    learner, log = make_learner(args)
    batch = make_batch(args)
    batch.stored("reward").fill_(-100.0)
    before = weights_of(learner)
    learner.train(batch, t_env=0, episode_num=1)
    assert log.stats["grad_norm"][0][0] == 0.0
    assert log.stats["loss_td"][0][0] == 0.0
    assert log.stats["td_error_abs"][0][0] > 90
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(learner), strict=True))


def test_beta_one_is_iql_without_sharing():
    results = []
    for alg, settings in (("iql_ns", {}), ("hysteretic", {"hysteretic_beta": 1.0})):
        learner, log = make_learner(make_args(alg, **settings))
        batch = make_batch(learner.args)
        for i in range(3):
            learner.train(batch, t_env=0, episode_num=i)
        results.append((weights_of(learner), log.stats))
    (mine, my_stats), (theirs, their_stats) = results
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert my_stats == their_stats


@pytest.mark.parametrize("alg", ["hysteretic", "iql"])
def test_shared_weights_may_be_hysteretic_too(alg):
    learner, log = make_learner(make_args(alg, share_params=True, hysteretic_beta=0.01))
    plain, plain_log = make_learner(make_args(alg, share_params=True, hysteretic_beta=1.0))
    batch = make_batch(learner.args)
    for one in (learner, plain):
        one.train(batch, t_env=0, episode_num=1)
    assert 0.0 < log.stats["loss_td"][0][0] < plain_log.stats["loss_td"][0][0]


@pytest.mark.parametrize("alg", ["vdn", "qmix", "ow_qmix", "qtran"])
def test_a_joint_value_is_refused(alg):
    with pytest.raises(
        ConfigError, match="hysteretic_beta is for independent learners: set mixer=null"
    ):
        make_learner(make_args(alg, hysteretic_beta=0.5))


def test_s2q_is_refused():
    with pytest.raises(
        ConfigError, match="hysteretic_beta is for independent learners: S2Q has s2q_alpha"
    ):
        make_learner(make_args("s2q", hysteretic_beta=0.5))


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_range(beta):
    with pytest.raises(ConfigError, match="hysteretic_beta must be between 0 and 1"):
        make_learner(make_args("hysteretic", hysteretic_beta=beta))


# -- what it is for --------------------------------------------------------------------------------


def expectiles(beta):
    """Where the gradients of a row's three payoffs balance under uniform play: [3], one per own
    action.
    """
    values = []
    for row in CLIMBING.double():
        grid = torch.linspace(-12, 8, 200001).double()
        error = row.view(-1, 1) - grid
        pull = torch.where(error >= 0, error, beta * error).sum(0)
        values.append(grid[pull.abs().argmin()].item())
    return values


def learn_climbing(seed, **settings):
    """Both agents' values after learning from uniform play: [A, U], and the payoff of their greedy
    actions.
    """
    args = make_args(
        "hysteretic", n_agents=2, n_actions=3, obs_shape=1, state_shape=1, obs_last_action=False,
        agent="mlp",
        rnn_hidden_dim=32, lr=0.01, optimizer="adam", grad_norm_clip=10.0, batch_size=32,
        **settings,
    )  # fmt: skip
    learner, _ = make_learner(args, seed=seed)
    rng = np.random.default_rng(seed)
    # One play per episode; the second filled step is the terminal one.
    batch = make_batch(args, lengths=(2,) * 32, terminated=(True,) * 32)
    batch.stored("obs").fill_(1.0)
    batch.stored("state").fill_(1.0)
    batch.stored("avail_actions")[:, 0] = 1
    for i in range(700):
        joint = torch.from_numpy(rng.integers(0, 3, size=(32, 2)))
        batch.stored("actions")[:, 0, :, 0] = joint
        batch.stored("reward")[:, 0, 0] = CLIMBING[joint[:, 0], joint[:, 1]]
        batch.changed("obs", "state", "avail_actions", "actions", "reward")
        learner.train(batch, t_env=i, episode_num=32 * i)
    learner.mac.init_hidden(1)
    with torch.no_grad():
        values = learner.mac.forward(batch[:1], 0)[0]
    greedy = values.argmax(-1)
    return values, CLIMBING[greedy[0], greedy[1]].item()


@pytest.mark.parametrize("seed", range(2))
def test_hysteretic_agents_find_the_climbing_games_optimum_and_plain_ones_do_not(seed):
    values, payoff = learn_climbing(seed, hysteretic_beta=0.01)
    assert payoff == 8.0
    # About 7.6, 5.8, 5.8: close to the best payoff of every action.
    assert torch.allclose(values, torch.tensor(expectiles(0.01)).float().expand(2, 3), atol=0.7)
    values, payoff = learn_climbing(seed, hysteretic_beta=1.0)
    assert payoff <= 6.0
    assert torch.allclose(
        values, CLIMBING.mean(1).expand(2, 3), atol=2.0
    )  # the mean over the other's actions
