"""The report's figures for a browser, as Plotly's plain dictionaries with the colours of a light
page; `DARK` says which colours take their place on a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.aggregate import Curve
from analysis.bootstrap import Estimate
from analysis.compare import AGGREGATES, Comparison
from analysis.dashboard import figures
from analysis.dashboard.curves import Options, Panel
from analysis.findings import Findings
from analysis.plots import SEEDS_SHOWN_UP_TO, rank_colours

Figure = dict[str, Any]

DARK = {
    figures.INK["light"]: figures.INK["dark"],
    figures.GRID["light"]: figures.GRID["dark"],
    **figures.LIGHTER,
}
_LIGHT = "light"
_PAIRS_AT_MOST = 24  # as bars; more of them are a heat map


def curves(
    title: str, found_curves: Sequence[Curve], found: Findings, seeds: bool | None
) -> Figure:
    """One panel of learning curves.

    Args:
        seeds: as in `plots.plot_curves`.
    """
    figure = figures.curves(
        Panel(("", title), [], list(found_curves)),
        found.metric,
        Options(),
        _LIGHT,
        labels=found.labels,
        rate=found.rate,
        title=title,
    )
    look = figures.shown_looks(found.labels, _LIGHT)
    faint: list[dict[str, Any]] = []
    for curve in found_curves:
        if curve.n_runs < 2 or not (seeds or (seeds is None and curve.n_runs <= SEEDS_SHOWN_UP_TO)):
            continue
        for run in curve.runs:
            line = figures.series_line(curve.label, run.t, run.values, look[curve.label], Options())
            line["line"] = {"color": look[curve.label][0], "width": 0.7}
            line.update(opacity=0.35, hoverinfo="skip", showlegend=False, legendgroup=curve.label)
            faint.append(line)
    figure["data"] = faint + figure["data"]
    figure["layout"].update(showlegend=False, height=280)
    return figure


def legend(labels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Label, colour and dash pattern of each group."""
    return [(label, *look) for label, look in figures.shown_looks(labels, _LIGHT).items()]


def aggregates(comparison: Comparison) -> list[Figure]:
    """A panel of intervals for each aggregate."""
    look = figures.shown_looks(comparison.labels, _LIGHT)
    colours = [look[label][0] for label in comparison.labels]
    return [
        _intervals(
            {label: comparison.aggregates[label][key] for label in comparison.labels},
            colours,
            name,
            percent=not comparison.normalised,
        )
        for key, name in AGGREGATES.items()
    ]


def improvement(comparison: Comparison) -> Figure:
    """Probability of improvement of every pair."""
    pairs = comparison.improvement
    if len(pairs) > _PAIRS_AT_MOST:
        return _heat_map(comparison)
    rows = {f"{x} over {y}": estimate for (x, y), estimate in pairs.items()}
    colour = figures.shown_looks(["x"], _LIGHT)["x"][0]
    figure = _intervals(rows, [colour] * len(rows), "Probability that X is better than Y")
    figure["layout"]["xaxis"]["range"] = [-0.02, 1.02]
    line = {"color": figures.INK[_LIGHT], "width": 1, "dash": "dot"}
    figure["layout"]["shapes"] = [
        {"type": "line", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1, "yref": "paper", "line": line}
    ]
    return figure


def profiles(comparison: Comparison, labels: Sequence[str]) -> Figure:
    """Share of runs above each threshold.

    Args:
        labels: of all groups, for the colours.
    """
    look = figures.shown_looks(labels, _LIGHT)
    data: list[dict[str, Any]] = []
    for label, one in comparison.profiles.items():
        x = one.thresholds.tolist()
        colour, dash = look[label]
        if np.isfinite(one.low).all():
            band = figures.between(x, one.low, one.high, label, colour, 0.18)
            for trace in band:
                trace["line"] = {"width": 0, "shape": "hv"}
                trace.update(showlegend=False, legendgroup=label)
            data += band
        data.append(
            {
                "type": "scatter",
                "name": label,
                "legendgroup": label,
                "x": x,
                "y": one.share.tolist(),
                "mode": "lines",
                "line": {"color": colour, "dash": dash, "width": 2.5, "shape": "hv"},
                "hovertemplate": "%{y:.1%}",
            }
        )
    axis: dict[str, Any] = {"title": {"text": "Score (0 to 1 on each map)"}, "range": [-0.02, 1.02]}
    if not comparison.normalised:
        axis.update(title={"text": "Share of won episodes"}, tickformat=".0%")
    layout = _layout(
        "Performance profiles",
        340,
        xaxis=axis,
        yaxis={"title": {"text": "Runs above it"}, "tickformat": ".0%", "range": [-0.02, 1.02]},
    )
    layout["hovermode"] = "x unified"
    return {"data": data, "layout": layout}


def ranks(comparison: Comparison) -> Figure:
    """Probability of every rank, as stacked bars."""
    labels = comparison.ranking
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": f"rank {k + 1}",
            "y": labels,
            "x": [float(comparison.ranks[label][k]) for label in labels],
            "marker": {"color": colour},
            "hovertemplate": "%{y}: %{x:.1%}",
        }
        for k, colour in enumerate(rank_colours(len(labels)))
    ]
    layout = _layout(
        "Probability of each rank",
        110 + 34 * len(labels),
        xaxis={"tickformat": ".0%", "range": [0, 1]},
        yaxis={"autorange": "reversed", "type": "category"},
    )
    layout.update(barmode="stack", showlegend=True)
    layout["legend"].update(y=-0.35, traceorder="normal")
    return {"data": data, "layout": layout}


def _intervals(
    rows: Mapping[str, Estimate], colours: Sequence[str], title: str, percent: bool = True
) -> Figure:
    """Estimates as ticks on bars that are their intervals."""
    names = list(rows)
    values = [one.value for one in rows.values()]
    low = [one.value if math.isnan(one.low) else one.low for one in rows.values()]
    high = [one.value if math.isnan(one.high) else one.high for one in rows.values()]
    shown = ".1%" if percent else ".3f"
    hover = f"%{{y}}: %{{x:{shown}}} (%{{customdata[0]:{shown}}} to %{{customdata[1]:{shown}}})"
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "base": low,
            "x": [b - a for a, b in zip(low, high, strict=True)],
            "marker": {"color": list(colours)},
            "opacity": 0.35,
            "width": 0.6,
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "y": names,
            "x": values,
            "customdata": [list(pair) for pair in zip(low, high, strict=True)],
            "marker": {
                "symbol": "line-ns",
                "size": 15,
                "line": {"width": 3, "color": list(colours)},
            },
            "hovertemplate": f"{hover}<extra></extra>",
        },
    ]
    layout = _layout(
        title,
        86 + 30 * len(names),
        xaxis={"tickformat": ".0%"} if percent else {},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )
    return {"data": data, "layout": layout}


def _heat_map(comparison: Comparison) -> Figure:
    labels = comparison.labels
    known = comparison.improvement
    shares = [
        [known[x, y].value if (x, y) in known else 1 - known[y, x].value if x != y else None
         for y in labels]
        for x in labels
    ]  # fmt: skip
    data = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": shares,
        "zmin": 0,
        "zmax": 1,
        "colorscale": "RdBu",
        "hovertemplate": "%{y} over %{x}: %{z:.1%}<extra></extra>",
        "colorbar": {"tickformat": ".0%"},
    }
    layout = _layout(
        "Probability that the row's group is better than the column's",
        160 + 22 * len(labels),
        xaxis={"type": "category"},
        yaxis={"type": "category", "autorange": "reversed"},
    )
    return {"data": [data], "layout": layout}


def _layout(title: str, height: int, **own: Any) -> dict[str, Any]:
    return figures.plain_layout(
        _LIGHT,
        title={"text": title, "x": 0.01, "xanchor": "left", "font": {"size": 14}},
        height=height,
        showlegend=False,
        **own,
    )
