"""Attention by the kernel and by torch's operations against plain loops; gradients against torch's
and finite differences.
"""

import math
import shutil

import pytest
import torch

from modules.kernels import attention, build

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler"
)
SLOPE = 0.01


def operands(groups=2, samples=5, n_items=3, size=8, heads=2, dtype=torch.float32):
    rng = torch.Generator().manual_seed(groups + samples + size)
    shapes = (
        (groups, samples, n_items, size),
        (groups, heads, samples, size),
        (groups, size, size),
        (groups, size),
    )
    return tuple(
        torch.randn(*shape, generator=rng, dtype=dtype).requires_grad_() for shape in shapes
    )


@torch.no_grad()
def by_loops(items, query, weight, bias):
    groups, samples, n_items, size = items.shape
    heads = query.shape[1]
    width = size // heads
    out = torch.zeros(groups, samples, size)
    for g in range(groups):
        for m in range(samples):
            values = [
                torch.nn.functional.leaky_relu(weight[g] @ items[g, m, j] + bias[g], SLOPE)
                for j in range(n_items)
            ]
            for k in range(heads):
                part = slice(k * width, (k + 1) * width)
                scores = [
                    math.exp(float(query[g, k, m] @ items[g, m, j]) / math.sqrt(width))
                    for j in range(n_items)
                ]
                for j in range(n_items):
                    out[g, m, part] += scores[j] / sum(scores) * values[j][part]
    return out


@pytest.mark.parametrize("way", [attention.attend, attention._by_torch])
@pytest.mark.parametrize("size", [8, 6])
def test_both_ways_by_loops(way, size):
    given = operands(size=size)
    with torch.no_grad():
        assert torch.allclose(way(*given, SLOPE), by_loops(*given), atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("groups", "samples", "n_items", "size", "heads"),
    [(1, 1, 1, 4, 1), (2, 40, 7, 32, 4), (3, 17, 3, 10, 5), (2, 5, 100, 36, 2), (16, 9, 2, 128, 4)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_has_the_gradients_of_torch(groups, samples, n_items, size, heads, threads):
    given = operands(groups, samples, n_items, size, heads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine, theirs = attention.attend(*given, SLOPE), attention._by_torch(*given, SLOPE)
        assert type(mine.grad_fn).__name__ == "_AttentionBackward"
        grad = torch.randn_like(theirs)
        found = torch.autograd.grad(mine, given, grad)
        expected = torch.autograd.grad(theirs, given, grad)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_gradients_of_torchs_operations_by_finite_differences():
    given = operands(size=4, samples=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attention.attend(*x, SLOPE), given)


@needs_compiler
def test_nan_comes_out_as_nan():
    items, *rest = operands()
    with torch.no_grad():
        items[0, 1, 2, 3] = torch.nan
        out = attention.attend(items, *rest, SLOPE)
    assert out[0, 1].isnan().all()
    assert not out[0, 0].isnan().any()
    assert not out[1].isnan().any()


def test_without_a_compiler_torch_does_it(monkeypatch):
    monkeypatch.setattr(attention.build, "load", lambda name: None)
    given = operands()
    out = attention.attend(*given, SLOPE)
    assert torch.allclose(out, by_loops(*given), atol=1e-5)
    assert type(out.grad_fn).__name__ != "_AttentionBackward"
