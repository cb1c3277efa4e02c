"""The actor controller: what it acts on and records, its network's mode; the policy network;
stacked batch norm.
"""

import math

import pytest
import torch
from learner_fixtures import make_args, make_batch, make_mac
from maac_fixtures import SIZES, layer, maac_args, policy_outputs
from torch import nn

from modules.agents import REGISTRY as AGENTS
from modules.layers import StackedBatchNorm, StackedLinear, first_inputs
from utils.errors import ConfigError


def actor(seed=0, **settings):
    args = maac_args(**settings)
    torch.manual_seed(seed)
    mac = make_mac(args)
    with torch.no_grad():  # policies far from uniform, and running statistics that say something
        mac.agent.fc3.weight.mul_(8)
        mac.agent.norm.running_mean.normal_()
        mac.agent.norm.running_var.uniform_(0.5, 2.0)
    return mac


def expected_outputs(mac, obs, i):
    """Agent i's outputs with the running statistics: obs [N, A, O] -> [N, U or 2U]."""
    agent, norm = mac.agent, mac.agent.norm
    x = (obs[:, i] - norm.running_mean[i]) / (norm.running_var[i] + 1e-5).sqrt()
    x = nn.functional.leaky_relu(layer(agent.fc1, i, x))
    return layer(agent.fc3, i, nn.functional.leaky_relu(layer(agent.fc2, i, x)))


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_recorded_probabilities_are_those_of_the_behaviour(epsilon, test_mode):
    mac = actor(epsilon_start=epsilon, epsilon_finish=epsilon, test_greedy=False)
    batch = make_batch(mac.args)
    mac.init_hidden(batch.batch_size)
    actions = mac.select_actions(batch, 1, 0, test_mode=test_mode)
    assert actions.shape == (5, 3)
    assert mac.last_record.keys() == mac.recorded.keys() == {"log_prob"}
    assert mac.last_record["log_prob"].shape == (5, 3)
    avail = batch["avail_actions"][:, 1]
    for i in range(3):
        logits = expected_outputs(mac, batch["obs"][:, 1], i)
        for b in range(5):
            weights = [
                math.exp(float(x)) * int(ok) for x, ok in zip(logits[b], avail[b, i], strict=True)
            ]
            # Behind the end of an episode nothing is available: such an agent must not be asked to
            # act.
            pi = weights[actions[b, i]] / sum(weights)
            mixed = pi if test_mode else (1 - epsilon) * pi + epsilon / int(avail[b, i].sum())
            assert float(mac.last_record["log_prob"][b, i]) == pytest.approx(
                math.log(mixed), rel=1e-4, abs=1e-5
            )


def test_agents_take_the_networks_of_fewer_by_turns(tmp_path):
    """Weights of 2 agents for 3 of the same size: agent 2 is played by the first."""
    sizes = ((4, 4, 4), (3, 3, 3))
    few, many = (make_mac(maac_args(sizes=[s[:n] for s in sizes])) for n in (2, 3))
    with torch.no_grad():
        few.agent.norm.running_mean.normal_()
    few.save_models(str(tmp_path))
    with pytest.raises(RuntimeError, match="size mismatch"):
        many.load_models(str(tmp_path))
    many.load_models(str(tmp_path), trained_agents=2)
    obs = torch.randn(6, 3, 4)
    few.agent.eval(), many.agent.eval()
    torch.testing.assert_close(many.agent.logits(obs)[:, :2], few.agent.logits(obs[:, :2]))
    torch.testing.assert_close(
        many.agent.logits(obs)[:, 2], few.agent.logits(obs[:, 2:].expand(-1, 2, -1))[:, 0]
    )


def test_actions_follow_the_policy():
    mac = actor()
    batch = make_batch(mac.args)
    torch.manual_seed(0)
    mac.init_hidden(batch.batch_size)
    drawn = torch.stack([mac.select_actions(batch, 0, 0) for _ in range(3000)])
    outputs = mac.forward(batch, 0)
    probs = mac.policy(outputs, batch["avail_actions"][:, 0]).probs
    shares = torch.stack([(drawn == u).float().mean(0) for u in range(4)], -1)
    assert torch.allclose(shares, probs, atol=0.04)
    greedy = mac.select_actions(batch, 0, 0, test_mode=True)
    assert torch.equal(greedy, probs.argmax(-1))


def test_some_of_the_episodes():
    mac = actor()
    batch = make_batch(mac.args)
    mac.init_hidden(batch.batch_size)
    rows = torch.tensor([1, 3])
    actions = mac.select_actions(batch, 0, 0, bs=rows, test_mode=True)
    assert mac.last_record["log_prob"].shape == (2, 3)
    assert torch.equal(actions, mac.select_actions(batch, 0, 0, test_mode=True)[rows])


@pytest.mark.parametrize("test_mode", [False, True])
def test_the_network_acts_in_evaluation_mode(test_mode):
    mac = actor()
    batch = make_batch(mac.args)
    mac.agent.train()
    before = mac.agent.norm.running_mean.clone()
    mac.init_hidden(batch.batch_size)
    mac.select_actions(batch, 0, 0, test_mode=test_mode)
    assert not mac.agent.training
    assert torch.equal(before, mac.agent.norm.running_mean)


def test_unroll_gives_what_the_network_puts_out():
    mac = actor()
    batch, steps = make_batch(mac.args), make_batch(mac.args).steps()
    mac.agent.eval()
    outputs, obs = mac.unroll(batch, steps), steps.pack(batch["obs"])
    for i in range(3):
        assert torch.allclose(outputs[:, i], expected_outputs(mac, obs, i), atol=1e-4)


@pytest.mark.parametrize("test_mode", [False, True])
def test_continuous_actions(test_mode):
    mac = actor(continuous=True, sizes=((5, 3, 2), (2, 2, 2)))
    args = mac.args
    discrete = maac_args(sizes=((5, 3, 2), (2, 2, 2)))
    batch = make_batch(discrete)
    batch.data.transition_data["avail_actions"].fill_(1)
    mac.init_hidden(batch.batch_size)
    torch.manual_seed(4)
    actions = mac.select_actions(batch, 0, 0, test_mode=test_mode)
    assert actions.shape == (5, 3, 2)
    assert actions.dtype == torch.float32
    assert actions.abs().max() <= 1
    for i in range(3):
        mean, log_std = expected_outputs(mac, batch["obs"][:, 0], i).double().chunk(2, -1)
        mean = 5 * (mean / 5).tanh()
        std = log_std.clamp(-5, 2).exp()
        if test_mode:
            assert torch.allclose(actions[:, i], mean.tanh().float(), atol=1e-5)
        before = actions[:, i].double().clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        density = -0.5 * ((before - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        density = (density - torch.log(1 - before.tanh() ** 2)).sum(-1)
        inside = (
            actions[:, i].abs().amax(-1) < 0.99
        )  # nearer to the bounds float32 has no digits left
        mine = mac.last_record["log_prob"][:, i]
        assert torch.allclose(mine[inside], density.float()[inside], rtol=1e-3, atol=1e-3)
    again = mac.select_actions(batch, 0, 0, test_mode=test_mode)
    assert torch.equal(again, actions) == test_mode
    assert args.continuous_actions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent_output_type": "q"}, "agent_output_type=pi_logits"),
        (
            {"action_selector": "epsilon_greedy"},
            "needs action_selector=multinomial, got action_selector=epsilon_greedy",
        ),
        ({"obs_last_action": True}, "reads the observation alone"),
        ({"share_params": True}, "set share_params=False"),
    ],
    ids=str,
)
def test_what_does_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        actor(**settings)


def test_recurrent_policies():
    """Any agent network may act, here PyMARL's with shared weights."""
    args = make_args(
        "maac", agent="rnn", share_params=True, obs_agent_id=True, obs_last_action=True
    )
    mac = make_mac(args)
    batch = make_batch(args)
    mac.init_hidden(batch.batch_size)
    first = mac.select_actions(batch, 0, 0)
    assert first.shape == (5, 3)
    assert mac.hidden_states.abs().max() > 0


# -- the policy network and its layers -------------------------------------------------------------


@pytest.mark.parametrize("continuous", [False, True])
def test_policy_network(continuous):
    args = maac_args(continuous=continuous)
    torch.manual_seed(0)
    agent = AGENTS["mlp_policy"](args.obs_shape, args)
    obs = torch.randn(16, 3, 5)
    for i, size in enumerate(SIZES[0]):
        obs[:, i, size:] = 0
    outputs = agent.logits(obs)
    assert outputs.shape == (16, 3, 8 if continuous else 4)
    for i in range(3):
        assert torch.allclose(outputs[:, i], policy_outputs(agent, obs, i), atol=1e-5)
    expected = [[u < size for u in range(4)] * (1 + continuous) for size in SIZES[1]]
    assert agent.used_outputs.tolist() == expected
    hidden = agent.init_hidden().expand(16, 3, -1)
    agent.eval()
    stepped, after = agent.step(obs, hidden)
    rows, _ = agent(obs.flatten(0, 1), hidden)
    assert torch.equal(stepped.flatten(0, 1), rows)
    assert after is hidden
    agent.logits(obs).sum().backward()
    for i, size in enumerate(SIZES[0]):
        assert not agent.fc1.weight[i, :, size:].any()
        assert not agent.fc1.weight.grad[i, :, size:].any()
        assert agent.fc1.weight.grad[i, :, :size].any()


def test_policy_network_in_common():
    """All agents' rows pass one network, and its batch norm together."""
    args = maac_args(sizes=((5, 5, 5), (4, 4, 4)), share_params=True)
    torch.manual_seed(0)
    agent = AGENTS["mlp_policy"](args.obs_shape, args)
    obs = torch.randn(16, 3, 5)
    outputs = agent.logits(obs)
    assert torch.allclose(
        outputs.flatten(0, 1), policy_outputs(agent, obs.view(-1, 1, 5), 0), atol=1e-5
    )
    assert torch.allclose(agent.mean_square(outputs), outputs.square().mean((0, 2)))
    hidden = agent.init_hidden().expand(16, 3, -1)
    agent.eval()
    stepped, _ = agent.step(obs, hidden)
    rows, _ = agent(obs.flatten(0, 1), hidden)
    assert torch.equal(stepped.flatten(0, 1), rows)
    # Of any number of agents.
    assert torch.allclose(agent.logits(obs.view(8, 6, 5)).flatten(0, 1), rows, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_batch_norm_equals_torchs(transposed):
    torch.manual_seed(0)
    ours, theirs = StackedBatchNorm(4, 3), [nn.BatchNorm1d(4, affine=False) for _ in range(3)]
    for _ in range(3):
        x = torch.randn(9, 3, 4).transpose(0, 1) if transposed else torch.randn(3, 9, 4)
        x = (x * 3 + 1).detach().requires_grad_()
        weights = torch.randn(3, 9, 4)
        out = ours(x)
        (grad,) = torch.autograd.grad((out * weights).sum(), x)
        for g, norm in enumerate(theirs):
            single = x[g].detach().requires_grad_()
            expected = norm(single)
            assert torch.allclose(out[g], expected, atol=1e-5)
            assert torch.allclose(
                grad[g], torch.autograd.grad((expected * weights[g]).sum(), single)[0], atol=1e-5
            )
            assert torch.allclose(ours.running_mean[g], norm.running_mean, atol=1e-5)
            assert torch.allclose(ours.running_var[g], norm.running_var, atol=1e-5)
        shift, scale = ours.statistics(x)
        assert torch.allclose((x - shift) * scale, out, atol=1e-5)
    ours.eval()
    shift, scale = ours.statistics(x)
    assert torch.allclose((x - shift) * scale, ours(x), atol=1e-5)
    for g, norm in enumerate(theirs):
        assert torch.allclose(ours(x)[g], norm.eval()(x[g]), atol=1e-5)


def test_layers_with_inputs_of_different_size():
    torch.manual_seed(0)
    layer_of_sizes = StackedLinear(16, 300, 3, in_sizes=[16, 9, 4])
    for g, size in enumerate([16, 9, 4]):
        bound = 1 / math.sqrt(size)
        weight = layer_of_sizes.weight[g].detach()
        assert not weight[:, size:].any()
        assert 0.95 * bound < float(weight[:, :size].abs().max()) <= bound
        assert float(weight[:, :size].std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert 0.9 * bound < float(layer_of_sizes.bias[g].detach().abs().max()) <= bound
    used = first_inputs((3, [3, 1]), (2, [0, 2]))
    assert used.tolist() == [[True, True, True, False, False], [True, False, False, True, True]]
    masked = StackedLinear(5, 8, 2, in_sizes=used).weight.detach()
    assert torch.equal((masked != 0).all(1), used)
    for wrong in ([3, 0], [5, 1, 1]):
        with pytest.raises(ValueError, match="in_sizes must select from 1 to 5 inputs"):
            StackedLinear(5, 8, 2, in_sizes=wrong)
