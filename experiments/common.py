"""Many runs through the ordinary command line, a few at a time; what is done already is not done
again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis import plots
from analysis.aggregate import Method, curves, final_table
from analysis.report import markdown_table
from analysis.runs import WALL_CLOCK_KEY, Run, load_runs
from experiments import ROOT
from utils.errors import RunFailure, UserError, told

# Curves of finished runs that git keeps, a folder of results for each experiment.
PUBLISHED = ROOT / "docs" / "runs"

console = Console()


@dataclass(frozen=True)
class Job:
    """One run: `python src/main.py --config=ALGORITHM --env-config=ENVIRONMENT with SETTINGS`.

    Args:
        settings: key -> value; entries of mappings as `env_args.map_name`. A `seed` belongs here.
    """

    algorithm: str
    environment: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(
            [self.algorithm, self.environment, *(f"{k}={v}" for k, v in self.settings.items())]
        )

    def command(self, results: Path) -> list[str]:
        """The command line; an unfinished run of the same job is continued."""
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        files = [f"--config={self.algorithm}", f"--env-config={self.environment}"]
        fixed = [f"local_results_path={results}", "resume=auto"]
        return [sys.executable, str(ROOT / "src" / "main.py"), *files, "with", *fixed, *settings]

    def finished_run(self, *places: Path) -> Path | None:
        """The folder of a completed run of this job in one of these folders of results, if there is
        one.
        """
        for file in (
            file
            for place in places
            for file in sorted((place / "sacred").glob("*/*/*/config.json"))
        ):
            record = json.loads((file.parent / "run.json").read_text())
            if record["status"] == "COMPLETED" and self._describes(json.loads(file.read_text())):
                return file.parent
        return None

    def _describes(self, config: Mapping[str, Any]) -> bool:
        if (config["name"], config["env_config"]) != (self.algorithm, self.environment):
            return False
        for key, value in self.settings.items():
            found: Any = config
            for part in key.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found != value:
                return False
        return True


def run_jobs(
    jobs: Sequence[Job], results: Path, processes: int = 0, published: Path | None = None
) -> list[Path]:
    """Runs all jobs that are not finished yet.

    Args:
        results: folder of the runs' results; an interrupted experiment goes on from there.
        processes: how many at once; 0: one per processor. Each uses one thread if there are
            several.
        published: runs here count as done as well (see `publish`).

    Returns:
        The jobs' run folders, in their order.

    Raises:
        UserError, RunFailure: a job failed (UserError: with exit code 2); the others have been
            ended.
    """
    processes = processes or len(os.sched_getaffinity(0))
    places = _places(results, published)
    todo = [job for job in jobs if job.finished_run(*places) is None]
    console.log(
        f"{len(jobs) - len(todo)} of {len(jobs)} runs are there already, {processes} at a time, in "
        f"{results}"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"} if processes > 1 else None
    running: list[tuple[Job, subprocess.Popen[bytes], Any, float]] = []
    done = 0
    # As after Ctrl-C: the runs must not go on without the one who started them.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while todo or running:
            while todo and len(running) < processes:
                job = todo.pop(0)
                output = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the run
                process = subprocess.Popen(
                    job.command(results), stdout=output, stderr=output, env=env
                )
                running.append((job, process, output, time.monotonic()))
            time.sleep(0.1)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                job, process, output, start = entry
                running.remove(entry)
                if process.returncode != 0:
                    output.seek(0)
                    tail = output.read().decode(errors="replace").strip()[-2000:]
                    if (
                        process.returncode == 2
                    ):  # main.py's for what the user must change, in its last line
                        raise UserError(f"{tail.splitlines()[-1].removeprefix('error: ')} ({job})")
                    raise RunFailure(f"{job} ended with exit code {process.returncode}:\n{tail}")
                done += 1
                console.log(
                    f"done ({done}/{done + len(running) + len(todo)}, "
                    f"{time.monotonic() - start:.0f} s): {job}"
                )
    finally:
        _end(process for _, process, _, _ in running)
        signal.signal(signal.SIGTERM, before)
    return [_required(job, places) for job in jobs]


def publish(run: Path, published: Path, metric: str) -> Path:
    """Copies what a curve needs of a finished run: settings, one metric, seconds; nothing about
    machine or folders.

    Args:
        run: its folder, `.../ALGORITHM/MAP/ID`.
        published: folder of results that git keeps.

    Returns:
        The copy, laid out like the run.
    """
    family = published / "sacred" / run.parent.parent.name / run.parent.name
    number = 1 + max((int(folder.name) for folder in family.glob("*")), default=0)
    copy = family / str(number)
    copy.mkdir(parents=True)
    config = json.loads((run / "config.json").read_text())
    record = json.loads((run / "run.json").read_text())
    code = [
        {key: source[key] for key in ("commit", "dirty")}
        for source in record["experiment"]["repositories"]
    ]
    kept = {"experiment": {"repositories": code}} | {
        key: record[key] for key in ("status", "start_time", "stop_time")
    }
    config = {
        key: value
        for key, value in config.items()
        if key not in ("local_results_path", "checkpoint_path")
    }
    (copy / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (copy / "run.json").write_text(json.dumps(kept, indent=1) + "\n")
    for name, key in (("metrics.jsonl", metric), ("timing.jsonl", WALL_CLOCK_KEY)):
        lines = [
            line for line in (run / name).read_text().splitlines() if json.loads(line)["key"] == key
        ]
        (copy / name).write_text("".join(f"{line}\n" for line in lines))
    return copy


def compare(
    cells: Mapping[str, Mapping[str, Sequence[Run]]], metric: str, out: Path, ylabel: str
) -> str:
    """Draws learning curves with one panel per task and writes the table of final results.

    Args:
        cells: panel title -> label of a method -> its runs, one per seed.
        metric: name of the scalar, e.g. `test_return_mean`; a run's final result is the mean of its
            last 5 evaluations.
        out: folder of `curves.png`, `curves.pdf` and `final.md`.
        ylabel: the metric in words.

    Returns:
        The table (Markdown): every seed's final result, their mean and its 95% bootstrap interval,
        time and speed.
    """
    out.mkdir(parents=True, exist_ok=True)
    method = Method(statistic="mean")
    panels = {
        title: [curves(runs, metric, label=label, method=method) for label, runs in groups.items()]
        for title, groups in cells.items()
    }
    plots.save(plots.draw(panels, ylabel=ylabel, method=method, seeds=True), out / "curves")
    head = [
        "task",
        "method",
        "seeds",
        "every seed",
        "mean",
        "95% interval",
        "steps",
        "minutes a run",
        "steps/s",
    ]
    rows = []
    for title, groups in cells.items():
        for label, runs in groups.items():
            (row,) = final_table(runs, metric, by=("env",), method=method)
            order = sorted(range(len(row.seeds)), key=lambda i: row.seeds[i])
            entries = [
                *(title, label, " ".join(str(row.seeds[i]) for i in order)),
                " ".join(f"{row.finals[i]:.2f}" for i in order),
                f"{row.mean:.2f}",
                f"{row.low:.2f} to {row.high:.2f}" if len(order) > 1 else "-",
                f"{min(row.steps):,}",
                f"{row.wall_clock / 60:.1f}",
                f"{row.steps_per_second:,.0f}",
            ]
            rows.append(entries)
    table = "\n".join(markdown_table(head, rows)) + "\n"
    (out / "final.md").write_text(table, encoding="utf-8")
    return table


def parser_of(description: str, results: Path, seeds: int) -> argparse.ArgumentParser:
    """The options that experiments with several curves share; see `carry_out`."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=seeds, help="runs per curve (seeds 1, 2, ...)")
    parser.add_argument(
        "--processes", type=int, default=0, help="runs at a time; 0: one per processor"
    )
    parser.add_argument(
        "--results", type=Path, default=results, help="folder of the runs, the numbers and pictures"
    )
    parser.add_argument("--report", action="store_true", help="only draw what is finished")
    parser.add_argument(
        "--published",
        action="store_const",
        const=PUBLISHED / results.name,
        help="runs in docs/runs count as finished, and the curves of other finished runs are "
        "copied there",
    )
    return parser


def command(main: Callable[[], object]) -> None:
    """`python -m experiments.NAME`: an error is one line and an exit code, as in `main.py`."""
    try:
        main()
    except (UserError, RunFailure) as exc:
        sys.exit(told(exc))


def carry_out(
    cells: Mapping[str, Mapping[str, Sequence[Job]]],
    options: argparse.Namespace,
    metric: str,
    ylabel: str,
    out: Path | None = None,
) -> None:
    """Runs what is not there yet, seed by seed, then compares what is finished.

    Args:
        cells: panel title -> label of a curve -> its runs, one per seed, as many for all; a run may
            be in several.
        options: of `parser_of`.
        metric, ylabel: as for `compare`.
        out: folder of the numbers and pictures; None: that of the results.
    """
    start = time.monotonic()
    if not options.report:
        # So that an experiment that is stopped early has all curves.
        curves_of = [jobs for groups in cells.values() for jobs in groups.values()]
        todo = {str(job): job for jobs in zip(*curves_of, strict=True) for job in jobs}
        run_jobs(list(todo.values()), options.results, options.processes, options.published)
    out = options.results if out is None else out
    if options.published is not None:
        for job in (job for groups in cells.values() for jobs in groups.values() for job in jobs):
            if (
                job.finished_run(options.published) is None
                and (run := job.finished_run(options.results)) is not None
            ):
                publish(run, options.published, metric)
    places = _places(options.results, options.published)
    done = {
        title: {label: runs for label, jobs in groups.items() if (runs := finished(jobs, places))}
        for title, groups in cells.items()
    }
    done = {title: groups for title, groups in done.items() if groups}
    if done:
        console.print(compare(done, metric, out, ylabel), markup=False, soft_wrap=True)
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    console.print(f"pictures and numbers: {out}" if done else "no run is finished yet")


def finished(jobs: Iterable[Job], places: Iterable[Path]) -> list[Run]:
    """The completed runs among these jobs, each from the first of these folders of results that has
    it.
    """
    folders = [folder for job in jobs if (folder := job.finished_run(*places)) is not None]
    return load_runs(folders) if folders else []


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Lets the runs that are still going write their checkpoints."""
    processes = list(processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def _places(results: Path, published: Path | None) -> list[Path]:
    """Where finished runs are looked for, in this order."""
    return [results] if published is None else [results, published]


def _required(job: Job, places: Sequence[Path]) -> Path:
    found = job.finished_run(*places)
    if found is None:
        raise RunFailure(f"{job} left no completed run in {places[0]}")
    return found
