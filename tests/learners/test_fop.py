"""FOP's critics, targets and update against loops over episodes, steps, agents and actions."""

import copy
import math

import pytest
import torch
from learner_fixtures import make_args, make_batch, make_learner, td_lambda_returns

from components.distributions import MaskedCategorical
from utils.errors import ConfigError

A, U = 3, 4


def fop_args(**settings):
    return make_args("fop", **({"critic_hidden_dim": 8, "num_kernel": 2} | settings))


def layer(stacked, j, x):
    return stacked.weight[j] @ x + stacked.bias[j]


def slow_utilities(critic, j, obs):
    """Of critic j: [A, U], agent by agent."""
    net, q = critic.utilities, []
    for i in range(A):
        number = torch.zeros(A)
        number[i] = 1
        x = torch.cat([obs[i], number])
        x = layer(net.fc2, j, layer(net.fc1, j, x).clamp(min=0)).clamp(min=0)
        q.append(layer(net.fc3, j, x))
    return torch.stack(q)


def soft_value(values, avail, alpha):
    """alpha log sum exp(Q / alpha) of the available actions."""
    return alpha * math.log(
        sum(math.exp(float(q) / alpha) for q, ok in zip(values, avail, strict=True) if ok)
    )


def slow_joint(critic, j, q, actions, avail, state, alpha):
    """Q_tot of critic j, a scalar: q [A, U], a list of actions, avail [A, U], state [S]."""
    mixer, kernels = critic.mixer, critic.mixer.si_weight.key.heads
    onehot = torch.zeros(A, U)
    for i, u in enumerate(actions):
        onehot[i, u] = 1
    weights = mixer.si_weight
    key = layer(weights.key.first, j, state)
    agents = layer(weights.agents.first, j, state)
    action = layer(weights.action.first, j, torch.cat([state, onehot.flatten()]))
    first, _, second = mixer.state_value
    value = layer(second, j, layer(first, j, state).clamp(min=0))[0]
    for i, u in enumerate(actions):
        weight = sum(
            (key[h].abs() + 1e-10)
            * torch.sigmoid(agents[h * A + i])
            * torch.sigmoid(action[h * A + i])
            for h in range(kernels)
        )
        advantage = float(q[i, u]) - soft_value(q[i].detach(), avail[i], alpha)
        value = value + q[i, u] + (weight - 1) * advantage
    return value


def one_step(batch, b, t):
    return (
        batch["obs"][b, t],
        batch["state"][b, t],
        batch["avail_actions"][b, t].tolist(),
        batch["actions"][b, t, :, 0].tolist(),
    )


def reference(learner, batch, alpha, drawn):
    """Losses of the policies and of both critics, with gradients."""
    args = learner.args
    learner.mac.agent.train()
    steps = batch.steps()
    policy = MaskedCategorical(learner.mac.unroll(batch, steps), steps.pack(batch["avail_actions"]))
    probs, logs = steps.unpack(policy.probs), steps.unpack(policy.log_probs)
    drawn = steps.unpack(drawn)
    policy_losses, errors = [], ([], [])
    for b, length in enumerate(batch.lengths().tolist()):
        n = length - 1
        ended = bool(batch["terminated"][b, n - 1])
        values, bonuses = [], []
        for t in range(length):
            obs, state, avail, _ = one_step(batch, b, t)
            if t == n and ended:  # no action is available, and nothing follows
                values.append(math.nan)
                bonuses.append(0.0)
                continue
            actions = drawn[b, t].tolist()
            with torch.no_grad():
                both = [
                    slow_joint(
                        learner.target_critic, j, slow_utilities(learner.target_critic, j, obs),
                        actions, avail, state, alpha,
                    )
                    for j in range(2)
                ]  # fmt: skip
            taken = [float(logs[b, t, i, u]) for i, u in enumerate(actions)]
            bonuses.append(-alpha * sum(taken) / A)
            entropy = 0.0 if args.undiscounted_entropy else -alpha * sum(taken)
            values.append(min(map(float, both)) + entropy)
        rewards = batch["reward"][b, :n, 0].tolist()
        targets = td_lambda_returns(rewards, values, ended, args.gamma, args.td_lambda)
        for t in range(n):
            obs, state, avail, taken = one_step(batch, b, t)
            target = targets[t] + (bonuses[t + 1] if args.undiscounted_entropy else 0.0)
            q = [slow_utilities(learner.critic, j, obs) for j in range(2)]
            for j in range(2):
                value = slow_joint(learner.critic, j, q[j], taken, avail, state, alpha)
                errors[j].append((value - target) ** 2)
            for i in range(A):
                loss = 0.0
                for u in range(U):
                    if avail[i][u]:
                        low = min(float(q[0][i, u]), float(q[1][i, u]))
                        loss = loss + probs[b, t, i, u] * (alpha * logs[b, t, i, u] - low)
                policy_losses.append(loss)
    return torch.stack(policy_losses).mean(), [torch.stack(each).mean() for each in errors]


@pytest.mark.parametrize(
    "settings", [{}, {"undiscounted_entropy": True}, {"share_params": False}], ids=str
)
def test_update_equals_a_loop(settings, monkeypatch):
    args = fop_args(**settings)
    learner, log = make_learner(args)
    batch = make_batch(args)
    slow = copy.deepcopy(learner)
    t_env = 45000  # half of the way: alpha is 0.275
    drawn = []
    sample = MaskedCategorical.sample

    def noted(policy):
        drawn.append(sample(policy))
        return drawn[-1]

    monkeypatch.setattr(MaskedCategorical, "sample", noted)
    torch.manual_seed(1)
    learner.train(batch, t_env, 0)
    policy_loss, critic_losses = reference(slow, batch, 0.275, drawn[0])
    policy_loss.backward()
    sum(critic_losses).backward()
    assert log.stats["alpha"][0][0] == pytest.approx(0.275)
    assert log.stats["loss_policy"][0][0] == pytest.approx(policy_loss.item(), rel=1e-4)
    mean = sum(loss.item() for loss in critic_losses) / 2
    assert log.stats["loss_value"][0][0] == pytest.approx(mean, rel=1e-4)
    for mine, theirs in zip(
        [*learner.params, *learner.critic_params], [*slow.params, *slow.critic_params], strict=True
    ):
        size = float(theirs.grad.abs().max())
        assert size > 1e-7
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=max(1e-4 * size, 1e-6))


def test_without_weights_it_is_a_sum():
    """Q_tot is sum_i Q_i + V(s) where all lambda_i are 1."""
    args = fop_args()
    learner, _ = make_learner(args)
    critic, n = learner.critic, 6
    obs, state = torch.randn(n, A, args.obs_shape), torch.randn(n, args.state_shape)
    actions, avail = torch.randint(U, (n, A)), torch.ones(n, A, U)
    weights = critic.mixer.si_weight
    with torch.no_grad():
        for part, bias in ((weights.key, 2.0), (weights.agents, 0.0), (weights.action, 0.0)):
            part.first.weight.zero_()  # 2 kernels x 2 x 1/2 x 1/2
            part.first.bias.fill_(bias)
    q = critic(obs)
    value = critic.mixer.state_value(state)
    chosen = q.gather(-1, actions[None, ..., None].expand(2, n, A, 1)).sum((2, 3))
    joint = critic.joint(q, actions, avail, state, 0.3)
    torch.testing.assert_close(joint.squeeze(-1), chosen + value.squeeze(-1))


def test_no_gradient_through_the_advantages():
    """Only sum_i Q_i moves the utilities: of each action taken by 1, of the others not at all."""
    args = fop_args()
    learner, _ = make_learner(args)
    n = 6
    q = torch.randn(2, n, A, U, requires_grad=True)
    actions = torch.randint(U, (n, A))
    state = torch.randn(n, args.state_shape)
    learner.critic.joint(q, actions, torch.ones(n, A, U), state, 0.3).sum().backward()
    assert torch.equal(q.grad, torch.nn.functional.one_hot(actions, U).expand_as(q.grad).float())


def test_weight_of_the_entropy_falls():
    learner, _ = make_learner(fop_args())
    for t, alpha in ((0, 0.5), (45000, 0.275), (90000, 0.05), (10**6, 0.05)):
        assert learner.schedule.eval(t) == pytest.approx(alpha)


def test_policies_become_the_boltzmann_policies_of_their_utilities():
    """With critics that stay as they are, pi_i is proportional to exp(min_j Q_ij / alpha)."""
    args = fop_args(lr=0.02, agent="mlp_policy", obs_last_action=False, obs_agent_id=False,
                    share_params=False, policy_hidden_dim=32)  # fmt: skip
    args.env_info = {"obs_sizes": [args.obs_shape] * A, "action_sizes": [U] * A}
    learner, _ = make_learner(args)
    learner.critic_optimiser.step = lambda: None
    batch = make_batch(args, lengths=(2, 2, 2), terminated=(True, True, True))
    for update in range(400):
        learner.train(batch, 0, update)
    steps = batch.steps()
    avail = steps.pack(batch["avail_actions"])[steps.cur]
    with torch.no_grad():
        q = learner.critic(steps.pack(batch["obs"])[steps.cur]).amin(0)
        wanted = (q / 0.5).masked_fill(avail == 0, -1e10).softmax(-1)
        logits = learner.mac.unroll(batch, steps)[steps.cur]
    probs = MaskedCategorical(logits, avail).probs
    assert (probs - wanted).abs().max() < 0.05
    assert (wanted.amax(-1) - wanted.amin(-1)).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mac": "basic_mac"}, "needs mac=actor_mac"),
        ({"replay": "latest"}, "needs replay=episodes"),
        ({"common_reward": False}, "common_reward=True"),
        ({"alpha_finish": 0.0}, "alpha_finish must be greater than 0"),
        ({"mixer": "dmaq"}, "mixer=null"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_learner(fop_args(**settings))
    assert "\n" not in str(caught.value)
