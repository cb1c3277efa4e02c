"""Flowcharts of the documentation become SVG when the site is built."""

import html
import re
from pathlib import Path

import mkdocs_hooks
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
SOURCES = re.findall(r"```mermaid\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_form_is_read():
    chart = mkdocs_hooks.parse(
        'flowchart TD\n  a & b --> c\n  c[see] --> d["two words"] -- says --> a\n  d -.-> b\n'
    )
    assert chart.down
    assert chart.nodes == {"a": "a", "b": "b", "c": "see", "d": "two words"}
    assert [(e.start, e.end, e.dotted, e.text) for e in chart.edges] == [
        ("a", "c", False, ""),
        ("b", "c", False, ""),
        ("c", "d", False, ""),
        ("d", "a", False, "says"),
        ("d", "b", True, ""),
    ]
    assert chart.ranks() == {"a": 0, "b": 0, "c": 1, "d": 2}


@pytest.mark.parametrize(
    "source", ["graph TD\n a --> b", "flowchart TD\n a(b) --> c", "flowchart LR\n a ==> b"]
)
def test_other_forms_are_refused(source):
    with pytest.raises(ValueError, match="mermaid"):
        mkdocs_hooks.parse(source)


@pytest.mark.parametrize("source", SOURCES, ids=["layers", "data flow"])
def test_every_box_and_arrow_is_drawn(source):
    page = f'<p>x</p><pre class="mermaid"><code>{html.escape(source)}</code></pre>'
    drawn = mkdocs_hooks.on_page_content(page, page=None, config=None, files=None)
    chart = mkdocs_hooks.parse(source)
    assert drawn.startswith("<p>x</p><svg ")
    assert "mermaid" not in drawn
    texts = re.findall(r"<text [^>]*>(.*?)</text>", drawn)
    assert set(chart.nodes.values()) <= set(texts)
    assert drawn.count('class="edge"') == len(chart.edges)
    assert drawn.count("stroke-dasharray") == sum(edge.dotted for edge in chart.edges)


def test_arrows_go_around_boxes():
    """From the first to the last of three ranks, past the box between."""
    chart = mkdocs_hooks.parse("flowchart TD\n a --> b --> c\n a --> c")
    drawn = mkdocs_hooks.draw(chart)
    boxes = re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', drawn)
    left, top, width, height = map(float, boxes[1])
    path = re.findall(r'class="edge" d="(.*?)"', drawn)[2]
    points = [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", path)]
    between = [x for x, y in points if abs(y - (top + height / 2)) < 1]
    assert between
    assert all(not left <= x <= left + width for x in between)
