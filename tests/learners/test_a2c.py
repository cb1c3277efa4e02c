"""A2C (IA2C, MAA2C, VDAC) against plain loops over episodes, steps and agents."""

import copy

import pytest
import torch
from learner_fixtures import (
    N_AGENTS,
    assert_same_gradients,
    make_args,
    make_batch,
    make_learner,
    weights_of,
)
from test_ppo import log_policy, logits_of, recorded
from transition_fixtures import assert_continues, train_run

from learners.base import clip_per_agent_
from utils.errors import ConfigError


def a2c_args(alg, **overrides):
    small = {"critic_hidden_dim": 7, "batch_size": 5, "batch_size_run": 5, "adam_eps": 1e-3}
    return make_args(alg, **{**small, **overrides})


def critic_values(critic, learner, batch, b):
    """Values [K] of every filled step of episode b, by a batch of that episode alone."""
    episode = batch[b : b + 1]
    steps = episode.steps()
    inputs = learner.mac.sequence_inputs(episode, steps)
    if learner.args.critic != "mixed":
        return list(critic(steps.pack(episode["state"]), inputs, steps))
    state, local = steps.pack(episode["state"]), critic.local(None, inputs, steps)
    if learner.args.critic_mixer == "vdn":
        return [sum(row).view(1) for row in local]
    return [critic.mixer(local[t : t + 1], state[t : t + 1])[0] for t in range(len(local))]


class Slow:
    """Returns, advantages and losses, step by step."""

    def __init__(self, learner, batch):
        self.learner, self.batch, args = learner, batch, learner.args
        rewards = {}
        for b in range(batch.batch_size):
            for t in range(int(batch["filled"][b].sum()) - 1):
                rewards[b, t] = batch["reward"][b, t].double()
        if args.standardise_rewards:
            seen = torch.stack(list(rewards.values()))
            mean, std = seen.mean(0), seen.var(0, correction=0).sqrt()
            rewards = {key: (reward - mean) / std for key, reward in rewards.items()}
        self.returns = {}
        with torch.no_grad():
            for b in range(batch.batch_size):
                values = critic_values(learner.target_critic, learner, batch, b)
                last = len(values) - 2
                ended = bool(batch["terminated"][b, last, 0])
                for t in range(last + 1):
                    self.returns[b, t] = self.one_return(rewards, values, b, t, last, ended)

    def one_return(self, rewards, values, b, t, last, ended):
        args = self.learner.args

        def after(n):
            """n rewards and a bootstrap."""
            n = min(n, last + 1 - t)
            total = sum(args.gamma**k * rewards[b, t + k] for k in range(n))
            terminal = ended and t + n > last
            return total + (0.0 if terminal else args.gamma**n * values[t + n])

        if args.a2c_steps:
            return after(args.a2c_steps)
        n, lam = last + 1 - t, args.gae_lambda
        mixed = sum((1 - lam) * lam ** (k - 1) * after(k) for k in range(1, n))
        return mixed + lam ** (n - 1) * after(n)

    def losses(self):
        """Policy losses and entropies, one per group of weights, and the value loss."""
        learner, batch, args = self.learner, self.batch, self.learner.args
        policy, entropy, count = ([0.0] * N_AGENTS for _ in range(3))
        squares = []
        for b in range(batch.batch_size):
            logits = logits_of(learner.mac, batch, b)
            values = critic_values(learner.critic, learner, batch, b)
            for t in range(len(values) - 1):
                errors = self.returns[b, t] - values[t]
                squares += [0.5 * error**2 for error in errors]
                advantages = errors.detach().expand(N_AGENTS)
                for i in range(N_AGENTS):
                    avail = batch["avail_actions"][b, t, i]
                    if int(avail.sum()) < 2:
                        continue
                    log_pi = log_policy(logits[t][i], avail)
                    policy[i] = policy[i] - advantages[i] * log_pi[batch["actions"][b, t, i, 0]]
                    entropy[i] = entropy[i] - sum(x.exp() * x for x in log_pi if x > -torch.inf)
                    count[i] += 1
        if args.share_params:
            policy, entropy, count = [sum(policy)], [sum(entropy)], [sum(count)]
        means = [[x / n for x, n in zip(xs, count, strict=True)] for xs in (policy, entropy)]
        return *means, sum(squares) / len(squares)


VARIANTS = [
    ("ia2c", {}),
    ("maa2c", {}),
    ("maa2c", {"a2c_steps": 1, "standardise_rewards": False, "target_tau": 1.0}),
    ("maa2c", {"a2c_steps": 2, "critic_recurrent": True, "agent": "mlp"}),
    ("ia2c", {"share_params": False, "common_reward": False}),
    ("ia2c", {"critic_layer_norm": True, "a2c_steps": 0, "gae_lambda": 0.5}),
    ("vdac_sum", {}),
    ("vdac_mix", {}),
    ("vdac_mix", {"share_params": False, "standardise_rewards": True}),
]


@pytest.mark.parametrize(("alg", "options"), VARIANTS, ids=str)
def test_losses_gradients_and_updates(alg, options):
    args = a2c_args(alg, lr=0.02, **options)
    learner, log = make_learner(args)
    batch = recorded(learner, make_batch(args))
    twin = copy.deepcopy(learner)
    policy, entropy, value = Slow(twin, batch).losses()
    (sum(policy) - args.entropy_coef * sum(entropy) + value).backward()
    if not args.share_params:
        clip_per_agent_(twin.params, args.grad_norm_clip, N_AGENTS)
    before = [param.clone() for param in twin.target_critic.parameters()]
    learner.train(batch, t_env=0, episode_num=5)
    assert log.stats["loss_policy"][0][0] == pytest.approx(sum(policy).item() / len(policy), 1e-4)
    assert log.stats["loss_value"][0][0] == pytest.approx(value.item(), rel=1e-4)
    assert "policy_kl" not in log.stats
    assert_same_gradients(learner, twin)
    twin.optimiser.step()
    twin.critic_optimiser.step()
    for mine, theirs in zip(weights_of(learner), weights_of(twin), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    tau = args.target_tau
    moved = zip(
        learner.target_critic.parameters(), before, learner.critic.parameters(), strict=True
    )
    for target, old, new in moved:
        assert torch.allclose(target, (1 - tau) * old + tau * new, atol=1e-6)


def test_rewards_are_standardised_by_all_that_were_seen():
    args = a2c_args("maa2c")
    learner, _ = make_learner(args)
    seen = []
    for seed in (0, 1):
        batch = recorded(learner, make_batch(args, seed=seed))
        learner.train(batch, t_env=0, episode_num=5)
        seen += [
            batch["reward"][b, t].item()
            for b in range(batch.batch_size)
            for t in range(int(batch["filled"][b].sum()) - 1)
        ]
    mean = sum(seen) / len(seen)
    variance = sum((x - mean) ** 2 for x in seen) / len(seen)
    assert learner.reward_moments.mean.item() == pytest.approx(mean, abs=1e-3)
    assert learner.reward_moments.var.item() == pytest.approx(variance, rel=1e-3)


def test_sums_of_values_share_errors_equally_and_mixed_ones_rise_with_every_value():
    for alg in ("vdac_sum", "vdac_mix"):
        args = a2c_args(alg)
        mixer = make_learner(args)[0].critic.mixer
        values = torch.randn(20, N_AGENTS, requires_grad=True)
        total = mixer(values, torch.randn(20, args.state_shape)).sum()
        (slopes,) = torch.autograd.grad(total, values)
        assert (slopes >= 0).all()
        assert bool((slopes == 1).all()) == (alg == "vdac_sum")


def test_a_critic_of_what_an_agent_sees_reads_nothing_else():
    """IA2C's values do not depend on other agents' inputs, nor on the state."""
    learner, _ = make_learner(a2c_args("ia2c"))
    batch = make_batch(learner.args)
    steps = batch.steps()
    inputs, state = learner.mac.sequence_inputs(batch, steps), steps.pack(batch["state"])
    before = learner.critic(state, inputs, steps)
    inputs[:, 1] += 5.0
    after = learner.critic(-state, inputs, steps)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("alg", ["ia2c", "maa2c", "vdac_mix"])
def test_a_restored_learner_continues_bit_for_bit(alg):
    args = a2c_args(alg)
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, recorded(learner, make_batch(args)))


@pytest.mark.parametrize(
    ("alg", "options", "said"),
    [
        ("ia2c", {"ppo_epochs": 2}, "ppo_epochs must be 1 .a policy gradient is that.*, got 2"),
        ("maa2c", {"ppo_minibatches": 2}, "ppo_minibatches must be 1"),
        ("maa2c", {"a2c_steps": -1}, "a2c_steps must be at least 0, got -1"),
        ("vdac_sum", {"common_reward": False}, "set common_reward=True"),
        ("vdac_sum", {"critic_mixer": "qplex"}, "critic_mixer must be one of vdn, qmix"),
        ("maa2c", {"batch_size": 6}, "only 5 new ones"),
    ],
)
def test_settings_that_do_not_fit(alg, options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(a2c_args(alg, **options))


@pytest.mark.parametrize("alg", ["ia2c", "maa2c", "vdac_sum", "vdac_mix"])
def test_learns_a_matrix_game(alg, tmp_path):
    """7 is the value of the safe branch; a uniformly random joint action pays 4.6."""
    run = train_run(
        tmp_path, alg, "matrix_game", "env_args.map_name=two_step", "t_max=4000", "lr=0.005",
        "rnn_hidden_dim=16", "critic_hidden_dim=16", "batch_size_run=16", "batch_size=16",
        "buffer_size=16", "test_nepisode=4",
    )  # fmt: skip
    assert run.last_test_return >= 7.0
