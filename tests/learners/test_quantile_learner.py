"""Quantiles of joint returns (RiskQ) against loops over episodes, steps, agents and quantiles; and
that agents who mind risk leave it.
"""

import copy
import itertools
import math

import pytest
import torch
from learner_fixtures import (
    assert_same_gradients,
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    step_outputs,
    taken_actions,
    td_lambda_returns,
)

from learners.quantile_learner import quantile_losses
from modules.mixers.qatten import QattenMixer
from utils.errors import ConfigError

W, A, U = 5, 3, 4


def risk_args(**settings):
    return make_args("riskq", n_quantiles=W, **settings)


def slow_loss(quantiles, targets, axis="predicted"):
    """Lists of W and V numbers (or scalar tensors) -> the loss of one transition."""
    total = 0.0
    for w, z in enumerate(quantiles):
        for v, y in enumerate(targets):
            d = y - z
            level = ((w if axis == "predicted" else v) + 0.5) / len(quantiles)
            size = abs(float(d.detach() if torch.is_tensor(d) else d))
            huber = 0.5 * d**2 if size <= 1 else abs(d) - 0.5
            total = total + abs(level - (1.0 if float(d) <= 0 else 0.0)) * huber / len(targets)
    return total


@pytest.mark.parametrize("axis", ["predicted", "target"])
def test_quantile_losses_by_four_loops(axis):
    torch.manual_seed(0)
    z, y = 2 * torch.randn(7, W), 2 * torch.randn(7, W)
    losses = quantile_losses(z, y, axis)
    assert losses.shape == (7, 1)
    for m in range(7):
        assert losses[m].item() == pytest.approx(slow_loss(z[m].tolist(), y[m].tolist(), axis))


def descend(axis, y):
    """Quantiles that minimise the loss of returns y [V]."""
    z = (y.mean() + torch.linspace(-1, 1, 8)).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        quantile_losses(z.unsqueeze(0), y.unsqueeze(0), axis).sum().backward()
        optimiser.step()
    return z.detach()


def test_quantiles_become_those_of_the_returns():
    z = descend("predicted", torch.tensor([0.0] * 4 + [10.0] * 4))
    assert z[:3].max() < 1.5
    assert z[-3:].min() > 8.5


def test_on_the_other_axis_all_quantiles_become_alike():
    y = torch.linspace(0, 3, 8)
    spreads = [float(z.max() - z.min()) for z in (descend(x, y) for x in ("predicted", "target"))]
    assert spreads[0] > 1.0
    assert spreads[1] < 1e-2


def quantiles_at(mac, episode):
    """Of every filled step [A, U, W], sorted."""
    raw = []
    hook = mac.agent.fc2.register_forward_hook(lambda _, __, out: raw.append(out))
    step_outputs(mac, episode)
    hook.remove()
    return [each.view(A, U, W).sort(-1).values for each in raw]


def worth(mac, quantiles):
    """[A, U, W] -> [A, U], by plain sums."""
    weights = mac.agent.weights.tolist()
    return torch.tensor(
        [
            [sum(w * float(z) for w, z in zip(weights, own[u], strict=True)) for u in range(U)]
            for own in quantiles
        ]
    )


def mixed(mixer, quantiles, actions, state):
    """[A, U, W] and a list of actions -> a list of W scalars: the mixer, once for each quantile."""
    return [
        mixer(torch.stack([quantiles[i, u, w] for i, u in enumerate(actions)])[None], state[None])
        .view(())
        for w in range(W)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixer": "vdn"},
        {"double_q": False},
        {"td_lambda": 0.0, "risk_measure": "cvar", "risk_parameter": 0.3},
        {"quantile_loss_axis": "target", "n_attention_head": 2},
    ],
    ids=str,
)
def test_loss_and_gradients(settings):
    args = risk_args(**settings)
    learner, log = make_learner(args)
    batch = make_batch(args)
    slow, losses = copy.deepcopy(learner), []
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        online = quantiles_at(slow.mac, episode)
        avail, state = episode["avail_actions"][0], episode["state"][0]
        n = len(online) - 1
        ended = bool(episode["terminated"][0, :n].any())
        with torch.no_grad():
            target = quantiles_at(slow.target_mac, episode)
            best = []
            for t in range(n + 1):
                chooser = worth(slow.mac, (online if args.double_q else target)[t])
                actions = greedy_action(chooser, avail[t])
                best.append(mixed(slow.target_mixer, target[t], actions, state[t]))
        rewards = episode["reward"][0, :n, 0].tolist()
        returns = [
            td_lambda_returns(
                rewards, [each[w] for each in best], ended, args.gamma, args.td_lambda
            )
            for w in range(W)
        ]
        for t in range(n):
            taken = mixed(slow.mixer, online[t], taken_actions(episode, t), state[t])
            y = [float(returns[w][t]) for w in range(W)]
            losses.append(slow_loss(taken, y, args.quantile_loss_axis))
    loss = sum(losses) / len(losses)
    loss.backward()
    learner.train(batch, t_env=10, episode_num=1)
    assert log.stats["loss_td"][0][0] == pytest.approx(loss.item(), rel=1e-4)
    assert_same_gradients(learner, slow)


def test_agents_best_by_risk_are_the_joint_best():
    """RIGM, by enumeration; the mean picks others."""
    torch.manual_seed(2)
    args = risk_args(n_attention_head=2)
    learner, _ = make_learner(args)
    mixer, agent, differ = QattenMixer(args), learner.mac.agent, 0
    for _ in range(20):
        quantiles = (5 * torch.randn(A, U, W)).sort(-1).values
        state = torch.randn(args.state_shape)
        by_risk = {
            joint: float(agent.worth(torch.stack(mixed(mixer, quantiles, joint, state))))
            for joint in itertools.product(range(U), repeat=A)
        }
        own = tuple(agent.worth(quantiles).argmax(-1).tolist())
        assert max(by_risk, key=by_risk.get) == own
        differ += own != tuple(quantiles.mean(-1).argmax(-1).tolist())
    assert differ > 5


def test_mixing_several_at_once_is_mixing_each():
    torch.manual_seed(0)
    args = risk_args(n_attention_head=3)
    for weighted in (True, False):
        args.weighted_head = weighted
        mixer = QattenMixer(args)
        q, s = torch.randn(4, 6, A), torch.randn(6, args.state_shape)
        each = torch.stack([mixer(rows, s) for rows in q])
        torch.testing.assert_close(mixer.of_several(q, s), each)


def learned_choice(**settings):
    """What agents do who may have 4 (action 1), or 0 twice and 10 three times in five (0)."""
    args = risk_args(lr=0.005, mixer="vdn", n_agents=1, td_lambda=0.0, **settings)
    args.n_quantiles = 16
    learner, _ = make_learner(args, seed=1)
    batch = make_batch(args, lengths=[2] * 20, terminated=[True] * 20)
    for key in ("obs", "state"):
        batch.stored(key).fill_(1.0)
    batch.stored("avail_actions").zero_()[:, :, :, :2] = 1
    actions = torch.arange(20) % 2
    batch.stored("actions")[:, 0, 0, 0] = actions
    gamble = (torch.arange(20) // 2 % 5 >= 2) * 10.0
    batch.stored("reward")[:, 0, 0] = torch.where(actions == 1, 4.0, gamble)
    batch.changed("obs", "state", "avail_actions", "actions", "reward")
    for update in range(400):
        learner.train(batch, update, update)
    learner.mac.init_hidden(20)
    return learner.mac.select_actions(batch, 0, 0, test_mode=True)[0, 0].item()


def test_learns_to_leave_risk_or_to_take_it():
    assert learned_choice(risk_measure="neutral") == 0
    assert learned_choice(risk_measure="wang", risk_parameter=0.75) == 1
    assert learned_choice(risk_measure="cvar", risk_parameter=0.3) == 1
    # Quantiles that are all alike know no risk: the public code's axis cannot learn to leave it.
    assert learned_choice(risk_measure="cvar", risk_parameter=0.3, quantile_loss_axis="target") == 0


def test_what_is_shown():
    args = risk_args()
    learner, _ = make_learner(args)
    batch = make_batch(args)
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        shown = learner.explain(episode)
        quantiles = quantiles_at(learner.mac, episode)
        for t, (state, own) in enumerate(zip(episode["state"][0], quantiles, strict=False)):
            actions = greedy_action(worth(learner.mac, own), episode["avail_actions"][0, t])
            each = [float(x) for x in mixed(learner.mixer, own, actions, state)]
            assert shown["value"].values[t].item() == pytest.approx(sum(each) / W, abs=1e-5)
            assert shown["quantiles of the return"].values[t].tolist() == pytest.approx(
                each, abs=1e-5
            )
            weights = learner.mac.agent.weights.tolist()
            assert shown["value by risk"].values[t].item() == pytest.approx(
                math.fsum(w * z for w, z in zip(weights, each, strict=True)), abs=1e-5
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixer": "qmix"}, "needs mixer=qatten or mixer=vdn"),
        ({"agent": "n_rnn"}, "needs agent=quantile_rnn"),
        ({"risk_measure": "cvar", "risk_parameter": 2.0}, "risk_parameter must be from -1 to 1"),
        ({"quantile_loss_axis": "both"}, "quantile_loss_axis must be one of predicted, target"),
        ({"auxiliary_loss": "maic"}, "needs auxiliary_loss=null"),
        ({"q_lambda": True}, "needs q_lambda=False"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_learner(risk_args(**settings))
    assert "\n" not in str(caught.value)
