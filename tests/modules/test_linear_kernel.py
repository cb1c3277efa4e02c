"""Linear layers by the kernel against torch's: numbers, gradients, layouts, threads, what is left
to torch.
"""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad as gradient_of

from modules.kernels import build
from modules.kernels import linear as kernels
from modules.layers import Linear, StackedLinear

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler"
)


@pytest.fixture(autouse=True)
def everything_is_worth_it(monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_WORK", 0)


def close(mine, theirs):
    return torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def by_torch(x, weight, bias, rectify, slope=0.0):
    out = torch.matmul(x, weight.transpose(-1, -2))
    out = out if bias is None else out + bias.unsqueeze(-2)
    return F.leaky_relu(out, slope) if rectify else out


def operands(groups, rows, n_in, n_out, shared=False, bias=True):
    lead = () if groups == 1 else (groups,)
    x = torch.randn(*(() if shared else lead), rows, n_in, requires_grad=True)
    weight = torch.randn(*lead, n_out, n_in, requires_grad=True)
    return x, weight, torch.randn(*lead, n_out, requires_grad=True) if bias else None


@pytest.mark.parametrize(("rectify", "slope"), [(False, 0.0), (True, 0.0), (True, 0.25)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"),
    [(1, 1, 1), (7, 5, 3), (97, 64, 64), (200, 98, 14), (193, 33, 130), (96, 16, 48)],
)
def test_numbers_and_gradients(rows, n_in, n_out, groups, rectify, slope):
    torch.manual_seed(rows + groups)
    x, weight, bias = operands(groups, rows, n_in, n_out)
    assert kernels.available(x, weight, bias)
    mine = kernels.linear(x, weight, bias, rectify, slope)
    theirs = by_torch(x, weight, bias, rectify, slope)
    assert close(mine, theirs)
    grad = torch.randn_like(theirs)
    found = torch.autograd.grad(mine, (x, weight, bias), grad)
    expected = torch.autograd.grad(theirs, (x, weight, bias), grad)
    for a, b in zip(found, expected, strict=True):
        assert close(a, b)


def test_one_input_for_all_groups_and_no_bias():
    torch.manual_seed(0)
    x, weight, bias = operands(3, 50, 6, 4, shared=True, bias=False)
    mine, theirs = kernels.linear(x, weight, bias), by_torch(x, weight, bias, False)
    assert close(mine, theirs)
    grad = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(mine, (x, weight), grad),
        torch.autograd.grad(theirs, (x, weight), grad),
        strict=True,
    ):
        assert close(a, b)


def test_rows_of_other_layouts():
    """[R, G, K] seen as [G, R, K] needs no copy; a transposed matrix is left to torch."""
    torch.manual_seed(0)
    layer, rows = StackedLinear(8, 5, 3), torch.randn(40, 3, 8)
    x = rows.transpose(0, 1)
    assert kernels.available(x, layer.weight, layer.bias)
    assert close(layer(x), by_torch(x, layer.weight, layer.bias, False))
    assert not kernels.available(torch.randn(8, 40).t(), torch.randn(5, 8))


def test_leading_axes_and_inputs_without_gradient():
    torch.manual_seed(0)
    layer, x = Linear(6, 4, rectify=True), torch.randn(5, 7, 6)
    out = layer(x)
    assert out.shape == (5, 7, 4)
    assert close(out, F.relu(F.linear(x, layer.weight, layer.bias)))
    out.sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_a_gradient_of_the_gradient():
    torch.manual_seed(0)
    x, weight, bias = operands(1, 9, 5, 4)

    def penalty(layer):
        (of_x,) = torch.autograd.grad(layer().pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(of_x.pow(2).sum(), (weight, bias))

    mine = penalty(lambda: kernels.linear(x, weight, bias, True))
    theirs = penalty(lambda: by_torch(x, weight, bias, True))
    for a, b in zip(mine, theirs, strict=True):
        assert close(a, b)


def test_torch_func_and_other_kinds_of_numbers_go_through_torch():
    layer, x = Linear(3, 2), torch.randn(4, 3)
    expected = torch.ones(4, 2) @ layer.weight.detach()
    assert close(gradient_of(lambda rows: layer(rows).sum())(x), expected)
    assert not kernels.available(x.double(), layer.weight)
    assert Linear(3, 2).double()(x.double()).dtype == torch.float64


def test_little_work_goes_through_torch(monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_WORK", 10_000)
    assert not kernels.available(torch.randn(10, 10), torch.randn(10, 10))
    assert kernels.available(torch.randn(100, 10), torch.randn(10, 10))


def test_nan_and_infinity_come_out():
    x = torch.zeros(3, 2)
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    out = kernels.linear(x, torch.ones(2, 2), torch.zeros(2), True)
    assert out[0].isnan().all()
    assert out[1].isinf().all()
    assert (out[2] == 0).all()


@pytest.mark.parametrize("groups", [1, 3])
def test_threads_share_the_work_and_always_in_the_same_way(monkeypatch, groups):
    torch.manual_seed(0)
    x, weight, bias = operands(groups, 500, 20, 12)
    grad = torch.randn(*weight.shape[:-2], 500, 12)

    def results(threads):
        monkeypatch.setattr(kernels, "WORK_PER_THREAD", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        out = kernels.linear(x, weight, bias, True)
        return [out.detach(), *torch.autograd.grad(out, (x, weight, bias), grad)]

    one, three = results(1), results(3)
    assert all(close(a, b) for a, b in zip(one, three, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(three, results(3), strict=True))
