"""I2Q against plain loops over episodes, steps and agents; its numbers by hand; its files and
checkpoints.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from learner_fixtures import (
    assert_same_gradients,
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    step_outputs,
    taken_actions,
    td_lambda_returns,
    weights_of,
)

from learners.base import make_optimiser
from utils.errors import ConfigError
from utils.state import capture, restore


def i2q_args(**overrides):
    return make_args("i2q", **({"i2q_hidden_dim": 7, "i2q_expectile": 0.8} | overrides))


def i2q_learner(args):
    """A learner and its log; Q_ss of the target network is above V_s at some transitions and below
    at others.
    """
    learner, log = make_learner(args)
    with torch.no_grad():
        learner.target_q_ss.fc1.weight.mul_(50)
        learner.target_q_ss.fc3.bias.copy_(learner.v_s.fc3.bias)
    return learner, log


def value_of(network, agent, features):
    """The MLP of one agent on features [F] -> []."""
    x = features
    for layer in (network.fc1, network.fc2, network.fc3):
        shared = layer.weight.dim() == 2
        weight, bias = (
            (layer.weight, layer.bias) if shared else (layer.weight[agent], layer.bias[agent])
        )
        x = weight @ x + bias
        x = x if layer is network.fc3 else F.relu(x)
    return x[0]


def reference(learner, batch, per_weight=None):
    """For TD, Q_ss and V_s the loss of every agent, a list of A scalars each."""
    args = learner.args
    agents = range(args.n_agents)
    losses, count, above = {"td": {}, "q_ss": {}, "v_s": {}}, 0, []

    def add(kind, i, scale, error):
        losses[kind][i] = losses[kind].get(i, 0.0) + scale * 0.5 * error**2

    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        online = step_outputs(learner.mac, episode)
        with torch.no_grad():
            target, hidden = step_outputs(learner.target_mac, episode, hidden=True)
        avail, rewards = episode["avail_actions"][0], episode["reward"][0]
        n = len(online) - 1
        ended = bool(episode["terminated"][0, :n].any())
        scale = 1.0 if per_weight is None else float(per_weight[b])
        for i in agents:
            best = [
                target[t][i, greedy_action((online if args.double_q else target)[t], avail[t])[i]]
                for t in range(n + 1)
            ]
            reward_of = rewards[:, 0] if args.common_reward else rewards[:, i]
            usual = td_lambda_returns(list(reward_of[:n]), best, ended, args.gamma, args.td_lambda)
            for t in range(n):
                pair = torch.cat([hidden[t][i], hidden[t + 1][i]])
                with torch.no_grad():
                    following = value_of(learner.target_v_s, i, hidden[t + 1][i])
                    ideal = reward_of[t] + (0.0 if t == n - 1 and ended else args.gamma * following)
                    transition = value_of(learner.target_q_ss, i, pair)
                y = args.i2q_lambda * ideal + (1 - args.i2q_lambda) * usual[t].detach()
                add("td", i, scale, online[t][i, taken_actions(episode, t)[i]] - y)
                add("q_ss", i, scale, value_of(learner.q_ss, i, pair) - ideal)
                v = value_of(learner.v_s, i, hidden[t][i])
                above.append(transition.item() > v.item())
                tau = args.i2q_expectile if above[-1] else 1 - args.i2q_expectile
                add("v_s", i, scale * tau, transition - v)
        count += n
    assert 0 < sum(above) < len(above)  # else the batch would not test the expectile's weights
    return {kind: [per_agent[i] / count for i in agents] for kind, per_agent in losses.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"double_q": False},
        {"i2q_lambda": 0.0},
        {"i2q_lambda": 1.0},
        {"td_lambda": 0.6},
        {"common_reward": False},
        {"share_params": True},
        {"n_agents": 1},
        {"agent": "mlp"},
        {"per_weight": (0.3, 1.0, 2.0, 0.0, 0.7)},
    ],
    ids=str,
)
def test_losses_and_gradients(settings):
    settings = dict(settings)
    per_weight = torch.tensor(settings.pop("per_weight")) if "per_weight" in settings else None
    args = i2q_args(**settings)
    learner, log = i2q_learner(args)
    batch = make_batch(args)
    slow = copy.deepcopy(learner)
    losses = reference(slow, batch, per_weight)
    n_losses = (
        1 if args.share_params else args.n_agents
    )  # shared networks learn the mean over agents
    (n_losses * sum(sum(per_agent) / args.n_agents for per_agent in losses.values())).backward()
    out = learner.train(batch, t_env=0, episode_num=1, per_weight=per_weight)
    for kind, per_agent in losses.items():
        mean = sum(loss.item() for loss in per_agent) / args.n_agents
        assert log.stats[f"loss_{kind}"][0][0] == pytest.approx(mean, rel=1e-5)
    assert_same_gradients(learner, slow)
    assert set(out) == (set() if per_weight is None else {"td_errors_abs"})


def test_expectile_by_hand():
    learner, _ = make_learner(i2q_args(i2q_expectile=0.7))
    losses = learner.expectile_losses(
        torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[3.0, 1.0, -3.0]])
    )
    assert losses[0].tolist() == pytest.approx([0.5 * 0.7 * 4, 0.0, 0.5 * 0.3 * 16])


def test_one_step_by_hand():
    """All networks are their last layers' biases: targets and losses computed on paper."""
    args = i2q_args(
        n_agents=2, n_actions=2, gamma=0.5, i2q_lambda=0.25, i2q_expectile=0.9, agent="mlp"
    )
    learner, log = make_learner(args)
    biases = {
        learner.mac.agent: [[1.0, 2.0], [2.0, 1.0]],
        learner.target_mac.agent: [[10.0, 4.0], [8.0, 6.0]],
        learner.q_ss: [[1.0], [2.0]],
        learner.target_q_ss: [[3.0], [-3.0]],
        learner.v_s: [[0.0], [1.0]],
        learner.target_v_s: [[20.0], [40.0]],
    }
    for network, bias in biases.items():
        with torch.no_grad():
            network.fc3.weight.zero_()
            network.fc3.bias.copy_(torch.tensor(bias))
    batch = make_batch(args, lengths=(3,), terminated=(True,))
    batch.update(
        {
            "avail_actions": torch.ones(3, 2, 2),
            "actions": torch.tensor([[0, 0], [1, 0], [0, 0]]),
            "reward": torch.tensor([3.0, 4.0, 99.0]),
        },
        bs=0,
        ts=slice(0, 3),
    )
    learner.train(batch, t_env=0, episode_num=1)
    # Online greedy: action 1 and action 0. Step 0: usual 3 + 0.5 * (4, 8), ideal 3 + 0.5 * (20,
    # 40). Step 1 ends.
    usual, ideal = [(5.0, 7.0), (4.0, 4.0)], [(13.0, 23.0), (4.0, 4.0)]
    y = [
        [0.25 * w + 0.75 * u for u, w in zip(*rows, strict=True)]
        for rows in zip(usual, ideal, strict=True)
    ]
    taken = [(1.0, 2.0), (2.0, 2.0)]
    flat = [
        (q, target)
        for row, targets in zip(taken, y, strict=True)
        for q, target in zip(row, targets, strict=True)
    ]
    assert log.stats["target_mean"][0][0] == pytest.approx(sum(target for _, target in flat) / 4)
    assert log.stats["loss_td"][0][0] == pytest.approx(
        sum(0.5 * (q - target) ** 2 for q, target in flat) / 4
    )
    q_ss_errors = [13.0 - 1, 23.0 - 2, 4.0 - 1, 4.0 - 2]
    assert log.stats["loss_q_ss"][0][0] == pytest.approx(sum(0.5 * e**2 for e in q_ss_errors) / 4)
    # Agent 0: Q_ss 3 above V_s 0; agent 1: -3 below 1.
    assert log.stats["loss_v_s"][0][0] == pytest.approx((0.5 * 0.9 * 9 + 0.5 * 0.1 * 16) / 2)


def test_without_a_share_of_ideal_targets_the_values_are_those_of_iql():
    learner, _ = make_learner(i2q_args(i2q_lambda=0.0))
    plain, _ = make_learner(make_args("iql_ns"))
    plain.mac.load_state(learner.mac)
    plain.target_mac.load_state(learner.target_mac)
    batch = make_batch(learner.args)
    for i in range(3):
        for one in (learner, plain):
            one.train(batch, t_env=0, episode_num=i)
    assert all(
        torch.equal(p, q)
        for p, q in zip(learner.mac.parameters(), plain.mac.parameters(), strict=True)
    )


def test_every_network_is_one_clipped_step_of_its_own_optimiser():
    args = i2q_args(grad_norm_clip=0.01, optim_eps=1e-3)
    learner, log = i2q_learner(args)
    batch = make_batch(args)
    slow = copy.deepcopy(learner)
    sum(sum(per_agent) for per_agent in reference(slow, batch).values()).backward()
    groups = {"opt": slow.mac.agent, "q_ss_opt": slow.q_ss, "v_s_opt": slow.v_s}
    for network in groups.values():
        params = list(network.parameters())
        for i in range(args.n_agents):
            norm = sum(float(p.grad[i].pow(2).sum()) for p in params) ** 0.5
            assert norm > 0.01
            for param in params:
                param.grad[i] *= 0.01 / norm
        make_optimiser(params, args).step()
    before = weights_of(learner)
    learner.train(batch, t_env=0, episode_num=1)
    for old, new, expected in zip(before, weights_of(learner), weights_of(slow), strict=True):
        assert torch.allclose(new, expected, atol=1e-6)
        assert not torch.equal(new, old)
    assert learner.optimisers().keys() == groups.keys()
    for name in ("q_ss", "v_s"):
        assert log.stats[f"{name}_grad_norm"][0][0] > 0.01


def networks_and_targets(learner):
    return (
        (learner.mac.agent, learner.target_mac.agent),
        (learner.q_ss, learner.target_q_ss),
        (learner.v_s, learner.target_v_s),
    )


def test_targets_follow_together():
    learner, _ = make_learner(i2q_args(target_update_interval=200))
    batch = make_batch(learner.args)
    for episode, due in ((150, False), (200, True), (399, False), (400, True)):
        learner.train(batch, t_env=0, episode_num=episode)
        for online, target in networks_and_targets(learner):
            same = [
                torch.equal(p, q)
                for p, q in zip(online.parameters(), target.parameters(), strict=True)
            ]
            assert all(same) if due else not any(same)
            assert not any(p.requires_grad for p in target.parameters())


def test_model_files(tmp_path):
    args = i2q_args()
    learner, _ = make_learner(args, seed=1)
    batch = make_batch(args)
    learner.train(batch, t_env=0, episode_num=1)
    learner.save_models(str(tmp_path))
    names = ("agent", "q_ss", "v_s", "opt", "q_ss_opt", "v_s_opt")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.th" for name in names}
    other, _ = make_learner(args, seed=2)
    other.load_models(str(tmp_path))
    learner.update_targets()  # loading makes the targets copies of the online networks
    for twin in (learner, other):
        twin.train(batch, t_env=0, episode_num=2)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(learner), weights_of(other), strict=True)
    )


def test_a_restored_learner_continues_with_the_same_numbers(tmp_path):
    """Targets and optimisers of the two extra values included; they differ from the online networks
    here.
    """
    args = i2q_args(target_update_interval=3)
    learner, _ = make_learner(args, seed=1)
    batch = make_batch(args)
    for i in range(5):
        learner.train(batch, t_env=i, episode_num=i)
    torch.save(capture(learner), tmp_path / "state.pt")
    other, _ = make_learner(args, seed=2)
    restore(other, torch.load(tmp_path / "state.pt", weights_only=True))
    for i in range(5, 9):
        for twin in (learner, other):
            twin.train(batch, t_env=i, episode_num=i)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(learner), weights_of(other), strict=True)
    )
    for (_, mine), (_, theirs) in zip(
        networks_and_targets(learner), networks_and_targets(other), strict=True
    ):
        assert all(
            torch.equal(p, q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True)
        )


def test_v_s_follows_the_best_transitions():
    """A high expectile of two transitions that happen equally often is close to the better one; 0.5
    is their mean.
    """
    found = {}
    for tau in (0.5, 0.95):
        args = i2q_args(
            i2q_expectile=tau, i2q_hidden_dim=32, n_agents=1, gamma=0.0, agent="mlp",
            obs_last_action=False, lr=0.005,
            optimizer="adam", target_update_interval=1,
        )  # fmt: skip
        learner, _ = make_learner(args)
        # One observation, then one of two others: reward 1 leads to the first, 0 to the second.
        batch = make_batch(args, lengths=(2,) * 8, terminated=(False,) * 8)
        obs, reward = batch.stored("obs"), batch.stored("reward")
        obs[:, 0], obs[::2, 1], obs[1::2, 1] = 1.0, 2.0, -2.0
        reward[::2, 0], reward[1::2, 0] = 1.0, 0.0
        batch.changed("obs", "reward")
        learner.optimiser.param_groups[0]["lr"] = 0.0  # fixed features
        for i in range(200):
            learner.train(batch, t_env=i, episode_num=i)
        steps = batch.steps()
        hidden = learner.target_mac.agent.unroll_hidden(
            learner.mac.sequence_inputs(batch, steps), steps
        )
        found[tau] = learner.v_s(hidden)[steps.cur].mean().item()
    assert found[0.5] == pytest.approx(0.5, abs=0.1)
    assert found[0.95] == pytest.approx(0.95, abs=0.05)  # tau (1 - v) = (1 - tau) v


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixer": "vdn"}, "mixer=null .its agents learn on their own., got mixer=vdn"),
        ({"i2q_lambda": 1.5}, "i2q_lambda must be between 0 and 1, got 1.5"),
        ({"i2q_expectile": 1.0}, "i2q_expectile must be greater than 0 and less than 1, got 1.0"),
        ({"i2q_hidden_dim": 0}, "i2q_hidden_dim must be at least 1, got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(i2q_args(**settings))


def test_an_agent_without_hidden_states_is_refused():
    args = i2q_args()
    mac = make_learner(args)[0].mac

    class Plain(torch.nn.Module):
        pass

    mac.agent = Plain()
    with pytest.raises(
        ConfigError, match=r"i2q_learner needs the agents' hidden states, but agent 'rnn'"
    ):
        type(make_learner(args)[0])(mac, {}, None, args)
