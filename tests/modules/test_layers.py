"""Stacked layers and the ragged GRU against torch's own layers, one sequence and one group at a
time.
"""

import math

import pytest
import torch
from torch import nn

from modules.layers import GRU, StackedLinear, linear

LENGTHS = ((5, 5, 3, 2, 1), (4, 4, 4), (1, 1), (6,))


def sizes_of(lengths):
    """Sequences that have a step 0, 1, ..."""
    return [sum(length > t for length in lengths) for t in range(max(lengths))]


def cell_of(gru, group=None):
    """torch's cell with the weights of one group."""
    cell = nn.GRUCell(gru.weight_ih.shape[-1], gru.n_hidden)
    state = (
        gru.state_dict() if group is None else {k: v[group] for k, v in gru.state_dict().items()}
    )
    cell.load_state_dict(state)
    return cell


def loop(cell, x, lengths):
    """Rows [R, F], time-major -> hidden states [R, H], sequence by sequence."""
    sizes = sizes_of(lengths)
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    rows = [None] * len(x)
    for i, length in enumerate(lengths):
        h = torch.zeros(1, cell.hidden_size)
        for t in range(length):
            h = cell(x[starts[t] + i].unsqueeze(0), h)
            rows[starts[t] + i] = h[0]
    return torch.stack(rows)


def grads(module, x, loss):
    """Gradients of all parameters and of the input."""
    names, params = zip(*module.named_parameters(), strict=True)
    return dict(
        zip((*names, "x"), torch.autograd.grad(loss, (*params, x), retain_graph=True), strict=True)
    )


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("method", ["unroll", "_unroll_cudnn"])
def test_gru_unroll_equals_cell(method, lengths):
    torch.manual_seed(0)
    gru, x, sizes = GRU(4, 6), torch.randn(sum(lengths), 4, requires_grad=True), sizes_of(lengths)
    cell = cell_of(gru)
    expected, out = loop(cell, x, lengths), getattr(gru, method)(x, sizes)
    assert torch.allclose(out, expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(getattr(gru, method)(x, sizes), expected, atol=1e-6)
    weights = torch.randn_like(out)
    mine, theirs = grads(gru, x, (out * weights).sum()), grads(cell, x, (expected * weights).sum())
    for name, grad in theirs.items():
        assert torch.allclose(mine[name], grad, atol=1e-5), name


def test_one_cudnn_call_per_group_equals_the_stacked_loop():
    torch.manual_seed(0)
    lengths = [4, 2, 2, 1]
    gru, x, sizes = (
        GRU(4, 6, groups=3),
        torch.randn(3, sum(lengths), 4, requires_grad=True),
        sizes_of(lengths),
    )
    out, expected = gru._unroll_cudnn(x, sizes), gru.unroll(x, sizes)
    assert torch.allclose(out, expected, atol=1e-6)
    weights = torch.randn_like(out)
    mine, theirs = grads(gru, x, (out * weights).sum()), grads(gru, x, (expected * weights).sum())
    for name, grad in theirs.items():
        assert torch.allclose(mine[name], grad, atol=1e-5), name


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gru_groups_equal_cells(lengths):
    torch.manual_seed(0)
    gru, x, sizes = (
        GRU(4, 6, groups=3),
        torch.randn(3, sum(lengths), 4, requires_grad=True),
        sizes_of(lengths),
    )
    cells = [cell_of(gru, g) for g in range(3)]
    expected = torch.stack([loop(cell, x[g], lengths) for g, cell in enumerate(cells)])
    out = gru.unroll(x, sizes)
    assert torch.allclose(out, expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(gru.unroll(x, sizes), expected, atol=1e-6)
    weights = torch.randn_like(out)
    mine = grads(gru, x, (out * weights).sum())
    theirs = [grads(cell, x, (expected[g] * weights[g]).sum()) for g, cell in enumerate(cells)]
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert torch.allclose(mine[name], torch.stack([t[name] for t in theirs]), atol=1e-5), name
    assert torch.allclose(mine["x"], sum(t["x"] for t in theirs), atol=1e-5)


def test_gru_single_step_of_groups():
    torch.manual_seed(0)
    gru, x, h = GRU(4, 6, groups=3), torch.randn(3, 2, 4), torch.randn(3, 2, 6)
    expected = torch.stack([cell_of(gru, g)(x[g], h[g]) for g in range(3)])
    assert torch.allclose(gru(x, h), expected, atol=1e-6)


def test_gru_has_the_parameters_of_a_cell():
    state, cell = GRU(4, 6).state_dict(), nn.GRUCell(4, 6).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in cell.items()}
    assert {k: (3, *v.shape) for k, v in cell.items()} == {
        k: tuple(v.shape) for k, v in GRU(4, 6, groups=3).state_dict().items()
    }


@pytest.mark.parametrize("shared_input", [False, True])
def test_stacked_linear_equals_linears(shared_input):
    torch.manual_seed(0)
    x = (torch.randn(7, 4) if shared_input else torch.randn(3, 7, 4)).requires_grad_()
    stacked = StackedLinear(4, 5, 3)
    singles = [nn.Linear(4, 5) for _ in range(3)]
    for g, single in enumerate(singles):
        single.load_state_dict({k: v[g] for k, v in stacked.state_dict().items()})
    out = stacked(x)
    expected = torch.stack(
        [single(x if shared_input else x[g]) for g, single in enumerate(singles)]
    )
    assert out.shape == (3, 7, 5)
    assert torch.allclose(out, expected, atol=1e-6)
    weights = torch.randn(3, 7, 5)
    mine = grads(stacked, x, (out * weights).sum())
    theirs = [
        grads(single, x, (expected[g] * weights[g]).sum()) for g, single in enumerate(singles)
    ]
    for name in ("weight", "bias"):
        assert torch.allclose(mine[name], torch.stack([t[name] for t in theirs]), atol=1e-5), name
    assert torch.allclose(mine["x"], sum(t["x"] for t in theirs), atol=1e-5)


def test_layers_start_as_torch_starts_them():
    torch.manual_seed(0)
    for layer, fan in (
        (StackedLinear(16, 200, 3), 16),
        (GRU(7, 64), 64),
        (GRU(7, 64, groups=2), 64),
    ):
        bound = 1 / math.sqrt(fan)
        for name, param in layer.named_parameters():
            assert 0.95 * bound < float(param.detach().abs().max()) <= bound, name
            assert float(param.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_linear_of_one_group_is_torchs():
    assert isinstance(linear(3, 4), nn.Linear)
    assert type(linear(3, 4, groups=2)) is StackedLinear
