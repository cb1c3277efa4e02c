"""What a learner needs of settings and controller, declared as data and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from controllers import REGISTRY as CONTROLLERS
from modules.agents import REGISTRY as AGENTS
from utils.errors import ConfigError


@dataclass(frozen=True)
class Needs:
    """What must hold for a learner to work; `A | B` needs what A and B need, B's where they differ.

    Args:
        mac: class of the controller, or several; subclasses fit too.
        agent: class of the controller's agent network, or several.
        settings: key -> the value that it must have, or a tuple of those it may have. None is
            "not set": `mixer: None` refuses every mixer.
        why: key -> half a sentence that says why, for the message.
    """

    mac: type | tuple[type, ...] = ()
    agent: type | tuple[type, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            other.mac or self.mac,
            other.agent or self.agent,
            {**self.settings, **other.settings},
            {**self.why, **other.why},
        )

    def check_settings(self, args: SimpleNamespace) -> None:
        """Checks the settings, before anything is built.

        Raises:
            ConfigError: naming the learner, the key, what it must be and what it is.
        """
        for key, wanted in self.settings.items():
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            value = vars(args)[key]
            # `False in (0.0,)` holds: a switch is no number.
            if not any(value == one and type(value) is type(one) for one in allowed):
                self._refuse(args, key, " or ".join(f"{key}={_shown(one)}" for one in allowed))

    def check_built(self, mac: Any, args: SimpleNamespace) -> None:
        """Checks the controller and its agent network.

        Raises:
            ConfigError: they are of another class.
        """
        for key, wanted, registry, built in (
            ("mac", self.mac, CONTROLLERS, mac),
            ("agent", self.agent, AGENTS, getattr(mac, "agent", None)),
        ):
            classes = wanted if isinstance(wanted, tuple) else (wanted,)
            if classes and not isinstance(built, classes):
                names = [name for name, cls in registry.items() if cls in classes]
                self._refuse(args, key, " or ".join(f"{key}={name}" for name in names))

    def _refuse(self, args: SimpleNamespace, key: str, wanted: str) -> None:
        value = vars(args)[key]
        why = f" ({self.why[key]})" if key in self.why else ""
        raise ConfigError(
            f"learner '{args.learner}' needs {wanted}{why}, got {key}={_shown(value)}"
        )


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
