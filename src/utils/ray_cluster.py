"""A Ray cluster: the connection of this process, and what work asks of a node."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.errors import MissingPackage, UserError

REACH_TIMEOUT = 10.0  # s until a cluster's address has to answer
_SRC = str(Path(__file__).resolve().parents[1])
GB = 10**9

_lock = threading.Lock()
_n_users = 0
_own = False  # whether the connection is ours to end


def import_ray(asker: str) -> ModuleType:
    """The package.

    Args:
        asker: what needs it, for the message.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as exc:
        raise MissingPackage(f"{asker} needs Ray: pip install -r requirements-ray.txt") from exc


def connect(asker: str, address: str) -> ModuleType:
    """Connects this process with a cluster, where it has no connection yet; every call asks for one
    of `disconnect`.

    Args:
        asker: what needs it, for the message.
        address: of the cluster; `auto`: the one that runs on this machine; "": start one here.

    Returns:
        The package `ray`.

    Raises:
        MissingPackage: Ray is not installed.
        UserError: there is no such cluster.
    """
    global _n_users, _own
    ray = import_ray(asker)
    with _lock:
        if not ray.is_initialized():  # else a program's own, or that of an earlier call
            _start(ray, address)
            _own = True
        _n_users += 1
    return ray


def _start(ray: ModuleType, address: str) -> None:
    # `local`: without an address Ray would look for a cluster first.
    options: dict[str, Any] = {"address": address, "logging_level": "warning"}
    if not address:
        options = {
            "address": "local",
            "logging_level": "error",
            "include_dashboard": False,
            "_system_config": {
                # Ray would give everything else on this machine precedence over its workers.
                "worker_niceness": 0,
                # Workers in stock do not have the path of `Demand.options`: nobody would take them.
                "prestart_worker_first_driver": False,
            },
        }
    _check_reachable(address)
    try:
        with _own_signals():
            ray.init(log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        said = str(exc).strip().splitlines()
        where = f"at {address}" if address else "can be started here"
        text = f"no Ray cluster {where}: {said[0] if said else exc}"
        if address not in ("", "auto") and os.environ.get("RAY_AUTH_MODE") != "token":
            text += "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise UserError(text) from exc


def _check_reachable(address: str) -> None:
    """Ray itself goes on trying for minutes where nobody listens.

    Args:
        address: HOST:PORT is tried, anything else (`auto`, `ray://...`) is not.

    Raises:
        UserError: nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT).close()
    except (OSError, OverflowError) as exc:
        raise UserError(f"no Ray cluster at {address}: {exc}") from exc


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM; a run writes a checkpoint then."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def disconnect() -> None:
    """Ends the connection when nobody needs it any more, unless it is the program's own."""
    global _n_users, _own
    with _lock:
        _n_users -= 1
        if _n_users == 0 and _own:
            _own = False
            importlib.import_module("ray").shutdown()


@dataclass(frozen=True)
class Demand:
    """What a task or an actor asks of its node.

    Attributes:
        cores, gpus: as Ray counts them, shares included.
        memory: [GB]; None: not counted.
        named: anything else that nodes have by name, e.g. `sc2`.
    """

    cores: float = 0.0
    gpus: float = 0.0
    memory: float | None = None
    named: Mapping[str, float] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Ray's options. What is imported by name is found in this checkout."""
        options: dict[str, Any] = {
            "num_cpus": self.cores,
            "num_gpus": self.gpus,
            "runtime_env": {"env_vars": {"PYTHONPATH": _SRC}},
        }
        if self.memory is not None:
            options["memory"] = self.memory * GB
        if self.named:
            options["resources"] = dict(self.named)
        return options

    def amounts(self) -> dict[str, float]:
        """Ray's name of each resource -> how much of it."""
        memory = 0.0 if self.memory is None else self.memory * GB
        asked = {"CPU": float(self.cores), "GPU": float(self.gpus), "memory": memory, **self.named}
        return {name: amount for name, amount in asked.items() if amount}

    def times(self, count: int) -> Demand:
        """What `count` of them ask."""
        memory = None if self.memory is None else self.memory * count
        named = {name: amount * count for name, amount in self.named.items()}
        return Demand(self.cores * count, self.gpus * count, memory, named)

    def __str__(self) -> str:
        return ", ".join(shown_amount(name, amount) for name, amount in self.amounts().items())


def shown_amount(name: str, amount: float) -> str:
    """An amount of a resource as Ray counts it, for readers."""
    return f"memory {amount / GB:g} GB" if name == "memory" else f"{name} {amount:g}"


def check_room(ray: ModuleType, demand: Demand, who: str) -> None:
    """Makes sure that a node has what is asked, were it idle. Ray itself would wait for such a node
    without end.

    Args:
        who: needs it, for the message.

    Raises:
        UserError: there is none.
    """
    asked = demand.amounts()
    for node in ray.nodes():
        there = node["Resources"]
        if node["Alive"] and all(there.get(name, 0.0) >= amount for name, amount in asked.items()):
            return
    raise UserError(f"no node of the Ray cluster has what {who} needs: {demand}")
