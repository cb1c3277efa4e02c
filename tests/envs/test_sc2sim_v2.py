"""SMACv2's scenarios: who is drawn and where, what agents see, against the rules and plain
loops.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from test_sc2_facts import SCENARIOS

from envs import make_vector_env
from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, ORDER_NONE, Battle
from envs.starcraft.facts import UNIT_INDEX, UNIT_NAMES, scenario
from envs.starcraft.interface import Interface, V2Options
from envs.starcraft.v2 import SC2SimV2, make_draw
from utils.errors import ConfigError

SIGHT = {"Marine": 9, "Marauder": 10, "Medivac": 11, "Stalker": 10, "Zealot": 9, "Colossus": 10}
SIGHT |= {"Zergling": 8, "Baneling": 8, "Hydralisk": 9}
SHOOT = {"Marine": 5, "Marauder": 6, "Medivac": 4, "Stalker": 6, "Zealot": 2, "Colossus": 7}
SHOOT |= {"Zergling": 2, "Baneling": 2, "Hydralisk": 5}
BITS = {
    "terran": ["Marine", "Marauder", "Medivac"],
    "protoss": ["Stalker", "Zealot", "Colossus"],
    "zerg": ["Zergling", "Hydralisk", "Baneling"],
}
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


# drawing


@pytest.mark.parametrize("name", SCENARIOS)
def test_sizes_of_all_scenarios(name):
    with SC2SimV2(1, 0, map_name=name) as env:
        assert (env.n_actions, env.obs_size, env.state_size, env.episode_limit) == (
            *SCENARIOS[name],
            200,
        )
        env.reset()
        a = env.n_agents
        kinds = [UNIT_NAMES[k] for k in env.battle.type[0]]
        assert set(kinds) <= set(BITS[name.split("_")[0]])
        assert kinds[:a] == sorted(kinds[:a]), "agents are not in SMAC's order"
        shared = min(a, env.battle.n_enemies)
        assert sorted(kinds[a : a + shared]) == kinds[:a], "the enemies are no copy of the agents"
        assert env.battle.alive.all()
        np.testing.assert_allclose(
            [env.battle.health_max[0, i] for i in range(a)], [HEALTH[kinds[i]] for i in range(a)]
        )


HEALTH = {
    "Marine": 45,
    "Marauder": 125,
    "Medivac": 150,
    "Stalker": 80,
    "Zealot": 100,
    "Colossus": 200,
}
HEALTH |= {"Zergling": 35, "Hydralisk": 80, "Baneling": 30}


def drawn(
    name: str, n: int = 3000, seed: int = 0, **config: Any
) -> list[tuple[list[str], list[str], np.ndarray]]:
    draw, rng = make_draw(scenario(name), config), np.random.default_rng(seed)
    out = []
    for _ in range(n):
        kinds, points = draw(rng)
        names = [UNIT_NAMES[k] for k in kinds]
        out.append((names[: draw.n_agents], names[draw.n_agents :], points))
    return out


@pytest.mark.parametrize("name", ["terran_5_vs_5", "zerg_10_vs_11", "protoss_5_vs_5"])
def test_teams_are_drawn_with_the_weights(name):
    episodes = drawn(name)
    rare = BITS[name.split("_")[0]][2]
    redrawn = rare != "Colossus"
    n = scenario(name).n_agents
    counts = Counter(unit for agents, _, _ in episodes for unit in agents)
    total = sum(counts.values())
    # teams of the rare type alone are drawn again
    gone = 0.1**n if redrawn else 0.0
    for unit in BITS[name.split("_")[0]]:
        expected = (0.1 - gone) / (1 - gone) if unit == rare else 0.45 / (1 - gone)
        assert abs(counts[unit] - expected * total) < 4 * math.sqrt(
            total * expected * (1 - expected)
        ), unit
    # the number of one type in a team is binomial
    seen = Counter(agents.count(BITS[name.split("_")[0]][0]) for agents, _, _ in episodes)
    chi2 = 0.0
    for k in range(n + 1):
        expected = len(episodes) * math.comb(n, k) * 0.45**k * 0.55 ** (n - k)
        if expected > 5:
            chi2 += (seen[k] - expected) ** 2 / expected
    assert chi2 < 27.9, "chi square, at most 9 degrees of freedom, p = 0.001"
    for agents, enemies, _ in episodes:
        assert enemies[:n] == agents
        assert set(agents) != {rare} or not redrawn
        if len(enemies) == n + 1:
            assert enemies[n] != rare, "one extra unit is a whole team"


def test_no_team_of_medivacs():
    config = {"team_gen": {"weights": [0.05, 0.05, 0.9]}}
    assert {"Medivac"} not in [
        set(agents) for agents, _, _ in drawn("terran_5_vs_5", 500, **config)
    ]
    config["team_gen"]["exception_unit_types"] = []
    assert {"Medivac"} in [set(agents) for agents, _, _ in drawn("terran_5_vs_5", 500, **config)]


def test_fewer_enemies_than_agents():
    for agents, enemies, points in drawn("protoss_5_vs_5", 50, n_units=6, n_enemies=4):
        assert enemies == agents[:4]
        assert points.shape == (10, 2)
    with SC2SimV2(
        1, 0, map_name="terran_5_vs_5", capability_config={"n_units": 6, "n_enemies": 4}
    ) as env:
        assert env.n_actions == 12, "a medivac has six agents to heal"


def uniform(values: np.ndarray, low: float, high: float) -> bool:
    """Whether a Kolmogorov-Smirnov test at 0.001 lets the values pass as uniform."""
    assert (values >= low).all()
    assert (values <= high).all()
    ordered = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    return max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()) < 1.95 / math.sqrt(
        len(values)
    )


def test_reflected_places():
    points = np.array(
        [
            p
            for _, _, p in drawn(
                "zerg_10_vs_11", 600, start_positions={"dist_type": "reflect_position"}
            )
        ]
    )
    agents, images, extra = points[:, :10], points[:, 10:20], points[:, 20]
    assert uniform(agents[..., 0].ravel(), 0, 15)
    assert uniform(agents[..., 1].ravel(), 0, 32)
    np.testing.assert_allclose(images[..., 0], 32 - agents[..., 0])
    np.testing.assert_array_equal(images[..., 1], agents[..., 1])
    assert uniform(extra[:, 0], 16, 32)
    assert uniform(extra[:, 1], 0, 32)


def test_surrounded_places():
    groups_seen, along, corners = Counter(), [], Counter()
    sizes = []
    for _, _, points in drawn("terran_10_vs_10", 3000, start_positions={"dist_type": "surround"}):
        assert (points[:10] == 16).all()
        enemies = points[10:] - 16
        np.testing.assert_allclose(np.abs(enemies[:, 0]), np.abs(enemies[:, 1]))
        groups = {tuple(row) for row in enemies}
        assert len({(x > 0, y > 0) for x, y in groups}) == len(groups), "two groups on one diagonal"
        groups_seen[len(groups)] += 1
        corners.update((x > 0, y > 0) for x, y in groups)
        along += [abs(x) for x, _ in groups]
        if len(groups) == 2:
            sizes.append(sum(tuple(row) == min(groups) for row in enemies))
    # ten units in 1 to 4 groups with equal chances; few groups are empty
    expected = np.zeros(5)
    for n in range(1, 5):
        for full in range(1, n + 1):
            ways = sum((-1) ** k * math.comb(full, k) * (full - k) ** 10 for k in range(full + 1))
            expected[full] += 0.25 * math.comb(n, full) * ways / n**10
    for k in range(1, 5):
        assert abs(groups_seen[k] - 3000 * expected[k]) < 4 * math.sqrt(3000 * expected[k]), k
    assert len(corners) == 4
    assert max(corners.values()) < 1.1 * min(corners.values())
    assert uniform(np.array(along), 2, 16)
    assert abs(np.mean(sizes) - 5) < 0.25


def test_both_kinds_of_places():
    def surrounded(p: float | None) -> int:
        config = {} if p is None else {"start_positions": {"p": p}}
        return sum(
            (points[:5] == 16).all() for _, _, points in drawn("terran_5_vs_5", 1000, **config)
        )

    assert abs(surrounded(None) - 500) < 60
    assert abs(surrounded(0.2) - 200) < 50


def test_units_start_where_they_are_drawn():
    config = {"start_positions": {"dist_type": "reflect_position"}, "n_units": 2, "n_enemies": 2}
    with SC2SimV2(20, 3, map_name="zerg_5_vs_5", capability_config=config) as env:
        env.reset()
        x, y = env.battle.x, env.battle.y
        far = np.hypot(x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]) > 3
        far &= (
            (x[:, :2] < 12).all(axis=1)
            & (np.minimum(y, 32 - y) > 1).all(axis=1)
            & (x[:, :2] > 1).all(axis=1)
        )
        assert far.sum() > 5
        for b in np.flatnonzero(far):
            ours = sorted(
                zip(env.battle.type[b, :2], x[b, :2], y[b, :2], strict=True), key=lambda u: u[2]
            )
            theirs = sorted(
                zip(env.battle.type[b, 2:], 32 - x[b, 2:], y[b, 2:], strict=True),
                key=lambda u: u[2],
            )
            np.testing.assert_allclose(ours, theirs, atol=0.4)
            assert [u[0] for u in ours] == [u[0] for u in theirs]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"map_name": "terran_5_vs_6"}, "terran_5_vs_5"),
        ({"capability_config": {"n_unit": 3}}, "n_units"),
        ({"capability_config": {"n_units": 0}}, "n_units must be .* at least 1, got 0"),
        ({"capability_config": {"team_gen": "marines"}}, "must be a mapping"),
        ({"capability_config": {"team_gen": {"dist_type": "fixed"}}}, "only weighted_teams"),
        ({"capability_config": {"team_gen": {"unit_types": ["marin"]}}}, "marine"),
        (
            {"capability_config": {"team_gen": {"weights": [1, 2]}}},
            "one number from 0 for each of Marine",
        ),
        ({"capability_config": {"team_gen": {"unit_types": ["medivac"]}}}, "no team can be drawn"),
        ({"capability_config": {"start_positions": {"dist_type": "reflect"}}}, "reflect_position"),
        ({"capability_config": {"start_positions": {"p": 2}}}, "from 0 to 1"),
        ({"capability_config": {"start_positions": {"map_x": 64}}}, "32 cells"),
        ({"prob_obs_enemy": 1.5}, "prob_obs_enemy"),
        ({"use_unit_ranges": 1}, "use_unit_ranges"),
        ({"difficulty": "A"}, '"7", the only one .*, got .A'),
        ({"opponents": "attack_move"}, "unknown opponents"),
    ],
)
def test_what_users_get_wrong(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_vector_env("sc2sim_v2", args, 1, 0, "native", "train_env")
    assert "\n" not in str(caught.value)


# what agents see: plain loops over units, for one battle


class Reference:
    def __init__(
        self, name: str, n_agents: int, n_enemies: int, battle: Battle, **options: Any
    ) -> None:
        self.race, self.a, self.e, self.battle = name.split("_")[0], n_agents, n_enemies, battle
        self.o = {
            **{"ranges": True, "obs_own_pos": True, "conic_fov": False, "action_mask": True},
            **options,
        }
        self.look = [0] * n_agents
        self.first = 18 if self.o["conic_fov"] else 6
        self.heals = self.race == "terran"
        self.n_actions = self.first + (max(n_agents, n_enemies) if self.heals else n_enemies)

    def name(self, i: int) -> str:
        return UNIT_NAMES[self.battle.type[0, i]]

    def place(self, i: int) -> tuple[float, float]:
        return self.battle.x[0, i], self.battle.y[0, i]

    def alive(self, i: int) -> bool:
        return bool(self.battle.alive[0, i])

    def sight(self, i: int) -> float:
        return SIGHT[self.name(i)] if self.o["ranges"] else 9

    def within_cone(self, a: int, i: int) -> bool:
        if not self.o["conic_fov"]:
            return True
        (x0, y0), (x1, y1) = self.place(a), self.place(i)
        if (x0, y0) == (x1, y1):
            return True
        turn = math.degrees(math.atan2(y1 - y0, x1 - x0)) - 30 * self.look[a]
        return abs((turn + 180) % 360 - 180) <= 15 + 1e-6

    def reaches(self, a: int, i: int) -> bool:
        reach = SHOOT[self.name(a)] if self.o["ranges"] else 6
        return math.dist(self.place(a), self.place(i)) <= reach and self.within_cone(a, i)

    def avail(self, a: int) -> list[int]:
        if not self.alive(a):
            return [1] + [0] * (self.n_actions - 1)
        out = [0, 1]
        x, y = self.place(a)
        for dx, dy in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            out.append(int(0 <= math.trunc(x + dx) <= 31 and 0 <= math.trunc(y + dy) <= 31))
        out += [1] * (self.first - 6)
        healer = self.heals and self.name(a) == "Medivac"
        for k in range(self.n_actions - self.first):
            i = k if healer else self.a + k
            able = k < (self.a if healer else self.e) and self.alive(i)
            if healer and able:
                able = self.name(i) != "Medivac"
            out.append(int(able and (self.reaches(a, i) or not self.o["action_mask"])))
        return out

    def body(self, i: int) -> list[float]:
        bt = self.battle
        out = [bt.health[0, i] / bt.health_max[0, i]]
        if self.race == "protoss":
            out.append(bt.shield[0, i] / SHIELD[self.name(i)])
        return out

    def bits(self, i: int) -> list[float]:
        return [float(self.name(i) == unit) for unit in BITS[self.race]]

    def obs(self, a: int) -> list[float]:
        avail, sight = self.avail(a), self.sight(a)
        out = [float(v) for v in avail[2:6]]
        (x, y) = self.place(a)
        for i in [*range(self.a, self.a + self.e), *(k for k in range(self.a) if k != a)]:
            distance = math.dist(self.place(a), self.place(i))
            row = [avail[self.first + i - self.a] if i >= self.a else 1.0, distance / sight]
            row += [
                (self.place(i)[0] - x) / sight,
                (self.place(i)[1] - y) / sight,
                *self.body(i),
                *self.bits(i),
            ]
            seen = self.alive(i) and distance < sight and self.within_cone(a, i)
            out += row if seen else [0.0] * len(row)
        out += self.body(a)
        if self.o["obs_own_pos"]:
            out += [x / 32, y / 32]
        if self.o["conic_fov"]:
            out += [
                math.cos(math.radians(30 * self.look[a])),
                math.sin(math.radians(30 * self.look[a])),
            ]
        out += self.bits(a)
        return out if self.alive(a) else [0.0] * len(out)

    def state(self, last: list[int | None]) -> list[float]:
        bt, out = self.battle, []
        for i in range(self.a + self.e):
            row = [bt.health[0, i] / bt.health_max[0, i]]
            if i < self.a:
                energy = self.name(i) == "Medivac"
                row.append((bt.energy if energy else bt.cooldown)[0, i] / COOLDOWN[self.name(i)])
            row += [(bt.x[0, i] - 16) / 32, (bt.y[0, i] - 16) / 32]
            if self.race == "protoss":
                row.append(bt.shield[0, i] / SHIELD[self.name(i)])
            if i < self.a and self.o["conic_fov"]:
                row += [
                    math.cos(math.radians(30 * self.look[i])),
                    math.sin(math.radians(30 * self.look[i])),
                ]
            row += self.bits(i)
            out += row if self.alive(i) else [0.0] * len(row)
        for action in last:
            out += [float(action == k) for k in range(self.n_actions)]
        return out


class Table:
    """An `Interface` with its arrays, over one battle with random units."""

    def __init__(
        self,
        name: str,
        n_agents: int,
        n_enemies: int,
        ranges: bool = True,
        n_envs: int = 1,
        **options: Any,
    ):
        info = scenario(name).map_info(n_agents, n_enemies)
        self.battle = Battle.of_map(info, n_envs)
        sight = np.array([float(SIGHT.get(unit, 9)) for unit in UNIT_NAMES]) if ranges else None
        shoot = np.array([float(SHOOT.get(unit, 6)) for unit in UNIT_NAMES]) if ranges else None
        self.face = Interface(info, self.battle, V2Options(**options), sight=sight, shoot=shoot)
        self.obs = np.full((n_envs, n_agents, self.face.obs_size), 7, dtype=np.float32)
        self.state = np.full((n_envs, self.face.state_size), 7, dtype=np.float32)
        self.avail = np.full((n_envs, n_agents, self.face.n_actions), 7, dtype=np.uint8)
        self.all = np.ones(n_envs, dtype=bool)
        self.kinds = [UNIT_INDEX[unit] for unit in scenario(name).units]

    def scatter(self, rng: np.random.Generator) -> None:
        bt = self.battle
        shape = bt.x.shape
        bt.type[:] = rng.choice(self.kinds, shape)
        bt.type[:, : bt.n_agents].sort(axis=1)
        for b, i in np.ndindex(shape):
            name = UNIT_NAMES[bt.type[b, i]]
            bt.health_max[b, i], bt.shield_max[b, i] = HEALTH[name], SHIELD.get(name, 0)
        bt.x[:], bt.y[:] = rng.uniform(6, 26, (2, *shape))
        whole = rng.random(shape) < 0.5
        bt.x[whole], bt.y[whole] = np.floor(bt.x[whole]), np.floor(bt.y[whole])
        bt.health[:] = rng.uniform(0.1, 1, shape) * bt.health_max
        bt.shield[:] = rng.uniform(0, 1, shape) * bt.shield_max
        bt.energy[:] = rng.uniform(0, 200, shape)
        bt.cooldown[:] = rng.uniform(0, 30, shape)
        bt.alive[:] = rng.random(shape) < 0.85
        bt.health[~bt.alive] = 0

    def observe(self) -> None:
        self.face.observe(self.all, self.obs, self.state, self.avail)


@pytest.mark.parametrize("name", ["terran_5_vs_5", "protoss_5_vs_5", "zerg_5_vs_5"])
@pytest.mark.parametrize("teams", [(5, 5), (4, 6), (6, 4)])
def test_observation_state_and_availability_are_those_of_plain_loops(name, teams):
    rng = np.random.default_rng(sum(teams))
    choices = [
        {},
        {"obs_own_pos": False, "ranges": False},
        {"conic_fov": True},
        {"action_mask": False},
    ]
    choices += [
        {"conic_fov": True, "action_mask": False, "ranges": False},
        {"conic_fov": True, "obs_own_pos": False},
    ]
    for options in choices * 2:
        table = Table(name, *teams, **{"obs_own_pos": True, **options})
        reference = Reference(name, *teams, table.battle, **options)
        assert reference.n_actions == table.face.n_actions
        table.scatter(rng)
        table.face.begin(table.all)
        last: list[int | None] = [None] * teams[0]
        for _ in range(4):
            table.observe()
            np.testing.assert_array_equal(
                table.avail[0], [reference.avail(a) for a in range(teams[0])], str(options)
            )
            obs = [reference.obs(a) for a in range(teams[0])]
            np.testing.assert_allclose(
                table.obs[0], obs, rtol=1e-5, atol=1e-6, err_msg=str(options)
            )
            np.testing.assert_allclose(table.state[0], reference.state(last), rtol=1e-5, atol=1e-6)
            actions = np.array([[rng.choice(np.flatnonzero(row)) for row in table.avail[0]]])
            table.face.give_orders(actions, table.all, table.avail)
            for a, action in enumerate(actions[0].tolist()):
                if 6 <= action < reference.first:
                    reference.look[a] = action - 6
                    assert table.face.order[0, a] == ORDER_NONE
                elif action >= reference.first:
                    healer = reference.heals and reference.name(a) == "Medivac"
                    i = action - reference.first + (0 if healer else teams[0])
                    if reference.reaches(a, i):
                        assert table.face.order[0, a] == (ORDER_HEAL if healer else ORDER_ATTACK)
                        assert table.face.target[0, a] == i
                    else:
                        assert table.face.order[0, a] == ORDER_NONE, (
                            "an attack out of range is not ignored"
                        )
            last = actions[0].tolist()
            table.scatter(rng)


def test_the_cone_by_hand():
    table = Table("zerg_5_vs_5", 1, 2, conic_fov=True)
    bt = table.battle
    bt.type[:] = UNIT_INDEX["Hydralisk"]
    bt.alive[:], bt.health[:], bt.health_max[:] = True, 80, 80
    # one enemy 10 degrees left of the east, one in the north
    bt.x[0], bt.y[0] = [10, 14, 10], [10, 10 + 4 * math.tan(math.radians(10)), 14]
    table.face.begin(table.all)
    table.observe()
    assert table.face.n_actions == 20
    assert table.avail[0, 0, 6:].tolist() == [1] * 12 + [1, 0], (
        "everybody looks to the east at the start"
    )
    assert (table.obs[0, 0, 5] > 0, table.obs[0, 0, 13] > 0) == (True, False)
    table.face.give_orders(np.array([[6 + 3]]), table.all, table.avail)
    table.observe()
    assert table.avail[0, 0, 18:].tolist() == [0, 1]
    assert (table.obs[0, 0, 5] > 0, table.obs[0, 0, 13] > 0) == (False, True)
    table.face.begin(table.all)
    table.observe()
    assert table.avail[0, 0, 18:].tolist() == [1, 0]


def sees(table: Table) -> np.ndarray:
    """bool [B, A, E], from the distances in the observations."""
    size = table.face.enemy_feature_size
    b, a, _ = table.obs.shape
    rows = table.obs[:, :, 4 : 4 + size * table.battle.n_enemies].reshape(b, a, -1, size)
    return rows[..., 1] > 0


@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_who_is_told_of_an_enemy(chance):
    n_envs, a, e = 400, 4, 3
    table = Table("protoss_5_vs_5", a, e, n_envs=n_envs, prob_obs_enemy=chance)
    bt, rng = table.battle, np.random.default_rng(1)
    table.scatter(rng)
    bt.alive[:], bt.health[:] = True, bt.health_max
    # agents around (10, 10); enemy 0 in everybody's sight, 1 in agent 2's only, 2 in nobody's
    bt.x[:, :a], bt.y[:, :a] = 10 + rng.random((2, n_envs, a))
    bt.x[:, a:], bt.y[:, a:] = [14, 10, 30], [10, 27, 30]
    bt.y[:, 2], bt.x[:, 4], bt.y[:, 4] = 19, 12, 14.5
    table.face.begin(table.all, [np.random.default_rng(b) for b in range(n_envs)])
    table.observe()
    first = sees(table)
    assert not first[:, :, 2].any()
    assert (first[:, :, 1] == [False, False, True, False]).all(), "the only one who sees it"
    counts = first[:, :, 0].sum(axis=1)
    assert counts.min() == 1
    assert (
        abs((counts - 1).mean() - 3 * chance)
        < 4 * math.sqrt(3 * chance * (1 - chance) / n_envs) + 1e-9
    )
    by_agent = first[:, :, 0].mean(axis=0)
    expected = 0.25 + 0.75 * chance
    assert np.abs(by_agent - expected).max() < 4 * math.sqrt(expected * (1 - expected) / n_envs), (
        "not in random order"
    )
    # it stays so for the whole episode, also when enemies come and go
    actions = np.ones((n_envs, a), dtype=np.int64)
    bt.x[:, 4] = 31
    reward, flags = np.zeros(n_envs, dtype=np.float32), np.zeros((2, n_envs), dtype=bool)
    for _ in range(2):
        table.face.give_orders(actions, table.all, table.avail)
        table.face.score(table.all, reward, *flags)
        table.observe()
    assert not sees(table)[:, :, 0].any()
    bt.x[:, 4] = 12
    table.observe()
    np.testing.assert_array_equal(sees(table)[:, :, 0], first[:, :, 0])
    # in the next episode others are told
    table.face.begin(table.all, [np.random.default_rng(b + 1000) for b in range(n_envs)])
    table.observe()
    assert (sees(table)[:, :, 0] != first[:, :, 0]).any()
    if chance:
        # what one agent is told of one enemy says nothing of what another one is told of another
        bt.x[:, a:], bt.y[:, a:], bt.y[:, 2] = 12, 12, 11
        table.face.begin(table.all, [np.random.default_rng(b) for b in range(n_envs)])
        table.observe()
        shown = sees(table).astype(float)
        for i, j in np.ndindex(a, a):
            for k, m in np.ndindex(e, e):
                if i != j and k != m:
                    assert -0.35 < np.corrcoef(shown[:, i, k], shown[:, j, m])[0, 1] < 0.15


def test_everybody_sees_with_chance_one():
    table = Table("protoss_5_vs_5", 4, 3)
    table.scatter(np.random.default_rng(0))
    table.battle.alive[:], table.battle.x[:], table.battle.y[:] = True, 10, np.arange(7) / 2
    table.face.begin(table.all)
    table.observe()
    assert sees(table).all()


def test_rewards_are_cut_at_zero():
    for only_positive, expected in ((True, 0.0), (False, -7.0)):
        table = Table("zerg_5_vs_5", 2, 2, reward_only_positive=only_positive, reward_scale=False)
        table.scatter(np.random.default_rng(0))
        bt = table.battle
        bt.alive[:], bt.health[:] = True, 20
        table.face.begin(table.all)
        bt.health[0, 2] = 27
        reward, flags = np.zeros(1, dtype=np.float32), np.zeros((2, 1), dtype=bool)
        table.face.score(table.all, reward, *flags)
        assert reward[0] == expected


# the whole environment


def play(env: SC2SimV2, steps: int, seed: int = 0) -> np.ndarray:
    rng, out = np.random.default_rng(seed), []
    env.reset()
    for _ in range(steps):
        weight = rng.random(env.avail_actions.shape) * env.avail_actions
        running = ~(env.terminated | env.truncated)
        env.step(weight.argmax(axis=2), running)
        out.append(np.concatenate([env.obs.ravel(), env.state.ravel(), env.reward]))
    return np.array(out)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["terran_5_vs_5", "protoss_5_vs_5", "zerg_5_vs_5"])
def test_played_battles_are_shown_as_by_plain_loops(name, ranges):
    rng = np.random.default_rng(0)
    with SC2SimV2(1, 4, map_name=name, use_unit_ranges=ranges) as env:
        for _ in range(3):
            env.reset()
            reference = Reference(name, 5, 5, env.battle, ranges=ranges)
            last: list[int | None] = [None] * 5
            while not env.terminated[0] and env.interface.steps[0] < 60:
                np.testing.assert_array_equal(
                    env.avail_actions[0], [reference.avail(a) for a in range(5)]
                )
                np.testing.assert_allclose(
                    env.obs[0], [reference.obs(a) for a in range(5)], rtol=1e-5, atol=1e-6
                )
                np.testing.assert_allclose(
                    env.state[0], reference.state(last), rtol=1e-5, atol=1e-6
                )
                # attack where it is possible
                last = [int(rng.choice(np.flatnonzero(row)[-2:])) for row in env.avail_actions[0]]
                env.step(np.array([last]))


@pytest.mark.parametrize(
    "args", [{}, {"conic_fov": True, "prob_obs_enemy": 0.5, "action_mask": False}], ids=["", "all"]
)
def test_a_seed_decides_whatever_the_threads(args):
    runs = []
    for seed, threads in ((1, 1), (1, 2), (2, 1)):
        with SC2SimV2(3, seed, map_name="terran_5_vs_5", threads=threads, **args) as env:
            runs.append(play(env, 25))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_the_first_team_scales_all_rewards():
    with SC2SimV2(2, 5, map_name="protoss_5_vs_5") as env:
        env.reset()
        bt = env.battle
        expected = 5 * 10 + 200 + (bt.health_max + bt.shield_max)[:, 5:].sum(axis=1)
        np.testing.assert_allclose(env.interface.max_reward, expected)
        state = env.get_rng_state()
        teams = []
        for _ in range(3):
            env.reset()
            np.testing.assert_allclose(env.interface.max_reward, expected)
            teams.append(bt.type.copy())
        assert not np.array_equal(teams[0], teams[1])
    with SC2SimV2(2, 99, map_name="protoss_5_vs_5") as env:
        env.reset()
        env.set_rng_state(state)
        for team in teams:
            env.reset()
            np.testing.assert_allclose(env.interface.max_reward, expected)
            np.testing.assert_array_equal(env.battle.type, team)


def test_enemies_come_for_the_agents():
    config = {"start_positions": {"dist_type": "reflect_position"}}
    with SC2SimV2(8, 0, map_name="zerg_5_vs_5", capability_config=config) as env:
        env.reset()
        running = np.ones(8, dtype=bool)
        for _ in range(100):
            env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1), running)
            running = ~(env.terminated | env.truncated)
            if not running.any():
                break
        assert (env.info["dead_allies"] == 5).all(), "agents that stand still were left alone"
