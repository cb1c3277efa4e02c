"""A report as one HTML file that needs no network: figures, scripts, styles, films are in it."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from analysis.document import Film, Section, Table
from analysis.interactive import DARK
from utils.errors import MissingPackage

_ASSETS = Path(__file__).parent / "assets"
_COLOURS = Path(__file__).parent / "dashboard" / "assets" / "colours.css"
_FILMS = 24_000_000  # [bytes] of films that go into a page
_KINDS = {".gif": "image/gif", ".mp4": "video/mp4"}
_NUMBER = re.compile(r"[-+]?\d|-$|never|\?$")


def plotly_script() -> str:
    """Plotly's JavaScript, which travels inside the page.

    Raises:
        MissingPackage: the package plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "report --html needs the package plotly: pip install -r requirements-dashboard.txt"
        ) from error
    return get_plotlyjs()


def page(section: Section, script: str) -> str:
    """The document as a page.

    Args:
        section: the root; its children become the page's contents.
        script: of `plotly_script`.
    """
    figures: list[Any] = []
    left = [_FILMS]

    def numbered(figure: dict[str, Any]) -> int:
        figures.append(figure)
        return len(figures) - 1

    def embedded(film: Film) -> str:
        size = film.file.stat().st_size
        if size > left[0]:
            return ""
        left[0] -= size
        content = base64.b64encode(film.file.read_bytes()).decode()
        return f"data:{_KINDS[film.file.suffix]};base64,{content}"

    environment = Environment(loader=FileSystemLoader(_ASSETS), autoescape=True)
    environment.filters.update(
        words=_words,
        plain=lambda text: re.sub(r" \(?`[^`]*`\)?", "", text),
        number_columns=_number_columns,
        numbered=numbered,
        embedded=embedded,
    )
    return environment.get_template("report.html").render(
        page=section,
        style=Markup(_read(_COLOURS) + _read(_ASSETS / "report.css")),
        figures=lambda: _json(figures),  # known when the page's body is there
        dark=_json(DARK),
        plotly=_script(script),
        script=_script(_read(_ASSETS / "report.js")),
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _words(text: str) -> Markup:
    """A text whose parts in backticks are code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def _number_columns(table: Table) -> set[int]:
    """Indices of the columns that hold numbers only."""
    return {
        i
        for i in range(len(table.head))
        if table.rows and all(_NUMBER.match(row[i]) for row in table.rows)
    }


def _json(content: Any) -> Markup:
    """JSON that may stand inside of a script element, numbers with six digits."""
    text = json.dumps(_rounded(content), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_rounded(value) for value in content]
    return content


def _script(text: str) -> Markup:
    if "</script" in text.lower():
        text = re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE)
    return Markup(text)
