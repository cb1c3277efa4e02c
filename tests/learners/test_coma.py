"""COMA's update against a loop over episodes, steps and agents, its settings, and that it
learns.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from f2a2_fixtures import baseline_args, drawn_at_the_end, f2a2_episodes
from learner_fixtures import td_lambda_returns
from maac_fixtures import maac_learner
from transition_fixtures import train_run

from components.distributions import MaskedCategorical
from utils.errors import ConfigError

A, EPSILON = 3, 0.2


def coma_args(**overrides):
    return baseline_args("coma", **overrides)


def slow_values(critic, state, obs, actions, i):
    """All values of agent i at one step: state [S], obs [A, O], actions list of A ints -> [U]."""
    u = critic.n_actions
    others = [
        F.one_hot(torch.tensor(actions[j]), u).float() if j != i else torch.zeros(u)
        for j in range(A)
    ]
    number = F.one_hot(torch.tensor(i), A).float()
    x = torch.cat([state, obs[i], *others, number])
    return critic.fc3(F.relu(critic.fc2(F.relu(critic.fc1(x)))))


def bounded(mac, batch):
    """Per episode and step [A, U]: (1 - epsilon) pi + epsilon / number of available actions."""
    steps = batch.steps()
    avail = steps.pack(batch["avail_actions"])
    probs = MaskedCategorical(mac.unroll(batch, steps), avail).probs
    probs = (1 - EPSILON) * probs + EPSILON * avail / avail.sum(-1, keepdim=True)
    return steps.unpack(probs)


@pytest.mark.parametrize(
    "settings", [{}, {"agent": "rnn"}, {"agent": "rnn", "share_params": True}], ids=str
)
def test_update_equals_a_loop(settings):
    args = coma_args(**settings)
    learner, _ = maac_learner(args)
    learner.mac.action_selector.epsilon = EPSILON
    batch = f2a2_episodes(args)
    before = copy.deepcopy(learner)
    torch.manual_seed(5)
    learner.train(batch, 0, 0)

    before.mac.agent.train()
    probs = bounded(before.mac, batch)
    last = drawn_at_the_end(batch.steps(), probs, seed=5)
    assert (last != 0).any()
    errors, gains = [], []
    for b, length in enumerate(batch.lengths().tolist()):
        taken = batch["actions"][b, :, :, 0].tolist()
        taken[length - 1] = last[b].tolist()  # nothing was done there: what the policies would do
        seen = [(batch["state"][b, t], batch["obs"][b, t], taken[t]) for t in range(length)]
        for i in range(A):
            with torch.no_grad():
                later = [slow_values(before.target_critic, *seen[t], i) for t in range(length)]
            values = [later[t][taken[t][i]].item() for t in range(length - 1)]
            values.append((later[-1] * probs[b, length - 1, i]).sum().item())
            rewards = batch["reward"][b, : length - 1, 0].tolist()
            ended = bool(batch["terminated"][b, length - 2])
            targets = td_lambda_returns(rewards, values, ended, args.gamma, args.td_lambda)
            for t in range(length - 1):
                all_q = slow_values(before.critic, *seen[t], i)
                errors.append((all_q[taken[t][i]] - targets[t]) ** 2)
                advantage = (all_q[taken[t][i]] - (probs[b, t, i] * all_q).sum()).detach()
                gains.append(advantage * probs[b, t, i, taken[t][i]].log())
    torch.stack(errors).mean().backward()
    (-torch.stack(gains).mean()).backward()
    pairs = [*zip(learner.critic_params, before.critic_params, strict=True)]
    pairs += zip(learner.params, before.params, strict=True)
    assert max(theirs.grad.abs().max() for _, theirs in pairs) > 1e-3
    for mine, theirs in pairs:
        assert torch.allclose(
            mine.grad, theirs.grad, rtol=1e-3, atol=1e-5 * max(1.0, float(theirs.grad.abs().max()))
        )


def test_targets_follow_at_intervals():
    args = coma_args(hard_target_interval=3)
    learner, _ = maac_learner(args)
    batch = f2a2_episodes(args)
    for update in range(1, 5):
        learner.train(batch, 0, 0)
        weights = zip(learner.critic.parameters(), learner.target_critic.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in weights) == (update == 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mac": "basic_mac"}, "needs mac=actor_mac"),
        ({"replay": "episodes"}, "needs replay=latest"),
        ({"common_reward": False}, "common_reward=True"),
        ({"mixer": "qmix"}, "mixer=null"),
        ({"hard_target_interval": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        maac_learner(coma_args(**settings))


def test_learns_a_matrix_game(tmp_path):
    """Two agents, of four joint actions one pays: the policies find it."""
    payoff = "env_args.payoff=[[0, 0], [0, 1]]"
    run = train_run(
        tmp_path, "coma", "matrix_game", "env_args.map_name=custom", payoff, "t_max=4000",
        "batch_size_run=20",
        "batch_size=20", "buffer_size=20", "updates_per_collection=1", "epsilon_start=0.0",
        "epsilon_finish=0.0",
        "lr=0.01", "test_interval=100000", "test_nepisode=20", "hard_target_interval=10",
    )  # fmt: skip
    assert run.last_test_return == 1.0
