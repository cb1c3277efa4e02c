"""The layout of the page: the table with what is drawn below it, and the page of a single run."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
from dash import dcc, html

from analysis.bootstrap import STATISTIC_NAMES
from analysis.dashboard import table

Component = Any  # Dash's components have no common type

POLL_MS = 2000  # between two questions of the page whether there is anything new
_GRID = {
    "theme": "themeQuartz",
    "suppressFieldDotNotation": True,  # config keys have dots
    "rowHeight": 32,
    "headerHeight": 36,
    "animateRows": False,
    "tooltipShowDelay": 300,
}
_COLUMN = {
    "sortable": True,
    "resizable": True,
    "wrapHeaderText": True,
    "suppressHeaderMenuButton": True,
    "autoHeaderHeight": True,
}


def layout() -> Component:
    """The whole page."""
    return html.Div(
        [
            dcc.Location(id="location", refresh=False),
            dcc.Interval(id="poll", interval=POLL_MS),
            dcc.Store(id="theme"),  # light or dark
            dcc.Store(id="seen"),  # version of the index that the table shows
            dcc.Store(id="chosen", data=[]),  # ids of the chosen runs
            dcc.Store(id="chosen-version", data=0),
            dcc.Store(id="opened"),  # id of the run whose page is open
            dcc.Store(id="opened-version", data=0),
            html.Header(
                [
                    dcc.Link("Murmuration", href="/", className="title"),
                    html.Span(id="counts"),
                    html.Button("Light / dark", id="theme-button", n_clicks=0),
                ]
            ),
            html.Main(_runs(), id="runs"),
            html.Main(_run(), id="run", style={"display": "none"}),
        ]
    )


def _runs() -> list[Component]:
    return [
        html.Div(
            [
                _labelled(
                    "Search all columns", dcc.Input(id="search", type="search", value=""), "wide"
                ),
                _labelled(
                    "More columns",
                    dcc.Dropdown(id="columns", multi=True, placeholder="Config keys"),
                    "wide",
                ),
            ],
            className="toolbar",
        ),
        dag.AgGrid(
            id="table",
            columnDefs=table.columns(),
            rowData=None,
            getRowId="params.data.id",
            defaultColDef={
                **_COLUMN,
                "floatingFilter": True,
                "suppressFloatingFilterButton": True,
            },
            dashGridOptions={
                **_GRID,
                "quickFilterText": "",
                "rowSelection": {
                    "mode": "multiRow",
                    "selectAll": "filtered",
                    "enableClickSelection": True,
                },
                "selectionColumnDef": {"pinned": "left", "width": 44},
                "localeText": {"noRowsToShow": "No runs"},
            },
            className="runs-grid",
            style={"height": "min(50vh, 640px)", "minHeight": 320},
        ),
        html.Section(
            [
                html.H3("Curves of the chosen runs"),
                html.Div(
                    [
                        _labelled("Metrics", dcc.Dropdown(id="metrics", multi=True), "wide"),
                        *_drawing("all"),
                    ],
                    className="toolbar",
                ),
                html.Div(
                    [
                        _labelled(
                            "Curves",
                            dcc.RadioItems(
                                id="mode",
                                options={"single": "one per run", "groups": "one per group"},
                                value="single",
                                inline=True,
                                className="choice",
                            ),
                        ),
                        _labelled(
                            "Groups by",
                            dcc.Dropdown(id="by", options=["name"], value=["name"], multi=True),
                            "wide",
                        ),
                        _labelled(
                            "Statistic (95 % bootstrap interval)",
                            dcc.Dropdown(
                                id="statistic",
                                options=STATISTIC_NAMES,
                                value="iqm",
                                clearable=False,
                                searchable=False,
                            ),
                        ),
                    ],
                    className="toolbar",
                ),
                html.Div(id="curves"),
            ]
        ),
        html.Section(
            [
                html.H3("Settings in which the chosen runs differ"),
                html.P("Choose two or more runs.", id="differences-note", className="note"),
                dag.AgGrid(
                    id="differences",
                    columnDefs=[],
                    rowData=[],
                    defaultColDef=_COLUMN,
                    dashGridOptions=_GRID,
                    style={"display": "none"},
                ),
            ]
        ),
    ]


def _run() -> list[Component]:
    return [
        dcc.Link("← All runs", href="/"),
        html.Div(id="run-head"),
        html.Section([html.H3("Go on with it"), html.Div(id="run-commands")]),
        html.Section([html.H3("Errors"), html.Div(id="run-problems")]),
        html.Section(
            [
                html.H3("Curves"),
                html.Div(
                    [
                        _labelled("Metrics", dcc.Dropdown(id="run-metrics", multi=True), "wide"),
                        *_drawing("one"),
                    ],
                    className="toolbar",
                ),
                html.Div(id="run-curves"),
            ]
        ),
        html.Section(
            [
                html.H3("Evaluation episodes"),
                dcc.Dropdown(id="returns-key", clearable=False, searchable=False),
                html.Div(id="run-returns", className="panels"),
            ]
        ),
        html.Section([html.H3("Share of time"), html.Div(id="run-time")]),
        html.Section([html.H3("Films and checkpoints"), html.Div(id="run-files")]),
        html.Section([html.H3("Console output"), html.Pre(id="console", className="console")]),
        html.Section(
            [
                html.H3("Configuration"),
                _labelled("Search", dcc.Input(id="settings-search", type="search", value="")),
                dag.AgGrid(
                    id="settings",
                    columnDefs=_SETTINGS,
                    rowData=[],
                    defaultColDef=_COLUMN,
                    dashGridOptions={**_GRID, "quickFilterText": ""},
                    style={"height": 420},
                ),
            ]
        ),
    ]


_SETTINGS = [
    {"field": "key", "headerName": "Key", "width": 260},
    {"field": "value", "headerName": "Value", "flex": 1, "minWidth": 160},
]


def _drawing(which: str) -> list[Component]:
    """How curves are drawn: the same choices for the chosen runs and on a run's page."""
    return [
        _labelled(
            "Smoothing",
            dcc.Slider(
                id={"type": "smoothing", "of": which},
                min=0,
                max=0.98,
                step=0.02,
                value=0,
                marks=None,
                tooltip={"placement": "bottom"},
                className="slider",
            ),
        ),
        _labelled(
            "x axis",
            dcc.RadioItems(
                id={"type": "x", "of": which},
                options={"steps": "steps", "hours": "hours"},
                value="steps",
                inline=True,
                className="choice",
            ),
        ),
        _labelled(
            "Logarithmic",
            dcc.Checklist(
                id={"type": "log", "of": which},
                options={"x": "x", "y": "y"},
                value=[],
                inline=True,
                className="choice",
            ),
        ),
    ]


def _labelled(text: str, control: Component, size: str = "") -> Component:
    return html.Div([html.Span(text, className="label"), control], className=f"control {size}")
