"""Plug-ins from outside the tree (config key `plugins`): imported, and what they define is
registered by interface.

Registries are looked up by name when a plug-in needs them, so that a process with environments does
not load the learners, and torch with them.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from envs import VECTOR_REGISTRY, Lazy, Single, register_vector
from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import VectorEnv
from utils.errors import ConfigError
from utils.plugin_files import home_of, import_file, not_taken, standing_in, stands_for, stem_of
from utils.registry import Registry

_log = logging.getLogger(__name__)

_imported: set[str] = set()  # what has been said of them needs not be said again

_ENV_METHODS = ("step", "reset", "get_obs", "get_state", "get_avail_actions", "get_env_info")


@dataclass(frozen=True)
class _Kind:
    """A kind of plug-in: its name in words and where its registry is."""

    words: str
    package: str
    registry: str = "REGISTRY"

    def load(self) -> Registry:
        return getattr(importlib.import_module(self.package), self.registry)


_VECTOR_ENV = _Kind("batched environment", "envs", "VECTOR_REGISTRY")
_ENV = _Kind("environment", "envs")
_LEARNER = _Kind("learner", "learners")
_CONTROLLER = _Kind("controller", "controllers")
_RUNNER = _Kind("runner", "runners")
_SELECTOR = _Kind("action selector", "components.action_selectors")
_AGENT = _Kind("agent", "modules.agents")
_MIXER = _Kind("mixer", "modules.mixers")
_CRITIC = _Kind("critic", "modules.critics")
_ALL = (_VECTOR_ENV, _ENV, _LEARNER, _CONTROLLER, _RUNNER, _SELECTOR, _AGENT, _MIXER, _CRITIC)


def load_plugins(modules: Sequence[str]) -> None:
    """Imports plug-ins and registers the classes that they define. Loading one again changes
    nothing.

    A class is registered under its own name and, where it is the only one of its kind in its
    module, under the file's name too (`my_learner.py` -> `learner: my_learner`); under the names
    that a dict `REGISTRY` of the module gives it; and, where a class of this laboratory is called
    the same, under that one's names (`RNNAgent` -> `agent: rnn`). It takes the place of what had
    such a name before, with a line in the log. Names that the plug-in registers itself stay as they
    are. Without torch in this process (environment workers), only environments are looked for.

    A plug-in that is called as a module of this laboratory (`modules/mixers/nmix.py`) is what the
    plug-ins behind it import by that name.

    Args:
        modules: names of modules, found from the current folder too, or paths of .py files.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    if modules and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    replaced: dict[str, ModuleType] = {}
    for name in modules:
        before = _registered()
        new = name not in _imported
        with standing_in(replaced):
            module = _import(str(name))
        added = _register_all(module, str(name))
        if new and (passed := not_taken(module, replaced)):
            _log.info(
                "plugin %s imports %s: this laboratory's, not those beside it, unless these "
                "stand before it in plugins",
                name,
                ", ".join(passed),
            )
        _imported.add(str(name))
        if ours := stands_for(module):
            replaced[ours] = module
        if added:
            _log.info("plugin %s: %s", name, ", ".join(added))
        elif _registered() == before and "torch" in sys.modules and not _own_names(module):
            _log.warning("plugin %s: no learner, controller, environment, ... found in it", name)


def needed_by_environments(modules: Sequence[str]) -> list[str]:
    """Those of the loaded plug-ins that processes with environments have to load.

    Left out are the ones that define learners, controllers, networks, ... and no environment: they
    would make every worker load torch (190 MB and seconds each).
    """
    needed = []
    for name in map(str, modules):
        module = _import(name)
        kinds = {_kind_of(cls, home_of(module)) for cls in _own_classes(module)} - {None}
        if not kinds or kinds & {_ENV, _VECTOR_ENV}:
            needed.append(name)
    return needed


def loader_for_workers(modules: Sequence[str]) -> Callable[[], None] | None:
    """What processes with environments do first: it loads those plug-ins that they need.

    Returns:
        A function that can be sent to them; None if there is nothing to load.
    """
    needed = needed_by_environments(modules)
    return partial(load_plugins, needed) if needed else None


def _import(name: str) -> ModuleType:
    try:
        if name.endswith(".py") or os.sep in name:
            return import_file(Path(name).expanduser().resolve())
        return importlib.import_module(name)
    except ConfigError:
        raise
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigError(
                f"plugins: no module '{exc.name}' in {os.getcwd()} or on the Python path; "
                "give a module's dotted name or the path of a .py file"
            ) from exc
        raise ConfigError(
            f"plugins: '{name}' needs a module that is not installed: '{exc.name}'"
        ) from exc
    except Exception as exc:  # a plug-in may fail in any way while it is imported
        what = str(exc).splitlines()[0] if str(exc) else ""
        raise ConfigError(
            f"plugins: '{name}' cannot be imported: {type(exc).__name__}: {what}{_line_of(exc)}"
        ) from exc


def _line_of(exc: BaseException) -> str:
    """Where the exception was raised."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
        if trace is not None
        else ""
    )


def _own_classes(module: ModuleType) -> list[type]:
    """Public classes that are defined in the module, or in the package if it is one."""
    return [
        obj
        for name, obj in vars(module).items()
        if inspect.isclass(obj)
        and not name.startswith("_")
        and name == obj.__name__
        and not inspect.isabstract(obj)
        and (obj.__module__ == module.__name__ or obj.__module__.startswith(f"{module.__name__}."))
    ]


def _kind_of(cls: type, home: str = "") -> _Kind | None:
    """What a class is, judged by its interface; environments first, because their workers have no
    torch.

    Args:
        cls: the class.
        home: the package whose member its file is, for networks that have no name of their kind.
    """

    def has(*methods: str) -> bool:
        return all(callable(getattr(cls, method, None)) for method in methods)

    if issubclass(cls, VectorEnv):
        return _VECTOR_ENV
    if issubclass(cls, MultiAgentEnv) or has(*_ENV_METHODS):
        return _ENV
    if "torch" not in sys.modules:
        return None
    if issubclass(
        cls, sys.modules["torch"].nn.Module
    ):  # has `train` and `cuda` of its own, so before learners
        if has("init_hidden"):
            return _AGENT
        names = (cls.__name__.lower(), cls.__module__.lower())
        for kind in (_MIXER, _CRITIC):
            if kind.words in names[0] or names[1].endswith(kind.words):
                return kind
            if cls.__name__ in map(_class_name, kind.load().values()):
                return kind
        if home == _MIXER.package and "forward" in vars(cls):
            return _MIXER
        return None
    if has("train") and (has("cuda") or has("save_models")):
        return _LEARNER
    if has("init_hidden") and (has("select_actions") or has("forward", "load_state")):
        return _CONTROLLER  # PyMARL2's central one chooses no actions
    if has("select_action"):
        return _SELECTOR
    if has("run", "setup", "get_env_info"):
        return _RUNNER
    return None


def _register_all(module: ModuleType, plugin: str) -> list[str]:
    """Registers the module's classes; returns what was new, in words."""
    by_kind: dict[_Kind, list[type]] = {}
    for cls in _own_classes(module):
        kind = _kind_of(cls, home_of(module))
        if kind is not None:
            by_kind.setdefault(kind, []).append(cls)
    added = []
    both = _ENV in by_kind and _VECTOR_ENV in by_kind  # they share the names of environments
    for kind, classes in by_kind.items():
        registry = kind.load()
        alone = len(classes) == 1 and not (both and kind in (_ENV, _VECTOR_ENV))
        for cls in classes:
            # Learners are called after their files: PyMARL2 has several classes `QLearner`.
            by_file = kind is _LEARNER and alone and stem_of(module) in registry
            wanted = _names(module, cls, registry, alone, by_class=not by_file)
            by_itself = cls in registry.values()
            for name in wanted:
                if registry.get(name) is cls:
                    continue
                if name in registry:
                    if by_itself:
                        continue
                    _log.warning(
                        "plugin %s: %s '%s' is the plug-in's now, in place of %s",
                        plugin,
                        kind.words,
                        name,
                        "another plug-in's" if name in registry.plugged() else "the built-in one",
                    )
                _register(kind, registry, name, cls)
                added.append(f"{kind.words} '{name}'")
            registry.note_plugged(cls)
    return added


def _names(
    module: ModuleType, cls: type, registry: Registry, alone: bool, by_class: bool
) -> list[str]:
    """The names under which a plug-in's class is to be known.

    Args:
        module: the plug-in.
        cls: the class.
        registry: of its kind.
        alone: whether it is the only one of its kind in the plug-in.
        by_class: whether it also gets the names of the built-in class that is called the same.
    """
    names = [cls.__name__]
    table = vars(module).get("REGISTRY")
    own = table if isinstance(table, dict) and not isinstance(table, Registry) else {}
    chosen = [str(name) for name, entry in own.items() if entry is cls]
    if alone:
        names.append(stem_of(module))
    if not chosen and by_class:
        # The yaml names the built-in class that this one is called after.
        chosen = [
            name
            for name, entry in registry.items()
            if name not in registry.plugged() and _class_name(entry) == cls.__name__
        ]
    return list(dict.fromkeys([*names, *chosen]))


def _class_name(entry: object) -> str:
    entry = entry.vector_env if isinstance(entry, Single) else entry
    return entry.name if isinstance(entry, Lazy) else getattr(entry, "__name__", "")


def _register(kind: _Kind, registry: Registry, name: str, cls: type) -> None:
    registry.pop(name, None)
    if kind is not _VECTOR_ENV:
        registry.register(name)(cls)
        if kind is _ENV:
            VECTOR_REGISTRY.pop(name, None)  # else the batched one would be used instead
        return
    _ENV.load().pop(name, None)
    register_vector(name)(cls)


def _loaded_registries() -> list[tuple[_Kind, Registry]]:
    return [(kind, kind.load()) for kind in _ALL if kind.package in sys.modules]


def _registered() -> set[tuple[_Kind, str]]:
    return {(kind, name) for kind, registry in _loaded_registries() for name in registry}


def _own_names(module: ModuleType) -> bool:
    """Whether a class of the module is registered already."""
    classes = _own_classes(module)
    return any(cls in registry.values() for _, registry in _loaded_registries() for cls in classes)
