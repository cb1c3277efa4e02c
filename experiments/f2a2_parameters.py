"""What an agent of F2A2 sends to a neighbour at an update, beside MA-AC's (F2A2, table 2).

`python -m experiments run f2a2_parameters` prints the table, and trains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from analysis.document import markdown_table
from assembly import build_mac, describe_env, new_batch
from envs import make_vector_env
from experiments import ROOT
from launch.jobs import console
from learners.f2a2.instantiations import REGISTRY as INSTANTIATIONS
from modules.f2a2.critics import COPIES
from utils.config import build_config

RESULTS = ROOT / "results" / "f2a2"
TASKS = ("rover_tower", "treasure_collection")
MAPS = ("3m", "8m", "2s3z")
# label -> algorithm
METHODS = {
    "MA-AC": "ma_ac",
    "F2A2-SAC": "f2a2_sac",
    "F2A2-DDPG": "f2a2_ddpg",
    "F2A2-TD3": "f2a2_td3",
    "F2A2-COMA": "f2a2_coma",
}


def networks_of(
    algorithm: str, environment: str, **settings: Any
) -> tuple[nn.Module, nn.Module, SimpleNamespace]:
    """The policies and critics of a decentralised learner on an environment, and the
    configuration.
    """
    config = build_config(
        algorithm, environment, [f"{key}={value}" for key, value in settings.items()]
    )
    args = SimpleNamespace(**config)
    env = make_vector_env(args.env, {**args.env_args, "seed": 1}, 1, 1, "native", "train_env")
    info = env.get_env_info()
    env.close()
    describe_env(args, info)
    mac, scheme = build_mac(args), new_batch(args).scheme
    if algorithm == "ma_ac":
        return mac.agent, COPIES["central"](scheme, args, 1), args
    n_critics = INSTANTIATIONS[args.f2a2_algorithm].n_critics
    return mac.agent, COPIES[args.critic](scheme, args, n_critics), args


def transmitted(algorithm: str, environment: str, **settings: Any) -> tuple[int, int]:
    """Parameters that an agent sends to each neighbour at an update: of its critics, of its policy.

    MA-AC's agents send both, because the others' targets need their policies (F2A2, table 2);
    F2A2's estimate them.
    """
    policy, critic, args = networks_of(algorithm, environment, **settings)
    if algorithm == "ma_ac":
        return tuple(
            sum(param[0].numel() for param in net.parameters()) for net in (critic, policy)
        )
    return sum(
        param[0].numel() for param in critic.shared_parameters(args.consensus_scope).values()
    ), 0


def table(tasks: Sequence[str], maps: Sequence[str]) -> str:
    """One row per task and method (Markdown)."""
    rows = []
    for name in (*tasks, *maps):
        map_name = {"env_args.map_name": name, "scenario": "f2a2_starcraft"} if name in MAPS else {}
        environment = "sc2sim" if map_name else name
        reference = sum(transmitted("ma_ac", environment, **map_name))
        for label, algorithm in METHODS.items():
            critic, policy = transmitted(algorithm, environment, **map_name)
            share = f"{(critic + policy) / reference:.2f}"
            rows.append([name, label, f"{critic:,}", f"{policy:,}", f"{critic + policy:,}", share])
    head = ["task", "method", "of critics", "of the policy", "in all", "of MA-AC's"]
    text = "Parameters that an agent sends to a neighbour at an update:"
    return "\n".join([text, "", *markdown_table(head, rows)]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:1])
    parser.add_argument("--maps", nargs="*", choices=MAPS, default=MAPS, help="StarCraft maps")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(argv)
    text = table(options.tasks, options.maps)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "parameters.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)
