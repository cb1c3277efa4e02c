"""MA-AC's update against a loop over agents, the averaging of critics, its settings, and that it
learns.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from f2a2_fixtures import baseline_args, copy_value, f2a2_episodes
from maac_fixtures import maac_learner
from transition_fixtures import train_run

from components.distributions import MaskedCategorical
from utils.errors import ConfigError

A, SEED = 3, 5


def ma_ac_args(**overrides):
    return baseline_args("ma_ac", **overrides)


@pytest.mark.parametrize(
    "settings",
    [{}, {"agent": "rnn"}, {"hard_target_interval": 2}, {"common_reward": True}],
    ids=str,
)
def test_update_equals_a_loop_over_agents(settings):
    args = ma_ac_args(**settings)
    learner, _ = maac_learner(args)
    batch = f2a2_episodes(args)
    before = copy.deepcopy(learner)
    torch.manual_seed(SEED)
    learner.train(batch, 0, 0)

    before.mac.agent.train()
    steps, u = batch.steps(), args.n_actions
    obs, avail = steps.pack(batch["obs"]), steps.pack(batch["avail_actions"])
    probs = MaskedCategorical(before.mac.unroll(batch, steps), avail).probs
    torch.manual_seed(SEED)
    following = torch.distributions.Categorical(probs[steps.nxt].detach()).sample()
    actions = steps.pack_transitions(batch["actions"]).squeeze(-1)
    goes_on = 1 - steps.pack_transitions(batch["terminated"]).float().squeeze(-1)
    rewards = steps.pack_transitions(batch["reward"])
    losses = 0.0
    for i in range(A):
        with torch.no_grad():
            joint = F.one_hot(following, u).float()
            later = copy_value(before.target_critic, "central", i, 0, obs[steps.nxt], joint)
        reward = rewards[:, 0 if args.common_reward else i]
        target = reward + args.gamma * goes_on * later[torch.arange(len(later)), following[:, i]]
        all_q = copy_value(
            before.critic, "central", i, 0, obs[steps.cur], F.one_hot(actions, u).float()
        )
        q = all_q[torch.arange(len(all_q)), actions[:, i]]
        pi = probs[steps.cur][:, i]
        advantage = (q - (pi * all_q).sum(-1)).detach()
        log_prob = pi[torch.arange(len(pi)), actions[:, i]].log()
        losses = losses + ((q - target) ** 2).mean() - (advantage * log_prob).mean()
    losses.backward()
    pairs = [*zip(learner.critic_params, before.critic_params, strict=True)]
    pairs += zip(learner.params, before.params, strict=True)
    assert max(theirs.grad.abs().max() for _, theirs in pairs) > 1e-3
    for mine, theirs in pairs:
        scale = max(1.0, float(theirs.grad.abs().max()))
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5 * scale)


def test_critics_are_averaged_over_neighbours_and_everything_is_counted():
    args = ma_ac_args()
    learner, log = maac_learner(args)
    start = copy.deepcopy(learner)
    learner.train(f2a2_episodes(args), 0, 0)
    for old, new in zip(start.critic_params, learner.critic_params, strict=True):
        # In the full graph everybody has the mean afterwards.
        assert torch.equal(new[0], new[2])
        assert not torch.equal(old[0], new[0])
    policy = sum(param[0].numel() for param in learner.params)
    critic = sum(param[0].numel() for param in learner.critic_params)
    assert learner.channel.sent("policies").numbers.tolist() == [2 * policy] * A
    assert learner.channel.sent("critic").numbers.tolist() == [2 * critic] * A
    assert log.stats["sent_parameters"][-1][0] == 2 * (policy + critic)
    alone, _ = maac_learner(ma_ac_args(topology="none"))
    alone.train(f2a2_episodes(args), 0, 0)
    assert alone.channel.sent("critic").numbers.sum() == 0
    assert not torch.equal(alone.critic_params[0][0], alone.critic_params[0][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mac": "basic_mac"}, "needs mac=actor_mac"),
        ({"replay": "episodes"}, "needs replay=latest .*, got replay=episodes"),
        ({"agent": "rnn", "share_params": True}, "share_params=False"),
        ({"mixer": "qmix"}, "mixer=null"),
        ({"td_lambda": 0.5}, "needs td_lambda=0.0 .*, got td_lambda=0.5"),
        ({"hard_target_interval": -1}, "hard_target_interval must be at least 0, got -1"),
        ({"topology": "star"}, "topology must be one of full, ring, none, got 'star'"),
        ({"topology_extra_edges": 20.0}, "set topology=ring instead of 'full'"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        maac_learner(ma_ac_args(**settings))


def test_learns_a_matrix_game(tmp_path):
    """Two agents, of four joint actions one pays: the policies find it."""
    payoff = "env_args.payoff=[[0, 0], [0, 1]]"
    run = train_run(
        tmp_path, "ma_ac", "matrix_game", "env_args.map_name=custom", payoff, "t_max=4000",
        "batch_size_run=20",
        "batch_size=20", "buffer_size=20", "updates_per_collection=1", "common_reward=True",
        "lr=0.01",
        "test_interval=100000", "test_nepisode=20", "critic_hidden_dim=32", "policy_hidden_dim=32",
    )  # fmt: skip
    assert run.last_test_return == 1.0
