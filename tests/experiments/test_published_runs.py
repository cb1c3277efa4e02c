"""Curves of finished runs that git keeps: what a copy holds, and that it counts as a finished
run.
"""

import json

import pytest
from experiments.__main__ import main
from experiments.spec import PUBLISHED, load

from analysis import published
from analysis.runs import load_runs
from launch.jobs import Job, finished_runs
from launch.local import run_jobs
from utils.errors import UserError

JOB = Job("iql", "matrix_game", {"t_max": 60, "test_interval": 20, "use_cuda": False, "seed": 3})
SPEC = """# A test
methods: {IQL: iql}
tasks: {game: {environment: matrix_game}}
seeds: [3]
settings: {t_max: 60, use_cuda: false}
times_per_run: {test_interval: 3}
metrics: {test_return_mean: Return}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of `JOB`."""
    return run_jobs([JOB], tmp_path_factory.mktemp("first"), 1)[0]


def test_a_published_curve_replaces_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.spec.PUBLISHED", tmp_path / "published")
    spec = tmp_path / "first.yaml"
    spec.write_text(SPEC)
    for command in ("run", "run", "publish", "publish"):
        main([command, str(spec), "--results", str(tmp_path / "first")])
    (run,) = (tmp_path / "first" / "sacred").glob("*/*/*")
    (copy,) = (tmp_path / "published" / "first").rglob("*.jsonl.gz")
    assert copy.relative_to(tmp_path / "published" / "first").parts == (
        *run.relative_to(tmp_path / "first" / "sacred").parts[:2],
        "1.jsonl.gz",
    )

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points, seconds = published.read_series(copy)
    kept = [{"t": t, "key": "test_return_mean", "value": value}
            for t, value in zip(*points["test_return_mean"], strict=True)]  # fmt: skip
    assert kept == [line for line in lines if line["key"] == "test_return_mean"]
    assert list(points) == ["test_return_mean"]
    assert list(seconds) == ["seconds"]
    assert 0 < len(kept) < len(lines)
    assert str(tmp_path) not in json.dumps(published.read_head(copy))

    # Nothing is left to do, and the table is the one of the run.
    main(["run", str(spec), "--results", str(tmp_path / "second")])
    assert not (tmp_path / "second" / "sacred").exists()
    tables = [tmp_path / name / "report" / "first" / "final.md" for name in ("first", "second")]
    assert tables[0].read_text() == tables[1].read_text()
    there = finished_runs(tmp_path / "second", tmp_path / "published" / "first")
    assert JOB.find(there) is not None
    assert Job(JOB.algorithm, JOB.environment, {**JOB.settings, "seed": 4}).find(there) is None


def test_without_the_option_published_runs_do_not_count(run, tmp_path):
    published.write(run, tmp_path / "kept" / "1.jsonl.gz", ["test_return_mean"], [])
    (kept,) = run_jobs([JOB], tmp_path / "second", 1, tmp_path / "kept")
    assert kept == tmp_path / "kept" / "1.jsonl.gz"
    (again,) = run_jobs([JOB], tmp_path / "second", 1)
    assert run.name == again.name
    assert run != again


def test_a_default_makes_a_difference_too():
    """`mamt` names no size of batches: its runs are not those with batches of 128."""
    there = finished_runs(PUBLISHED / "none", PUBLISHED / "mamt")
    large, small = (load(name).job("spread", "MAAC", 3) for name in ("mamt", "mamt_128"))
    assert large.find(there) is None
    assert small.find(there).config["batch_size"] == 128


def test_equal_runs_give_equal_files(run, tmp_path):
    files = [tmp_path / f"{name}.jsonl.gz" for name in ("a", "b")]
    for file in files:
        published.write(run, file, ["test_return_mean"], ["seconds"])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_every_published_run_can_be_read():
    files = list(PUBLISHED.rglob("*.jsonl.gz"))
    assert len(files) >= 84
    runs = load_runs([PUBLISHED])
    assert len(runs) == len(files)
    for run in runs:
        assert run.status == "COMPLETED"
        assert len(run.metrics) == 1
        assert list(run.timing) == ["seconds"]


@pytest.mark.parametrize(
    ("name", "task", "method", "numbers"),
    [
        ("mamt_128", "spread", "MAAC", "-37.76 | -38.17 to -37.35 | 250,200 | 1.4"),
        ("mamt_128", "rover_tower", "MAMT", "112.81 | 108.26 to 116.79 | 1,249,800 | 66.6"),
        ("f2a2_128", "rover_tower", "F2A2-SAC", "123.20 | 119.74 to 125.53 | 1,249,800 | 63.9"),
        ("f2a2_starcraft_500k", "3m", "F2A2-COMA", "0.97 | 0.96 to 0.98 | 500,020 | 13.6"),
        ("starcraft", "5m_vs_6m", "S2Q", "0.28 | - | 500,155 | 29.7"),
    ],
)
def test_the_tables_in_the_docs_are_drawn_from_published_curves(
    name, task, method, numbers, tmp_path, capsys
):
    """The numbers are those of the reports that were drawn from the run folders."""
    options = ["--tasks", task, "--only", method, "--results", str(tmp_path)]
    main(["report", name, *options])
    (row,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {task} |")
    ]
    assert f" | {numbers} |" in row


def test_what_is_drawn_from_whole_runs_cannot_be_published():
    with pytest.raises(UserError, match="shifting_payoff draws from whole runs"):
        main(["publish", "shifting_payoff"])
