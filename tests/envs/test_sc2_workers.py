"""Kernels over ranges of battles: what has been compiled is called again only for arguments of the
same types.
"""

import numpy as np
import pytest
from numba import njit

from envs.starcraft.battle import Workers


@njit(nogil=True)
def add(first, end, to, values, factor):
    for b in range(first, end):
        to[b] += factor * values[b]


@pytest.mark.parametrize("threads", [1, 2])
def test_every_kind_of_argument_reaches_the_kernel_as_it_is(threads):
    workers = Workers(threads, 4)
    values = np.arange(4)
    kinds = [
        *(values.astype(dtype) for dtype in (np.float64, np.float64, np.float32, np.int64, bool)),
        np.arange(8.0)[::2] / 2,  # not contiguous
        np.arange(4, dtype=">f8").astype("<f8"),
    ]
    for kind in [*kinds, *reversed(kinds)]:
        for factor in (2, 0.5):
            to = np.ones(4)
            workers.run(add, to, kind, factor)
            assert to.tolist() == (1 + factor * kind).tolist()
    workers.close()


def test_what_was_compiled_is_called_without_its_types_being_looked_at(monkeypatch):
    workers, to, values = Workers(1, 3), np.zeros(3), np.ones(3)
    workers.run(add, to, values, 1.0)
    workers.run(add, to, values, 1.0)
    monkeypatch.setattr(workers, "_bind", None)  # would be called for arguments of other types
    workers.run(add, to, values.copy(), 1.0)
    assert to.tolist() == [3.0] * 3
    with pytest.raises(TypeError):
        workers.run(add, to, values.astype(np.float32), 1.0)


def test_kernels_that_are_not_compiled():
    to = np.zeros(2)
    Workers(1, 2).run(add.py_func, to, np.ones(2), 3)
    assert to.tolist() == [3.0, 3.0]
