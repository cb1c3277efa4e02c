"""F2A2 against its centralised and decentralised baselines (F2A2, figures 5, 6 and 8, tables 4 and
5).

`python -m experiments.f2a2 particle` trains the instantiations and their baselines on Rover-Tower
and treasure collection, `ablations` the joint objective and the models of others (figure 8),
`topology` and `intervals` the budgets of communication (tables 4 and 5), `starcraft` recurrent
policies on simulated maps; with `--maps`, ablations and budgets are those of F2A2-COMA there
instead of F2A2-SAC's. Each writes curves and one table (`final.md`); an interrupted experiment goes
on from the runs' checkpoints. `parameters` trains nothing: it prints what an agent transmits at an
update, beside what MA-AC transmits.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn

from analysis.report import markdown_table
from assembly import build_mac, describe_env, new_batch
from envs import make_vector_env
from experiments import ROOT
from experiments.common import Job, carry_out, command, console, parser_of
from learners.f2a2.instantiations import REGISTRY as INSTANTIATIONS
from modules.f2a2.critics import COPIES
from utils.config import build_config

RESULTS = ROOT / "results" / "f2a2"
# environment -> steps of an episode, episodes of training (F2A2, figure 5)
PARTICLE = {"rover_tower": (25, 50000), "treasure_collection": (100, 50000)}
# label -> algorithm
METHODS = {
    "F2A2-SAC": "f2a2_sac",
    "MAAC": "maac",
    "F2A2-DDPG": "f2a2_ddpg",
    "MADDPG": "maddpg",
    "F2A2-TD3": "f2a2_td3",
    "F2A2-COMA": "f2a2_coma",
    "COMA": "coma",
    "MA-AC": "ma_ac",
}
DECENTRALISED = {label: name for label, name in METHODS.items() if name.startswith("f2a2")}
# What the variants differ in, written out for all: a run of another variant must not pass for one
# of these.
FULL = {
    "joint": True,
    "moa": True,
    "topology": "full",
    "topology_extra_edges": 0.0,
    "consensus_interval": 1.0,
    "consensus_interval_std": 0.0,
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without joint objective": {"joint": False},
    "without models of others": {"moa": False},
}
EDGES: dict[str, dict[str, Any]] = {
    "no edges": {"topology": "none"},
    "ring + 40%": {"topology": "ring", "topology_extra_edges": 40.0},
    "all edges": {},
}
INTERVALS: dict[str, dict[str, Any]] = {
    "never": {"consensus_interval": 0.0},
    "N(20, 10)": {"consensus_interval": 20.0, "consensus_interval_std": 10.0},
    "every update": {},
}
# All methods are trained alike (F2A2, appendix G): 4 updates after each round of 12 episodes, tau =
# 0.005.
OFF_POLICY_BASELINE = {"steps_per_update": 0, "updates_per_collection": 4, "target_tau": 0.005}
ON_POLICY = ("f2a2_coma", "coma", "ma_ac")
# The same numbers of transitions in buffers and batches as with episodes of 25 steps.
LONG_EPISODES = {
    "treasure_collection": {"off_policy": {"buffer_size": 10000}, "on_policy": {"batch_size": 12}}
}
MAPS = ("3m", "8m", "2s3z")
STARCRAFT = {
    "scenario": "f2a2_starcraft",
    "env_args.difficulty": "7",  # the simulator's only one; the paper's is "3"
    "runner": "vector",
    "test_interval": 10000,
    "test_nepisode": 32,
    "log_interval": 50000,
    "use_cuda": False,
}

Cells = dict[str, dict[str, list[Job]]]


def particle_jobs(
    algorithm: str, environment: str, episodes: int, own: Mapping[str, Any], seeds: range
) -> list[Job]:
    """The runs of one curve on a particle task; training returns are recorded every 200 episodes.

    Longer ones than 10,000 episodes are evaluated as often as these, so that a run can be taken up
    and made longer.
    """
    steps, _ = PARTICLE[environment]
    rhythm = min(episodes, 10000) * steps
    settings = {
        "t_max": episodes * steps,
        "env_args.episode_limit": steps,
        "runner_log_interval": 200 * steps,
        "learner_log_interval": 200 * steps,
        "test_interval": max(rhythm // 20, 1),
        "log_interval": max(rhythm // 10, 1),
        "save_model_interval": max(episodes * steps // 10, 1),
        "use_cuda": False,
        **(OFF_POLICY_BASELINE if algorithm in ("maac", "maddpg") else {}),
        **LONG_EPISODES.get(environment, {}).get(
            "on_policy" if algorithm in ON_POLICY else "off_policy", {}
        ),
        **own,
    }
    return [Job(algorithm, environment, {**settings, "seed": seed}) for seed in seeds]


def smaller(algorithm: str, batch_size: int | None) -> dict[str, Any]:
    """The settings of a method that learns off policy from batches of this size; None: as
    configured.

    Models of others then learn from the newest round of 12 episodes of 25 steps, instead of the
    newest four.
    """
    if batch_size is None or algorithm in ON_POLICY:
        return {}
    models = {"recent_transitions": 300, "moa_natural_batch": min(batch_size, 300)}
    return {"batch_size": batch_size, **(models if algorithm.startswith("f2a2") else {})}


def asked(algorithm: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the command line changes in a particle run."""
    rhythm = {}
    if options.updates_per_step is not None and algorithm not in ON_POLICY:
        rhythm = {"steps_per_update": 100, "updates_per_step": options.updates_per_step}
    return smaller(algorithm, options.batch_size) | rhythm


def variants_of(variants: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> Cells:
    """F2A2-SAC on the particle tasks, or F2A2-COMA on StarCraft maps if there are any, with
    settings of its own.
    """
    seeds = range(1, options.seeds + 1)
    settings = {label: {**FULL, **own} for label, own in variants.items()}
    if options.maps:
        return {
            name: {
                label: starcraft_jobs("f2a2_coma", name, options.steps, own, seeds)
                for label, own in settings.items()
            }
            for name in options.maps
        }
    more = asked("f2a2_sac", options)
    return {
        name: {
            label: particle_jobs(
                "f2a2_sac", name, options.episodes or PARTICLE[name][1], {**own, **more}, seeds
            )
            for label, own in settings.items()
        }
        for name in options.tasks
    }


def comparison(options: argparse.Namespace) -> Cells:
    """All methods on the particle tasks."""
    return {
        name: {
            label: particle_jobs(
                METHODS[label],
                name,
                options.episodes or PARTICLE[name][1],
                (FULL if label in DECENTRALISED else {}) | asked(METHODS[label], options),
                range(1, options.seeds + 1),
            )
            for label in options.methods
        }
        for name in options.tasks
    }


def starcraft_jobs(
    algorithm: str, name: str, steps: int, own: Mapping[str, Any], seeds: range
) -> list[Job]:
    """The runs of one curve on a simulated map."""
    settings = {**STARCRAFT, "env_args.map_name": name, "t_max": steps, **own}
    return [Job(algorithm, "sc2sim", {**settings, "seed": seed}) for seed in seeds]


def starcraft(options: argparse.Namespace) -> Cells:
    """Recurrent policies on simulated maps."""
    methods = {"F2A2-SAC": "f2a2_sac", "F2A2-COMA": "f2a2_coma", "COMA": "coma", "MA-AC": "ma_ac"}
    return {
        name: {
            label: starcraft_jobs(algorithm, name, options.steps, {}, range(1, options.seeds + 1))
            for label, algorithm in methods.items()
            if label in options.methods
        }
        for name in options.maps or MAPS
    }


# -- what is transmitted ---------------------------------------------------------------------------
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


def print_parameters(options: argparse.Namespace) -> None:
    """The table of transmitted parameters."""
    rows = []
    for name in (*options.tasks, *(options.maps or MAPS)):
        map_name = {"env_args.map_name": name, "scenario": "f2a2_starcraft"} if name in MAPS else {}
        environment = "sc2sim" if map_name else name
        reference = sum(transmitted("ma_ac", environment, **map_name))
        for label, algorithm in {"MA-AC": "ma_ac", **DECENTRALISED}.items():
            critic, policy = transmitted(algorithm, environment, **map_name)
            share = f"{(critic + policy) / reference:.2f}"
            rows.append([name, label, f"{critic:,}", f"{policy:,}", f"{critic + policy:,}", share])
    head = ["task", "method", "of critics", "of the policy", "in all", "of MA-AC's"]
    text = "\n".join(
        [
            "Parameters that an agent sends to a neighbour at an update:",
            "",
            *markdown_table(head, rows),
        ]
    )
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "parameters.md").write_text(text + "\n", encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, RESULTS, seeds=3)
    parts = ("particle", "ablations", "topology", "intervals", "starcraft", "parameters")
    parser.add_argument("part", choices=parts)
    parser.add_argument(
        "--tasks", nargs="+", choices=PARTICLE, default=["rover_tower"], help="particle tasks"
    )
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=[], help="StarCraft maps")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only these"
    )
    parser.add_argument(
        "--episodes", type=int, help="length of training on particle tasks; default: the paper's"
    )
    parser.add_argument(
        "--steps", type=int, default=1000000, help="length of training on StarCraft maps"
    )
    parser.add_argument(
        "--batch-size", type=int, help="on particle tasks: transitions of a batch, off policy"
    )
    rhythm = (
        "on particle tasks: updates every 100 environment steps, off policy; default: 4 every "
        "12 episodes"
    )
    parser.add_argument("--updates-per-step", type=int, help=rhythm)
    options = parser.parse_args(argv)
    if options.part == "parameters":
        print_parameters(options)
        return
    if options.part == "particle" and options.maps:
        parser.error("particle tasks have no --maps: use --tasks, or the part starcraft")
    out = options.results / options.part
    cells = {
        "starcraft": lambda: starcraft(options),
        "particle": lambda: comparison(options),
        "ablations": lambda: variants_of(ABLATIONS, options),
        "topology": lambda: variants_of(EDGES, options),
        "intervals": lambda: variants_of(INTERVALS, options),
    }[options.part]()
    if options.part == "starcraft" or options.maps:
        carry_out(cells, options, "test_battle_won_mean", "Test win rate", out)
    else:
        carry_out(cells, options, "return_mean", "Return, mean over agents", out)


if __name__ == "__main__":
    command(main)
