"""Figures for papers: learning curves with one panel per map, and groups compared over maps."""

from __future__ import annotations

import logging
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, MultipleLocator

from analysis.aggregate import Curve
from analysis.bootstrap import DEFAULT, STATISTIC_NAMES, Estimate, Method
from analysis.compare import Profile

# Okabe and Ito's palette for all kinds of colour vision, without yellow, which is too light for
# lines on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
# After the palette is used up, the same colours come again with another dash pattern.
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))
SEEDS_SHOWN_UP_TO = 5

FORMATS = ("png", "pdf", "svg")
# Fonts travel inside the file: in a PDF text stays text, in an SVG it becomes outlines.
_FILES: Any = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "report"}
_METADATA: dict[str, Any] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None},
    "svg": {"Date": None},
}


@dataclass(frozen=True)
class Size:
    """How large a figure is.

    Attributes:
        width: [in] of the whole figure, None for as much as its panels need.
        font: [pt] of axis labels and legends.
        beside: most panels beside each other.
        stacked: up to so many panels stand below each other.
    """

    width: float | None
    font: float
    beside: int
    stacked: int = 1

    @property
    def scale(self) -> float:
        """Of lines and markers."""
        return self.font / 9

    def columns(self, panels: int) -> int:
        """How many of so many panels stand beside each other."""
        if panels <= self.stacked:
            return 1
        return min(panels, self.beside if panels != 4 else min(2, self.beside))

    def inches(self, columns: int) -> float:
        """Width of the figure."""
        return self.width or max(4.6, 3.5 * columns)

    def letters(self, inches: float, size: float = 1.0) -> int:
        """How many letters of `size` times the font go into so many inches."""
        return max(8, int(inches / (0.0076 * self.font * size)))

    def style(self) -> Any:
        """Matplotlib's settings by name."""
        return {
            "font.size": self.font,
            "axes.titlesize": self.font * 10 / 9,
            "axes.labelsize": self.font,
            "xtick.labelsize": self.font,
            "ytick.labelsize": self.font,
            "legend.fontsize": self.font,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.7 * self.scale,
            "axes.linewidth": 0.8 * self.scale,
            "axes.axisbelow": True,
        }


SIZES = {
    "screen": Size(None, 9, beside=3),
    "column": Size(3.3, 7, beside=2, stacked=3),  # of a paper with two columns
    "text": Size(6.75, 8, beside=3),  # across both of them
    "slide": Size(12.0, 16, beside=3),
}
SCREEN = SIZES["screen"]

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
    size: Size = SCREEN,
) -> list[Line2D]:
    """Draws curves with their bands into one panel. Where not all runs of a curve reach, its line
    is thin.

    Args:
        look: label -> (colour, dash pattern), from `looks`; by default those of the given curves.
        seeds: single runs as thin lines: True, False, or None for groups of at most
            `SEEDS_SHOWN_UP_TO` runs.
        percent: values are shares; they are drawn as percent on an axis from 0 to 100.
        ylim: limits of the y axis in the drawn unit.
        size: for the widths of lines.

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
                    *(run.t, factor * run.values),
                    color=colour,
                    alpha=0.25,
                    linewidth=0.6 * size.scale,
                    zorder=2,
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
                linewidth=width * size.scale,
                marker=marker,
                markersize=4 * size.scale,
                zorder=4 + layer / 100,
            )
        handles.append(_sample(curve.label, look[curve.label], size))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.margins(x=0.02)
    if percent and ylim is None:
        ax.set_ylim(-3, 103)
        ax.yaxis.set_major_locator(MultipleLocator(20))
    elif ylim is not None:
        ax.set_ylim(*ylim)
    ax.set_title(title)
    ax.set_ylabel(ylabel)
    return handles


def _sample(text: str, look: Look, size: Size) -> Line2D:
    """A line for the legend."""
    colour, dash = look
    return Line2D([], [], color=colour, linestyle=dash, linewidth=1.9 * size.scale, label=text)


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
    size: Size = SCREEN,
) -> Figure:
    """A figure with one panel per entry (title -> curves), a common legend below and a line that
    says what is drawn.

    Args:
        ylabel: in words, with the unit.
        seeds, percent, ylim: as in `plot_curves`.
    """
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    look = looks(labels)
    n_columns = size.columns(len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    width = size.inches(n_columns)
    note = _note(panels, method, seeds)
    texts = {label: _legend_text(label, panels) for label in labels}
    height = 0.786 * width / n_columns * n_rows
    with mpl.rc_context(size.style()):
        figure, axes = _panels(width, height, n_rows, n_columns, texts, note, size)
        wrap = size.letters(width / n_columns - 0.4)
        for i, (title, curves) in enumerate(panels.items()):
            plot_curves(
                *(axes[i], curves),
                look=look,
                seeds=seeds,
                percent=percent,
                title=textwrap.fill(title, wrap),
                ylabel=textwrap.fill(ylabel, wrap) if i % n_columns == 0 else "",
                ylim=ylim,
                size=size,
            )
            if i + n_columns >= len(panels):
                axes[i].set_xlabel("Environment steps")
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        _legend(figure, {texts[label]: look[label] for label in labels}, note, size)
    return figure


def _panels(
    width: float,
    height: float,
    n_rows: int,
    n_columns: int,
    texts: Mapping[str, str],
    note: str,
    size: Size,
) -> tuple[Figure, list[Axes]]:
    """A figure with empty panels and room for the legend below them.

    Args:
        width: [in] of the figure.
        height: [in] of the panels.
    """
    rows = math.ceil(len(texts) / _legend_columns(list(texts.values()), width, size))
    lines = textwrap.fill(note, size.letters(width, _NOTE)).count("\n") + 1 if note else 0
    below = (0.2 * rows + 0.14 * lines) * size.scale + 0.25
    figure = Figure(figsize=(width, height + below), layout="constrained")
    return figure, list(figure.subplots(n_rows, n_columns, squeeze=False).flat)


_NOTE = 5 / 6  # of the font: the line that says what is drawn


def _legend_columns(texts: Sequence[str], width: float, size: Size) -> int:
    # Half an inch for the line sample and the gap.
    widest = max(min(len(text), size.letters(width - 0.6)) for text in texts)
    inches = widest * 0.0076 * size.font + 0.55 * size.scale
    return max(1, min(len(texts), int(width / inches)))


def _legend(figure: Figure, texts: Mapping[str, Look], note: str, size: Size) -> None:
    """The legend below the panels (text -> look), with the note above it."""
    width = figure.get_figwidth()
    wrap = size.letters(width - 0.6)
    figure.legend(
        handles=[_sample(textwrap.fill(text, wrap), look, size) for text, look in texts.items()],
        loc="outside lower center",
        ncols=_legend_columns(list(texts), width, size),
        frameon=False,
        title=textwrap.fill(note, size.letters(width, _NOTE)),
    )
    title = figure.legends[0].get_title()
    title.set(fontsize=size.font * _NOTE, color="#555555", multialignment="center")


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


# --- Groups compared over maps ---


def draw_intervals(
    panels: Mapping[str, Mapping[str, Estimate]],
    *,
    xlabel: str,
    note: str,
    look: Mapping[str, Look] | None = None,
    percent: bool = False,
    middle: float | None = None,
    size: Size = SCREEN,
) -> Figure:
    """Estimates with their intervals as bars: one panel per entry (title -> name -> estimate).

    Args:
        look: name -> look; by default all are of the first colour.
        percent: values are shares, drawn as percent.
        middle: where a line is drawn across an axis from 0 to 1.
    """
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    n_columns = min(size.columns(len(panels)), 2 if len(panels) == 4 else 3)
    n_rows = math.ceil(len(panels) / n_columns)
    width = size.inches(n_columns)
    factor = 100.0 if percent else 1.0
    wrap = size.letters(width / n_columns * 0.45)
    lines = sum(textwrap.fill(name, wrap).count("\n") + 1 for name in names)
    with mpl.rc_context(size.style()):
        height = n_rows * (0.62 + 0.2 * max(2, lines)) * size.scale
        figure = Figure(figsize=(width, height + 0.2 * size.scale), layout="constrained")
        axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
        for i, (ax, (title, rows)) in enumerate(zip(axes, panels.items(), strict=False)):
            ax.use_sticky_edges = False
            ax.margins(x=0.06)
            for k, (name, (value, low, high)) in enumerate(rows.items()):
                colour = look[name][0] if look else PALETTE[0]
                if math.isfinite(low):
                    ax.barh(k, factor * (high - low), 0.62, factor * low, color=colour, alpha=0.35)
                ax.plot([factor * value] * 2, [k - 0.31, k + 0.31], color=colour,
                        linewidth=1.9 * size.scale)  # fmt: skip
            if middle is not None:
                ax.axvline(factor * middle, color="#888888", linewidth=0.8 * size.scale, zorder=1)
            shown = list(rows) if i % n_columns == 0 else [""] * len(rows)
            ax.set_yticks(range(len(rows)), [textwrap.fill(name, wrap) for name in shown])
            ax.set_ylim(len(rows) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            ax.grid(visible=False, axis="y")
            if middle is not None:
                ax.set_xlim(-0.03 * factor, 1.03 * factor)
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            ax.set_title(textwrap.fill(title, size.letters(width / n_columns - 0.4)))
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        figure.supxlabel(
            "\n".join([xlabel, *textwrap.wrap(note, size.letters(width, _NOTE))]),
            fontsize=size.font * _NOTE,
            color="#555555",
        )
    return figure


def draw_profiles(
    profiles: Mapping[str, Profile], *, xlabel: str, note: str, look: Mapping[str, Look],
    percent: bool = False, size: Size = SCREEN,
) -> Figure:  # fmt: skip
    """Performance profiles: share of runs with a score above each threshold.

    Args:
        percent: thresholds are shares, drawn as percent.
    """
    width = size.width or 4.6
    factor = 100.0 if percent else 1.0
    with mpl.rc_context(size.style()):
        texts = {label: label for label in profiles}
        figure, (ax,) = _panels(
            width, (0.6 if width < 5 else 0.42) * width, 1, 1, texts, note, size
        )
        for layer, (label, one) in enumerate(profiles.items()):
            colour, dash = look[label]
            x = factor * one.thresholds
            ax.fill_between(x, 100 * one.low, 100 * one.high, step="post", color=colour,
                            alpha=0.18, linewidth=0)  # fmt: skip
            ax.step(*(x, 100 * one.share), where="post", color=colour, linestyle=dash,
                    linewidth=1.9 * size.scale, zorder=4 + layer / 100)  # fmt: skip
        ax.set(xlabel=xlabel, ylabel="Share of runs above it (%)", ylim=(-3, 103))
        ax.yaxis.set_major_locator(MultipleLocator(20))
        ax.margins(x=0.02)
        _legend(figure, {label: look[label] for label in profiles}, note, size)
    return figure


def draw_ranks(ranks: Mapping[str, np.ndarray], *, note: str, size: Size = SCREEN) -> Figure:
    """Probability of every rank as stacked bars, one for each group (label -> [A])."""
    width = size.width or 5.2
    wrap = size.letters(width * 0.35)
    colours = rank_colours(len(ranks))
    names = [textwrap.fill(label, wrap) for label in ranks]
    lines = sum(name.count("\n") + 1 for name in names)
    texts = {f"rank {k + 1}": (colour, "-") for k, colour in enumerate(colours)}
    with mpl.rc_context(size.style()):
        height = (0.55 + 0.24 * lines) * size.scale
        figure, (ax,) = _panels(width, height, 1, 1, {t: t for t in texts}, note, size)
        left = np.zeros(len(ranks))
        for k, colour in enumerate(colours):
            share = np.asarray([100 * one[k] for one in ranks.values()])
            ax.barh(range(len(ranks)), share, 0.7, left, color=colour)
            left += share
        ax.set_yticks(range(len(ranks)), names)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False)
        ax.set(xlabel="Probability of the rank (%)", xlim=(0, 100))
        ax.invert_yaxis()
        _legend(figure, texts, note, size)
        for handle in figure.legends[0].get_lines():
            handle.set_linewidth(5 * size.scale)
    return figure


def rank_colours(count: int) -> list[str]:
    """Colours of the ranks, from the first to the last: dark to light."""
    shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.95, count))
    return [mpl.colors.to_hex(shade) for shade in shades]


def save(
    figure: Figure, stem: Path, formats: Iterable[str] = ("png", "pdf"), size: Size = SCREEN
) -> list[Path]:
    """Writes `stem.FORMAT` for each of `FORMATS` asked for (PNG with 150 dpi, 300 where the figure
    is small); equal figures give equal files.

    Args:
        size: as the figure was drawn with.

    Raises:
        OSError: the files cannot be written.
    """
    files = []
    for kind in formats:
        files.append(stem.with_name(f"{stem.name}.{kind}"))
        with mpl.rc_context({**size.style(), **_FILES}):
            dpi = 300 if figure.get_figwidth() < 4 else 150
            figure.savefig(files[-1], dpi=dpi, metadata=_METADATA[kind])
    return files
