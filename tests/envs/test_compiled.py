"""numba's cache sees changes in all files that a compiled function depends on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from envs.compiled import announce, digest, sources
from envs.starcraft import opponents, smac_hard
from envs.starcraft.sim import kernels
from envs.starcraft.smac import observations, orders, rewards

SRC = Path(kernels.__file__).parents[3]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four files, of which one is not used, with data; read anew for each test."""
    files = {
        "compiled_toys/__init__.py": "",
        "compiled_toys/constants.py": "FACTOR = 2\n",
        "compiled_toys/deep/__init__.py": "",
        "compiled_toys/deep/helper.py": "from numba import njit\n"
        "from compiled_toys import constants\n\n\n"
        "@njit\ndef scaled(x):\n    return constants.FACTOR * x\n",
        "compiled_toys/other.py": "",
        "compiled_toys/main.py": "from envs.compiled import kernel\n"
        "from compiled_toys.deep.helper import scaled\n\n\n"
        "@kernel\ndef run(x):\n    return scaled(x) + 1\n",
        "compiled_toys/deep/data/facts.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load():
        for name in [name for name in sys.modules if name.split(".")[0] == "compiled_toys"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        digest.cache_clear()
        return importlib.import_module("compiled_toys.main").run

    load.folder = tmp_path / "compiled_toys"
    yield load
    for name in [name for name in sys.modules if name.split(".")[0] == "compiled_toys"]:
        del sys.modules[name]


def write(path: Path, text: str) -> None:
    """As an editor, later than the compiled Python of the old text."""
    path.write_text(text)
    for old in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        old.unlink()


def test_a_changed_dependency_is_compiled_anew(package):
    run = package()
    assert run(3) == 7
    assert sum(run.stats.cache_misses.values()) == 1
    run = package()
    assert run(3) == 7
    assert sum(run.stats.cache_hits.values()) == 1
    write(package.folder / "constants.py", "FACTOR = 5\n")
    run = package()
    assert run(3) == 16
    assert sum(run.stats.cache_misses.values()) == 1


def test_compiling_is_announced_once(package, caplog):
    announce.cache_clear()
    caplog.set_level("INFO", "envs.compiled")
    said = "compiling compiled_toys.main, once, a few seconds"
    run = package()
    assert caplog.messages == []
    run(3)
    assert caplog.messages == [said]
    run(0.5)  # another signature, another function
    assert caplog.messages == [said]
    announce.cache_clear()
    caplog.clear()
    assert package()(3) == 7  # from the disk
    assert caplog.messages == []
    announce("envs.starcraft")
    assert caplog.messages == ["compiling the simulator, once, about a minute"]


def test_which_changes_count(package):
    main = package.folder / "main.py"
    names = ["constants.py", "deep/data/facts.json", "deep/helper.py", "main.py"]
    found = sources(main, package.folder.parent)
    assert [one for one in found if one.name != "__init__.py"] == [
        package.folder / name for name in names
    ]
    before = digest(main, package.folder.parent)
    for name, counts in [*((name, True) for name in names), ("other.py", False)]:
        path = package.folder / name
        text = path.read_text()
        path.write_text(text + "\n")
        digest.cache_clear()
        assert (digest(main, package.folder.parent) != before) == counts, name
        path.write_text(text)


def test_starcraft_kernels_know_their_sources():
    for module, needs in [
        (kernels, ("sim/state.py", "sim/actions.py", "sim/tables.py", "battle.py", "facts.py")),
        (orders, ("smac/rules.py", "options.py", "battle.py", "facts.py", "data/units.json")),
        (observations, ("smac/rules.py", "smac/orders.py", "options.py")),
        (rewards, ("smac/rules.py", "options.py")),
        (opponents, ("options.py", "battle.py", "sim/tables.py")),
        (smac_hard, ("options.py", "battle.py", "facts.py", "data/units.json")),
    ]:
        found = set(sources(Path(module.__file__), SRC))
        wanted = {SRC / "envs" / "starcraft" / name for name in needs}
        assert wanted <= found, module
        assert SRC / "envs" / "starcraft" / "env.py" not in found
