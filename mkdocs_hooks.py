"""Draws the Mermaid flowcharts of the documentation as SVG while the site is built.

GitHub draws Mermaid by itself. On the site the theme would load a library from another server for
it, and the built pages are to work without a network. Flowcharts of this form are understood:
`flowchart TD` or `LR`, nodes `name`, `name[text]` and `name["text"]` joined by `&`, and chains of
`-->`, `-.->` and `-- text -->`.
"""

from __future__ import annotations

import html as html_module
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

BLOCK = re.compile(r'<pre class="mermaid"><code>(.*?)</code></pre>', re.DOTALL)
ARROW = re.compile(r"\s*(?:(-->)|(-\.->)|--\s*([^->]+?)\s*-->)\s*")
NODE = re.compile(r'^(\w+)(?:\["?([^"\]]*)"?\])?$')
HEIGHT, GAP, SPACE = 30.0, 18.0, 46.0  # pixels: of a box, between boxes of a rank, between ranks
LETTER = 7.4  # pixels, width of a letter
HALF_TEXT = 4.5  # pixels, from the middle of a letter to its base line


@dataclass
class Edge:
    """An arrow; `dotted` and `text` say how it is drawn."""

    start: str
    end: str
    dotted: bool
    text: str


@dataclass
class Chart:
    """A flowchart: nodes by name, with their texts, and edges in the order of the source."""

    down: bool
    nodes: dict[str, str] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def ranks(self) -> dict[str, int]:
        """A node's rank: its longest way from a start. Neither dotted arrows count, nor those that
        close a circle.
        """
        after: dict[str, list[str]] = {name: [] for name in self.nodes}
        for edge in self.edges:
            if not edge.dotted and not self._reaches(after, edge.end, edge.start):
                after[edge.start].append(edge.end)
        rank = dict.fromkeys(self.nodes, 0)
        for _ in self.nodes:
            for name, ends in after.items():
                for end in ends:
                    rank[end] = max(rank[end], rank[name] + 1)
        return rank

    def _reaches(self, after: dict[str, list[str]], start: str, end: str) -> bool:
        return start == end or any(self._reaches(after, name, end) for name in after[start])

    def rows(self) -> tuple[list[list[str]], list[list[str]]]:
        """The nodes of every rank from left to right, and the way of every arrow.

        A way leads over a place of its own in each rank between, so that no arrow crosses a box.
        """
        rank = self.ranks()
        rows: list[list[str]] = [[] for _ in range(max(rank.values()) + 1)]
        for name in self.nodes:
            rows[rank[name]].append(name)
        ways = []
        for i, edge in enumerate(self.edges):
            first, last = rank[edge.start], rank[edge.end]
            step = 1 if last > first else -1
            between = [(r, f"{i}/{r}") for r in range(first + step, last, step)]
            for r, name in between:
                rows[r].append(name)
            ways.append([edge.start, *(name for _, name in between), edge.end])
        return self._ordered(rows, ways), ways

    def _ordered(self, rows: list[list[str]], ways: list[list[str]]) -> list[list[str]]:
        """Each row sorted by the mean place of what its members are joined to, a few times."""
        for _ in range(24):
            place = {n: (i + 0.5) / len(row) for row in rows for i, n in enumerate(row)}
            near = {name: [where] for name, where in place.items()}
            for way in ways:
                for one, other in pairwise(way):
                    near[one].append(place[other])
                    near[other].append(place[one])
            rows = [sorted(row, key=lambda n: sum(near[n]) / len(near[n])) for row in rows]
        return rows


def parse(source: str) -> Chart:
    """Reads a flowchart.

    Raises:
        ValueError: something in it is not understood.
    """
    head, *lines = [line.strip() for line in source.strip().splitlines() if line.strip()]
    if head not in ("flowchart TD", "flowchart LR"):
        raise ValueError(f"mermaid: expected a flowchart TD or LR, got '{head}'")
    chart = Chart(down=head.endswith("TD"))
    for line in lines:
        parts = ARROW.split(line)
        groups = [_nodes(chart, text) for text in parts[::4]]
        for i, (starts, ends) in enumerate(pairwise(groups)):
            _, dotted, text = parts[4 * i + 1 : 4 * i + 4]
            chart.edges += [Edge(a, b, bool(dotted), text or "") for a in starts for b in ends]
    return chart


def _nodes(chart: Chart, text: str) -> list[str]:
    names = []
    for part in text.split("&"):
        found = NODE.match(part.strip())
        if found is None:
            raise ValueError(f"mermaid: cannot read the node '{part.strip()}'")
        name, label = found.groups()
        chart.nodes[name] = label or chart.nodes.get(name, name)
        names.append(name)
    return names


def draw(chart: Chart) -> str:
    """The chart as an SVG element, in the colours of the page."""
    place, size, ways = _across(chart) if not chart.down else _downwards(chart)
    shapes = [
        _arrow(edge, [place[name] for name in way], chart.down)
        for edge, way in zip(chart.edges, ways, strict=True)
    ]
    for name, text in chart.nodes.items():
        (x, y), width = place[name], _width(chart, name)
        shapes.append(
            f'<rect x="{x - width / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{width:.1f}" '
            f'height="{HEIGHT}" rx="4"/>'
            f'<text x="{x:.1f}" y="{y + HALF_TEXT:.1f}">{html_module.escape(text)}</text>'
        )
    return (
        f'<svg class="flowchart" viewBox="-4 -4 {size[0] + 8:.0f} {size[1] + 8:.0f}" '
        f'style="max-width:{size[0] + 8:.0f}px" role="img">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
        + "".join(shapes)
        + "</svg>"
    )


Places = dict[str, tuple[float, float]]


def _width(chart: Chart, name: str) -> float:
    """Of a box; 0 of a place on an arrow's way."""
    return LETTER * len(chart.nodes[name]) + 20 if name in chart.nodes else 0.0


def _downwards(chart: Chart) -> tuple[Places, tuple[float, float], list[list[str]]]:
    """Ranks below one another, each in the middle."""
    rows, ways = chart.rows()
    widths = [[_width(chart, name) for name in row] for row in rows]
    lengths = [sum(row) + GAP * (len(row) - 1) for row in widths]
    place = {}
    for r, row in enumerate(rows):
        x = (max(lengths) - lengths[r]) / 2
        for name, width in zip(row, widths[r], strict=True):
            place[name] = (x + width / 2, r * (HEIGHT + SPACE) + HEIGHT / 2)
            x += width + GAP
    return place, (max(lengths), len(rows) * (HEIGHT + SPACE) - SPACE), ways


def _across(chart: Chart) -> tuple[Places, tuple[float, float], list[list[str]]]:
    """One box beside the other."""
    order = sorted(chart.nodes, key=chart.ranks().__getitem__)
    place, x = {}, 0.0
    for name in order:
        width = _width(chart, name)
        place[name] = (x + width / 2, HEIGHT / 2)
        place[f"{name}>"], place[f">{name}"] = (x + width, HEIGHT / 2), (x, HEIGHT / 2)
        x += width + SPACE
    ways = [
        [f"{edge.start}>", f">{edge.end}"]
        if order.index(edge.start) < order.index(edge.end)
        else [edge.start, edge.end]
        for edge in chart.edges
    ]
    return place, (x - SPACE, HEIGHT * 2.6), ways


def _arrow(edge: Edge, points: list[tuple[float, float]], down: bool) -> str:
    """A curve from box to box; beside one another those to the left go around below."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    half, label = HEIGHT / 2, ""
    if down:
        step = half if y1 > y0 else -half
        points = [(x0, y0 + step), *points[1:-1], (x1, y1 - step)]
        path = f"M{x0:.1f} {y0 + step:.1f}"
        for (xa, ya), (xb, yb) in pairwise(points):
            path += f"C{xa:.1f} {ya + step:.1f} {xb:.1f} {yb - step:.1f} {xb:.1f} {yb:.1f}"
    elif x1 > x0:
        path = f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"
    else:
        low = y0 + 2.4 * HEIGHT
        path = f"M{x0:.1f} {y0 + half:.1f}C{x0:.1f} {low:.1f} {x1:.1f} {low:.1f} "
        path += f"{x1:.1f} {y1 + half:.1f}"
        text = html_module.escape(edge.text)
        label = f'<text x="{(x0 + x1) / 2:.1f}" y="{y0 + 1.7 * HEIGHT:.1f}">{text}</text>'
    dashes = ' stroke-dasharray="4 3"' if edge.dotted else ""
    return f'<path class="edge" d="{path}" marker-end="url(#arrow)"{dashes}/>{label}'


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return BLOCK.sub(lambda found: draw(parse(html_module.unescape(found[1]))), html)
