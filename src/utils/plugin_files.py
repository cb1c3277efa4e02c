"""Plug-in files: under which name one is imported, and where its own imports are looked for.

A file of a fork of PyMARL (`FORK/controllers/my_controller.py`) is a member of the package that its
folder is named after, so its relative imports mean this laboratory's modules, and what only the
fork has (`FORK/modules/layer/my_layer.py`) is found there. A file of a folder of one's own may
import its neighbours, relatively too.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from utils.errors import ConfigError

SRC = Path(__file__).resolve().parents[1]
# PyMARL's packages, which are this laboratory's, too.
PACKAGES = ("components", "controllers", "envs", "learners", "modules", "runners", "utils")
# What the parts of a run have in common stays this laboratory's, whatever plug-ins bring.
_COMMON = ("components.", "envs.", "utils.")


class _Beside(MetaPathFinder):
    """Finds what this laboratory's packages lack: beside the plug-ins.

    Attributes:
        places: (package, folder in which further modules of it are).
    """

    def __init__(self) -> None:
        self.places: list[tuple[str, Path]] = []

    def add(self, package: str, folder: Path) -> None:
        if (package, folder) not in self.places:
            self.places.append((package, folder))
        if self not in sys.meta_path:
            sys.meta_path.append(self)  # last: asked for what nobody else has

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for package, folder in self.places:
            if not fullname.startswith(f"{package}."):
                continue
            found = folder.joinpath(*fullname.removeprefix(f"{package}.").split("."))
            if found.with_suffix(".py").is_file():
                return importlib.util.spec_from_file_location(fullname, found.with_suffix(".py"))
            if found.is_dir():
                init = found / "__init__.py"
                spec = ModuleSpec(fullname, None, is_package=True)
                if init.is_file():
                    return importlib.util.spec_from_file_location(
                        fullname, init, submodule_search_locations=[str(found)]
                    )
                spec.submodule_search_locations = [str(found)]
                return spec
        return None


BESIDE = _Beside()


def import_file(path: Path) -> ModuleType:
    """Imports a plug-in file, once.

    Raises:
        ConfigError: there is no such file.
        Exception: what the file raises.
    """
    if not path.is_file():
        raise ConfigError(f"plugins: no such file: {path}")
    importlib.invalidate_caches()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for the files beside it
    package = _home(path)
    if package is not None:
        _look_beside(path, package)
    relative = _relative_imports(path)
    if relative and package is None:
        if (path.parent / "__init__.py").is_file():
            return _import_member(path)
        package = _package_with(path, relative)
        if package is not None:
            BESIDE.add(package, path.parent)
        else:
            package = _package_of(path.parent)
    return _load(path, package if relative else None)


def stem_of(module: ModuleType) -> str:
    """What a plug-in's file, or package, is called."""
    file = getattr(module, "__file__", None)
    if file is None or Path(file).stem == "__init__":
        return module.__name__.rpartition(".")[2]
    return Path(file).stem


def home_of(module: ModuleType) -> str:
    """Of which of this laboratory's packages a plug-in is a member; "" if of none."""
    file = getattr(module, "__file__", None)
    return (_home(Path(file)) if file else None) or ""


def stands_for(module: ModuleType) -> str | None:
    """The module of this laboratory that a plug-in has the place and the name of; None if it has
    none, or may not replace it.
    """
    package = home_of(module) or module.__name__.rpartition(".")[0]
    name = f"{package}.{stem_of(module)}"
    return name if _is_ours(name) and not name.startswith(_COMMON) else None


@contextmanager
def standing_in(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Within the block, imports of these names give these modules."""
    before = {name: importlib.import_module(name) for name in modules}
    try:
        _put(modules)
        yield
    finally:
        _put(before)


def not_taken(module: ModuleType, replaced: Mapping[str, ModuleType]) -> list[str]:
    """What a plug-in of a fork imports that both the fork and this laboratory have: it gets this
    laboratory's, except for the modules that are `replaced`.
    """
    path = Path(module.__file__ or "")
    package = _home(path)
    if package is None:
        return []
    root = path.parents[package.count(".") + 1]
    names = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            names.add(
                ".".join([*(base if node.level else []), *([node.module] if node.module else [])])
            )
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    both = (name for name in names if name.split(".")[0] in PACKAGES and name not in replaced)
    return sorted(
        name
        for name in both
        if root.joinpath(*name.split(".")).with_suffix(".py").is_file() and _is_ours(name)
    )


# --- Which package ---


def _home(path: Path) -> str | None:
    """The package that the folders of a file are named after: `FORK/modules/mixers/x.py` is in
    `modules.mixers`.
    """
    folders = path.resolve().parent.parts
    starts = [i for i, folder in enumerate(folders) if folder in PACKAGES]
    if not starts or path.resolve().is_relative_to(SRC):
        return None
    return ".".join(folders[starts[-1] :])


def _look_beside(path: Path, package: str) -> None:
    root = path.resolve().parents[package.count(".") + 1]
    for name in PACKAGES:
        if (root / name).is_dir():
            BESIDE.add(name, root / name)


def _package_with(path: Path, relative: set[str]) -> str | None:
    """The package of this laboratory that has what a file imports relatively and its folder
    lacks.
    """
    missing = [
        name
        for name in relative
        if not (path.parent / f"{name}.py").is_file() and not (path.parent / name).is_dir()
    ]
    if not missing:
        return None
    for init in sorted(SRC.glob("*/**/__init__.py")):
        package = ".".join(init.parent.relative_to(SRC).parts)
        if package.split(".")[0] in PACKAGES and all(_is_ours(f"{package}.{x}") for x in missing):
            return package
    return None


def _package_of(folder: Path) -> str:
    """A package that a folder without `__init__.py` becomes."""
    name = _free_name(re.sub(r"\W", "_", folder.name) or "plugins", folder)
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _import_member(path: Path) -> ModuleType:
    """A file of a package of one's own, `__init__.py` and all."""
    root = path.parent
    while (root.parent / "__init__.py").is_file():
        root = root.parent
    if str(root.parent) not in sys.path:
        sys.path.append(str(root.parent))
    return importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))


# --- Names, loading ---


def _load(path: Path, package: str | None) -> ModuleType:
    if package is not None:
        importlib.import_module(package.partition(".")[0])
    name = _free_name(path.stem if package is None else f"{package}.{path.stem}", path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _free_name(name: str, path: Path) -> str:
    """`name`, or one that nobody else has if another module is called so."""
    found = sys.modules.get(name)
    if found is None:
        spec = None if _is_ours(name) else _spec(name)
        taken = _is_ours(name) or (spec is not None and not _same(spec.origin, path))
    else:
        places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
        taken = not any(_same(place, path) for place in places)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"{name}_{digest}" if taken else name


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _same(place: object, path: Path) -> bool:
    return isinstance(place, str) and Path(place).resolve() == path


def _is_ours(name: str) -> bool:
    file = SRC.joinpath(*name.split("."))
    return file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()


def _put(modules: Mapping[str, ModuleType]) -> None:
    for name, module in modules.items():
        sys.modules[name] = module
        package, _, last = name.rpartition(".")
        setattr(importlib.import_module(package), last, module)


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # importing it says more
        return ast.Module(body=[], type_ignores=[])


def _relative_imports(path: Path) -> set[str]:
    """First names of the modules that a file imports from its own package; empty if it imports
    nothing relatively.
    """
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module:
                found.add(node.module.partition(".")[0])
            else:
                found |= {alias.name for alias in node.names}
    return found
