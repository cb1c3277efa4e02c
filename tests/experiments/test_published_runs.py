"""Curves of finished runs that git keeps: what a copy holds, and that it counts as a finished
run.
"""

import json

from experiments.common import Job, carry_out, parser_of, run_jobs

JOB = Job("iql", "matrix_game", {"t_max": 60, "test_interval": 20, "use_cuda": False, "seed": 3})


def test_a_published_curve_replaces_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.common.PUBLISHED", tmp_path / "docs")
    options = parser_of("A test.", tmp_path / "first", seeds=1).parse_args(["--published"])
    cells = {"game": {"IQL": [JOB]}}
    carry_out(cells, options, "test_return_mean", "Return")
    carry_out(cells, options, "test_return_mean", "Return")
    (run,) = (tmp_path / "first" / "sacred").glob("*/*/*")
    (copy,) = (tmp_path / "docs" / "first" / "sacred").glob("*/*/*")
    assert copy.relative_to(tmp_path / "docs" / "first") == run.relative_to(tmp_path / "first")

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert kept == [line for line in lines if line["key"] == "test_return_mean"]
    assert 0 < len(kept) < len(lines)
    assert str(tmp_path) not in "".join(file.read_text() for file in copy.iterdir())

    # Nothing is left to do, and the table is the one of the run.
    elsewhere = parser_of("A test.", tmp_path / "first", seeds=1).parse_args(
        ["--published", "--results", str(tmp_path / "second")]
    )
    carry_out(cells, elsewhere, "test_return_mean", "Return")
    assert not (tmp_path / "second" / "sacred").exists()
    assert (tmp_path / "second" / "final.md").read_text() == (
        tmp_path / "first" / "final.md"
    ).read_text()
    other = Job(JOB.algorithm, JOB.environment, {**JOB.settings, "seed": 4})
    assert other.finished_run(elsewhere.published) is None


def test_without_the_option_published_runs_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.common.PUBLISHED", tmp_path / "docs")
    assert parser_of("A test.", tmp_path / "first", seeds=1).parse_args([]).published is None
    (run,) = run_jobs([JOB], tmp_path / "docs" / "first", 1)
    (again,) = run_jobs([JOB], tmp_path / "second", 1)
    assert run.name == again.name
    assert run != again
