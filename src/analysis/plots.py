"""Figures of learning curves: one panel per map, one curve per group."""

from __future__ import annotations

import logging
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, MultipleLocator

from analysis.aggregate import Curve
from analysis.bootstrap import DEFAULT, STATISTIC_NAMES, Method

# Okabe and Ito's palette for all kinds of colour vision, without yellow, which is too light for
# lines on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
# After the palette is used up, the same colours come again with another dash pattern.
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))
SEEDS_SHOWN_UP_TO = 5

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # text stays text in the PDF
}

Look = tuple[str, Any]  # colour, dash pattern

# It tells at level INFO about every glyph that it puts into a PDF.
logging.getLogger("fontTools").setLevel(logging.WARNING)


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """(colour, dash pattern) of every label, so that a group looks the same in all panels."""
    return {
        label: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)])
        for i, label in enumerate(labels)
    }


def in_words(metric: str, rate: bool = False) -> str:
    """A metric's name for an axis: `test_battle_won_mean` -> `Test win rate (%)`."""
    words = re.sub(r"_mean$", "", metric)
    if rate:
        words = re.sub(r"(battle_)?(won|win|wins)(_rate)?$", "win_rate", words)
        words = re.sub(r"(solved|success)(_rate)?$", "success_rate", words)
    if re.match(r"return(_|$)", words):
        words = f"training_{words}"
    words = words.replace("_", " ")
    return words[:1].upper() + words[1:] + (" (%)" if rate else "")


def plot_curves(
    ax: Axes,
    curves: Sequence[Curve],
    *,
    look: Mapping[str, Look] | None = None,
    seeds: bool | None = None,
    percent: bool = False,
    title: str = "",
    ylabel: str = "",
    ylim: tuple[float, float] | None = None,
) -> list[Line2D]:
    """Draws curves with their bands into one panel. Where not all runs of a curve reach, its line
    is thin.

    Args:
        look: label -> (colour, dash pattern), from `looks`; by default those of the given curves.
        seeds: single runs as thin lines: True, False, or None for groups of at most
            `SEEDS_SHOWN_UP_TO` runs.
        percent: values are shares; they are drawn as percent on an axis from 0 to 100.
        ylim: limits of the y axis in the drawn unit.

    Returns:
        The lines of the curves, for a legend.
    """
    look = look if look is not None else looks([curve.label for curve in curves])
    factor = 100.0 if percent else 1.0
    handles = []
    for layer, curve in enumerate(curves):
        colour, dash = look[curve.label]
        if curve.n_runs > 1 and (seeds or (seeds is None and curve.n_runs <= SEEDS_SHOWN_UP_TO)):
            for run in curve.runs:
                ax.plot(
                    run.t, factor * run.values, color=colour, alpha=0.25, linewidth=0.6, zorder=2
                )
        ax.fill_between(
            curve.t,
            factor * curve.low,
            factor * curve.high,
            color=colour,
            alpha=0.18,
            linewidth=0,
            zorder=3,
        )
        marker = "o" if len(curve.t) == 1 else None
        for complete, width in ((False, 0.9), (True, 1.9)):
            shown = (curve.n == curve.n.max()) == complete
            if not complete:
                shown = _grown(shown)
            shown = np.where(shown, factor * curve.centre, np.nan)
            ax.plot(
                *(curve.t, shown),
                color=colour,
                linestyle=dash,
                linewidth=width,
                marker=marker,
                markersize=4,
                zorder=4 + layer / 100,
            )
        handles.append(
            Line2D([], [], color=colour, linestyle=dash, linewidth=1.9, label=curve.label)
        )
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.margins(x=0.02)
    if percent and ylim is None:
        ax.set_ylim(-3, 103)
        ax.yaxis.set_major_locator(MultipleLocator(20))
    elif ylim is not None:
        ax.set_ylim(*ylim)
    if title:
        ax.set_title(textwrap.fill(title, 36))
    if ylabel:
        ax.set_ylabel(textwrap.fill(ylabel, 36))
    return handles


def _grown(shown: np.ndarray) -> np.ndarray:
    """Every True of a bool array [G] with its neighbours, so that the thin and the thick part of a
    line meet.
    """
    grown = shown.copy()
    grown[1:] |= shown[:-1]
    grown[:-1] |= shown[1:]
    return grown


def draw(
    panels: Mapping[str, Sequence[Curve]],
    *,
    ylabel: str,
    method: Method = DEFAULT,
    seeds: bool | None = None,
    percent: bool = False,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """A figure with one panel per entry (title -> curves), a common legend below and a line that
    says what is drawn.

    Args:
        ylabel: in words, with the unit.
        seeds, percent, ylim: as in `plot_curves`.
    """
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    look = looks(labels)
    n_columns = min(len(panels), 3 if len(panels) != 4 else 2)
    n_rows = math.ceil(len(panels) / n_columns)
    width = max(4.6, 3.5 * n_columns)
    texts = {label: textwrap.fill(_legend_text(label, panels), 60) for label in labels}
    # About 0.068 inch per character of 9 point text, half an inch for the line sample and the gap.
    widest = max(len(line) for text in texts.values() for line in text.split("\n")) * 0.068 + 0.55
    legend_columns = max(1, min(len(labels), int(width / widest)))
    legend_rows = math.ceil(len(labels) / legend_columns)
    note = textwrap.fill(_note(panels, method, seeds), int(width / 0.062))
    height = 2.75 * n_rows + 0.2 * legend_rows + 0.14 * (note.count("\n") + 1) + 0.25
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False)
        for i, (title, curves) in enumerate(panels.items()):
            plot_curves(
                *(axes.flat[i], curves),
                look=look,
                seeds=seeds,
                percent=percent,
                title=title,
                ylabel=ylabel if i % n_columns == 0 else "",
                ylim=ylim,
            )
            if i + n_columns >= len(panels):
                axes.flat[i].set_xlabel("Environment steps")
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        handles = [
            Line2D(
                [],
                [],
                color=look[label][0],
                linestyle=look[label][1],
                linewidth=1.9,
                label=texts[label],
            )
            for label in labels
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=legend_columns,
            frameon=False,
            title=note,
        )
        legend = figure.legends[0]
        legend.get_title().set(fontsize=7.5, color="#555555", multialignment="center")
    return figure


def _legend_text(label: str, panels: Mapping[str, Sequence[Curve]]) -> str:
    """The label with the number of runs per map."""
    curves = [curve for curves in panels.values() for curve in curves if curve.label == label]
    counts = {curve.n_runs for curve in curves if curve.n_tasks == 1} or {
        curve.n_runs for curve in curves
    }
    n = str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{label} (n = {n})"


def _note(panels: Mapping[str, Sequence[Curve]], method: Method, seeds: bool | None) -> str:
    everything = [curve for curves in panels.values() for curve in curves]
    if all(curve.n_runs == 1 for curve in everything):
        return "Lines: single runs"
    note = f"Lines: {STATISTIC_NAMES[method.statistic]} over n runs; "
    note += f"bands: {method.percent} stratified bootstrap interval"
    if seeds is not False and any(
        curve.n_runs > 1 and (seeds or curve.n_runs <= SEEDS_SHOWN_UP_TO) for curve in everything
    ):
        note += "; faint lines: single runs"
    if any(len(np.unique(curve.n)) > 1 for curve in everything):
        note += "; where a line is thin, not all of its runs reach"
    return note


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem.png` (150 dpi) and `stem.pdf`; equal figures give equal files.

    Raises:
        OSError: the files cannot be written.
    """
    files = []
    for suffix, metadata in (
        (".png", {"Software": None}),
        (".pdf", {"CreationDate": None, "Producer": None}),
    ):
        files.append(stem.with_name(stem.name + suffix))
        with mpl.rc_context(_STYLE):
            figure.savefig(files[-1], dpi=150, metadata=metadata)
    return files
