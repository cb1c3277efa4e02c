"""DOP's critic, targets and update against loops over episodes, steps, agents and joint actions."""

import copy
import itertools

import pytest
import torch
from learner_fixtures import make_args, make_batch, make_learner, td_lambda_returns

from components.distributions import MaskedCategorical
from modules.critics.decomposed import Decomposed, LinearCritic
from modules.mixers.linear import LinearMixer
from utils.errors import ConfigError
from utils.rl_utils import build_tree_backup_targets

A, U, EPSILON, NEWEST = 3, 4, 0.2, 2


def dop_args(**settings):
    small = {"critic_hidden_dim": 8, "latest_episodes": NEWEST, "critic_grad_norm_clip": 1e9}
    return make_args("dop", **(small | settings))


def test_weights_by_loops():
    torch.manual_seed(0)
    args = dop_args()
    mixer, states, q = LinearMixer(args), torch.randn(6, args.state_shape), torch.randn(6, A)
    k = mixer.weights(states)
    for n in range(6):
        w1, w2 = mixer.hyper_w1(states[n]), mixer.hyper_w2(states[n])
        raw = [
            sum(abs(float(w1[i * 5 + e])) * abs(float(w2[e])) for e in range(5)) for i in range(A)
        ]
        assert k[n].tolist() == pytest.approx([each / sum(raw) for each in raw], rel=1e-5)
        total = sum(raw[i] / sum(raw) * float(q[n, i]) for i in range(A))
        assert mixer(q, states)[n].item() == pytest.approx(total, abs=1e-6)
    assert k.sum(-1).tolist() == pytest.approx([1.0] * 6)


def test_the_mean_is_that_of_all_joint_actions():
    torch.manual_seed(0)
    value = Decomposed(torch.rand(5, A), torch.randn(5, A, U))
    probs = torch.randn(5, A, U).softmax(-1)
    expected = value.of(probs)
    for n in range(5):
        total = 0.0
        for joint in itertools.product(range(U), repeat=A):
            choices = torch.zeros(5, A, U)
            probability = 1.0
            for i, u in enumerate(joint):
                choices[n, i, u] = 1
                probability *= float(probs[n, i, u])
            total += probability * value.of(choices)[n].item()
        assert expected[n].item() == pytest.approx(total, abs=1e-5)


def tree_backup(rewards, expected, taken, probability, ended, args):
    """The definition, by nested sums: lists of one episode with L transitions and L + 1 values."""
    n = len(rewards)
    gamma, lam = args.gamma, args.tree_backup_lambda
    returns = []
    for t in range(n):
        y = taken[t]
        for k in range(args.tree_backup_steps):
            if t + k >= n:
                break
            trace = (gamma * lam) ** k
            for step in range(1, k + 1):
                trace *= probability[t + step]
            following = 0.0 if ended and t + k == n - 1 else expected[t + k + 1]
            y += trace * (rewards[t + k] + gamma * following - taken[t + k])
        returns.append(y)
    return returns


@pytest.mark.parametrize("n_steps", [1, 2, 5, 50])
def test_tree_backup_by_nested_sums(n_steps):
    torch.manual_seed(0)
    args = dop_args(tree_backup_steps=n_steps)
    lengths, ended = (6, 3, 1), (True, False, False)
    b, t = 3, 6
    r, q, p = torch.randn(b, t, 1), torch.randn(b, t, 1), torch.rand(b, t, 1)
    e = torch.randn(b, t + 1, 1)
    mask, terminated = torch.zeros(b, t, 1), torch.zeros(b, t, 1)
    for i, length in enumerate(lengths):
        mask[i, :length], terminated[i, length - 1] = 1, ended[i]
        for padded in (r, q, p):
            padded[i, length:] = torch.nan
    lam = args.tree_backup_lambda
    y = build_tree_backup_targets(r, terminated, mask, e, q, p, args.gamma, lam, n_steps)
    for i, length in enumerate(lengths):
        rows = [x[i, :length, 0].tolist() for x in (r, q, p)]
        slow = tree_backup(rows[0], e[i, :, 0].tolist(), rows[1], rows[2], ended[i], args)
        assert y[i, :length, 0].tolist() == pytest.approx(slow, abs=1e-5)
        assert (y[i, length:] == 0).all()


def slow_parts(critic, state, obs):
    """k as A floats and Q_i as [A, U], of one step: agent by agent."""
    q = []
    for i in range(A):
        number = torch.zeros(A)
        number[i] = 1
        x = torch.cat([state, obs[i], number])
        x = critic.fc2(critic.fc1(x).clamp(min=0)).clamp(min=0)
        q.append(critic.fc3(x) + critic.fc_v(x))
    return critic.mixer.weights(state[None])[0], torch.stack(q)


def total(k, q, choices):
    """sum_i k_i sum_a c_i(a) Q_i(a) of k [A], q and choices [A, U]."""
    return sum(k[i] * sum(choices[i][u] * q[i, u] for u in range(U)) for i in range(A))


def bounded(mac, batch):
    """Per episode and step [A, U]: (1 - epsilon) pi + epsilon / number of available actions."""
    steps = batch.steps()
    avail = steps.pack(batch["avail_actions"])
    probs = MaskedCategorical(mac.unroll(batch, steps), avail).probs
    uniform = avail / avail.sum(-1, keepdim=True).clamp(min=1)
    ended = (avail == 0).all(-1, keepdim=True)
    return steps.unpack(torch.where(ended, probs, (1 - EPSILON) * probs + EPSILON * uniform))


def one_hot(actions):
    return [[1.0 if u == action else 0.0 for u in range(U)] for action in actions]


def reference_update(learner, batch):
    """DOP's update of `learner`, by loops: critic steps, then a step of the policies."""
    args = learner.args
    learner.mac.agent.train()
    probs = bounded(learner.mac, batch)
    rows = []  # (newest?, t, state, obs, taken, target)
    for b, length in enumerate(batch.lengths().tolist()):
        n, newest = length - 1, b < NEWEST
        taken = [one_hot(batch["actions"][b, t, :, 0].tolist()) for t in range(length)]
        with torch.no_grad():
            seen = [(batch["state"][b, t], batch["obs"][b, t]) for t in range(length)]
            parts = [slow_parts(learner.target_critic, *each) for each in seen]
            expected = [float(total(*parts[t], probs[b, t].tolist())) for t in range(length)]
            of_taken = [float(total(*parts[t], taken[t])) for t in range(n)]
        rewards = batch["reward"][b, :n, 0].tolist()
        ended = bool(batch["terminated"][b, n - 1])
        if newest:
            values = [*of_taken, expected[-1]]
            targets = td_lambda_returns(rewards, values, ended, args.gamma, args.td_lambda)
        else:
            probability = [1.0] * n
            for t in range(n):
                for i in range(A):
                    probability[t] *= float(probs[b, t, i, batch["actions"][b, t, i, 0]])
            targets = tree_backup(rewards, expected, of_taken, probability, ended, args)
        rows += [(newest, t, *seen[t], taken[t], targets[t], b) for t in range(n)]

    share = args.dop_replayed_share
    rounds = sorted({row[1] for row in rows}) if args.critic_by_step else [None]
    for t in rounds:
        loss = 0.0
        for newest, weight in ((True, 1 - share), (False, share)):
            errors = [
                (total(*slow_parts(learner.critic, state, obs), taken) - target) ** 2
                for new, at, state, obs, taken, target, _ in rows
                if new == newest and t in (None, at)
            ]
            if errors:
                loss = loss + weight * torch.stack(errors).mean()
        learner.critic_optimiser.zero_grad()
        loss.backward()
        learner.critic_optimiser.step()

    gains = []
    for newest, t, state, obs, taken, _, b in rows:
        if newest:
            with torch.no_grad():
                k, q = slow_parts(learner.critic, state, obs)
            for i in range(A):
                u = taken[i].index(1.0)
                mean = sum(float(probs[b, t, i, v]) * float(q[i, v]) for v in range(U))
                advantage = float(k[i]) * (float(q[i, u]) - mean)
                gains.append(advantage * probs[b, t, i, u].log())
    learner.optimiser.zero_grad()
    (-torch.stack(gains).mean()).backward()
    learner.optimiser.step()
    return len(rounds)


@pytest.mark.parametrize(
    "settings",
    [{}, {"critic_by_step": False, "dop_replayed_share": 0.3}, {"share_params": False}],
    ids=str,
)
def test_update_equals_a_loop(settings):
    # A large eps: steps as long as the gradients, so that small ones are compared as small ones.
    args = dop_args(optim_eps=1.0, lr=0.1, critic_lr=0.1, **settings)
    learner, _ = make_learner(args)
    learner.mac.action_selector.epsilon = EPSILON
    batch = make_batch(args)
    slow, start = copy.deepcopy(learner), copy.deepcopy(learner)
    learner.train(batch, 0, 0)
    steps = reference_update(slow, batch)
    assert learner.updates == steps == (6 if args.critic_by_step else 1)
    for name in ("params", "critic_params"):
        for mine, theirs, before in zip(
            *(getattr(each, name) for each in (learner, slow, start)), strict=True
        ):
            moved = float((theirs - before).detach().abs().max())
            assert moved > 1e-6
            assert torch.allclose(mine, theirs, rtol=0, atol=max(1e-3 * moved, 1e-6))


def test_targets_follow_after_so_many_steps_of_the_critic():
    args = dop_args(hard_target_interval=6)
    learner, _ = make_learner(args)
    learner.train(make_batch(args), 0, 0)
    pairs = zip(learner.critic.parameters(), learner.target_critic.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    learner.train(make_batch(args, lengths=(3, 3, 3, 3, 3)), 0, 0)
    pairs = zip(learner.critic.parameters(), learner.target_critic.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


def test_what_is_shown():
    args = dop_args()
    learner, _ = make_learner(args)
    episode = make_batch(args)[1:2]
    shown = learner.explain(episode)
    assert isinstance(learner.critic, LinearCritic)
    steps = episode.steps()
    logits, avail = learner.mac.unroll(episode, steps), steps.pack(episode["avail_actions"])
    probs = MaskedCategorical(logits, avail).probs
    for t in range(7):
        k, q = slow_parts(learner.critic, episode["state"][0, t], episode["obs"][0, t])
        assert shown["weights"].values[t].tolist() == pytest.approx(k.tolist(), abs=1e-5)
        value = float(total(k, q, probs[t].tolist()))
        assert shown["value"].values[t].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mac": "basic_mac"}, "needs mac=actor_mac"),
        ({"replay": "latest"}, "needs replay=episodes"),
        ({"latest_episodes": 0}, "latest_episodes must be at least 1"),
        ({"common_reward": False}, "common_reward=True"),
        ({"mixer": "qmix"}, "mixer=null"),
        ({"tree_backup_lambda": 1.5}, "tree_backup_lambda must be between 0 and 1"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_learner(dop_args(**settings))
    assert "\n" not in str(caught.value)
