"""LOLA-DQN against plain loops over agents and transitions, and against finite differences."""

import copy

import pytest
import torch
from learner_fixtures import make_args, make_learner, weights_of
from torch.func import functional_call
from transition_fixtures import assert_continues, make_transitions, train_run

from learners.base import make_optimiser
from learners.lola_learner import shaping_gradients
from utils.errors import ConfigError, Diverged

A = 3


def lola_args(**overrides):
    return make_args(
        "lola", **({"rnn_hidden_dim": 6, "lola_eta": 0.4, "lola_temperature": 0.7} | overrides)
    )


def values(weights, i, obs):
    """Q_i [U] of one observation [O], by agent i's part of the stacked weights."""
    x = obs
    for name in ("fc1", "fc2"):
        x = (weights[f"{name}.weight"][i] @ x + weights[f"{name}.bias"][i]).clamp(min=0)
    return weights["fc3.weight"][i] @ x + weights["fc3.bias"][i]


def targets_of(learner, batch):
    """y of every transition and agent."""
    args, online, old = (
        learner.args,
        *(dict(m.agent.named_parameters()) for m in (learner.mac, learner.target_mac)),
    )
    out = torch.zeros(batch.size, A)
    with torch.no_grad():
        for n in range(batch.size):
            for i in range(A):
                options = [u for u in range(args.n_actions) if batch["next_avail_actions"][n, i, u]]
                chooser = values(online if args.double_q else old, i, batch["next_obs"][n, i])
                best = max(options, key=lambda u: float(chooser[u]))
                reward = batch["reward"][n, i]
                if args.standardise_rewards:
                    reward = (reward - batch.reward_mean[i]) / batch.reward_std[i]
                goes_on = 1 - batch["terminated"][n, 0]
                out[n, i] = (
                    reward + args.gamma * goes_on * values(old, i, batch["next_obs"][n, i])[best]
                )
    return out


def log_pi(weights, i, n, batch, temperature):
    """log pi_i(a_i|o_i) of transition n."""
    q = values(weights, i, batch["obs"][n, i].to(weights["fc1.weight"].dtype)) / temperature
    options = [u for u in range(len(q)) if batch["avail_actions"][n, i, u]]
    return q[batch["actions"][n, i]] - torch.logsumexp(q[options], 0)


def slow_gain(weights, moved, i, batch, targets, temperature, eta):
    """S_i where agent i's weights are those of `moved` in what it does to the others' steps; the
    rest at `weights`.
    """
    fixed = {name: value.detach() for name, value in weights.items()}
    n_all, gain = batch.size, 0.0
    for j in range(A):
        if j == i:
            continue
        own = {name: value.clone().requires_grad_() for name, value in fixed.items()}
        loss, wanted = 0.0, 0.0
        for n in range(n_all):
            ratio_i = torch.exp(
                log_pi(moved, i, n, batch, temperature) - log_pi(fixed, i, n, batch, temperature)
            )
            q_j = values(own, j, batch["obs"][n, j].to(targets.dtype))[batch["actions"][n, j]]
            loss = loss + ratio_i * (q_j - targets[n, j]) ** 2 / n_all
            q_i = values(fixed, i, batch["obs"][n, i].to(targets.dtype))[batch["actions"][n, i]]
            wanted = wanted + (targets[n, i] - q_i) * log_pi(own, j, n, batch, temperature) / n_all
        step = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        direction = torch.autograd.grad(wanted, list(own.values()))
        gain = gain - eta * sum((d * s).sum() for d, s in zip(direction, step, strict=True))
    return gain


@pytest.fixture
def setting():
    """A learner, its weights in float64, a batch and its targets."""
    learner, _ = make_learner(lola_args())
    batch = make_transitions(learner.args, n=7)
    weights = {
        name: param.detach().double() for name, param in learner.mac.agent.named_parameters()
    }
    return learner, weights, batch, torch.randn(7, A, dtype=torch.float64)


def fast(learner, weights, batch, targets):
    obs, agent = batch["obs"].double(), learner.mac.agent.double()

    def q_of(w):
        return functional_call(agent, w, (obs.flatten(0, 1), None))[0].view(*obs.shape[:2], -1)

    args = learner.args
    return shaping_gradients(
        q_of,
        weights,
        batch["avail_actions"],
        batch["actions"],
        targets,
        args.lola_temperature,
        args.lola_eta,
    )


def test_gain_and_its_gradient_are_those_of_plain_loops(setting):
    learner, weights, batch, targets = setting
    shaping = fast(*setting)
    args = learner.args
    for i in range(A):
        moved = {name: value.clone().requires_grad_() for name, value in weights.items()}
        gain = slow_gain(weights, moved, i, batch, targets, args.lola_temperature, args.lola_eta)
        assert shaping.gain[i].item() == pytest.approx(gain.item(), rel=1e-9)
        for (name, value), slow in zip(
            moved.items(), torch.autograd.grad(gain, list(moved.values())), strict=True
        ):
            assert torch.allclose(shaping.gradients[name][i], slow[i], rtol=1e-8, atol=1e-12), name
            assert value.grad is None
        assert shaping.gradients["fc3.bias"][i].abs().max() > 1e-4


def test_gradient_goes_through_the_others_learning_steps(setting):
    """Central differences of S_i in agent i's weights, along random directions."""
    learner, weights, batch, targets = setting
    shaping = fast(*setting)
    args, h = learner.args, 1e-5
    torch.manual_seed(3)
    for i in range(A):
        direction = {name: torch.randn_like(value[i]) for name, value in weights.items()}
        ends = []
        for sign in (1, -1):
            moved = {name: value.clone() for name, value in weights.items()}
            for name, value in moved.items():
                value[i] += sign * h * direction[name]
            ends.append(
                slow_gain(weights, moved, i, batch, targets, args.lola_temperature, args.lola_eta)
            )
        slope = sum((shaping.gradients[name][i] * d).sum() for name, d in direction.items())
        assert slope.item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).item(), rel=1e-5)


def test_gain_predicts_what_the_others_step_brings(setting):
    """U_i after a tiny step of the others is U_i before it plus S_i."""
    learner, weights, batch, targets = setting
    args, eta, n_all = learner.args, 1e-6, batch.size
    learner.args.lola_eta = eta
    shaping = fast(*setting)
    after = {name: value.clone().requires_grad_() for name, value in weights.items()}
    loss = 0.0
    for n in range(n_all):
        for j in range(A):
            q = values(after, j, batch["obs"][n, j].double())[batch["actions"][n, j]]
            loss = loss + (q - targets[n, j]) ** 2 / n_all
    steps = torch.autograd.grad(loss, list(after.values()))
    after = {name: weights[name] - eta * step for name, step in zip(after, steps, strict=True)}
    for i in range(A):
        change = 0.0
        for n in range(n_all):
            q = values(weights, i, batch["obs"][n, i].double())[batch["actions"][n, i]]
            ratio = 1.0
            for j in range(A):
                if j != i:
                    before = log_pi(weights, j, n, batch, args.lola_temperature)
                    ratio = ratio * torch.exp(
                        log_pi(after, j, n, batch, args.lola_temperature) - before
                    )
            change += (ratio - 1) * (targets[n, i] - q) / n_all
        assert change.item() == pytest.approx(shaping.gain[i].item(), rel=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"double_q": False}, {"standardise_rewards": False}], ids=str
)
def test_update(options):
    """TD losses and the whole step, agent by agent."""
    args = lola_args(grad_norm_clip=0.05, adam_eps=1e-3, **options)
    learner, log = make_learner(args)
    batch = make_transitions(args)
    slow, targets = copy.deepcopy(learner), targets_of(learner, batch)
    weights = dict(slow.mac.agent.named_parameters())
    grads = {name: torch.zeros_like(value) for name, value in weights.items()}
    losses = []
    for i in range(A):
        loss = 0.0
        for n in range(batch.size):
            error = values(weights, i, batch["obs"][n, i])[batch["actions"][n, i]] - targets[n, i]
            loss = loss + error**2 / batch.size
        gain = slow_gain(weights, weights, i, batch, targets, args.lola_temperature, args.lola_eta)
        down = torch.autograd.grad(loss, list(weights.values()))
        up = torch.autograd.grad(gain, list(weights.values()))
        own = [d[i] - args.lola_weight * u[i] for d, u in zip(down, up, strict=True)]
        norm = sum(g.pow(2).sum() for g in own) ** 0.5
        assert norm > 0.05
        for grad, part in zip(grads.values(), own, strict=True):
            grad[i] = part * 0.05 / norm
        losses.append(loss.item())
    for name, value in weights.items():
        value.grad = grads[name]
    make_optimiser(weights.values(), args).step()
    old_targets = [param.clone() for param in learner.target_mac.parameters()]
    learner.train(batch, t_env=0, episode_num=1)
    assert log.stats["loss_td"][0][0] == pytest.approx(sum(losses) / A, rel=1e-5)
    for new, expected in zip(learner.mac.parameters(), weights.values(), strict=True):
        assert torch.allclose(new, expected, atol=2e-6)
    pairs = zip(old_targets, learner.target_mac.parameters(), learner.mac.parameters(), strict=True)
    for old, new, online in pairs:
        assert torch.allclose(new, old + args.target_tau * (online - old), atol=1e-7)


def test_without_weight_it_is_dqn():
    """The gradient of agent i has nothing of the others then; with it, it has."""
    changed = {}
    for weight in (0.0, 1.0):
        args = lola_args(lola_weight=weight)
        grads = []
        for last in (1.0, 5.0):
            learner, _ = make_learner(args)
            batch = make_transitions(args)
            batch["obs"][:, -1] *= last
            learner.train(batch, t_env=0, episode_num=1)
            grads.append(learner.mac.agent.fc3.weight.grad[0].clone())
        changed[weight] = not torch.equal(*grads)
    assert changed == {0.0: False, 1.0: True}


def test_a_reward_that_is_not_finite_stops_the_update():
    learner, _ = make_learner(lola_args())
    batch = make_transitions(learner.args)
    batch["reward"][1, 2] = float("nan")
    before = weights_of(learner)
    with pytest.raises(Diverged, match=r"t_env=5.*not finite in rewards, targets"):
        learner.train(batch, t_env=5, episode_num=1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(learner), strict=True))


def test_a_restored_learner_continues_bit_for_bit():
    args = lola_args()
    assert_continues(*(make_learner(args, seed)[0] for seed in (1, 2)), make_transitions(args))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replay": "episodes"}, "replay=transitions"),
        ({"agent": "rnn"}, "agent=mlp"),
        ({"share_params": True}, "share_params=False"),
        ({"n_agents": 1}, "two or more agents"),
        ({"obs_agent_id": True}, "obs_agent_id=False"),
        ({"agent_output_type": "pi_logits"}, "agent_output_type=q"),
        ({"lola_eta": -0.1}, "lola_eta must be at least 0, got -0.1"),
        ({"lola_temperature": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(lola_args(**options))


def test_learns_a_matrix_game(tmp_path):
    run = train_run(
        tmp_path, "lola", "matrix_game", "env_args.map_name=climbing", "batch_size_run=16",
        "batch_size=64",
        "t_max=2000", "steps_per_update=16", "updates_per_step=2", "buffer_size=500",
        "epsilon_anneal_time=1000",
        "rnn_hidden_dim=32", "standardise_rewards=False", "test_nepisode=4", "gamma=0.0",
    )  # fmt: skip
    # The safe equilibrium at least; a uniformly random joint action pays -3.1 on average.
    assert run.last_test_return >= 5.0
