"""`Steps` against plain loops over episodes and time."""

import pytest
import torch

from components.steps import Steps

LENGTHS = [[3, 5, 1, 5, 2], [4, 4, 4], [1], [7]]


def slow_rows(lengths):
    """(episode, time) of every row: time-major, longest episode first, ties in their order."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    return [(b, t) for t in range(max(lengths)) for b in order if t < lengths[b]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_pack_follows_the_slow_order_and_unpack_inverts_it(lengths):
    max_steps = max(lengths) + 2
    steps = Steps(torch.tensor(lengths), max_steps)
    x = torch.arange(len(lengths) * max_steps * 2.0).view(len(lengths), max_steps, 2)
    rows = slow_rows(lengths)
    packed = steps.pack(x)
    assert steps.n_rows == len(rows)
    assert torch.equal(packed, torch.stack([x[b, t] for b, t in rows]))
    back = steps.unpack(packed)
    for b, length in enumerate(lengths):
        assert torch.equal(back[b, :length], x[b, :length])
        assert (back[b, length:] == 0).all()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_cur_and_nxt_pair_every_step_with_its_successor(lengths):
    steps = Steps(torch.tensor(lengths), max(lengths))
    rows = slow_rows(lengths)
    cur = [rows[i] for i in torch.arange(steps.n_rows)[steps.cur].tolist()]
    nxt = [rows[i] for i in torch.arange(steps.n_rows)[steps.nxt].tolist()]
    assert len(cur) == steps.n_transitions == sum(length - 1 for length in lengths)
    assert [(b, t + 1) for b, t in cur] == nxt
    assert torch.equal(steps.rows_cur, torch.arange(steps.n_rows)[steps.cur])
    lasts = [row for row, (b, t) in enumerate(rows) if t == lengths[b] - 1]
    assert steps.rows_last.tolist() == lasts
    before = steps.previous.tolist()
    for row, (b, t) in enumerate(rows):
        assert rows[before[row]] == (b, max(t - 1, 0))


@pytest.mark.parametrize("lengths", LENGTHS[:2])
def test_pack_transitions_takes_either_time_axis(lengths):
    max_steps = max(lengths)
    steps = Steps(torch.tensor(lengths), max_steps)
    x = torch.arange(len(lengths) * max_steps * 1.0).view(len(lengths), max_steps, 1)
    expected = torch.stack([x[b, t] for b, t in slow_rows(lengths) if t + 1 < lengths[b]])
    assert torch.equal(steps.pack_transitions(x), expected)
    assert torch.equal(steps.pack_transitions(x[:, :-1]), expected)
    for b, length in enumerate(lengths):
        for t in range(max_steps - 1):
            assert steps.mask[b, t, 0] == (1.0 if t + 1 < length else 0.0)


def test_impossible_lengths_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.4"):
        Steps(torch.tensor([2, 5]), 4)
    with pytest.raises(ValueError, match=r"1\.\.4"):
        Steps(torch.tensor([2, 0]), 4)
