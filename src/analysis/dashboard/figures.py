"""Plotly figures as plain dictionaries: without its Python classes a page is drawn sooner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.aggregate import Curve
from analysis.dashboard.curves import MS_PER_HOUR, Options, Panel
from analysis.plots import in_words, looks
from analysis.runs import Episodes, Series

Figure = dict[str, Any]

POINTS = 1000  # of a line: more than a screen has room for
_BAND = 0.2  # opacity of an interval
INK = {"light": "#1f2933", "dark": "#e4e7eb"}
GRID = {"light": "#e4e7eb", "dark": "#323f4b"}
LIGHTER = {"#0072B2": "#7D95FF", "#000000": "#FFFFFF", "#D55E00": "#FF7F3F", "#009E73": "#2FC99A"}
_PARTS = {
    "environment": "#0072B2",
    "acting": "#56B4E9",
    "learning": "#E69F00",
    "evaluation": "#009E73",
}


def message(text: str, theme: str) -> Figure:
    """An empty figure that says why it is empty."""
    note = {"text": text, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    hidden = {"visible": False}
    return {
        "data": [],
        "layout": plain_layout(theme, annotations=[note], xaxis=hidden, yaxis=hidden),
    }


def curves(
    panel: Panel,
    metric: str,
    options: Options,
    theme: str,
    *,
    labels: Sequence[str],
    rate: bool,
    title: str,
) -> Figure:
    """One panel of curves.

    Args:
        labels: of all panels, so that a curve has the same colour in each.
        rate: values are shares, shown in percent.
    """
    look = shown_looks(labels, theme)
    data: list[dict[str, Any]] = []
    for label, series in panel.single:
        data.append(series_line(label, series.t, series.values, look[label], options))
    for curve in panel.groups:
        data += _band(curve, look[curve.label], options)
    several = len(data) > 1
    layout = plain_layout(
        theme,
        title={"text": title, "x": 0.01, "xanchor": "left", "font": {"size": 14}},
        showlegend=several and len(panel.single) <= 12,
        hovermode="x unified" if len(panel.single) + len(panel.groups) <= 8 else "closest",
        # Zoom and hidden curves stay when new points come, until something else is drawn.
        uirevision=f"{metric} {options.hours} {options.log_x} {options.log_y}",
        xaxis={"type": "log" if options.log_x else "linear", "title": {"text": _x_title(options)}},
        yaxis={"type": "log" if options.log_y else "linear"},
    )
    if rate:
        layout["yaxis"]["tickformat"] = ".0%"
        if not options.log_y:
            layout["yaxis"]["range"] = [-0.02, 1.02]
    return {"data": data, "layout": layout}


def time_shares(timing: Mapping[str, Series], theme: str) -> Figure:
    """Shares of the time that training's parts took so far, over steps."""
    parts = [key for key in timing if key.startswith("share_")]
    if not parts:
        return message("The run recorded no shares of time.", theme)
    data = []
    for key in parts:
        name = key.removeprefix("share_")
        keep = _thin(len(timing[key].t))
        data.append(
            {
                "type": "scatter",
                "name": name,
                "x": timing[key].t[keep].tolist(),
                "y": plain_numbers(timing[key].values[keep]),
                "stackgroup": "shares",
                "mode": "lines" if len(keep) > 1 else "markers",
                "line": {"width": 0.5, "color": _PARTS.get(name, "#CC79A7")},
                "hovertemplate": "%{y:.0%}",
            }
        )
    layout = plain_layout(
        theme,
        hovermode="x unified",
        uirevision="time",
        xaxis={"title": {"text": "Environment steps"}},
        yaxis={"tickformat": ".0%", "range": [0, 1]},
    )
    return {"data": data, "layout": layout}


def returns_over_time(episodes: Episodes, theme: str) -> Figure:
    """Quantiles of the evaluation episodes' figures over steps."""
    kept = [(t, _finite(values)) for t, values in zip(*episodes, strict=True)]
    kept = [(t, values) for t, values in kept if len(values)]
    if not kept:
        return message("The run recorded no evaluation episodes.", theme)
    kept = [kept[i] for i in _thin(len(kept))]
    t = [int(step) for step, _ in kept]
    quantiles = np.stack([np.quantile(v, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)) for _, v in kept])
    colour = shown_looks(["x"], theme)["x"][0]
    data: list[dict[str, Any]] = []
    for low, high, name, opacity in (
        (0, 6, "all episodes", 0.12),
        (1, 5, "80 % of them", 0.2),
        (2, 4, "half of them", 0.3),
    ):
        data += between(t, quantiles[:, low], quantiles[:, high], name, colour, opacity)
    data.append(
        {
            "type": "scatter",
            "name": "median",
            "x": t,
            "y": quantiles[:, 3].tolist(),
            "mode": "lines",
            "line": {"color": colour, "width": 2},
        }
    )
    layout = plain_layout(
        theme, uirevision="returns", xaxis={"title": {"text": "Environment steps"}}, yaxis={}
    )
    return {"data": data, "layout": layout}


def histogram(episodes: Episodes, theme: str) -> Figure:
    """The last evaluation's episodes, beside those of the first."""
    kept = [(t, _finite(values)) for t, values in zip(*episodes, strict=True)]
    kept = [(int(t), values) for t, values in kept if len(values)]
    if not kept:
        return message("The run recorded no evaluation episodes.", theme)
    look = shown_looks(["last", "first"], theme)
    shown = [("last", kept[-1])] + ([("first", kept[0])] if len(kept) > 1 else [])
    data = [
        {
            "type": "histogram",
            "name": f"{which} evaluation, step {t:,} ({len(values)} episodes)",
            "x": values.tolist(),
            "opacity": 0.7,
            "marker": {"color": look[which][0]},
            "nbinsx": 20,
        }
        for which, (t, values) in shown
    ]
    layout = plain_layout(
        theme, barmode="overlay", xaxis={}, yaxis={"title": {"text": "Episodes"}}, showlegend=True
    )
    return {"data": data, "layout": layout}


# --- Pieces ---


def over_steps(lines: Mapping[str, np.ndarray], theme: str, *, rate: bool = False) -> Figure:
    """Lines [N] over the steps of an episode.

    Args:
        rate: values are shares, from 0 to 1.
    """
    look = shown_looks(lines, theme)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "y": plain_numbers(np.asarray(values, dtype=np.float64)),
            "line": {"color": look[label][0], "dash": look[label][1], "width": 2},
        }
        for label, values in lines.items()
    ]
    layout = plain_layout(
        theme,
        height=220,
        showlegend=len(data) > 1,
        hovermode="x unified",
        margin={"l": 48, "r": 12, "t": 8, "b": 36},
        xaxis={"title": {"text": "Step"}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    if rate:
        layout["yaxis"]["range"] = [-0.02, 1.02]
    return {"data": data, "layout": layout}


def plain_layout(theme: str, **own: Any) -> dict[str, Any]:
    """What all figures have in common, and a figure's own entries."""
    axis = {"gridcolor": GRID[theme], "zeroline": False, "linecolor": GRID[theme]}
    layout: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK[theme], "family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 52, "r": 12, "t": 34, "b": 42},
        "legend": {"orientation": "h", "y": -0.27, "x": 0, "font": {"size": 11}},
        "hoverlabel": {"namelength": -1},
        "height": 340,
        **own,
    }
    for name in ("xaxis", "yaxis"):
        layout[name] = {**axis, "automargin": True, **own.get(name, {})}
        if "title" in layout[name]:
            layout[name]["title"] = {"standoff": 6, **layout[name]["title"]}
    return layout


def shown_looks(labels: Iterable[str], theme: str) -> dict[str, tuple[str, str]]:
    """Colour and dash pattern of every label: the report's, the dark ones lighter in the dark."""
    found = {}
    for label, (colour, dash) in looks(list(dict.fromkeys(labels))).items():
        shown = LIGHTER.get(str(colour), colour) if theme == "dark" else colour
        found[label] = str(shown), _plotly_dash(dash)
    return found


def _plotly_dash(dash: object) -> str:
    """Matplotlib's dash patterns are in line widths, Plotly's in pixels."""
    if not isinstance(dash, tuple):
        return "solid"
    return ",".join(f"{2 * length:g}px" for length in dash[1])


def _thin(count: int) -> np.ndarray:
    """Indices of at most `POINTS` of so many points, the first and the last among them."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, POINTS)).round().astype(int))


def plain_numbers(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which knows no NaN."""
    return [x if np.isfinite(x) else None for x in values.tolist()]


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _x(t: np.ndarray, options: Options) -> list[float]:
    return (t / MS_PER_HOUR).tolist() if options.hours else t.tolist()


def _x_title(options: Options) -> str:
    return "Hours of training" if options.hours else "Environment steps"


def series_line(
    label: str, t: np.ndarray, values: np.ndarray, look: tuple[str, str], options: Options
) -> dict[str, Any]:
    """A series in its colour and dash pattern."""
    keep = _thin(len(t))
    return {
        "type": "scatter",
        "name": label,
        "x": _x(t[keep], options),
        "y": plain_numbers(values[keep]),
        "mode": "lines+markers" if len(t) < 2 else "lines",
        "line": {"color": look[0], "dash": look[1], "width": 1.5},
    }


def _band(curve: Curve, look: tuple[str, str], options: Options) -> list[dict[str, Any]]:
    name = f"{curve.label} ({curve.n_runs} {'run' if curve.n_runs == 1 else 'runs'})"
    line = series_line(name, curve.t, curve.centre, look, options)
    line["line"]["width"] = 2.5
    line["legendgroup"] = curve.label
    known = np.isfinite(curve.low)
    if not known.any():
        return [line]
    x = _x(curve.t[known], options)
    low, high = curve.low[known], curve.high[known]
    band = between(x, low, high, name, look[0], _BAND)
    for trace in band:
        trace.update(legendgroup=curve.label, showlegend=False)
    return [*band, line]


def between(
    x: Sequence[float], low: np.ndarray, high: np.ndarray, name: str, colour: str, opacity: float
) -> list[dict[str, Any]]:
    """A band from `low` to `high`."""
    edge = {"type": "scatter", "x": list(x), "mode": "lines", "line": {"width": 0}}
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return [
        {**edge, "y": plain_numbers(low), "hoverinfo": "skip", "showlegend": False},
        {
            **edge,
            "y": plain_numbers(high),
            "name": name,
            "hoverinfo": "skip",
            "fill": "tonexty",
            "fillcolor": f"rgba({red},{green},{blue},{opacity})",
        },
    ]


def axis_name(metric: str, rate: bool) -> str:
    """A metric's name above its panel."""
    return in_words(metric) if not rate else in_words(metric, rate).removesuffix(" (%)")
