"""The rows and columns of the table of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.dashboard.entry import Entry
from analysis.dashboard.highlights import RETURN_KEY

Row = dict[str, Any]

_CONFIG = "config:"  # before a config key, as the name of its column
_MISSING = object()


def row(entry: Entry, keys: Sequence[str] = ()) -> Row:
    """What stands in the table about one run; None where nothing is known.

    Args:
        keys: config keys that are columns, too.
    """
    run, shown = entry.bare_run(), entry.highlights
    win = shown.win_key()
    return {
        "id": entry.id,
        "name": cell(entry.config.get("name")),
        "map": run.task[1] if entry.config else None,
        "seed": cell(entry.config.get("seed")),
        "status": entry.status,
        "host": entry.host,
        "steps": shown.steps,
        "progress": progress(entry),
        "win_last": shown.last.get(win) if win else None,
        "win_best": shown.best.get(win) if win else None,
        "return_last": shown.last.get(RETURN_KEY),
        "return_best": shown.best.get(RETURN_KEY),
        "speed": speed(entry),
        "eta": eta(entry),
        "elapsed": entry.elapsed(),
        "started": entry.started.strftime("%Y-%m-%d %H:%M") if entry.started else None,
        "problems": "; ".join(entry.problems.values()) or None,
        "path": str(entry.path),
        **{_CONFIG + key: setting(entry.config, key) for key in keys},
    }


def progress(entry: Entry) -> float | None:
    """Share of the run's `t_max` that is done."""
    goal = number(entry.config.get("t_max"))
    if entry.highlights.steps is None or not goal or goal <= 0:
        return None
    return min(1.0, entry.highlights.steps / goal)


def speed(entry: Entry) -> float | None:
    """Environment steps per second: as recorded last, or the run's mean."""
    if entry.speed is not None:
        return entry.speed
    elapsed, steps = entry.elapsed(), entry.highlights.steps
    return steps / elapsed if elapsed and elapsed > 0 and steps else None


def eta(entry: Entry) -> float | None:
    """Seconds until a running run reaches its `t_max`."""
    goal, rate, steps = number(entry.config.get("t_max")), speed(entry), entry.highlights.steps
    if entry.status != "RUNNING" or not goal or not rate or rate <= 0 or steps is None:
        return None
    return max(0.0, goal - steps) / rate


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def cell(value: object) -> str | int | float | bool | None:
    """A value of a configuration as a cell can show and sort it."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return value if math.isfinite(value) else str(value)
    return json.dumps(value, default=str)


def setting(config: Mapping[str, Any], key: str) -> str | int | float | bool | None:
    """The value of a dotted config key as a cell; "unset" where the config has none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return "unset" if value is _MISSING else cell(value)


def rows(entries: Iterable[Entry], keys: Sequence[str] = ()) -> list[Row]:
    """The table's rows."""
    return [row(entry, keys) for entry in entries]


def columns(keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """AG Grid's column definitions.

    Args:
        keys: config keys that are columns, too.
    """
    return [
        _text("name", "Algorithm", 130, cellRenderer="RunLink", pinned="left"),
        _text("map", "Map", 130),
        _number("seed", "Seed", 80),
        _text("status", "Status", 140, cellClassRules=_STATUS_CLASSES),
        _number("steps", "Steps", 110, "count"),
        _number("progress", "Done", 85, "percent0"),
        _number("win_last", "Win rate, last", 90, "percent"),
        _number("win_best", "Win rate, best", 90, "percent"),
        _number("return_last", "Return, last", 88, "short"),
        _number("return_best", "Return, best", 88, "short"),
        _number("speed", "Steps/s", 90, "count"),
        _number("eta", "ETA", 95, "duration"),
        _number("elapsed", "Time", 95, "duration"),
        *[_config_column(key) for key in keys],
        _text("host", "Host", 110),
        _text("started", "Started (UTC)", 150),
        _text("problems", "Problems", 160, cellClass="problem", tooltipField="problems"),
        _text("path", "Folder", 320, tooltipField="path"),
    ]


_STATUS_CLASSES = {
    f"status-{name}": f"params.value == '{value}'"
    for name, value in (
        ("good", "COMPLETED"),
        ("live", "RUNNING"),
        ("bad", "FAILED"),
        ("dead", "PROBABLY_DEAD"),
        ("stopped", "INTERRUPTED"),
    )
}


def _text(field: str, head: str, width: int, **more: Any) -> dict[str, Any]:
    return {
        "field": field,
        "headerName": head,
        "width": width,
        "filter": "agTextColumnFilter",
        **more,
    }


def _number(field: str, head: str, width: int, form: str = "") -> dict[str, Any]:
    column = {
        "field": field,
        "headerName": head,
        "width": width,
        "filter": "agNumberColumnFilter",
        "filterParams": {"defaultOption": "equals" if field == "seed" else "greaterThanOrEqual"},
        "type": "rightAligned",
    }
    if form:
        column["valueFormatter"] = {"function": f"{form}(params.value)"}
    return column


def _config_column(key: str) -> dict[str, Any]:
    # A key may hold numbers in one run and words in another: the filter takes both as text.
    return _text(_CONFIG + key, key, 130, comparator={"function": "natural"})
