"""Predator-prey on a grid with a penalty for hunting alone (DAC, appendix D.1; Son et al. 2019)."""

from __future__ import annotations

import numpy as np

from envs.compiled import kernel
from envs.ranges import AMOUNT, SIZE, SWITCH, whole
from envs.vector_env import EnvSpec, VectorEnv
from envs.words import Words, every, grouped, one_hot
from utils.errors import ConfigError
from utils.ranges import check_ranges, one_of

LEFT, RIGHT, UP, DOWN, STOP = range(5)
N_ACTIONS = 5
BEFORE_REWARD, AFTER_REWARD = "before_reward", "after_reward"
CELL_PIXELS = 48
PREDATOR_COLOUR = np.array([40, 90, 200], dtype=np.uint8)
PREY_COLOUR = np.array([210, 60, 50], dtype=np.uint8)


class PredatorPrey(VectorEnv):
    """B hunts at once, computed on arrays over B.

    One step with `prey_moves="before_reward"`, as in the public code of Son et al. (2019), which
    DAC names as its source:

    1. Predators move in the order of their number; one that runs into another that has not moved
       yet lets that one move first. Then the prey move in the order of their number, each by one of
       the five actions, drawn uniformly. A move off the grid or into a cell that is occupied leaves
       the body where it is: no two bodies share a cell, and all actions are available.
    2. Every prey counts the predators orthogonally next to it: two or more capture it (reward +1),
       exactly one is hunting alone (reward -penalty). Rewards of several prey add up.
    3. A captured prey reappears in a cell drawn from the free ones (not where it was caught).

    With `prey_moves="after_reward"` the predators move one after the other in an order drawn anew
    in every step, the reward is computed, and only then do the prey that were not captured move.
    Predators then see the prey where their next moves are judged, so that hunting alone is avoided
    at no cost. Episodes end by time only.

    With full information the best expected return of the paper's task is 32.8, 30.3, 28.9 and 25.7
    for P = 0, 0.3, 0.5 and 1. (In the public code a prey, too, makes way for a predator that runs
    into it; the best return at P = 0 is then 33.6, the others are the same.)

    Observation of agent i: own (x, y), one-hot of i, and (x, y) of every prey relative to the
    agent's. State: (x, y) of all predators, then of all prey. x grows to the right, y downwards.
    Actions: 0 left, 1 right, 2 up, 3 down, 4 stop. `info`: `captures` and `sole_hunts` of the
    episode so far, summed over prey and steps.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        penalty: P >= 0; hunting alone is rewarded with -P.
        grid_size: cells along each side.
        n_predators: A, at least 2.
        n_prey: at least 1.
        episode_limit: steps.
        scale_coordinates: True: coordinates are divided by grid_size - 1, so that they lie in [0,
            1], relative ones in [-1, 1]; False: cells.
        prey_moves: before_reward | after_reward, see above.

    Raises:
        ConfigError: a value out of range, or more bodies than the grid can hold with one cell left
            free.
    """

    ranges = {
        "penalty": AMOUNT,  # it is subtracted
        "grid_size": whole(2),
        "n_predators": whole(2),
        "n_prey": SIZE,
        "episode_limit": SIZE,
        "scale_coordinates": SWITCH,
        "prey_moves": one_of(BEFORE_REWARD, AFTER_REWARD),
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        penalty: float = 0.0,
        grid_size: int = 5,
        n_predators: int = 2,
        n_prey: int = 1,
        episode_limit: int = 100,
        scale_coordinates: bool = True,
        prey_moves: str = BEFORE_REWARD,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        n_bodies = n_predators + n_prey
        if n_bodies >= grid_size**2:
            raise ConfigError(
                f"predator_prey: {n_predators} predators and {n_prey} prey leave no free cell of "
                f"the {grid_size**2}: use a larger grid_size"
            )
        self.penalty = float(penalty)
        self.grid_size = grid_size
        self.n_prey = n_prey
        self.prey_moves = prey_moves
        # Cells are numbered on the grid with a border of walls around it: a move is one addition, a
        # move off the grid runs into an occupied cell, and two cells are neighbours where their
        # numbers differ by 1 or `width`.
        self._width = grid_size + 2
        n_cells = self._width**2
        self._moves = np.array([-1, 1, -self._width, self._width, 0])
        y, x = np.divmod(np.arange(n_cells), self._width)
        self._walls = (x == 0) | (y == 0) | (x > grid_size) | (y > grid_size)
        scale = grid_size - 1 if scale_coordinates else 1
        self._coordinates = (np.stack([x - 1, y - 1], axis=1) / scale).astype(np.float32)
        self._occupied = np.zeros((n_envs, n_cells), dtype=bool)
        self._cells = np.zeros((n_envs, n_bodies), dtype=np.int64)
        self._moved = np.zeros(n_predators, dtype=bool)
        self._chain = np.zeros(n_predators, dtype=np.int64)
        self._first_cell = np.arange(n_envs) * n_cells
        self._time = np.zeros(n_envs, dtype=np.int64)
        self._rows = np.arange(n_envs)
        # All uniforms of an episode are drawn at its start: one generator call per environment and
        # episode. A step uses one per prey for its move and one for the cell where it reappears;
        # with after_reward one per predator for its turn, and one per prey, which serves for both.
        self._start_draws = np.zeros((n_envs, n_bodies))
        per_step = 2 * n_prey if prey_moves == BEFORE_REWARD else n_bodies
        self._draws = np.zeros((n_envs, episode_limit, per_step))
        spec = EnvSpec(
            n_agents=n_predators,
            n_actions=N_ACTIONS,
            obs_size=2 + n_predators + 2 * n_prey,
            state_size=2 * n_bodies,
            episode_limit=episode_limit,
        )
        super().__init__(n_envs, spec, seed, info_keys=("captures", "sole_hunts"))
        self.avail_actions[:] = 1
        self.obs[:, :, 2 : 2 + n_predators] = np.eye(n_predators)

    def _reset(self, mask: np.ndarray) -> None:
        rows = np.flatnonzero(mask)
        for b in rows:
            self.rngs[b].random(out=self._start_draws[b])
            self.rngs[b].random(out=self._draws[b])
        self._time[rows] = 0
        for count in self.info.values():
            count[rows] = 0.0
        self._occupied[rows] = self._walls
        for body in range(self._cells.shape[1]):
            self._place(rows, body, self._start_draws[rows, body])
        self._observe(rows)

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        # a slice is several times as fast as an index array and means the same
        rows = slice(None) if mask.all() else np.flatnonzero(mask)
        numbers = self._rows[rows]
        draws = self._draws[numbers, self._time[rows]]
        self._time[rows] += 1
        if self.prey_moves == BEFORE_REWARD:
            moves, places = draws[:, : self.n_prey], draws[:, self.n_prey :]
            _move_predators(
                self._cells,
                self._occupied,
                self._moves,
                numbers,
                actions,
                self._moved,
                self._chain,
            )
            for prey in range(self.n_prey):
                self._move(numbers, self.n_agents + prey, _move_of(moves[:, prey]))
            captured = self._judge(rows)
        else:
            order = draws[:, : self.n_agents].argsort(axis=1)
            for turn in range(self.n_agents):
                predator = order[:, turn]
                self._move(numbers, predator, actions[numbers, predator])
            captured = self._judge(rows)
            places = draws[:, self.n_agents :]
        for prey in range(self.n_prey):
            body, caught = self.n_agents + prey, captured[:, prey]
            if self.prey_moves == AFTER_REWARD:
                choice = _move_of(places[:, prey])
                choice[caught] = STOP
                self._move(numbers, body, choice)
            if caught.any():
                where = numbers[caught]
                left = self._cells[where, body]
                self._place(where, body, places[caught, prey])
                self._occupied[where, left] = False

        self.truncated[rows] = self._time[rows] >= self.episode_limit
        self._observe(rows)

    def _judge(self, rows: slice | np.ndarray) -> np.ndarray:
        """Sets the rewards, counts captures and sole hunts; returns which prey are captured, [R,
        n_prey].
        """
        cells = self._cells[rows]
        distance = np.abs(cells[:, : self.n_agents, None] - cells[:, None, self.n_agents :])
        hunters = ((distance == 1) | (distance == self._width)).sum(axis=1)
        captured, alone = hunters >= 2, hunters == 1
        captures, sole_hunts = captured.sum(axis=1), alone.sum(axis=1)
        self.reward[rows] = captures - self.penalty * sole_hunts
        self.info["captures"][rows] += captures
        self.info["sole_hunts"][rows] += sole_hunts
        return captured

    def _move(self, numbers: np.ndarray, body: np.ndarray | int, action: np.ndarray) -> None:
        """Moves one body of each environment in `numbers` ([R], as `body` and `action`) where its
        way is free.
        """
        occupied = self._occupied.reshape(-1)
        first = self._first_cell[numbers]
        old = self._cells[numbers, body]
        new = old + self._moves[action]
        new = np.where(occupied[first + new], old, new)
        occupied[first + old] = False
        occupied[first + new] = True
        self._cells[numbers, body] = new

    def _place(self, numbers: np.ndarray, body: int, draw: np.ndarray) -> None:
        """Puts one body of each environment in `numbers` ([R], as `draw`) into a random free cell.

        Args:
            draw: uniform in [0, 1); picks the cell.
        """
        free = ~self._occupied[numbers]
        rank = np.floor(draw * free.sum(axis=1))
        new = (free.cumsum(axis=1) > rank[:, None]).argmax(axis=1)
        self._occupied[numbers, new] = True
        self._cells[numbers, body] = new

    def _observe(self, rows: slice | np.ndarray) -> None:
        places = self._coordinates[self._cells[rows]]
        predators, prey = places[:, : self.n_agents], places[:, self.n_agents :]
        relative = prey[:, None] - predators[:, :, None]
        self.state[rows] = places.reshape(len(places), self.state_size)
        self.obs[rows, :, :2] = predators
        self.obs[rows, :, 2 + self.n_agents :] = relative.reshape(
            *relative.shape[:2], 2 * self.n_prey
        )

    def words(self) -> Words:
        """Names of predators, actions and what a predator sees."""
        predators = [f"predator {i}" for i in range(self.n_agents)]
        seen = grouped("self", "xy") + one_hot("number", map(str, range(self.n_agents)))
        for prey in range(self.n_prey):
            seen += grouped(f"prey {prey}", ("x from here", "y from here"))
        moves = ("left", "right", "up", "down", "stop")
        return Words(tuple(predators), every(self.n_agents, seen), every(self.n_agents, moves))

    def render(self, index: int = 0) -> np.ndarray:
        """The grid, predators blue and prey red, uint8 [H, W, 3]."""
        side = self.grid_size * CELL_PIXELS + 1
        picture = np.full((side, side, 3), 255, dtype=np.uint8)
        picture[::CELL_PIXELS] = picture[:, ::CELL_PIXELS] = 190
        offset = np.arange(CELL_PIXELS) - CELL_PIXELS / 2
        disc = offset[:, None] ** 2 + offset[None] ** 2 <= (0.36 * CELL_PIXELS) ** 2
        for body, cell in enumerate(self._cells[index].tolist()):
            top, left = (CELL_PIXELS * (c - 1) for c in divmod(cell, self._width))
            colour = PREDATOR_COLOUR if body < self.n_agents else PREY_COLOUR
            picture[top : top + CELL_PIXELS, left : left + CELL_PIXELS][disc] = colour
        return picture


def _move_of(draw: np.ndarray) -> np.ndarray:
    """The prey's action for a uniform draw in [0, 1)."""
    return (draw * N_ACTIONS).astype(np.int64)


@kernel
def _move_predators(
    cells: np.ndarray,
    occupied: np.ndarray,
    moves: np.ndarray,
    numbers: np.ndarray,
    actions: np.ndarray,
    moved: np.ndarray,
    chain: np.ndarray,
) -> None:
    """Moves the predators of the environments `numbers` ([R]) in the order of their number; one
    that stands in another's way and has not moved yet moves first.

    Args:
        cells: of all bodies, [B, N], changed.
        occupied: [B, C], changed; walls are always occupied.
        moves: what an action adds to a cell's number, [5].
        actions: [B, A].
        moved: [A], room for the predators that have had their turn or wait for another.
        chain: [A], room for those that wait for the next one.
    """
    n_agents = actions.shape[1]
    for row in range(len(numbers)):
        env = numbers[row]
        moved[:] = False
        for first in range(n_agents):
            length, body = 0, first
            while not moved[body]:
                moved[body] = True
                chain[length] = body
                length += 1
                target = cells[env, body] + moves[actions[env, body]]
                for other in range(n_agents):
                    if cells[env, other] == target:
                        body = other
            while length:
                length -= 1
                body = chain[length]
                old = cells[env, body]
                new = old + moves[actions[env, body]]
                if not occupied[env, new]:
                    occupied[env, old] = False
                    occupied[env, new] = True
                    cells[env, body] = new
