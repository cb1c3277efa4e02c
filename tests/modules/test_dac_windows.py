"""Windows of DAC: which transitions they hold at the start and the end of an episode and in ragged
batches.
"""

import pytest
import torch

from components.steps import Steps
from modules.dac.windows import Windows


def windows_of(lengths, k, max_steps=None):
    return Windows(Steps(torch.tensor(lengths), max_steps or max(lengths)), k)


def places(lengths):
    """(episode, step) of every transition, in the order of the rows: step by step, the longest
    episode first.
    """
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    return [(b, t) for t in range(max(lengths) - 1) for b in order if t < lengths[b] - 1]


def held(windows):
    """The rows of the transitions of every window, the oldest first; from `lag`."""
    every, found = torch.arange(windows.n), [[] for _ in range(windows.n)]
    for j in reversed(range(windows.k)):
        to, rows = windows.lag(j)
        to, rows = every[to].tolist(), every[rows].tolist()
        assert len(to) == len(rows)
        for window, row in zip(to, rows, strict=True):
            found[window].append(row)
    return found


def test_one_hand_made_episode():
    """Four transitions (five filled steps) of a batch that is padded to eight steps, k = 3."""
    windows = windows_of([5], 3, max_steps=8)
    assert (windows.n, windows.longest) == (4, 4)
    assert held(windows) == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert windows.following.tolist() == [1, 2, 3, 3]
    assert windows.time.tolist() == [0, 1, 2, 3]


def test_two_hand_made_episodes():
    """Three and one transitions: rows are (0, 0), (1, 0), (0, 1), (0, 2)."""
    windows = windows_of([4, 2], 2)
    assert held(windows) == [[0], [1], [0, 2], [2, 3]]
    assert windows.following.tolist() == [2, 1, 3, 3]
    assert windows.time.tolist() == [0, 0, 1, 2]
    assert windows.place.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("lengths", [(4, 7, 2, 5, 4), (6, 6, 6), (2,), (3, 1, 2), (2, 2)])
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_ragged_batches(lengths, k):
    windows, where = windows_of(lengths, k, max_steps=9), places(lengths)
    assert windows.n == len(where)
    windows_held = held(windows)
    for row, (b, t) in enumerate(where):
        assert windows_held[row] == [where.index((b, h)) for h in range(max(t - k + 1, 0), t + 1)]
        after = (b, t + 1)
        assert int(windows.following[row]) == (where.index(after) if after in where else row)
        assert where[windows.starts[t] + int(windows.place[row])] == (b, t)
        assert int(windows.time[row]) == t


def test_padded_steps_are_in_no_window():
    """Transitions are rows of filled steps: nothing behind an episode's end can be addressed."""
    short, padded = windows_of([3, 5], 4), windows_of([3, 5], 4, max_steps=50)
    assert held(short) == held(padded)
    assert short.n == padded.n == 2 + 4
