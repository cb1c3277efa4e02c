"""The running episodes of all battles, frame by frame, for pictures and replays."""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of the kernel
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from envs.starcraft.battle import Battle
from envs.starcraft.facts import UNIT_NAMES, MapInfo
from envs.starcraft.render import Painter, Scene, View
from utils.films import check_format, write_film

FIELDS = ("x", "y", "health", "shield", "energy")
FRAME_MS = 200  # of a film; a step is 357 ms at the speed that people play at
LAST_FRAME_MS = 1500
BEFORE = 2  # frames of a film before the first attack
RESULTS = ("", "won", "lost", "draw", "time is up")

_log = logging.getLogger(__name__)


class Recorder:
    """Frames of the running (or last) episode of every battle; keeping them costs about as much as
    copying them.

    Args:
        info: the map.
        battle: of B battles.
    """

    def __init__(self, info: MapInfo, battle: Battle) -> None:
        b, n, frames = battle.n_envs, battle.n_units, info.limit + 1
        self._info, self._battle = info, battle
        self._values = np.zeros((b, frames, len(FIELDS), n), dtype=np.float32)
        self._targets = np.full((b, frames, n), -1, dtype=np.int16)
        self._actions = np.zeros((b, frames, battle.n_agents), dtype=np.int16)
        self._rewards = np.zeros((b, frames), dtype=np.float32)
        self._length = np.zeros(b, dtype=np.int64)
        self._painter: Painter | None = None

    def begin(self, mask: np.ndarray) -> None:
        """Forgets the episodes in `mask` (bool [B])."""
        self._length[mask] = 0

    def add(
        self, mask: np.ndarray, targets: np.ndarray, actions: np.ndarray, reward: np.ndarray
    ) -> None:
        """A frame of every battle in `mask` (bool [B]).

        Args:
            targets: int64 [B, N], what each unit attacks or heals, -1: nothing.
            actions: int64 [B, A], those that led here. reward: float32 [B], of the step that led
                here.
        """
        bt = self._battle
        _add(
            mask, bt.x, bt.y, bt.health, bt.shield, bt.energy, targets, actions, reward,
            self._values, self._targets, self._actions, self._rewards, self._length,
        )  # fmt: skip

    def picture(self, index: int, result: int = 0) -> np.ndarray:
        """The last frame of battle `index`, uint8 [H, W, 3]; `result`: position in `RESULTS`.

        Raises:
            ValueError: it has not begun an episode.
        """
        self._check(index)
        if self._painter is None:
            self._painter = Painter(self._info)
        return self._painter.picture(self._scene(index, int(self._length[index]) - 1, result))

    def save(
        self, index: int, folder: Path, prefix: str, result: int = 0, film_format: str = "gif"
    ) -> Path:
        """Writes the episode of battle `index` as PREFIX_NUMBER.gif (or .mp4) and
        PREFIX_NUMBER.npz; returns the film's path. The film begins `BEFORE` frames before the first
        attack, and shows the part of the map where the units are from then on.

        The .npz holds "type", "health_max", "shield_max" [N], arrays [frames, N] "x", "y", "health"
        (0: dead), "shield", "energy", "target" (unit index or -1), "actions" [frames, A] and
        "reward" [frames] of the steps that led to the frames.

        Raises:
            ValueError: it has not begun an episode.
            UserError, MissingPackage: see `utils.films.check_format`.
        """
        self._check(index)
        check_format(film_format)
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while (figures := folder / f"{prefix}_{number:04d}.npz").exists():
            number += 1
        film = figures.with_suffix(f".{film_format}")
        frames = int(self._length[index])
        bt = self._battle
        fixed = {name: getattr(bt, name)[index] for name in ("type", "health_max", "shield_max")}
        values: dict[str, Any] = {
            name: self._values[index, :frames, row] for row, name in enumerate(FIELDS)
        }
        np.savez_compressed(
            figures,
            map_name=self._info.name,
            n_agents=bt.n_agents,
            unit_names=np.array(UNIT_NAMES),
            **fixed,
            **values,
            target=self._targets[index, :frames],
            actions=self._actions[index, :frames],
            reward=self._rewards[index, :frames],
        )
        attacks = (self._targets[index, :frames] >= 0).any(axis=1)
        first = max(int(attacks.argmax()) - BEFORE, 0)  # argmax is 0 where nobody attacks
        living = values["health"][first:] > 0
        view = View.around(values["x"][first:][living], values["y"][first:][living], self._info)
        painter = Painter(self._info, view)
        pictures = [
            painter.picture(self._scene(index, t, result if t == frames - 1 else 0))
            for t in range(first, frames)
        ]
        write_film(pictures, film, FRAME_MS, LAST_FRAME_MS, colours=64)
        _log.info("film of a battle: %s", film)
        return film

    def _check(self, index: int) -> None:
        if self._length[index] == 0:
            raise ValueError(
                f"environment {index} has not begun an episode: there is nothing to show"
            )

    def _scene(self, index: int, t: int, result: int) -> Scene:
        bt, a = self._battle, self._battle.n_agents
        values = dict(zip(FIELDS, self._values[index, t], strict=True))
        living = values["health"] > 0
        text = (
            f"{self._info.name}   step {t}/{self._info.limit}   reward so far "
            f"{self._rewards[index, : t + 1].sum():.2f}"
            f"   agents {living[:a].sum()}/{a}   enemies {living[a:].sum()}/{bt.n_enemies}   "
            f"{RESULTS[result]}"
        )
        return Scene(
            type=bt.type[index],
            health_max=bt.health_max[index],
            shield_max=bt.shield_max[index],
            target=self._targets[index, t],
            text=text,
            **values,
        )


@njit(cache=True, nogil=True)
def _add(
    mask, x, y, health, shield, energy, targets, actions, reward,
    all_values, all_targets, all_actions, all_rewards, length,
):  # fmt: skip
    n_units, n_agents = x.shape[1], actions.shape[1]
    for b in range(mask.shape[0]):
        if not mask[b]:
            continue
        t = length[b]
        length[b] = t + 1
        frame = all_values[b, t]
        for u in range(n_units):
            frame[0, u] = x[b, u]
            frame[1, u] = y[b, u]
            frame[2, u] = health[b, u]
            frame[3, u] = shield[b, u]
            frame[4, u] = energy[b, u]
            all_targets[b, t, u] = targets[b, u]
        for a in range(n_agents):
            all_actions[b, t, a] = actions[b, a]
        all_rewards[b, t] = reward[b]
