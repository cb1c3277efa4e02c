"""Export in the data format of marl-eval (Gorsane et al., "Towards a Standardised Performance
Evaluation Protocol for Cooperative MARL", NeurIPS 2022; https://github.com/instadeepai/marl-eval).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.aggregate import tasks_of
from analysis.progress import tracked
from analysis.runs import WALL_CLOCK_KEY, Episodes, Run, group_runs

_log = logging.getLogger(__name__)

# marl-eval's name -> lists of single episodes, and the mean that stands in for them in PyMARL's
# files.
METRICS = {
    "return": ("test_returns", "test_return_mean"),
    "win_rate": ("test_wins", "test_battle_won_mean"),
}


def export(runs: Sequence[Run], by: Sequence[str] = ("name",), last: int = 5) -> dict[str, Any]:
    """Evaluations of all runs as `{environment: {task: {algorithm: {run: {step_k: ...,
    absolute_metrics: ...}}}}}`.

    `step_k` is the k-th evaluation with `step_count`, `elapsed_time` (seconds, where the run
    recorded it), and lists `return` and `win_rate` with one value per evaluation episode (one
    element, the mean, for PyMARL's files, which keep no single episodes). Runs are named `seed_S`
    if every algorithm has the same distinct seeds, else `run_0`, `run_1`, ...: marl-eval wants the
    same names everywhere. Algorithm names must not contain commas there: `;` replaces them.

    `absolute_metrics`, in the paper the best policy of a run evaluated anew on ten times as many
    episodes, hold the episodes of the last evaluations here (the final value of
    `aggregate.final_table`): picking the best of many noisy evaluations without evaluating it anew
    would overstate every algorithm.

    Args:
        by: config keys that make an algorithm.
        last: how many last evaluations make `absolute_metrics`.

    Returns:
        The nested dict; empty where no run has evaluations.
    """
    groups = group_runs(runs, by)
    cells: dict[tuple[tuple[str, str], str], list[tuple[Run, dict[str, Episodes]]]] = {}
    for task in tasks_of(runs):
        for label, group in groups.items():
            members = [(run, _evaluations(run)) for run in group if run.task == task]
            members = [(run, evaluations) for run, evaluations in members if evaluations]
            if members:
                cells[task, label] = members
    seeds = [[run.seed for run, _ in members] for members in cells.values()]
    by_seed = all(
        len(set(s)) == len(s) and None not in s and set(s) == set(seeds[0]) for s in seeds
    )
    result: dict[str, Any] = {}
    for (task, label), members in tracked(list(cells.items()), "marl-eval's JSON"):
        algorithm = (
            result.setdefault(task[0], {})
            .setdefault(task[1], {})
            .setdefault(label.replace(",", ";"), {})
        )
        if by_seed:
            members = sorted(members, key=lambda member: member[0].seed or 0)
        for i, (run, evaluations) in enumerate(members):
            algorithm[f"seed_{run.seed}" if by_seed else f"run_{i}"] = _export_run(
                run, evaluations, last
            )
    _warn_if_unbalanced(cells)
    return result


def _evaluations(run: Run) -> dict[str, Episodes]:
    """marl-eval's metrics of a run, all on the same evaluation steps; empty where it has no
    returns.
    """
    found: dict[str, Episodes] = {}
    for name, (lists, mean) in METRICS.items():
        if lists in run.episodes:
            found[name] = run.episodes[lists]
        elif (series := run.finite(mean)) is not None:
            found[name] = Episodes(series.t, [[value] for value in series.values.tolist()])
    found = {name: entry for name, entry in found.items() if any(map(len, entry.values))}
    if "return" not in found:
        if found:
            _log.warning("%s has no test returns: left out of the marl-eval export", run.path)
        return {}
    for name, entry in list(found.items()):
        if not np.array_equal(entry.t, found["return"].t) or not all(
            _is_complete(x) for x in entry.values
        ):
            if name == "return":
                _log.warning(
                    "%s has evaluations without a return: left out of the marl-eval export",
                    run.path,
                )
                return {}
            _log.warning(
                "%s has evaluations without a %s: it is left out of the marl-eval export",
                run.path,
                name,
            )
            del found[name]
    return found


def _is_complete(episodes: list[float]) -> bool:
    return len(episodes) > 0 and bool(np.isfinite(episodes).all())


def _export_run(run: Run, evaluations: dict[str, Episodes], last: int) -> dict[str, Any]:
    clock = run.timing.get(WALL_CLOCK_KEY)
    steps: dict[str, Any] = {}
    for k, t in enumerate(evaluations["return"].t):
        steps[f"step_{k}"] = {"step_count": int(t)}
        if clock is not None:
            steps[f"step_{k}"]["elapsed_time"] = float(np.interp(t, clock.t, clock.values))
        steps[f"step_{k}"].update({name: entry.values[k] for name, entry in evaluations.items()})
    steps["absolute_metrics"] = {
        name: [value for episodes in entry.values[-last:] for value in episodes]
        for name, entry in evaluations.items()
    }
    return steps


def _warn_if_unbalanced(
    cells: dict[tuple[tuple[str, str], str], list[tuple[Run, dict[str, Episodes]]]],
) -> None:
    """marl-eval refuses environments whose algorithms differ in tasks, runs or evaluations: say so
    beforehand.
    """
    for env in dict.fromkeys(task[0] for task, _ in cells):
        here = {key: members for key, members in cells.items() if key[0][0] == env}
        n_tasks = len({task for task, _ in here})
        reasons = {
            "runs": len({len(members) for members in here.values()}) > 1,
            "tasks": any(sum(label == other for _, other in here) < n_tasks for _, label in here),
            "evaluations": len(
                {len(e["return"].t) for members in here.values() for _, e in members}
            )
            > 1,
            "metrics": len({tuple(e) for members in here.values() for _, e in members}) > 1,
        }
        differing = [reason for reason, holds in reasons.items() if holds]
        if differing:
            _log.warning(
                "marl-eval's own plots need equal numbers of runs, tasks and evaluations; on %s "
                "the %s differ",
                *(env, " and ".join(differing)),
            )
