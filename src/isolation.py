"""Work that leaves the process as it was, for several runs in one process (`api.Run`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

import components.action_selectors
import controllers
import envs
import learners
import modules.agents
import modules.critics
import modules.mixers
import runners
from plugins import load_plugins
from utils.logging import get_logger
from utils.registry import Registry
from utils.seeding import get_global_rng_state, set_global_rng_state

REGISTRIES: tuple[Registry, ...] = (
    learners.REGISTRY,
    controllers.REGISTRY,
    runners.REGISTRY,
    envs.REGISTRY,
    envs.VECTOR_REGISTRY,
    modules.agents.REGISTRY,
    modules.mixers.REGISTRY,
    modules.critics.REGISTRY,
    components.action_selectors.REGISTRY,
)

_one_at_a_time = threading.RLock()
# Plug-in -> what it has put into each registry. A module that registers its classes itself does so
# when it is imported, which happens once in a process.
_registered: dict[str, list[dict[str, Any]]] = {}


@contextmanager
def undisturbed(plugins: Sequence[str] = ()) -> Iterator[None]:
    """Runs a block with the console logger and these plug-ins; afterwards random generators, torch
    threads, logging and registries are as before.

    Threads that want this at the same time wait for one another.

    Raises:
        ConfigError: a plug-in cannot be loaded.
    """
    with _one_at_a_time, ExitStack() as stack:
        stack.callback(set_global_rng_state, get_global_rng_state())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.enter_context(_console())
        stack.enter_context(_known(plugins))
        yield


@contextmanager
def _console() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    get_logger()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _known(plugins: Sequence[str]) -> Iterator[None]:
    before = [dict(registry) for registry in REGISTRIES]
    try:
        for i in range(len(plugins)):
            _load([str(plugin) for plugin in plugins[: i + 1]])
        yield
    finally:
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(entries)


def _load(plugins: Sequence[str]) -> None:
    """Loads the last of these plug-ins; the others, which it may build on, are loaded already."""
    plugin = plugins[-1]
    for registry, entries in zip(REGISTRIES, _registered.get(plugin, ()), strict=False):
        registry.update(entries)
    before = [dict(registry) for registry in REGISTRIES]
    load_plugins(plugins)
    if plugin not in _registered:
        _registered[plugin] = [
            {name: entry for name, entry in registry.items() if old.get(name) is not entry}
            for registry, old in zip(REGISTRIES, before, strict=True)
        ]
