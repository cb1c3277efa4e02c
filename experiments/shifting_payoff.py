"""S2Q's motivating experiment (its section 4.1 and appendix D): the best joint action changes in
mid-training.

QMIX, OW-QMIX and S2Q on the payoff [[8, -12, -12], [-12, 7, 0], [-12, 0, 6]], whose joint actions
(A, A), (B, B), (C, C) pay 6, 5, 8 from the middle of the training on: the value of the greedy joint
action over time, what every sub-value function holds before and after the change, and how often
each joint action is executed.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import plots
from analysis.aggregate import curves
from analysis.bootstrap import Method
from analysis.runs import Run
from controllers.s2q_controller import S2QMAC
from envs.matrix_game import ONE_STATE
from experiments.comparison import Cells
from experiments.one_state import load_controller
from experiments.spec import Experiment, load
from utils.checkpoints import read_checkpoint

METRIC = "test_return_mean"
# How many of the last episodes before the change the heat maps show; exploration is at its end by
# then.
EXECUTED = 2000


# The heat maps' panels: S2Q at the paper's temperature, at ours, and the baseline.
HEAT_MAPS = ("S2Q, T = 0.1", "S2Q, T = 1", "OW-QMIX")
TASK = "shifting payoff"
GAME = load("shifting_payoff")
SWITCH: int = GAME.tasks[TASK].settings["env_args.switch_step"]
T_MAX: int = GAME.tasks[TASK].settings["t_max"]


@dataclass(frozen=True)
class Outcome:
    """What one run did.

    Attributes:
        value_before: of the greedy joint action in the last evaluation before the change.
        value_after: the same at the end of the training.
        greedy_before: greedy joint actions of Q_0..Q_K (of Q_tot alone for other algorithms) right
            before the change.
        greedy_after: the same at the end.
        executed: [3, 3], share of every joint action in the `EXECUTED` last episodes before the
            change.
    """

    label: str
    seed: int
    value_before: float
    value_after: float
    greedy_before: list[str]
    greedy_after: list[str]
    executed: np.ndarray

    @property
    def right_before(self) -> bool:
        return self.value_before == _best(0)

    @property
    def right_after(self) -> bool:
        return self.value_after == _best(1)


def _best(payoff: int) -> float:
    return float(np.max(ONE_STATE["shifting"][payoff]))


def ranked(payoff: int, n: int) -> list[str]:
    """The n best joint actions before (`payoff` 0) or after (1) the change, e.g. ["AA", "BB",
    "CC"].
    """
    table = np.asarray(ONE_STATE["shifting"][payoff])
    order = np.argsort(-table, axis=None, kind="stable")[:n]
    return [_letters(np.unravel_index(i, table.shape)) for i in order]


def _letters(joint: Sequence[int]) -> str:
    return "".join("ABC"[int(u)] for u in joint)


def greedy_joint_actions(run: Run, step: int) -> list[str]:
    """Greedy joint actions of the networks in a run's checkpoint, Q_0 first."""
    mac, batch = load_controller(run, step)
    with torch.no_grad():
        q = mac.forward_all(batch, 0).q[:, 0] if isinstance(mac, S2QMAC) else mac.forward(batch, 0)
    return [_letters(joint) for joint in q.argmax(-1).tolist()]


def executed_joint_actions(run: Run, step: int, episodes: int) -> np.ndarray:
    """Shares [3, 3] of the joint actions in the newest episodes of a checkpoint's replay buffer."""
    _, buffer = read_checkpoint(run.path / "checkpoints" / str(step))
    actions = buffer["transition_data"]["actions"][:, 0, :, 0].long()
    newest = (buffer["buffer_index"] - 1 - torch.arange(episodes)) % len(actions)
    joint = actions[newest]
    counts = torch.bincount(3 * joint[:, 0] + joint[:, 1], minlength=9)
    return counts.view(3, 3).double().div(episodes).numpy()


def outcome(label: str, run: Run) -> Outcome:
    """Reads a finished run."""
    series = run.metrics[METRIC]
    before = series.values[series.t < SWITCH][-1]
    return Outcome(
        label,
        int(run.config["seed"]),
        float(before),
        float(series.values[-1]),
        greedy_joint_actions(run, SWITCH),
        greedy_joint_actions(run, T_MAX),
        executed_joint_actions(run, SWITCH, EXECUTED),
    )


# -- numbers and pictures --------------------------------------------------------------------------


def write_runs(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line per run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["algorithm", "seed", "value_before", "value_after", "greedy_before", "greedy_after"]
        writer.writerow([*head, *(f"executed_{a}{b}" for a in "ABC" for b in "ABC")])
        for o in outcomes:
            row = [
                o.label,
                o.seed,
                o.value_before,
                o.value_after,
                " ".join(o.greedy_before),
                " ".join(o.greedy_after),
            ]
            writer.writerow([*row, *(f"{share:.4f}" for share in o.executed.flat)])


def summary(outcomes: Sequence[Outcome]) -> str:
    """The tables of `summary.md`."""
    labels = list(dict.fromkeys(o.label for o in outcomes))
    lines = ["# Shifting payoff", "", f"The payoff changes at step {SWITCH:,} of {T_MAX:,}.", ""]
    lines += [
        f"| algorithm | seeds | best joint action ({ranked(0, 1)[0]}) before | best "
        f"({ranked(1, 1)[0]}) after "
        "| mean value before | after |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label in labels:
        group = [o for o in outcomes if o.label == label]
        values = [
            np.mean([getattr(o, key) for o in group]) for key in ("value_before", "value_after")
        ]
        right = [sum(getattr(o, key) for o in group) for key in ("right_before", "right_after")]
        lines.append(
            f"| {label} | {len(group)} | {right[0]} of {len(group)} | {right[1]} of {len(group)} "
            f"| {values[0]:.2f} | {values[1]:.2f} |"
        )
    lines += [
        "",
        "Sub-value functions of S2Q: seeds in which Q_k's greedy joint action is the (k + 1)-th "
        "best.",
        "",
    ]
    lines += [
        "| algorithm | when | Q_0 | Q_1 | Q_2 | greedy joint actions of all seeds |",
        "| --- " * 6 + "|",
    ]
    for label in labels:
        group = [o for o in outcomes if o.label == label]
        if len(group[0].greedy_before) == 1:
            continue
        for when, key, payoff in (("before", "greedy_before", 0), ("after", "greedy_after", 1)):
            found = [getattr(o, key) for o in group]
            hits = [sum(f[k] == best for f in found) for k, best in enumerate(ranked(payoff, 3))]
            cells = " | ".join(f"{hit} of {len(group)}" for hit in hits)
            lines.append(
                f"| {label} | {when} | {cells} | {', '.join('/'.join(f) for f in found)} |"
            )
    lines += [
        "",
        f"Executed joint actions in the last {EXECUTED} episodes before the change, mean over "
        "seeds (%).",
        "",
    ]
    lines += ["| algorithm | AA | BB | CC | others |", "| --- | --- | --- | --- | --- |"]
    for label in labels:
        share = 100 * np.mean([o.executed for o in outcomes if o.label == label], axis=0)
        diagonal = np.diag(share)
        cells = " | ".join(f"{value:.2f}" for value in (*diagonal, 100 - diagonal.sum()))
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines) + "\n"


def draw_values(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """The value of the greedy joint action over time, as the paper's figure 1."""
    method = Method(statistic="mean")
    lines = [curves(group, METRIC, label=label, method=method) for label, group in runs.items()]
    figure = plots.draw(
        {"": lines}, ylabel="Value of the greedy joint action", method=method, seeds=True
    )
    mark_change(figure.axes[0])
    return figure


def mark_change(axes: Axes) -> None:
    """Marks when the payoff changes, and the value of the best joint action before and after."""
    axes.axvline(SWITCH, color="#444444", linewidth=1, linestyle=":")
    axes.annotate(
        "payoff changes", (SWITCH, 0), xycoords=("data", "axes fraction"), xytext=(4, 4),
        textcoords="offset points",
        fontsize=8, color="#444444",
    )  # fmt: skip
    for payoff, start, end in ((0, 0.0, 0.5), (1, 0.5, 1.0)):
        axes.axhline(_best(payoff), start, end, color="#999999", linewidth=0.8, zorder=1)


def draw_heat_maps(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Figure:
    """How often every joint action was executed before the change, as the paper's figure D.1."""
    figure = Figure(figsize=(2.9 * len(labels), 3.1), layout="constrained")
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    norm = mpl.colors.LogNorm(1e-3, 1.0, clip=True)
    for axes, label in zip(panels, labels, strict=True):
        share = np.mean([o.executed for o in outcomes if o.label == label], axis=0)
        image = axes.imshow(np.maximum(share, 1e-6), cmap="Blues", norm=norm)
        for (row, column), value in np.ndenumerate(share):
            colour = "white" if value > 0.1 else "black"
            axes.text(
                column,
                row,
                f"{100 * value:.2f}%",
                ha="center",
                va="center",
                fontsize=9,
                color=colour,
            )
        axes.set_xticks(range(3), list("ABC"))
        axes.set_yticks(range(3), list("ABC"))
        axes.set_xlabel("agent 2")
        axes.set_title(
            label if label.startswith("S2Q") else f"{label}, epsilon-greedy", fontsize=10
        )
    panels[0].set_ylabel("agent 1")
    figure.colorbar(image, ax=panels, label="share of the executed joint actions", shrink=0.8)
    return figure


def draw(experiment: Experiment, cells: Cells, out: Path) -> str:
    """Writes `summary.md`, `runs.csv`, `greedy_value.png` and `executed.png` (and PDFs).

    Returns:
        The summary.
    """
    runs = cells[TASK]
    outcomes = [outcome(label, run) for label, group in runs.items() for run in group]
    write_runs(outcomes, out / "runs.csv")
    text = summary(outcomes)
    (out / "summary.md").write_text(text, encoding="utf-8")
    plots.save(draw_values(runs), out / "greedy_value")
    if shown := [label for label in HEAT_MAPS if label in runs]:
        plots.save(draw_heat_maps(outcomes, shown), out / "executed")
    return text
