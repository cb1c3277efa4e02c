"""The yaml files of configurations: their names, reading them, and what they inherit.

A file may have one parent, `inherits: NAME` (a file of the same folder in `config/`) or
`inherits: PATH` (relative to the file that says so), and so may its parent. A child's entries win,
mappings are merged. Files whose name begins with `_` are parents only: they are not listed, and
`--config` and `--env-config` do not know their names.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError
from utils.registry import nearest

CONFIG_DIR = Path(__file__).resolve().parents[1] / "config"
KINDS = {"algs": "algorithm", "envs": "environment", "scenarios": "scenario"}
SUFFIXES = (".yaml", ".yml", ".json")
INHERITS = "inherits"
_log = logging.getLogger(__name__)
_OWN = ("name", "env_config")  # a file's children do not get these from it


# --- One file ---


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-5` as a number (PyYAML wants `1.0e-5`) and tells where a key is
    given twice with different values. The last one counts, as in PyYAML.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[object, yaml.Node] = {}
        for key_node, value_node in node.value:
            if (
                not isinstance(key_node, yaml.ScalarNode)
                or key_node.tag == "tag:yaml.org,2002:merge"
            ):
                continue
            key = self.construct_object(key_node)
            before = seen.get(key)
            seen[key] = value_node
            if before is not None and _written(before) != _written(value_node):
                _log.warning(
                    "%s, line %d: key '%s' twice with different values; this one counts",
                    self.name,
                    key_node.start_mark.line + 1,
                    key,
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _written(node: yaml.Node) -> str:
    """What a value says, whatever its quotation marks."""
    if isinstance(node, yaml.ScalarNode):
        return f"{node.tag} {node.value}"
    return yaml.serialize(node)


def _load_yaml(text: str, path: Path) -> Any:
    loader = _Loader(text)
    loader.name = str(path)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_file(path: Path) -> dict[str, Any]:
    """Reads a yaml or json file with one mapping in it, without what it inherits.

    Raises:
        ConfigError: the file cannot be read or is not such a mapping; the message names file and
            line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _load_yaml(text, path)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not a text file ({exc.reason} at byte {exc.start})") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path}, line {exc.lineno}: {exc.msg}") from exc
    except (RecursionError, MemoryError) as exc:
        raise ConfigError(f"{path}: nested too deeply") from exc
    except ValueError as exc:  # a date that is none, a number of thousands of digits
        raise ConfigError(f"{path}: {exc}") from exc
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)  # absent from errors about a single character
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(exc, "problem", None) or str(exc)
        raise ConfigError(f"{path}{where}: {' '.join(what.split())}") from exc
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            f"{path}: expected lines of the form 'key: value', got {type(content).__name__}"
        )
    check_size(content, str(path))
    return content


_DEEPEST = 40  # levels of nesting
_MOST = 100_000  # values, those that are shared (`*alias`) counted wherever they stand


def check_size(content: object, where: str) -> None:
    """Refuses what would grow beyond all measure when it is written out.

    Raises:
        ConfigError: nested too deeply, or within itself; a few lines that mean millions of values.
    """
    sizes: dict[int, int] = {}

    def size(value: object, depth: int) -> int:
        if depth > _DEEPEST:
            raise ConfigError(f"{where}: nested more than {_DEEPEST} levels deep, or in itself")
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) not in sizes:
            items = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(item, depth + 1) for item in items)
        return sizes[id(value)]

    count = size(content, 0)
    if count > _MOST:
        raise ConfigError(f"{where}: means {count} values, {_MOST} are the most")


# --- Names ---


def list_configs(kind: str) -> dict[str, str]:
    """Names of the algorithms (`kind="algs"`), environments (`"envs"`) or scenarios
    (`"scenarios"`), with the first comment line of their file.
    """
    listed = {}
    for path in sorted((CONFIG_DIR / kind).glob("*.yaml")):
        if path.stem.startswith("_"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        listed[path.stem] = next(
            (line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), ""
        )
    return listed


def find_config(kind: str, name: str) -> Path:
    """The file of an algorithm, environment or scenario: a name from `config/KIND/`, or the path of
    a yaml file.

    Raises:
        ConfigError: there is no such file.
    """
    if _is_path(name):
        path = Path(name).expanduser()
        if not os.path.isfile(path):
            raise ConfigError(f"no such file: {name[:200]}")
        return path
    path = CONFIG_DIR / kind / f"{name}.yaml"
    if not name or name.startswith("_") or not os.path.isfile(path):
        hint = nearest(name, list_configs(kind))
        raise ConfigError(f"unknown {KINDS[kind]} '{name[:200]}'; {hint}")
    return path


def shown_path(path: Path) -> str:
    """A path for people: of a shipped file as it stands in `config/` (`algs/qmix.yaml`)."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(CONFIG_DIR) if absolute.is_relative_to(CONFIG_DIR) else path)


def _is_path(name: str) -> bool:
    return name.endswith(SUFFIXES) or os.sep in name


# --- Inheritance ---


def load_chain(path: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """A file and all that it inherits from, the root first, each with its own entries.

    Args:
        path: the file at the end of the chain.
        kind: "algs", "envs" or "scenarios": where parents are that are given by name.

    Raises:
        ConfigError: a file of the chain cannot be read, a parent is unknown, a file inherits from
            itself.
    """
    content = read_file(path)
    chain = [(path, content)]
    while INHERITS in content:
        child, name = chain[-1][0], content.pop(INHERITS)
        parent = _find_parent(name, child, kind)
        if any(parent.samefile(one) for one, _ in chain):
            names = " -> ".join([*(one.stem for one, _ in chain), parent.stem])
            raise ConfigError(f"{path}: a file must not inherit from itself: {names}")
        content = read_file(parent)
        for key in _OWN:
            content.pop(key, None)
        chain.append((parent, content))
    return chain[::-1]


def load_file(path: Path, kind: str = "") -> dict[str, Any]:
    """A yaml or json file with all that it inherits.

    Args:
        path: the file.
        kind: as for `load_chain`; the name of the file's folder, if not given.

    Raises:
        ConfigError: as for `load_chain`.
    """
    merged: dict[str, Any] = {}
    for _, content in load_chain(path, kind or path.resolve().parent.name):
        _merge(merged, content)
    return merged


def _find_parent(name: object, child: Path, kind: str) -> Path:
    """The file that `inherits: NAME` means in the file `child`."""
    if not isinstance(name, str) or not name:
        shown = "null" if name is None else repr(name)
        raise ConfigError(f"{child}: {INHERITS} must be a name or a path, got {shown}")
    if _is_path(name):
        path, what = child.parent / Path(name).expanduser(), "file"
        files = (one.name for one in path.parent.glob("*") if one.suffix in SUFFIXES)
        known = [os.path.join(os.path.dirname(name), file) for file in files]
    else:
        path, what = CONFIG_DIR / kind / f"{name}.yaml", KINDS.get(kind, "file")
        known = [one.stem for one in path.parent.glob("*.yaml")]
    if not os.path.isfile(path):
        raise ConfigError(f"{child}: {INHERITS}: unknown {what} '{name}'; {nearest(name, known)}")
    return path


def _merge(target: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)
