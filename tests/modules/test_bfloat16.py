"""Products whose operands are rounded to bfloat16, against the same products in torch: numbers,
gradients, sizes that fill no pair; where they are used, and where not.
"""

import pytest
import torch
import torch.nn.functional as F

from modules.kernels import attention, gru
from modules.kernels import linear as kernels
from modules.layers import GRU, Linear, StackedLinear
from utils.precision import WIDEST_EXACT, products_in, rounded

pytestmark = pytest.mark.skipif(
    not kernels.takes_bfloat16(), reason="this processor has no AVX512_BF16, or no compiler"
)


@pytest.fixture(autouse=True)
def everything_is_worth_it(monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_WORK", 0)


def nearest(x):
    """The nearest bfloat16 numbers, as float64."""
    return x.to(torch.bfloat16).double()


class Rounded(torch.autograd.Function):
    """a b, where the operands of this product and of those of its gradient are rounded; float64."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return nearest(a.float()) @ nearest(b.float())

    @staticmethod
    def backward(ctx, grad):
        a, b = (nearest(t.float()) for t in ctx.saved_tensors)
        grad = nearest(grad.float())
        return grad @ b.mT, a.mT @ grad


def close(mine, theirs, tolerance):
    mine, theirs = mine.detach().double(), theirs.detach()
    return float((mine - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"), [(1, 1, 17), (97, 64, 64), (193, 33, 31), (96, 13, 130), (7, 98, 96)]
)
def test_a_layer_and_its_gradient(rows, n_in, n_out, groups):
    torch.manual_seed(rows)
    lead = () if groups == 1 else (groups,)
    own = [torch.randn(*lead, *s, requires_grad=True) for s in [(rows, n_in), (n_out, n_in)]]
    own.append(torch.randn(*lead, n_out, requires_grad=True))
    with products_in("bfloat16"):
        mine = kernels.linear(*own, True, 0.01, rounded(n_out))
    x, w, b = (t.detach().double().requires_grad_() for t in own)
    theirs = F.leaky_relu(Rounded.apply(x, w.mT) + b.unsqueeze(-2), 0.01)
    assert close(mine, theirs, 1e-6)
    assert not close(F.leaky_relu(own[0] @ own[1].mT + own[2].unsqueeze(-2), 0.01), theirs, 1e-4)
    grad = torch.randn_like(mine)
    # After the block: what was computed in bfloat16 has its gradient in it, too.
    found = torch.autograd.grad(mine, own, grad)
    expected = torch.autograd.grad(theirs, (x, w, b), grad.double())
    assert all(close(*pair, 1e-5) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(("n_in", "n_hidden", "groups"), [(64, 64, 1), (33, 19, 1), (5, 34, 3)])
def test_a_recurrent_layer_and_its_gradient(n_in, n_hidden, groups):
    torch.manual_seed(n_in)
    sizes = [103, 97, 8, 7, 1]
    layer = GRU(n_in, n_hidden, groups)
    lead = () if groups == 1 else (groups,)
    x = torch.randn(*lead, sum(sizes), n_in, requires_grad=True)
    with products_in("bfloat16"):
        mine = layer.unroll(x, sizes)
        with torch.no_grad():
            assert torch.equal(layer.unroll(x, sizes), mine)
    grad = torch.randn_like(mine)
    found = torch.autograd.grad(mine, (x, *layer.parameters()), grad)
    own = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    inputs, w_i, w_h, b_i, b_h = own
    h, steps = torch.zeros(*lead, sizes[0], n_hidden).double(), []
    for x_t in inputs.split(sizes, -2):
        h = h[..., : x_t.shape[-2], :]
        i_r, i_z, i_n = (Rounded.apply(x_t, w_i.mT) + b_i.unsqueeze(-2)).chunk(3, -1)
        h_r, h_z, h_n = (Rounded.apply(h, w_h.mT) + b_h.unsqueeze(-2)).chunk(3, -1)
        z = torch.sigmoid(i_z + h_z)
        h = (1 - z) * torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n) + z * h
        steps.append(h)
    theirs = torch.cat(steps, -2)
    # A sum in another order rounds to the neighbouring number now and then.
    assert close(mine, theirs, 2e-4)
    expected = torch.autograd.grad(theirs, own, grad.double())
    assert all(close(*pair, 2e-3) for pair in zip(found, expected, strict=True))


def test_attention_rounds_what_makes_values_only():
    torch.manual_seed(0)
    items, query, weight, bias = own = [
        torch.randn(*shape, requires_grad=True)
        for shape in [(2, 50, 7, 64), (2, 4, 50, 64), (2, 64, 64), (2, 64)]
    ]
    with products_in("bfloat16"):
        mine = attention.attend(*own, 0.01)
    values = F.leaky_relu(
        Rounded.apply(items.double().flatten(1, 2), weight.double().mT) + bias.unsqueeze(1), 0.01
    ).view(2, 50, 7, 4, 16)
    logits = torch.einsum("gmjd,ghmd->gmjh", items.double(), query.double()) / 4
    theirs = (logits.softmax(2).unsqueeze(-1) * values).sum(2).flatten(-2)
    assert close(mine, theirs, 1e-5)
    grad = torch.randn_like(mine)
    found = torch.autograd.grad(mine, own, grad)
    expected = torch.autograd.grad(theirs, own, grad.double())
    assert all(
        close(mine, theirs.double(), 1e-4) for mine, theirs in zip(found, expected, strict=True)
    )


def test_nan_and_infinity_come_out():
    x = torch.randn(5, 8)
    x[1, 3], x[2, 2] = float("nan"), float("inf")
    out = kernels.linear(x, torch.ones(20, 8), None, half=True)
    assert out[1].isnan().all()
    assert out[2].isinf().all()
    assert out[[0, 3, 4]].isfinite().all()


def in_both(layer, x):
    found = []
    for precision in ("float32", "bfloat16"):
        with products_in(precision):
            found.append(layer(x).detach())
    return found


@pytest.mark.parametrize("make", [Linear, lambda *sizes, **kw: StackedLinear(*sizes, 2, **kw)])
def test_heads_and_narrow_layers_stay_exact(make):
    x = torch.randn(2, 40, 32)
    wide, narrow = make(32, WIDEST_EXACT + 1), make(32, WIDEST_EXACT)
    assert not torch.equal(*in_both(wide, x))
    assert torch.equal(*in_both(narrow, x))
    assert torch.equal(*in_both(make(32, WIDEST_EXACT + 1, head=True), x))
    outside = wide(x)
    assert torch.equal(outside, in_both(wide, x)[0])


def test_acting_steps_stay_exact():
    layer, x, h = GRU(32, 32), torch.randn(40, 32), torch.randn(40, 32)
    assert torch.equal(*in_both(lambda x: layer(x, h), x))
    assert gru.available(x)
