"""Stacked layers and the ragged GRU against torch's own layers, one sequence and one group at a time."""

import math

import pytest
import torch
from torch import nn

from modules.layers import GRU, StackedLinear, linear

LENGTHS = (5, 5, 3, 2, 1)
SIZES = [5, 4, 3, 2, 2]  # sequences that have a step 0, 1, ...


def cell_of(gru, group=None):
    """torch's cell with the weights of one group."""
    cell = nn.GRUCell(gru.weight_ih.shape[-1], gru.n_hidden)
    state = gru.state_dict() if group is None else {k: v[group] for k, v in gru.state_dict().items()}
    cell.load_state_dict(state)
    return cell


def loop(cell, x):
    """Rows [R, F], time-major -> hidden states [R, H], sequence by sequence."""
    starts = [sum(SIZES[:t]) for t in range(len(SIZES))]
    rows = [None] * len(x)
    for i, length in enumerate(LENGTHS):
        h = torch.zeros(1, cell.hidden_size)
        for t in range(length):
            h = cell(x[starts[t] + i].unsqueeze(0), h)
            rows[starts[t] + i] = h[0]
    return torch.stack(rows)


def grads(module, loss):
    names, params = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, params, retain_graph=True), strict=True))


@pytest.mark.parametrize("method", ["unroll", "_unroll_cudnn"])
def test_gru_unroll_equals_cell(method):
    torch.manual_seed(0)
    gru, x = GRU(4, 6), torch.randn(sum(SIZES), 4)
    cell = cell_of(gru)
    expected, out = loop(cell, x), getattr(gru, method)(x, SIZES)
    assert torch.allclose(out, expected, atol=1e-6)
    weights = torch.randn_like(out)
    mine, theirs = grads(gru, (out * weights).sum()), grads(cell, (expected * weights).sum())
    for name, grad in theirs.items():
        assert torch.allclose(mine[name], grad, atol=1e-5), name


def test_gru_groups_equal_cells():
    torch.manual_seed(0)
    gru, x = GRU(4, 6, groups=3), torch.randn(3, sum(SIZES), 4)
    cells = [cell_of(gru, g) for g in range(3)]
    expected, out = torch.stack([loop(cell, x[g]) for g, cell in enumerate(cells)]), gru.unroll(x, SIZES)
    assert torch.allclose(out, expected, atol=1e-6)
    weights = torch.randn_like(out)
    mine = grads(gru, (out * weights).sum())
    theirs = [grads(cell, (expected[g] * weights[g]).sum()) for g, cell in enumerate(cells)]
    for name, grad in mine.items():
        assert torch.allclose(grad, torch.stack([t[name] for t in theirs]), atol=1e-5), name
    h = torch.randn(3, 2, 6)
    step = gru(x[:, :2], h)
    assert torch.allclose(step, torch.stack([cell(x[g, :2], h[g]) for g, cell in enumerate(cells)]), atol=1e-6)


def test_gru_has_the_parameters_of_a_cell():
    state, cell = GRU(4, 6).state_dict(), nn.GRUCell(4, 6).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in cell.items()}
    assert {k: (3, *v.shape) for k, v in cell.items()} == {
        k: tuple(v.shape) for k, v in GRU(4, 6, groups=3).state_dict().items()
    }


@pytest.mark.parametrize("shared_input", [False, True])
def test_stacked_linear_equals_linears(shared_input):
    torch.manual_seed(0)
    stacked, x = StackedLinear(4, 5, 3), torch.randn(7, 4) if shared_input else torch.randn(3, 7, 4)
    singles = [nn.Linear(4, 5) for _ in range(3)]
    for g, single in enumerate(singles):
        single.load_state_dict({k: v[g] for k, v in stacked.state_dict().items()})
    out = stacked(x)
    expected = torch.stack([single(x if shared_input else x[g]) for g, single in enumerate(singles)])
    assert out.shape == (3, 7, 5)
    assert torch.allclose(out, expected, atol=1e-6)
    weights = torch.randn(3, 7, 5)
    mine = grads(stacked, (out * weights).sum())
    theirs = [grads(single, (expected[g] * weights[g]).sum()) for g, single in enumerate(singles)]
    for name, grad in mine.items():
        assert torch.allclose(grad, torch.stack([t[name] for t in theirs]), atol=1e-5), name


def test_layers_start_as_torch_starts_them():
    torch.manual_seed(0)
    for layer, fan in ((StackedLinear(16, 200, 3), 16), (GRU(7, 64), 64), (GRU(7, 64, groups=2), 64)):
        bound = 1 / math.sqrt(fan)
        for name, param in layer.named_parameters():
            assert 0.95 * bound < float(param.detach().abs().max()) <= bound, name
            assert float(param.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_linear_of_one_group_is_torchs():
    assert type(linear(3, 4)) is nn.Linear
    assert type(linear(3, 4, groups=2)) is StackedLinear
