"""MAgent's battle (Zheng et al. 2018; package magent2): two armies on a grid, one of them ours."""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from envs import Lazy
from envs.gymma import GymmaEnv
from envs.ranges import CHANCE, NUMBER, SIZE
from utils.errors import ConfigError, MissingPackage
from utils.registry import nearest
from utils.seeding import derive_seed

INSTALL = "pip install -r requirements-magent.txt"
OPPONENTS = ("random", "scripted", "iql", "self")
MAP_SIZES = range(12, 251)
# Trained opponents stand above the environments: they bring torch and the controllers along.
# Named here, as `envs.REGISTRY` names environments, and imported by battles against them alone.
TRAINED = Lazy("frozen_policy", "FrozenPolicy")
NEVER = 2**31 - 1  # `time_limit` cuts episodes, not the package


def _disc(radius: float, centre: bool) -> np.ndarray:
    """(dx, dy) of the cells within `radius`, row by row: the package's order of moves and of
    attacks.
    """
    reach = range(-int(radius), int(radius) + 1)
    cells = [(dx, dy) for dy in reach for dx in reach if dx * dx + dy * dy <= radius * radius]
    return np.array([cell for cell in cells if centre or any(cell)])


MOVES = _disc(2, centre=True)  # actions 0 to 12
ATTACKS = _disc(1.5, centre=False)  # actions 13 to 20
N_ACTIONS = len(MOVES) + len(ATTACKS)
CENTRE, HEALTH = (
    6,
    2,
)  # where an agent sees itself (13 x 13 cells), and the channel of its own team's health


def _mirrored_actions() -> np.ndarray:
    """The action that does on the map with left and right exchanged what action i does, [21]."""
    groups = [group.tolist() for group in (MOVES, ATTACKS)]
    mirrored = [[group.index([-dx, dy]) for dx, dy in group] for group in groups]
    return np.array(mirrored[0] + [len(MOVES) + index for index in mirrored[1]])


MIRROR = _mirrored_actions()


def mirror(obs: np.ndarray) -> np.ndarray:
    """Observations [..., 13 rows, 13 columns, 5] with left and right exchanged."""
    return obs[..., ::-1, :]


def team_size(map_size: int) -> int:
    """How many agents the package puts on each side of a map: two squares of 4% of the cells, as
    far as they fit.
    """
    side = 2 * int(math.sqrt(map_size * map_size * 0.04))
    left, top = map_size // 2 - 3 - side, (map_size - side) // 2
    columns = sum(0 < x < map_size - 1 for x in range(left, left + side, 2))
    rows = sum(0 < y < map_size - 1 for y in range(top, top + side, 2))
    return columns * rows


def map_size_for(n_agents: int) -> int:
    """The smallest map with `n_agents` on each side.

    Raises:
        ConfigError: there is none.
    """
    sizes: dict[int, int] = {}
    for map_size in MAP_SIZES:
        sizes.setdefault(team_size(map_size), map_size)
    if n_agents not in sizes:
        near = sorted(sorted(sizes, key=lambda n: abs(n - n_agents))[:3])
        raise ConfigError(
            f"battle: no map has {n_agents} agents on each side; n_agents near that: "
            f"{', '.join(map(str, near))}"
        )
    return sizes[n_agents]


def load_battle() -> ModuleType:
    """The module `magent2.environments.battle_v4`.

    Raises:
        MissingPackage: magent2 is not installed or cannot be imported.
    """
    try:
        return importlib.import_module("magent2.environments.battle_v4")
    except (ImportError, OSError) as error:  # OSError: its compiled library
        reason = " ".join(str(error).split())
        raise MissingPackage(f"battle: magent2 cannot be imported ({reason}): {INSTALL}") from error


# --- Opponents ---


def chase(own: np.ndarray, foes: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Attack the nearest foe if it is in reach, else move to the free cell that is nearest to it.

    Args:
        own: cells of those who act, int [M, 2].
        foes: cells of their enemies, int [K, 2].
        walls: which cells of the map are walls, bool [W, W].

    Returns:
        Actions, int [M].
    """
    to_foes = foes[None] - own[:, None]
    to_nearest = to_foes[np.arange(len(own)), (to_foes**2).sum(-1).argmin(1)]
    taken = np.pad(walls, 2, constant_values=True)
    for cells in (own, foes):
        taken[tuple(cells.T + 2)] = True
    cells = own[:, None] + MOVES
    distances = ((to_nearest[:, None] - MOVES) ** 2).sum(-1).astype(float)
    distances[taken[tuple(np.moveaxis(cells, -1, 0) + 2)] & MOVES.any(1)] = (
        np.inf
    )  # to stay is always possible
    hits = (to_nearest[:, None] == ATTACKS).all(-1)
    return np.where(hits.any(1), len(MOVES) + hits.argmax(1), distances.argmin(1))


class OpponentPolicy(Protocol):
    """Whoever acts for the other team."""

    def reset(self) -> None:
        """An episode begins."""

    def act(self, obs: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Actions int [A] for observations [A, O], zero for the dead; alive: bool [A]."""


# --- The environment ---


class MAgentBattle:
    """The package's battle as a PettingZoo parallel environment whose agents are our team; the
    opponents are inside.

    Our team stands on the left. Policies for the right (opponents `iql`; the second half of our
    agents in self-play) see and do everything with left and right exchanged, so one policy fits
    both sides.

    Args:
        n_agents: of each team.
        opponents, opponent_path, opponent_epsilon: see `BattleEnv`.
        render_mode: of the package.
        rewards: keywords of the package.

    Raises:
        ConfigError, MissingPackage: see `BattleEnv`.
    """

    def __init__(
        self,
        n_agents: int,
        opponents: str,
        opponent_path: str,
        opponent_epsilon: float,
        render_mode: str | None = None,
        **rewards: float,
    ) -> None:
        if opponents not in OPPONENTS:
            raise ConfigError(
                f"battle: unknown opponents '{opponents}'; {nearest(opponents, OPPONENTS)}"
            )
        if (opponents == "iql") != bool(opponent_path):
            raise ConfigError(
                "battle: env_args.opponent_path goes with opponents iql, which need it, and no "
                "others"
            )
        if not 0 <= opponent_epsilon <= 1:
            raise ConfigError(
                f"battle: opponent_epsilon is {opponent_epsilon}, must be from 0 to 1"
            )
        self.opponents = opponents
        self._n_agents = n_agents
        self._epsilon = opponent_epsilon
        map_size = map_size_for(n_agents)
        self.raw = load_battle().parallel_env(
            map_size=map_size, max_cycles=NEVER, render_mode=render_mode, **rewards
        )
        everybody = self.raw.possible_agents
        self._rows = {agent: row for row, agent in enumerate(everybody)}
        self.possible_agents = list(everybody if opponents == "self" else everybody[:n_agents])
        self._walls = self.raw.base_state[..., 0] != 0
        self._policy: OpponentPolicy | None = None
        if opponents == "iql":
            obs_size = math.prod(self.observation_space(everybody[0]).shape)
            self._policy = TRAINED(opponent_path, n_agents, obs_size, N_ACTIONS)

    def observation_space(self, agent: str) -> Any:
        return self.raw.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.raw.action_space(agent)

    @property
    def agents(self) -> list[str]:
        """Those of ours who are alive; none when the battle is over."""
        return [agent for agent in self.raw.agents if self._rows[agent] < len(self.possible_agents)]

    def alive(self) -> list[str]:
        """The living of both teams in the package's order, also when the battle is over."""
        engine, everybody = self.raw.env, self.raw.possible_agents
        return [
            everybody[row] for handle in self.raw.handles for row in engine.get_agent_id(handle)
        ]

    def figures(self) -> dict[str, float]:
        """Whether the battle is won (the enemies are dead, not all of ours are), and the dead of
        both teams.
        """
        left, right = (self.raw.env.get_num(handle) for handle in self.raw.handles)
        n = self._n_agents
        return {
            "battle_won": float(left > 0 == right),
            "dead_allies": n - left,
            "dead_enemies": n - right,
        }

    def reset(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts a battle; observations and (empty) infos."""
        self._seen, infos = self.raw.reset(seed=seed)
        self._rng = np.random.default_rng(derive_seed(seed, "opponents"))
        if self._policy is not None:
            self._policy.reset()
        return self._show(), infos

    def step(self, actions: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
        """PettingZoo's five mappings, which may also tell of opponents."""
        chosen = {
            agent: int(MIRROR[one]) if self._on_the_right(agent) else one
            for agent, one in actions.items()
        }
        theirs = [
            agent for agent in self.raw.agents if self._rows[agent] >= len(self.possible_agents)
        ]
        chosen |= zip(theirs, self._opponents(theirs).tolist(), strict=True)
        self._seen, *rest = self.raw.step(chosen)
        return self._show(), *rest

    def state(self) -> np.ndarray:
        """The package's `state()`, [W, W, 5], which fails once a team is dead: walls, each team's
        agents and health.
        """
        state, living = self.raw.base_state.copy(), iter(self.alive())
        for team, handle in enumerate(self.raw.handles):
            for (x, y), agent in zip(self.raw.env.get_pos(handle).tolist(), living, strict=False):
                state[x, y, 1 + 2 * team : 3 + 2 * team] = (
                    1,
                    self._seen[agent][CENTRE, CENTRE, HEALTH],
                )
        return state

    def render(self) -> np.ndarray | None:
        return self.raw.render()

    def close(self) -> None:
        self.raw.close()

    def _on_the_right(self, agent: str) -> bool:
        return self._rows[agent] >= self._n_agents

    def _show(self) -> dict[str, np.ndarray]:
        return {
            agent: mirror(obs) if self._on_the_right(agent) else obs
            for agent, obs in self._seen.items()
        }

    def _opponents(self, agents: Sequence[str]) -> np.ndarray:
        """Actions of the living opponents, int [K]."""
        chosen = self._rng.integers(N_ACTIONS, size=len(agents))
        if self.opponents in ("random", "self"):
            return chosen
        at_random = self._rng.random(len(agents)) < self._epsilon
        if self._policy is None:
            foes, own = (self.raw.env.get_pos(handle) for handle in self.raw.handles)
            planned = chase(own, foes, self._walls)
        else:
            rows = [self._rows[agent] - self._n_agents for agent in agents]
            obs = np.zeros(
                (self._n_agents, *self.observation_space(agents[0]).shape), dtype=np.float32
            )
            obs[rows] = [mirror(self._seen[agent]) for agent in agents]
            alive = np.isin(np.arange(self._n_agents), rows)
            planned = MIRROR[self._policy.act(obs.reshape(self._n_agents, -1), alive)[rows]]
        return np.where(at_random, chosen, planned)


def parallel_env(**kwargs: Any) -> MAgentBattle:
    """What makes this module a `key` of `GymmaEnv`."""
    return MAgentBattle(**kwargs)


class BattleEnv(GymmaEnv):
    """One team of MAgent's battle against fixed opponents, or both in self-play; `GymmaEnv` says
    how it is shown.

    21 actions: moves to the 13 cells within a distance of 2 (the sixth is to stay), attacks on the
    8 neighbours. An agent observes 13 x 13 cells in 5 channels: walls, and presence and health of
    its own and of the other team. The dead have zero observations and action 0 alone. Rewards are
    individual, the state is the map. A battle ends when a team is dead, and is cut after
    `time_limit` steps. `info`: `battle_won`, `dead_allies`, `dead_enemies`.

    Args:
        seed: of this environment's random stream.
        n_agents: of each team; a number that the package's formation has on some map.
        opponents: "random"; "scripted": each walks to the nearest enemy, wherever it is, and
            attacks it; "iql": greedy actions of a policy of this project from `opponent_path`;
            "self": none, both teams are ours, 2 `n_agents`.
        opponent_path: a run's folder (its newest checkpoint) or a checkpoint's.
        opponent_epsilon: share of random actions of scripted and iql opponents.
        time_limit: steps after which an episode is cut.
        step_reward, attack_penalty, attack_opponent_reward, dead_penalty: the package's.
        map_name: a name for the results.

    Raises:
        ConfigError: opponents that do not exist, a checkpoint that does not fit, numbers out of
            range.
        MissingPackage: magent2 is not installed.
    """

    env: MAgentBattle
    ranges = {
        "n_agents": SIZE,
        "opponent_epsilon": CHANCE,
        "time_limit": SIZE,
        "step_reward": NUMBER,
        "attack_penalty": NUMBER,
        "attack_opponent_reward": NUMBER,
        "dead_penalty": NUMBER,
    }

    def __init__(
        self,
        seed: int,
        n_agents: int = 12,
        opponents: str = "random",
        opponent_path: str = "",
        opponent_epsilon: float = 0.05,
        time_limit: int = 400,
        step_reward: float = -0.005,
        attack_penalty: float = -0.1,
        attack_opponent_reward: float = 0.2,
        dead_penalty: float = -0.1,
        map_name: str = "battle",
    ) -> None:
        kwargs = {
            "n_agents": n_agents,
            "opponents": opponents,
            "opponent_path": opponent_path,
            "opponent_epsilon": opponent_epsilon,
            "step_reward": step_reward,
            "attack_penalty": attack_penalty,
            "attack_opponent_reward": attack_opponent_reward,
            "dead_penalty": dead_penalty,
        }
        super().__init__(__name__, seed, time_limit, kwargs, map_name=map_name)

    def step(self, actions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, bool, dict[str, Any]]:
        reward, over, info = super().step(actions)
        return reward, over, {**info, **self.env.figures()}

    def _observe(
        self, observations: Mapping[str, Any], infos: Mapping[str, Any], present: Collection[str]
    ) -> None:
        # at a battle's end the package shows who died in the last step, too
        super()._observe(observations, infos, set(present) & set(self.env.alive()))
