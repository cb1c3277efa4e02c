"""The StarCraft simulator beside published figures of the game: SMAC's heuristic, random play,
episode lengths.

`python -m experiments run starcraft_calibration` plays battles on every map with SMAC's heuristic
(every agent attacks the nearest enemy until that is dead) and with random available actions, and
writes `calibration.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from analysis.document import markdown_table
from components.action_selectors import random_actions
from envs import make_vector_env
from envs.starcraft.facts import map_names
from experiments import ROOT
from launch.jobs import console

RESULTS = ROOT / "results" / "starcraft_calibration"
# Win rates of the heuristic in the game [%], difficulty 7, as quoted from the appendix of the QMIX
# journal paper.
PUBLISHED = {
    "2s3z": 90,
    "3s5z": 42,
    "10m_vs_11m": 12,
    **dict.fromkeys(("27m_vs_30m", "2s_vs_1sc", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z", "corridor"), 0),
}


@dataclass(frozen=True)
class Played:
    """Means over the battles of one policy on one map."""

    wins: float
    returns: float
    length: float


def play(map_name: str, battles: int, heuristic: bool, seed: int = 1) -> Played:
    """Plays whole battles side by side, one each; steps until all are over."""
    torch.manual_seed(seed)
    env_args = {"map_name": map_name, "heuristic_ai": heuristic}
    with make_vector_env("sc2sim", env_args, battles, seed, "native", "test_env") as env:
        env.reset()
        running = np.ones(battles, dtype=bool)
        wins, returns, length = np.zeros((3, battles))
        while running.any():
            env.step(random_actions(torch.from_numpy(env.avail_actions)).numpy(), running)
            returns[running] += env.reward[running]
            length[running] += 1
            wins[running] = env.info["battle_won"][running]
            running &= ~(env.terminated | env.truncated | env.failed)
    return Played(float(wins.mean()), float(returns.mean()), float(length.mean()))


def table(maps: Sequence[str], battles: int) -> str:
    """One row per map (Markdown)."""
    head = [
        "map",
        "heuristic wins [%]",
        "in the game [%]",
        "return",
        "length",
        "random: wins [%]",
        "return",
        "length",
    ]
    rows = []
    for name in maps:
        heuristic, random = (play(name, battles, kind) for kind in (True, False))
        cells = [
            *(name, f"{100 * heuristic.wins:.1f}", str(PUBLISHED.get(name, "-"))),
            *(f"{heuristic.returns:.1f}", f"{heuristic.length:.0f}"),
            *(f"{100 * random.wins:.1f}", f"{random.returns:.2f}", f"{random.length:.0f}"),
        ]
        rows.append(cells)
        console.log(" ".join(cells), markup=False)
    return "\n".join(markdown_table(head, rows)) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--maps", nargs="+", choices=map_names(), default=map_names())
    parser.add_argument("--battles", type=int, default=200, help="per map and policy")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(argv)
    start = time.monotonic()
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "calibration.md").write_text(
        table(options.maps, options.battles), encoding="utf-8"
    )
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    console.print(f"table: {options.results / 'calibration.md'}")
