"""What has become slower or faster since the last release, as ratios to the stepping QMIX.

Times differ between machines and hours, so each measurement is timed in turn with the same
reference, one update of `reference.QMIX` (32 episodes of at most 60 steps), and only their ratio is
kept. `baseline.json` holds the ratios of the last release; `python benchmarks/run.py --only gate
--set-baseline` writes it anew.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks import actor_critic, f2a2
from benchmarks.common import ROOT, Ratio, Table, in_turn, make_args, make_batch, make_learner
from benchmarks.learner_update import episode_lengths, update
from benchmarks.reference import QMIX, dense_batch
from benchmarks.rollout import make_runner

from components.action_selectors import random_actions
from envs import make_vector_env
from utils.memory import keep_freed_memory

BASELINE = Path(__file__).with_name("baseline.json")
REFERENCE_SIZE = (32, 60)
NOTABLE = 0.1  # changes of a ratio by more than this share are named
# Prepares one repetition and returns the call that is timed, for `in_turn`.
Prepare = Callable[[], Callable[[], Any]]


class Measurement(NamedTuple):
    """One thing that is timed.

    Attributes:
        prepare: builds what is timed.
        repetitions: of it and of the reference.
    """

    prepare: Callable[[], Prepare]
    repetitions: int


def _f2a2_sac() -> Prepare:
    args = actor_critic.rover_tower_args(
        "f2a2_sac", share_params=False, seed=1, batch_size=f2a2.BATCH
    )
    train = f2a2.update_of(args)
    return lambda: train


def _collection(name: str) -> Prepare:
    runner = make_runner(name)
    return lambda: runner.run


def _battles(map_name: str, n_envs: int, steps: int) -> Prepare:
    """Steps of the simulator with random available actions, drawing them included."""
    settings = {"map_name": map_name, "threads": 1}
    env = make_vector_env("sc2sim", settings, n_envs, 0, "native", "train_env")
    env.reset()

    def play() -> None:
        for _ in range(steps):
            env.step(random_actions(torch.from_numpy(env.avail_actions)).numpy())
            ended = env.terminated | env.truncated
            if ended.any():
                env.reset(ended)

    return lambda: play


MEASUREMENTS = {
    "QMIX update, 32 x 60": Measurement(lambda: update("qmix", 32, 60, "spread"), 15),
    "QMIX update, 128 x 60": Measurement(lambda: update("qmix", 128, 60, "spread"), 9),
    "S2Q update, 32 x 60": Measurement(lambda: update("s2q", 32, 60, "spread"), 9),
    "S2Q update, 128 x 60": Measurement(lambda: update("s2q", 128, 60, "spread"), 5),
    "QPLEX update, 32 x 60": Measurement(lambda: update("qplex", 32, 60, "spread"), 9),
    "DAC update, 32 x 60": Measurement(lambda: update("dac", 32, 60, "spread"), 9),
    "MAAC update, 1,024 transitions": Measurement(lambda: actor_critic.update("maac"), 9),
    "MAMT update, 1,024 transitions": Measurement(lambda: actor_critic.update("mamt"), 7),
    "F2A2-SAC update, 1,024 transitions": Measurement(_f2a2_sac, 3),
    "vector runner, 64 episodes": Measurement(lambda: _collection("vector"), 7),
    "episode runner, 1 episode": Measurement(lambda: _collection("episode"), 15),
    "simulator, 3m, 1 battle, 500 steps": Measurement(lambda: _battles("3m", 1, 500), 7),
    "simulator, 3m, 64 battles, 100 steps": Measurement(lambda: _battles("3m", 64, 100), 9),
    "simulator, 6h_vs_8z, 64 battles, 100 steps": Measurement(
        lambda: _battles("6h_vs_8z", 64, 100), 7
    ),
}


def stepping() -> Prepare:
    """One update of the reference."""
    args = make_args()
    reference = QMIX(args, make_learner(args))
    lengths = episode_lengths("spread", *REFERENCE_SIZE)
    dense = dense_batch(make_batch(args, lengths, REFERENCE_SIZE[1], terminated=True))
    return lambda: lambda: reference.train(dense)


def measure(quick: bool) -> dict[str, Ratio]:
    """All measurements, one thread: name -> ratio of its time to the reference's."""
    torch.set_num_threads(1)
    keep_freed_memory()
    reference = stepping()
    return {
        name: in_turn(one.prepare(), reference, 1 if quick else one.repetitions, warm_up=1)
        for name, one in MEASUREMENTS.items()
    }


def read_baseline(path: Path = BASELINE) -> dict[str, Any]:
    """The last release's `version`, `date`, `machine` and `ratios`; no ratios where there is no
    file.
    """
    if not path.exists():
        return {"version": "none", "ratios": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def write_baseline(found: dict[str, Ratio], path: Path = BASELINE) -> None:
    """Keeps the ratios as those of this version."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version is not None, "pyproject.toml names a version"
    baseline = {
        "version": version[1],
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, torch {torch.__version__}, one thread",
        "ratios": {name: round(ratio.ratio, 4) for name, ratio in found.items()},
    }
    path.write_text(json.dumps(baseline, indent=2) + "\n", encoding="utf-8")


def verdict(now: float, before: float | None) -> str:
    """What a ratio says beside the one of the last release."""
    if before is None:
        return "new"
    if now > before * (1 + NOTABLE):
        return f"SLOWER: {now / before:.2f} times the release's time"
    if now < before * (1 - NOTABLE):
        return f"faster: {now / before:.2f} times the release's time"
    return "as before"


def table_of(found: dict[str, Ratio], baseline: dict[str, Any]) -> Table:
    """The ratios beside the last release's."""
    before = baseline["ratios"]
    table = Table(
        "gate",
        f"This checkout beside release {baseline['version']}, one thread",
        ("what", "time [ms]", "reference [ms]", "ratio", "release", "verdict"),
        note="The ratio is that of the time to one update of the stepping QMIX, timed in turn; in "
        "brackets the quartiles of neighbouring runs' ratios. A change of more than "
        f"{NOTABLE:.0%} is named.",
    )
    for name, ratio in found.items():
        known = before.get(name)
        table.add(
            name,
            f"{ratio.ours:.1f}",
            f"{ratio.theirs:.1f}",
            str(ratio),
            "-" if known is None else f"{known:.2f}",
            verdict(ratio.ratio, known),
        )
    gone = sorted(set(before) - set(found))
    if gone:
        table.note += f" No longer measured: {', '.join(gone)}."
    return table


def run(quick: bool, set_baseline: bool = False) -> list[Table]:
    """One table."""
    baseline, found = read_baseline(), measure(quick)
    if set_baseline:
        write_baseline(found)
    return [table_of(found, baseline)]
