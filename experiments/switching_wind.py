"""DAC's contexts in a wind that changes (DAC, section 5.1 and figure 2).

`python -m experiments run switching_wind` walks one episode at random, trains the encoder and
decoder of DAC on it, and draws the position over time, coloured by context, for windows of one
transition with three contexts and of five transitions with six. The normalised mutual information
between contexts and winds says how well they agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import entropy

from analysis import plots
from components.steps import Steps
from envs.switching_wind import SwitchingWind
from experiments import ROOT
from launch.jobs import console
from learners.dac.learner import AgentTransitions, context_losses
from modules.dac import ContextEncoder, DynamicsDecoder
from modules.dac.windows import Windows
from utils.seeding import derive_seed

RESULTS = ROOT / "results" / "switching_wind"
SETTINGS = ((1, 3), (5, 6))  # (k, m) of the paper's figure 2
UPDATES = 2000
BETA = 0.001
TEMPERATURE = 1.0
HIDDEN = 64
MODES = ("calm", "headwind", "tailwind")
MODE_COLOURS = ("#e8f1e4", "#dfe7f5", "#f9e6d3")
CONTEXT_COLOURS = ("#1b6ca8", "#c8443c", "#2f8f4e", "#8a5bb0", "#d98a1f", "#555555")


@dataclass(frozen=True)
class Walk:
    """One episode of T random steps.

    Attributes:
        positions: [T + 1].
        actions: [T], uniform in [-1, 1].
        modes: int64 [T], the wind of every step.
    """

    positions: np.ndarray
    actions: np.ndarray
    modes: np.ndarray

    def transitions(self) -> AgentTransitions:
        """What encoder and decoder see.

        The agent knows its position and action. Positions reach 30 where a wind moves it by 1.5:
        they are standardised, and the next observation is given as the change of position, or the
        contexts would first of all divide the line into parts. The task of this section has no
        reward: it is 0.
        """
        where, moves = self.positions[:-1], np.diff(self.positions)
        columns = ((where - where.mean()) / where.std(), self.actions, moves)
        obs, actions, after = (torch.tensor(x, dtype=torch.float32).view(1, -1, 1) for x in columns)
        return AgentTransitions(obs, actions, torch.zeros(1, len(moves)), after)


def walk(seed: int) -> Walk:
    """A random episode."""
    env = SwitchingWind(1, seed)
    rng = np.random.default_rng(derive_seed(seed, "actions"))
    env.reset()
    positions, actions, modes = [float(env.obs[0, 0, 0])], [], []
    for _ in range(env.episode_limit):
        action = rng.uniform(-1.0, 1.0)
        env.step_continuous(np.array([[action]]))
        positions.append(float(env.obs[0, 0, 0]))
        actions.append(action)
        modes.append(int(env.info["mode"][0]))
    return Walk(np.array(positions), np.array(actions), np.array(modes))


def learn_contexts(episode: Walk, k: int, m: int, seed: int, updates: int = UPDATES) -> np.ndarray:
    """Trains encoder and decoder on one episode (DAC, eqs. 12 and 13).

    Returns:
        int64 [T], the most probable context of the window that ends with each step.
    """
    torch.manual_seed(derive_seed(seed, "networks"))
    args = SimpleNamespace(n_agents=1, n_actions=1, dac_k=k, dac_m=m, dac_hidden_dim=HIDDEN)
    encoder, decoder = ContextEncoder(1, args), DynamicsDecoder(1, args)
    params = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.RMSprop(params, lr=0.0005, alpha=0.99, eps=1e-5)
    n_steps = len(episode.modes)
    windows = Windows(Steps(torch.tensor([n_steps + 1]), n_steps + 1), k)
    transitions = episode.transitions()
    for _ in range(updates):
        _, rec, kl = context_losses(encoder, decoder, transitions, windows, TEMPERATURE)
        optimiser.zero_grad()
        (rec + BETA * kl).mean().backward()
        optimiser.step()
    with torch.no_grad():
        return encoder(*transitions, windows)[0].argmax(-1).numpy()


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised mutual information of two labellings [T], 0 to 1: 2 I(a; b) / (H(a) + H(b))."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1.0 / len(a))
    total = entropy(joint.sum(1)) + entropy(joint.sum(0))
    return float(2 * (total - entropy(joint, axis=None)) / total) if total > 0 else 0.0


def draw(episode: Walk, contexts: dict[tuple[int, int], np.ndarray]) -> Figure:
    """Position over time, coloured by context, the winds shaded, as the paper's figure 2."""
    figure = Figure(figsize=(5.0 * len(contexts), 3.3), layout="constrained")
    panels = figure.subplots(1, len(contexts), squeeze=False)[0]
    starts = [0, *(np.flatnonzero(np.diff(episode.modes)) + 1).tolist(), len(episode.modes)]
    for axes, ((k, m), labels) in zip(panels, contexts.items(), strict=True):
        shown = set()
        for start, end in pairwise(starts):
            mode = episode.modes[start]
            name = MODES[mode] if mode not in shown else None
            shown.add(mode)
            axes.axvspan(start, end, color=MODE_COLOURS[mode], linewidth=0, label=name)
        time_axis = np.arange(1, len(labels) + 1)
        axes.plot(
            np.arange(len(episode.positions)),
            episode.positions,
            color="#999999",
            linewidth=0.8,
            zorder=1,
        )
        for c in np.unique(labels):
            mine = labels == c
            where = episode.positions[1:][mine]
            axes.scatter(
                time_axis[mine],
                where,
                s=16,
                color=CONTEXT_COLOURS[c],
                label=f"context {c + 1}",
                zorder=2,
            )
        axes.set_title(
            f"k = {k}, m = {m} (agreement {agreement(labels, episode.modes):.2f})", fontsize=10
        )
        axes.set_xlabel("Step")
        axes.margins(x=0)
        axes.legend(fontsize=7, ncols=2, frameon=False)
    panels[0].set_ylabel("Position")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="episodes, each with its own networks (seeds 1, 2, ...)",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the numbers and pictures"
    )
    options = parser.parse_args(argv)
    start = time.monotonic()
    torch.set_num_threads(1)  # sixty rows: more threads only wait for one another
    options.results.mkdir(parents=True, exist_ok=True)
    lines = [
        "| seed | " + " | ".join(f"agreement, k = {k}, m = {m}" for k, m in SETTINGS) + " |",
        "| --- | --- | --- |",
    ]
    scores = []
    for seed in range(1, options.seeds + 1):
        episode = walk(seed)
        contexts = {(k, m): learn_contexts(episode, k, m, seed) for k, m in SETTINGS}
        scores.append([agreement(labels, episode.modes) for labels in contexts.values()])
        lines.append(f"| {seed} | " + " | ".join(f"{score:.3f}" for score in scores[-1]) + " |")
        plots.save(draw(episode, contexts), options.results / f"contexts_{seed}")
    lines.append(
        "| median | " + " | ".join(f"**{score:.3f}**" for score in np.median(scores, axis=0)) + " |"
    )
    table = "\n".join(lines) + "\n"
    (options.results / "agreement.md").write_text(table, encoding="utf-8")
    console.print(table, markup=False, soft_wrap=True)
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    console.print(f"pictures and numbers: {options.results}")
