"""SMAC's interface on arrays against plain loops over units, written from its description, and by
hand.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_HEAL,
    ORDER_MOVE,
    ORDER_NONE,
    ORDER_STOP,
    Battle,
)
from envs.starcraft.facts import UNIT_INDEX, UNIT_NAMES, map_info, map_names
from envs.starcraft.interface import DRAWN, LOST, RUNNING, TIMEOUT, WON, Interface, Options
from utils.errors import ConfigError

# the reference: one battle, units as objects, its own constants

SHIELD = {"Stalker": 80, "Zealot": 50, "Colossus": 150}
COOLDOWN = {
    "Marine": 15,
    "Marauder": 25,
    "Medivac": 200,
    "Stalker": 35,
    "Zealot": 22,
    "Colossus": 24,
}
COOLDOWN |= {"Hydralisk": 10, "Zergling": 11, "Baneling": 1}
BITS = {  # by map type: of the agents, of the enemies
    "stalkers_and_zealots": (["Stalker", "Zealot"], ["Zealot", "Stalker"]),
    "colossi_stalkers_zealots": (
        ["Colossus", "Stalker", "Zealot"],
        ["Colossus", "Stalker", "Zealot"],
    ),
    "MMM": (["Marauder", "Marine", "Medivac"], ["Marauder", "Marine", "Medivac"]),
    "bane": (["Baneling", "Zergling"], ["Baneling", "Zergling"]),
    "overload_bane": (["Baneling", "Overseer"], ["Roach", None]),
}
STEPS = {2: (0, 1), 3: (0, -1), 4: (1, 0), 5: (-1, 0)}


class Reference:
    """SMAC for one battle, as loops over units."""

    def __init__(self, name: str, options: Options, b: int = 0) -> None:
        self.info = map_info(name)
        self.o = SimpleNamespace(**asdict(options))
        self.b = b
        self.mmm = self.info.map_type == "MMM"
        self.sides = BITS.get(self.info.map_type, ([], []))
        self.n_actions = 6 + self.info.n_enemies
        self.steps = 0
        self.last: list[int | None] = [None] * self.info.n_agents

    def read(self, battle: Battle) -> None:
        units = []
        for i in range(battle.n_units):
            unit = {
                key: getattr(battle, key)[self.b, i].item()
                for key in [
                    "x",
                    "y",
                    "health",
                    "shield",
                    "energy",
                    "cooldown",
                    "health_max",
                    "shield_max",
                    "alive",
                ]
            }
            units.append(SimpleNamespace(name=UNIT_NAMES[battle.type[self.b, i]], **unit))
        self.agents, self.enemies = units[: self.info.n_agents], units[self.info.n_agents :]

    def inside(self, x: int, y: int) -> bool:
        return 0 <= x <= 31 and 0 <= y <= 31

    def avail(self, agent: SimpleNamespace) -> list[int]:
        if not agent.alive:
            return [1] + [0] * (self.n_actions - 1)
        out = [0, 1]
        for dx, dy in STEPS.values():
            reach = self.o.move_amount / 2
            x, y = math.trunc(agent.x + dx * reach), math.trunc(agent.y + dy * reach)
            out.append(int(self.inside(x, y) and bool(self.info.pathing[x, y])))
        if self.mmm and agent.name == "Medivac":
            targets = [None if ally.name == "Medivac" else ally for ally in self.agents]
            targets += [None] * (self.info.n_enemies - self.info.n_agents)
        else:
            targets = self.enemies
        for other in targets:
            out.append(
                int(other is not None and other.alive and math.dist(at(agent), at(other)) <= 6)
            )
        return out

    def type_bits(self, side: int, name: str) -> list[float]:
        return [float(name == one) for one in self.sides[side]]

    def shield(self, race: str, unit: SimpleNamespace) -> list[float]:
        divisor = (
            80
            if self.info.map_type == "stalkers" and unit in self.agents
            else SHIELD.get(unit.name)
        )
        return [unit.shield / divisor] if race == "P" else []

    def obs(self, index: int) -> list[float]:
        o, agent = self.o, self.agents[index]
        avail = self.avail(agent)
        out: list[float] = [float(v) for v in avail[2:6]]
        cell = math.trunc(agent.x), math.trunc(agent.y)
        m = int(o.move_amount)
        points = [
            (0, 2 * m),
            (0, -2 * m),
            (2 * m, 0),
            (-2 * m, 0),
            (m, m),
            (-m, -m),
            (m, -m),
            (-m, m),
        ]
        places = [(cell[0] + dx, cell[1] + dy) for dx, dy in points]
        if o.obs_pathing_grid:
            out += [float(self.info.pathing[p]) if self.inside(*p) else 1.0 for p in places]
        if o.obs_terrain_height:
            out += [float(self.info.height[p]) if self.inside(*p) else 1.0 for p in [*places, cell]]
        for side, units, race in (
            (1, self.enemies, self.info.enemy_race),
            (0, self.agents, self.info.agent_race),
        ):
            for k, other in enumerate(units):
                if other is agent:
                    continue
                distance = math.dist(at(agent), at(other))
                row = [float(avail[6 + k]) if side else 1.0, distance / 9]
                row += [(other.x - agent.x) / 9, (other.y - agent.y) / 9]
                if o.obs_all_health:
                    row += [other.health / other.health_max, *self.shield(race, other)]
                row += self.type_bits(side, other.name)
                if o.obs_last_action and not side:
                    row += self.one_hot(self.last[k])
                out += row if other.alive and distance < 9 else [0.0] * len(row)
        if o.obs_own_health:
            out += [agent.health / agent.health_max, *self.shield(self.info.agent_race, agent)]
        out += self.type_bits(0, agent.name)
        if not agent.alive:
            out = [0.0] * len(out)
        if o.obs_timestep_number:
            out += [0.0, self.steps / self.info.limit]
        return out

    def one_hot(self, action: int | None) -> list[float]:
        return [float(action == k) for k in range(self.n_actions)]

    def state(self) -> list[float]:
        if self.o.obs_instead_of_state:
            return [v for index in range(self.info.n_agents) for v in self.obs(index)]
        out: list[float] = []
        for side, units, race in (
            (0, self.agents, self.info.agent_race),
            (1, self.enemies, self.info.enemy_race),
        ):
            for unit in units:
                row = [unit.health / unit.health_max]
                if side == 0:
                    name = "Stalker" if self.info.map_type == "stalkers" else unit.name
                    energy = self.mmm and unit.name == "Medivac"
                    row.append((unit.energy if energy else unit.cooldown) / COOLDOWN.get(name, 15))
                row += [(unit.x - 16) / 32, (unit.y - 16) / 32]
                row += self.shield(race, unit) + self.type_bits(side, unit.name)
                out += row if unit.alive else [0.0] * len(row)
        if self.o.state_last_action:
            for action in self.last:
                out += self.one_hot(action)
        if self.o.state_timestep_number:
            out.append(self.steps / self.info.limit)
        return out

    def step(self, battle: Battle) -> tuple[float, str]:
        """Reward and result of the step that led to the present battle."""
        before = {
            id_: (u.alive, u.health + u.shield) for id_, u in enumerate(self.agents + self.enemies)
        }
        self.read(battle)
        self.steps += 1
        o = self.o
        damage = kills = hurt = losses = 0.0
        for id_, unit in enumerate(self.agents + self.enemies):
            was_alive, points = before[id_]
            if not was_alive:
                continue
            fell = points - (unit.health + unit.shield if unit.alive else 0)
            if id_ < self.info.n_agents:
                hurt += fell
                losses += 0 if unit.alive else o.reward_death_value
            else:
                damage += fell
                kills += 0 if unit.alive else o.reward_death_value
        reward = abs(damage + kills)
        if not o.reward_only_positive:
            reward = (
                damage + kills - o.reward_negative_scale * hurt - o.reward_negative_scale * losses
            )
        if o.reward_sparse:
            reward = 0
        agents = [u.name for u in self.agents if u.alive]
        enemies = [u.name for u in self.enemies if u.alive]
        if (not agents and enemies) or (
            self.mmm and not [name for name in agents if name != "Medivac"]
        ):
            result, reward = "lost", -1 if o.reward_sparse else reward + o.reward_defeat
        elif (agents and not enemies) or (self.mmm and enemies == ["Medivac"]):
            result, reward = "won", 1 if o.reward_sparse else reward + o.reward_win
        elif not agents and not enemies:
            result = "drawn"
        else:
            result = "timeout" if self.steps >= self.info.limit else ""
        if o.reward_scale:
            largest = self.info.n_enemies * o.reward_death_value + o.reward_win
            largest += sum(u.health_max + u.shield_max for u in self.enemies)
            reward = reward / (largest / o.reward_scale_rate)
        return reward, result


def at(unit: SimpleNamespace) -> tuple[float, float]:
    return unit.x, unit.y


# both at once


class Table:
    """An `Interface` with its arrays, over B battles that tests set by hand."""

    def __init__(self, name: str, n_envs: int = 1, threads: int = 1, **options: Any) -> None:
        self.info = map_info(name)
        self.battle = Battle.of_map(self.info, n_envs)
        self.face = Interface(self.info, self.battle, Options(**options), threads=threads)
        b, a = n_envs, self.info.n_agents
        self.obs = np.full((b, a, self.face.obs_size), 7, dtype=np.float32)
        self.state = np.full((b, self.face.state_size), 7, dtype=np.float32)
        self.avail = np.full((b, a, self.face.n_actions), 7, dtype=np.uint8)
        self.reward = np.full(b, 7, dtype=np.float32)
        self.terminated = np.zeros(b, dtype=bool)
        self.truncated = np.zeros(b, dtype=bool)
        self.all = np.ones(b, dtype=bool)
        bt = self.battle
        bt.alive[:] = True
        bt.health[:], bt.shield[:], bt.energy[:] = bt.health_max, bt.shield_max, bt.energy_max / 4
        bt.x[:], bt.y[:] = 16.5, 16.5

    def begin(self) -> None:
        self.face.begin(self.all)
        self.observe()

    def observe(self) -> None:
        self.face.observe(self.all, self.obs, self.state, self.avail)

    def orders(self, actions: Any) -> list[tuple]:
        self.face.give_orders(np.array([actions], dtype=np.int64), self.all, self.avail)
        out = []
        face = self.face
        for a in range(self.info.n_agents):
            order = int(face.order[0, a])
            place = (face.target_x[0, a].item(), face.target_y[0, a].item())
            unit = (int(face.target[0, a]),)
            out.append(
                (order, *(place if order == ORDER_MOVE else unit if order > ORDER_MOVE else ()))
            )
        return out

    def score(self) -> float:
        self.face.score(self.all, self.reward, self.terminated, self.truncated)
        return float(self.reward[0])

    def kill(self, *units: int, b: int = 0) -> None:
        for i in units:
            self.battle.alive[b, i] = False
            self.battle.health[b, i] = 0

    def enemy(self, e: int) -> int:
        return self.info.n_agents + e

    def enemy_row(self, agent: int, e: int) -> list[float]:
        size, start = self.face.enemy_feature_size, self.face.move_feature_size
        return self.obs[0, agent, start + e * size : start + (e + 1) * size].tolist()


def scatter(table: Table, rng: np.random.Generator) -> None:
    """Random living and dead units anywhere on the map, many at whole numbers, where borders are
    met exactly.
    """
    bt = table.battle
    bt.x[:], bt.y[:] = rng.uniform(0, 32, (2, *bt.x.shape))
    whole = rng.random(bt.x.shape) < 0.4
    bt.x[whole], bt.y[whole] = np.floor(bt.x[whole]), np.floor(bt.y[whole])
    near = rng.random(bt.x.shape) < 0.5
    bt.x[near], bt.y[near] = 12 + bt.x[near] / 4, 12 + bt.y[near] / 4
    bt.health[:] = rng.uniform(0.1, 1, bt.x.shape) * bt.health_max
    bt.shield[:] = rng.uniform(0, 1, bt.x.shape) * bt.shield_max
    bt.energy[:] = rng.uniform(0, 200, bt.x.shape)
    bt.cooldown[:] = rng.uniform(0, 40, bt.x.shape)
    bt.alive[:] = rng.random(bt.x.shape) < 0.8
    bt.health[~bt.alive] = 0


SWITCHES = [
    "obs_all_health",
    "obs_own_health",
    "obs_last_action",
    "obs_pathing_grid",
    "obs_terrain_height",
    "obs_timestep_number",
    "obs_instead_of_state",
    "state_last_action",
    "state_timestep_number",
]
SOME_MAPS = [
    "3m",
    "2s3z",
    "MMM",
    "MMM2",
    "bane_vs_bane",
    "6h_vs_8z",
    "1o_10b_vs_1r",
    "1c3s5z",
    "5z_vs_1ul",
    "2c_vs_64zg",
]


@pytest.mark.parametrize("name", SOME_MAPS)
def test_observation_state_and_availability_are_those_of_plain_loops(name):
    rng = np.random.default_rng(len(name))
    choices = [{}] + [{key: not getattr(Options(), key)} for key in SWITCHES]
    choices += [{key: bool(rng.integers(2)) for key in SWITCHES} for _ in range(8)]
    choices += [{"move_amount": 3, "obs_pathing_grid": True, "obs_terrain_height": True}]
    for options in choices:
        table = Table(name, n_envs=2, **options)
        scatter(table, rng)
        table.begin()
        references = [Reference(name, Options(**options), b) for b in range(2)]
        for t in range(3):
            if t:
                # dead agents have only the no-op, and the living take what they can
                actions = np.array(
                    [[rng.choice(np.flatnonzero(row)) for row in rows] for rows in table.avail]
                )
                table.face.give_orders(actions, table.all, table.avail)
                scatter(table, rng)
                table.score()
                table.observe()
                for reference in references:
                    reference.steps, reference.last = t, actions[reference.b].tolist()
            for b, reference in enumerate(references):
                reference.read(table.battle)
                avail = [reference.avail(agent) for agent in reference.agents]
                np.testing.assert_array_equal(table.avail[b], avail)
                obs = [reference.obs(a) for a in range(table.info.n_agents)]
                np.testing.assert_allclose(
                    table.obs[b], obs, rtol=1e-6, atol=1e-7, err_msg=str(options)
                )
                np.testing.assert_allclose(table.state[b], reference.state(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM", "MMM2", "1o_10b_vs_1r"])
def test_rewards_and_results_are_those_of_plain_loops(name):
    rng = np.random.default_rng(5)
    results = []
    for trial in range(60):
        options = {
            "reward_sparse": bool(rng.random() < 0.2),
            "reward_only_positive": bool(rng.integers(2)),
            "reward_scale": bool(rng.integers(2)),
            "reward_scale_rate": float(rng.choice([20, 5])),
            "reward_death_value": float(rng.choice([10, 3])),
            "reward_win": float(rng.choice([200, 7])),
            "reward_defeat": float(rng.choice([0, -4])),
            "reward_negative_scale": float(rng.choice([0.5, 0.9])),
        }
        table, reference = Table(name, **options), Reference(name, Options(**options))
        table.begin()
        reference.read(table.battle)
        bt = table.battle
        # one side may die faster than the other, and sometimes nothing happens until the end
        deadly = rng.choice([0, 0.2, 0.5], 2)
        if trial == 0:
            deadly[:] = 0
        if trial == 1:
            deadly[:] = 1
        for _ in range(table.info.limit):
            change = rng.uniform(-20, 8, bt.x.shape)
            bt.health[:] = np.clip(bt.health + change, 0.5, bt.health_max)
            bt.shield[:] = np.clip(bt.shield + change, 0, bt.shield_max)
            chance = np.where(np.arange(bt.n_units) < bt.n_agents, deadly[0], deadly[1])
            bt.alive &= rng.random(bt.x.shape) >= chance
            bt.health[~bt.alive] = 0
            value = table.score()
            expected, result = reference.step(bt)
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-6), options
            names = {"": RUNNING, "won": WON, "lost": LOST, "drawn": DRAWN, "timeout": TIMEOUT}
            assert table.face.outcome[0] == names[result]
            assert table.face.won[0] == (result == "won")
            assert table.terminated[0] == bool(result)
            assert not table.truncated[0]
            assert table.face.dead_agents[0] == sum(not u.alive for u in reference.agents)
            assert table.face.dead_enemies[0] == sum(not u.alive for u in reference.enemies)
            if result:
                break
        results.append(result)
    # a whole team of the map with medivacs never dies without the loss being found first
    assert set(results) == {"won", "lost", "timeout"} | (set() if "MMM" in name else {"drawn"})


@pytest.mark.parametrize("name", map_names())
def test_sizes_of_all_maps(name):
    table = Table(name)
    assert (table.face.n_actions, table.face.obs_size, table.face.state_size) == table.info.sizes
    table.begin()
    assert table.face.max_reward.tolist() == [table.info.max_reward]
    info = table.face.env_info()
    a, e = table.info.n_agents, table.info.n_enemies
    rows = a * len(info["agent_features"]) + e * len(info["enemy_features"])
    assert rows + a * table.face.n_actions == table.face.state_size
    assert sum(info["obs_parts"]) == table.face.obs_size
    # Where one can move, the others, oneself.
    assert len(info["obs_parts"]) == 1 + e + (a - 1) + 1
    assert np.isfinite(table.obs).all()
    assert np.isfinite(table.state).all()
    # no entry of a row is left as it was before
    assert (table.obs != 7).all()
    assert (table.state != 7).all()
    assert set(np.unique(table.avail)) == {0, 1}


# by hand


def test_3m_by_hand():
    table = Table("3m")
    bt = table.battle
    bt.x[0] = [9, 9, 30, 12, 18, 23]
    bt.y[0] = [16, 12, 16, 20, 16, 16]
    bt.health[0] = [45, 30, 9, 15, 45, 45]
    bt.cooldown[0, :3] = [0, 7.5, 30]
    table.begin()
    # agent 0 sees enemy 0 at (3, 4) and nobody else: enemy 1 is exactly 9 away, which is out of
    # sight
    expected = [1, 1, 1, 1]
    expected += [1, 5 / 9, 3 / 9, 4 / 9, 15 / 45] + [0] * 5 + [0] * 5
    expected += [1, 4 / 9, 0, -4 / 9, 30 / 45] + [0] * 5
    expected += [1]
    np.testing.assert_allclose(table.obs[0, 0], expected, rtol=1e-6)
    assert table.avail[0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 0, 0]
    state = [1, 0, -7 / 32, 0, 30 / 45, 0.5, -7 / 32, -4 / 32, 9 / 45, 2, 14 / 32, 0]
    state += [15 / 45, -4 / 32, 4 / 32, 1, 2 / 32, 0, 1, 7 / 32, 0] + [0] * 27
    np.testing.assert_allclose(table.state[0], state, rtol=1e-6)


def test_borders_of_range_and_sight():
    table = Table("3m")
    bt = table.battle
    bt.x[0], bt.y[0] = 10, 10
    bt.x[0, 3:] = [16, 16 + 1e-9, np.nextafter(19, 0)]
    bt.x[0, 1:3] = [19, np.nextafter(19, 0)]
    table.begin()
    assert table.avail[0, 0, 6:].tolist() == [1, 0, 0], (
        "a target at exactly 6 can be attacked, one beyond cannot"
    )
    assert [bool(any(table.enemy_row(0, e))) for e in range(3)] == [True, True, True]
    assert table.face.visibility()[0, 0].tolist() == [False, False, True, True, True, True]
    start = 4 + 3 * 5
    assert not table.obs[0, 0, start : start + 5].any(), "an agent at exactly 9 is seen"
    assert table.obs[0, 0, start + 5] == 1
    bt.x[0, 0], bt.y[0, 0] = 0, 0  # 3.6 and 4.8: exactly 6 on paper
    bt.x[0, 3:], bt.y[0, 3:] = [3.6, 0, 6], [4.8, 6, 0]
    table.observe()
    assert table.avail[0, 0, 6:].tolist() == [1, 1, 1]


def test_moves_look_at_truncated_cells():
    table = Table("3s_vs_3z")  # no walls
    bt = table.battle
    for x, y, expected in [
        (0.5, 16, [1, 1, 1, 1]),  # west: -0.5 is truncated to cell 0
        (0.0, 16, [1, 1, 1, 0]),
        (31.0, 16, [1, 1, 0, 1]),
        (30.99, 31.2, [0, 1, 1, 1]),
        (30.0, 0.0, [1, 0, 1, 1]),
    ]:
        bt.x[0, 0], bt.y[0, 0] = x, y
        table.begin()
        assert table.avail[0, 0, 2:6].tolist() == expected, (x, y)
        assert table.obs[0, 0, :4].tolist() == expected
    band = Table("3m")  # walls below 8 and from 24 on
    band.battle.y[0, :3] = [8.9, 9.0, 23.0]
    band.begin()
    assert band.avail[0, :3, 2:4].tolist() == [[1, 0], [1, 1], [0, 1]]
    far = Table("3m", move_amount=4)
    far.battle.y[0, :3] = [9.9, 10.0, 22.0]
    far.begin()
    assert far.avail[0, :3, 2:4].tolist() == [[1, 0], [1, 1], [0, 1]]


def test_reversed_bits_and_shields_of_2s3z():
    table = Table("2s3z")
    table.battle.shield[0] = 20
    table.begin()
    # enemies 0 and 1 are stalkers with bit 1, the agents' stalkers have bit 0
    assert table.enemy_row(0, 0) == pytest.approx([1, 0, 0, 0, 1, 20 / 80, 0, 1])
    assert table.enemy_row(0, 2) == pytest.approx([1, 0, 0, 0, 1, 20 / 50, 1, 0])
    assert table.obs[0, 0, -4:].tolist() == pytest.approx([1, 0.25, 1, 0])
    assert table.obs[0, 4, -4:].tolist() == pytest.approx([1, 0.4, 0, 1])
    # the zealots of 5z_vs_1ul are divided by a stalker's constants
    ul = Table("5z_vs_1ul")
    ul.battle.cooldown[0, 0] = 17.5
    ul.begin()
    assert ul.obs[0, 0, -2:].tolist() == [1, 0.625]
    assert ul.state[0, :5].tolist() == pytest.approx([1, 0.5, 0.5 / 32, 0.5 / 32, 0.625])


def test_medivacs_of_mmm():
    table = Table("MMM")
    bt = table.battle
    medivac = 9
    assert table.info.agents[medivac] == "Medivac"
    bt.x[0, :9] = [16.5, 22.5, 22.6] + [16.5] * 6
    bt.x[0, 10:] = 30
    bt.x[0, 10] = 24.5  # in sight
    table.kill(4)
    table.begin()
    # agents 0 and 1 in reach and unhurt, 2 out of reach, 4 dead, 9 is the medivac itself
    assert table.avail[0, medivac].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0]
    # in the row of enemy e stands whether agent e can be healed
    assert table.enemy_row(medivac, 0)[0] == 1
    bt.x[0, 10:13] = 24.5
    table.observe()
    assert [table.enemy_row(medivac, e)[0] for e in range(3)] == [1, 1, 0]
    per_agent = 4 + 3
    assert table.state[0, medivac * per_agent + 1] == 0.25, "energy in the place of the cooldown"
    orders = table.orders([1] * 4 + [0] + [1] * 4 + [6 + 1])
    assert orders[medivac] == (ORDER_HEAL, 1)


def test_orders():
    table = Table("6h_vs_8z")
    table.battle.x[0, 0], table.battle.y[0, 0] = 12.25, 13.5
    table.kill(5)
    table.begin()
    assert table.orders([2, 3, 4, 5, 1, 0])[0] == (ORDER_MOVE, 12.25, 15.5)
    assert table.orders([2, 3, 4, 5, 1, 0])[1:] == [
        (ORDER_MOVE, 16.5, 14.5),
        (ORDER_MOVE, 18.5, 16.5),
        (ORDER_MOVE, 14.5, 16.5),
        (ORDER_STOP,),
        (ORDER_NONE,),
    ]
    assert table.orders([6, 13, 7, 1, 1, 0])[:3] == [
        (ORDER_ATTACK, 6),
        (ORDER_ATTACK, 13),
        (ORDER_ATTACK, 7),
    ]
    assert table.face.executed.tolist() == table.face.last_action.tolist() == [[6, 13, 7, 1, 1, 0]]


def test_last_actions_in_state_and_observation():
    table = Table("3m", obs_last_action=True)
    table.kill(2)
    table.begin()
    assert not table.state[0, -27:].any(), "there is no last action at the start"
    table.orders([4, 7, 0])
    table.score()
    table.observe()
    assert np.flatnonzero(table.state[0, -27:]).tolist() == [4, 9 + 7, 18 + 0], (
        "a dead agent shows its no-op"
    )
    ally = table.obs[0, 0, 4 + 3 * 5 : 4 + 3 * 5 + 5 + 9]
    assert np.flatnonzero(ally[5:]).tolist() == [7]
    assert not table.obs[0, 1, -(5 + 9) - 1 : -1].any(), "a dead agent's last action is not seen"
    table.begin()
    assert not table.state[0, -27:].any()


def test_timestep_number_is_one_longer_than_smac_says():
    plain, timed = Table("3m"), Table("3m", obs_timestep_number=True, state_timestep_number=True)
    assert timed.face.obs_size == plain.face.obs_size + 2
    assert timed.face.state_size == plain.face.state_size + 1
    timed.kill(1)
    timed.begin()
    timed.score()
    timed.score()
    timed.observe()
    assert timed.obs[0, :, -2:].tolist() == [[0, pytest.approx(2 / 60)]] * 3
    assert not timed.obs[0, 1, :-1].any()
    assert timed.state[0, -1] == pytest.approx(2 / 60)


def test_damage_and_kill():
    table = Table("3m")
    table.begin()
    table.battle.health[0, 3] -= 6
    assert table.score() == pytest.approx(6 * 20 / 365)
    table.kill(3)
    assert table.score() == pytest.approx((39 + 10) * 20 / 365)
    assert table.score() == 0
    table.kill(4, 5)
    assert table.score() == pytest.approx((90 + 20 + 200) * 20 / 365)
    assert table.terminated[0]
    assert table.face.won[0]


def test_a_win_without_regeneration_returns_20():
    rng = np.random.default_rng(0)
    table = Table("2s3z")
    table.begin()
    bt = table.battle
    total = 0.0
    while not table.terminated[0]:
        left = np.flatnonzero(bt.alive[0, 5:]) + 5
        i = rng.choice(left)
        blow = rng.uniform(10, 40)
        from_shield = min(bt.shield[0, i], blow)
        bt.shield[0, i] -= from_shield
        bt.health[0, i] -= blow - from_shield
        if bt.health[0, i] <= 0:
            table.kill(i)
        total += table.score()
    assert total == pytest.approx(20, rel=1e-5)


def test_regenerated_shields_are_paid():
    table = Table("2s3z", reward_scale=False)
    table.battle.shield[0, 5] = 40
    table.begin()
    table.battle.shield[0, 5] += 1
    assert table.score() == 1, "SMAC takes the absolute value of minus 1"
    table.battle.shield[0, 5] += 3
    table.battle.health[0, 6] -= 2
    assert table.score() == 1
    honest = Table("2s3z", reward_scale=False, reward_only_positive=False)
    honest.battle.shield[0, 5] = 40
    honest.begin()
    honest.battle.shield[0, 5] += 1
    assert honest.score() == -1


def test_negative_rewards():
    table = Table("3m", reward_scale=False, reward_only_positive=False, reward_defeat=-30)
    table.begin()
    table.battle.health[0, 0] -= 12
    table.battle.health[0, 3] -= 6
    assert table.score() == 6 - 0.5 * 12
    table.kill(0)
    assert table.score() == -0.5 * 33 - 0.5 * 10
    table.kill(1, 2)
    assert table.score() == -0.5 * 90 - 0.5 * 20 - 30
    assert table.terminated[0]
    assert not table.face.won[0]


@pytest.mark.parametrize(("scale", "factor"), [(True, 20 / 365), (False, 1)])
def test_sparse(scale, factor):
    table = Table("3m", reward_sparse=True, reward_scale=scale)
    table.begin()
    table.kill(3)
    assert table.score() == 0
    table.kill(4, 5)
    assert table.score() == pytest.approx(factor)
    assert table.face.dead_enemies.tolist() == [3]
    table = Table("3m", reward_sparse=True, reward_scale=scale)
    table.begin()
    table.kill(0, 1, 2)
    assert table.score() == pytest.approx(-factor)


def test_draw_pays_nothing_extra():
    table = Table("so_many_baneling", reward_scale=False)
    table.begin()
    table.kill(*range(table.battle.n_units))
    assert table.score() == 32 * (30 + 10)
    assert table.terminated[0]
    assert table.face.outcome[0] == DRAWN


@pytest.mark.parametrize(
    ("dead_agents", "dead_enemies", "outcome"),
    [
        (range(9), (), LOST),  # only the medivac is left
        (range(10), range(10), LOST),  # not a draw
        (range(9), range(9), LOST),  # found before the win
        ((), range(9), WON),  # only the enemy's medivac is left
        ((), (*range(8), 9), RUNNING),  # one enemy left, no medivac
        ((9,), range(8), RUNNING),
        ((), range(10), WON),
        (range(8), (), RUNNING),
    ],
)
def test_ends_of_mmm(dead_agents, dead_enemies, outcome):
    table = Table("MMM")
    assert table.info.enemies[9] == "Medivac"
    table.begin()
    table.kill(*dead_agents, *(table.enemy(e) for e in dead_enemies))
    table.score()
    assert table.face.outcome[0] == outcome
    assert table.terminated[0] == (outcome != RUNNING)


def test_a_lone_medivac_goes_on_where_the_rule_is_not():
    table = Table("bane_vs_hM")
    table.begin()
    table.kill(table.enemy(0))
    table.score()
    assert table.face.outcome[0] == RUNNING


@pytest.mark.parametrize("continuing", [False, True])
def test_time_limit(continuing):
    table = Table("3m", continuing_episode=continuing)
    table.begin()
    for t in range(60):
        assert not table.terminated[0]
        assert not table.truncated[0]
        table.score()
        assert table.face.steps.tolist() == [t + 1]
    assert (table.terminated[0], table.truncated[0]) == (not continuing, continuing)
    assert table.face.outcome[0] == TIMEOUT
    # a win in the last step is a win
    table = Table("3m", continuing_episode=continuing)
    table.begin()
    for t in range(60):
        if t == 59:
            table.kill(3, 4, 5)
        table.score()
    assert table.face.won[0]
    assert table.terminated[0]
    assert not table.truncated[0]


def test_dead_agents_see_nothing_and_are_not_seen():
    table = Table("2s3z", obs_last_action=True)
    table.kill(0, 5)
    table.begin()
    assert not table.obs[0, 0].any()
    assert table.avail[0, :, 0].tolist() == [1, 0, 0, 0, 0]
    assert not table.avail[0, 0, 1:].any()
    assert not table.avail[0, :, 6].any()
    assert not any(table.enemy_row(1, 0))
    first_ally = 4 + 5 * 8
    assert not table.obs[0, 1, first_ally : first_ally + 8 + 11].any()
    assert not table.state[0, :7].any()


def test_only_the_masked_battles_are_written():
    rng = np.random.default_rng(2)
    table = Table("2s3z", n_envs=4)
    scatter(table, rng)
    table.begin()
    mask = np.array([True, False, True, False])
    kept = {
        key: getattr(table, key)[~mask].copy()
        for key in ("obs", "state", "avail", "reward", "terminated")
    }
    private = {
        key: getattr(table.face, key)[~mask].copy()
        for key in (
            "steps",
            "last_action",
            "order",
            "executed",
            "won",
            "outcome",
            "dead_agents",
            "dead_enemies",
        )
    }
    scatter(table, rng)
    table.face.give_orders(np.ones((4, 5), dtype=np.int64), mask, table.avail)
    table.face.score(mask, table.reward, table.terminated, table.truncated)
    table.face.observe(mask, table.obs, table.state, table.avail)
    for key, value in kept.items():
        np.testing.assert_array_equal(getattr(table, key)[~mask], value, err_msg=key)
    for key, value in private.items():
        np.testing.assert_array_equal(getattr(table.face, key)[~mask], value, err_msg=key)
    assert (table.reward[mask] != 7).all()
    # a new episode elsewhere does not touch them either
    table.face.begin(~mask)
    assert table.face.steps.tolist() == [1, 0, 1, 0]


def test_threads_change_nothing():
    tables = []
    for threads in (1, 3):
        table = Table("MMM2", n_envs=7, threads=threads)
        scatter(table, np.random.default_rng(8))
        table.begin()
        scatter(table, np.random.default_rng(9))
        table.score()
        table.observe()
        tables.append(table)
        table.face.close()
    for key in ("obs", "state", "avail", "reward", "terminated"):
        np.testing.assert_array_equal(getattr(tables[0], key), getattr(tables[1], key), err_msg=key)


def test_ranges_and_types_may_differ_by_unit_and_battle():
    """What SMACv2 needs: ranges by type, other types in every episode."""
    info = replace(
        map_info("MMM"),
        map_type="terran_gen",
        agent_bits={"Marine": 0, "Marauder": 1, "Medivac": 2},
    )
    battle = Battle.of_map(info, 2)
    battle.alive[:], battle.health[:], battle.x[:], battle.y[:] = True, 10, 16, 16
    battle.type[1, :10] = UNIT_INDEX["Marine"]
    battle.x[:, 10] = 22.5
    sight, shoot = np.full(len(UNIT_NAMES), 10.0), np.full(len(UNIT_NAMES), 2.0)
    shoot[UNIT_INDEX["Marauder"]] = 7
    face = Interface(info, battle, Options(), sight=sight, shoot=shoot)
    everyone = np.ones(2, dtype=bool)
    obs = np.zeros((2, 10, face.obs_size), dtype=np.float32)
    avail = np.zeros((2, 10, face.n_actions), dtype=np.uint8)
    face.begin(everyone)
    face.observe(everyone, obs, np.zeros((2, face.state_size), dtype=np.float32), avail)
    assert avail[0, :, 6].tolist() == [1, 1] + [0] * 7 + [
        1
    ]  # marauders reach it; the medivac may heal agent 0
    assert avail[1, :, 6].tolist() == [0] * 10
    assert obs[0, 0, 4:7].tolist() == pytest.approx([1, 0.65, 0.65])
    assert obs[0, 0, -3:].tolist() == [0, 1, 0]
    assert obs[1, 0, -3:].tolist() == [1, 0, 0]


def test_several_medivacs():
    """No map has them, SMACv2's teams do: they do not heal each other, and two left over are not a
    win yet.
    """
    table = Table("MMM")
    table.battle.type[0, [8, 18]] = UNIT_INDEX["Medivac"]
    table.begin()
    assert (
        table.avail[0, 8].tolist()
        == table.avail[0, 9].tolist()
        == [0, 1, 1, 1, 1, 1] + [1] * 8 + [0, 0]
    )
    table.kill(*range(10, 18))
    table.score()
    assert table.face.outcome[0] == RUNNING
    table.kill(18)
    table.score()
    assert table.face.outcome[0] == WON
    table.begin()
    table.kill(*range(8))
    table.score()
    assert table.face.outcome[0] == LOST


# heuristic agents


def test_heuristic_keeps_its_target():
    table = Table("3m", heuristic_ai=True)
    bt = table.battle
    bt.x[0] = [10, 10, 10, 28, 20, 24]
    table.kill(2)
    table.begin()
    # whatever the actions are, and however far the target is
    assert table.orders([1, 1, 0]) == [(ORDER_ATTACK, 4), (ORDER_ATTACK, 4), (ORDER_NONE,)]
    assert table.face.executed.tolist() == [[7, 7, 0]]
    assert table.face.last_action.tolist() == [[1, 1, 0]]
    bt.x[0, 4] = 31
    assert table.orders([1, 1, 0])[0] == (ORDER_ATTACK, 4), "the target is kept while it lives"
    table.kill(4)
    assert table.orders([1, 1, 0])[0] == (ORDER_ATTACK, 5)
    table.face.begin(table.all)
    bt.x[0, 3] = 11
    assert table.orders([1, 1, 0])[0] == (ORDER_ATTACK, 3), "a new episode has new targets"


def test_heuristic_of_mmm():
    table = Table("MMM", heuristic_ai=True)
    bt = table.battle
    bt.x[0, :10] = np.arange(10)
    bt.x[0, 10:] = np.arange(30, 20, -1)  # the enemy's medivac is the nearest, then a marauder
    table.begin()
    orders = table.orders([1] * 10)
    assert [table.info.enemies[o[1] - 10] for o in orders[:9]] == ["Marauder"] * 2 + ["Medivac"] * 7
    assert orders[9] == (ORDER_NONE,), "nobody is hurt"
    bt.health[0, [1, 7, 9]] -= 5
    assert table.orders([1] * 10)[9] == (ORDER_HEAL, 7)
    bt.health[0, 8] -= 5
    assert table.orders([1] * 10)[9] == (ORDER_HEAL, 7)
    bt.health[0, 7] = bt.health_max[0, 7]
    assert table.orders([1] * 10)[9] == (ORDER_HEAL, 8)
    table.kill(8, 1)
    assert table.orders([1] * 10)[9] == (ORDER_NONE,), "a hurt medivac is not healed"


def test_heuristic_rest_walks_to_what_is_out_of_reach():
    table = Table("3m", heuristic_ai=True, heuristic_rest=True)
    bt = table.battle
    bt.x[0] = [10, 16, 16, 20, 31, 31]
    bt.y[0] = [16, 4, 16, 16, 31, 31]
    table.begin()
    orders = table.orders([1, 1, 1])
    assert orders == [(ORDER_MOVE, 12, 16), (ORDER_MOVE, 16, 6), (ORDER_ATTACK, 3)]
    assert table.face.executed.tolist() == [[4, 2, 6]]
    bt.x[0, :2], bt.y[0, :2] = [30, 20], [16, 30]
    table.observe()
    assert table.orders([1, 1, 1])[:2] == [(ORDER_MOVE, 28, 16), (ORDER_MOVE, 20, 28)]


# refusals


@pytest.mark.parametrize(
    "options",
    [
        {"move_amount": 0},
        {"reward_scale_rate": -1},
        {"obs_last_action": 1},
        {"reward_win": float("nan")},
        {"reward_defeat": True},
        {"reward_death_value": "10"},
    ],
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        Options(**options)


def test_a_battle_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3m"):
        Interface(map_info("3m"), Battle(1, 3, 4), Options())
    with pytest.raises(ValueError, match="ranges"):
        Interface(map_info("3m"), Battle(1, 3, 3), Options(), sight=np.ones(2))
