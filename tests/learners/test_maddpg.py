"""MADDPG against plain loops over agents and transitions."""

import copy

import pytest
import torch
from learner_fixtures import (
    N_ACTIONS,
    OBS,
    assert_same_gradients,
    make_args,
    make_learner,
    make_mac,
    weights_of,
)
from transition_fixtures import assert_continues, make_transitions, train_run

from components.episode_buffer import EpisodeBatch
from utils.errors import ConfigError, Diverged

A = 3
SIZES = ((OBS, 3, 4), (2, N_ACTIONS, 3))


def maddpg_args(sizes=SIZES, continuous=False, **overrides):
    small = {"policy_hidden_dim": 6, "critic_hidden_dim": 7}
    small |= {"policy_grad_norm_clip": 1e9, "critic_grad_norm_clip": 1e9}
    args = make_args("maddpg", **(small | overrides))
    args.env_info = {"obs_sizes": sizes[0], "action_sizes": sizes[1]}
    args.continuous_actions = continuous
    return args


def dense(layer, i, x):
    return layer.weight[i] @ x + layer.bias[i]


def outputs_of(agent, obs):
    """What every agent's network puts out for a batch, normalised by that batch: [n][i] -> [U or
    2U].
    """
    n_rows = len(obs)
    out = [[None] * A for _ in range(n_rows)]
    for i in range(A):
        columns = torch.stack([obs[n, i] for n in range(n_rows)])
        mean, var = columns.mean(0), columns.var(0, correction=0)
        for n in range(n_rows):
            x = (obs[n, i] - mean) / (var + 1e-5).sqrt()
            for layer in (agent.fc1, agent.fc2):
                x = torch.nn.functional.leaky_relu(dense(layer, i, x))
            out[n][i] = dense(agent.fc3, i, x)
    return out


def value(critic, i, obs, actions):
    """Q_i of joint observations [A, O] and a list of actions [U]: true entries and their weights
    alone.
    """
    x = torch.cat([obs.flatten(), torch.stack(list(actions)).flatten()])
    for layer in (critic.fc1, critic.fc2):
        x = dense(layer, i, x).clamp(min=0)
    return dense(critic.fc3, i, x)[0]


def act(args, output, avail, noise):
    """One agent's action [U] with the gradient that MADDPG gives it."""
    if args.continuous_actions:
        return (5 * (output[: args.n_actions] / 5).tanh()).tanh()
    options = avail.nonzero().squeeze(1)
    soft = torch.softmax((output[options] + noise[options]) / args.gumbel_temperature, 0)
    wide = torch.zeros(args.n_actions).index_copy(0, options, soft)
    hard = torch.zeros(args.n_actions)
    hard[wide.argmax()] = 1.0
    return hard + wide - wide.detach()


def recorded_action(args, batch, n, i):
    if args.continuous_actions:
        return batch["actions"][n, i]
    onehot = torch.zeros(args.n_actions)
    onehot[batch["actions"][n, i]] = 1
    return onehot


def slow_losses(learner, batch, seed):
    """Losses of critics and policies, a list of one per agent each."""
    args, n_rows = learner.args, batch.size
    shape = (n_rows, A, args.n_actions)
    torch.manual_seed(seed)
    noise = [-torch.empty(shape).exponential_().log() for _ in range(2)]
    critic_losses, policy_losses = [], []
    with torch.no_grad():
        following = outputs_of(learner.target_mac.agent, batch["next_obs"])
    current = outputs_of(learner.mac.agent, batch["obs"])
    for i in range(A):
        loss, gain, size = 0.0, 0.0, 0.0
        for n in range(n_rows):
            with torch.no_grad():
                after = [
                    act(args, following[n][j], batch["next_avail_actions"][n, j], noise[0][n, j])
                    for j in range(A)
                ]
                reward = batch["reward"][n, i]
                if args.standardise_rewards:
                    reward = (reward - batch.reward_mean[i]) / batch.reward_std[i]
                goes_on = 1 - batch["terminated"][n, 0]
                y = reward + args.gamma * goes_on * value(
                    learner.target_critic, i, batch["next_obs"][n], after
                )
            taken = [recorded_action(args, batch, n, j) for j in range(A)]
            loss = loss + (value(learner.critic, i, batch["obs"][n], taken) - y) ** 2 / n_rows
            anew = list(taken)
            anew[i] = act(args, current[n][i], batch["avail_actions"][n, i], noise[1][n, i])
            gain = gain + value(learner.frozen_critic, i, batch["obs"][n], anew) / n_rows
            size = size + current[n][i][: SIZES[1][i]].pow(2).mean() / n_rows
        critic_losses.append(loss)
        policy_losses.append(args.policy_logit_penalty * size - gain)
    return critic_losses, policy_losses


@pytest.mark.parametrize(
    "options",
    [{}, {"gumbel_temperature": 0.4}, {"standardise_rewards": False}, {"continuous": True}],
    ids=str,
)
def test_update(options):
    """Both losses and gradients; the policies' come through critics that have made their step."""
    args = maddpg_args(lr=0.01, policy_logit_penalty=0.1, adam_eps=1e-3, **options)
    learner, log = make_learner(args)
    batch = make_transitions(args, sizes=SIZES)
    slow = copy.deepcopy(learner)
    slow.frozen_critic = slow.critic
    critic_losses, _ = slow_losses(slow, batch, seed=4)
    sum(critic_losses).backward()
    slow.critic_optimiser.step()
    stepped = copy.deepcopy(slow)
    stepped.frozen_critic = copy.deepcopy(stepped.critic).requires_grad_(False)
    _, policy_losses = slow_losses(stepped, batch, seed=4)
    sum(policy_losses).backward()
    stepped.critic.zero_grad()
    for mine, theirs in zip(stepped.critic.parameters(), slow.critic.parameters(), strict=True):
        mine.grad = theirs.grad
    stepped.optimiser.step()

    old_targets = [param.clone() for _, target in learner.targets for param in target.parameters()]
    torch.manual_seed(4)
    learner.train(batch, t_env=0, episode_num=1)
    assert log.stats["loss_critic"][0][0] == pytest.approx(sum(critic_losses).item() / A, rel=1e-4)
    assert log.stats["loss_policy"][0][0] == pytest.approx(sum(policy_losses).item() / A, rel=1e-4)
    assert_same_gradients(learner, stepped)
    for mine, theirs in zip(weights_of(learner), weights_of(stepped), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    new_targets = [param for _, target in learner.targets for param in target.parameters()]
    online = [param for module, _ in learner.targets for param in module.parameters()]
    for old, new, source in zip(old_targets, new_targets, online, strict=True):
        assert torch.allclose(new, old + args.target_tau * (source - old), atol=1e-6)


def test_each_agents_gradient_is_clipped_alone():
    args = maddpg_args(policy_grad_norm_clip=1e-4, critic_grad_norm_clip=2e-4)
    learner, _ = make_learner(args)
    learner.train(make_transitions(args, sizes=SIZES), t_env=0, episode_num=1)
    for params, largest in ((learner.params, 1e-4), (learner.critic_params, 2e-4)):
        norms = sum(param.grad.flatten(1).pow(2).sum(1) for param in params).sqrt()
        assert torch.allclose(norms, torch.full((A,), largest), rtol=0.02)


def test_own_action_in_place_of_the_recorded_one():
    """For each agent's critic only that agent's action is replaced."""
    args = maddpg_args()
    learner, _ = make_learner(args)
    batch = make_transitions(args, sizes=SIZES)
    torch.manual_seed(0)
    exists = torch.arange(N_ACTIONS) < torch.tensor(SIZES[1])[:, None]
    actions, own = (torch.randn(batch.size, A, N_ACTIONS) * exists for _ in range(2))
    fast = learner.critic(batch["obs"], actions, own)
    for i in range(A):
        replaced = actions.clone()
        replaced[:, i] = own[:, i]
        assert torch.allclose(fast[:, i], learner.critic(batch["obs"], replaced)[:, i], atol=1e-5)


def test_padding_is_inert():
    """Entries beyond an agent's own sizes have no weight and get none."""
    args = maddpg_args(lr=0.1)
    learner, _ = make_learner(args)
    batch = make_transitions(args, sizes=SIZES)
    for _ in range(3):
        learner.train(batch, t_env=0, episode_num=1)
    used = [k < n for n in SIZES[0] for k in range(OBS)] + [
        k < n for n in SIZES[1] for k in range(N_ACTIONS)
    ]
    weight = learner.critic.fc1.weight
    assert bool((weight[:, :, ~torch.tensor(used)] == 0).all())
    assert bool((weight[:, :, torch.tensor(used)] != 0).all())


@pytest.mark.parametrize("bs", [slice(None), torch.tensor([0, 2])], ids=["all", "some"])
def test_continuous_behaviour_is_the_mean_with_noise(bs):
    args = maddpg_args(continuous=True, action_noise=0.2)
    mac = make_mac(args)
    scheme = {
        "obs": {"vshape": OBS, "group": "agents"},
        "avail_actions": {"vshape": (N_ACTIONS,), "group": "agents", "dtype": torch.uint8},
    }
    batch = EpisodeBatch(scheme, {"agents": A}, 3, 2)
    avail = (torch.arange(N_ACTIONS) < torch.tensor(SIZES[1])[:, None]).expand(3, 2, -1, -1)
    batch.update({"obs": torch.randn(3, 2, A, OBS), "avail_actions": avail})
    mac.init_hidden(3)
    with torch.no_grad():
        mean = mac.agent.eval().logits(batch["obs"][:, 0])[bs][..., :N_ACTIONS]
        mean = (5 * (mean / 5).tanh()).tanh() * avail[bs, 0]
    assert torch.allclose(mac.select_actions(batch, 0, 0, bs, test_mode=True), mean, atol=1e-6)
    torch.manual_seed(1)
    drawn = torch.stack([mac.select_actions(batch, 0, 0, bs) for _ in range(2000)])
    assert bool((drawn.abs() <= 1).all())
    assert bool((drawn[..., 0, 2:] == 0).all())  # agent 0 has two entries
    middle = (mean.abs() < 0.4) & (avail[bs, 0] != 0)
    assert bool(middle.any())
    error = (drawn - mean)[:, middle]
    assert error.mean().item() == pytest.approx(0.0, abs=0.01)
    assert error.std().item() == pytest.approx(0.2, rel=0.05)


def test_a_reward_that_is_not_finite_stops_the_update():
    learner, _ = make_learner(maddpg_args())
    batch = make_transitions(learner.args, sizes=SIZES)
    batch["reward"][1, 2] = float("nan")
    before = weights_of(learner)
    with pytest.raises(Diverged, match=r"agent 2.*t_env=5.*not finite in rewards, targets"):
        learner.train(batch, t_env=5, episode_num=1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(learner), strict=True))


def test_model_files(tmp_path):
    args = maddpg_args()
    learner, _ = make_learner(args, seed=1)
    batch = make_transitions(args, sizes=SIZES)
    learner.train(batch, t_env=0, episode_num=1)
    learner.save_models(str(tmp_path))
    assert {path.stem for path in tmp_path.iterdir()} == {"agent", "critic", "opt", "critic_opt"}
    other, _ = make_learner(args, seed=2)
    other.load_models(str(tmp_path))
    learner.update_targets()  # loading makes the targets copies of the online networks
    for twin in (learner, other):
        torch.manual_seed(3)
        twin.train(batch, t_env=0, episode_num=2)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(learner), weights_of(other), strict=True)
    )


def test_a_restored_learner_continues_bit_for_bit():
    args = maddpg_args()
    batch = make_transitions(args, sizes=SIZES)
    assert_continues(*(make_learner(args, seed)[0] for seed in (1, 2)), batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replay": "episodes"}, "replay=transitions"),
        ({"mac": "actor_mac"}, "mac=maddpg_mac"),
        ({"mixer": "vdn"}, "mixer=null"),
        ({"share_params": True}, "share_params=False"),
        ({"action_noise": -0.1}, "action_noise must be at least 0, got -0.1"),
        ({"gumbel_temperature": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(maddpg_args(**options))


def test_learns_a_matrix_game(tmp_path):
    run = train_run(
        tmp_path, "maddpg", "matrix_game", "env_args.map_name=climbing", "batch_size_run=16",
        "batch_size=64",
        "t_max=3000", "steps_per_update=16", "updates_per_step=2", "buffer_size=500",
        "policy_hidden_dim=32",
        "critic_hidden_dim=32", "test_nepisode=4", "gamma=0.0", "target_tau=0.05",
    )  # fmt: skip
    # The safe equilibrium at least; a uniformly random joint action pays -3.1 on average.
    assert run.last_test_return >= 5.0


def test_learns_continuous_actions():
    """One step; every entry is best at 0.5."""
    args = maddpg_args(
        sizes=((OBS,) * A, (2,) * A), continuous=True, gamma=0.0, standardise_rewards=False,
        policy_hidden_dim=16,
        critic_hidden_dim=32, lr=0.003, n_actions=2, policy_logit_penalty=0.05,
        policy_grad_norm_clip=0.5,
    )  # fmt: skip
    learner, _ = make_learner(args)
    for step in range(300):
        batch = make_transitions(args, n=128, seed=step)
        actions = batch["actions"]
        batch["reward"].copy_(-(actions - 0.5).square().sum(-1))
        learner.train(batch, t_env=step, episode_num=step)
    learner.mac.agent.eval()
    best, _ = learner.act(
        learner.mac, make_transitions(args, n=64, seed=999)["obs"], torch.ones(64, A, 2)
    )
    assert (best - 0.5).abs().mean().item() < 0.15
