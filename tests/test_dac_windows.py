"""Windows of DAC: which transitions they hold at the start and the end of an episode and in ragged batches."""

import pytest
import torch

from components.steps import Steps
from components.windows import Windows


def windows_of(lengths, k, max_steps=None):
    return Windows(Steps(torch.tensor(lengths), max_steps or max(lengths)), k)


def places(lengths):
    """(episode, step) of every transition, in the order of the rows: step by step, the longest episode first."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    return [(b, t) for t in range(max(lengths) - 1) for b in order if t < lengths[b] - 1]


def test_one_hand_made_episode():
    """Four transitions (five filled steps) of a batch that is padded to eight steps, k = 3."""
    windows = windows_of([5], 3, max_steps=8)
    assert windows.n == 4
    assert windows.valid.tolist() == [[False, False, True], [False, True, True], [True] * 3, [True] * 3]
    held = [
        [row for row, ok in zip(*pair, strict=True) if ok] for pair in zip(windows.rows, windows.valid, strict=True)
    ]
    assert [[int(r) for r in rows] for rows in held] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert windows.following.tolist() == [1, 2, 3, 3]


@pytest.mark.parametrize("lengths", [(4, 7, 2, 5, 4), (6, 6, 6), (2,), (3, 1, 2), (2, 2)])
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_ragged_batches(lengths, k):
    windows, where = windows_of(lengths, k, max_steps=9), places(lengths)
    assert windows.n == len(where)
    assert windows.rows.shape == windows.valid.shape == (len(where), k)
    for row, (b, t) in enumerate(where):
        for p in range(k):
            h = t - k + 1 + p
            assert bool(windows.valid[row, p]) == (h >= 0)
            assert int(windows.rows[row, p]) == (where.index((b, h)) if h >= 0 else 0)
        after = (b, t + 1)
        assert int(windows.following[row]) == (where.index(after) if after in where else row)


@pytest.mark.parametrize("lengths", [(4, 7, 2, 5, 4), (6, 6, 6), (2,), (3, 1, 2)])
def test_lags(lengths):
    k = 8
    windows, rows = windows_of(lengths, k, max_steps=9), torch.arange(len(places(lengths)))
    for j in range(k):
        to, source = windows.lag(j)
        assert rows[to].tolist() == rows[windows.valid[:, k - 1 - j]].tolist()
        assert rows[source].tolist() == windows.rows[to, k - 1 - j].tolist()


def test_padded_steps_are_in_no_window():
    """Transitions are rows of filled steps: nothing behind an episode's end can be addressed."""
    short, padded = windows_of([3, 5], 4), windows_of([3, 5], 4, max_steps=50)
    assert torch.equal(short.rows, padded.rows)
    assert torch.equal(short.valid, padded.valid)
    assert short.n == padded.n == 2 + 4
