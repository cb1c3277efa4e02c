"""What `make demo` trains, draws and says."""

import numpy as np
import pytest
from experiments import demo, shifting_payoff
from experiments.__main__ import main
from experiments.spec import load
from PIL import Image

from analysis.runs import Run, Series
from utils.config import build_config, check_config


def configs(experiment):
    found = [
        build_config(job.algorithm, job.environment, job.updates()) for job in experiment.jobs()
    ]
    for config in found:
        check_config(config)
    return found


def test_two_methods_play_two_tasks_with_two_seeds():
    played = {
        (config["name"], config["env_args"]["map_name"], config["seed"])
        for config in configs(load("demo"))
    }
    tasks = {(name, task) for name, task, _ in played}
    assert tasks == {(name, task) for name in ("qmix", "s2q") for task in ("shifting", "3m")}
    assert len(played) == 8


def test_the_settings_are_those_of_the_experiment_behind_the_results():
    """On the shifting payoff; only seeds are fewer."""
    shown = configs(load("demo").select(tasks=["shifting payoff"], seeds=(1,)))
    behind = configs(load("shifting_payoff").select(["QMIX", "S2Q, T = 1"], seeds=(1,)))
    assert shown == behind


def run_with(values, metric="test_return_mean"):
    """A run with one value for each thousand steps."""
    series = Series(1000 * np.arange(len(values)), np.array(values, dtype=float))
    return Run(None, {"seed": 1}, "COMPLETED", {metric: series}, {})


@pytest.mark.parametrize(
    ("values", "before", "after"),
    [
        ([7] * 9 + [8] + [5] * 11, 1, 0),  # the evaluation at 9,000 is the last one before
        ([8] * 9 + [7] + [5] * 10 + [8], 0, 1),
        ([8] * 21, 1, 1),
        ([7.9] * 21, 0, 0),
    ],
)
def test_the_sentence_about_the_moving_optimum(values, before, after):
    runs = [run_with(values), run_with([0] * 21)]
    assert demo.sentence("X", runs) == (
        f"X has it before the change in {before} of 2 runs and at the end in {after} of 2."
    )
    assert demo.BEST == shifting_payoff._best(0) == shifting_payoff._best(1)


def test_curves_have_a_panel_for_each_task_that_has_runs():
    won = run_with([0.0, 0.5, 1.0], "test_battle_won_mean")
    cells = {"shifting payoff": {"QMIX": [run_with([5] * 21)]}, "3m": {"QMIX": [won]}}
    left, right = demo.draw_curves(cells).axes
    assert left.get_ylabel() == "Value of the greedy joint action"
    assert [text.get_text() for text in left.texts] == ["payoff changes"]
    assert right.get_ylabel() == "Test win rate"
    assert right.yaxis.get_major_formatter()(0.5) == "50%"
    assert len(demo.draw_curves({"3m": {"QMIX": [won]}}).axes) == 1


@pytest.mark.slow
def test_the_demonstration_with_few_steps(tmp_path, capsys):
    short = ["--seeds", "1", "--t-max", "100", "--jobs", "1", "--results", str(tmp_path)]
    main(["run", "demo", *short])
    out = capsys.readouterr().out
    assert "QMIX has it before the change in" in out
    report = tmp_path / "report" / "demo"
    assert (report / "demo.png").stat().st_size > 10_000
    with Image.open(report / "3m.gif") as film:
        assert film.n_frames >= 2
    assert "3m.gif shows a battle of S2Q" in out
