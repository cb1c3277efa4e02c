"""Spread: agents share out landmarks among themselves (MAMT, section 4 and appendices D and G.1;
Lowe et al. 2017).
"""

from __future__ import annotations

import numpy as np

from envs.particle.base import ParticleEnv, unit_to_square
from envs.particle.drawing import BLACK, PALETTE, WHITE, Canvas
from envs.particle.kernels import COVERED, N_MOVES, Bodies, spread_observe_all, spread_step
from envs.ranges import SIZE, SWITCH, whole
from envs.vector_env import EnvSpec
from envs.words import PUSHES, Words, every, grouped
from utils.errors import ConfigError
from utils.ranges import check_ranges, one_of
from utils.registry import nearest

RADIUS = 0.15
ACCELERATION = 5.0  # that of a body without one of its own
DEFAULT_AGENTS = 2
# Who belongs together: an agent covers the landmarks of its group and collides with the agents of
# its group.
GROUPS = {
    "spread": None,
    "spread3_sep": (0, 1, 2),
    "spread3_mix": (0, 1, 0),
    "spread3_ful": (0, 0, 0),
}
INTEGRATORS = ("semi_implicit", "explicit")
COUNTS = ("collisions", "landmarks_covered")


class Spread(ParticleEnv):
    """B worlds with as many agents as landmarks.

    Reward of agent i: minus the sum over the landmarks of the distance to the closest agent, -1 for
    each agent it touches, and -1 for itself (the original counts every agent as in contact with
    itself). The maps of appendix D split agents and landmarks into groups that have nothing to do
    with each other; everything above is within a group, agents of different groups pass through
    each other, and an agent that is alone in its group counts no collision:

    - spread, spread3_ful: one group.
    - spread3_mix: agents 0 and 2 with landmarks 0 and 2; agent 1 with landmark 1.
    - spread3_sep: agent i with landmark i.

    Observation: own velocity, own position, landmarks and other agents relative to the own
    position, and two zeros (an unused channel) for each other agent. State: positions and
    velocities of the agents, positions of the landmarks. Actions: 0 none, 1 -x, 2 +x, 3 -y, 4 +y.
    `info`: `collisions`, pairs in contact, summed over the steps; `landmarks_covered`, landmarks
    with an agent of their group within 0.1 of them, of the last step.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        map_name: a key of `GROUPS`.
        n_agents: A, at least 2; None: 2, and 3 for the maps with a 3 (they have no other).
        episode_limit: steps.
        count_self_collision: the constant -1 of agents that can collide.
        integrator: "semi_implicit": the position moves by the new velocity, as in the original;
            "explicit": by the old one, as in the mpe2 package.
        common_reward: one reward, the sum over the agents.

    Raises:
        ConfigError: an unknown map or a value out of range.
    """

    ranges = {
        "n_agents": whole(2),
        "episode_limit": SIZE,
        "count_self_collision": SWITCH,
        "integrator": one_of(*INTEGRATORS),
        "common_reward": SWITCH,
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        map_name: str = "spread",
        n_agents: int | None = None,
        episode_limit: int = 25,
        count_self_collision: bool = True,
        integrator: str = "semi_implicit",
        common_reward: bool = False,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.groups = _groups(map_name, n_agents)
        n = len(self.groups)
        self._old_velocity = integrator == "explicit"
        together = self.groups[:, None] == self.groups
        # an agent touches itself, unless it is alone
        self._self_penalty = (count_self_collision & (together.sum(axis=1) > 1)).astype(float)
        self._bodies = Bodies(
            np.full(n, ACCELERATION),
            np.ones(n),
            np.full(n, np.inf),
            np.where(together & ~np.eye(n, dtype=bool), 2 * RADIUS, 0.0),
        )
        self.positions = np.zeros((n_envs, n, 2))
        self.velocities = np.zeros((n_envs, n, 2))
        self.landmarks = np.zeros((n_envs, n, 2))
        spec = EnvSpec(
            n_agents=n,
            n_actions=N_MOVES,
            obs_size=4 + 2 * n + 4 * (n - 1),
            state_size=6 * n,
            episode_limit=episode_limit,
            individual_rewards=not common_reward,
        )
        super().__init__(n_envs, spec, seed, COUNTS, n_draws=4 * n)

    def _start(self, rows: np.ndarray) -> None:
        n = self.n_agents
        places = unit_to_square(self._draws[rows])
        self.positions[rows], self.landmarks[rows] = places[:, :n], places[:, n:]
        self.velocities[rows] = 0.0
        spread_observe_all(
            rows, self.positions, self.velocities, self.landmarks, self.obs, self.state
        )

    def _advance(self, rows: np.ndarray, actions: np.ndarray) -> None:
        spread_step(
            rows, actions, self.positions, self.velocities, self.landmarks, self._bodies,
            self._old_velocity, self.groups, self._self_penalty, self._rewards, self._counts,
            self.obs, self.state,
        )  # fmt: skip

    def words(self) -> Words:
        """Names of agents, actions and what an agent sees."""
        n = self.n_agents
        return Words(
            tuple(f"agent {i}" for i in range(n)),
            tuple(tuple(_seen_by(i, n)) for i in range(n)),
            every(n, PUSHES),
        )

    def _draw(self, index: int, canvas: Canvas) -> None:
        agents, landmarks = self.positions[index], self.landmarks[index]
        for number, (place, group) in enumerate(zip(agents, self.groups, strict=True)):
            canvas.disc(place, RADIUS, PALETTE[group], label=str(number))
        for number, (place, group) in enumerate(zip(landmarks, self.groups, strict=True)):
            covered = np.linalg.norm(agents[self.groups == group] - place, axis=1).min() < COVERED
            colour = PALETTE[group]
            canvas.disc(place, 0.06, BLACK if covered else WHITE, colour, 2, label=str(number))


def _seen_by(agent: int, n: int) -> list[str]:
    """Names of the entries of an agent's observation."""
    there = ("x from here", "y from here")
    names = grouped("self", ("velocity x", "velocity y", "x", "y"))
    for landmark in range(n):
        names += grouped(f"landmark {landmark}", there)
    others = [f"agent {i}" for i in range(n) if i != agent]
    for other in others:
        names += grouped(other, there)
    for other in others:
        names += grouped(other, ("unused 0", "unused 1"))
    return names


def _groups(map_name: str, n_agents: int | None) -> np.ndarray:
    """The group of every agent, int64 [A]."""
    if map_name not in GROUPS:
        raise ConfigError(f"spread: unknown map_name '{map_name}'; {nearest(map_name, GROUPS)}")
    groups: tuple[int, ...] | None = GROUPS[map_name]
    if groups is None:
        groups = (0,) * (DEFAULT_AGENTS if n_agents is None else n_agents)
    elif n_agents not in (None, len(groups)):
        raise ConfigError(
            f"spread: n_agents is {n_agents}, but map_name={map_name} has {len(groups)}: leave it "
            "null"
        )
    return np.array(groups, dtype=np.int64)
