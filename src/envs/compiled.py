"""numba's cache on the disk, for compiled functions that need more than their own file.

numba compiles a cached function anew when the file it stands in has changed, and looks at no other:
functions and constants of other files, which are frozen into the machine code, would stay as they
were. `kernel` makes a digest of all these files part of the cache's key.
"""

from __future__ import annotations

import ast
import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

SIMULATOR = "envs.starcraft"
OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}

_log = logging.getLogger(__name__)


def kernel(function: Callable[..., Any]) -> Any:
    """Decorator: compiles a function that fills arrays; compiled anew when any file changes on
    which it may depend (see `sources`).

    It runs outside of Python's lock and must not allocate: counting references to the arrays that
    it passes on would take most of the time of the rules of SMAC and of the simulator.
    """
    dispatcher = njit(**OPTIONS)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


class _Cache(FunctionCache):
    """numba's cache, with the digest of all sources in its key."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._module = function.__module__
        self._file = Path(function.__code__.co_filename)
        self._root = self._file.parents[function.__module__.count(".")]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, None where it has to be compiled; the first time that is said."""
        found = super().load_overload(sig, target_context)
        if found is None:
            announce(".".join(self._module.split(".")[:2]))
        return found

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), digest(self._file, self._root))


@cache
def announce(part: str) -> None:
    """Says why nothing seems to happen; once, for there are many functions in a part.

    Args:
        part: the module or package that is compiled, e.g. envs.starcraft.
    """
    if part == SIMULATOR:
        _log.info("compiling the simulator, once, about a minute")
    else:
        _log.info("compiling %s, once, a few seconds", part)


@cache
def digest(file: Path, root: Path) -> str:
    """Of the contents of `sources`."""
    return hashlib.sha256(b"\0".join(one.read_bytes() for one in sources(file, root))).hexdigest()


def sources(file: Path, root: Path) -> list[Path]:
    """A file, those of its package below `root` that it imports, directly or not, and the JSON
    files in folders `data` beside them (constants may be read from there).

    A package's `__init__.py` counts where names are imported from the package itself.
    """
    package = file.relative_to(root).with_suffix("").parts[0]
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _imported(one, root, package)
    data = {json for folder in {one.parent for one in found} for json in folder.glob("data/*.json")}
    return sorted(found | data)


def _imported(file: Path, root: Path, package: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == package:
                module = root.joinpath(*parts)
                choices = (module.with_suffix(".py"), module / "__init__.py")
                yield from (path for path in choices if path.is_file())
