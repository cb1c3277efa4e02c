"""HASAC: targets, turns and temperatures against plain loops over rows and agents."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from learner_fixtures import make_args, make_batch, make_mac, weights_of
from maac_fixtures import SIZES, maac_learner, policy_outputs, transitions
from transition_fixtures import assert_continues, train_run

from components.transitions import Transitions
from modules.critics.state_action import TwinCritic
from utils.errors import ConfigError

EQUAL = ((5, 5, 5), (4, 4, 4))


def hasac_args(sizes=SIZES, continuous=False, **overrides):
    small = {"alpha_entropy": 0.2, "lr": 0.01, "policy_grad_norm_clip": 1e9}
    small |= {"critic_grad_norm_clip": 1e9} | overrides
    small |= {"critic_hidden_dim": 8, "policy_hidden_dim": 6, "learner_log_interval": 1}
    small |= {"obs_shape": max(sizes[0]), "n_actions": max(sizes[1]), "batch_size": 32}
    args = make_args("hasac", **(small | {"n_agents": 3} | overrides))
    args.continuous_actions = continuous
    args.env_info = {"obs_sizes": tuple(sizes[0]), "action_sizes": tuple(sizes[1])}
    return args


def slow_q(critic, state, actions):
    """Both critics' values of one row: state [S], actions [A, U] -> two scalars."""
    x = torch.cat([state, *actions])
    found = []
    for c in range(2):
        h = F.linear(x, critic.fc1.weight[c], critic.fc1.bias[c]).clamp(min=0)
        h = F.linear(h, critic.fc2.weight[c], critic.fc2.bias[c]).clamp(min=0)
        found.append(F.linear(h, critic.fc3.weight[c], critic.fc3.bias[c])[0])
    return found


def log_policies(agent, obs, avail):
    """Log probabilities [N, A, U] by the networks of the agents one by one; -inf: unavailable."""
    rows = [policy_outputs(agent, obs, i) for i in range(obs.shape[1])]
    return torch.stack(rows, 1).masked_fill(avail == 0, -math.inf).log_softmax(-1)


def entropies(log_pi):
    """[N, A], of every row by a loop over actions."""
    out = torch.zeros(())
    for u in range(log_pi.shape[-1]):
        out = out - torch.where(
            log_pi[..., u] > -math.inf, log_pi[..., u].exp() * log_pi[..., u].clamp(min=-99), 0.0
        )
    return out


def soft(learner):
    """Draws become the policies' probabilities: differentiable, and always the same."""
    learner.draw = lambda policy: policy.probs
    return learner


def test_twin_critic():
    args = hasac_args()
    torch.manual_seed(0)
    critic = TwinCritic(args)
    state, actions = torch.randn(6, args.state_shape), torch.randn(6, 3, args.n_actions)
    for i, size in enumerate(SIZES[1]):
        actions[:, i, size:] = 0
    fast = critic(state, actions)
    for n in range(6):
        for c, q in enumerate(slow_q(critic, state[n], actions[n])):
            assert fast[c, n].item() == pytest.approx(q.item(), abs=1e-5)
    assert not torch.allclose(fast[0], fast[1])
    # What stands in padding is not read.
    actions[:, 2, 2:] = 7
    assert torch.equal(critic(state, actions), fast)


@pytest.mark.parametrize("standardise", [False, True])
def test_targets(standardise):
    args = hasac_args(standardise_rewards=standardise)
    learner = soft(maac_learner(args)[0])
    with torch.no_grad():
        learner.temperatures.log_alpha.copy_(torch.tensor([0.1, 0.5, 2.0]).log())
    batch, twin = transitions(args), copy.deepcopy(learner.mac.agent)
    learner.mac.agent.train()
    targets = learner.value_targets(batch)
    with torch.no_grad():
        log_pi = log_policies(twin, batch["next_obs"], batch["next_avail_actions"])
        h = entropies(log_pi)
        for n in range(batch.size):
            q = min(slow_q(learner.target_critic, batch["next_state"][n], log_pi[n].exp()))
            value = q + sum(a * x for a, x in zip((0.1, 0.5, 2.0), h[n], strict=True))
            r = (batch.standardised_rewards() if standardise else batch["reward"])[n, 0]
            goes_on = 1 - batch["terminated"][n, 0]
            assert targets[n].item() == pytest.approx(
                (r + args.gamma * goes_on * value).item(), abs=1e-4
            )


def test_targets_of_continuous_actions():
    """Each agent's own log density, without padding, at the actions that the critics value."""
    args = hasac_args(continuous=True)
    learner, _ = maac_learner(args)
    batch, seen = transitions(args), []
    exists = torch.arange(args.n_actions) < torch.tensor(SIZES[1]).unsqueeze(1)
    batch["next_avail_actions"].copy_(exists.expand(batch.size, -1, -1))
    draw = learner.draw
    learner.draw = lambda policy: seen.append((policy, draw(policy))) or seen[-1][1]
    learner.mac.agent.train()
    targets = learner.value_targets(batch)
    ((policy, actions),) = seen
    for n in range(batch.size):
        bonus = 0.0
        for i, size in enumerate(SIZES[1]):
            for u in range(size):
                a = actions[n, i, u].clamp(-1 + 1e-6, 1 - 1e-6)
                mean, std = policy.normal.loc[n, i, u], policy.normal.scale[n, i, u]
                log_normal = -((a.atanh() - mean) ** 2) / (2 * std**2) - std.log()
                log_normal = log_normal - 0.5 * math.log(2 * math.pi)
                bonus -= 0.2 * (log_normal - (1 - a**2).log())
        q = min(slow_q(learner.target_critic, batch["next_state"][n], actions[n]))
        goes_on = 1 - batch["terminated"][n, 0]
        expected = batch["reward"][n, 0] + args.gamma * goes_on * (q + bonus)
        assert targets[n].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)


def test_critics_loss_and_gradient():
    args = hasac_args()
    learner, _ = maac_learner(args)
    batch = transitions(args)
    twin = copy.deepcopy(learner.critic)
    fixed = torch.randn(batch.size)
    learner.value_targets = lambda _: fixed
    learner.critic_step(batch, 0)
    loss = 0.0
    for n in range(batch.size):
        actions = F.one_hot(batch["actions"][n], args.n_actions).float()
        for q in slow_q(twin, batch["state"][n], actions):
            loss = loss + (q - fixed[n]) ** 2 / batch.size
    loss.backward()
    for mine, theirs in zip(learner.critic.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-4)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_agents_climb_in_turn(order):
    """Each one's loss and gradient, given those before it after, the others before their step."""
    args = hasac_args(policy_logit_penalty=0.1)
    learner = soft(maac_learner(args)[0])
    learner.order = lambda: order
    batch, seen = transitions(args), []
    optimise = learner.optimise

    def watched(optimiser, params, loss, *rest):
        agent = copy.deepcopy(learner.mac.agent)
        i = order[len(seen)]
        log_pi = log_policies(agent, batch["obs"], batch["avail_actions"])
        h = entropies(log_pi)
        slow = 0.0
        for n in range(batch.size):
            joint = [x if j == i else x.detach() for j, x in enumerate(log_pi[n].exp())]
            q = min(slow_q(learner.critic, batch["state"][n], joint))
            slow = slow - (q + 0.2 * h[n, i]) / batch.size
        size = SIZES[1][i]
        outputs = policy_outputs(agent, batch["obs"], i)[:, :size]
        slow = slow + 0.1 * outputs.square().mean(0).sum() / size
        grads = torch.autograd.grad(slow, list(agent.parameters()))
        norm = optimise(optimiser, params, loss, *rest)
        assert loss.item() == pytest.approx(slow.item(), abs=1e-4)
        for param, grad in zip(params, grads, strict=True):
            assert torch.allclose(param.grad.flatten(), grad[i].flatten(), atol=1e-5)
        seen.append(i)
        return norm

    learner.optimise = watched
    before = copy.deepcopy(learner.mac.agent.state_dict())
    learner.policy_steps(batch, 0)
    assert seen == order
    moved = learner.mac.agent.state_dict()
    for i in range(3):
        assert not torch.equal(moved["fc2.weight"][i], before["fc2.weight"][i])
        # Padding stays what it was.
        assert (moved["fc1.weight"][i, :, SIZES[0][i] :] == 0).all()


def test_the_critics_do_not_move_with_the_policies():
    args = hasac_args()
    learner, _ = maac_learner(args)
    before = copy.deepcopy(learner.critic.state_dict())
    learner.policy_steps(transitions(args), 0)
    assert all(torch.equal(before[name], x) for name, x in learner.critic.state_dict().items())


@pytest.mark.parametrize("continuous", [False, True])
def test_temperatures_follow_the_entropies(continuous):
    """Up where entropy is missing, down where there is too much; the first step of Adam is lr."""
    args = hasac_args(continuous=continuous, tune_alpha=True, alpha_lr=0.1)
    args.target_entropy_share = 0.5
    learner, _ = maac_learner(args)
    wanted = [-0.5 * n if continuous else 0.5 * math.log(n) for n in SIZES[1]]
    assert learner.target_entropy.tolist() == pytest.approx(wanted)
    learner.temperature_step(learner.target_entropy + torch.tensor([-0.3, 0.2, -1.0]))
    signs = [1, -1, 1]
    expected = [0.2 * math.exp(0.1 * sign) for sign in signs]
    assert learner.temperatures().tolist() == pytest.approx(expected, rel=1e-4)
    fixed, _ = maac_learner(hasac_args())
    fixed.train(transitions(fixed.args), 0, 0)
    assert fixed.temperatures().tolist() == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("tune", [False, True])
def test_a_restored_learner_continues_bit_for_bit(continuous, tune):
    args = hasac_args(continuous=continuous, tune_alpha=tune)
    learner, other = (maac_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, transitions(args))


def test_model_files(tmp_path):
    args = hasac_args(tune_alpha=True)
    learner, _ = maac_learner(args, seed=1)
    learner.train(transitions(args), 0, 0)
    learner.save_models(str(tmp_path))
    names = {"agent", "critic", "temperatures", "opt", "critic_opt", "alpha_opt"}
    assert {path.stem for path in tmp_path.iterdir()} == names
    other, _ = maac_learner(args, seed=2)
    other.load_models(str(tmp_path))
    pairs = list(zip(weights_of(learner), weights_of(other), strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    for i in range(3):
        for name, param in other.members(i).named_parameters():
            stacked = dict(other.mac.agent.named_parameters())[name]
            assert param.data_ptr() == stacked[i].data_ptr()


@pytest.mark.parametrize("continuous", [False, True])
def test_acting_is_decentralised(continuous):
    """An agent's policy changes with its own observation and weights alone, not by one bit."""
    mac = make_mac(hasac_args(EQUAL, continuous))
    if continuous:
        obs, avail = torch.randn(6, 3, 5), torch.ones(6, 3, 4)
    else:
        batch = make_batch(mac.args)
        obs, avail = batch["obs"][:, 0], batch["avail_actions"][:, 0]
    mac.agent.eval()
    with torch.no_grad():
        before = mac.policy(mac.agent.logits(obs), avail).mode(), mac.agent.logits(obs)
        other = obs.clone()
        other[:, 1] += 3
        for param in mac.agent.parameters():
            param[1] += torch.randn_like(param[1])
        after = mac.policy(mac.agent.logits(other), avail).mode(), mac.agent.logits(other)
    for i in (0, 2):
        assert all(torch.equal(x[:, i], y[:, i]) for x, y in zip(before, after, strict=True))
    assert not torch.equal(before[1][:, 1], after[1][:, 1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share_params": True}, r"share_params=False \(the agents learn one after the other\)"),
        ({"common_reward": False}, r"common_reward=True \(its critics value what the team gets\)"),
        ({"replay": "episodes"}, "replay=transitions"),
        ({"alpha_entropy": 0.0}, "alpha_entropy must be greater than 0 and finite, got 0.0"),
        ({"agent_order": "best"}, "agent_order must be one of random, fixed, got 'best'"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        maac_learner(hasac_args(**options))


# -- learning --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_learns_continuous_actions():
    """Replayed random actions: the sum of all entries is best at 1.5, each of them near 0.3."""

    def rewards(x):
        return -(x.sum((1, 2)) - 1.5).square() - (x - 0.3).square().sum((1, 2))

    wide = {"critic_hidden_dim": 64, "policy_hidden_dim": 16, "n_actions": 2}
    args = hasac_args(EQUAL, True, alpha_entropy=0.01, lr=0.005, **wide)
    args.env_info = {"obs_sizes": (5, 5, 5), "action_sizes": (2, 2, 2)}
    learner, _ = maac_learner(args)

    def reached():
        learner.mac.agent.eval()
        outputs = learner.mac.agent.logits(torch.randn(50, 3, 5))
        return rewards(learner.mac.policy(outputs, torch.ones(50, 3, 2)).mode()).mean().item()

    before = reached()
    for update in range(400):
        entries = dict(transitions(args, 64, seed=update))
        entries["reward"] = rewards(entries["actions"]).unsqueeze(1)
        entries["terminated"] = torch.ones(64, 1)
        learner.train(Transitions(entries, torch.zeros(1), torch.ones(1)), update, update)
    assert before < -3
    assert reached() > -1.5


@pytest.mark.slow
@pytest.mark.parametrize(("game", "least"), [("climbing", 6.0), ("two_step", 7.0)])
def test_learns_a_matrix_game(game, least, tmp_path):
    """At least the safe equilibrium; a uniformly random joint action pays -3.1 and 4.6."""
    run = train_run(
        tmp_path, "hasac", "matrix_game", f"env_args.map_name={game}", "t_max=3200",
        "batch_size_run=16", "lr=0.003", "batch_size=128", "buffer_size=4000",
        "steps_per_update=32", "updates_per_step=8", "test_nepisode=4", "policy_hidden_dim=16",
        "critic_hidden_dim=32", "alpha_entropy=0.5", "target_tau=0.05",
    )  # fmt: skip
    assert run.last_test_return >= least
