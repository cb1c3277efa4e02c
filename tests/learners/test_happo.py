"""HAPPO: agents that learn one after the other, against loops over agents, episodes and steps."""

import copy

import pytest
import torch
from learner_fixtures import (
    LENGTHS,
    N_AGENTS,
    OBS,
    assert_models_continue,
    make_batch,
    make_learner,
)
from test_ppo import Slow, log_policy, logits_of, ppo_args, recorded
from transition_fixtures import assert_continues, train_run

from components.episode_buffer import EpisodeBatch
from modules.stacks import Members
from utils.errors import ConfigError, Diverged


def happo_args(alg="happo", **overrides):
    args = ppo_args(alg, **overrides)
    args.env_info = {"obs_sizes": (OBS,) * N_AGENTS, "action_sizes": (args.n_actions,) * N_AGENTS}
    return args


def transitions():
    return [(b, t) for b, length in enumerate(LENGTHS) for t in range(length - 1)]


class SlowHAPPO(Slow):
    """The same updates with loops: each agent's Adam by hand, on its part of the weights."""

    def log_ratios(self):
        """(b, t) -> [A], with gradient; 0 for an agent without a choice."""
        out = {}
        for b in range(len(LENGTHS)):
            logits = logits_of(self.learner.mac, self.batch, b)
            for t in range(LENGTHS[b] - 1):
                row = []
                for i in range(N_AGENTS):
                    if self.choices(b, t, i) < 2:
                        row.append(torch.zeros(()))
                        continue
                    log_pi = log_policy(logits[t][i], self.batch["avail_actions"][b, t, i])
                    row.append(
                        log_pi[self.batch["actions"][b, t, i, 0]] - self.batch["log_prob"][b, t, i]
                    )
                out[b, t] = row
        return out

    def entropy(self, i):
        found = []
        for b in range(len(LENGTHS)):
            logits = logits_of(self.learner.mac, self.batch, b)
            for t in range(LENGTHS[b] - 1):
                if self.choices(b, t, i) > 1:
                    log_pi = log_policy(logits[t][i], self.batch["avail_actions"][b, t, i])
                    found.append(-sum(x.exp() * x for x in log_pi if x > -torch.inf))
        return sum(found) / len(found)

    def surrogate(self, i, weights):
        """What agent i minimises without the bonus, given M: (b, t) -> float."""
        clip, losses, log_ratios = self.learner.args.ppo_clip, [], self.log_ratios()
        for b, t in transitions():
            if self.choices(b, t, i) < 2:
                continue
            a = weights[b, t] * self.advantages[b, t].expand(N_AGENTS)[i]
            ratio = log_ratios[b, t][i].exp()
            limit = 1 + clip if a > 0 else 1 - clip
            used_up = ratio > limit if a > 0 else ratio < limit
            losses.append(-(limit * a if used_up else ratio * a))
        return sum(losses) / len(losses)

    def update(self, order):
        """All agents' rounds; the losses of agent after agent."""
        args, agent = self.learner.args, self.learner.mac.agent
        weights, seen = dict.fromkeys(transitions(), 1.0), []
        moments = {name: [0.0, 0.0] for name, _ in agent.named_parameters()}
        for i in order:
            moments = {name: [0.0, 0.0] for name in moments}
            for step in range(1, args.ppo_epochs + 1):
                agent.zero_grad()
                loss = self.surrogate(i, weights)
                (loss - args.entropy_coef * self.entropy(i)).backward()
                seen.append(loss.item())
                with torch.no_grad():
                    for name, param in agent.named_parameters():
                        grad, m = param.grad[i], moments[name]
                        m[0] = 0.9 * m[0] + 0.1 * grad
                        m[1] = 0.999 * m[1] + 0.001 * grad**2
                        mean, square = m[0] / (1 - 0.9**step), m[1] / (1 - 0.999**step)
                        param[i] -= args.lr * mean / (square.sqrt() + args.adam_eps)
            log_ratios = self.log_ratios()
            for key in weights:
                weights[key] *= log_ratios[key][i].exp().item()
        return seen, weights


VARIANTS = [
    {},
    {"critic": "observation"},
    {"common_reward": False, "normalise_advantages": False},
    {"agent": "mlp", "obs_agent_id": True, "ppo_clip": 0.05},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_agents_learn_one_after_the_other(options):
    args = happo_args(ppo_epochs=2, lr=0.02, **options)
    learner, log = make_learner(args)
    batch = recorded(learner, make_batch(args))
    slow = SlowHAPPO(copy.deepcopy(learner), batch)
    learner.order = lambda: [2, 0, 1]
    losses, _ = slow.update([2, 0, 1])
    learner.train(batch, t_env=0, episode_num=5)
    assert log.stats["loss_policy"][0][0] == pytest.approx(sum(losses) / 6, rel=1e-3)
    for mine, theirs in zip(
        learner.mac.agent.parameters(), slow.learner.mac.agent.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=2e-4)
    # The same agents in another order become others.
    other, _ = make_learner(args)
    other.order = lambda: [0, 1, 2]
    other.train(batch, t_env=0, episode_num=5)
    assert any(
        not torch.allclose(mine, theirs, atol=2e-4)
        for mine, theirs in zip(
            learner.mac.agent.parameters(), other.mac.agent.parameters(), strict=True
        )
    )


def test_m_is_the_product_of_the_ratios_of_those_before():
    """Agent by agent, with policies that have moved."""
    args = happo_args(ppo_epochs=3, lr=0.05)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args))
    slow, seen = Slow(copy.deepcopy(learner), batch), []
    before = {name: param.clone() for name, param in learner.mac.agent.named_parameters()}
    updates = learner.agent_updates

    def watched(episodes, agent, own, t_env):
        moved = learner.log_change(episodes.of_agent(agent), own)
        seen.append((agent, own.advantages.clone(), moved))
        yield from updates(episodes, agent, own, t_env)

    learner.agent_updates = watched
    learner.train(batch, t_env=0, episode_num=5)
    assert sorted(agent for agent, _, _ in seen) == [0, 1, 2]
    # Those that come later are still as they were when the ones before them had learned.
    final = {name: param.clone() for name, param in learner.mac.agent.named_parameters()}
    slow_ratios = SlowHAPPO.log_ratios
    with torch.no_grad():
        for m, (agent, advantages, moved) in enumerate(seen):
            done = [other for other, _, _ in seen[:m]]
            for name, param in slow.learner.mac.agent.named_parameters():
                param.copy_(before[name])
                for j in done:
                    param[j] = final[name][j]
            ratios = slow_ratios(slow)
            for b, t in transitions():
                expected = slow.advantages[b, t].expand(N_AGENTS)[agent].clone()
                for j in done:
                    expected *= ratios[b, t][j].exp()
                assert advantages[b, t].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
                if slow.choices(b, t, agent) > 1:
                    assert moved[b, t].item() == pytest.approx(ratios[b, t][agent].item(), abs=1e-5)
    assert any(abs(x.item()) > 0.05 for x in seen[-1][1].flatten())


def test_a_step_of_one_agent_moves_nobody_else():
    """Not by one bit: neither weights nor what Adam remembers."""
    args = happo_args(ppo_epochs=2, weight_decay=0.1)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args))
    learner.train(batch, t_env=0, episode_num=5)
    episodes = learner.packed(batch)
    rollout = learner.rollout(episodes)
    before = copy.deepcopy(learner.mac.agent.state_dict())
    state = copy.deepcopy(learner.optimiser.state_dict()["state"])
    own = learner.rollout_of(1, rollout, torch.zeros_like(rollout.log_prob[..., :1]))
    for _ in learner.agent_updates(episodes, 1, own, 0):
        pass
    for name, weights in learner.mac.agent.state_dict().items():
        for i in range(N_AGENTS):
            assert torch.equal(weights[i], before[name][i]) == (i != 1), (name, i)
    after, per_agent = learner.optimiser.state_dict()["state"], len(learner.members.parameters(0))
    for k, entry in after.items():
        same = all(torch.equal(entry[key], state[k][key]) for key in entry)
        assert same == (k // per_agent != 1)


def test_members_are_the_stack_itself():
    """What acts and what is trained are the same memory, also after loading and restoring."""
    learner, _ = make_learner(happo_args())
    stacked = dict(learner.mac.agent.named_parameters())
    for i in range(N_AGENTS):
        for name, param in learner.members(i).named_parameters():
            assert param.data_ptr() == stacked[name][i].data_ptr()
    learner.mac.agent.load_state_dict(
        {name: x + 1 for name, x in learner.mac.agent.state_dict().items()}
    )
    for i in range(N_AGENTS):
        for name, param in learner.members(i).named_parameters():
            assert torch.equal(param.view(-1), stacked[name][i].view(-1))


def test_order():
    learner, _ = make_learner(happo_args())
    seen = {tuple(learner.order()) for _ in range(200)}
    assert len(seen) == 6
    learner, _ = make_learner(happo_args(agent_order="fixed"))
    assert {tuple(learner.order()) for _ in range(20)} == {(0, 1, 2)}


def test_minibatches_of_every_agent():
    args = happo_args(ppo_minibatches=2, ppo_epochs=2)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args))
    steps = []
    policy_step = learner.policy_step
    learner.policy_step = lambda part, before, t: (
        steps.append((part.agent, part.batch.batch_size)) or policy_step(part, before, t)
    )
    learner.train(batch, t_env=0, episode_num=5)
    assert sorted(steps) == sorted((i, n) for i in range(3) for n in (3, 2) for _ in range(2))


@pytest.mark.parametrize("perturbed", [(0,), (1, 2)], ids=str)
def test_acting_is_decentralised(perturbed):
    """What an agent does depends on its own observations and weights, not by one bit on others."""
    args = happo_args()
    learner, _ = make_learner(args)
    batch = make_batch(args)

    def policies(mac):
        mac.init_hidden(batch.batch_size)
        avail = batch["avail_actions"]
        return [mac.policy(mac.forward(batch, t), avail[:, t]).log_probs for t in range(4)]

    with torch.no_grad():
        before = policies(learner.mac)
        for param in learner.mac.agent.parameters():
            for j in perturbed:
                param[j] += torch.randn_like(param[j])
        for j in perturbed:
            batch.stored("obs")[:, :, j] += 3
            batch.stored("actions")[:, :, j] = 0
        batch.stored("state").mul_(-3)
        batch.changed("obs", "actions", "state")
        after = policies(learner.mac)
    for i in range(N_AGENTS):
        same = all(torch.equal(x[:, i], y[:, i]) for x, y in zip(before, after, strict=True))
        assert same == (i not in perturbed)


def test_a_restored_learner_continues_bit_for_bit():
    args = happo_args(ppo_minibatches=2, ppo_epochs=2)
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, recorded(learner, make_batch(args)))


def test_model_files(tmp_path):
    args = happo_args()
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    batch = recorded(learner, make_batch(args))
    assert_models_continue(learner, other, batch, tmp_path)


def test_a_reward_that_is_not_finite_stops_the_update():
    learner, _ = make_learner(happo_args())
    batch = recorded(learner, make_batch(learner.args))
    batch.stored("reward")[1, 2] = float("nan")
    with pytest.raises(Diverged, match=r"t_env=5.*not finite in rewards, advantages"):
        learner.train(batch, t_env=5, episode_num=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share_params": True}, r"share_params=False \(the agents learn one after the other\)"),
        ({"agent_order": "best"}, "agent_order must be one of random, fixed, got 'best'"),
        ({"continuous_actions": True}, "agent=mlp_policy"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(happo_args(**options))


# -- continuous actions, batch norm and agents of different size -----------------------------------


def continuous_args(alg="happo", **overrides):
    small = {"policy_hidden_dim": 16, "critic_hidden_dim": 16, "n_actions": 2}
    small |= {"batch_size": 64, "batch_size_run": 64}
    args = happo_args(alg, agent="mlp_policy", obs_last_action=False, **(small | overrides))
    args.continuous_actions = True
    args.env_info = {"obs_sizes": (OBS, OBS - 2, OBS), "action_sizes": (2, 1, 2)}
    return args


def one_step_episodes(args, learner):
    """A batch of 64 with room for one action, and what plays it anew."""
    scheme = {
        "state": {"vshape": args.state_shape},
        "obs": {"vshape": OBS, "group": "agents"},
        "actions": {"vshape": (2,), "group": "agents"},
        "avail_actions": {"vshape": (2,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (1,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        **learner.mac.recorded,
    }
    batch = EpisodeBatch(scheme, {"agents": N_AGENTS}, 64, 2)
    avail = torch.ones(64, 2, N_AGENTS, 2)
    avail[:, :, 1, 1] = 0
    seen = torch.arange(OBS) < torch.tensor(args.env_info["obs_sizes"]).unsqueeze(1)

    def play():
        batch.update({"obs": torch.randn(64, 2, N_AGENTS, OBS) * seen, "avail_actions": avail})
        learner.mac.init_hidden(64)
        actions = learner.mac.select_actions(batch, 0, 0)
        # The team's reward: the sum of all entries is best at 1.5, each of them near 0.3.
        reward = -(actions.sum((1, 2)) - 1.5).square() - (actions - 0.3).square().sum((1, 2))
        played = {"actions": actions, "reward": reward.unsqueeze(1)}
        played |= {"terminated": torch.ones(64, 1), **learner.mac.last_record}
        batch.update(played, ts=0)
        return reward.mean().item()

    return batch, play


def learns_continuous_actions(args, n_batches=30):
    learner, _ = make_learner(args)
    batch, play = one_step_episodes(args, learner)
    returns = []
    for _ in range(n_batches):
        returns.append(play())
        learner.train(batch, t_env=0, episode_num=0)
    assert returns[-1] > 0.4 * returns[0]
    best = learner.mac.select_actions(batch, 0, 0, test_mode=True)
    assert (best.sum((1, 2)) - 1.5).abs().mean() < 0.4
    return learner


def test_learns_continuous_actions():
    learner = learns_continuous_actions(continuous_args(lr=0.005, ppo_epochs=6))
    # The padding of agent 1 stays what it was.
    weight = learner.mac.agent.fc1.weight
    assert (weight[1, :, OBS - 2 :] == 0).all()
    # Running statistics are those of the stack: the members read them.
    for i in range(N_AGENTS):
        mean = learner.members(i).norm.running_mean
        assert torch.equal(mean[0], learner.mac.agent.norm.running_mean[i])
        assert mean.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("game", "least"), [("climbing", 6.0), ("two_step", 7.0)])
def test_learns_a_matrix_game(game, least, tmp_path):
    """At least the safe equilibrium; a uniformly random joint action pays -3.1 and 4.6."""
    run = train_run(
        tmp_path, "happo", "matrix_game", f"env_args.map_name={game}", "t_max=1600",
        "batch_size_run=32", "lr=0.003", "batch_size=32", "buffer_size=32", "ppo_epochs=5",
        "test_nepisode=4", "rnn_hidden_dim=16", "critic_hidden_dim=16",
    )  # fmt: skip
    assert run.last_test_return >= least


def test_a_weight_that_all_share_is_refused():
    shared, single = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    with pytest.raises(ConfigError, match="'weight' of the agent network is not one per agent"):
        Members(shared, single, groups=2)
