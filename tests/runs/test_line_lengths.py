"""Lines have at most 100 characters: those of Python, and those of prose in Markdown."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "experiments", "benchmarks", "docs")
LONGEST = 100


def too_long(text, markdown):
    """Numbers of the lines that are too long and could be wrapped.

    A single word cannot (a link, a path). In Markdown neither can tables, headings, HTML and code.
    """
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        content = line.lstrip(" -*>")
        is_fence = markdown and content.startswith("```")
        fenced ^= is_fence
        whole = fenced or is_fence or (markdown and content.startswith(("|", "#", "<")))
        if len(line) > LONGEST and not whole and len(content.split()) > 1:
            found.append(number)
    return found


def files(suffix):
    nested = [path for folder in FOLDERS for path in (ROOT / folder).rglob(f"*{suffix}")]
    return [*ROOT.glob(f"*{suffix}"), *nested]


@pytest.mark.parametrize("suffix", [".md", ".py"])
def test_lines_are_not_too_long(suffix):
    found = {
        path.relative_to(ROOT).as_posix(): too_long(path.read_text(), suffix == ".md")
        for path in files(suffix)
    }
    assert len(found) > 5
    assert {name: lines for name, lines in found.items() if lines} == {}


WORDS = "word " * 25


@pytest.mark.parametrize(
    ("text", "markdown", "lines"),
    [
        (WORDS, True, [1]),
        (f"short\n\n- {WORDS}", True, [3]),
        (f"> {WORDS}", True, [1]),
        (WORDS[:LONGEST], True, []),
        (f"| {WORDS} |\n# {WORDS}\n<p>{WORDS}", True, []),
        (f"```bash\n{WORDS}\n```\n{WORDS}", True, [4]),
        (f"- [{'x' * 120}](y)", True, []),
        (f"# {WORDS}", False, [1]),
        (f"    {'x' * 120}", False, []),
    ],
)
def test_what_counts_as_too_long(text, markdown, lines):
    assert too_long(text, markdown) == lines
