"""MAAC's update against a loop over agents and heads, its settings, its files and whole runs."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from maac_fixtures import critic_value, maac_args, maac_learner, policy_outputs, transitions
from run_fixtures import StopAt, finish, start_run
from torch.distributions import Normal, TanhTransform, TransformedDistribution

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.actor_critic import LoopedMAAC

from components.transitions import Transitions
from utils.errors import ConfigError, Diverged
from utils.observers import Interrupted

SEED = 7


def drawn_actions(learner, batch):
    """The actions that an update draws after `torch.manual_seed(SEED)`: of the target policies, of
    the policies.
    """
    learner = copy.deepcopy(learner)
    torch.manual_seed(SEED)
    next_policy = learner.distribution(
        learner.target_policy.logits(batch["next_obs"]), batch["next_avail_actions"]
    )
    next_actions = next_policy.sample()
    policy = learner.distribution(learner.policy.logits(batch["obs"]), batch["avail_actions"])
    return next_actions, policy.sample()


def parts_of_agent(learner, i):
    """Name -> the part of a policy's parameter that belongs to agent i, by the names of
    `LoopedMAAC`'s networks.
    """
    return {n: p[i] for n, p in learner.policy.named_parameters()}


def assert_close(mine, theirs, name):
    scale = max(float(theirs.abs().max()), 1e-6)
    assert torch.allclose(mine, theirs, rtol=1e-3, atol=2e-5 * scale), name


def compare(learner, looped, pick):
    """`pick(param)` of all parameters of both, the padding of ours must be zero."""
    args = learner.args
    o_max, u_max = args.obs_shape, args.n_actions
    for i, (o, u) in enumerate(zip(*args.env_info.values(), strict=True)):
        names = {"1": ("fc1", slice(0, o)), "3": ("fc2", slice(None)), "5": ("fc3", slice(None))}
        for key, (name, columns) in names.items():
            for kind in ("weight", "bias"):
                ours = pick(getattr(getattr(learner.policy, name), kind))[i]
                theirs = pick(getattr(looped.policies[i].get_submodule(key), kind))
                ours = ours[:u] if name == "fc3" else ours
                assert_close(
                    ours[:, columns] if kind == "weight" else ours,
                    theirs,
                    f"{name}.{kind} of agent {i}",
                )
        critic, reference = learner.critic, looped.critic
        used = [*range(o), *range(o_max, o_max + u)]
        assert_close(
            pick(critic.encoder.weight)[i][:, used],
            pick(reference.encoders[i][1].weight),
            "encoder",
        )
        assert_close(
            pick(critic.encoder.bias)[i], pick(reference.encoders[i][1].bias), "encoder bias"
        )
        assert_close(
            pick(critic.state_encoder.weight)[i][:, :o],
            pick(reference.state_encoders[i][1].weight),
            "state",
        )
        for layer, single, rows in (
            (critic.head1, reference.last[i][0], None),
            (critic.head2, reference.last[i][2], u),
        ):
            assert_close(pick(layer.weight)[i][:rows], pick(single.weight), "last network")
            assert_close(pick(layer.bias)[i][:rows], pick(single.bias), "last network's bias")
        unused = [*range(o, o_max), *range(o_max + u, o_max + u_max)]
        assert not pick(critic.encoder.weight)[i][:, unused].any()
    for name in ("query", "key", "value"):
        single = {
            "query": looped.critic.queries,
            "key": looped.critic.keys,
            "value": looped.critic.values,
        }[name]
        weights = torch.cat(
            [pick(head[0].weight if name == "value" else head.weight) for head in single]
        )
        assert_close(pick(getattr(learner.critic, name).weight), weights, name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"standardise_rewards": False},
        {"common_reward": True},
        {"critic_grad_norm_clip": 0.001, "policy_grad_norm_clip": 0.003},
        {"alpha_entropy": 0.5, "gamma": 0.5, "critic_weight_decay": 0.0},
        {"attention_logit_penalty": 1.0, "policy_logit_penalty": 1.0},
    ],
    ids=str,
)
def test_an_update_equals_the_loop_over_agents(settings):
    """Losses, clipped gradients, new weights and new target weights, for agents of different
    size.
    """
    args = maac_args(
        **{"critic_grad_norm_clip": 1e9, "policy_grad_norm_clip": 1e9, "target_tau": 0.1} | settings
    )
    learner, log = maac_learner(args)
    batch = transitions(args)
    looped = LoopedMAAC(learner)
    actions = drawn_actions(learner, batch)
    torch.manual_seed(SEED)
    learner.train(batch, 0, 0)
    # All of an agent's own actions count in the mean of its squared outputs there, unavailable ones
    # too, as here.
    critic_losses, policy_losses = looped.train(batch, *actions)
    assert log.lists["loss_value_by_agent"][0][0] == pytest.approx(
        [float(x) for x in critic_losses], rel=1e-4
    )
    assert log.lists["loss_policy_by_agent"][0][0] == pytest.approx(
        [float(x) for x in policy_losses], rel=1e-3, abs=1e-6
    )
    compare(learner, looped, lambda param: param.grad)
    compare(learner, looped, lambda param: param.detach())
    theirs = SimpleNamespace(policies=looped.target_policies, critic=looped.target_critic)
    ours = SimpleNamespace(args=args, policy=learner.target_policy, critic=learner.target_critic)
    compare(ours, theirs, lambda param: param.detach())


def test_gradient_norms_and_clipping():
    """The critic's gradient ends at A times its norm, every policy's at its own."""
    args = maac_args(critic_grad_norm_clip=0.01, policy_grad_norm_clip=0.002)
    learner, log = maac_learner(args)
    learner.train(transitions(args), 0, 0)
    total = torch.cat([param.grad.flatten() for param in learner.critic_params]).norm()
    assert float(total) == pytest.approx(0.03, rel=1e-3)
    for i in range(3):
        norm = torch.cat([param.grad[i].flatten() for param in learner.params]).norm()
        assert float(norm) == pytest.approx(0.002, rel=1e-3)
    assert log.stats["critic_grad_norm"][0][0] > 0.03
    assert min(log.lists["grad_norm_by_agent"][0][0]) > 0.002


def continuous_policy(outputs):
    mean, log_std = outputs.chunk(2, -1)
    normal = Normal(5 * (mean.double() / 5).tanh(), log_std.double().clamp(-5, 2).exp())
    return TransformedDistribution(normal, [TanhTransform()])


@pytest.mark.parametrize("undiscounted", [False, True])
def test_continuous_losses(undiscounted):
    """Targets, the Monte-Carlo baseline and the policies' loss, from plain loops and torch's own
    distributions.
    """
    args = maac_args(
        sizes=((5, 3, 2), (2, 2, 2)),
        continuous=True,
        mc_actions=3,
        policy_logit_penalty=0.0,
        undiscounted_entropy=undiscounted,
    )
    learner, log = maac_learner(args)
    batch, before = transitions(args), copy.deepcopy(learner)
    torch.manual_seed(SEED)
    targets = learner.value_targets(batch)
    torch.manual_seed(SEED)
    next_actions, _ = drawn_actions(before, batch)
    rewards = batch.standardised_rewards()
    for i in range(3):
        next_policy = continuous_policy(policy_outputs(before.target_policy, batch["next_obs"], i))
        log_prob = next_policy.log_prob(next_actions[:, i].double().clamp(-1 + 1e-6, 1 - 1e-6)).sum(
            -1
        )
        q = critic_value(before.target_critic, batch["next_obs"], next_actions, i)[0].squeeze(1)
        going_on = args.gamma * (1 - batch["terminated"][:, 0])
        share = 1.0 if undiscounted else going_on
        expected = rewards[:, i] + going_on * q - share * args.alpha_entropy * log_prob
        assert torch.allclose(targets[:, i], expected.float(), rtol=1e-4, atol=1e-4)

    step = learner.evaluate_policies(batch)
    assert step.samples.shape == (16, 3, 3, 2)
    for i in range(3):
        q = critic_value(before.critic, batch["obs"], step.actions, i)[0].squeeze(1)
        choices = [
            critic_value(before.critic, batch["obs"], step.actions, i, step.samples[:, i, k])[0]
            for k in range(3)
        ]
        assert torch.allclose(step.q[:, i], q, atol=1e-5)
        assert torch.allclose(step.all_q[:, i], torch.cat(choices, 1), atol=1e-5)
        assert torch.allclose(step.baseline[:, i], torch.cat(choices, 1).mean(1), atol=1e-5)
    learner.policy_step(step, 0)
    for i in range(3):
        outputs = policy_outputs(before.policy, batch["obs"], i)
        actions = step.actions[:, i].double().clamp(-1 + 1e-6, 1 - 1e-6)
        log_prob = continuous_policy(outputs).log_prob(actions).sum(-1)
        bracket = args.alpha_entropy * log_prob - (step.q - step.baseline)[:, i]
        loss = (log_prob * bracket.detach()).mean()
        grads = torch.autograd.grad(loss, list(before.policy.parameters()))
        clip = min(
            1.0,
            args.policy_grad_norm_clip / float(torch.cat([g[i].flatten() for g in grads]).norm()),
        )
        for mine, theirs in zip(learner.params, grads, strict=True):
            assert_close(mine.grad[i], clip * theirs[i], f"agent {i}")
    learner.train(batch, 0, 0)
    assert all(value == value for value, _ in (entries[0] for entries in log.stats.values()))


def test_padded_and_unavailable_actions_are_never_drawn():
    args = maac_args()
    learner, _ = maac_learner(args)
    batch = transitions(args, 64)
    for _ in range(20):
        step = learner.evaluate_policies(batch)
        assert (batch["avail_actions"].gather(-1, step.actions.unsqueeze(-1)) == 1).all()
        assert torch.isfinite(step.log_prob).all()


def test_what_is_logged():
    args = maac_args()
    learner, log = maac_learner(args)
    batch = transitions(args)
    policy, critic = copy.deepcopy(learner.policy), copy.deepcopy(learner.critic)
    learner.train(batch, 50, 0)
    for i in range(3):
        logits = policy_outputs(policy, batch["obs"], i).masked_fill(
            batch["avail_actions"][:, i] == 0, -1e9
        )
        probs = torch.softmax(logits, -1)
        entropy = -(probs * torch.log(probs.clamp(min=1e-30))).sum(-1).mean()
        assert log.lists["policy_entropy_by_agent"][0][0][i] == pytest.approx(
            float(entropy), rel=1e-4
        )
        weights = critic_value(critic, batch["obs"], batch["actions"], i)[2]
        entropy = -(weights * torch.log(weights.clamp(min=1e-30))).sum(-1).mean()
        assert log.lists["attention_entropy_by_agent"][0][0][i] == pytest.approx(
            float(entropy), rel=1e-3
        )
    names = {
        "loss_value",
        "loss_policy",
        "grad_norm",
        "critic_grad_norm",
        "q_taken_mean",
        "target_mean",
    }
    names |= {"advantage_abs", "policy_entropy", "attention_entropy"}
    assert set(log.stats) == names
    assert {t for values in log.stats.values() for _, t in values} == {50}
    lists = {f"{name}_by_agent" for name in names - {"critic_grad_norm"}}
    assert set(log.lists) == lists
    mean = sum(log.lists["q_taken_mean_by_agent"][0][0]) / 3
    assert log.stats["q_taken_mean"][0][0] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("continuous", [False, True])
def test_logging_draws_no_random_numbers(continuous):
    args = maac_args(continuous=continuous)
    batch, states = transitions(args), []
    for interval in (1, 100):
        learner, _ = maac_learner(maac_args(continuous=continuous, learner_log_interval=interval))
        learner.log_stats_t = 0
        torch.manual_seed(SEED)
        learner.train(batch, 50, 0)
        assert (learner.log_stats_t == 50) == (interval == 1)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_it_learns_what_the_observation_says():
    """A bandit of two actions for each agent: the sign of its first entry is the action that
    pays.
    """
    args = maac_args(
        sizes=((2, 2), (2, 2)), gamma=0.0, lr=0.01, critic_hidden_dim=16, policy_hidden_dim=16
    )
    learner, _ = maac_learner(args)
    rng = torch.Generator().manual_seed(0)
    for _ in range(150):
        obs = torch.randn(64, 2, 2, generator=rng)
        actions = torch.randint(2, (64, 2), generator=rng)
        entries = {
            "obs": obs,
            "next_obs": obs,
            "state": obs,
            "actions": actions,
            "terminated": torch.ones(64, 1),
        }
        entries["reward"] = (actions == (obs[..., 0] > 0)).float()
        entries["avail_actions"] = entries["next_avail_actions"] = torch.ones(
            64, 2, 2, dtype=torch.uint8
        )
        learner.train(Transitions(entries, torch.full((2,), 0.5), torch.full((2,), 0.5)), 0, 0)
    obs = torch.randn(200, 2, 2, generator=rng)
    right = learner.policy.logits(obs).argmax(-1) == (obs[..., 0] > 0)
    assert right.float().mean() > 0.95


@pytest.mark.parametrize(
    ("entry", "said"), [("reward", "rewards"), ("obs", "observations"), ("next_obs", "targets")]
)
def test_an_update_that_is_not_finite_changes_nothing(entry, said):
    args = maac_args()
    learner, _ = maac_learner(args)
    batch = transitions(args)
    batch[entry][3, 1] = float("nan")
    weights = [param.detach().clone() for param in learner.critic_params]
    with pytest.raises(Diverged, match=said):
        learner.train(batch, 12, 0)
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.critic_params, strict=True))


def test_model_files(tmp_path):
    args = maac_args()
    learner, _ = maac_learner(args)
    learner.train(transitions(args), 0, 0)
    learner.save_models(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "agent.th",
        "critic.th",
        "opt.th",
        "critic_opt.th",
    }
    other, _ = maac_learner(args, seed=5)
    other.load_models(str(tmp_path))
    for mine, theirs in ((other.critic, learner.critic), (other.policy, learner.policy)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
    for online, target in other.targets:
        for name, value in online.state_dict().items():
            assert torch.equal(target.state_dict()[name], value), name
    moments = other.critic_optimiser.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(moments, learner.critic_optimiser.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mac": "basic_mac"}, "needs mac=actor_mac"),
        ({"replay": "episodes"}, "needs replay=transitions"),
        ({"critic": "state"}, "needs critic=attention"),
        ({"mixer": "vdn"}, "needs mixer=null"),
        ({"batch_size": 1}, "at least 2 transitions"),
        ({"mc_actions": 0}, "mc_actions must be at least 1, got 0"),
        ({"alpha_entropy": -0.1}, "alpha_entropy must be at least 0, got -0.1"),
        ({"policy_grad_norm_clip": 0.0}, "policy_grad_norm_clip must be greater than 0, got 0.0"),
        ({"share_params": True}, "share_params=False"),
        ({"obs_agent_id": True}, "obs_agent_id=False"),
    ],
    ids=str,
)
def test_what_the_learner_refuses(settings, message):
    with pytest.raises(ConfigError, match=message):
        maac_learner(maac_args(**settings))


# -- whole runs ------------------------------------------------------------------------------------

RUN = [
    *(
        "batch_size_run=4",
        "batch_size=16",
        "buffer_size=30",
        "env_args.episode_limit=6",
        "steps_per_update=10",
    ),
    *(
        "updates_per_step=2",
        "critic_hidden_dim=8",
        "policy_hidden_dim=8",
        "test_interval=72",
        "test_nepisode=4",
    ),
    *("use_cuda=False", "t_max=240", "seed=3", "learner_log_interval=1", "runner_log_interval=1"),
]


def start(run_dir, env, *settings):
    """A run in this process, without Sacred."""
    return start_run("maac", env, run_dir, [*RUN, *settings])


@pytest.mark.parametrize("env", ["spread", "rover_tower", "treasure_collection"])
def test_runs_on_the_particle_environments(env, tmp_path):
    training = start(tmp_path, env, "t_max=72")
    before = [
        param.detach().clone()
        for param in (*training.learner.params, *training.learner.critic_params)
    ]
    finish(training)
    after = (*training.learner.params, *training.learner.critic_params)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    keys = {
        json.loads(line)["key"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    }
    assert {
        "test_return_mean",
        "loss_value",
        "loss_policy_by_agent",
        "attention_entropy_by_agent",
    } <= keys


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    finish(start(tmp_path / "whole", "spread"))
    half = start(tmp_path / "parts", "spread")
    half.stop = StopAt(half.runner, 100)
    with pytest.raises(Interrupted):
        finish(half)
    rest = start(tmp_path / "parts", "spread")
    torch.manual_seed(99)  # whatever happened in between
    rest.load(tmp_path / "parts" / "checkpoints" / str(half.runner.t_env))
    finish(rest)
    whole, parts = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_it_learns_spread(tmp_path):
    """Measured: -99 greedy at the start, -75 at random, -50 after this training (2400 episodes)."""
    settings = [
        "batch_size_run=12",
        "batch_size=256",
        "buffer_size=2000",
        "env_args.episode_limit=25",
    ]
    settings += [
        "steps_per_update=100",
        "critic_hidden_dim=64",
        "policy_hidden_dim=64",
        "t_max=60000",
    ]
    training = start(
        tmp_path,
        "spread",
        *settings,
        "test_interval=20000",
        "test_nepisode=120",
        "updates_per_step=4",
    )
    finish(training)
    assert training.last_test_return > -58.0
