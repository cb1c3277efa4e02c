"""Imports in src/ run downwards only, and never in a circle.

`MAY_IMPORT` is the architecture: a module at the top level of src/, or a package with all its
files, may import itself and what stands in its row. Imports inside of functions count, too.
"""

import ast
import graphlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

MAY_IMPORT = {
    "main": {
        "launch",
        "recording",
        "session",
        "nodes",
        "doctor",
        "playing",
        "policies",
        "analysis",
        "utils",
    },
    "api": {"recording", "session", "training", "isolation", "analysis", "utils"},
    "playing": {"policies", "assembly", "runners", "envs", "components", "analysis", "utils"},
    "policies": {"session", "assembly", "runners", "plugins", "utils"},
    "launch": {"analysis", "utils"},
    "nodes": {"doctor", "utils"},
    "doctor": {"modules", "utils"},
    "recording": {"session", "utils"},
    "session": {"training", "plugins", "utils"},
    "training": {"assembly", "runners", "components", "utils"},
    "isolation": {
        "learners",
        "controllers",
        "runners",
        "plugins",
        "modules",
        "components",
        "envs",
        "utils",
    },
    "frozen_policy": {"assembly", "utils"},
    "assembly": {"learners", "controllers", "components", "utils"},
    "learners": {"controllers", "modules", "components", "utils"},
    "controllers": {"modules", "components", "utils"},
    "runners": {"plugins", "envs", "components", "utils"},
    "plugins": {"envs", "utils"},
    "modules": {"utils"},
    "components": {"utils"},
    "envs": {"utils"},
    "analysis": {"utils"},
    "utils": set(),
}
# Under `if TYPE_CHECKING:` only: networks are told the rows of a batch, and need no batch to run.
FOR_ANNOTATIONS = {"modules": {"components"}}
# Packages from outside that a layer must do without: every environment's process would load them.
FORBIDDEN = {"envs": {"torch"}}
# (file, what it imports): upwards, and why that is so.
EXCEPTIONS = {
    # Trained opponents are a controller that acts inside of the environment, named there as the
    # registry names environments: imported only by battles against them.
    ("envs/magent_battle.py", "frozen_policy"),
    # VMAS' worlds are tensors: imported only by those who ask for them.
    ("envs/vmas.py", "torch"),
}


class Import(NamedTuple):
    """`from module import name`, or `import module` (then there is no name)."""

    module: str
    name: str | None
    line: int
    annotation: bool  # under `if TYPE_CHECKING:`


def sources():
    """Every file of src/ -> its source."""
    return {path.relative_to(SRC).as_posix(): path.read_text() for path in SRC.rglob("*.py")}


@cache
def imports(source):
    """All import statements, wherever they stand."""

    def walk(node, annotation):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno, annotation) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name their package in full"
            yield from (
                Import(node.module, alias.name, node.lineno, annotation) for alias in node.names
            )
        guard = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from walk(child, annotation or (guard and child in node.body))

    return list(walk(ast.parse(source), annotation=False))


@cache
def named(source):
    """What `Lazy("module", "name")` imports once it is called."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        Import(module, name, call.lineno, annotation=False)
        for call in calls
        if ast.unparse(call.func) == "Lazy"
        for module, name in [map(ast.literal_eval, call.args)]
    ]


def layer_of(file):
    return file.partition("/")[0].removesuffix(".py")


def upward(files):
    """(file, line, what is imported) of each import that the tables do not allow."""
    found = []
    for file, source in files.items():
        layer = layer_of(file)
        for one in (*imports(source), *named(source)):
            to = one.module.partition(".")[0]
            allowed = {layer} | MAY_IMPORT[layer]
            if one.annotation:
                allowed |= FOR_ANNOTATIONS.get(layer, set())
            if (to in MAY_IMPORT and to not in allowed) or to in FORBIDDEN.get(layer, ()):
                found.append((file, one.line, to))
    return sorted(found)


def circle(files):
    """The files of one circle of imports; empty if there is none. What only annotations need is not
    imported when the program runs.
    """

    def file_of(module):
        path = module.replace(".", "/")
        return next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in files), None)

    graph = {}
    for file, source in files.items():
        runtime = [one for one in imports(source) if not one.annotation]
        targets = {file_of(f"{one.module}.{one.name}") or file_of(one.module) for one in runtime}
        graph[file] = targets - {None}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def needed(graph):
    """(from, to) of a graph without circles, but for those that follow from others: where there is
    a way round, it is enough.
    """

    def below(layer):
        return graph[layer].union(*map(below, graph[layer]))

    return {
        (layer, to)
        for layer, targets in graph.items()
        for to in targets
        if not any(to in below(other) for other in targets - {to})
    }


def picture(page):
    """The arrows of the picture of the layers: solid ones, dotted ones."""
    section = page.partition("\n## The layers\n")[2].partition("\n## ")[0]
    (chart,) = re.findall(r"```mermaid\nflowchart TD\n(.*?)```", section, re.DOTALL)
    arrows = {"-->": set(), "-.->": set()}
    for line in chart.splitlines():
        start, arrow, end = re.fullmatch(r" +([\w &]+) (-->|-\.->) ([\w &]+)", line).groups()
        arrows[arrow] |= {(one, to) for one in start.split(" & ") for to in end.split(" & ")}
    return arrows["-->"], arrows["-.->"]


def test_the_picture_shows_the_table():
    solid, dotted = picture((ROOT / "docs" / "architecture.md").read_text())
    assert solid == needed(MAY_IMPORT), "the picture in docs/architecture.md has other arrows"
    upwards = {(layer_of(file), to) for file, to in EXCEPTIONS if to in MAY_IMPORT}
    assert dotted == upwards | {(one, to) for one, all_ in FOR_ANNOTATIONS.items() for to in all_}


@pytest.mark.parametrize(
    ("graph", "arrows"),
    [
        ({"a": {"b"}, "b": set()}, {("a", "b")}),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, {("a", "b"), ("b", "c")}),
        # All of the way round counts, not its first step alone.
        (
            {"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set()},
            {("a", "b"), ("b", "c"), ("c", "d")},
        ),
        (
            {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()},
            {*map(tuple, ["ab", "ac", "bd", "cd"])},
        ),
    ],
)
def test_arrows_that_follow_from_others_are_left_out(graph, arrows):
    assert needed(graph) == arrows


def test_a_picture_with_another_arrow_is_noticed():
    page = (ROOT / "docs" / "architecture.md").read_text()
    solid, dotted = picture(page)
    more, _ = picture(page.replace("    plugins --> envs\n", "    plugins --> envs & learners\n"))
    assert more - solid == {("plugins", "learners")}
    less, none = picture(page.replace("    modules -.-> components\n", ""))
    assert (less, dotted - none) == (solid, {("modules", "components")})


def test_every_module_has_its_layer():
    assert {layer_of(file) for file in sources()} == set(MAY_IMPORT)
    assert not set(MAY_IMPORT) & set(sys.stdlib_module_names)


def test_the_layers_lie_one_above_the_other():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_imports_run_downwards_only():
    found = upward(sources())
    assert [one for one in found if (one[0], one[2]) not in EXCEPTIONS] == []
    assert {(file, to) for file, _, to in found} == EXCEPTIONS, "an exception that is not needed"


def test_imports_form_no_circle():
    assert circle(sources()) == []


@pytest.mark.parametrize(
    ("file", "line", "to"),
    [
        ("utils/registry.py", "import envs.worker", "envs"),
        ("envs/worker.py", "def load():\n    from plugins import load_plugins", "plugins"),
        ("envs/serial.py", "import torch", "torch"),
        ("components/steps.py", "from controllers.basic_controller import BasicMAC", "controllers"),
        ("modules/layers.py", "from components.steps import Steps", "components"),
        (
            "modules/layers.py",
            "if TYPE_CHECKING:\n    from learners.base import Learner",
            "learners",
        ),
        ("learners/q_learner.py", "from envs import REGISTRY", "envs"),
        ("analysis/runs.py", "import training", "training"),
        ("envs/gymma.py", "later = Lazy('controllers.n_controller', 'NMAC')", "controllers"),
    ],
)
def test_an_upward_import_is_found(file, line, to):
    files = sources()
    before = upward(files)
    files[file] += f"\n{line}\n"
    new = set(upward(files)) - set(before)
    assert {(where, what) for where, _, what in new} == {(file, to)}


def test_an_import_for_annotations_may_reach_the_components():
    files = sources()
    before = upward(files)
    files["modules/layers.py"] += (
        "\nif typing.TYPE_CHECKING:\n    from components.steps import Steps\n"
    )
    assert upward(files) == before


@pytest.mark.parametrize(
    "line", ["from envs.subproc import SubprocVectorEnv", "def f():\n    import envs.subproc"]
)
def test_a_circle_is_found(line):
    files = sources()
    files["envs/adapter.py"] += f"\n{line}\n"
    assert {"envs/adapter.py", "envs/subproc.py"} <= set(circle(files))
