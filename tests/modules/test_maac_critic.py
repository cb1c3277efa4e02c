"""The attention critic against plain loops, and its counterfactual values against valuing every
other action.
"""

import pytest
import torch
import torch.nn.functional as F
from learner_fixtures import make_scheme
from maac_fixtures import SIZES, critic_value, maac_args, transitions

from modules.critics import REGISTRY as CRITICS
from modules.critics import attention
from utils.errors import ConfigError

TWO = ((4, 2), (3, 3))
MANY = ((3, 5, 4, 5, 2), (2, 4, 4, 3, 4))


def make_critic(args, seed=0):
    torch.manual_seed(seed)
    critic = CRITICS["attention"](make_scheme(args)[0], args)
    with torch.no_grad():  # so that attention is far from uniform
        critic.key.weight.mul_(4)
        critic.query.weight.mul_(4)
    return critic


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, TWO, MANY], ids=str)
def test_values_logits_and_attention(sizes, continuous):
    args = maac_args(sizes=sizes, continuous=continuous)
    critic, batch = make_critic(args), transitions(args)
    out = critic(batch["obs"], batch["actions"])
    n_values = 1 if continuous else args.n_actions
    assert out.all_q.shape == (16, args.n_agents, n_values)
    for i in range(args.n_agents):
        all_q, logits, weights = critic_value(critic, batch["obs"], batch["actions"], i)
        assert torch.allclose(out.all_q[:, i], all_q, atol=1e-5)
        assert torch.allclose(out.logits[:, :, i], logits, atol=1e-4)
        assert torch.allclose(out.attention[:, :, i], weights, atol=1e-5)
    assert out.attention.max() > 0.9 or args.n_agents == 2
    assert torch.equal(out.attention.diagonal(dim1=2, dim2=3), torch.zeros(2, 16, args.n_agents))


@pytest.mark.parametrize("continuous", [False, True])
def test_gradients(continuous):
    args = maac_args(continuous=continuous)
    critic, batch = make_critic(args), transitions(args)
    weights = torch.randn(16, args.n_agents, 1 if continuous else args.n_actions)
    out = critic(batch["obs"], batch["actions"])
    ((out.all_q * weights).sum() + out.logits.pow(2).sum()).backward()
    mine = {name: param.grad.clone() for name, param in critic.named_parameters()}
    critic.zero_grad()
    loss = 0.0
    for i in range(args.n_agents):
        all_q, logits, _ = critic_value(critic, batch["obs"], batch["actions"], i)
        loss = loss + (all_q * weights[:, i]).sum() + logits.pow(2).sum()
    loss.backward()
    for name, param in critic.named_parameters():
        scale = float(param.grad.abs().max())
        assert scale > 1e-3, name
        assert torch.allclose(mine[name], param.grad, rtol=1e-3, atol=1e-5 * scale), name


def test_gradient_of_continuous_actions():
    """MADDPG-like learners need dQ/da; batch norm included."""
    args = maac_args(continuous=True)
    critic, batch = make_critic(args), transitions(args)
    actions = batch["actions"].clone().requires_grad_()
    (mine,) = torch.autograd.grad(critic(batch["obs"], actions).all_q.sum(), actions)
    looped = sum(
        critic_value(critic, batch["obs"], actions, i)[0].sum() for i in range(args.n_agents)
    )
    (theirs,) = torch.autograd.grad(looped, actions)
    assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    assert theirs.abs().max() > 1e-2


def test_evaluation_mode_uses_running_statistics():
    args = maac_args()
    critic, batch = make_critic(args), transitions(args)
    critic(batch["obs"], batch["actions"])
    mean, var = critic.norm.running_mean.clone(), critic.norm.running_var.clone()
    out = critic.eval()(batch["obs"], batch["actions"])
    assert torch.equal(mean, critic.norm.running_mean)
    for i in range(args.n_agents):
        all_q = critic_value(
            critic,
            batch["obs"],
            batch["actions"],
            i,
            norm=lambda x: (x - mean) / (var + 1e-5).sqrt(),
        )
        assert torch.allclose(out.all_q[:, i], all_q[0], atol=1e-4)


def test_values_do_not_depend_on_the_own_action():
    args = maac_args()
    critic, batch = make_critic(args).eval(), transitions(args)
    all_q = critic(batch["obs"], batch["actions"]).all_q
    for i in range(args.n_agents):
        changed = batch["actions"].clone()
        changed[:, i] = (changed[:, i] + 1) % args.n_actions
        differences = (critic(batch["obs"], changed).all_q - all_q).abs().amax((0, 2))
        assert differences[i] < 1e-6
        assert (differences[torch.arange(args.n_agents) != i] > 1e-3).all()


def test_own_samples():
    args = maac_args(continuous=True)
    critic, batch = make_critic(args), transitions(args)
    own = torch.rand(16, args.n_agents, 3, args.n_actions) * 2 - 1
    out = critic(batch["obs"], batch["actions"], own)
    assert out.all_q.shape == (16, args.n_agents, 3)
    for i in range(args.n_agents):
        for k in range(3):
            expected = critic_value(critic, batch["obs"], batch["actions"], i, own[:, i, k])[
                0
            ].squeeze(1)
            assert torch.allclose(out.all_q[:, i, k], expected, atol=1e-5)


def with_batch_statistics(critic, batch):
    """The critic in evaluation mode, its running statistics those of this batch."""
    actions = batch["actions"]
    features = actions if critic.continuous else F.one_hot(actions, critic.n_actions).float()
    x = torch.cat([batch["obs"], features], -1)
    critic.norm.running_mean.copy_(x.mean(0))
    critic.norm.running_var.copy_(x.var(0, unbiased=False))
    return critic.eval()


def value_of(critic, batch, actions):
    """Q_i(o, actions), i's own action being that of the batch: [N, A]."""
    if critic.continuous:
        return critic(batch["obs"], actions, batch["actions"].unsqueeze(2)).all_q.squeeze(-1)
    all_q = critic(batch["obs"], actions).all_q
    return all_q.gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, TWO, MANY], ids=str)
@torch.no_grad()
def test_counterfactual_values(sizes, continuous, mode, monkeypatch):
    """Every other action of every other agent put into the joint action, one by one; rows that fill
    no whole chunk.
    """
    monkeypatch.setattr(attention, "_ROWS", 7)
    args = maac_args(sizes=sizes, continuous=continuous)
    critic, batch = make_critic(args), transitions(args, 20)
    samples = torch.rand(20, args.n_agents, 3, args.n_actions) * 2 - 1 if continuous else None
    if mode == "eval":
        with_batch_statistics(critic, batch)
    before = critic.norm.running_mean.clone()
    q = critic.counterfactual(batch["obs"], batch["actions"], samples)
    assert torch.equal(before, critic.norm.running_mean)
    with_batch_statistics(critic, batch)
    n_choices = 3 if continuous else args.n_actions
    assert q.shape == (20, args.n_agents, args.n_agents, n_choices)
    taken = value_of(critic, batch, batch["actions"])
    moved = 0.0
    for j in range(args.n_agents):
        for k in range(n_choices):
            actions = batch["actions"].clone()
            actions[:, j] = samples[:, j, k] if continuous else k
            expected = value_of(critic, batch, actions)
            expected[:, j] = taken[:, j]
            assert torch.allclose(q[:, :, j, k], expected, rtol=1e-3, atol=1e-4), (j, k)
            moved = max(moved, float((expected - taken).abs().max()))
    assert moved > 0.05


@torch.no_grad()
def test_counterfactual_values_where_attention_is_extreme():
    """The weight of the replaced agent is nearly 1: nothing is lost when it is taken out."""
    args = maac_args(sizes=MANY)
    critic, batch = make_critic(args), transitions(args, 20)
    critic.key.weight.mul_(30)
    assert critic(batch["obs"], batch["actions"]).attention.max() > 1 - 1e-6
    q = critic.counterfactual(batch["obs"], batch["actions"])
    with_batch_statistics(critic, batch)
    assert torch.isfinite(q).all()
    for j in range(args.n_agents):
        actions = batch["actions"].clone()
        actions[:, j] = 1
        expected = value_of(critic, batch, actions)
        expected[:, j] = q[:, j, j, 1]
        assert torch.allclose(q[:, :, j, 1], expected, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("continuous", [False, True])
def test_padding_is_inert(continuous):
    """A wider padding of observations and actions changes no value, and padding's weights have no
    gradient.
    """
    narrow, wide = (
        maac_args(continuous=continuous),
        maac_args(continuous=continuous, obs_shape=7, n_actions=6),
    )
    critic, padded = make_critic(narrow), make_critic(wide)
    o, u, width = narrow.obs_shape, narrow.n_actions, narrow.critic_hidden_dim
    state = padded.state_dict()
    for name, value in critic.state_dict().items():
        if name in ("encoder.weight", "norm.running_mean", "norm.running_var"):
            state[name].fill_(float("var" in name))
            state[name][..., :o], state[name][..., 7 : 7 + u] = value[..., :o], value[..., o:]
        elif name == "state_encoder.weight":
            state[name].zero_()
            state[name][..., :o] = value
        elif name == "head1.weight":
            state[name].zero_()
            state[name][..., : value.shape[-1]] = value
        elif name.startswith("head2") and not continuous:
            state[name][:, :u] = value
        else:
            state[name].copy_(value)
    padded.load_state_dict(state)
    batch = transitions(narrow)
    actions = F.pad(batch["actions"], (0, 2)) if continuous else batch["actions"]
    mine = padded(F.pad(batch["obs"], (0, 2)), actions).all_q
    expected = critic(batch["obs"], batch["actions"]).all_q
    assert torch.allclose(mine[..., : expected.shape[-1]], expected, atol=1e-6)
    mine[..., : expected.shape[-1]].sum().backward()
    obs_sizes, action_sizes = SIZES
    for i in range(3):
        assert torch.equal(
            padded.encoder.weight.grad[i, :, obs_sizes[i] : 7], torch.zeros(width, 7 - obs_sizes[i])
        )
        assert not padded.encoder.weight.grad[i, :, 7 + action_sizes[i] :].any()
        assert not padded.state_encoder.weight.grad[i, :, obs_sizes[i] :].any()
        assert padded.encoder.weight.grad[i, :, : obs_sizes[i]].any()


def test_padding_starts_at_zero():
    critic = make_critic(maac_args(continuous=True))
    for i, (o, u) in enumerate(zip(*SIZES, strict=True)):
        seen = [True] * o + [False] * (5 - o)
        known = [True] * u + [False] * (4 - u)
        for name, used in (
            ("state_encoder", seen),
            ("encoder", seen + known),
            ("head1", [True] * 16 + known),
        ):
            weight = getattr(critic, name).weight[i].detach()
            assert torch.equal((weight != 0).all(0), torch.tensor(used)), name
            assert not weight[:, ~torch.tensor(used)].any(), name


def test_shared_gradients_are_divided():
    args = maac_args()
    critic, batch = make_critic(args), transitions(args)
    critic(batch["obs"], batch["actions"]).all_q.pow(2).sum().backward()
    before = {name: param.grad.clone() for name, param in critic.named_parameters()}
    critic.scale_shared_grads()
    shared = {
        "query.weight",
        "key.weight",
        "value.weight",
        "value.bias",
        "encoder.weight",
        "encoder.bias",
    }
    for name, param in critic.named_parameters():
        expected = before[name] / 3 if name in shared else before[name]
        assert torch.allclose(param.grad, expected), name
    assert shared < before.keys()


def test_what_the_critic_refuses():
    with pytest.raises(ConfigError, match="only one agent"):
        make_critic(maac_args(sizes=((4,), (3,))))
    with pytest.raises(
        ConfigError, match=r"attention_heads \(3\) must divide critic_hidden_dim \(8\)"
    ):
        make_critic(maac_args(attention_heads=3))
