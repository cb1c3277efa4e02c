"""PPO (MAPPO, IPPO, MA-PPO) against plain loops over episodes, steps and agents."""

import copy

import pytest
import torch
from learner_fixtures import (
    LENGTHS,
    N_ACTIONS,
    N_AGENTS,
    OBS,
    TERMINATED,
    assert_models_continue,
    assert_same_gradients,
    make_args,
    make_batch,
    make_learner,
    step_outputs,
    weights_of,
)
from transition_fixtures import assert_continues, train_run

from components.episode_buffer import EpisodeBatch
from learners.base import clip_per_agent_
from learners.ppo_learner import Rollout
from utils.errors import ConfigError, Diverged

SMALL = {
    "critic_hidden_dim": 7,
    "ppo_epochs": 1,
    "batch_size": 5,
    "batch_size_run": 5,
    "adam_eps": 1e-3,
}


def ppo_args(alg="mappo", **overrides):
    return make_args(alg, **(SMALL | overrides))


def attention_args(continuous=False, **overrides):
    args = ppo_args(
        "ma_ppo",
        **({"policy_hidden_dim": 6, "critic_hidden_dim": 8, "attention_heads": 2} | overrides),
    )
    args.accumulated_episodes = args.batch_size
    args.env_info = {"obs_sizes": (OBS,) * N_AGENTS, "action_sizes": (args.n_actions,) * N_AGENTS}
    args.continuous_actions = continuous
    return args


def logits_of(mac, batch, b):
    """Logits [A, U] of every filled step of episode b."""
    return step_outputs(mac, batch[b : b + 1])


def log_policy(logits, avail):
    """Log probabilities [U] of one agent; -inf where unavailable."""
    options = avail.nonzero().squeeze(1)
    out = torch.full_like(logits, -torch.inf)
    out[options] = logits[options] - torch.logsumexp(logits[options], 0)
    return out


def recorded(learner, batch, noise=0.4):
    """The batch with `log_prob`, that of the policy up to some noise: ratios of which some are
    clipped.
    """
    scheme = batch.scheme | {"log_prob": {"vshape": (), "group": "agents"}}
    out = EpisodeBatch(
        {k: v for k, v in scheme.items() if k not in ("filled", "actions_onehot")},
        batch.groups, batch.batch_size, batch.max_seq_length, preprocess=batch.preprocess,
    )  # fmt: skip
    out.data.transition_data |= batch.data.transition_data
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for b in range(batch.batch_size):
            for t, logits in enumerate(logits_of(learner.mac, batch, b)[:-1]):
                for i in range(learner.args.n_agents):
                    log_pi = log_policy(logits[i], batch["avail_actions"][b, t, i])[
                        batch["actions"][b, t, i, 0]
                    ]
                    out.stored("log_prob")[b, t, i] = log_pi + noise * torch.randn(
                        (), generator=rng
                    )
    out.changed("log_prob")
    return out


def values_of(learner, batch, b):
    """Normalised values [K] of every filled step of episode b, step by step."""
    critic, n_steps = learner.critic, int(batch["filled"][b].sum())
    if learner.args.critic == "state":
        layers = (critic.fc1, critic.fc2, critic.fc3)
        return [_mlp(layers, batch["state"][b, t]) for t in range(n_steps)]
    learner.mac.init_hidden(batch.batch_size)
    h = torch.zeros(1, learner.args.critic_hidden_dim)
    h = h.expand(critic.n_agents, -1) if critic.groups == 1 else h.expand(critic.n_agents, 1, -1)
    out = []
    for t in range(n_steps):
        x = learner.mac._build_inputs(batch, t).view(batch.batch_size, critic.n_agents, -1)[b]
        x = critic.fc1(x if critic.groups == 1 else x.unsqueeze(1)).clamp(min=0)
        if critic.recurrent:
            x = h = critic.rnn(x, h)
        else:
            x = critic.fc2(x).clamp(min=0)
        out.append(critic.fc3(x).flatten())
    return out


def _mlp(layers, x):
    for layer in layers[:-1]:
        x = layer(x).clamp(min=0)
    return layers[-1](x)


class Slow:
    """What is fixed before the updates, and the losses of one update: dicts by (b, t)."""

    def __init__(self, learner, batch):
        self.learner, self.batch, args = learner, batch, learner.args
        self.old, self.advantages, self.returns = {}, {}, {}
        with torch.no_grad():
            for b in range(batch.batch_size):
                values = values_of(learner, batch, b)
                following = torch.zeros_like(values[0])
                for t in reversed(range(len(values) - 1)):
                    goes_on = 0.0 if batch["terminated"][b, t, 0] else 1.0
                    last = t == len(values) - 2
                    delta = batch["reward"][b, t] + args.gamma * goes_on * values[t + 1] - values[t]
                    following = delta if last else delta + args.gamma * args.gae_lambda * following
                    self.old[b, t], self.advantages[b, t] = values[t], following
                    self.returns[b, t] = following + values[t]
        if args.value_norm:
            stacked = torch.stack(list(self.returns.values())).double()
            self.scale = (stacked.mean(0), stacked.var(0, correction=0).clamp(min=0.01).sqrt())
            mean, std = self.scale
            self.returns = {k: ((v - mean) / std).float() for k, v in self.returns.items()}
        if args.normalise_advantages:
            self.advantages = self.normalised()

    def choices(self, b, t, i):
        return int(self.batch["avail_actions"][b, t, i].sum())

    def normalised(self):
        groups = (
            [range(N_AGENTS)] if self.learner.args.share_params else [[i] for i in range(N_AGENTS)]
        )
        wide = {k: v.expand(N_AGENTS).clone() for k, v in self.advantages.items()}
        out = {k: v.clone() for k, v in wide.items()}
        for agents in groups:
            seen = torch.stack(
                [v[i] for (b, t), v in wide.items() for i in agents if self.choices(b, t, i) > 1]
            )
            for v in out.values():
                for i in agents:
                    v[i] = (v[i] - seen.mean()) / (seen.std(correction=0) + 1e-8)
        return out

    def losses(self):
        """Policy losses and entropies, a list of one per group of weights, and the value loss."""
        learner, batch, args = self.learner, self.batch, self.learner.args
        policy, entropy, count = ([0.0] * N_AGENTS for _ in range(3))
        value, n_values = 0.0, 0
        for b in range(batch.batch_size):
            logits, values = logits_of(learner.mac, batch, b), values_of(learner, batch, b)
            for t in range(len(values) - 1):
                for i in range(N_AGENTS):
                    if self.choices(b, t, i) < 2:
                        continue
                    log_pi = log_policy(logits[t][i], batch["avail_actions"][b, t, i])
                    ratio = (
                        log_pi[batch["actions"][b, t, i, 0]] - batch["log_prob"][b, t, i]
                    ).exp()
                    a = self.advantages[b, t].expand(N_AGENTS)[i]
                    # An advantage that has been made use of far enough has no gradient left.
                    limit = 1 + args.ppo_clip if a > 0 else 1 - args.ppo_clip
                    used_up = ratio > limit if a > 0 else ratio < limit
                    policy[i] = policy[i] - (limit * a if used_up else ratio * a)
                    entropy[i] = entropy[i] - sum(x.exp() * x for x in log_pi if x > -torch.inf)
                    count[i] += 1
                for k, v in enumerate(values[t]):
                    goal, old = self.returns[b, t][k], self.old[b, t][k]
                    options = [_huber(v - goal, args.huber_delta)]
                    if args.value_clip:
                        near = old + (v - old).clamp(-args.ppo_clip, args.ppo_clip)
                        options.append(_huber(near - goal, args.huber_delta))
                    value = value + max(options)
                    n_values += 1
        if args.share_params:
            policy, entropy, count = [sum(policy)], [sum(entropy)], [sum(count)]
        means = [[x / n for x, n in zip(xs, count, strict=True)] for xs in (policy, entropy)]
        return *means, value / n_values


def _huber(error, delta):
    return 0.5 * error**2 if abs(error) <= delta else delta * (abs(error) - 0.5 * delta)


VARIANTS = [
    ("mappo", {}),
    ("ippo", {}),
    ("ippo", {"critic_recurrent": False, "agent": "mlp"}),
    ("ippo", {"share_params": False}),
    ("mappo", {"share_params": False, "common_reward": False}),
    ("mappo", {"common_reward": False, "value_norm": False}),
    ("mappo", {"value_clip": False, "huber_delta": 0.5}),
    ("ippo", {"normalise_advantages": False, "ppo_clip": 0.05, "gae_lambda": 0.5}),
]


@pytest.mark.parametrize(("alg", "options"), VARIANTS, ids=str)
def test_losses_gradients_and_updates(alg, options):
    """Two rounds over a batch: the second one with the log probabilities, advantages and values of
    before the first.
    """
    args = ppo_args(alg, ppo_epochs=2, lr=0.02, **options)
    learner, log = make_learner(args)
    batch = recorded(learner, make_batch(args))
    twin = copy.deepcopy(learner)
    slow, seen = Slow(twin, batch), []
    for _ in range(2):
        policy, entropy, value = slow.losses()
        twin.optimiser.zero_grad()
        twin.critic_optimiser.zero_grad()
        (sum(policy) - args.entropy_coef * sum(entropy) + value).backward()
        if not args.share_params:
            clip_per_agent_(twin.params, args.grad_norm_clip, N_AGENTS)
        twin.optimiser.step()
        twin.critic_optimiser.step()
        seen.append(
            [sum(policy).item() / len(policy), sum(entropy).item() / len(entropy), value.item()]
        )
    learner.train(batch, t_env=0, episode_num=5)
    for k, name in enumerate(("loss_policy", "policy_entropy", "loss_value")):
        assert log.stats[name][0][0] == pytest.approx((seen[0][k] + seen[1][k]) / 2, rel=1e-4), name
    assert_same_gradients(learner, twin)
    for mine, theirs in zip(weights_of(learner), weights_of(twin), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    if args.value_norm:
        mean, var = learner.value_norm.running_mean_var()
        assert torch.allclose(mean, slow.scale[0])
        assert torch.allclose(var.sqrt(), slow.scale[1])


def test_values_are_in_units_of_the_rewards():
    """Advantages of the second batch are measured from values scaled by the statistics of the
    first.
    """
    args = ppo_args(normalise_advantages=False, gae_lambda=0.0)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args))
    learner.value_norm.update(torch.tensor([[40.0], [60.0]]))
    with torch.no_grad():
        rollout = learner.rollout(learner.packed(batch))
    b, t = 1, 2
    now, after = (50 + 10 * values_of(learner, batch, b)[s].item() for s in (t, t + 1))
    assert rollout.advantages[b, t].item() == pytest.approx(
        batch["reward"][b, t].item() + args.gamma * after - now, rel=1e-4
    )


def test_an_episode_that_was_cut_is_bootstrapped_and_one_that_ended_is_not():
    args = ppo_args(normalise_advantages=False, value_norm=False)
    learner, _ = make_learner(args)
    for param in learner.critic.parameters():
        param.data.zero_()
    learner.critic.fc3.bias.data.fill_(7.0)
    batch = recorded(learner, make_batch(args))
    rollout = learner.rollout(learner.packed(batch))
    for b, (length, ended) in enumerate(zip(LENGTHS, TERMINATED, strict=True)):
        reward = batch["reward"][b, length - 2].item()
        expected = reward - 7 if ended else reward + args.gamma * 7 - 7
        assert rollout.advantages[b, length - 2].item() == pytest.approx(expected, abs=1e-4)


def test_clipped_objective_by_hand():
    """Each agent with a range of its own."""
    learner, _ = make_learner(ppo_args())
    learner.clip_range = lambda: torch.tensor([0.1, 0.5, 2.0])
    ratio = torch.tensor([[1.4, 1.4, 1.4], [0.4, 0.4, 0.4]])
    losses = learner.surrogate_losses(ratio.log(), torch.tensor([[2.0], [-1.0]]))
    assert torch.allclose(losses, torch.tensor([[-2.2, -2.8, -2.8], [0.9, 0.5, 0.4]]))
    losses = learner.surrogate_losses(ratio.log(), torch.tensor([[-2.0], [1.0]]))
    assert torch.allclose(losses, torch.tensor([[2.8, 2.8, 2.8], [-0.4, -0.4, -0.4]]))


def test_actions_that_were_all_but_impossible_do_not_make_the_loss_infinite():
    learner, log = make_learner(ppo_args())
    batch = recorded(learner, make_batch(learner.args))
    batch.stored("log_prob")[:, :2] = -1000.0
    learner.train(batch, t_env=0, episode_num=5)
    assert all(values[0][0] < 1e10 for values in log.stats.values())
    assert log.stats["loss_policy"][0][0] > 1e6


def test_an_agent_without_a_choice_counts_for_nothing():
    args = ppo_args(share_params=False, entropy_coef=0.1)
    learner, _ = make_learner(args)
    batch = make_batch(args)
    batch.stored("avail_actions")[:, :, 1] = 0
    batch.stored("avail_actions")[:, :, 1, 2] = 1
    batch.stored("actions")[:, :, 1] = 2
    batch.changed("avail_actions", "actions")
    learner.train(recorded(learner, batch), t_env=0, episode_num=5)
    grads = [param.grad for param in learner.mac.parameters()]
    assert all(bool((grad[1] == 0).all()) for grad in grads)
    assert all(bool((grad[0] != 0).any()) for grad in grads)


def test_minibatches_are_all_episodes_once():
    args = ppo_args(ppo_minibatches=2)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args))
    whole = learner.packed(batch)
    rollout = learner.rollout(whole)
    parts = list(learner.minibatches(whole, rollout))
    assert [rows.batch.batch_size for rows, _ in parts] == [3, 2]
    seen = []
    for rows, part in parts:
        assert isinstance(part, Rollout)
        for e in range(rows.batch.batch_size):
            b = next(b for b in range(5) if torch.equal(batch["obs"][b], rows.batch["obs"][e]))
            seen.append(b)
            for name in Rollout._fields:
                assert torch.equal(getattr(part, name)[e], getattr(rollout, name)[b])
    assert sorted(seen) == list(range(5))
    assert sum(rows.steps.n_transitions for rows, _ in parts) == whole.steps.n_transitions
    learner.train(batch, t_env=0, episode_num=5)


def test_a_reward_that_is_not_finite_stops_the_update():
    learner, _ = make_learner(ppo_args())
    batch = recorded(learner, make_batch(learner.args))
    batch.stored("reward")[1, 2] = float("nan")
    before = weights_of(learner)
    with pytest.raises(Diverged, match=r"t_env=5.*not finite in rewards, advantages"):
        learner.train(batch, t_env=5, episode_num=1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(learner), strict=True))


def test_model_files(tmp_path):
    args = ppo_args()
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    batch = recorded(learner, make_batch(args))
    assert_models_continue(learner, other, batch, tmp_path)
    names = {"agent", "critic", "value_norm", "opt", "critic_opt"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.th" for name in names}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replay": "episodes"}, "replay=latest"),
        ({"updates_per_collection": 2}, "updates_per_collection=1"),
        ({"batch_size": 6}, "batch_size is 6, but only 5 new ones"),
        (
            {"batch_size": 5, "batch_size_run": 3, "accumulated_episodes": 5},
            "batch_size is 5, but only 3 new ones",
        ),
        ({"critic": "attention"}, "as state and observation do.*got 'attention'"),
        ({"critic": "joint"}, "values what is seen.*got 'joint'"),
        ({"mac": "basic_mac"}, "mac=actor_mac"),
        ({"mixer": "qmix"}, "mixer=null"),
        ({"continuous_actions": True}, "choose ma_ppo"),
        ({"ppo_clip": 0.0}, "ppo_clip must be greater than 0, got 0.0"),
        ({"ppo_epochs": 0}, "ppo_epochs must be at least 1, got 0"),
        ({"gae_lambda": 1.5}, "gae_lambda must be between 0 and 1, got 1.5"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(ppo_args(**options))


# -- MA-PPO ----------------------------------------------------------------------------------------


def test_attention_baselines_and_predictions():
    """Baselines are the policies' means of the critic's values; at an episode's end the actions are
    drawn.
    """
    learner, _ = make_learner(attention_args())
    batch = recorded(learner, make_batch(learner.args))
    learner.mac.agent.eval()
    rows = learner.packed(batch)
    steps = rows.steps
    torch.manual_seed(7)
    fast = learner.baselines(rows)
    torch.manual_seed(7)
    actions = learner.policy(rows, at_ends=True).sample()
    where = {}  # (episode, step) -> row
    for n, flat in enumerate(
        steps.pack(torch.arange(5 * batch.max_seq_length).view(5, -1)).tolist()
    ):
        where[divmod(flat, batch.max_seq_length)] = n
    for (b, t), n in where.items():
        if t < LENGTHS[b] - 1:
            actions[n] = batch["actions"][b, t, :, 0]
    all_q = learner.critic(steps.pack(batch["obs"]), actions).all_q
    for b in range(5):
        for t, logits in enumerate(logits_of(learner.mac, batch, b)):
            for i in range(N_AGENTS):
                avail = batch["avail_actions"][b, t, i]
                if TERMINATED[b] and t == LENGTHS[b] - 1:
                    continue  # nothing is available, and the value is of no use
                log_pi, n = log_policy(logits[i], avail), where[b, t]
                expected = sum(
                    log_pi[u].exp() * all_q[n, i, u] for u in range(N_ACTIONS) if avail[u]
                )
                assert fast[n, i].item() == pytest.approx(expected.item(), rel=1e-4)
    predictions = learner.predictions(rows)
    taken = torch.stack([actions[n] for n in steps.rows_cur.tolist()])
    all_q = learner.critic(steps.pack(batch["obs"])[steps.cur], taken).all_q
    for m in range(steps.n_transitions):
        for i in range(N_AGENTS):
            assert predictions[m, i] == all_q[m, i, taken[m, i]]


def test_what_stands_in_the_actions_behind_the_last_one_does_not_matter():
    learner, _ = make_learner(attention_args())
    batch = recorded(learner, make_batch(learner.args))
    seen = []
    for action in (0, 3):
        for b, length in enumerate(LENGTHS):
            batch.stored("actions")[b, length - 1 :] = action
        batch.changed("actions")
        torch.manual_seed(7)
        twin = copy.deepcopy(learner)
        seen.append(twin.rollout(twin.packed(batch)))
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first, second)


def test_policies_are_those_that_acted_whatever_the_batchs_statistics():
    """Batch norm goes by its running statistics until the updates are over; then these move towards
    the batch's.
    """
    learner, log = make_learner(attention_args())
    norm = learner.mac.agent.norm
    norm.running_mean.fill_(1.5)
    norm.running_var.fill_(4.0)
    batch = recorded(learner, make_batch(learner.args), noise=0.0)
    learner.train(batch, t_env=0, episode_num=5)
    assert log.stats["policy_kl"][0][0] == pytest.approx(0.0, abs=1e-6)
    assert log.stats["clip_fraction"][0][0] == 0.0
    for i in range(N_AGENTS):
        seen = torch.cat([batch["obs"][b, : LENGTHS[b], i] for b in range(5)])
        assert torch.allclose(norm.running_mean[i], 0.9 * 1.5 + 0.1 * seen.mean(0), atol=1e-5)
        assert torch.allclose(norm.running_var[i], 0.9 * 4.0 + 0.1 * seen.var(0), atol=1e-5)


def test_a_restored_learner_continues_bit_for_bit():
    args = attention_args(ppo_minibatches=2)
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, recorded(learner, make_batch(args)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"critic": "state"}, "critic must be one of attention, got 'state'"),
        ({"mc_actions": 0}, "mc_actions must be at least 1, got 0"),
        ({"attention_heads": 3}, r"attention_heads \(3\) must divide critic_hidden_dim \(8\)"),
    ],
)
def test_settings_that_do_not_fit_ma_ppo(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(attention_args(**options))


# -- learning --------------------------------------------------------------------------------------


def test_learns_continuous_actions():
    """Every entry is best at 0.5: one-step episodes, collected by the policies."""
    args = attention_args(
        continuous=True, n_actions=2, lr=0.005, ppo_epochs=8, policy_hidden_dim=16,
        critic_hidden_dim=16,
        batch_size=64, batch_size_run=64,
    )  # fmt: skip
    learner, _ = make_learner(args)
    scheme = {
        "state": {"vshape": args.state_shape},
        "obs": {"vshape": OBS, "group": "agents"},
        "actions": {"vshape": (2,), "group": "agents"},
        "avail_actions": {"vshape": (2,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (N_AGENTS,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        **learner.mac.recorded,
    }
    batch = EpisodeBatch(scheme, {"agents": N_AGENTS}, 64, 2)
    returns = []
    for _ in range(25):
        batch.update(
            {
                "obs": torch.randn(64, 2, N_AGENTS, OBS),
                "avail_actions": torch.ones(64, 2, N_AGENTS, 2),
            }
        )
        learner.mac.init_hidden(64)
        actions = learner.mac.select_actions(batch, 0, 0)
        reward = -(actions - 0.5).square().sum(-1)
        returns.append(reward.mean().item())
        batch.update(
            {
                "actions": actions,
                "reward": reward,
                "terminated": torch.ones(64, 1),
                **learner.mac.last_record,
            },
            ts=0,
        )
        learner.train(batch, t_env=0, episode_num=0)
    assert returns[-1] > 0.5 * returns[0]
    best = learner.mac.select_actions(batch, 0, 0, test_mode=True)
    assert (best - 0.5).abs().mean() < 0.2


@pytest.mark.parametrize(
    ("algorithm", "game", "least", "settings"),
    [
        ("mappo", "climbing", 6.0, ["rnn_hidden_dim=16", "critic_hidden_dim=16"]),
        ("ippo", "two_step", 7.0, ["rnn_hidden_dim=16", "critic_hidden_dim=16"]),
        (
            "ma_ppo",
            "climbing",
            6.0,
            ["policy_hidden_dim=16", "critic_hidden_dim=16", "accumulated_episodes=0"],
        ),
    ],
)
def test_learns_a_matrix_game(algorithm, game, least, settings, tmp_path):
    """The safe equilibrium at least; a uniformly random joint action pays -3.1 in the one, 4.6 in
    the other.
    """
    run = train_run(
        tmp_path, algorithm, "matrix_game", f"env_args.map_name={game}", "t_max=1600",
        "batch_size_run=32", "lr=0.003",
        "batch_size=32", "buffer_size=32", "ppo_epochs=5", "test_nepisode=4", *settings,
    )  # fmt: skip
    assert run.last_test_return >= least
