"""Joins the page with the index: which callback fills which part, and when."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, no_update

from analysis.dashboard import page, table, views
from analysis.dashboard.curves import Curves, Options
from analysis.dashboard.entry import Entry
from analysis.dashboard.index import Index

_RUN = "/run/"  # in the address of a run's page


def make_app(index: Index) -> Dash:
    """The page over an index, not yet served."""
    app = Dash(
        "murmuration",
        title="Murmuration",
        update_title="Murmuration",
        assets_folder=str(Path(__file__).with_name("assets")),
        serve_locally=True,
        suppress_callback_exceptions=True,
    )
    app.layout = page.layout
    callbacks = Callbacks(index)
    _in_the_browser(app)
    _table(app, callbacks)
    _chosen(app, callbacks)
    _run(app, callbacks)
    return app


def options(
    smoothing: float | None,
    x: str,
    log: Sequence[str] | None,
    mode: str = "single",
    by: Sequence[str] | None = None,
    statistic: str = "iqm",
) -> Options:
    """The values of the page's controls as options of curves."""
    return Options(
        aggregated=mode == "groups",
        by=tuple(by or ("name",)),
        statistic=statistic,
        smoothing=min(0.98, max(0.0, smoothing or 0.0)),
        hours=x == "hours",
        log_x="x" in (log or ()),
        log_y="y" in (log or ()),
    )


def opened_id(pathname: str | None) -> str | None:
    """The id of the run in the address `/run/ID`."""
    return pathname.removeprefix(_RUN) if pathname and pathname.startswith(_RUN) else None


class Callbacks:
    """What the page asks for, as methods without a page around them."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._curves = Curves()
        self._epoch = secrets.token_hex(8)  # a page may be older than the server

    # --- The table ---

    def load(self, keys: list[str] | None) -> tuple[Any, ...]:
        """All rows, the columns, the config keys that may become columns or make groups."""
        known = self._index.config_keys()
        keys = [key for key in keys or () if key in known]
        changes = self._index.changes(-1)
        seen = {"version": changes.version, "epoch": self._epoch}
        entries = self._index.entries()
        return table.columns(keys), table.rows(entries, keys), seen, known, known

    def poll(
        self,
        seen: dict[str, Any] | None,
        keys: list[str] | None,
        chosen: list[str],
        pathname: str | None,
        shown: tuple[int, int],
    ) -> tuple[Any, ...]:
        """What is new: rows, the version seen, the counts, the versions of the chosen runs and of
        the opened one.
        """
        said = views.counts(self._index, views.utc_now())
        if seen is None:  # the table's rows are still on their way
            return no_update, no_update, said, no_update, no_update
        if seen["epoch"] != self._epoch:
            return no_update, {"version": -1, "epoch": None}, said, no_update, no_update
        found = views.news(
            self._index, seen["version"], keys or [], chosen or [], opened_id(pathname)
        )
        changed = found.version != seen["version"]
        return (
            found.transaction or no_update,
            {"version": found.version, "epoch": self._epoch} if changed else no_update,
            said,
            found.chosen if found.chosen != shown[0] else no_update,
            found.opened if found.opened != shown[1] else no_update,
        )

    # --- The chosen runs ---

    def metrics(self, chosen: list[str], current: list[str] | None) -> tuple[Any, ...]:
        """Names of the chosen runs' metrics, and those drawn."""
        return views.metric_choice(self._index, chosen or [], current)

    def curves(
        self, chosen: list[str], metrics: list[str] | None, how: Options, theme: str | None
    ) -> list[Any]:
        """The chosen runs' curves."""
        return views.curves_view(
            self._index, self._curves, chosen or [], metrics or [], how, theme or "light"
        )

    def differences(self, chosen: list[str]) -> tuple[Any, ...]:
        """Columns and rows of the differing settings, a note, and the table's style."""
        found = views.differences(self._index, chosen or [])
        return *found, {"display": "none" if found.note else "block", "height": None}

    # --- A run's page ---

    def open(self, pathname: str | None) -> tuple[Any, ...]:
        """Which of the two pages is shown, and what of a run's page does not change while it
        trains.
        """
        entry = self._opened(pathname)
        shown: dict[str, str] = {}
        hidden = {"display": "none"}
        if opened_id(pathname) is None:
            return shown, hidden, None, no_update, no_update, no_update, no_update, no_update
        if entry is None:
            return hidden, shown, opened_id(pathname), [], [], [], [], None
        names, drawn = views.default_metrics(self._index, entry)
        lists = sorted(self._index.run(entry).episodes)
        first = "test_returns" if "test_returns" in lists else next(iter(lists), None)
        return hidden, shown, entry.id, views.run_settings(entry), names, drawn, lists, first

    def run(self, run_id: str | None) -> tuple[Any, ...]:
        """Head, commands, errors, files and console of the opened run."""
        entry = self._index.entry(run_id) if run_id else None
        if entry is None:
            return ["This run is not (or no longer) there."], [], [], [], ""
        return (
            views.run_head(entry),
            views.run_commands(entry),
            views.run_problems(self._index, entry),
            views.run_files(self._index, entry),
            views.console(entry),
        )

    def run_curves(
        self, run_id: str | None, metrics: list[str] | None, how: Options, theme: str | None
    ) -> Any:
        """The opened run's curves."""
        entry = self._index.entry(run_id) if run_id else None
        if entry is None:
            return []
        return views.run_curves(
            self._index, self._curves, entry, metrics or [], how, theme or "light"
        )

    def run_distributions(
        self, run_id: str | None, key: str | None, theme: str | None
    ) -> tuple[Any, ...]:
        """The opened run's evaluation episodes and its shares of time."""
        entry = self._index.entry(run_id) if run_id else None
        if entry is None:
            return [], []
        run = self._index.run(entry)
        theme = theme or "light"
        return views.run_returns(run, key or "", theme), views.run_time(run, theme)

    def _opened(self, pathname: str | None) -> Entry | None:
        run_id = opened_id(pathname)
        return self._index.entry(run_id) if run_id else None


def _in_the_browser(app: Dash) -> None:
    """What needs no server: assets/murmuration.js."""
    here = "murmuration"
    app.clientside_callback(
        ClientsideFunction(here, "theme"),
        Output("theme", "data"),
        Input("theme-button", "n_clicks"),
    )
    app.clientside_callback(
        ClientsideFunction(here, "chosen"),
        Output("chosen", "data"),
        Input("table", "selectedRows"),
        State("chosen", "data"),
    )
    for search, grid in (("search", "table"), ("settings-search", "settings")):
        app.clientside_callback(
            ClientsideFunction(here, "search"),
            Output(grid, "dashGridOptions"),
            Input(search, "value"),
            State(grid, "dashGridOptions"),
            prevent_initial_call=True,
        )
    app.clientside_callback(
        ClientsideFunction(here, "scroll"),
        Output("console", "title"),
        Input("console", "children"),
        prevent_initial_call=True,
    )


def _table(app: Dash, callbacks: Callbacks) -> None:
    @app.callback(
        Output("table", "columnDefs"),
        Output("table", "rowData"),
        Output("seen", "data"),
        Output("columns", "options"),
        Output("by", "options"),
        Input("columns", "value"),
    )
    def load(keys: list[str] | None) -> tuple[Any, ...]:
        return callbacks.load(keys)

    @app.callback(
        Output("table", "rowTransaction"),
        Output("seen", "data", allow_duplicate=True),
        Output("counts", "children"),
        Output("chosen-version", "data"),
        Output("opened-version", "data"),
        Input("poll", "n_intervals"),
        State("seen", "data"),
        State("columns", "value"),
        State("chosen", "data"),
        State("location", "pathname"),
        State("chosen-version", "data"),
        State("opened-version", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def poll(
        _: int | None,
        seen: dict[str, Any] | None,
        keys: list[str] | None,
        chosen: list[str],
        pathname: str | None,
        chosen_version: int,
        opened_version: int,
    ) -> tuple[Any, ...]:
        shown = (chosen_version, opened_version)
        return callbacks.poll(seen, keys, chosen, pathname, shown)

    # A page that is older than the server loads everything anew.
    app.clientside_callback(
        ClientsideFunction("murmuration", "reload"),
        Output("columns", "value"),
        Input("seen", "data"),
        State("columns", "value"),
        prevent_initial_call=True,
    )


def _drawing(which: str) -> list[Input]:
    return [Input({"type": name, "of": which}, "value") for name in ("smoothing", "x", "log")]


def _chosen(app: Dash, callbacks: Callbacks) -> None:
    @app.callback(
        Output("metrics", "options"),
        Output("metrics", "value"),
        Input("chosen", "data"),
        State("metrics", "value"),
    )
    def metrics(chosen: list[str], current: list[str] | None) -> tuple[Any, ...]:
        return callbacks.metrics(chosen, current)

    @app.callback(
        Output("curves", "children"),
        Input("metrics", "value"),
        Input("mode", "value"),
        Input("by", "value"),
        Input("statistic", "value"),
        *_drawing("all"),
        Input("theme", "data"),
        Input("chosen", "data"),
        Input("chosen-version", "data"),
    )
    def curves(
        metrics: list[str] | None,
        mode: str,
        by: list[str] | None,
        statistic: str,
        smoothing: float,
        x: str,
        log: list[str],
        theme: str | None,
        chosen: list[str],
        _: int,
    ) -> list[Any]:
        how = options(smoothing, x, log, mode, by, statistic)
        return callbacks.curves(chosen, metrics, how, theme)

    @app.callback(
        Output("differences", "columnDefs"),
        Output("differences", "rowData"),
        Output("differences-note", "children"),
        Output("differences", "style"),
        Input("chosen", "data"),
    )
    def differences(chosen: list[str]) -> tuple[Any, ...]:
        return callbacks.differences(chosen)


def _run(app: Dash, callbacks: Callbacks) -> None:
    @app.callback(
        Output("runs", "style"),
        Output("run", "style"),
        Output("opened", "data"),
        Output("settings", "rowData"),
        Output("run-metrics", "options"),
        Output("run-metrics", "value"),
        Output("returns-key", "options"),
        Output("returns-key", "value"),
        Input("location", "pathname"),
    )
    def open_page(pathname: str | None) -> tuple[Any, ...]:
        return callbacks.open(pathname)

    @app.callback(
        Output("run-head", "children"),
        Output("run-commands", "children"),
        Output("run-problems", "children"),
        Output("run-files", "children"),
        Output("console", "children"),
        Input("opened", "data"),
        Input("opened-version", "data"),
    )
    def run(run_id: str | None, _: int) -> tuple[Any, ...]:
        return callbacks.run(run_id) if run_id else (no_update,) * 5

    @app.callback(
        Output("run-curves", "children"),
        Input("run-metrics", "value"),
        *_drawing("one"),
        Input("theme", "data"),
        Input("opened", "data"),
        Input("opened-version", "data"),
    )
    def run_curves(
        metrics: list[str] | None,
        smoothing: float,
        x: str,
        log: list[str],
        theme: str | None,
        run_id: str | None,
        _: int,
    ) -> Any:
        return callbacks.run_curves(run_id, metrics, options(smoothing, x, log), theme)

    @app.callback(
        Output("run-returns", "children"),
        Output("run-time", "children"),
        Input("returns-key", "value"),
        Input("theme", "data"),
        Input("opened", "data"),
        Input("opened-version", "data"),
    )
    def distributions(
        key: str | None, theme: str | None, run_id: str | None, _: int
    ) -> tuple[Any, ...]:
        return callbacks.run_distributions(run_id, key, theme)
