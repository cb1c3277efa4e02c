"""QTRAN-base against plain loops over episodes, steps and agents."""

import copy

import pytest
import torch
from learner_fixtures import (
    assert_same_gradients,
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    q_lambda_returns,
    step_outputs,
    taken_actions,
    td_lambda_returns,
)
from torch import nn

from modules.agents import REGISTRY as AGENTS
from utils.errors import ConfigError


def joint(mixer, hidden, actions, state, n_actions):
    """Hidden [A, H], a list of actions, state [S] -> Q [1], V [1]."""
    onehot = torch.zeros(1, len(actions), n_actions)
    for i, u in enumerate(actions):
        onehot[0, i, u] = 1
    q, v = mixer.joint(hidden.unsqueeze(0), state.unsqueeze(0), onehot)
    return q.view(1), v.view(1)


def reference(learner, batch, per_weight=None):
    """The three losses, and how many transitions count in the last one."""
    args = learner.args
    losses, count, active = [0.0, 0.0, 0.0], 0, 0
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        values, hidden = step_outputs(learner.mac, episode, hidden=True)
        avail, state = episode["avail_actions"][0], episode["state"][0]
        n = len(values) - 1
        ended = bool(episode["terminated"][0, :n].any())
        greedy = [greedy_action(values[t], avail[t]) for t in range(n + 1)]
        with torch.no_grad():
            target_values, target_hidden = step_outputs(learner.target_mac, episode, hidden=True)
            best, taken = [], []
            for t in range(n + 1):
                choice = greedy[t] if args.double_q else greedy_action(target_values[t], avail[t])
                for out, actions in ((best, choice), (taken, taken_actions(episode, t))):
                    out.append(
                        joint(
                            learner.target_mixer,
                            target_hidden[t],
                            actions,
                            state[t],
                            args.n_actions,
                        )[0]
                    )
            rewards = list(episode["reward"][0, :n])
            if args.q_lambda:
                returns = q_lambda_returns(rewards, best, taken, ended, args.gamma, args.td_lambda)
            else:
                returns = td_lambda_returns(rewards, best, ended, args.gamma, args.td_lambda)
        for t in range(n):
            actions = taken_actions(episode, t)
            q_joint, v = joint(learner.mixer, hidden[t], actions, state[t], args.n_actions)
            q_best, _ = joint(learner.mixer, hidden[t], greedy[t], state[t], args.n_actions)
            sum_taken = sum(values[t][i, u] for i, u in enumerate(actions))
            sum_best = sum(values[t][i, u] for i, u in enumerate(greedy[t]))
            below = sum_taken - q_joint.detach() + v
            active += bool(below < 0)
            scale = 1.0 if per_weight is None else per_weight[b]
            terms = (
                (q_joint - returns[t]) ** 2,
                (sum_best - q_best.detach() + v) ** 2,
                torch.minimum(below, torch.zeros(1)) ** 2,
            )
            losses = [loss + scale * term for loss, term in zip(losses, terms, strict=True)]
            count += 1
    assert 0 < active < count  # else the batch would not test the minimum
    return [loss / count for loss in losses]


def check(args, per_weight=None):
    learner, log = make_learner(args)
    batch = make_batch(args)
    slow = copy.deepcopy(learner)
    losses = reference(slow, batch, per_weight)
    (losses[0] + args.opt_loss * losses[1] + args.nopt_min_loss * losses[2]).backward()
    learner.train(batch, t_env=10, episode_num=1, per_weight=per_weight)
    for name, loss in zip(("loss_td", "opt_loss", "nopt_loss"), losses, strict=True):
        assert log.stats[name][0][0] == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(learner, slow)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"double_q": False},
        {"td_lambda": 0.6},
        {"td_lambda": 0.6, "q_lambda": True},
        {"opt_loss": 3.0, "nopt_min_loss": 2.0, "network_size": "big"},
        {"share_params": False},
        {"agent": "mlp"},
        {"agent": "rnn", "mac": "basic_mac"},
    ],
    ids=str,
)
def test_losses_and_gradients(settings):
    check(make_args("qtran", **settings))


def test_importance_weights():
    check(make_args("qtran"), per_weight=torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7]))


def test_bad_settings(monkeypatch):
    with pytest.raises(ConfigError, match="mixer=qtran_base, got 'vdn'"):
        make_learner(make_args("qtran", mixer="vdn"))
    with pytest.raises(ConfigError, match="got 'None'"):
        make_learner(make_args("qtran", mixer=None))

    class NoHidden(nn.Module):
        def __init__(self, input_shape, args):
            super().__init__()
            self.fc = nn.Linear(input_shape, args.n_actions)

    monkeypatch.setitem(AGENTS, "no_hidden", NoHidden)
    with pytest.raises(ConfigError, match="'no_hidden' or its controller cannot unroll them"):
        make_learner(make_args("qtran", agent="no_hidden"))
