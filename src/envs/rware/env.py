"""The multi-robot warehouse: robots bring requested shelves to goals (Papoudakis et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from envs.grid_canvas import GridCanvas
from envs.named import override
from envs.particle.drawing import BLACK, PALETTE, Colour
from envs.ranges import SIZE, SWITCH
from envs.rware.kernels import (
    CELL_SIZE,
    DX,
    DY,
    N_ACTIONS,
    N_DIRECTIONS,
    NOTHING,
    OWN_SIZE,
    Plans,
    Rules,
    Warehouses,
    carry_out,
    decide,
    observe,
)
from envs.rware.tasks import Floor, Task, make_floor, parse_name, read_floor
from envs.rware.ties import first_robots
from envs.vector_env import EnvSpec, VectorEnv
from envs.words import Words, every, grouped
from utils.errors import ConfigError
from utils.ranges import Range, check_ranges, one_of

REWARD_TYPES = ("individual", "global", "two_stage")
DELIVERY_REWARD = {"individual": 1.0, "global": 1.0, "two_stage": 0.5}
LANE_COLOUR: Colour = (238, 238, 238)
GOAL_COLOUR: Colour = (120, 120, 120)
SHELF_COLOUR, REQUEST_COLOUR = PALETTE[4], PALETTE[5]
ROBOT_COLOUR, LOADED_COLOUR = PALETTE[1], PALETTE[3]


class RobotWarehouse(VectorEnv):
    """B warehouses at once, by the rules of the package rware 2.0 (tasks "-v2").

    One step:
    1. A robot goes forward, turns left or right on its cell, or toggles its load: it takes the
       shelf above it, or puts down its own where shelves may stand. Robots pass below shelves;
       with a shelf they cannot enter the cell of another one.
    2. No two robots share a cell. Robots that go in a circle of three or more all go; of several
       that want an empty cell the one with the longest queue behind it goes, and its queue (with
       equal queues the choice is rware's, see `ties`); all others stay.
    3. A requested shelf at a goal is delivered: another shelf, drawn from those not requested, is
       requested instead. "individual": the robot gets 1; "global": all get 1; "two_stage": the
       robot gets 0.5, and 0.5 more when it puts the shelf down again.

    Episodes end after `max_inactivity_steps` steps without a delivery (terminated), or are cut
    after `time_limit` steps (truncated: learners count on a future). In rware, and in EPyMARL with
    it, they end there, too: `time_limit_ends`.

    Starts and requests are drawn as rware draws them from a generator in the same state.

    Observation: own x, y, whether loaded, direction (one-hot: up, down, left, right), whether on a
    highway; then for each cell in range, row by row: whether a robot is there, its direction,
    whether a shelf is there, whether it is requested. State: all observations, as in EPyMARL.
    Actions: 0 none, 1 forward, 2 turn left, 3 turn right, 4 load or unload; all are always
    available. Rewards are individual. `info`, of the episode so far: `deliveries`.

    Not here: rware's observations as images, and its messages, which none of its names asks for.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        map_name: a name as in rware, see `parse_name`; it stands for all that is None below.
        n_agents: A.
        shelf_rows, shelf_columns: blocks of shelves; an odd number of columns.
        column_height: cells of a block of shelves from top to bottom.
        layout: the floor in letters instead of the last three, see `read_floor`.
        sensor_range: how many cells a robot sees in each direction.
        request_queue_size: how many shelves are requested at any time.
        reward_type: see above.
        normalised_coordinates: own x and y from 0 to 1 instead of cells.
        max_inactivity_steps: see above; None: never.
        time_limit: steps.
        time_limit_ends: an episode that reaches the limit counts as terminated, not as cut.

    Raises:
        ConfigError: an unknown name, a value out of range, values that do not go together.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "n_agents": SIZE,
        "shelf_rows": SIZE,
        "shelf_columns": Range(lambda n: SIZE.holds(n) and n % 2 == 1, "an odd number above 0"),
        "column_height": SIZE,
        "sensor_range": SIZE,
        "request_queue_size": SIZE,
        "reward_type": one_of(*REWARD_TYPES),
        "normalised_coordinates": SWITCH,
        "max_inactivity_steps": SIZE,
        "time_limit": SIZE,
        "time_limit_ends": SWITCH,
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        map_name: str = "tiny-2ag",
        n_agents: int | None = None,
        shelf_rows: int | None = None,
        shelf_columns: int | None = None,
        column_height: int | None = None,
        layout: str | None = None,
        sensor_range: int | None = None,
        request_queue_size: int | None = None,
        reward_type: str | None = None,
        normalised_coordinates: bool = False,
        max_inactivity_steps: int | None = None,
        time_limit: int = 500,
        time_limit_ends: bool = False,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        task = override(
            parse_name(map_name),
            n_agents=n_agents,
            shelf_rows=shelf_rows,
            shelf_columns=shelf_columns,
            column_height=column_height,
            sensor_range=sensor_range,
            request_queue_size=request_queue_size,
            reward_type=reward_type,
        )
        check_ranges(vars(task), self.ranges, "env_args.")
        self.task = task
        self.floor = _floor_of(task, layout)
        self.rules = Rules(
            self.floor.highways,
            self.floor.goals,
            sensor_range=task.sensor_range,
            two_stage=task.reward_type == "two_stage",
            normalised_coordinates=bool(normalised_coordinates),
        )
        self._max_inactivity_steps = max_inactivity_steps or np.inf
        self._time_limit_ends = bool(time_limit_ends)
        self._shelves = np.argwhere(~self.floor.highways)  # [N, 2], y and x
        self.houses = _empty(n_envs, task.n_agents, self.floor, len(self._shelves))
        robots = (n_envs, task.n_agents)
        self._plans = Plans(
            action=np.zeros(robots, dtype=np.int64),
            target_x=np.zeros(robots, dtype=np.int64),
            target_y=np.zeros(robots, dtype=np.int64),
            may_go=np.zeros(robots, dtype=bool),
            tied=np.zeros(n_envs, dtype=bool),
        )
        self._arrived = np.zeros(n_envs, dtype=bool)
        self._time = np.zeros(n_envs, dtype=np.int64)
        self._inactive = np.zeros(n_envs, dtype=np.int64)
        self._rewards = np.zeros((n_envs, task.n_agents))
        self._every_number = np.arange(n_envs)
        obs_size = OWN_SIZE + CELL_SIZE * (2 * task.sensor_range + 1) ** 2
        spec = EnvSpec(
            n_agents=task.n_agents,
            n_actions=N_ACTIONS,
            obs_size=obs_size,
            state_size=task.n_agents * obs_size,
            episode_limit=time_limit,
            individual_rewards=True,
        )
        super().__init__(n_envs, spec, seed, info_keys=("deliveries",))
        self.avail_actions[:] = 1

    def _reset(self, mask: np.ndarray) -> None:
        numbers = np.flatnonzero(mask)
        for b in numbers.tolist():
            self._begin(b)
        self._time[mask] = 0
        self._inactive[mask] = 0
        self.info["deliveries"][mask] = 0.0
        observe(numbers, self.houses, self.rules, self.obs, self.state)

    def _begin(self, b: int) -> None:
        """Shelves in their places, robots and requests at random."""
        houses, rng, n = self.houses, self.rngs[b], self.n_agents
        cells = rng.choice(self.floor.highways.size, n, replace=False)
        houses.y[b], houses.x[b] = np.unravel_index(cells, self.floor.highways.shape)
        houses.direction[b] = rng.choice(N_DIRECTIONS, n)
        houses.cargo[b] = NOTHING
        houses.delivered[b] = False
        houses.shelf_y[b], houses.shelf_x[b] = self._shelves.T
        requests = rng.choice(len(self._shelves), self.task.request_queue_size, replace=False)
        houses.requested[b] = False
        houses.requested[b, requests] = True
        houses.robot_at[b] = houses.shelf_at[b] = NOTHING
        houses.robot_at[b, houses.y[b], houses.x[b]] = np.arange(n)
        houses.shelf_at[b, houses.shelf_y[b], houses.shelf_x[b]] = np.arange(len(self._shelves))

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        everyone = mask.all()
        numbers = self._every_number if everyone else np.flatnonzero(mask)
        # a slice is several times as fast as an index array and means the same
        rows = slice(None) if everyone else numbers
        houses, rules, plans = self.houses, self.rules, self._plans
        decide(numbers, actions, houses, plans)
        for b in numbers[plans.tied[rows]].tolist():
            self._break_ties(b)
        carry_out(numbers, houses, rules, plans, self._rewards, self._arrived)
        self._inactive[rows] += 1
        for b in numbers[self._arrived[rows]].tolist():
            self._deliver(b)
            self._inactive[b] = 0
        observe(numbers, houses, rules, self.obs, self.state)
        self._time[rows] += 1
        self.reward[rows] = self._rewards[rows]
        idle = self._inactive[rows] >= self._max_inactivity_steps
        late = ~idle & (self._time[rows] >= self.episode_limit)
        self.terminated[rows] = idle | (late & self._time_limit_ends)
        self.truncated[rows] = late & (not self._time_limit_ends)

    def _break_ties(self, b: int) -> None:
        """Decides among robots before empty cells."""
        houses, plans = self.houses, self._plans
        starts = list(zip(houses.x[b].tolist(), houses.y[b].tolist(), strict=True))
        targets = list(zip(plans.target_x[b].tolist(), plans.target_y[b].tolist(), strict=True))
        goes = first_robots(starts, targets)
        for i, start in enumerate(starts):
            if start in goes:
                plans.may_go[b, i] = goes[start]

    def _deliver(self, b: int) -> None:
        """Rewards requested shelves at goals, and draws a new request for each."""
        houses, kind = self.houses, self.task.reward_type
        for x, y in self.floor.goals:
            shelf = houses.shelf_at[b, y, x]
            if shelf == NOTHING or not houses.requested[b, shelf]:
                continue
            candidates = np.flatnonzero(~houses.requested[b])
            new = candidates[self.rngs[b].integers(len(candidates))]
            houses.requested[b, shelf], houses.requested[b, new] = False, True
            robot = houses.robot_at[b, y, x]
            houses.delivered[b, robot] = True
            receivers = slice(None) if kind == "global" else robot
            self._rewards[b, receivers] += DELIVERY_REWARD[kind]
            self.info["deliveries"][b] += 1

    def words(self) -> Words:
        """Names of robots, actions and what a robot sees."""
        faces = [f"faces {where}" for where in ("up", "down", "left", "right")]
        names = grouped("self", ("x", "y", "carries a shelf", *faces, "is on a highway"))
        reach = range(-self.task.sensor_range, self.task.sensor_range + 1)
        for y in reach:
            for x in reach:
                about = ("has a robot", *faces, "has a shelf", "its shelf is requested")
                names += grouped(f"cell {x:+d} {y:+d}", about)
        moves = ("none", "forward", "turn left", "turn right", "load or unload")
        robots = tuple(f"robot {i}" for i in range(self.n_agents))
        return Words(robots, every(self.n_agents, names), every(self.n_agents, moves))

    def render(self, index: int = 0) -> np.ndarray:
        """The warehouse from above, uint8 [H, W, 3]: lanes grey, goals G; shelves blue, requested
        ones red; robots (discs with a line forward) yellow, with a shelf pink.
        """
        houses = self.houses
        canvas = GridCanvas(*self.floor.highways.shape)
        for y, x in np.argwhere(self.floor.highways):
            canvas.square(y, x, 0.5, LANE_COLOUR)
        for x, y in self.floor.goals:
            canvas.square(y, x, 0.5, GOAL_COLOUR)
            canvas.label(y, x, 0.45, "G")
        for shelf, requested in enumerate(houses.requested[index]):
            x, y = houses.shelf_x[index, shelf], houses.shelf_y[index, shelf]
            canvas.square(y, x, 0.42, REQUEST_COLOUR if requested else SHELF_COLOUR)
        for i in range(self.n_agents):
            x, y, direction = (one[index, i] for one in (houses.x, houses.y, houses.direction))
            loaded = houses.cargo[index, i] != NOTHING
            canvas.disc(y, x, 0.3, LOADED_COLOUR if loaded else ROBOT_COLOUR)
            ahead = (y + 0.5 + 0.4 * DY[direction], x + 0.5 + 0.4 * DX[direction])
            canvas.line((y + 0.5, x + 0.5), ahead, BLACK)
        return canvas.picture()


def _floor_of(task: Task, layout: str | None) -> Floor:
    """The floor, with room for the robots and shelves to request."""
    if layout is None:
        floor = make_floor(task.shelf_rows, task.shelf_columns, task.column_height)
    else:
        floor = read_floor(layout)
    n_shelves = int((~floor.highways).sum())
    if task.n_agents > floor.highways.size:
        raise ConfigError(
            f"rware: {task.n_agents} robots are too many for {floor.highways.size} cells"
        )
    if task.request_queue_size >= n_shelves:
        raise ConfigError(
            f"env_args.request_queue_size must be below the number of shelves, {n_shelves}, got "
            f"{task.request_queue_size}"
        )
    return floor


def _empty(n_envs: int, n_agents: int, floor: Floor, n_shelves: int) -> Warehouses:
    def numbers(*shape: int) -> np.ndarray:
        return np.zeros((n_envs, *shape), dtype=np.int64)

    return Warehouses(
        x=numbers(n_agents),
        y=numbers(n_agents),
        direction=numbers(n_agents),
        cargo=numbers(n_agents),
        delivered=numbers(n_agents).astype(bool),
        shelf_x=numbers(n_shelves),
        shelf_y=numbers(n_shelves),
        requested=numbers(n_shelves).astype(bool),
        robot_at=numbers(*floor.highways.shape),
        shelf_at=numbers(*floor.highways.shape),
    )
