"""All benchmarks: `python benchmarks/run.py [--only PART,PART,...] [--quick]`; --help lists the
parts.

Prints the tables and writes them to results/bench/: one CSV file each, and all of them in bench.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from benchmarks import (  # noqa: E402
    actor_critic,
    dac_update,
    f2a2,
    gate,
    grid_worlds,
    learner_update,
    particle,
    replay,
    rollout,
    s2q_update,
    starcraft,
    training_speed,
)
from rich.console import Console  # noqa: E402

# In this order: the first one also measures what the memory settings of the later ones are for.
PARTS = {
    "learner": learner_update.cpu,
    "gpu": learner_update.gpu,
    "s2q": s2q_update.run,
    "dac": dac_update.run,
    "actor_critic": actor_critic.run,
    "f2a2": f2a2.run,
    "rollout": rollout.run,
    "replay": replay.run,
    "training": training_speed.run,
    "particle": particle.run,
    "grid_worlds": grid_worlds.run,
    "starcraft": starcraft.run,
    "gate": gate.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measures this laboratory against PyMARL2-style code."
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), help=f"comma-separated: {', '.join(PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run at all?")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "results" / "bench",
        help="folder of the written tables",
    )
    parser.add_argument(
        "--set-baseline",
        action="store_true",
        help="keep the ratios of part gate in benchmarks/baseline.json, as those of this version",
    )
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if options.set_baseline and (options.quick or "gate" not in chosen):
        parser.error("--set-baseline needs part gate, and all of its repetitions: no --quick")
    warnings.filterwarnings(
        "ignore", message="Creating a tensor from a list of numpy.ndarrays"
    )  # PyMARL's way
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    options.output.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    sections = [f"# Benchmarks\n\n{time.strftime('%Y-%m-%d %H:%M')}, {machine}\n"]
    for name, part in PARTS.items():
        if name in chosen:
            extra = {"set_baseline": options.set_baseline} if name == "gate" else {}
            for table in part(options.quick, **extra):
                table.show(console)
                sections.append(table.write(options.output))
    path = options.output / "bench.md"
    path.write_text("\n".join(sections), encoding="utf-8")
    console.print(f"written to {path.parent}")


if __name__ == "__main__":
    main()
