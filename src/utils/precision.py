"""In which precision the large products of an update are computed.

With `precision: bfloat16` the operands of these products are rounded to bfloat16 (8 bits of
mantissa in place of 24, the same range) and summed in float32, forward and backward: those of
recurrent layers, and of `modules.layers` with more than `WIDEST_EXACT` outputs. Everything else
stays in float32: weights, which are rounded anew in every product, so that small steps of the
optimiser add up; the optimiser; losses, returns and target values; heads, whose errors are errors
of Q-values and log-probabilities; acting and evaluation, where products are too small to gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PRECISIONS = ("float32", "bfloat16")
WIDEST_EXACT = 16  # outputs up to which rounding the operands takes as long as it saves

_rounding = ContextVar("rounding", default=False)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Computes large products in `precision`, one of `PRECISIONS`, in this thread."""
    before = _rounding.set(precision == "bfloat16")
    try:
        yield
    finally:
        _rounding.reset(before)


def rounded(n_outputs: int) -> bool:
    """Whether a layer with so many outputs rounds its operands to bfloat16 now."""
    return _rounding.get() and n_outputs > WIDEST_EXACT
