"""DAC's update and those of the other decentralised learners against unshared IQL's."""

from __future__ import annotations

import torch
from benchmarks.common import Table, in_turn
from benchmarks.learner_update import KINDS, update

from utils.memory import keep_freed_memory

SIZE = (32, 60)
DAC = {"dac_k": 15, "dac_m": 20}
LIMIT = 4.0


def run(quick: bool) -> list[Table]:
    """One table, one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    table = Table(
        "dac_update",
        f"Learner update without parameter sharing, 6 agents, {SIZE[0]} x {SIZE[1]}, CPU, one "
        "thread",
        ("learner", "lengths", "time [ms]", "IQL [ms]", "time / IQL's", "target"),
        note="In turn in one process on the same episodes; in brackets the quartiles of "
        "neighbouring runs' ratios. "
        "DAC with windows of k = 15 transitions and m = 20 contexts.",
    )
    rows = [
        ("DAC, normal_net", "dac", {**DAC, "dac_head": "normal_net"}, f"<= {LIMIT:g}"),
        ("DAC, hyper_net", "dac", {**DAC, "dac_head": "hyper_net"}, f"<= {LIMIT:g}"),
        ("hysteretic", "hysteretic", {}, "-"),
        ("I2Q", "i2q", {}, "-"),
    ]
    for kind in KINDS:
        for label, algorithm, settings, target in rows:
            result = in_turn(
                update(algorithm, *SIZE, kind, **settings),
                update("iql_ns", *SIZE, kind),
                3 if quick else 9,
            )
            table.add(
                label, kind, f"{result.ours:.1f}", f"{result.theirs:.1f}", str(result), target
            )
    return [table]
