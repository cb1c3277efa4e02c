"""What a report consists of, before it becomes Markdown or HTML: sections of paragraphs, lists,
tables and figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Table:
    """A table of texts.

    Attributes:
        head: names of the columns.
        rows: their cells.
        folded: a long table can be folded away under this line.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


@dataclass
class Figure:
    """A figure.

    Attributes:
        title: what it shows.
        files: the same figure as pictures.
        plots: the same figure as Plotly's dictionaries, one for each panel.
        legend: label, colour and dash pattern (`solid` or lengths) of each group.
        width: of a panel: empty for a third of a wide page, `small` for a quarter, `wide` for as
            much as there is room.
    """

    title: str
    files: Sequence[Path] = ()
    plots: Sequence[dict[str, Any]] = ()
    legend: Sequence[tuple[str, str, str]] = ()
    width: str = ""


@dataclass
class Film:
    """A film of a policy.

    Attributes:
        title: whose it is.
        file: where it is.
        note: why it is not shown, empty where it is.
    """

    title: str
    file: Path
    note: str = ""


Part = str | list[str] | Table | Figure | Film  # a list is a list of points


@dataclass
class Section:
    """A part of the report with a title. Texts may hold `code` in backticks."""

    title: str
    parts: list[Part] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def markdown(section: Section, depth: int = 1) -> str:
    """The document as Markdown; figures are links to their files."""
    return "\n".join(_lines(section, depth)) + "\n"


def _lines(section: Section, depth: int) -> Iterator[str]:
    yield from (f"{'#' * depth} {section.title}", "")
    for part in section.parts:
        yield from _part(part)
        yield ""
    for child in section.sections:
        yield from _lines(child, depth + 1)


def _part(part: Part) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        yield from (f"- {point}" for point in part)
    elif isinstance(part, Table):
        if part.folded:
            yield from (f"{part.folded}:", "")
        yield from markdown_table(part.head, part.rows)
    elif isinstance(part, Film):
        yield f"[{part.title}]({part.file.as_posix()}){f' ({part.note})' if part.note else ''}"
    else:
        shown = next((file for file in part.files if file.suffix in (".png", ".svg")), None)
        if shown is not None:
            yield from (f"![{part.title}]({shown.name})", "")
        links = [file for file in part.files if file != shown]
        yield ", ".join(f"[{file.suffix[1:].upper()}]({file.name})" for file in links)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
