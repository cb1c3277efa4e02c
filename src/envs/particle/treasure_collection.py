"""Cooperative treasure collection: hunters carry treasures to the bank of their colour (F2A2; Iqbal
and Sha 2019).
"""

from __future__ import annotations

import numpy as np

from envs.particle.base import ParticleEnv, acceleration_of, unit_to_square
from envs.particle.drawing import BLACK, PALETTE, WHITE, Canvas
from envs.particle.kernels import (
    N_MOVES,
    NOTHING,
    TREASURE_BOUND,
    TREASURE_RADIUS,
    Bodies,
    treasure_observe_all,
    treasure_step,
)
from envs.ranges import SIZE, SWITCH, whole
from envs.vector_env import EnvSpec
from envs.words import PUSHES, Words, every, grouped
from utils.ranges import check_ranges

HUNTER_RADIUS, HUNTER_MASS = 0.05, 1.0
BANK_RADIUS, BANK_MASS = 0.075, 2.25
ACCELERATION = 1.5
TOP_SPEED = 1.0
COUNTS = ("pick_ups", "deliveries", "collisions")


class TreasureCollection(ParticleEnv):
    """B worlds with H hunters (agents 0 to H-1), C banks (agents H to H+C-1), one per colour, and K
    treasures.

    One step:
    1. Physics. All agents push each other away.
    2. Rewards. All agents: +5 for each contact of an empty hunter with a treasure and of a loaded
        hunter with the bank of its colour. Hunters: -5 for each other hunter they touch, and -0.1
        times the distance to the nearest treasure if empty, to their bank if loaded. Banks: -0.1
        times the distance to the nearest hunter that holds their colour or, if there is none, -0.1
        times the length of the mean vector to the hunters.
    3. Observations and state. They show treasures and hands as they were for the rewards.
    4. In the order of their numbers, a treasure is taken by the first empty hunter that touches it
    and put out of
       reach, at (-999, -999), and a treasure taken in an earlier step comes back, place and colour
       drawn anew. Then every loaded hunter that touches its bank unloads.

    Observation: own position, own velocity, hunters: one-hot of the colour they hold [C]; the other
    agents, nearest first: relative position, velocity, one-hot of the colour a hunter holds [C],
    one-hot of a bank's colour [C]; the treasures, nearest first: relative position, one-hot of the
    colour [C]. State: positions and velocities of all agents, one-hots of what the hunters hold,
    positions and one-hots of the treasures. Actions: 0 none, 1 -x, 2 +x, 3 -y, 4 +y. `info`:
    `pick_ups` and `deliveries` of the episode so far; `collisions`, pairs of hunters in contact,
    summed over the steps.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        n_hunters: H.
        n_banks: C, at most the 7 colours there are.
        n_treasures: K.
        episode_limit: steps.
        mask_dead_treasures: False: a treasure that was taken is seen at (-999, -999), in its
            colour, for one observation, and counts for the nearest treasure (so that observations
            and, if all were taken at once, rewards jump), as in the original; True: its entries are
            zero and it counts for nothing.
        common_reward: one reward, the sum over the agents.

    Raises:
        ConfigError: a value out of range.
    """

    ranges = {
        "n_hunters": SIZE,
        "n_banks": whole(1, len(PALETTE)),
        "n_treasures": SIZE,
        "episode_limit": SIZE,
        "mask_dead_treasures": SWITCH,
        "common_reward": SWITCH,
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        n_hunters: int = 6,
        n_banks: int = 2,
        n_treasures: int = 6,
        episode_limit: int = 100,
        mask_dead_treasures: bool = False,
        common_reward: bool = False,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.n_hunters, self.n_banks, self.n_treasures = n_hunters, n_banks, n_treasures
        self.mask_dead_treasures = bool(mask_dead_treasures)
        n = n_hunters + n_banks
        self._radius = np.array([HUNTER_RADIUS] * n_hunters + [BANK_RADIUS] * n_banks)
        self._bodies = Bodies(
            np.full(n, acceleration_of(ACCELERATION)),
            np.array([HUNTER_MASS] * n_hunters + [BANK_MASS] * n_banks),
            np.full(n, TOP_SPEED),
            self._radius[:, None] + self._radius,
        )
        self.positions = np.zeros((n_envs, n, 2))
        self.velocities = np.zeros((n_envs, n, 2))
        self.holding = np.full((n_envs, n_hunters), NOTHING, dtype=np.int64)
        self.treasures = np.zeros((n_envs, n_treasures, 2))
        self.colours = np.zeros((n_envs, n_treasures), dtype=np.int64)
        self.alive = np.ones((n_envs, n_treasures), dtype=bool)
        others = (n - 1) * (4 + 2 * n_banks) + n_treasures * (2 + n_banks)
        hunter, bank = 4 + n_banks + others, 4 + others
        spec = EnvSpec(
            n_agents=n,
            n_actions=N_MOVES,
            obs_size=hunter,
            state_size=4 * n + n_hunters * n_banks + n_treasures * (2 + n_banks),
            episode_limit=episode_limit,
            obs_sizes=(hunter,) * n_hunters + (bank,) * n_banks,
            individual_rewards=not common_reward,
        )
        # the start: positions of agents and treasures, colours; for every step and treasure a new
        # place and colour
        self._n_start = 2 * n + 3 * n_treasures
        super().__init__(
            n_envs, spec, seed, COUNTS, n_draws=self._n_start + episode_limit * n_treasures * 3
        )

    def _start(self, rows: np.ndarray) -> None:
        n, n_treasures = self.n_agents, self.n_treasures
        agents, treasures, colours = np.split(
            self._draws[rows, : self._n_start], [2 * n, 2 * n + 2 * n_treasures], 1
        )
        self.positions[rows] = unit_to_square(agents)
        self.velocities[rows] = 0.0
        self.holding[rows] = NOTHING
        self.treasures[rows] = unit_to_square(treasures, TREASURE_BOUND)
        self.colours[rows] = colours * self.n_banks
        self.alive[rows] = True
        treasure_observe_all(
            rows, self.positions, self.velocities, self.holding, self.treasures, self.colours,
            self.alive, self.mask_dead_treasures, self.n_banks, self.obs, self.state,
        )  # fmt: skip

    def _advance(self, rows: np.ndarray, actions: np.ndarray) -> None:
        treasure_step(
            rows, actions, self._time, self._draws, self._n_start, self.positions, self.velocities,
            self.holding, self.treasures, self.colours, self.alive, self._bodies, self._radius,
            self.mask_dead_treasures, self.n_banks, self._rewards, self._counts, self.obs,
            self.state,
        )  # fmt: skip

    def words(self) -> Words:
        """Names of hunters and banks, their actions and what they see."""
        colours = [f"colour {c}" for c in range(self.n_banks)]
        there = ("x from here", "y from here")
        hunters = [f"hunter {i}" for i in range(self.n_hunters)]
        around: list[str] = []
        for place in range(1, self.n_agents):
            holds, banks = ([f"{does} {c}" for c in colours] for does in ("holds", "is bank of"))
            about = (*there, "velocity x", "velocity y", *holds, *banks)
            around += grouped(f"other agent, nearest {place}", about)
        for place in range(1, self.n_treasures + 1):
            around += grouped(
                f"treasure, nearest {place}", (*there, *(f"has {c}" for c in colours))
            )
        own = grouped("self", ("x", "y", "velocity x", "velocity y"))
        hunter = own + grouped("self", (f"holds {c}" for c in colours)) + around
        return Words(
            (*hunters, *(f"bank of {c}" for c in colours)),
            every(self.n_hunters, hunter) + every(self.n_banks, own + around),
            every(self.n_agents, PUSHES),
        )

    def _draw(self, index: int, canvas: Canvas) -> None:
        h = self.n_hunters
        for colour, place in enumerate(self.positions[index, h:]):
            canvas.square(place, BANK_RADIUS, PALETTE[colour], BLACK, 2, label="B")
        for alive, place, colour in zip(
            self.alive[index], self.treasures[index], self.colours[index].tolist(), strict=True
        ):
            if alive:
                canvas.cross(place, TREASURE_RADIUS, PALETTE[colour], 3)
        for place, colour in zip(
            self.positions[index, :h], self.holding[index].tolist(), strict=True
        ):
            canvas.disc(
                place, HUNTER_RADIUS, WHITE if colour == NOTHING else PALETTE[colour], BLACK, 1.5
            )
