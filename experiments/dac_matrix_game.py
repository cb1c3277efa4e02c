"""DAC's matrix game (its table 1 and figure 3a).

DAC, IQL, hysteretic and distributed Q-learning for the paper's 50,000 steps, all without parameter
sharing: learning curves, and the values Q(s, a, c) and phi(s, a) of every DAC run beside the
payoffs (`values.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from analysis.runs import Run
from envs.matrix_game import ONE_STATE
from experiments.comparison import Cells
from experiments.comparison import draw as draw_curves
from experiments.one_state import load_controller
from experiments.spec import Experiment

PAYOFF = np.asarray(ONE_STATE["climbing"][0], dtype=np.float64)
METRIC = "test_return_mean"


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


def draw(experiment: Experiment, cells: Cells, out: Path) -> str:
    """Curves, the table of final results, and `values.md` of DAC's runs; returns both tables."""
    text = draw_curves(experiment, cells, out)
    runs = [run for groups in cells.values() for run in groups.get("DAC", ())]
    if runs:
        values = values_table([values_of(run) for run in runs])
        (out / "values.md").write_text(values, encoding="utf-8")
        text += "\n" + values
    return text
