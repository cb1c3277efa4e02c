"""The paper's figures 3 to 5 (and 13 to 23) from MAMT's runs.

`python -m experiments run mamt_figures RUN [RUN ...]` draws, from what the runs logged for every
agent,

- `kl` (figure 3, upper row): how far the policies move between two refreshes of the old ones, mean
  over the agents, of
  all given runs side by side (for MAAC: `--config=mamd with trust_region_split=none
  name=maac_measured`),
- `non_stationarity` (figure 3, lower row): D_ns of every agent of the first run,
- `regions` (figure 4): mean and variance of the local trust regions over the training,
- `coordination` (figure 5): mean and variance of the coordination coefficients over training and
  observations.

What a run did not log (there is no D_ns with fixed trust regions) is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis import plots
from analysis.runs import Run, load_runs
from experiments import ROOT
from launch.jobs import console
from utils.errors import UserError

RESULTS = ROOT / "results" / "mamt_figures"
KL, NON_STATIONARITY = "consecutive_kl_by_agent", "non_stationarity_by_agent"
REGIONS = "trust_region_by_agent"
COORDINATION, COORDINATION_VARIANCE = "coordination_by_pair", "coordination_variance_by_pair"
KEYS = (KL, NON_STATIONARITY, REGIONS, COORDINATION, COORDINATION_VARIANCE)
BARS_UP_TO = 4  # agents; with more of them coordination is drawn as radar charts
MEAN, VARIANCE = plots.PALETTE[0], plots.PALETTE[1]


def of_agents(run: Run, key: str) -> np.ndarray:
    """A list that a run logged, as [records, entries]."""
    return np.array(run.episodes[key].values)


def moments(means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all values from those of equally large parts, [records, entries] ->
    [entries] each.
    """
    return means.mean(0), variances.mean(0) + means.var(0)


def draw_kl(runs: Sequence[Run], window: int) -> Figure:
    """Mean over the agents, of every run; one colour per algorithm."""
    figure, axes = _panel(window)
    names = list(dict.fromkeys(run.name for run in runs))
    looks = plots.looks(names)
    for run in runs:
        colour, dash = looks[run.name]
        label = run.name if run is next(other for other in runs if other.name == run.name) else None
        values = smooth(of_agents(run, KL).mean(1, keepdims=True), window)[:, 0]
        axes.plot(run.episodes[KL].t, values, color=colour, linestyle=dash, label=label)
    axes.set_ylabel("KL of consecutive policies")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_non_stationarity(run: Run, window: int) -> Figure:
    """D_ns of every agent."""
    figure, axes = _panel(window)
    values = smooth(of_agents(run, NON_STATIONARITY), window)
    looks = plots.looks([f"agent {i + 1}" for i in range(values.shape[1])])
    for (label, (colour, dash)), column in zip(looks.items(), values.T, strict=True):
        axes.plot(
            run.episodes[NON_STATIONARITY].t, column, color=colour, linestyle=dash, label=label
        )
    axes.set_ylabel("$D^{ns}$ of an agent")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_regions(run: Run) -> Figure:
    """Mean and variance over the training of every agent's trust region, on the paper's logarithmic
    axis.
    """
    sizes = of_agents(run, REGIONS)
    figure = Figure(figsize=(1.8 + 0.7 * sizes.shape[1], 3.2), layout="constrained")
    axes = figure.subplots()
    bars(axes, sizes.mean(0), sizes.var(0), [str(i + 1) for i in range(sizes.shape[1])])
    axes.set_yscale("log")
    axes.set_ylim(0.01, 100)
    axes.set_xlabel("Agent")
    axes.set_ylabel("Local trust region")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_coordination(run: Run) -> Figure:
    """Mean and variance of C_ij, a panel for every agent i."""
    mean, variance = moments(of_agents(run, COORDINATION), of_agents(run, COORDINATION_VARIANCE))
    n = round(np.sqrt(len(mean)))
    mean, variance = mean.reshape(n, n), variance.reshape(n, n)
    columns = min(n, 4)
    rows = -(-n // columns)
    radar = n > BARS_UP_TO
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(
        rows, columns, squeeze=False, subplot_kw={"projection": "polar"} if radar else {}
    )
    for i, axes in enumerate(panels.flat):
        if i >= n:
            axes.set_axis_off()
            continue
        others = [j for j in range(n) if j != i]
        labels = [str(j + 1) for j in others]
        (ring if radar else bars)(axes, mean[i, others], variance[i, others], labels)
        axes.set_ylim(0, max(mean.max(), variance.max(), 0.01) * 1.05)
        axes.set_title(f"agent {i + 1}", fontsize=10)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def bars(axes: Axes, mean: np.ndarray, variance: np.ndarray, labels: Sequence[str]) -> None:
    """Mean and variance beside each other, a pair of bars for every label."""
    x = np.arange(len(labels))
    axes.bar(x - 0.2, mean, 0.4, color=MEAN, label="mean")
    axes.bar(x + 0.2, variance, 0.4, color=VARIANCE, label="variance")
    axes.set_xticks(x, labels)
    axes.set_xlim(-1, len(labels))


def ring(axes: Axes, mean: np.ndarray, variance: np.ndarray, labels: Sequence[str]) -> None:
    """Mean and variance as closed lines around a centre, a spoke for every label."""
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)
    for values, colour, name in ((mean, MEAN, "mean"), (variance, VARIANCE, "variance")):
        closed = np.append(values, values[0])
        axes.plot(np.append(angles, 0.0), closed, color=colour, label=name)
        axes.fill(np.append(angles, 0.0), closed, color=colour, alpha=0.15)
    axes.set_xticks(angles, labels)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=7)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving averages of [records, entries] over `window` records, fewer at the ends."""
    half = window // 2
    return np.array([values[max(i - half, 0) : i + half + 1].mean(0) for i in range(len(values))])


def _panel(window: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(
        "Environment steps" + (f" (averages of {window} records)" if window > 1 else "")
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def figures_of(runs: Sequence[Run], window: int = 1) -> dict[str, Figure]:
    """Name -> figure, of all that the runs have the figures for.

    Raises:
        UserError: none of it.
    """
    first = runs[0]
    moving = [run for run in runs if KL in run.episodes]
    figures = {}
    if moving:
        figures["kl"] = draw_kl(moving, window)
    if NON_STATIONARITY in first.episodes:
        figures["non_stationarity"] = draw_non_stationarity(first, window)
    if REGIONS in first.episodes:
        figures["regions"] = draw_regions(first)
    if COORDINATION in first.episodes:
        figures["coordination"] = draw_coordination(first)
    if not figures:
        raise UserError(f"{first.path} has none of {', '.join(KEYS)}: give a run of mamd or mamt")
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of runs, the one to look at first",
    )
    parser.add_argument(
        "--window", type=int, default=11, help="records that the lines are averages of"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pictures")
    options = parser.parse_args(argv)
    runs = [run for folder in options.runs for run in load_runs([folder], KEYS)]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures_of(runs, options.window).items():
        plots.save(figure, options.out / name)
    console.print(f"pictures: {options.out}")
