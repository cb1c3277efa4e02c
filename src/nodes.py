"""`python src/main.py doctor --cluster`: what every node of a Ray cluster has for runs."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from doctor import OK, ROOT, check_starcraft, game_folder
from utils.errors import UserError
from utils.ray_cluster import Demand, connect, disconnect

_PATIENCE = 120.0  # [s] for the answer of a node
_OWN_NAMES = ("CPU", "GPU", "memory", "object_store_memory")  # what Ray counts on every node


@dataclass(frozen=True)
class Node:
    """What a node has.

    Attributes:
        name: host name and address.
        cores, gpus: how many Ray shares out there.
        named: other resources that it shares out, by name.
        python, torch: versions; "" where there is none.
        gpu_names: what the driver says.
        memory: of the machine [GB].
        starcraft: the folder of the game, its versions and maps; "" where there is none.
        fault: why it cannot take part; "" where it can.
    """

    name: str
    cores: float
    gpus: float
    named: Mapping[str, float] = field(default_factory=dict)
    python: str = ""
    torch: str = ""
    gpu_names: tuple[str, ...] = ()
    memory: float = 0.0
    starcraft: str = ""
    fault: str = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"doctor: {message}; `doctor --cluster --help` lists the options")


def main(argv: Sequence[str]) -> int:
    """Prints a table with a row for each node; 0 if all can take part, else 1.

    Raises:
        UserError: what is wrong with the arguments; there is no such cluster.
        MissingPackage: Ray is not installed.
    """
    parser = _Parser(prog="python src/main.py doctor", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="ask every node of a Ray cluster")
    text = "of the cluster; auto (the default): the one that this machine is part of"
    parser.add_argument("--address", default="auto", metavar="ADDRESS", help=text)
    options = parser.parse_args(list(argv))
    nodes = ask_nodes(options.address)
    _show(nodes)
    return 1 if any(node.fault for node in nodes) else 0


def ask_nodes(address: str) -> list[Node]:
    """What each living node of a cluster has.

    Raises:
        UserError: there is no such cluster.
        MissingPackage: Ray is not installed.
    """
    ray = connect("doctor --cluster", address)
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        told = [_ask(ray, node["NodeID"]) for node in alive]
        ray.wait(told, num_returns=len(told), timeout=_PATIENCE)
        found = [_read(node, _answer(ray, one)) for node, one in zip(alive, told, strict=True)]
    finally:
        disconnect()
    return sorted(found, key=lambda node: node.name)


def _ask(ray: ModuleType, node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(**Demand().options(), max_retries=0, scheduling_strategy=there)(describe)
    return task.remote()


def _answer(ray: ModuleType, reference: Any) -> dict[str, Any]:
    try:
        return ray.get(reference, timeout=0.1)
    except ray.exceptions.GetTimeoutError:
        return {"fault": f"no answer in {_PATIENCE:.0f} s"}
    except ray.exceptions.RayError as exc:
        said = str(exc).strip().splitlines()
        if any("No module named" in line for line in said):
            return {"fault": f"cannot load {ROOT}: is the checkout there, with its packages?"}
        return {"fault": said[-1] if said else type(exc).__name__}


def _read(node: Mapping[str, Any], told: dict[str, Any]) -> Node:
    """A node from what Ray and what it itself say."""
    shared = node["Resources"]
    named = {
        name: amount
        for name, amount in shared.items()
        if name not in _OWN_NAMES and not name.startswith(("node:", "accelerator_type:"))
    }
    name = f"{told.pop('host', node['NodeManagerHostname'])} ({node['NodeManagerAddress']})"
    code = told.pop("code", "")
    if code and code != _code():
        told["fault"] = f"{ROOT} has other code there than here"
    return Node(name, shared.get("CPU", 0.0), shared.get("GPU", 0.0), named, **told)


def describe() -> dict[str, Any]:
    """On a node: entries of `Node`, its host and a digest of its code."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    checks = [check for check in check_starcraft(game_folder()) if check.state == OK]
    return {
        "host": socket.gethostname(),
        "code": _code(),
        "python": platform.python_version(),
        "torch": torch,
        "gpu_names": _gpu_names(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "starcraft": ", ".join(check.found.partition(" in ")[0] for check in checks),
    }


@lru_cache(maxsize=1)
def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(ROOT, "src").rglob("*.py")):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def _gpu_names() -> tuple[str, ...]:
    """From the driver: Ray hides GPUs from tasks that ask for none."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return tuple(done.stdout.splitlines()) if done.returncode == 0 else ()


def _show(nodes: Sequence[Node]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    titles = ("python", "torch", "cores", "GPUs", "memory [GB]", "resources", "StarCraft II")
    table = Table("node", *titles, "state", title="Nodes of the Ray cluster")
    for node in nodes:
        gpus = f"{node.gpus:g}"
        if node.gpu_names:
            gpus += f" ({', '.join(sorted(set(node.gpu_names)))})"
        table.add_row(
            node.name,
            node.python or "-",
            node.torch or "-",
            f"{node.cores:g}",
            gpus,
            f"{node.memory:.0f}" if node.memory else "-",
            ", ".join(f"{name} {amount:g}" for name, amount in sorted(node.named.items())) or "-",
            node.starcraft or "-",
            "broken" if node.fault else "ok",
        )
    console.print(table)
    for node in nodes:
        if node.fault:
            console.print(
                f"{node.name}: {node.fault}", markup=False, highlight=False, soft_wrap=True
            )
