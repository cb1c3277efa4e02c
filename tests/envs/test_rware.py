"""The multi-robot warehouse: against its rules in plain Python, and against rware itself."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from envs import make_vector_env
from envs.rware.env import RobotWarehouse
from envs.rware.tasks import Task, make_floor, parse_name, read_floor
from envs.rware.ties import first_robots
from utils.errors import ConfigError

NOOP, FORWARD, LEFT, RIGHT, TOGGLE_LOAD = range(5)
UP, DOWN, TO_LEFT, TO_RIGHT = range(4)
CLOCKWISE = [UP, TO_RIGHT, DOWN, TO_LEFT]
AHEAD = {UP: (0, -1), DOWN: (0, 1), TO_LEFT: (-1, 0), TO_RIGHT: (1, 0)}
LAYOUT = """
    ..xx.x
    .gxx.x
    ......
    xx..gx
"""
CROWD = "g...\n.xx.\n.xx.\n...g"

# every size and difficulty, sensors, heights, rewards, crowds, floors of one's own
TASKS = {
    "tiny-2ag": {},
    "tiny-4ag-hard": {},
    "tiny-6ag-easy": {},
    "small-3ag": {},
    "small-4ag-hard": {},
    "medium-4ag": {},
    "medium-5ag-easy": {},
    "large-6ag": {"normalised_coordinates": True},
    "2s-tiny-3h-11ag": {"reward_type": "two_stage"},
    "3s-2x1-5h-7ag-4req-twostage": {},
    "2x1-4h-14ag-3req-global": {"max_inactivity_steps": 60},
    "2x3-1h-3ag-2req-indiv": {"time_limit": 90, "max_inactivity_steps": 40},
    "tiny-13ag": {"layout": CROWD, "request_queue_size": 2},
    "tiny-5ag": {"layout": LAYOUT, "request_queue_size": 3, "reward_type": "two_stage"},
}


def keywords(map_name, **given):
    """The arguments that rware would get; its kinds of rewards as words."""
    task = parse_name(map_name)
    return {
        **vars(task),
        "layout": None,
        "normalised_coordinates": False,
        "max_inactivity_steps": None,
        "time_limit": 500,
        **given,
    }


class Plain:
    """The rules in plain Python: robots as dicts, shelves as a list of cells (x, y).

    Who goes of equals is left to the environment: `step` is told where the robots were seen after
    it, and takes one of the equals that went, if one did.
    """

    def __init__(self, map_name, **given):
        self.k = keywords(map_name, **given)
        if self.k["layout"]:
            rows = self.k["layout"].replace(" ", "").strip().split("\n")
            self.height, self.width = len(rows), len(rows[0])
            letters = {(x, y): one for y, row in enumerate(rows) for x, one in enumerate(row)}
            self.goals = [cell for cell, one in letters.items() if one == "g"]
            self.homes = [cell for cell, one in letters.items() if one == "x"]
        else:
            self.draw_floor()
        self.seen = dict.fromkeys(("ties", "circles", "swaps", "deliveries", "returns"), 0)

    def draw_floor(self):
        rows, columns, high = (
            self.k[f"{key}"] for key in ("shelf_rows", "shelf_columns", "column_height")
        )
        self.height, self.width = rows * (high + 1) + 2, 3 * columns + 1
        middle = (self.width // 2 - 1, self.width // 2)
        self.goals = [(x, self.height - 1) for x in middle]
        self.homes = [
            (x, y)
            for y in range(self.height - 1)
            for x in range(self.width)
            if x % 3 and y % (high + 1) and not (x in middle and y > self.height - high - 3)
        ]

    def reset(self, seed):
        self.rng = np.random.default_rng(seed)
        n = self.k["n_agents"]
        cells = self.rng.choice(self.height * self.width, n, replace=False)
        facing = self.rng.choice(4, n)
        self.robots = [
            {"cell": (int(c) % self.width, int(c) // self.width), "facing": int(d), "cargo": None,
             "delivered": False}
            for c, d in zip(cells, facing, strict=True)
        ]  # fmt: skip
        self.shelves = list(self.homes)
        queue = self.k["request_queue_size"]
        self.requests = set(self.rng.choice(len(self.shelves), queue, replace=False).tolist())
        self.time = self.idle = 0

    def aim(self, robot, action):
        if action != FORWARD:
            return robot["cell"]
        x, y = (a + b for a, b in zip(robot["cell"], AHEAD[robot["facing"]], strict=True))
        cell = min(max(x, 0), self.width - 1), min(max(y, 0), self.height - 1)
        carried = {self.shelves[r["cargo"]] for r in self.robots if r["cargo"] is not None}
        stands = cell in self.shelves and cell not in carried
        return robot["cell"] if robot["cargo"] is not None and stands else cell

    def who_goes(self, targets, seen_after):
        """Numbers of robots that reach their targets."""
        cells = [robot["cell"] for robot in self.robots]
        goes = {i for i, cell in enumerate(cells) if targets[i] == cell}
        wanting = {}
        for i, target in enumerate(targets):
            wanting.setdefault(target, []).append(i)

        def queue(i):
            return 1 + max(map(queue, wanting.get(cells[i], [])), default=0)

        for i in range(len(cells)):
            ring = [i]
            while targets[ring[-1]] in cells and len(ring) <= len(cells):
                ring.append(cells.index(targets[ring[-1]]))
                if ring[-1] == i:
                    self.seen["circles"] += len(ring) > 3
                    self.seen["swaps"] += len(ring) == 3
                    goes |= set(ring) if len(ring) > 3 else set()
                    break
        for target in set(targets) - set(cells):
            at = target
            while wanting.get(at):
                longest = max(map(queue, wanting[at]))
                equals = [i for i in wanting[at] if queue(i) == longest]
                self.seen["ties"] += len(equals) > 1
                went = [i for i in equals if seen_after[i] == targets[i]]
                goes.add((went or equals)[0])
                at = cells[(went or equals)[0]]
        return goes

    def step(self, actions, seen_after):
        """Rewards, and whether it is over."""
        targets = [self.aim(r, a) for r, a in zip(self.robots, actions, strict=True)]
        goes = self.who_goes(targets, seen_after)
        rewards = [0.0] * len(actions)
        for i, (robot, action) in enumerate(zip(self.robots, actions, strict=True)):
            turn = {LEFT: -1, RIGHT: 1}.get(action, 0)
            robot["facing"] = CLOCKWISE[(CLOCKWISE.index(robot["facing"]) + turn) % 4]
            if action == TOGGLE_LOAD and robot["cargo"] is None:
                if robot["cell"] in self.shelves:
                    robot["cargo"] = self.shelves.index(robot["cell"])
            elif action == TOGGLE_LOAD and robot["cell"] in self.homes:
                robot["cargo"] = None
                if robot["delivered"] and self.k["reward_type"] == "two_stage":
                    rewards[i] += 0.5
                    self.seen["returns"] += 1
                robot["delivered"] = False
        for i in goes:
            self.robots[i]["cell"] = targets[i]
            if self.robots[i]["cargo"] is not None:
                self.shelves[self.robots[i]["cargo"]] = targets[i]
        self.idle += 1
        for goal in self.goals:
            if goal in self.shelves and self.shelves.index(goal) in self.requests:
                self.deliver(goal, rewards)
                self.idle = 0
        self.time += 1
        limit = self.k["max_inactivity_steps"]
        over = limit is not None and self.idle >= limit
        return rewards, over or self.time >= self.k["time_limit"]

    def deliver(self, goal, rewards):
        shelf = self.shelves.index(goal)
        others = [one for one in range(len(self.shelves)) if one not in self.requests]
        self.requests.add(others[int(self.rng.choice(len(others)))])
        self.requests.remove(shelf)
        (i,) = [i for i, robot in enumerate(self.robots) if robot["cargo"] == shelf]
        self.robots[i]["delivered"] = True
        self.seen["deliveries"] += 1
        kind = self.k["reward_type"]
        for one in range(len(rewards)) if kind == "global" else [i]:
            rewards[one] += 0.5 if kind == "two_stage" else 1.0

    def observations(self):
        return np.array([self.view(robot) for robot in self.robots], dtype=np.float32)

    def view(self, robot):
        at = {one["cell"]: one["facing"] for one in self.robots}
        (x, y), reach = robot["cell"], self.k["sensor_range"]
        place = [x / (self.width - 1), y / (self.height - 1)]
        seen = place if self.k["normalised_coordinates"] else [x, y]
        seen = [*seen, robot["cargo"] is not None, *np.eye(4)[robot["facing"]]]
        seen.append((x, y) not in self.homes)
        for cell_y in range(y - reach, y + reach + 1):
            for cell_x in range(x - reach, x + reach + 1):
                cell = cell_x, cell_y
                there = cell in self.shelves
                seen += [cell in at, *np.eye(4)[at.get(cell, UP)], there]
                seen.append(there and self.shelves.index(cell) in self.requests)
        return seen


class Package:
    """rware itself, with the same methods."""

    def __init__(self, map_name, **given):
        warehouse = pytest.importorskip("rware.warehouse")
        k = keywords(map_name, **given)
        kind = warehouse.RewardType[k.pop("reward_type").upper()]
        self.env = warehouse.Warehouse(
            **{key: k[key] for key in k if key != "time_limit"},
            msg_bits=0,
            max_steps=k["time_limit"],
            reward_type=kind,
        )

    def reset(self, seed):
        self.shown, _ = self.env.reset(seed=seed)

    def step(self, actions, seen_after):
        self.shown, rewards, done, _, _ = self.env.step(actions)
        return rewards, done

    def observations(self):
        return np.array(self.shown)

    @property
    def requests(self):
        return {self.env.shelfs.index(shelf) for shelf in self.env.request_queue}


class Actors:
    """Robots that mostly do their work: to a requested shelf, to a goal, and back to a free place;
    the rest of the time they act at random, and mostly walk.
    """

    def __init__(self, seed, diligence):
        self.rng = np.random.default_rng(seed)
        self.diligence = diligence

    def __call__(self, env, b):
        chosen = self.rng.choice(5, env.n_agents, p=[0.1, 0.6, 0.1, 0.1, 0.1])
        for i in range(env.n_agents):
            if self.rng.random() < self.diligence:
                chosen[i] = self.work(env, b, i)
        return chosen

    def work(self, env, b, i):
        houses = env.houses
        cargo, place = houses.cargo[b, i], np.array([houses.x[b, i], houses.y[b, i]])
        shelves = np.stack([houses.shelf_x[b], houses.shelf_y[b]], axis=1)
        if cargo < 0:
            aims = shelves[houses.requested[b]]
        elif houses.requested[b, cargo]:
            aims = env.floor.goals
        else:
            free = ~env.floor.highways & (houses.shelf_at[b] < 0)
            free[place[1], place[0]] = not env.floor.highways[place[1], place[0]]
            aims = np.argwhere(free)[:, ::-1]
        apart = aims - place
        apart = apart[np.abs(apart).sum(axis=1).argmin()] if len(apart) else np.zeros(2)
        if not apart.any():
            return TOGGLE_LOAD
        axis = self.rng.choice(np.flatnonzero(apart))
        wanted = [(TO_LEFT, TO_RIGHT), (UP, DOWN)][axis][int(apart[axis] > 0)]
        turns = (CLOCKWISE.index(wanted) - CLOCKWISE.index(houses.direction[b, i])) % 4
        return [FORWARD, RIGHT, RIGHT, LEFT][turns]


def compare(reference_class, name, n_steps, n_envs=2):
    """Plays episodes on the batched environment and on one reference for each of its warehouses, at
    least n_steps in all; returns how many, and the references.
    """
    env = RobotWarehouse(n_envs, 0, name, **TASKS[name])
    references = [reference_class(name, **TASKS[name]) for _ in range(n_envs)]
    actors, steps, episode = Actors(1, 0.8 if name != "tiny-13ag" else 0.3), 0, 0
    while steps < n_steps:
        seeds = [1000 * episode + b for b in range(n_envs)]
        env.rngs = [np.random.default_rng(seed) for seed in seeds]
        env.reset()
        for reference, seed in zip(references, seeds, strict=True):
            reference.reset(seed)
        running = np.ones(n_envs, dtype=bool)
        while running.any() and steps < n_steps:
            for b in np.flatnonzero(running):
                expected = references[b].observations()
                np.testing.assert_array_equal(env.obs[b], expected)
                np.testing.assert_array_equal(env.state[b], expected.ravel())
                requested = set(np.flatnonzero(env.houses.requested[b]).tolist())
                assert requested == references[b].requests
            actions = np.stack([actors(env, b) for b in range(n_envs)])
            env.step(actions, running)
            for b in np.flatnonzero(running):
                after = list(zip(env.houses.x[b].tolist(), env.houses.y[b].tolist(), strict=True))
                rewards, done = references[b].step(actions[b].tolist(), after)
                np.testing.assert_array_equal(env.reward[b], np.array(rewards, dtype=np.float32))
                assert done == (env.terminated[b] or env.truncated[b])
                steps += 1
                running[b] = not done
        episode += 1
    return steps, references


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("reference", [Plain, Package])
def test_steps_are_those_of(reference, name):
    assert compare(reference, name, n_steps=400)[0] >= 400


def test_what_the_comparison_has_seen():
    """Equal queues, circles, robots that want to change places, deliveries, shelves put back."""
    seen = dict.fromkeys(("ties", "circles", "swaps", "deliveries", "returns"), 0)
    for name in ("2x1-4h-14ag-3req-global", "tiny-13ag", "tiny-5ag", "2s-tiny-3h-11ag"):
        for reference in compare(Plain, name, n_steps=800)[1]:
            seen = {key: count + reference.seen[key] for key, count in seen.items()}
    assert min(seen.values()) > 5, seen


def chosen_by_networkx(starts, targets):
    """The cells of all robots that go, by the graph's components, circles and longest paths."""
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph()
    for start, target in zip(starts, targets, strict=True):
        graph.add_edge(start, target)
    goes = set()
    for cells in networkx.weakly_connected_components(graph):
        part = graph.subgraph(cells).copy()
        try:
            circle = [edge[0] for edge in networkx.find_cycle(part)]
            goes |= set(circle) if len(circle) != 2 else set()
        except networkx.NetworkXNoCycle:
            goes |= set(networkx.dag_longest_path(part)) & set(starts)
    return goes


def random_plans(rng, n, width, height):
    """Robots in different cells, most of which want to enter the next one in some direction."""
    cells = rng.choice(width * height, n, replace=False)
    starts = [(int(cell) % width, int(cell) // width) for cell in cells]
    targets = []
    for x, y in starts:
        dx, dy = AHEAD[int(rng.integers(4))] if rng.random() < 0.8 else (0, 0)
        targets.append((min(max(x + dx, 0), width - 1), min(max(y + dy, 0), height - 1)))
    return starts, targets


def test_first_of_equals_as_in_networkx():
    rng, apart_from_number = np.random.default_rng(5), 0
    for _ in range(3000):
        n = int(rng.integers(2, 20))
        starts, targets = random_plans(rng, n, int(rng.integers(4, 12)), int(rng.integers(6, 30)))
        found = first_robots(starts, targets)
        goes = chosen_by_networkx(starts, targets)
        assert {cell for cell, one in found.items() if one} <= goes
        assert not goes & {cell for cell, one in found.items() if not one}
        heads = [t for t in set(targets) if targets.count(t) == 2 and t not in starts]
        for target in heads:
            pair = [s for s, t in zip(starts, targets, strict=True) if t == target]
            if not any(one in targets for one in pair):
                apart_from_number += not found[pair[0]]
    assert apart_from_number > 50  # it is not simply the lower number


@pytest.mark.parametrize(
    ("starts", "targets", "goes"),
    [
        # two robots alone: the lower number
        ([(3, 3), (5, 3)], [(4, 3), (4, 3)], (3, 3)),
        ([(5, 3), (3, 3)], [(4, 3), (4, 3)], (5, 3)),
        # others that move make the pair a small part of the graph: the order of a set
        (
            [(5, 3), (3, 3), (0, 0), (0, 8), (8, 0), (8, 8)],
            [(4, 3), (4, 3), (1, 0), (1, 8), (9, 0), (9, 8)],
            (5, 3),
        ),
        (
            [(3, 3), (5, 3), (0, 0), (0, 8), (8, 0), (8, 8)],
            [(4, 3), (4, 3), (1, 0), (1, 8), (9, 0), (9, 8)],
            (5, 3),
        ),
    ],
)
def test_first_of_equals_as_recorded(starts, targets, goes):
    """What networkx 3.6 chose."""
    found = first_robots(starts, targets)
    assert [start for start in starts[:2] if found[start]] == [goes]


def test_longer_queue_goes_first():
    starts = [(4, 2), (3, 3), (2, 3), (5, 3)]
    targets = [(4, 3), (4, 3), (3, 3), (4, 3)]
    found = first_robots(starts, targets)
    assert found == {(4, 2): False, (3, 3): True, (2, 3): True, (5, 3): False}


def test_names_are_those_of_rware(monkeypatch):
    rware = pytest.importorskip("rware")
    registry = importlib.import_module("gymnasium").registry
    ids = [key for key in registry if re.match(r"rware-(tiny|small|medium|large)", key)]
    assert len(ids) == 4 * 3 * 19
    known = {key: registry[key].kwargs for key in ids}
    # its longer names, some of the numbers of each kind: there are millions

    def some(low, high, step=1):
        return range(low, min(high, low + 3 * step), step)

    def collect(id, entry_point, kwargs):
        known[id] = kwargs

    monkeypatch.setattr(rware, "register", collect)
    monkeypatch.setattr(rware, "range", some, raising=False)
    rware.full_registration()
    known = {key: kwargs for key, kwargs in known.items() if not re.search("img|Nd", key)}
    assert len(known) > 3000
    for key, kwargs in known.items():
        task = vars(parse_name(key))
        wanted = {name: kwargs[name] for name in task if name != "reward_type"}
        assert task == {**wanted, "reward_type": kwargs["reward_type"].name.lower()}, key


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("tiny-2ag", Task(1, 3, 2, 2)),
        ("rware-small-5ag-hard-v2", Task(2, 3, 5, 2)),
        ("rware:rware-medium-4ag-easy-v2", Task(2, 5, 4, 8)),
        ("2s-large-3h-6ag", Task(3, 5, 6, 6, column_height=3, sensor_range=2)),
        ("rware-4x7-2h-3ag-5req-twostage-v2", Task(4, 7, 3, 5, 2, 1, "two_stage")),
    ],
)
def test_names(name, task):
    assert parse_name(name) == task
    assert RobotWarehouse(1, 0, name).task == task


def test_what_is_given_counts_more_than_the_name():
    env = RobotWarehouse(
        2, 0, "tiny-2ag", n_agents=3, shelf_rows=2, shelf_columns=5, column_height=4,
        sensor_range=2, request_queue_size=7, reward_type="global", time_limit=9,
    )  # fmt: skip
    assert env.task == Task(2, 5, 3, 7, 4, 2, "global")
    assert (env.n_agents, env.obs_size, env.state_size, env.episode_limit) == (3, 183, 549, 9)


def test_floors():
    drawn = """
        ..........
        .xx.xx.xx.
        .xx.xx.xx.
        ..........
        .xx....xx.
        .xx....xx.
        ....gg....
    """
    given, made = read_floor(drawn), make_floor(2, 3, 2)
    # made ones have a free row between the last shelves and the goals
    assert (made.highways[:-2] == given.highways[:-1]).all()
    assert made.highways[-2:].all()
    assert made.goals.tolist() == [[4, 7], [5, 7]]
    assert given.goals.tolist() == [[4, 6], [5, 6]]


@pytest.mark.parametrize("ends", [False, True])
def test_time_limit_and_inactivity(ends):
    env = RobotWarehouse(2, 0, time_limit=4, time_limit_ends=ends)
    idle = RobotWarehouse(2, 0, time_limit=4, time_limit_ends=ends, max_inactivity_steps=4)
    for one in (env, idle):
        one.reset()
        for over in (False, False, False, True):
            one.step(np.zeros((2, 2), dtype=np.int64))
            assert (one.terminated == (over and (ends or one is idle))).all()
            assert (one.truncated == (over & ~one.terminated)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"map_name": "huge-2ag"}, "rware: unknown map_name 'huge-2ag'; names are built like tiny"),
        ({"map_name": "tiny"}, "rware: unknown map_name 'tiny'"),
        ({"map_name": "rware-tiny-2ag-v1"}, "version 1 of the rules, but there is only 2"),
        ({"map_name": "tiny-1ag-hard"}, "env_args.request_queue_size must be a whole number of at"),
        ({"map_name": "1x2-8h-2ag"}, "env_args.shelf_columns must be an odd number above 0, got 2"),
        ({"map_name": "tiny-200ag", "request_queue_size": 3}, "200 robots are too many for 110"),
        ({"request_queue_size": 32}, "must be below the number of shelves, 32, got 32"),
        ({"reward_type": "none"}, "env_args.reward_type must be one of individual, global, two_"),
        ({"layout": "xx.\nxg"}, "env_args.layout must have lines of equal length of x (shelf)"),
        ({"layout": "xxx\nx.y"}, "env_args.layout must have lines of equal length of x (shelf)"),
        ({"layout": "xxx\nxx."}, "env_args.layout must have a goal (g)"),
        ({"time_limit": 0}, "env_args.time_limit must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make_vector_env("rware", given, 1, 1, "native", "train_env")
    assert "\n" not in str(caught.value)
