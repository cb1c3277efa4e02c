"""The player's page: an episode of a policy, step by step.

The page gets an episode as a whole (`Episode.for_page`) and shows its steps without the server
(assets/player.js); the server draws the curves and hands out the pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from flask import Response

from analysis.dashboard import figures
from analysis.episode import Episode

Component = Any  # Dash's components have no common type

SPEEDS = (1, 2, 4, 8, 16)  # steps per second
LINES_AT_MOST = 12  # of one curve
REWARD = "reward so far"


class Episodes:
    """The episodes that were played so far.

    Args:
        record: plays episode n, which is the next one.
    """

    def __init__(self, record: Callable[[int], Episode]) -> None:
        self._record = record
        self._played: list[Episode] = []
        self._lock = threading.Lock()  # the page may ask twice

    def __len__(self) -> int:
        return len(self._played)

    def __getitem__(self, number: int) -> Episode:
        return self._played[number]

    def play_another(self) -> int:
        """Plays the next one; its number."""
        with self._lock:
            self._played.append(self._record(len(self._played)))
            return len(self._played) - 1


def make_app(record: Callable[[int], Episode]) -> Dash:
    """The page of a player whose episode n is `record(n)`, not yet served; plays the first."""
    episodes = Episodes(record)
    episodes.play_another()
    app = Dash(
        "murmuration-player",
        title=f"{episodes[0].title} - Murmuration",
        update_title="",
        assets_folder=str(Path(__file__).with_name("assets")),
        serve_locally=True,
    )
    app.layout = lambda: layout(episodes)
    _callbacks(app, episodes)
    _in_the_browser(app)

    @app.server.get("/picture/<int:number>/<int:step>.png")
    def picture(number: int, step: int) -> Response:
        found = number < len(episodes) and step < len(episodes[number].pictures)
        if not found:
            return Response("There is no such picture.\n", 404, mimetype="text/plain")
        answer = Response(episodes[number].pictures[step], mimetype="image/png")
        answer.headers["Cache-Control"] = "private, max-age=3600"
        return answer

    return app


# --- The layout ---


def layout(episodes: Episodes) -> Component:
    """The whole page."""
    return html.Div(
        [
            dcc.Store(id="theme"),  # light or dark
            dcc.Store(id="data"),  # the episode
            dcc.Interval(id="clock", disabled=True, interval=1000 // 4),
            html.Header(
                [
                    html.Span(episodes[0].title, className="title"),
                    html.Span(id="counts"),
                    html.Button("Light / dark", id="theme-button", n_clicks=0),
                ]
            ),
            html.Main([html.Div([_stage(episodes), _inside()], className="player")]),
        ]
    )


def _stage(episodes: Episodes) -> Component:
    return html.Div(
        [
            html.Img(id="picture", alt="The environment at this step", className="picture"),
            html.Div(
                [
                    _button("first", "|◀", "To the first step"),
                    _button("back", "◀", "One step back"),
                    _button("play", "▶ Play", "Play or pause (space)"),
                    _button("forward", "▶", "One step on"),
                    _button("last", "▶|", "To the last step"),
                    dcc.Dropdown(
                        id="speed",
                        options=[{"label": f"{n} steps/s", "value": n} for n in SPEEDS],
                        value=4,
                        clearable=False,
                        searchable=False,
                    ),
                ],
                className="buttons",
            ),
            dcc.Slider(
                id="at",
                min=0,
                max=1,
                step=1,
                value=0,
                marks=None,
                updatemode="drag",
                className="seek",
            ),
            html.Div(id="now", className="facts"),
            html.Div(
                [
                    dcc.Dropdown(id="curve", clearable=False, searchable=False),
                    dcc.Graph(
                        id="curves",
                        figure=figures.message("", "light"),
                        config={"displaylogo": False, "displayModeBar": False, "responsive": True},
                        className="graph",
                    ),
                ]
            ),
            html.Div(
                [
                    dcc.Dropdown(
                        id="episode",
                        options=_choices(episodes),
                        value=0,
                        clearable=False,
                        searchable=False,
                    ),
                    html.Button("Play another episode", id="another", n_clicks=0),
                ],
                className="toolbar",
            ),
            html.Div(id="facts", className="facts"),
            html.Div(id="notes"),
        ],
        className="stage",
    )


def _inside() -> Component:
    return html.Div(
        [
            html.Section([html.H3("The team"), html.Div(id="team", className="tables")]),
            html.Section(
                [
                    html.H3("An agent"),
                    dcc.Dropdown(id="agent", clearable=False, searchable=False),
                    html.Div(id="actions", className="tables"),
                    html.H4("What it sees"),
                    html.Div(id="observation"),
                ]
            ),
        ],
        className="inside",
    )


def _button(name: str, text: str, title: str) -> Component:
    return html.Button(text, id=name, n_clicks=0, title=title)


def _choices(episodes: Episodes) -> list[dict[str, Any]]:
    found = []
    for number in range(len(episodes)):
        facts = episodes[number].facts
        found.append({"label": f"Episode {number}, return {facts['Return']}", "value": number})
    return found


# --- Callbacks ---


def _callbacks(app: Dash, episodes: Episodes) -> None:
    @app.callback(
        Output("data", "data"),
        Output("curve", "options"),
        Output("curve", "value"),
        Output("agent", "options"),
        Output("agent", "value"),
        Input("episode", "value"),
        State("curve", "value"),
        State("agent", "value"),
    )
    def opened(number: int, curve: str | None, agent: int | None) -> tuple[Any, ...]:
        episode = episodes[number]
        names = list(lines_of(episode))
        agents = [{"label": name, "value": i} for i, name in enumerate(episode.agents)]
        shown = {"number": number, **episode.for_page()}
        return shown, names, curve if curve in names else names[0], agents, agent or 0

    @app.callback(
        Output("episode", "options"),
        Output("episode", "value"),
        Input("another", "n_clicks"),
        prevent_initial_call=True,
        running=[(Output("another", "disabled"), True, False)],
    )
    def another(clicks: int) -> tuple[Any, ...]:
        if not clicks:
            return no_update, no_update
        number = episodes.play_another()
        return _choices(episodes), number

    @app.callback(
        Output("curves", "figure"),
        Input("data", "data"),
        Input("curve", "value"),
        Input("theme", "data"),
    )
    def curves(data: dict[str, Any] | None, curve: str, theme: str | None) -> Any:
        if data is None:
            return no_update
        episode = episodes[data["number"]]
        lines = lines_of(episode).get(curve)
        if lines is None:
            return no_update
        array = episode.inner.get(curve)
        rate = array is not None and array.kind == "probability"
        return figures.over_steps(lines, theme or "light", rate=rate)


def lines_of(episode: Episode) -> dict[str, dict[str, np.ndarray]]:
    """What can be drawn over the steps, `value` first: curve -> name of a line -> [N]."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in episode.inner.items():
        if array.kind not in ("value", "probability") or array.values.ndim > 2:
            continue
        if array.values.ndim == 1:
            found[name] = {name: array.values}
        elif array.values.shape[1] <= LINES_AT_MOST:
            found[name] = dict(
                zip(_labels(array.axes[0], episode, array.values), array.values.T, strict=True)
            )
    rewards = episode.rewards
    so_far = np.concatenate([np.zeros_like(rewards[:1]), rewards.cumsum(0)])
    if rewards.ndim == 1:
        found[REWARD] = {REWARD: so_far}
    elif rewards.shape[1] <= LINES_AT_MOST:
        found[REWARD] = dict(zip(episode.agents, so_far.T, strict=True))
    else:
        found[REWARD] = {"mean over agents": so_far.mean(1)}
    return dict(sorted(found.items(), key=lambda item: item[0] != "value"))


def _labels(axis: str, episode: Episode, values: np.ndarray) -> list[str]:
    if axis == "agent":
        return list(episode.agents)
    return [f"{axis}_{i}" for i in range(values.shape[1])]


def _in_the_browser(app: Dash) -> None:
    """What needs no server: assets/murmuration.js, assets/player.js."""
    app.clientside_callback(
        ClientsideFunction("murmuration", "theme"),
        Output("theme", "data"),
        Input("theme-button", "n_clicks"),
    )
    app.clientside_callback(
        ClientsideFunction("player", "move"),
        Output("at", "max"),
        Output("at", "value"),
        Output("clock", "disabled"),
        Output("play", "children"),
        Input("data", "data"),
        *(Input(name, "n_clicks") for name in ("first", "back", "play", "forward", "last")),
        Input("clock", "n_intervals"),
        Input("curves", "clickData"),
        State("at", "value"),
        State("clock", "disabled"),
    )
    app.clientside_callback(
        ClientsideFunction("player", "speed"),
        Output("clock", "interval"),
        Input("speed", "value"),
    )
    app.clientside_callback(
        ClientsideFunction("player", "show"),
        Output("picture", "src"),
        Output("counts", "children"),
        Input("data", "data"),
        Input("at", "value"),
        Input("agent", "value"),
        Input("curves", "figure"),
    )
