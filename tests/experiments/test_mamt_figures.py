"""The figures of MAMT's runs: what is drawn are the logged numbers."""

import json

import numpy as np
import pytest
from experiments import mamt_figures
from matplotlib.axes import Axes

from analysis.runs import load_runs
from utils.errors import UserError

A = 3
KL = np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.2], [0.0, 0.0, 0.3]])
DELTA = np.array([[1.0, 4.0, 5.0], [3.0, 4.0, 1.0], [2.0, 4.0, 0.01]])


def write_run(folder, name="mamt", keys=None, n_agents=A):
    """A run with three records of every list."""
    rng = np.random.default_rng(0)
    lists = {
        "consecutive_kl_by_agent": KL,
        "non_stationarity_by_agent": 2 * KL,
        "trust_region_by_agent": DELTA,
        "coordination_by_pair": rng.random((3, n_agents * n_agents)),
        "coordination_variance_by_pair": 0.1 * rng.random((3, n_agents * n_agents)),
    }
    keys = lists if keys is None else keys
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": name, "env": "spread", "seed": 1}))
    lines = [{"t": 10, "key": "return_mean", "value": 1.0}]
    lines += [
        {"t": 100 * (k + 1), "key": key, "value": list(lists[key][k])}
        for key in keys
        for k in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, {key: lists[key] for key in keys}


def lines_of(axes: Axes):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.get_lines()]


def heights_of(axes: Axes):
    return [[bar.get_height() for bar in group] for group in axes.containers]


def test_divergence_is_the_mean_over_the_agents_of_every_run(tmp_path):
    folders = [
        write_run(tmp_path / "1")[0],
        write_run(tmp_path / "2", "maac", ["consecutive_kl_by_agent"])[0],
    ]
    figures = mamt_figures.figures_of(load_runs(folders, mamt_figures.KEYS))
    (axes,) = figures["kl"].axes
    assert [text.get_text() for text in figures["kl"].legends[0].get_texts()] == ["mamt", "maac"]
    for t, values in lines_of(axes):
        assert t == [100, 200, 300]
        assert values == pytest.approx([0.2, 0.3, 0.1])
    assert len({line.get_color() for line in axes.get_lines()}) == 2


def test_non_stationarity_of_every_agent(tmp_path):
    figures = mamt_figures.figures_of(load_runs([write_run(tmp_path / "1")[0]], mamt_figures.KEYS))
    (axes,) = figures["non_stationarity"].axes
    assert np.array([values for _, values in lines_of(axes)]) == pytest.approx(2 * KL.T)


def test_regions_have_mean_and_variance_over_the_training(tmp_path):
    figures = mamt_figures.figures_of(load_runs([write_run(tmp_path / "1")[0]], mamt_figures.KEYS))
    (axes,) = figures["regions"].axes
    means, variances = heights_of(axes)
    assert means == pytest.approx([2.0, 4.0, 6.01 / 3])
    assert variances == pytest.approx([2 / 3, 0.0, DELTA[:, 2].var()])
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(0.01)


def test_coordination_of_few_agents_as_bars(tmp_path):
    folder, lists = write_run(tmp_path / "1")
    figure = mamt_figures.figures_of(load_runs([folder], mamt_figures.KEYS))["coordination"]
    mean = lists["coordination_by_pair"].mean(0).reshape(A, A)
    variance = (
        lists["coordination_variance_by_pair"].mean(0) + lists["coordination_by_pair"].var(0)
    ).reshape(A, A)
    assert len(figure.axes) == A
    for i, axes in enumerate(figure.axes):
        others = [j for j in range(A) if j != i]
        assert np.array(heights_of(axes)) == pytest.approx(
            np.stack([mean[i, others], variance[i, others]])
        )
        assert [text.get_text() for text in axes.get_xticklabels()] == [str(j + 1) for j in others]


def test_coordination_of_many_agents_as_radar_charts(tmp_path):
    folder, lists = write_run(
        tmp_path / "1", keys=["coordination_by_pair", "coordination_variance_by_pair"], n_agents=6
    )
    figures = mamt_figures.figures_of(load_runs([folder], mamt_figures.KEYS))
    assert list(figures) == ["coordination"]
    panels = [axes for axes in figures["coordination"].axes if axes.axison]
    assert [axes.name for axes in panels] == ["polar"] * 6
    mean = lists["coordination_by_pair"].mean(0).reshape(6, 6)
    (_, drawn), _ = lines_of(panels[2])
    assert drawn == pytest.approx([mean[2, j] for j in (0, 1, 3, 4, 5, 0)])


def test_moments_of_equal_parts():
    parts = np.random.default_rng(0).random((4, 50, 2))
    mean, variance = mamt_figures.moments(parts.mean(1), parts.var(1))
    assert mean == pytest.approx(parts.reshape(-1, 2).mean(0))
    assert variance == pytest.approx(parts.reshape(-1, 2).var(0))


def test_smooth():
    values = np.array([[1.0], [2.0], [6.0], [1.0]])
    assert mamt_figures.smooth(values, 3)[:, 0] == pytest.approx([1.5, 3.0, 3.0, 3.5])
    assert np.array_equal(mamt_figures.smooth(values, 1), values)


def test_command_writes_the_pictures(tmp_path):
    folder, _ = write_run(tmp_path / "1")
    mamt_figures.main([str(folder), "--out", str(tmp_path / "out"), "--window", "3"])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    stems = ("kl", "non_stationarity", "regions", "coordination")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}


def test_a_run_without_any_of_it_is_refused(tmp_path):
    folder, _ = write_run(tmp_path / "1", "qmix", [])
    with pytest.raises(UserError, match="has none of consecutive_kl_by_agent"):
        mamt_figures.figures_of(load_runs([folder], mamt_figures.KEYS))
