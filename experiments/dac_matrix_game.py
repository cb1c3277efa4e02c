"""DAC's matrix game (its table 1 and figure 3a).

`python -m experiments.dac_matrix_game` trains DAC, IQL, hysteretic and distributed Q-learning for
the paper's 50,000 steps, all without parameter sharing, and writes learning curves and the values
Q(s, a, c) and phi(s, a) of every DAC run beside the payoffs (`values.md`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from analysis.runs import Run, load_runs
from envs.matrix_game import ONE_STATE
from experiments import ROOT
from experiments.common import Job, command, compare, console, run_jobs
from experiments.one_state import load_controller

RESULTS = ROOT / "results" / "dac_matrix_game"
PAYOFF = np.asarray(ONE_STATE["climbing"][0], dtype=np.float64)
METRIC = "test_return_mean"
T_MAX = 50000
SETTINGS = {
    "env_args.map_name": "climbing",
    "runner": "vector",
    "batch_size_run": 8,
    "epsilon_anneal_time": 50000,
    "t_max": T_MAX,
    "test_interval": 1000,
    "test_nepisode": 8,
    "log_interval": 10000,
    "use_cuda": False,
}
METHODS = {
    "DAC": ("dac", {"scenario": "dac_matrix_game"}),
    "IQL": ("iql_ns", {}),
    "hysteretic, beta = 0.01": ("hysteretic", {"hysteretic_beta": 0.01}),
    "distributed Q": ("distributed_q", {}),
}


@dataclass(frozen=True)
class Values:
    """What the two agents of a DAC run have learned.

    Attributes:
        seed: of the run.
        q: [2, m, 3], Q(s, a, c) of each agent.
        final: value of the greedy joint action in the last evaluation.
    """

    seed: int
    q: np.ndarray
    final: float

    @property
    def phi(self) -> np.ndarray:
        """[2, 3], the optimistic marginal values: the maximum over the contexts."""
        return self.q.max(1)

    @property
    def greedy(self) -> tuple[int, int]:
        """The greedy joint action."""
        first, second = self.phi.argmax(-1).tolist()
        return first, second

    @property
    def phi_error(self) -> float:
        """Largest distance of phi from what an agent gets when the other one does its best."""
        best = np.stack([PAYOFF.max(1), PAYOFF.max(0)])
        return float(np.abs(self.phi - best).max())

    def rows_missed(self, agent: int) -> np.ndarray:
        """[3]: for every action of the other agent, how far (largest entry) the nearest context is
        from its payoffs.
        """
        rows = PAYOFF.T if agent == 0 else PAYOFF
        return np.abs(self.q[agent][None] - rows[:, None]).max(-1).min(1)


def values_of(run: Run) -> Values:
    """Reads a finished run of DAC."""
    step = max(int(folder.name) for folder in (run.path / "checkpoints").iterdir())
    mac, batch = load_controller(run, step)
    with torch.no_grad():
        q = mac.forward_all(batch, 0, test_mode=True)[0].numpy().astype(np.float64)
    return Values(int(run.config["seed"]), q, float(run.metrics[METRIC].values[-1]))


def train(
    methods: Mapping[str, tuple[str, Mapping[str, object]]],
    seeds: Sequence[int],
    results: Path = RESULTS,
    processes: int = 0,
) -> dict[str, list[Run]]:
    """Runs what is not there yet; label -> runs in the order of the seeds."""
    jobs = {
        label: [Job(algorithm, "matrix_game", {**SETTINGS, **own, "seed": seed}) for seed in seeds]
        for label, (algorithm, own) in methods.items()
    }
    folders = iter(run_jobs([job for group in jobs.values() for job in group], results, processes))
    return {
        label: [run for _ in group for run in load_runs([next(folders)])]
        for label, group in jobs.items()
    }


def values_table(values: Sequence[Values]) -> str:
    """The paper's table 1 for every run: payoffs, phi and Q(s, a, c)."""
    lines = ["# Values of DAC on its matrix game", ""]
    lines += [
        "Payoffs (rows: actions of agent 1): "
        + "; ".join(" ".join(f"{x:g}" for x in row) for row in PAYOFF)
        + ".",
        "",
        "| seed | greedy joint action | value | largest error of phi | farthest payoff row, agent "
        "1 | agent 2 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for v in values:
        joint = ", ".join(f"a{u + 1}" for u in v.greedy)
        missed = " | ".join(f"{v.rows_missed(agent).max():.2f}" for agent in (0, 1))
        lines.append(f"| {v.seed} | ({joint}) | {v.final:g} | {v.phi_error:.2f} | {missed} |")
    for v in values:
        lines += ["", f"## Seed {v.seed}", ""]
        n_contexts = v.q.shape[1]
        lines += [
            "| agent | action | phi | " + " | ".join(f"c{c + 1}" for c in range(n_contexts)) + " |"
        ]
        lines += ["| --- " * (3 + n_contexts) + "|"]
        for agent in (0, 1):
            for u in range(3):
                cells = " | ".join(f"{v.q[agent, c, u]:.2f}" for c in range(n_contexts))
                lines.append(f"| {agent + 1} | a{u + 1} | **{v.phi[agent, u]:.2f}** | {cells} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs per algorithm (seeds 1, 2, ...)")
    parser.add_argument(
        "--processes", type=int, default=0, help="runs at a time; 0: one per processor"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the runs, the numbers and pictures"
    )
    options = parser.parse_args(argv)
    start = time.monotonic()
    runs = train(METHODS, range(1, options.seeds + 1), options.results, options.processes)
    table = compare(
        {"matrix game": runs}, METRIC, options.results, "Value of the greedy joint action"
    )
    console.print(table, markup=False, soft_wrap=True)
    text = values_table([values_of(run) for run in runs["DAC"]])
    (options.results / "values.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)
    console.rule(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    command(main)
