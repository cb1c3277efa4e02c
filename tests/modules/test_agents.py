"""Agent networks against torch's own layers, agent by agent and step by step."""

import pytest
import torch
import torch.nn.functional as F
from learner_fixtures import LENGTHS, N_ACTIONS, N_AGENTS, make_args
from torch import nn

from components.steps import Steps
from modules.agents import REGISTRY as AGENTS
from modules.agents.rnn_agent import RNNAgent

INPUTS, HIDDEN = 9, 6
NAMES = ("rnn", "n_rnn", "norm_rnn", "mlp", "central_rnn")


# Everything that a norm_rnn can normalise.
NORMS = {"norm_layers": 2, "norm_inputs": True, "norm_memory": True}


def make_agent(name, **overrides):
    torch.manual_seed(0)
    overrides = {**(NORMS if name == "norm_rnn" else {}), **overrides}
    args = make_args("ow_qmix", central_action_embed=2, **overrides)
    return AGENTS[name](INPUTS, args)


def make_sequences():
    """Inputs [B, T, A, F] of ragged episodes and their steps."""
    torch.manual_seed(1)
    steps = Steps(torch.tensor(LENGTHS), max(LENGTHS))
    return torch.randn(len(LENGTHS), max(LENGTHS), N_AGENTS, INPUTS), steps


def loop(agent, x):
    """Inputs [B, T, A, F] -> outputs [B, T, A, U], by `forward` as PyMARL's controllers call it."""
    b, outputs = len(x), []
    hidden = agent.init_hidden().unsqueeze(0).expand(b, N_AGENTS, -1)
    for t in range(x.shape[1]):
        inputs = x[:, t] if type(agent) is AGENTS["n_rnn"] else x[:, t].reshape(b * N_AGENTS, -1)
        out, hidden = agent(inputs, hidden)
        outputs.append(out.view(b, N_AGENTS, -1))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_unroll_equals_steps(name, share):
    agent = make_agent(name, share_params=share)
    x, steps = make_sequences()
    out = agent.unroll(steps.pack(x), steps)
    assert out.shape == (sum(LENGTHS), N_AGENTS, N_ACTIONS * (2 if name == "central_rnn" else 1))
    expected = steps.pack(loop(agent, x))
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(agent.head(agent.unroll_hidden(steps.pack(x), steps)), out, atol=1e-6)
    weights = torch.randn_like(out)
    params = list(agent.parameters())
    mine = torch.autograd.grad((out * weights).sum(), params)
    theirs = torch.autograd.grad((expected * weights).sum(), params)
    for grad, other in zip(mine, theirs, strict=True):
        assert torch.allclose(grad, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["rnn", "n_rnn", "mlp"])
def test_one_step_equals_torch_layers(name):
    agent = make_agent(name)
    torch.manual_seed(2)
    x, h = torch.randn(2, N_AGENTS, INPUTS), torch.randn(2, N_AGENTS, HIDDEN)
    out, new = agent.step(x, h)
    state = agent.state_dict()

    def layer(key, value):
        return F.linear(value, state[f"{key}.weight"], state[f"{key}.bias"])

    cell = nn.GRUCell(HIDDEN, HIDDEN)
    if name != "mlp":
        cell.load_state_dict(
            {k.removeprefix("rnn."): v for k, v in state.items() if k.startswith("rnn.")}
        )
    for b in range(2):
        for i in range(N_AGENTS):
            features = layer("fc1", x[b, i]).relu()
            if name == "mlp":
                expected, expected_h = layer("fc3", layer("fc2", features).relu()), h[b, i]
            else:
                expected_h = cell(features.unsqueeze(0), h[b, i].unsqueeze(0))[0]
                expected = layer("fc2", expected_h)
            assert torch.allclose(out[b, i], expected, atol=1e-6)
            assert torch.allclose(new[b, i], expected_h, atol=1e-6)


def test_parameters_are_pymarls():
    names = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    names |= {f"rnn.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    shapes = {name: tuple(value.shape) for name, value in make_agent("rnn").state_dict().items()}
    assert shapes.keys() == names
    assert shapes["fc1.weight"] == (HIDDEN, INPUTS)
    assert shapes["rnn.weight_ih"] == shapes["rnn.weight_hh"] == (3 * HIDDEN, HIDDEN)
    assert shapes["rnn.bias_ih"] == shapes["rnn.bias_hh"] == (3 * HIDDEN,)
    assert shapes["fc2.weight"] == (N_ACTIONS, HIDDEN)
    assert make_agent("n_rnn").state_dict().keys() == names


@pytest.mark.parametrize("name", NAMES)
def test_own_weights_equal_separate_networks(name):
    agent = make_agent(name, share_params=False)
    x, steps = make_sequences()
    out = agent.unroll(steps.pack(x), steps)
    for i in range(N_AGENTS):
        single = make_agent(name, n_agents=1)
        single.load_state_dict({key: value[i] for key, value in agent.state_dict().items()})
        expected = single.unroll(steps.pack(x[:, :, i : i + 1]), steps)
        assert torch.allclose(out[:, i : i + 1], expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_agents_act_on_their_own_rows(name):
    """Another agent's inputs change nothing of an agent's outputs, shared weights or not."""
    for share in (True, False):
        agent = make_agent(name, share_params=share)
        x, steps = make_sequences()
        before = agent.unroll(steps.pack(x), steps)
        x[:, :, 1] = -3 * x[:, :, 1] + 1
        after = agent.unroll(steps.pack(x), steps)
        assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
        assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("name", NAMES)
def test_own_weights_do_not_touch_each_other(name):
    agent = make_agent(name, share_params=False)
    x, steps = make_sequences()

    def gradient_of_agent_0():
        agent.zero_grad()
        agent.unroll(steps.pack(x), steps)[:, 0].pow(2).sum().backward()
        return [param.grad.clone() for param in agent.parameters()]

    before = gradient_of_agent_0()
    for grad in before:
        assert grad[0].abs().max() > 0
        assert grad[1:].abs().max() == 0
    with torch.no_grad():
        for param in agent.parameters():
            param[1:].normal_()
    for old, new in zip(before, gradient_of_agent_0(), strict=True):
        assert torch.equal(old, new)


def test_agents_with_own_weights_start_different():
    weight = make_agent("rnn", share_params=False).fc1.weight
    assert not torch.equal(weight[0], weight[1])


def test_central_agent_has_e_outputs_per_action():
    agent = make_agent("central_rnn")
    assert isinstance(agent, RNNAgent)
    assert agent.fc2.out_features == N_ACTIONS * 2


def test_sequences_do_not_mix():
    """What happens in one episode changes nothing in another one."""
    agent = make_agent("rnn")
    x, steps = make_sequences()
    before = steps.unpack(agent.unroll(steps.pack(x), steps))
    x[1] += 1
    after = steps.unpack(agent.unroll(steps.pack(x), steps))
    assert not torch.allclose(before[1], after[1])
    others = [0, 2, 3, 4]
    assert torch.allclose(before[others], after[others], atol=1e-6)


def test_n_rnn_normalises_and_begins_orthogonal_where_it_is_told_to():
    agent = make_agent("n_rnn", use_layer_norm=True, use_orthogonal=True, gain=0.1)
    for layer, gain in ((agent.fc1, 1.0), (agent.fc2, 0.1)):
        wide = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        assert torch.allclose(wide @ wide.T, gain**2 * torch.eye(len(wide)), atol=1e-6)
        assert not layer.bias.any()
    torch.nn.init.normal_(agent.layer_norm.weight)
    x, steps = make_sequences()
    assert torch.allclose(agent.unroll(steps.pack(x), steps), steps.pack(loop(agent, x)), atol=1e-5)
    hidden = agent.unroll_hidden(steps.pack(x), steps)
    mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True, correction=0)
    norm = agent.layer_norm
    normal = (hidden - mean) / (std**2 + norm.eps).sqrt() * norm.weight + norm.bias
    expected = normal @ agent.fc2.weight.T + agent.fc2.bias
    assert torch.allclose(agent.head(hidden), expected, atol=1e-5)
    assert make_agent("n_rnn").layer_norm is None


@pytest.mark.parametrize("place", ["before", "after"])
def test_norm_rnn_normalises_rows_one_by_one(place):
    """Inputs, two layers and memory of one agent, by the definition of layer norm."""
    agent = make_agent("norm_rnn", norm_place=place)
    for norm in (*agent.fc1.norms, agent.fc1.input_norm, agent.layer_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def normal(norm, row):
        mean = sum(row) / len(row)
        variance = sum((x - mean) ** 2 for x in row) / len(row)
        return (row - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias

    torch.manual_seed(2)
    x, h = torch.randn(2, N_AGENTS, INPUTS), torch.randn(2, N_AGENTS, HIDDEN)
    out, new = agent.step(x, h)
    rnn = agent.rnn
    weights = rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh
    for b in range(2):
        for i in range(N_AGENTS):
            row = normal(agent.fc1.input_norm, x[b, i])
            for layer, norm in zip(agent.fc1.layers, agent.fc1.norms, strict=True):
                row = layer.weight @ row + layer.bias
                if place == "before":
                    row = normal(norm, row).clamp(min=0)
                else:
                    row = normal(norm, row.clamp(min=0))
            memory = torch.gru_cell(row.unsqueeze(0), h[b, i].unsqueeze(0), *weights)[0]
            expected = agent.fc2.weight @ normal(agent.layer_norm, memory) + agent.fc2.bias
            assert torch.allclose(new[b, i], memory, atol=1e-5)
            assert torch.allclose(out[b, i], expected, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_norm_rnn_begins_orthogonal_where_it_is_told_to(share):
    agent = make_agent("norm_rnn", use_orthogonal=True, gain=0.01, share_params=share)
    matrices = [(layer.weight, 2.0) for layer in agent.fc1.layers] + [(agent.fc2.weight, 1e-4)]
    matrices += [(agent.rnn.weight_ih, 1.0), (agent.rnn.weight_hh, 1.0)]
    for weight, square in matrices:
        for one in weight.detach().view(-1, *weight.shape[-2:]):
            small = one if one.shape[0] <= one.shape[1] else one.T
            products = small @ small.T / square
            assert torch.allclose(products, torch.eye(len(small)), atol=1e-5)
    for name, bias in agent.named_parameters():
        if "bias" in name:
            assert not bias.any(), name
