"""What tests that load plug-ins leave behind: nothing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import controllers
import envs
import learners
import modules.agents
import modules.critics
import modules.mixers
import runners
from components import action_selectors

REGISTRIES = {
    "learner": learners.REGISTRY,
    "controller": controllers.REGISTRY,
    "agent": modules.agents.REGISTRY,
    "mixer": modules.mixers.REGISTRY,
    "critic": modules.critics.REGISTRY,
    "selector": action_selectors.REGISTRY,
    "runner": runners.REGISTRY,
    "env": envs.REGISTRY,
    "vector_env": envs.VECTOR_REGISTRY,
}


@contextmanager
def plugins_forgotten(*folders: Path) -> Iterator[None]:
    """Registries, the Python path and the modules imported from below `folders` are put back."""
    saved, path = {kind: dict(registry) for kind, registry in REGISTRIES.items()}, list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for kind, registry in REGISTRIES.items():
            registry.clear()
            registry.update(saved[kind])
        for name, module in list(sys.modules.items()):
            parents = Path(getattr(module, "__file__", None) or "/").parents
            if any(folder in parents for folder in folders):
                del sys.modules[name]
