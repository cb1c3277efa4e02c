"""Rover-Tower: blind rovers are guided by the words of towers (MAMT, appendix G.1; Iqbal and Sha
2019).
"""

from __future__ import annotations

import numpy as np

from envs.particle.base import ParticleEnv, acceleration_of, unit_to_square
from envs.particle.drawing import GREY, PALETTE, Canvas
from envs.particle.kernels import (
    LANDMARK_RADIUS,
    N_MOVES,
    N_SYMBOLS,
    ROVER_RADIUS,
    Bodies,
    rover_tower_observe_all,
    rover_tower_step,
)
from envs.ranges import SIZE, SWITCH
from envs.vector_env import EnvSpec
from envs.words import PUSHES, Words, every, grouped, one_hot
from utils.ranges import check_ranges

ROVER_ACCELERATION = 1.5
ROVER_TOP_SPEED = 1.0
COUNTS = ("steps_at_goal", "rovers_at_goal")


class RoverTower(ParticleEnv):
    """B worlds with P rovers (agents 0 to P-1), P towers (agents P to 2P-1) and L landmarks.

    At the start rovers and towers are paired at random and each pair gets a landmark as its goal
    (several pairs may have the same). A rover moves but sees nothing of the plane, its tower knows
    where to go but stands still and says one of 5 symbols. Nothing collides. Both members of a pair
    get -d^2, d the distance of the rover to the goal, and +10 where d^2 is below 1.5 (0.075 +
    0.04).

    Observation of a rover: one-hot of its tower [P], one-hot of the symbol its tower said in the
    last step [5], zero at the start, own position, own velocity. Of a tower: one-hot of its rover
    [P], positions of the rover and the goal. State: positions and velocities of the rovers,
    positions of towers and landmarks, per rover the one-hots of its tower [P] and its goal [L], per
    tower the one-hot of what it said [5]. Actions of a rover: 0 none, 1 -x, 2 +x, 3 -y, 4 +y; of a
    tower: the symbol. `info`: `steps_at_goal`, how often a rover was at its goal so far, and
    `rovers_at_goal`, how many are there after the last step.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        n_pairs: P.
        n_landmarks: L.
        episode_limit: steps.
        common_reward: one reward, the sum over the agents.

    Raises:
        ConfigError: a value out of range.
    """

    ranges = {
        "n_pairs": SIZE,
        "n_landmarks": SIZE,
        "episode_limit": SIZE,
        "common_reward": SWITCH,
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        n_pairs: int = 4,
        n_landmarks: int = 6,
        episode_limit: int = 25,
        common_reward: bool = False,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.n_pairs, self.n_landmarks = n_pairs, n_landmarks
        self._bodies = Bodies(
            np.full(n_pairs, acceleration_of(ROVER_ACCELERATION)),
            np.ones(n_pairs),
            np.full(n_pairs, ROVER_TOP_SPEED),
            np.zeros((n_pairs, n_pairs)),
        )
        self.positions = np.zeros((n_envs, n_pairs, 2))
        self.velocities = np.zeros((n_envs, n_pairs, 2))
        self.towers = np.zeros((n_envs, n_pairs, 2))
        self.landmarks = np.zeros((n_envs, n_landmarks, 2))
        # of every rover: its tower and its goal; of every tower: what it said, -1 for nothing yet
        self.tower_of = np.zeros((n_envs, n_pairs), dtype=np.int64)
        self.goal_of = np.zeros((n_envs, n_pairs), dtype=np.int64)
        self.said = np.full((n_envs, n_pairs), -1, dtype=np.int64)
        rover, tower = n_pairs + N_SYMBOLS + 4, n_pairs + 4
        spec = EnvSpec(
            n_agents=2 * n_pairs,
            n_actions=max(N_MOVES, N_SYMBOLS),
            obs_size=rover,
            state_size=n_pairs * (6 + n_pairs + n_landmarks + N_SYMBOLS) + 2 * n_landmarks,
            episode_limit=episode_limit,
            obs_sizes=(rover,) * n_pairs + (tower,) * n_pairs,
            action_sizes=(N_MOVES,) * n_pairs + (N_SYMBOLS,) * n_pairs,
            individual_rewards=not common_reward,
        )
        # positions of rovers, towers and landmarks, the order of the towers, the goals
        super().__init__(n_envs, spec, seed, COUNTS, n_draws=6 * n_pairs + 2 * n_landmarks)

    def _start(self, rows: np.ndarray) -> None:
        p, n_places = self.n_pairs, 2 * self.n_pairs + self.n_landmarks
        draws = self._draws[rows]
        places = unit_to_square(draws[:, : 2 * n_places])
        self.positions[rows], self.towers[rows], self.landmarks[rows] = np.split(
            places, [p, 2 * p], axis=1
        )
        self.tower_of[rows] = draws[:, 2 * n_places : 2 * n_places + p].argsort(axis=1)
        self.goal_of[rows] = draws[:, 2 * n_places + p :] * self.n_landmarks
        self.said[rows] = -1
        self.velocities[rows] = 0.0
        rover_tower_observe_all(
            rows, self.positions, self.velocities, self.towers, self.landmarks, self.tower_of,
            self.goal_of, self.said, self.obs, self.state,
        )  # fmt: skip

    def _advance(self, rows: np.ndarray, actions: np.ndarray) -> None:
        rover_tower_step(
            rows, actions, self.positions, self.velocities, self.towers, self.landmarks,
            self.tower_of, self.goal_of, self.said, self._bodies, self._rewards, self._counts,
            self.obs, self.state,
        )  # fmt: skip

    def words(self) -> Words:
        """Names of rovers and towers, their actions and what they see."""
        p = self.n_pairs
        rovers, towers = ([f"{kind} {i}" for i in range(p)] for kind in ("rover", "tower"))
        symbols = [f"say {k}" for k in range(N_SYMBOLS)]
        rover = one_hot("my tower", towers) + grouped("it said", map(str, range(N_SYMBOLS)))
        rover += grouped("self", ("x", "y", "velocity x", "velocity y"))
        tower = one_hot("my rover", rovers) + grouped("rover", "xy") + grouped("goal", "xy")
        return Words(
            (*rovers, *towers),
            every(p, rover) + every(p, tower),
            every(p, PUSHES) + every(p, symbols),
        )

    def _draw(self, index: int, canvas: Canvas) -> None:
        goals = self.landmarks[index, self.goal_of[index]]
        for place in self.landmarks[index]:
            canvas.disc(place, LANDMARK_RADIUS, GREY)
        for rover, (place, goal) in enumerate(zip(self.positions[index], goals, strict=True)):
            colour = PALETTE[rover % len(PALETTE)]
            tower = self.tower_of[index, rover]
            # pairs with the same goal have rings of different size
            canvas.line(place, goal, colour)
            canvas.disc(goal, LANDMARK_RADIUS + 0.025 * (1 + rover), None, colour, 2)
            symbol = self.said[index, tower]
            word = "-" if symbol < 0 else "ABCDE"[symbol]
            canvas.square(self.towers[index, tower], ROVER_RADIUS, colour, label=word)
            canvas.disc(place, ROVER_RADIUS, colour)
