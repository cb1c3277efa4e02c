"""QLearner (IQL, VDN, QMIX, Qatten, QPLEX) against plain loops over episodes, steps and agents."""

import copy
from types import SimpleNamespace

import pytest
import torch
from learner_fixtures import (
    LENGTHS,
    TERMINATED,
    assert_same_gradients,
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    q_lambda_returns,
    step_outputs,
    taken_actions,
    td_lambda_returns,
    weights_of,
)

from learners.base import OPTIMISERS, make_optimiser
from utils.errors import ConfigError, Diverged

INDEPENDENT = ("iql", "iql_ns", "hysteretic", "distributed_q")
ALGORITHMS = (*INDEPENDENT, "vdn", "qmix", "qatten", "qplex", "fullcomm")
TARGETS = (
    {"double_q": True, "q_lambda": False, "td_lambda": 0.6},
    {"double_q": False, "q_lambda": False, "td_lambda": 0.6},
    {"double_q": True, "q_lambda": False, "td_lambda": 0.0},
    {"double_q": True, "q_lambda": True, "td_lambda": 0.6},
    {"double_q": False, "q_lambda": True, "td_lambda": 0.6},
)


def joint_value(mixer, values, actions, avail, state):
    """Values [A, U], a list of actions, avail [A, U], state [S] -> [1], or [A] without a mixer."""
    chosen = torch.stack([values[i, u] for i, u in enumerate(actions)])
    if mixer is None:
        return chosen
    chosen, state = chosen.unsqueeze(0), state.unsqueeze(0)
    if type(mixer).__name__ != "DMAQer":
        return mixer(chosen, state).view(1)
    best = (
        torch.stack([values[i, u] for i, u in enumerate(greedy_action(values, avail))])
        .detach()
        .unsqueeze(0)
    )
    onehot = torch.zeros(1, *values.shape)
    for i, u in enumerate(actions):
        onehot[0, i, u] = 1
    advantage = mixer(chosen, state, actions=onehot, max_q_i=best, is_v=False)
    return (mixer(chosen, state, is_v=True) + advantage).view(1)


def reference(learner, batch, per_weight=None):
    """The loss and the mean absolute TD error of every episode."""
    args, total, count, abs_errors = learner.args, 0.0, 0, []
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        online = step_outputs(learner.mac, episode)
        avail, state = episode["avail_actions"][0], episode["state"][0]
        n = len(online) - 1
        ended = bool(episode["terminated"][0, :n].any())
        with torch.no_grad():
            target = step_outputs(learner.target_mac, episode)
            best, taken = [], []
            for t in range(n + 1):
                chooser = online[t] if args.double_q else target[t]
                for values, actions in (
                    (best, greedy_action(chooser, avail[t])),
                    (taken, taken_actions(episode, t)),
                ):
                    values.append(
                        joint_value(learner.target_mixer, target[t], actions, avail[t], state[t])
                    )
            rewards = list(episode["reward"][0, :n])
            if args.q_lambda:
                returns = q_lambda_returns(rewards, best, taken, ended, args.gamma, args.td_lambda)
            else:
                returns = td_lambda_returns(rewards, best, ended, args.gamma, args.td_lambda)
        errors = []
        for t in range(n):
            value = joint_value(
                learner.mixer, online[t], taken_actions(episode, t), avail[t], state[t]
            )
            for error in value - returns[t]:
                weight = args.hysteretic_beta if error.item() > 0 else 1.0
                total = total + 0.5 * weight * error**2 * (
                    1.0 if per_weight is None else per_weight[b]
                )
                count += 1
                errors.append(abs(error.item()))
        # The mean over agents of every step, summed over the n steps, by the root of n.
        abs_errors.append(sum(errors) * n**0.5 / len(errors))
    return total / count, abs_errors


def check(args, lengths=LENGTHS, terminated=TERMINATED, per_weight=None):
    learner, log = make_learner(args)
    batch = make_batch(args, lengths, terminated)
    slow = copy.deepcopy(learner)
    loss, abs_errors = reference(slow, batch, per_weight)
    # Agents that learn alone have a loss each, and the loss that is logged is their mean.
    n_losses = args.n_agents if args.mixer is None and not args.share_params else 1
    (n_losses * loss).backward()
    out = learner.train(batch, t_env=10, episode_num=1, per_weight=per_weight)
    assert log.stats["loss_td"][0][0] == pytest.approx(loss.item(), rel=1e-5)
    if per_weight is None:  # nobody reads them
        assert out == {}
    else:
        assert out["td_errors_abs"].tolist() == pytest.approx(abs_errors, rel=1e-4)
    assert_same_gradients(learner, slow)
    return learner, slow


@pytest.mark.parametrize(
    "targets", TARGETS, ids=lambda t: ",".join(f"{k}={v}" for k, v in t.items())
)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_loss_and_gradients(alg, targets):
    check(make_args(alg, **targets))


@pytest.mark.parametrize("alg", ["iql", "qmix", "qplex"])
def test_equal_lengths(alg):
    check(make_args(alg), lengths=(5, 5, 5), terminated=(True, False, True))


@pytest.mark.parametrize("alg", ["iql", "iql_ns"])
@pytest.mark.parametrize("q_lambda", [False, True])
def test_individual_rewards(alg, q_lambda):
    check(make_args(alg, common_reward=False, td_lambda=0.6, q_lambda=q_lambda))


@pytest.mark.parametrize("alg", ["iql", "hysteretic", "qmix", "qplex"])
def test_importance_weights(alg):
    check(make_args(alg), per_weight=torch.tensor([0.3, 1.0, 2.0, 0.0, 0.7]))


@pytest.mark.parametrize(
    "options",
    [
        {"agent": "mlp"},
        {"agent": "rnn", "mac": "basic_mac"},
        {"share_params": False},
        {"agent": "mlp", "share_params": False},
        {"obs_agent_id": False, "obs_last_action": False},
        {"hypernet_layers": 1},
    ],
    ids=str,
)
def test_other_networks(options):
    check(make_args("qmix", **options))


def test_one_step_target_by_hand():
    """Two agents whose values are the biases of their heads: y and loss computed on paper."""
    args = make_args(
        "vdn", n_agents=2, n_actions=2, gamma=0.9, td_lambda=0.0, agent="mlp", mac="basic_mac"
    )
    learner, log = make_learner(args)
    for network, bias in ((learner.mac.agent, [1.0, 2.0]), (learner.target_mac.agent, [10.0, 5.0])):
        with torch.no_grad():
            network.fc3.weight.zero_()
            network.fc3.bias.copy_(torch.tensor(bias))
    batch = make_batch(args, lengths=(3,), terminated=(False,))
    batch.update(
        {
            "avail_actions": torch.ones(3, 2, 2),
            "actions": torch.tensor([[0, 0], [0, 1], [1, 1]]),
            "reward": torch.tensor([3.0, 4.0, 99.0]),
        },
        bs=0,
        ts=slice(0, 3),
    )
    learner.train(batch, t_env=0, episode_num=1)
    # Online greedy: action 1 for both; its target value is 5 each: y = r + 0.9 * 10. Q of (0, 0) is
    # 2, of (0, 1) is 3.
    errors = [2 - (3 + 9), 3 - (4 + 9)]
    assert log.stats["target_mean"][0][0] == pytest.approx(12.5)
    assert log.stats["q_taken_mean"][0][0] == pytest.approx(2.5)
    assert log.stats["loss_td"][0][0] == pytest.approx(0.5 * sum(e**2 for e in errors) / 2)


def test_update_is_one_clipped_optimiser_step():
    args = make_args("qmix", grad_norm_clip=0.05, adam_eps=1e-3)
    learner, log = make_learner(args)
    batch = make_batch(args)
    slow = copy.deepcopy(learner)
    loss, _ = reference(slow, batch)
    loss.backward()
    norm = sum(float(p.grad.pow(2).sum()) for p in slow.params) ** 0.5
    assert norm > 0.05
    for param in slow.params:
        param.grad.mul_(0.05 / norm)
    make_optimiser(slow.params, args).step()
    before = weights_of(learner)
    learner.train(batch, t_env=0, episode_num=1)
    assert log.stats["grad_norm"][0][0] == pytest.approx(norm, rel=1e-4)
    for old, new, expected in zip(before, weights_of(learner), weights_of(slow), strict=True):
        assert torch.allclose(new, expected, atol=1e-6)
        assert not torch.equal(new, old)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("rmsprop", torch.optim.RMSprop)]
)
def test_optimiser_settings(name, kind):
    eps = {"adam_eps" if name == "adam" else "optim_eps": 0.003}
    args = make_args("qmix", optimizer=name, lr=0.02, optim_alpha=0.95, weight_decay=0.1, **eps)
    group = make_learner(args)[0].optimiser.param_groups[0]
    assert type(make_learner(args)[0].optimiser) is kind
    assert (group["lr"], group["eps"], group["weight_decay"]) == (0.02, 0.003, 0.1)
    if name == "rmsprop":
        assert group["alpha"] == 0.95


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_learning_rate_of_its_own(name):
    """As a critic or a temperature has it, beside that of the policies."""
    settings = SimpleNamespace(
        optimizer=name, lr=0.1, optim_alpha=0.99, optim_eps=1e-5, adam_eps=1e-5, weight_decay=0.0
    )
    params = [torch.nn.Parameter(torch.ones(2))]
    rates = [make_optimiser(params, settings, lr=lr).param_groups[0]["lr"] for lr in (None, 0.3)]
    assert rates == [0.1, 0.3]


def test_padding_does_not_count():
    """An episode gives the same loss alone and padded to a longer batch."""
    args = make_args("qmix")
    learner, log = make_learner(args)
    batch = make_batch(args)
    twin = copy.deepcopy(learner)
    learner.train(batch[2:3], t_env=0, episode_num=1)
    twin.train(batch[2:3, :2], t_env=0, episode_num=1)
    for name, values in log.stats.items():
        assert twin.logger.stats[name][0][0] == pytest.approx(values[0][0], rel=1e-5)
    assert_same_gradients(learner, twin)


def test_training_learns_the_rewards():
    """gamma 0: the joint values approach the rewards of a fixed batch."""
    args = make_args(
        "qmix", gamma=0.0, td_lambda=0.0, lr=0.01, rnn_hidden_dim=32, learner_log_interval=1
    )
    learner, log = make_learner(args)
    batch = make_batch(args)
    for i in range(300):
        learner.train(batch, t_env=i, episode_num=i)
    losses = [value for value, _ in log.stats["loss_td"]]
    assert losses[0] > 0.1
    assert losses[-1] < 0.01 * losses[0]


def test_targets_follow_every_interval():
    args = make_args("qmix", target_update_interval=200)
    learner, _ = make_learner(args)
    batch = make_batch(args)
    updated = []
    for episode in (8, 192, 200, 208, 392, 400, 408):
        before = learner.target_mixer.hyper_b1[0].weight.clone()
        learner.train(batch, t_env=0, episode_num=episode)
        changed = not torch.equal(before, learner.target_mixer.hyper_b1[0].weight)
        if changed:
            pairs = zip(learner.mac.parameters(), learner.target_mac.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in pairs)
            assert torch.equal(
                learner.mixer.hyper_b1[0].weight, learner.target_mixer.hyper_b1[0].weight
            )
        updated.append(changed)
    assert updated == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("alg", ["qmix", "ow_qmix", "qtran", "qplex", "iql"])
def test_nan_reward_stops_the_update(alg):
    args = make_args(alg)
    learner, _ = make_learner(args)
    batch = make_batch(args)
    batch.stored("reward")[1, 2] = float("nan")
    before = weights_of(learner)
    with pytest.raises(Diverged, match=r"t_env=123.*not finite in rewards, targets"):
        learner.train(batch, t_env=123, episode_num=1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(learner), strict=True))


def test_nan_weights_and_observations_are_named():
    args = make_args("qmix")
    learner, _ = make_learner(args)
    batch = make_batch(args)
    batch.stored("obs")[0, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged, match="not finite in observations"):
        learner.train(batch, t_env=0, episode_num=1)
    batch = make_batch(args)
    with torch.no_grad():
        learner.mixer.hyper_w1[0].weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="not finite in q;"):
        learner.train(batch, t_env=0, episode_num=1)


def test_log_interval():
    args = make_args("vdn", learner_log_interval=100)
    learner, log = make_learner(args)
    batch = make_batch(args)
    for t_env in (0, 50, 99, 100, 150, 230):
        learner.train(batch, t_env=t_env, episode_num=1)
    assert set(log.stats) == {"loss_td", "grad_norm", "td_error_abs", "q_taken_mean", "target_mean"}
    for values in log.stats.values():
        assert [t for _, t in values] == [0, 100, 230]
        assert all(isinstance(value, float) for value, _ in values)


@pytest.mark.parametrize("alg", ["iql", "qmix", "qplex", "ow_qmix", "qtran"])
def test_model_files(alg, tmp_path):
    args = make_args(alg)
    learner, _ = make_learner(args, seed=1)
    batch = make_batch(args)
    learner.train(batch, t_env=0, episode_num=1)
    learner.save_models(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "agent.th", "opt.th", *(() if alg == "iql" else ("mixer.th",)),
        *(("central_agent.th", "central_mixer.th") if alg == "ow_qmix" else ()),
    }  # fmt: skip
    other, _ = make_learner(args, seed=2)
    assert not all(
        torch.equal(a, b) for a, b in zip(weights_of(learner), weights_of(other), strict=True)
    )
    other.load_models(str(tmp_path))
    learner.update_targets()  # loading makes the targets copies of the online networks
    for twin in (learner, other):
        twin.train(batch, t_env=0, episode_num=2)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(learner), weights_of(other), strict=True)
    )


def test_target_networks_are_frozen_copies():
    args = make_args("qmix")
    learner, _ = make_learner(args)
    trained = {id(param) for param in learner.params}
    for _, target in learner.targets:
        for param in target.parameters():
            assert not param.requires_grad
            assert id(param) not in trained
    assert trained == {id(p) for p in [*learner.mac.parameters(), *learner.mixer.parameters()]}


def test_bad_settings():
    with pytest.raises(ConfigError, match="common_reward=True"):
        make_learner(make_args("qmix", common_reward=False))
    with pytest.raises(
        ConfigError, match="optimizer must be one of rmsprop, adam, radam, got 'sgd'"
    ):
        make_learner(make_args("qmix", optimizer="sgd"))
