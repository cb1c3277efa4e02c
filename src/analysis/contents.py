"""The sections of a report: the same tables and figures for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import interactive, overview, plots
from analysis.aggregate import FinalRow, Task
from analysis.bootstrap import STATISTIC_NAMES, Estimate, Method
from analysis.compare import AGGREGATES, Comparison, Reach
from analysis.document import Figure, Film, Part, Section, Table
from analysis.findings import Findings, Options, title_of
from analysis.runs import Run

HEADS = {"iqm": "IQM", "mean": "Mean", "median": "Median"}
SIDE_BY_SIDE = 8  # groups whose settings have a column each
_VALUES = 6  # of a setting that are listed
_AT = (0.25, 0.5, 0.75)  # thresholds of a profile that stand in the table

Pictures = Mapping[tuple[str, str], Sequence[Path]]  # (metric, kind of figure) -> files


@dataclass(frozen=True)
class Material:
    """What a report is written from.

    Attributes:
        runs: all runs, and `groups` of them.
        found: by metric.
        pictures: files of the figures.
        costs, settings, films: of `analysis.overview`.
        warnings: sentences.
        exported: whether there is a `marl_eval.json`.
        html: the figures are wanted for a browser, too.
    """

    runs: Sequence[Run]
    groups: Mapping[str, Sequence[Run]]
    found: Mapping[str, Findings]
    options: Options
    seeds: bool | None
    pictures: Pictures
    costs: Sequence[overview.Cost]
    settings: overview.Settings
    films: Sequence[tuple[Task, str, Run, Path]]
    warnings: Sequence[str]
    exported: bool
    html: bool


def document(material: Material) -> Section:
    """The whole report."""
    runs, by = material.runs, material.options.by
    root = Section(
        "Report",
        [f"{len(runs)} runs, grouped by {', '.join(f'`{key}`' for key in by)}."],
    )
    for found in material.found.values():
        root.sections.append(_metric(found, material))
    root.sections.append(Section("Cost", _cost(material)))
    root.sections.append(Section("Settings", _settings(material)))
    if material.films:
        root.sections.append(Section("Films", _films(material)))
    root.sections.append(Section("How to read this", [_reading(material)]))
    if material.warnings:
        root.sections.append(Section("Warnings", [list(material.warnings)]))
    root.sections.append(Section("Runs", [_runs(runs)]))
    return root


# --- One metric ---


def _metric(found: Findings, material: Material) -> Section:
    method = material.options.method
    name = plots.in_words(found.metric, found.rate)
    section = Section(f"{name} (`{found.metric}`)")
    shown = [interactive.curves(*panel, found, material.seeds) for panel in found.panels.items()]
    section.parts.append(_figure(found, "curves", f"{name}: learning curves", shown, material))
    section.parts.append(final_table(found.rows, method, found.rate))
    if found.comparison is not None:
        section.sections.append(_compared(found, found.comparison, material))
    if found.reach:
        section.sections.append(Section("Sample efficiency", _efficiency(found, material)))
    return section


def _figure(
    found: Findings,
    kind: str,
    title: str,
    shown: Sequence[dict[str, Any]],
    material: Material,
    width: str = "",
) -> Figure:
    return Figure(
        title,
        material.pictures.get((found.metric, kind), ()),
        shown if material.html else (),
        interactive.legend(found.labels) if kind in ("curves", "profiles") else (),
        width,
    )


def final_table(rows: Sequence[FinalRow], method: Method, rate: bool) -> Table:
    """Final results with intervals."""
    head = [*heads(method), "Min", "Max", "Runs", "Seeds", "Steps", "Wall clock", "Steps/s"]
    head.append("Notes")
    body = []
    for row in rows:
        body.append(
            [
                *cells(row, method, rate),
                number(min(row.finals), rate),
                number(max(row.finals), rate),
                str(len(row.seeds)),
                _seeds(row.seeds) if row.task[0] != "all" else "-",
                _steps(row.steps),
                _duration(row.wall_clock),
                number(row.steps_per_second),
                "; ".join(row.notes),
            ]
        )
    if not any(row.notes for row in rows):
        head, body = head[:-1], [line[:-1] for line in body]
    return Table(head, body)


def heads(method: Method) -> list[str]:
    """Column heads: the chosen statistic with its interval, and the others."""
    others = [HEADS[key] for key in ("iqm", "mean") if key != method.statistic]
    return ["Map", "Group", HEADS[method.statistic], f"{method.percent} interval", *others]


def cells(row: FinalRow, method: Method, rate: bool) -> list[str]:
    """The cells below `heads`."""
    others = [number(row.value(key), rate) for key in ("iqm", "mean") if key != method.statistic]
    estimate = Estimate(row.value(method.statistic), row.low, row.high)
    return [row.task[1], row.label, *_estimate(estimate, _percent if rate else number), *others]


# --- Groups compared ---


def _compared(found: Findings, comparison: Comparison, material: Material) -> Section:
    method = material.options.method
    n, labels = len(comparison.tasks), comparison.labels
    parts: list[Part] = [
        f"Scores are {score_words(comparison)}. Intervals are {method.percent} bootstrap "
        "intervals, runs being resampled map by map."
    ]
    tasks = list(dict.fromkeys(row.task for row in found.rows if row.task[0] != "all"))
    if n < len(tasks):
        names = ", ".join(title_of(task, tasks) for task in comparison.tasks)
        parts.append(
            f"The comparison is over these maps, where not all results are equal: {names}."
        )
    left_out = [label for label in found.labels if label not in labels]
    if left_out:
        parts.append(f"Groups without runs on all of them are left out: {', '.join(left_out)}.")
    shown = interactive.aggregates(comparison)
    parts.append(_figure(found, "aggregates", "Aggregates", shown, material, "small"))
    parts.append(_aggregate_table(comparison, method))
    section = Section(f"Groups compared over {n} maps" if n > 1 else "Groups compared", parts)
    shown = [interactive.profiles(comparison, found.labels)]
    section.sections.append(
        Section(
            "Performance profiles",
            [
                "A profile is the share of a group's runs whose score lies above a threshold.",
                _figure(found, "profiles", "Performance profiles", shown, material, "wide"),
                _profile_table(comparison, method),
            ],
        )
    )
    if len(labels) > 1:
        section.sections += [
            _improvement(found, comparison, material),
            _ranks(found, comparison, material),
        ]
    return section


def _aggregate_table(comparison: Comparison, method: Method) -> Table:
    head, unit = ["Group", "Runs"], "" if comparison.normalised else " (%)"
    for name in AGGREGATES.values():
        head += [f"{name}{unit}", f"{method.percent} interval"]
    text = _score if comparison.normalised else _percent
    body = [
        [
            *(label, str(comparison.n_runs[label])),
            *(cell for one in estimates.values() for cell in _estimate(one, text)),
        ]
        for label, estimates in comparison.aggregates.items()
    ]
    return Table(head, body)


def _improvement(found: Findings, comparison: Comparison, material: Material) -> Section:
    title, shown = "Probability of improvement", [interactive.improvement(comparison)]
    body = [[x, y, *_estimate(one, _percent)] for (x, y), one in comparison.improvement.items()]
    interval = f"{material.options.method.percent} interval"
    return Section(
        title,
        [
            "This is the probability that a run of X is better than a run of Y on a map drawn at "
            "random; ties count half. Where the interval does not hold 50 %, the difference is "
            "clear.",
            _figure(found, "improvement", title, shown, material, "wide"),
            Table(["X", "Y", "P(X better) (%)", interval], body),
        ],
    )


def _ranks(found: Findings, comparison: Comparison, material: Material) -> Section:
    shown = [interactive.ranks(comparison)]
    head = ["Group", "Mean rank", f"{material.options.method.percent} interval"]
    head += [f"Rank {k + 1} (%)" for k in range(len(comparison.labels))]
    body = [
        [
            *(label, *_estimate(comparison.mean_ranks[label])),
            *(_percent(float(share)) for share in comparison.ranks[label]),
        ]
        for label in comparison.ranking
    ]
    return Section(
        "Ranks",
        [
            "A group's rank on a map is its place when one run of each group is drawn; ties are "
            "broken at random. The table has the mean over maps.",
            _figure(found, "ranks", "Ranks", shown, material, "wide"),
            Table(head, body),
        ],
    )


def score_words(comparison: Comparison) -> str:
    """What the scores are that groups are compared by."""
    if not comparison.normalised:
        return "shares of won episodes"
    several = len(comparison.tasks) > 1
    return (
        "scaled so that the lowest value recorded"
        f"{' on a map' if several else ''} by any run is 0 and the highest is 1"
    )


def _profile_table(comparison: Comparison, method: Method) -> Table:
    head = ["Group"]
    for threshold in _AT:
        unit = "" if comparison.normalised else " %"
        at = f"{threshold:g}" if comparison.normalised else f"{100 * threshold:g}"
        head += [f"Above {at}{unit} (%)", f"{method.percent} interval"]
    body = []
    for label, profile in comparison.profiles.items():
        row = [label]
        for threshold in _AT:
            k = int(abs(profile.thresholds - threshold).argmin())
            estimate = Estimate(*(float(x[k]) for x in (profile.share, profile.low, profile.high)))
            row += _estimate(estimate, _percent)
        body.append(row)
    return Table(head, body)


# --- Sample efficiency ---


def _efficiency(found: Findings, material: Material) -> list[Part]:
    options = material.options
    if found.rate:
        what = "of the test episodes are won"
    else:
        what = "of the way from the lowest to the highest value recorded on the map are made"
    text = (
        f"Environment steps until so many percent {what}, by the mean of {options.last} "
        "evaluations: the median over runs. `never` means that at least half of the runs do not "
        "get there."
    )
    head = ["Map", "Group", "Runs"]
    for level in options.levels:
        at = f"{100 * level:g} %"
        head += [f"Steps to {at}", f"{options.method.percent} interval", f"Runs at {at}"]
    rows: dict[tuple[Task, str], list[Reach]] = {}
    for one in found.reach:
        rows.setdefault((one.task, one.label), []).append(one)
    tasks = list(dict.fromkeys(task for task, _ in rows))
    body = []
    for (task, label), reached in rows.items():
        row = [title_of(task, tasks), label, str(reached[0].n_runs)]
        for one in reached:
            row += [_when(one.steps.value), _range(one.steps, _when), str(one.reached)]
        body.append(row)
    return [text, Table(head, body)]


def _when(steps: float) -> str:
    return "never" if math.isinf(steps) else f"{steps:,.0f}"


# --- Cost, settings, films, runs ---


def _cost(material: Material) -> list[Part]:
    costs = material.costs
    tasks = list(dict.fromkeys(one.task for one in costs))
    body = [
        [
            *(title_of(one.task, tasks), one.label, str(one.n_runs)),
            f"{one.steps:,}",
            *_hours(one),
            number(one.speed),
        ]
        for one in costs
    ]
    n, timed = sum(one.n_runs for one in costs), sum(one.timed for one in costs)
    steps, hours = sum(one.steps for one in costs), sum(one.hours for one in costs)
    total = overview.Cost(("all", ""), "", n, timed, steps, hours, math.nan)
    body.append(["All", "all", str(n), f"{steps:,}", *_hours(total), "-"])
    text = "Steps and hours are of all runs of the row together; the speed is the mean over runs."
    if timed < n:
        text += f" {n - timed} of {n} runs recorded no time: hours and speed are of the others."
    head = ["Map", "Group", "Runs", "Steps", "Hours", "Hours a run", "Steps/s"]
    return [text, Table(head, body)]


def _hours(cost: overview.Cost) -> list[str]:
    if not cost.timed:
        return ["-", "-"]
    return [f"{cost.hours:,.{_digits(cost.hours)}f}", f"{cost.hours_per_run:.3g}"]


def _digits(hours: float) -> int:
    return 3 if hours < 1 else 2 if hours < 10 else 1 if hours < 100 else 0


def _settings(material: Material) -> list[Part]:
    settings, parts = material.settings, list[Part]()
    if settings.differing:
        labels = list(material.groups)
        parts.append("These settings are not the same in all runs:")
        if len(labels) <= SIDE_BY_SIDE:
            head = ["Key", *labels]
            body = [
                [f"`{key}`", *(_values(values[label]) for label in labels)]
                for key, values in settings.differing.items()
            ]
        else:
            head = ["Key", "Values"]
            body = [
                [f"`{key}`", _values([value for found in values.values() for value in found])]
                for key, values in settings.differing.items()
            ]
        parts.append(Table(head, body))
    else:
        parts.append("All runs have the same settings.")
    common = [[f"`{key}`", _short(value)] for key, value in settings.common.items()]
    if common:
        title = f"{len(common)} settings are the same in all runs"
        parts.append(Table(["Key", "Value"], common, folded=title))
    return parts


def _values(values: Sequence[str]) -> str:
    found = list(dict.fromkeys(values))
    if not found:
        return "not set"
    more = f" and {len(found) - _VALUES} more" if len(found) > _VALUES else ""
    return ", ".join(map(_short, found[:_VALUES])) + more


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."


def _films(material: Material) -> list[Part]:
    parts: list[Part] = []
    for task, label, run, file in material.films:
        title = f"{label} on {task[1]}, seed {_seed(run.seed)}"
        parts.append(Film(title, file))
    return parts


def _reading(material: Material) -> list[str]:
    method, last = material.options.method, material.options.last
    points = [
        f"The final result of a run is the mean of its last {last} evaluations (of all, where it "
        "has fewer).",
        f"Lines, and what the interval belongs to: the {STATISTIC_NAMES[method.statistic]} over "
        "runs. The interquartile mean drops the floor(n/4) lowest and highest of n runs: with "
        "fewer than 4 it is the plain mean.",
        f"Intervals: {method.percent}, percentile bootstrap, {method.resamples} resamples of whole "
        "runs, map by map where several maps are put together. With few runs (under about 5) they "
        "are narrower than they claim.",
        "A curve uses, at each step, the runs that reach it; nothing is extrapolated.",
        "Steps are those of the longest run, and a range where runs differ by more than 1 %. "
        "Wall clock and steps/s are means per run. `final.csv` and `statistics.csv` have the same "
        "numbers unrounded, win rates as shares.",
    ]
    if any(found.comparison for found in material.found.values()):
        points.append(
            "Comparisons follow Agarwal et al. (Deep Reinforcement Learning at the Edge of the "
            "Statistical Precipice, NeurIPS 2021; the package rliable). The optimality gap is how "
            "much the runs lack to 1 on average. The interquartile mean, the mean, the optimality "
            "gap and the profile are over all runs of all maps: a map with more runs counts more. "
            "In the median, the probability of improvement and the ranks all maps count equally."
        )
    if any(found.comparison is None for found in material.found.values()):
        points.append(
            "Groups are compared by returns and shares of won episodes; of other metrics it is not "
            "known that more is better. One group on one map is compared with nothing."
        )
    if material.exported:
        points.append(
            "`marl_eval.json`: marl-eval's format; `absolute_metrics` hold the episodes of the "
            f"last {last} evaluations, not those of a re-evaluated best policy."
        )
    return points


def _runs(runs: Sequence[Run]) -> Table:
    body = [[str(run.path), run.name, *run.task, _seed(run.seed), run.status] for run in runs]
    head = ["Folder", "Algorithm", "Environment", "Map", "Seed", "Status"]
    return Table(head, body, folded=f"All {len(runs)} runs" if len(runs) > 12 else "")


# --- Texts ---


def number(value: float, rate: bool = False) -> str:
    """A number for reading: percent with one decimal, else four significant digits."""
    if math.isnan(value):
        return "-"
    if rate:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(value: float) -> str:
    return number(value, rate=True)


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _estimate(estimate: Estimate, text: Callable[[float], str] = number) -> list[str]:
    """Value and interval in a cell each."""
    return [text(estimate.value), _range(estimate, text)]


def _range(estimate: Estimate, text: Callable[[float], str]) -> str:
    if math.isnan(estimate.low):
        return "-"
    low, high = text(estimate.low), text(estimate.high)
    return low if low == high == "never" else f"{low} to {high}"


def _seed(seed: int | None) -> str:
    return "?" if seed is None else str(seed)


def _seeds(seeds: Sequence[int | None]) -> str:
    """The seeds, neighbours put together: `1 to 5, 9`."""
    known = sorted(seed for seed in seeds if seed is not None)
    if len(known) < len(seeds) or len(known) != len(set(known)):
        return ", ".join(map(_seed, seeds))
    spans: list[list[int]] = []
    for seed in known:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    texts: list[str] = []
    for low, high in spans:
        texts += [f"{low} to {high}"] if high > low + 1 else map(str, dict.fromkeys((low, high)))
    return ", ".join(texts)


def _steps(steps: Sequence[int]) -> str:
    low, high = min(steps), max(steps)
    return f"{high:,}" if high - low <= 0.01 * high else f"{low:,} to {high:,}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.1f} h"
