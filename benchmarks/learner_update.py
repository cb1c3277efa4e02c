"""QMIX's update: this project's learner against PyMARL2-style stepping, on the CPU and on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.common import Ratio, Table, in_turn, make_args, make_batch, make_learner
from benchmarks.reference import QMIX, dense_batch
from scipy.stats import beta

from utils.memory import keep_freed_memory

SIZES = ((32, 60), (32, 150), (128, 60), (128, 150))
KINDS = ("full", "spread")
TARGETS = {"full": "<= 1.0", "spread": "<= 0.5"}
# What PyMARL2 itself takes on one thread of a 2-core x86 machine, all lengths full [ms].
PYMARL2 = {(32, 60): "89", (128, 60): "274", (128, 150): "697"}
COLUMNS = (
    "episodes x steps",
    "lengths",
    "mean length",
    "ours [ms]",
    "stepping [ms]",
    "ours / stepping",
    "target",
)


def episode_lengths(kind: str, episodes: int, steps: int) -> np.ndarray:
    """Filled steps of every episode: all `steps` ("full"), or spread as in training ("spread").

    Spread: `steps` times Beta(2, 3), whose mean is 0.4, at its (i + 0.5) / n quantiles, at least 2,
    the longest exactly `steps`; in random order.
    """
    if kind == "full":
        return np.full(episodes, steps)
    lengths = np.ceil(steps * beta(2, 3).ppf((np.arange(episodes) + 0.5) / episodes)).astype(int)
    lengths[-1] = steps
    return np.random.default_rng(0).permutation(lengths.clip(2, steps))


def update(algorithm, episodes, steps, kind, **overrides):
    """What `in_turn` times: `train` on a fresh copy of one batch for every repetition."""
    args = make_args(algorithm, **overrides)
    learner = make_learner(args)
    batch = make_batch(
        args, episode_lengths(kind, episodes, steps), steps, terminated=kind == "spread"
    )

    def prepare():
        fresh = batch[:]  # the same data without anything derived from it
        return lambda: learner.train(fresh, 0, 0)

    return prepare


def compare(episodes: int, steps: int, kind: str, repetitions: int, device: str = "cpu") -> Ratio:
    """Time of `train` on a batch that nobody has looked at before."""
    args = make_args(device=device)
    learner = make_learner(args)
    reference = QMIX(args, learner)
    batch = make_batch(
        args, episode_lengths(kind, episodes, steps), steps, terminated=kind == "spread"
    )
    dense = dense_batch(batch)

    def ours():
        fresh = batch[:]  # the same data without anything derived from it
        return lambda: learner.train(fresh, 0, 0)

    def stepping():
        return lambda: reference.train(dense)

    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    return in_turn(ours, stepping, repetitions, synchronise=synchronise)


def _row(table: Table, size: tuple[int, int], kind: str, result: Ratio, *rest: str) -> None:
    mean = episode_lengths(kind, *size).mean() / size[1]
    row = (
        f"{size[0]} x {size[1]}",
        kind,
        f"{mean:.0%}",
        f"{result.ours:.1f}",
        f"{result.theirs:.1f}",
        str(result),
    )
    table.add(*row, *rest)


def cpu(quick: bool) -> list[Table]:
    """The table of the CPU, one thread."""
    torch.set_num_threads(1)
    table = Table(
        "learner_cpu",
        "Learner update, QMIX, CPU, one thread",
        (*COLUMNS, "PyMARL2, full [ms]"),
        note="Medians; in brackets the quartiles of neighbouring runs' ratios. Stepping: "
        "benchmarks/reference.py. "
        "PyMARL2's figures were measured elsewhere. glibc: with the C library's own memory "
        "settings, which give pages "
        "back after every update; all other rows, as in training, with "
        "utils.memory.keep_freed_memory.",
    )
    repetitions = {(32, 60): 15, (32, 150): 9, (128, 60): 9, (128, 150): 7}
    for kind in KINDS:
        result = compare(128, 60, kind, 3 if quick else repetitions[128, 60])
        _row(table, (128, 60), kind, result, TARGETS[kind], "")
        table.rows[-1][0] += ", glibc"
    keep_freed_memory()
    for size in SIZES[:1] if quick else SIZES:
        for kind in KINDS:
            result = compare(*size, kind, 3 if quick else repetitions[size])
            _row(
                table,
                size,
                kind,
                result,
                TARGETS[kind],
                PYMARL2.get(size, "-") if kind == "full" else "-",
            )
    return [table]


def gpu(quick: bool) -> list[Table]:
    """The same on a GPU, where there is one."""
    table = Table(
        "learner_gpu",
        "Learner update, QMIX, GPU",
        COLUMNS,
        note="With synchronisation before and after every update.",
    )
    if not torch.cuda.is_available():
        table.note = "No GPU here: nothing measured."
        return [table]
    table.title += f" ({torch.cuda.get_device_name()}, torch {torch.__version__})"
    for size in SIZES[:1] if quick else SIZES:
        for kind in KINDS:
            target = "<= 0.125" if size == (128, 150) and kind == "full" else "-"
            _row(table, size, kind, compare(*size, kind, 5 if quick else 15, "cuda"), target)
    return [table]
