"""SMAC's observations and actions in words, in the order of `smac.observations`."""

from __future__ import annotations

from typing import Any

from envs.starcraft.facts import MapInfo
from envs.starcraft.options import Options
from envs.starcraft.smac.rules import N_LOOKS, make_rules
from envs.words import COMPASS, Words, grouped

# where pathing and height are looked up, as `smac.observations.AROUND` has it
_AROUND = (
    *("north", "south", "east", "west"),
    *("north-east", "south-west", "south-east", "north-west"),
    "here",
)


def words(info: MapInfo, options: Options) -> Words:
    """Names for a map under options."""
    rules = make_rules(info, options)
    actions = _actions(info, rules)
    return Words(
        tuple(_agent(info, i) for i in range(info.n_agents)),
        tuple(_observation(info, rules, i, actions) for i in range(info.n_agents)),
        tuple(_of_agent(info, actions, rules.first_attack, i) for i in range(info.n_agents)),
    )


def _agent(info: MapInfo, i: int) -> str:
    return _unit("agent", i, info.agents[i], info)


def _enemy(info: MapInfo, k: int) -> str:
    return _unit("enemy", k, info.enemies[k], info)


def _unit(side: str, number: int, unit_type: str, info: MapInfo) -> str:
    """SMACv2 draws the types of its units anew in every episode."""
    return f"{side} {number}" if _is_random(info) else f"{side} {number} ({unit_type})"


def _is_random(info: MapInfo) -> bool:
    return info.suite == "SMACv2"


def _actions(info: MapInfo, rules: Any) -> list[str]:
    """Of an agent that attacks; of one of random type, which may heal, too."""
    moves = [f"move {where}" for where in COMPASS]
    looks = [f"look to {360 * k // N_LOOKS}°" for k in range(N_LOOKS)] if rules.conic_fov else []
    n_targets = max(info.n_agents, info.n_enemies) if info.heals else info.n_enemies
    attacks = [
        f"attack {_enemy(info, k)}"
        if k < info.n_enemies and not (info.heals and _is_random(info))
        else f"target {k}"
        for k in range(n_targets)
    ]
    return ["no-op (dead)", "stop", *moves, *looks, *attacks]


def _of_agent(info: MapInfo, actions: list[str], first_attack: int, i: int) -> tuple[str, ...]:
    """A medivac heals agents instead."""
    if info.agents[i] != "Medivac" or _is_random(info):
        return tuple(actions)
    heals = [f"heal {_agent(info, k)}" for k in range(info.n_agents)]
    rest = actions[first_attack + info.n_agents :]
    return (*actions[:first_attack], *heals, *rest)


def _observation(info: MapInfo, rules: Any, agent: int, actions: list[str]) -> tuple[str, ...]:
    names = grouped("can move", COMPASS)
    if rules.obs_pathing_grid:
        names += grouped("walkable", _AROUND[:-1])
    if rules.obs_terrain_height:
        names += grouped("height", _AROUND)
    for k in range(info.n_enemies):
        names += grouped(
            _enemy(info, k),
            [
                "can be attacked",
                *_place(rules, shields=rules.enemy_shields),
                *_types(info, info.enemy_bits),
            ],
        )
    for i in range(info.n_agents):
        if i != agent:
            seen = ["is in sight", *_place(rules, shields=rules.agent_shields)]
            seen += _types(info, info.agent_bits)
            if rules.obs_last_action:
                seen += [f"did {action}" for action in actions]
            names += grouped(_agent(info, i), seen)
    own = _health(rules.agent_shields) if rules.obs_own_health else []
    own += ["x", "y"] if rules.obs_own_pos else []
    own += ["looks to x", "looks to y"] if rules.conic_fov else []
    own += _types(info, info.agent_bits)
    timed = rules.obs_timestep_number  # SMAC's own part has a place for it that stays zero
    names += grouped("self", [*own, *(["unused"] if timed else [])])
    return (*names, *(grouped("time", ["step / limit"]) if timed else []))


def _place(rules: Any, shields: bool) -> list[str]:
    return ["distance", "x", "y", *(_health(shields) if rules.obs_all_health else [])]


def _health(shields: bool) -> list[str]:
    return ["health", *(["shield"] if shields else [])]


def _types(info: MapInfo, bits: dict[str, int]) -> list[str]:
    names = {bit: name for name, bit in bits.items()}
    return [f"is a {names.get(k, f'unit of type {k}')}" for k in range(info.unit_type_bits)]
