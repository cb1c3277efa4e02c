"""What is drawn of an experiment's finished runs: learning curves, a panel per task, and a table of
final results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from analysis import plots, published
from analysis.aggregate import FinalRow, curves, final_table
from analysis.bootstrap import Method
from analysis.document import markdown_table
from analysis.runs import WALL_CLOCK_KEY, Run, load_runs
from experiments.spec import Experiment
from launch.jobs import FinishedRun, Job, console, finished_runs
from launch.spec import Paper
from utils.errors import UserError

# Task -> label of a method -> its finished runs, one per seed.
Cells = Mapping[str, Mapping[str, Sequence[Run]]]

MEAN = Method(statistic="mean")
_HEAD = (
    *("task", "method", "seeds", "every seed", "mean", "95% interval", "steps", "minutes a run"),
    "steps/s",
)


def finished_cells(
    experiment: Experiment, runs: Sequence[FinishedRun]
) -> dict[str, dict[str, list[Run]]]:
    """The experiment's cells with what of them is finished; tasks and methods without a run are
    left out.
    """
    cells = {
        title: {label: found for label, jobs in groups.items() if (found := _load(jobs, runs))}
        for title, groups in experiment.cells().items()
    }
    return {title: groups for title, groups in cells.items() if groups}


def _load(jobs: Iterable[Job], runs: Sequence[FinishedRun]) -> list[Run]:
    paths = [found.path for job in jobs if (found := job.find(runs)) is not None]
    return load_runs(paths) if paths else []


def report(experiment: Experiment, results: Path, kept: Path | None) -> Path | None:
    """Draws what is finished and prints the table.

    Args:
        results: folder of the runs.
        kept: folder of published runs that count too.

    Returns:
        The folder of pictures and tables, or None if no run is finished.
    """
    cells = finished_cells(experiment, finished_runs(results, kept))
    if not cells:
        return None
    out = results / "report" / experiment.name
    out.mkdir(parents=True, exist_ok=True)
    if experiment.figures:
        text = import_module(f"experiments.{experiment.figures}").draw(experiment, cells, out)
    else:
        text = draw(experiment, cells, out)
    console.print(text, markup=False, soft_wrap=True)
    return out


def draw(experiment: Experiment, cells: Cells, out: Path) -> str:
    """Pictures and tables of every metric; returns the tables."""
    parts = {out / title: {title: groups} for title, groups in cells.items()}
    texts = []
    for folder, part in (parts if experiment.separate else {out: cells}).items():
        for i, (metric, ylabel) in enumerate(experiment.metrics.items()):
            stem = f"_{metric}" if i else ""
            texts.append(compare(part, metric, folder, ylabel, experiment.paper, stem))
    return "\n".join(texts)


def compare(
    cells: Cells, metric: str, out: Path, ylabel: str, paper: Paper | None = None, stem: str = ""
) -> str:
    """Draws learning curves with one panel per task and writes the table of final results.

    Args:
        metric: name of the scalar, e.g. `test_return_mean`; a run's final result is the mean of its
            last 5 evaluations.
        out: folder of `curves.png`, `curves.pdf` and `final.md`.
        ylabel: the metric in words.
        paper: published results, which get a column of their own.
        stem: what is added to the files' names.

    Returns:
        The table (Markdown): every seed's final result, their mean and its 95% bootstrap interval,
        time and speed.
    """
    out.mkdir(parents=True, exist_ok=True)
    panels = {
        title: [curves(runs, metric, label=label, method=MEAN) for label, runs in groups.items()]
        for title, groups in cells.items()
    }
    plots.save(plots.draw(panels, ylabel=ylabel, method=MEAN, seeds=True), out / f"curves{stem}")
    rows, beside = [], []
    for title, groups in cells.items():
        for label, runs in groups.items():
            (row,) = final_table(runs, metric, by=("env",), method=MEAN)
            rows.append([title, label, *_entries(row)])
            beside.append(paper.value(label, title) if paper else None)
    if paper and any(value is not None for value in beside):
        rows = [[*row, _number(value)] for row, value in zip(rows, beside, strict=True)]
        lines = [*markdown_table([*_HEAD, "paper"], rows), "", f"Paper: {paper.source}."]
    else:
        lines = markdown_table(_HEAD, rows)
    table = "\n".join(lines) + "\n"
    (out / f"final{stem}.md").write_text(table, encoding="utf-8")
    return table


def _entries(row: FinalRow) -> list[str]:
    order = sorted(range(len(row.seeds)), key=lambda i: row.seeds[i])
    return [
        " ".join(str(row.seeds[i]) for i in order),
        " ".join(f"{row.finals[i]:.2f}" for i in order),
        f"{row.mean:.2f}",
        f"{row.low:.2f} to {row.high:.2f}" if len(order) > 1 else "-",
        f"{min(row.steps):,}",
        f"{row.wall_clock / 60:.1f}",
        f"{row.steps_per_second:,.0f}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def publish(experiment: Experiment, results: Path, kept: Path) -> list[Path]:
    """Copies what curves need of the finished runs that are not published yet: settings, the
    experiment's metrics, seconds.

    Args:
        kept: folder of published runs: a folder per algorithm and map, a file per run.

    Returns:
        The new files.

    Raises:
        UserError: the experiment's figures need more than curves.
    """
    if experiment.figures or experiment.program:
        raise UserError(
            f"{experiment.name} draws from whole runs, not from curves: it cannot be published"
        )
    own, there = finished_runs(results), finished_runs(kept, kept)
    files = []
    for job in experiment.jobs():
        run = job.find(own)
        if run is not None and job.find(there) is None:
            folder = kept / run.path.parent.parent.name / run.path.parent.name
            number = 1 + max((int(file.name.split(".")[0]) for file in folder.glob("*")), default=0)
            files.append(folder / f"{number}{published.SUFFIX}")
            published.write(run.path, files[-1], list(experiment.metrics), [WALL_CLOCK_KEY])
    return files
