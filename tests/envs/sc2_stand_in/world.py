"""The battle behind the stand-in: helper of `program.py`, in the game's own terms (tags, abilities,
loops).
"""

from dataclasses import dataclass

import numpy as np
from s2clientprotocol import common_pb2, raw_pb2, sc2api_pb2

from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, ORDER_MOVE, ORDER_NONE, ORDER_STOP
from envs.starcraft.facts import UNIT_NAMES, map_info, unit_type
from envs.starcraft.sim.engine import Engine
from utils.seeding import derive_seed

FIRST_MAP_TYPE = 2005  # number of the first of a map's own unit types
CREATION_DELAY = 4  # loops from both sides being empty to the new units
ABILITIES = {16: "move", 23: "attack", 4: "stop", 386: "heal"}


def to_game_positions(battle):
    """Rounds positions as the game does, to multiples of 1/4096; these survive the protocol's 32
    bits.
    """
    for array in (battle.x, battle.y):
        array[:] = np.round(array * 4096) / 4096


@dataclass
class Orders:
    """What the agents are told in the next step."""

    code: np.ndarray
    target: np.ndarray
    x: np.ndarray
    y: np.ndarray


class World:
    """One map with its script: creates the units, and again whenever nobody is left.

    The battles are those of `SC2Sim(1, seed=seed)`, but for the rounding.
    """

    def __init__(self, map_name, seed):
        self.info = map_info(map_name)
        self.engine = Engine(self.info, 1)
        self.rng = np.random.default_rng(derive_seed(seed, "env", 0))
        self.loop = 0
        self.tags = []
        self.next_tag = 4_294_967_297
        self.mask = np.ones(1, dtype=bool)
        a = self.info.n_agents
        self.orders = Orders(
            np.zeros((1, a), np.int8),
            np.zeros((1, a), np.int64),
            np.zeros((1, a)),
            np.zeros((1, a)),
        )
        self.empty_loops = 0
        self.doomed = set()
        self.engaged = {}  # unit -> its target, by tags
        names = sorted(set(self.info.agents))
        self.agent_types = {name: FIRST_MAP_TYPE + i for i, name in enumerate(names)}
        self._create()

    def _create(self):
        self.engine.reset(self.mask, [self.rng])
        to_game_positions(self.engine.battle)
        n = self.engine.battle.n_units
        self.tags = [self.next_tag + 262_144 * i for i in range(n)]
        self.next_tag += 262_144 * n
        self.orders.code[:] = ORDER_NONE
        self.empty_loops = 0

    def step(self, loops):
        """The game goes on."""
        self.loop += loops
        for i, tag in enumerate(self.tags):
            if tag in self.doomed:
                self.engine.battle.alive[0, i] = False
                self.engine.battle.health[0, i] = 0.0
        self.doomed.clear()
        if self.engine.battle.alive.any():
            orders = self.orders
            self.engine.step(orders.code, orders.target, orders.x, orders.y, self.mask, loops=loops)
            to_game_positions(self.engine.battle)
            orders.code[:] = ORDER_NONE
            return
        self.empty_loops += loops
        if self.empty_loops >= CREATION_DELAY:
            self._create()

    def kill(self, tags):
        """The debug command: they die when the game goes on."""
        self.doomed.update(tags)

    def act(self, command):
        """One order.

        Returns:
            The game's code of what came of it.
        """
        index = {tag: i for i, tag in enumerate(self.tags) if self.engine.battle.alive[0, i]}
        what = ABILITIES.get(command.ability_id)
        if what is None or command.queue_command:
            return 2  # not supported
        for tag in command.unit_tags:
            agent = index.get(tag)
            if agent is None or agent >= self.info.n_agents:
                return 3  # no such unit to command
            orders = self.orders
            self.engaged[tag] = command.target_unit_tag  # 0 for moving and stopping
            if what == "stop":
                orders.code[0, agent] = ORDER_STOP
            elif what == "move":
                orders.code[0, agent] = ORDER_MOVE
                orders.x[0, agent] = command.target_world_space_pos.x
                orders.y[0, agent] = command.target_world_space_pos.y
            else:
                target = index.get(command.target_unit_tag)
                if target is None or (target < self.info.n_agents) != (what == "heal"):
                    return 4
                orders.code[0, agent] = ORDER_HEAL if what == "heal" else ORDER_ATTACK
                orders.target[0, agent] = target
        return 1

    def units(self):
        """All living units: the enemies in the order of their creation, the agents in no useful
        order.
        """
        battle, n_agents = self.engine.battle, self.info.n_agents
        order = [*range(n_agents - 1, -1, -1), *range(n_agents, battle.n_units)]
        return [self._unit(battle, i, i < n_agents) for i in order if battle.alive[0, i]]

    def _unit(self, battle, i, agent):
        name = UNIT_NAMES[battle.type[0, i]]
        unit = self.info.unit_type(name)
        return raw_pb2.Unit(
            display_type=raw_pb2.Visible,
            alliance=raw_pb2.Self if agent else raw_pb2.Enemy,
            tag=self.tags[i],
            unit_type=self.agent_types[name] if agent else unit.game_id,
            owner=1 if agent else 2,
            pos=common_pb2.Point(x=battle.x[0, i], y=battle.y[0, i], z=10.0),
            radius=unit.radius,
            build_progress=1.0,
            is_flying=unit.flying,
            engaged_target_tag=self.engaged.get(self.tags[i], 0),
            weapon_cooldown=battle.cooldown[0, i],
            **{
                key: getattr(battle, key)[0, i]
                for key in ("health", "health_max", "shield", "shield_max")
            },
            **{key: getattr(battle, key)[0, i] for key in ("energy", "energy_max")},
        )

    def start_raw(self):
        """The map, as game version 4.10 tells it: one bit per cell, southern row first."""
        width, height = self.info.map_size
        size = common_pb2.Size2DI(x=width, y=height)
        walkable = np.packbits(self.info.pathing.T.astype(np.uint8)).tobytes()
        ground = np.rint(self.info.height.T * 255).astype(np.uint8).tobytes()
        return raw_pb2.StartRaw(
            map_size=size,
            pathing_grid=common_pb2.ImageData(bits_per_pixel=1, size=size, data=walkable),
            terrain_height=common_pb2.ImageData(bits_per_pixel=8, size=size, data=ground),
            placement_grid=common_pb2.ImageData(bits_per_pixel=1, size=size, data=walkable),
            playable_area=common_pb2.RectangleI(
                p0=common_pb2.PointI(x=0, y=0), p1=common_pb2.PointI(x=width, y=height)
            ),
        )

    def data(self):
        """Names of unit types and abilities."""
        answer = sc2api_pb2.ResponseData()
        for name in UNIT_NAMES:
            number = unit_type(name).game_id
            if number is not None:
                answer.units.add(unit_id=number, name=name, available=True)
        for name, number in self.agent_types.items():
            answer.units.add(unit_id=number, name=f"RL_{name}", available=True)
        for number, name in ABILITIES.items():
            answer.abilities.add(ability_id=number, link_name=name, available=True)
        return answer
