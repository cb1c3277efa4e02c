"""The parts of the page, made from the index by plain functions; Dash's callbacks call them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from dash import dcc, html

from analysis.aggregate import is_rate
from analysis.dashboard import figures, files, table
from analysis.dashboard.commands import commands
from analysis.dashboard.curves import Curves, Options, Panel
from analysis.dashboard.entry import Entry
from analysis.dashboard.highlights import RETURN_KEY, WIN_KEY
from analysis.dashboard.index import Index
from analysis.runs import Run, flatten

Component = Any  # Dash's components have no common type

PANELS_AT_MOST = 16
SIDE_BY_SIDE = 12  # runs whose settings stand in a column each
_NAMED_FROM = 40  # chosen runs that are asked for the names of their metrics
CONSOLE = 64 * 1024  # [bytes] at the end of cout.txt
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")
_GRAPH: Any = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d"]}


class News(NamedTuple):
    """What a page does not know yet."""

    version: int
    transaction: dict[str, Any] | None
    chosen: int
    opened: int


def news(
    index: Index, since: int, keys: Sequence[str], chosen: Sequence[str], opened: str | None
) -> News:
    """The rows that changed since a version, and the versions of what is shown beside the table.

    Args:
        keys: config keys that are columns.
        chosen: ids of the runs whose curves are drawn.
        opened: id of the run whose page is open.
    """
    changes = index.changes(since)
    added = [entry for entry in changes.changed if entry.born > since]
    updated = [entry for entry in changes.changed if entry.born <= since]
    transaction = {
        name: content
        for name, content in (
            ("add", table.rows(added, keys)),
            ("update", table.rows(updated, keys)),
            ("remove", [{"id": run_id} for run_id in changes.removed]),
        )
        if content
    }
    shown = [entry.version for entry in index.entries(chosen)]
    entry = index.entry(opened) if opened else None
    return News(
        changes.version, transaction or None, max(shown, default=0), entry.version if entry else 0
    )


def counts(index: Index, now: datetime) -> str:
    """The line above the table: how many runs there are, by status."""
    entries = index.entries()
    found: dict[str, int] = {}
    for entry in entries:
        found[entry.status] = found.get(entry.status, 0) + 1
    parts = [f"{n:,} {status.lower().replace('_', ' ')}" for status, n in sorted(found.items())]
    unread = sum(not entry.whole for entry in entries)
    if unread:
        parts.append(f"{unread:,} still to be read as a whole")
    total = f"{len(entries):,} {'run' if len(entries) == 1 else 'runs'}"
    listed = f": {', '.join(parts)}" if parts else f" under {', '.join(index.paths)} yet"
    return f"{total}{listed} · {now:%H:%M:%S}"


# --- Curves and differences of the chosen runs ---


def metric_choice(
    index: Index, chosen: Sequence[str], current: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Names of the metrics of the chosen runs, and those drawn: the current ones where the runs
    have them, else the win rate, else the return.
    """
    names = index.metric_names(index.entries(chosen[:_NAMED_FROM]))
    kept = [name for name in current or () if name in names]
    if not kept:
        preferred = [name for name in (WIN_KEY, RETURN_KEY, *names) if name in names]
        kept = preferred[:1]
    return names, kept


def curves_view(
    index: Index,
    cache: Curves,
    chosen: Sequence[str],
    metrics: Sequence[str],
    options: Options,
    theme: str,
) -> list[Component]:
    """The panels of the chosen runs' metrics, one for each metric and map."""
    if not chosen:
        return [_hint("Choose runs in the table to see their curves.")]
    if not metrics:
        return [_hint("The chosen runs have recorded no metric yet.")]
    entries = index.entries(chosen)
    panels: list[tuple[str, Panel, bool]] = []
    notes: list[str] = []
    for metric in metrics:
        runs = [index.run(entry, (metric,)) for entry in entries]
        found, said = cache.panels(runs, metric, options)
        rate = is_rate(metric, runs)
        panels += [(metric, panel, rate) for panel in found]
        notes += said
    if len(panels) > PANELS_AT_MOST:
        notes.append(f"The first {PANELS_AT_MOST} of {len(panels)} panels are drawn.")
    labels = _labels([panel for _, panel, _ in panels])
    graphs = [
        _graph(
            figures.curves(
                panel,
                metric,
                options,
                theme,
                labels=labels,
                rate=rate,
                title=f"{figures.axis_name(metric, rate)}, {panel.task[1]}",
            ),
            f"panel-{i}",
        )
        for i, (metric, panel, rate) in enumerate(panels[:PANELS_AT_MOST])
    ]
    head = [html.P(" ".join(dict.fromkeys(notes)), className="note")] if notes else []
    return [*head, html.Div(graphs, className="panels")]


def _labels(panels: Sequence[Panel]) -> list[str]:
    single = [label for panel in panels for label, _ in panel.single]
    return [*single, *(curve.label for panel in panels for curve in panel.groups)]


class Differences(NamedTuple):
    """AG Grid's columns and rows of the settings that differ, or why there are none."""

    columns: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    note: str


def differences(index: Index, chosen: Sequence[str]) -> Differences:
    """The config keys in which the chosen runs differ.

    Up to `SIDE_BY_SIDE` runs have a column each; of more runs it is told how many have which value.
    """
    entries = index.entries(chosen)
    if len(entries) < 2:
        return Differences([], [], "Choose two or more runs.")
    keys = sorted({key for entry in entries for key, _ in flatten(entry.config)})
    found = {key: [str(table.setting(e.config, key)) for e in entries] for key in keys}
    differing = {key: values for key, values in found.items() if len(set(values)) > 1}
    if not differing:
        return Differences([], [], "The chosen runs have the same settings.")
    head: list[dict[str, Any]] = [
        {"field": "key", "headerName": "Key", "pinned": "left", "width": 170}
    ]
    if len(entries) > SIDE_BY_SIDE:
        head.append({"field": "values", "headerName": "Values (runs)", "flex": 1, "minWidth": 300})
        tallies = [{"key": key, "values": _tally(values)} for key, values in differing.items()]
        return Differences(head, tallies, "")
    for i, entry in enumerate(entries):
        head.append({"field": f"run{i}", "headerName": _short_name(entry), "width": 150})
    rows = [
        {"key": key, **{f"run{i}": value for i, value in enumerate(values)}}
        for key, values in differing.items()
    ]
    return Differences(head, rows, "")


def _tally(values: Sequence[str]) -> str:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    listed = sorted(found.items(), key=lambda item: -item[1])
    more = f", and {len(listed) - 12} more values" if len(listed) > 12 else ""
    return ", ".join(f"{value} ({n})" for value, n in listed[:12]) + more


def _short_name(entry: Entry) -> str:
    run = entry.bare_run()
    return f"{run.name} · {run.task[1]} · {entry.path.name}"


# --- A run's page ---


def run_head(entry: Entry) -> list[Component]:
    """Name, status and the figures of the table."""
    run, row = entry.bare_run(), table.row(entry)
    facts = {
        "Seed": row["seed"],
        "Steps": _count(row["steps"]),
        "Done": _percent(row["progress"]),
        "Win rate, last": _percent(row["win_last"]),
        "Win rate, best": _percent(row["win_best"]),
        "Return, last": _short(row["return_last"]),
        "Return, best": _short(row["return_best"]),
        "Steps/s": _count(row["speed"]),
        "Time": _duration(row["elapsed"]),
        "ETA": _duration(row["eta"]),
        "Started (UTC)": row["started"],
        "Host": row["host"],
    }
    shown = [
        html.Div([html.Dt(name), html.Dd(str(value))])
        for name, value in facts.items()
        if value not in (None, "")
    ]
    title: list[Component] = [
        f"{run.name} on {run.task[1]} ",
        html.Span(entry.status, className=f"badge {_badge(entry.status)}"),
    ]
    return [
        html.H2(title),
        html.P(str(entry.path), className="path"),
        html.Dl(shown, className="facts"),
    ]


def run_commands(entry: Entry) -> list[Component]:
    """The commands to go on with the run, each with a button that copies it."""
    found, reason = commands(entry)
    lines = [
        html.Div(
            [
                html.Span(name, className="command-name"),
                html.Code(text, id=f"command-{name}"),
                dcc.Clipboard(
                    content=text, title=f"Copy the command: {name}", className="copy", n_clicks=0
                ),
            ],
            className="command",
        )
        for name, text in found.items()
    ]
    return [*lines, *([html.P(reason, className="note")] if reason else [])]


def run_problems(index: Index, entry: Entry) -> list[Component]:
    """What went wrong: in the run, and with reading it."""
    index.run(entry)  # reads everything: what is damaged is known then
    parts: list[Component] = []
    trace = entry.record.get("fail_trace")
    if isinstance(trace, Sequence) and trace:
        text = trace if isinstance(trace, str) else "".join(map(str, trace))
        parts.append(html.Pre(text, className="console error", id="fail-trace"))
    parts += [html.P(problem, className="problem") for problem in list(entry.problems.values())]
    return parts or [html.P("There are none.", className="note")]


def run_curves(
    index: Index,
    cache: Curves,
    entry: Entry,
    metrics: Sequence[str],
    options: Options,
    theme: str,
) -> list[Component]:
    """The run's curves, a small panel for each metric."""
    if not metrics:
        return [_hint("The run has recorded no metric yet.")]
    run, graphs, notes = index.run(entry), [], []
    for i, metric in enumerate(metrics):
        panels, said = cache.panels([run], metric, options)
        rate = is_rate(metric, [run])
        notes += said
        for panel in panels:
            figure = figures.curves(
                panel,
                metric,
                options,
                theme,
                labels=_labels([panel]),
                rate=rate,
                title=figures.axis_name(metric, rate),
            )
            figure["layout"].update(height=260, showlegend=False)
            graphs.append(_graph(figure, f"run-panel-{i}"))
    head = [html.P(" ".join(dict.fromkeys(notes)), className="note")] if notes else []
    return [*head, html.Div(graphs, className="panels small")]


def default_metrics(index: Index, entry: Entry) -> tuple[list[str], list[str]]:
    """Names of the run's metrics, and those that are drawn at first: the evaluations', and the
    learner's main figures.
    """
    names = list(index.run(entry).metrics)
    names.sort(key=lambda name: (not name.startswith("test_"), name))
    main = [WIN_KEY, RETURN_KEY, "return_mean", "test_ep_length_mean", "loss", "epsilon"]
    shown = [name for name in main if name in names]
    return names, shown or names[:4]


def run_time(run: Run, theme: str) -> Component:
    """Where the run's time went."""
    return _graph(figures.time_shares(run.timing, theme), "run-time-graph")


def run_returns(run: Run, key: str, theme: str) -> list[Component]:
    """An evaluation figure's distribution over episodes, over time and in the last evaluation."""
    episodes = run.episodes.get(key)
    if episodes is None:
        return [_hint("The run keeps no figures of single evaluation episodes.")]
    return [
        _graph(figures.returns_over_time(episodes, theme), "returns-over-time"),
        _graph(figures.histogram(episodes, theme), "returns-histogram"),
    ]


def console(entry: Entry) -> str:
    """The end of the run's output, without colours and control characters."""
    try:
        with open(entry.path / "cout.txt", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - CONSOLE))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return "The run has no cout.txt (Sacred writes it within ten seconds)."
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return text if size <= CONSOLE else f"...{text.partition(chr(10))[2]}"


def run_settings(entry: Entry) -> list[dict[str, Any]]:
    """Key and value of every setting."""
    return [
        {"key": key, "value": str(table.cell(value))}
        for key, value in sorted(flatten(entry.config))
    ]


def run_files(index: Index, entry: Entry) -> list[Component]:
    """Films, replays and checkpoints."""
    parts: list[Component] = [html.H4("Films")]
    shown = files.films(index, entry)
    parts += [
        html.Figure(
            [
                _film(entry, name),
                html.Figcaption(name),
            ]
        )
        for name in shown
    ] or [html.P("There is none. The command Film makes one.", className="note")]
    kept = [name for name in files.replays(index, entry) if name not in shown]
    if kept:
        links = [html.Li(html.A(name, href=_link(entry, name), target="_blank")) for name in kept]
        parts += [html.H4("Replays"), html.Ul(links)]
    plain = [name for name in files.PLAIN if (entry.path / name).is_file()]
    if plain:
        links = [html.Li(html.A(name, href=_link(entry, name), target="_blank")) for name in plain]
        parts += [html.H4("Files"), html.Ul(links)]
    parts.append(html.H4("Checkpoints"))
    points = files.checkpoints(entry)
    if not points:
        return [*parts, html.P("There is none.", className="note")]
    head = html.Tr([html.Th(text) for text in ("Step", "Size", "Written (UTC)", "Holds")])
    body = [
        html.Tr(
            [
                html.Td(f"{one.step:,}"),
                html.Td(_size(one.size)),
                html.Td(f"{one.written:%Y-%m-%d %H:%M}"),
                html.Td("the whole training state" if one.resumable else "models"),
            ]
        )
        for one in points
    ]
    return [*parts, html.Table([html.Thead(head), html.Tbody(body)], id="checkpoints")]


# --- Pieces ---


def _graph(figure: Mapping[str, Any], name: str) -> Component:
    return dcc.Graph(id=name, figure=figure, config=_GRAPH, className="graph")


def _hint(text: str) -> Component:
    return html.P(text, className="hint")


def _film(entry: Entry, name: str) -> Component:
    if name.endswith(".gif"):
        return html.Img(src=_link(entry, name), alt=f"Film {name}", className="film")
    return html.Video(src=_link(entry, name), controls=True, loop=True, className="film")


def _link(entry: Entry, name: str) -> str:
    return f"/files/{entry.id}/{name}"


def _badge(status: str) -> str:
    return {
        "COMPLETED": "status-good",
        "RUNNING": "status-live",
        "FAILED": "status-bad",
        "PROBABLY_DEAD": "status-dead",
    }.get(status, "status-stopped")


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:,.4g}"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def utc_now() -> datetime:
    """The time in UTC, as Sacred's records have it."""
    return datetime.now(timezone.utc)
