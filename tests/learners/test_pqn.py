"""PQN against plain loops over rounds, shares of the episodes, episodes, steps and agents."""

import copy

import pytest
import torch
from learner_fixtures import (
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    step_outputs,
    taken_actions,
    td_lambda_returns,
    weights_of,
)
from transition_fixtures import assert_continues, train_run

from learners.base import make_optimiser
from utils.errors import ConfigError


def pqn_args(**overrides):
    small = {"batch_size": 5, "batch_size_run": 5, "pqn_epochs": 2, "pqn_minibatches": 2}
    return make_args("pqn_vdn", **{**small, "adam_eps": 1e-3, **overrides})


def chosen_sum(values, actions):
    return sum(values[i, u] for i, u in enumerate(actions))


def slow_loss(learner, episodes):
    """Half the mean squared distance of sums of values to the lambda returns of their maxima, under
    the weights as they are.
    """
    args, errors = learner.args, []
    for b in range(episodes.batch_size):
        episode = episodes[b : b + 1]
        q = step_outputs(learner.mac, episode)
        n = len(q) - 1
        best = [
            float(chosen_sum(q[t].detach(), greedy_action(q[t], episode["avail_actions"][0, t])))
            for t in range(n + 1)
        ]
        rewards = episode["reward"][0, :n, 0].tolist()
        ended = bool(episode["terminated"][0, :n].any())
        returns = td_lambda_returns(rewards, best, ended, args.gamma, args.td_lambda)
        errors += [chosen_sum(q[t], taken_actions(episode, t)) - returns[t] for t in range(n)]
    return sum(0.5 * error**2 for error in errors) / len(errors)


@pytest.mark.parametrize("td_lambda", [0.0, 0.65, 1.0])
def test_losses_and_updates(td_lambda):
    """Two rounds of two updates, each with the targets of the weights that the one before left."""
    args = pqn_args(td_lambda=td_lambda, t_max=100)
    learner, log = make_learner(args)
    batch, twin = make_batch(args), copy.deepcopy(learner)
    torch.manual_seed(3)
    learner.train(batch, t_env=40, episode_num=5)
    torch.manual_seed(3)
    twin.optimiser = make_optimiser(twin.params, args)
    (group,) = twin.optimiser.param_groups
    group["lr"] = args.lr * 0.6  # 40 of 100 steps are over
    losses = []
    for _ in range(2):
        for part in torch.randperm(5).tensor_split(2):
            loss = slow_loss(twin, batch[part.tolist()])
            twin.optimiser.zero_grad()
            loss.backward()
            twin.optimiser.step()
            losses.append(loss.item())
    assert log.stats["loss_td"][0][0] == pytest.approx(sum(losses) / 4, rel=1e-4)
    for mine, theirs in zip(weights_of(learner), weights_of(twin), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_there_are_no_other_networks_than_those_it_trains():
    learner, _ = make_learner(pqn_args())
    assert learner.targets == []
    assert learner.target_mac is learner.mac
    assert learner.target_mixer is learner.mixer


def test_the_learning_rate_ends_at_zero_or_stays():
    for decay, rates in ((True, [0.002, 0.001, 0.0, 0.0]), (False, [0.002] * 4)):
        args = pqn_args(t_max=10, lr=0.002, pqn_lr_decay=decay)
        learner, _ = make_learner(args)
        seen = []
        for t_env in (0, 5, 10, 15):
            learner.train(make_batch(args), t_env, 1)
            seen.append(learner.optimiser.param_groups[0]["lr"])
        assert seen == pytest.approx(rates)


def test_every_episode_takes_part_in_every_round(monkeypatch):
    args = pqn_args(pqn_epochs=3)
    learner, _ = make_learner(args)
    batch, seen = make_batch(args), []
    monkeypatch.setattr(
        learner, "update", lambda part, t_env: seen.append(part["obs"][:, 0, 0, 0].tolist()) or {}
    )
    learner.train(batch, 0, 1)
    assert [len(part) for part in seen] == [3, 2] * 3
    for a, b in zip(seen[::2], seen[1::2], strict=True):
        assert sorted(a + b) == sorted(batch["obs"][:, 0, 0, 0].tolist())
    assert len({tuple(part) for part in seen[::2]}) > 1


def test_a_restored_learner_continues_bit_for_bit():
    args = pqn_args()
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, make_batch(args))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replay": "episodes"}, "needs replay=latest .it has no replay buffer."),
        ({"updates_per_collection": 2}, "updates_per_collection=1"),
        ({"batch_size": 6}, "PQN learns from episodes.*batch_size is 6, but only 5 new ones"),
        ({"pqn_epochs": 0}, "pqn_epochs must be at least 1, got 0"),
        ({"pqn_minibatches": 0}, "pqn_minibatches must be at least 1, got 0"),
        ({"common_reward": False}, "set common_reward=True"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(pqn_args(**options))


def test_learns_a_matrix_game(tmp_path):
    """The sum of values settles for 7; a uniformly random joint action pays 4.6."""
    run = train_run(
        tmp_path, "pqn_vdn", "matrix_game", "env_args.map_name=two_step", "t_max=1600", "lr=0.003",
        "rnn_hidden_dim=16", "norm_layers=1", "epsilon_anneal_time=800", "test_nepisode=4",
    )  # fmt: skip
    assert run.last_test_return >= 7.0
