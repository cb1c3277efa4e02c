"""The StarCraft simulator beside published figures of the game: SMAC's heuristic, random play, and
what was learned.

`python -m experiments run starcraft_calibration` plays battles on every map with SMAC's heuristic
(every agent attacks the nearest enemy until that is dead) and with random available actions, and
writes `calibration.md`: a table of these, the published win rates with ours beside them, and rank
correlations. With `--no-play` it takes the heuristic's kept figures. What was published stands in
`starcraft_published.json`, with its sources.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from analysis.bootstrap import Method, interval
from analysis.document import markdown_table
from analysis.runs import Run, load_runs
from components.action_selectors import random_actions
from envs import make_vector_env
from envs.starcraft.facts import map_names
from experiments import ROOT
from launch.jobs import console
from utils.errors import UserError

RESULTS = ROOT / "results" / "starcraft_calibration"
KEPT = ROOT / "experiments" / "published"
PAGE = ROOT / "docs" / "results" / "simulator.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
METRIC = "test_battle_won_mean"
# methods of published tables that we have -> names of our algorithms
ALGORITHMS = {
    "IQL": "iql",
    "VDN": "vdn",
    "QMIX": "qmix",
    "QPLEX": "qplex",
    "QTRAN": "qtran",
    "COMA": "coma",
    "WQMIX": "ow_qmix",
    "MAPPO": "mappo",
    "IPPO": "ippo",
}
MARKS = (250_000, 500_000, 1_000_000, 2_000_000, 10_000_000)
# A run counts at a mark if it came this near to it, and evaluations up to this much beyond it.
NEAR = 0.03
EVALUATIONS = 5
FEWEST_MAPS = 5  # that a rank correlation is computed of
NOT_RUN = "not run"


@cache
def published() -> dict[str, Any]:
    """`starcraft_published.json`, win rates in percent."""
    file = ROOT / "experiments" / "starcraft_published.json"
    return json.loads(file.read_text(encoding="utf-8"))


# Win rates of the heuristic in the game [%], difficulty 7.
PUBLISHED = {
    name: row["heuristic"] for name, row in published()["tables"]["heuristic"]["win_rates"].items()
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


def play_all(maps: Sequence[str], battles: int) -> dict[str, tuple[Played, Played]]:
    """Map -> heuristic, random play."""
    played = {}
    for name in maps:
        played[name] = play(name, battles, True), play(name, battles, False)
        console.log(name, *(f"{100 * one.wins:.1f} %" for one in played[name]), markup=False)
    return played


def kept_plays() -> dict[str, tuple[Played, Played]]:
    """The kept figures, as `play_all`."""

    def one(figures: Sequence[float]) -> Played:
        wins, returns, length = figures
        return Played(wins / 100, returns, length)

    maps = published()["simulator"]["played"]["maps"]
    return {name: (one(row["heuristic"]), one(row["random"])) for name, row in maps.items()}


def table(played: Mapping[str, tuple[Played, Played]]) -> str:
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
    for name, (heuristic, random) in played.items():
        cells = [
            *(name, f"{100 * heuristic.wins:.1f}", str(PUBLISHED.get(name, "-"))),
            *(f"{heuristic.returns:.1f}", f"{heuristic.length:.0f}"),
            *(f"{100 * random.wins:.1f}", f"{random.returns:.2f}", f"{random.length:.0f}"),
        ]
        rows.append(cells)
    return "\n".join(markdown_table(head, rows)) + "\n"


@dataclass(frozen=True)
class Ours:
    """Win rates [%] of our seeds in the simulator, and after how many steps."""

    seeds: Sequence[float]
    steps: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.seeds))


class Learned:
    """Win rates of trained methods in the simulator.

    Args:
        runs: of `sc2sim` and `sc2sim_v2`; others are left out.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = [run for run in runs if run.task[0] in ("sc2sim", "sc2sim_v2")]
        self._noted = published()["simulator"]["learned"]["win_rates"]

    def find(
        self, method: str, name: str, steps: int | None, scripts: bool = False, exact: bool = False
    ) -> Ours | None:
        """Our result nearest below `steps`: of every seed the mean of the last evaluations.

        Args:
            method: as in the published tables.
            steps: None: any number.
            scripts: whether against SMAC-Hard's scripts.
            exact: whether the runs must have come as far as `steps`.
        """
        found: dict[int, list[tuple[float, int]]] = {}
        limit = np.inf if steps is None else steps * (1 + NEAR)
        for run in self._runs:
            mixed = run.setting("env_args").get("opponents") == "mixture"
            if run.name != ALGORITHMS.get(method) or run.task[1] != name or mixed != scripts:
                continue
            series = run.finite(METRIC)
            if series is None:
                continue
            values, t = series.values[series.t <= limit], series.t[series.t <= limit]
            if len(t) < EVALUATIONS or (exact and t[-1] < (steps or 0) * (1 - NEAR)):
                continue
            value = 100 * float(values[-EVALUATIONS:].mean())
            found.setdefault(round(int(t[-1]), -5), []).append((value, int(t[-1])))
        if found:
            most = found[max(found)]
            return Ours([value for value, _ in most], min(t for _, t in most))
        noted = None if scripts or exact else self._noted.get(method, {}).get(name)
        if noted and noted["steps"] <= limit:
            return Ours(noted["seeds"], noted["steps"])
        return None


def beside(entry: Mapping[str, Any], learned: Learned, scripts: bool) -> tuple[str, dict[str, Any]]:
    """One published table with ours beside it (Markdown), and all pairs: method -> [(game, ours)].

    Methods that we do not have get no column of ours.
    """
    rates = entry["win_rates"]
    methods = list(dict.fromkeys(method for row in rates.values() for method in row))
    head, rows, details = ["map"], [], []
    pairs: dict[str, list[tuple[float, float]]] = {}
    for method in methods:
        head += [method, f"{method}, ours"] if method in ALGORITHMS else [method]
    for name, row in rates.items():
        cells = [name]
        for method in methods:
            value = row.get(method)
            cells.append("-" if value is None else f"{value:g}")
            if method not in ALGORITHMS:
                continue
            ours = learned.find(method, name, entry["steps"], scripts)
            cells.append(NOT_RUN if ours is None else f"{ours.mean:.0f}")
            if ours is None:
                continue
            details.append([name, method, *_detail(ours)])
            if value is not None:
                pairs.setdefault(method, []).append((value, ours.mean))
        rows.append(cells)
    lines = markdown_table(head, rows)
    if details:
        lines += ["", "Our runs:", "", *markdown_table(_DETAILS, details)]
    return "\n".join(lines), pairs


_DETAILS = ("map", "method", "every seed", "95% interval", "steps")


def _detail(ours: Ours) -> list[str]:
    low, high = ours.mean, ours.mean
    if len(ours.seeds) > 1:
        _, low, high = interval([np.array(ours.seeds)], Method(statistic="mean"))
    return [
        " ".join(f"{value:.0f}" for value in ours.seeds),
        f"{low:.0f} to {high:.0f}" if len(ours.seeds) > 1 else "-",
        f"{ours.steps:,}",
    ]


def curves(learned: Learned) -> str:
    """SMACv2's learning curves of the game, means over its runs, with ours below (Markdown)."""
    head = ["scenario", "method", "runs", *(f"{mark:,}" for mark in MARKS)]
    rows = []
    for name, methods in published()["smacv2"]["win_rates"].items():
        for method, marks in methods.items():
            given = [marks.get(str(mark), []) for mark in MARKS]
            means = [f"{np.mean(seeds):.0f}" if seeds else "-" for seeds in given]
            rows.append([name, method, str(max(map(len, given))), *means])
            if method not in ALGORITHMS:
                continue
            ours = [learned.find(method, name, mark, exact=True) for mark in MARKS]
            count = max((len(one.seeds) for one in ours if one), default=0)
            cells = [NOT_RUN if one is None else f"{one.mean:.0f}" for one in ours]
            rows.append([name, f"{method}, ours", str(count), *cells])
    return "\n".join(markdown_table(head, rows))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's, of (game, simulator); nan for less than `FEWEST_MAPS` or where one side is
    constant.
    """
    if len(pairs) < FEWEST_MAPS or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return float("nan")
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def tables(played: Mapping[str, tuple[Played, Played]], learned: Learned) -> str:
    """All tables of the page (Markdown)."""
    heuristic = [(PUBLISHED[m], 100 * one.wins) for m, (one, _) in played.items() if m in PUBLISHED]
    parts, compared = [], [("heuristic", heuristic)]
    for key, entry in published()["tables"].items():
        if key == "heuristic":
            rows = [
                [
                    name,
                    str(value),
                    f"{100 * played[name][0].wins:.1f}" if name in played else NOT_RUN,
                ]
                for name, value in PUBLISHED.items()
            ]
            text = "\n".join(markdown_table(["map", "game", "ours"], rows))
        else:
            text, pairs = beside(entry, learned, key.startswith("smac_hard"))
            compared += [(f"{entry['title']}: {one}", found) for one, found in pairs.items()]
        parts += [f"### {entry['title']}{_after(entry['steps'])}", _source(entry), text]
    parts += [
        f"### {published()['smacv2']['title']}",
        _source(published()["smacv2"]),
        curves(learned),
    ]
    rows = []
    for what, found in compared:
        rho = rank_correlation(found)
        rows.append([what, str(len(found)), "-" if np.isnan(rho) else f"{rho:.2f}"])
    parts += [
        "### Rank correlation",
        _wrapped(
            "The table shows Spearman's rank correlation of the maps' win rates in the simulator "
            "with those in the game. It is given for five maps or more with both figures, "
            "unless they are all alike."
        ),
        "\n".join(markdown_table(["figures", "maps", "correlation"], rows)),
    ]
    return "\n\n".join(parts) + "\n"


def _after(steps: int | None) -> str:
    return f", {steps:,} steps" if steps else ""


def _source(entry: Mapping[str, Any]) -> str:
    version = f" Game version: {entry['game_version']}." if "game_version" in entry else ""
    note = f" {entry['note']}" if "note" in entry else ""
    return _wrapped(f"Source: {entry['source']}.{version}{note}")


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, 100, break_long_words=False, break_on_hyphens=False))


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the page's two marks.

    Raises:
        UserError: the page does not have them.
    """
    old = page.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise UserError(f"{page} lacks the lines {BEGIN} and {END}")
    before, rest = old.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--maps", nargs="+", choices=map_names(), default=map_names())
    parser.add_argument("--battles", type=int, default=200, help="per map and policy")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument(
        "--no-play", action="store_true", help="take the kept figures of the heuristic"
    )
    parser.add_argument(
        "--runs", nargs="+", default=[str(KEPT)], help="folders of runs to lay beside the game's"
    )
    parser.add_argument(
        "--page", action="store_true", help=f"write the tables into {PAGE.relative_to(ROOT)}, too"
    )
    options = parser.parse_args(argv)
    start = time.monotonic()
    options.results.mkdir(parents=True, exist_ok=True)
    learned = Learned(load_runs(options.runs, [METRIC]))
    played = kept_plays() if options.no_play else play_all(options.maps, options.battles)
    text = tables(played, learned)
    (options.results / "calibration.md").write_text(f"{table(played)}\n{text}", encoding="utf-8")
    if options.page:
        put_into(PAGE, text)
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    console.print(f"table: {options.results / 'calibration.md'}")
