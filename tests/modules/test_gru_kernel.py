"""The fused GRU against the path through torch, for all sizes; how it is built, and its absence."""

import logging
import os
import shutil
import threading

import pytest
import torch

from modules import layers
from modules.kernels import build
from modules.kernels import gru as kernels
from modules.layers import GRU

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler"
)
RAGGED = [200, 199, 130, 97, 96, 95, 7, 6, 1]  # around the kernel's blocks of 96 and rows of 6


def both(n_in, n_hidden, groups, sizes, needs_grad=True):
    """Output and gradients of the kernel and of torch's path, on the same numbers."""
    torch.manual_seed(n_in + n_hidden)
    gru = GRU(n_in, n_hidden, groups)
    lead = () if groups == 1 else (groups,)
    x, grad = torch.randn(*lead, sum(sizes), n_in), torch.randn(*lead, sum(sizes), n_hidden)
    found = []
    for sequence in (kernels.GRUSequence, layers._GRUSequence):
        weights = [p.detach().clone().requires_grad_() for p in gru.parameters()]
        inputs = x.clone().requires_grad_(needs_grad)
        out = sequence.apply(inputs, *weights, sizes)
        out.backward(grad)
        found.append([out.detach(), inputs.grad, *(w.grad for w in weights)])
    return found


@pytest.mark.parametrize("sizes", [RAGGED, [1], [3, 3], [97, 1]])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("n_in", "n_hidden"), [(64, 64), (5, 7), (33, 16), (80, 65), (1, 130)])
def test_equal_to_torch(n_in, n_hidden, groups, sizes):
    for mine, theirs in zip(*both(n_in, n_hidden, groups, sizes), strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=2e-6 * scale)


def test_inputs_without_gradient_get_none():
    mine, theirs = both(6, 8, 1, [4, 2], needs_grad=False)
    assert mine[1] is None
    assert torch.allclose(mine[2], theirs[2], atol=1e-6)


def test_without_gradient_nothing_is_kept_and_the_numbers_are_the_same():
    gru, x = GRU(5, 9), torch.randn(sum(RAGGED), 5)
    with torch.no_grad():
        assert torch.equal(gru.unroll(x, RAGGED), kernels.GRUSequence.apply(
            x, gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh, RAGGED
        ))  # fmt: skip


def test_extreme_and_broken_numbers():
    """Saturated gates are exact; NaN and infinity come out as NaN, in their own sequence only."""
    gru = GRU(2, 8)
    x = torch.full((4, 2), 1e4)
    x[1] = float("nan")
    out = gru.unroll(x.clone(), [2, 2])
    expected = layers._gru_sequence(x, *(p.detach() for p in gru.parameters()), [2, 2])
    assert torch.allclose(out[[0, 2]], expected[[0, 2]], atol=1e-6)
    assert out[[1, 3]].isnan().all()


def test_views_that_are_not_contiguous():
    gru, x = GRU(4, 6, groups=3), torch.randn(5, 3, 4).transpose(0, 1)
    assert torch.equal(gru.unroll(x, [3, 2]), gru.unroll(x.contiguous(), [3, 2]))


def test_double_precision_goes_through_torch():
    gru = GRU(4, 6).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert not kernels.available(x)
    assert gru.unroll(x, [3, 2]).dtype == torch.float64


def test_two_threads_at_once():
    gru, x = GRU(16, 32), torch.randn(sum(RAGGED), 16)
    expected = gru.unroll(x, RAGGED).detach()
    found = {}

    def work(i):
        found[i] = all(torch.equal(gru.unroll(x, RAGGED), expected) for _ in range(20))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: True, 1: True}


# --- Building ---


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No library is known, and the cache is a folder of the test's own."""
    build.load.cache_clear()
    monkeypatch.setattr(build, "_caches", lambda: iter([tmp_path / "cache"]))
    yield tmp_path / "cache"
    build.load.cache_clear()


def test_built_once_for_a_source_compiler_and_processor(fresh, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert build.load("gru") is not None
    assert "compiling the kernel gru, once" in caplog.text
    (library,) = fresh.iterdir()
    before = library.stat().st_mtime_ns
    build.load.cache_clear()
    assert build.load("gru") is not None
    assert library.stat().st_mtime_ns == before
    build.load.cache_clear()
    monkeypatch.setattr(build, "_processor", lambda: b"another one")
    assert build.load("gru") is not None
    assert len(list(fresh.iterdir())) == 2


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_is_said_once_and_torch_takes_over(
    fresh, monkeypatch, caplog, compiler
):
    monkeypatch.setenv("CXX", compiler)
    caplog.set_level(logging.INFO)
    gru, x = GRU(4, 6), torch.randn(5, 4)
    out = gru.unroll(x, [3, 2])
    expected = layers._gru_sequence(x, *(p.detach() for p in gru.parameters()), [3, 2])
    assert torch.equal(out, expected)
    assert not list(fresh.glob("*"))
    gru.unroll(x, [3, 2])
    assert caplog.text.count("through torch") == 1


def test_a_folder_that_cannot_be_written_is_passed_over(fresh, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setattr(build, "_caches", lambda: iter([blocked / "cache", fresh]))
    assert build.load("gru") is not None
    assert [path.suffix for path in fresh.iterdir()] == [".so"]


def test_the_processor_is_part_of_the_key():
    assert os.uname().machine.encode() in build._processor()
