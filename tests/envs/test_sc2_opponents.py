"""The scripts that play the enemies: each does on states made by hand what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from sc2_script_fixtures import Field

from envs import make_vector_env
from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_ATTACK_MOVE,
    ORDER_MOVE,
    ORDER_NONE,
    ORDER_STOP,
    Battle,
)
from envs.starcraft.env import SC2Sim
from envs.starcraft.facts import map_info
from envs.starcraft.opponents import SCRIPTS, Opponents
from utils.errors import ConfigError

AGENTS = [("Marine", 10, 16), ("Marine", 12, 18), ("Marine", 14, 12, 0.4)]


def test_attack_move_orders_nothing():
    field = Field("attack_move", AGENTS, [("Marine", 20, 16)])
    assert not field.opponents.commands
    assert field.orders() == [(ORDER_NONE,)]


def test_nearest_takes_whoever_is_closest_now():
    field = Field("nearest", AGENTS, [("Marine", 20, 16), ("Marine", 20, 11)])
    assert field.orders() == [(ORDER_ATTACK, 2), (ORDER_ATTACK, 2)]
    field.battle.x[0, 0] = 19
    assert field.orders() == [(ORDER_ATTACK, 0), (ORDER_ATTACK, 0)]
    field.kill(0, 3)
    assert field.orders() == [(ORDER_NONE,), (ORDER_ATTACK, 2)]
    field.kill(1, 2)
    assert field.orders()[1] == (ORDER_NONE,)


def test_nearest_leaves_out_what_it_cannot_hit():
    field = Field(
        "nearest",
        [("Marine", 10, 16), ("Medivac", 18, 16)],
        [("Zealot", 20, 16), ("Stalker", 20, 16)],
    )
    assert field.orders() == [(ORDER_ATTACK, 0), (ORDER_ATTACK, 1)]


def test_hunt_stays_with_its_target():
    field = Field("hunt", AGENTS, [("Marine", 20, 16)])
    assert field.orders() == [(ORDER_ATTACK, 2)]
    field.battle.x[0, 0] = 19
    assert field.orders() == [(ORDER_ATTACK, 2)]
    field.kill(2)
    assert field.orders() == [(ORDER_ATTACK, 0)]


def test_focus_fire_takes_the_weakest_in_reach():
    # a marine's reach is 5 from edge to edge: 5.75 between centres
    enemies = [("Marine", 20, 16), ("Marine", 14, 16)]
    field = Field(
        "focus_fire",
        [("Marine", 18, 16), ("Marine", 14.5, 16, 0.5), ("Marine", 9, 16, 0.1)],
        enemies,
    )
    assert field.orders() == [(ORDER_ATTACK, 1), (ORDER_ATTACK, 2)], (
        "agent 2 is weaker, but 11 away"
    )
    field.battle.x[0, 1] = 14.2
    assert field.orders()[0] == (ORDER_ATTACK, 0), "agent 1 is 5.8 away"
    field.battle.x[0, 1] = 14.3
    field.battle.health[0, 0] = 20
    assert field.orders()[0] == (ORDER_ATTACK, 0)
    # shields count
    field.battle.shield[0, 0] = 10
    assert field.orders()[0] == (ORDER_ATTACK, 1)
    field.kill(0, 1)
    assert field.orders() == [(ORDER_ATTACK, 2)] * 2, "with nobody in reach they do not advance"


def test_focus_fire_of_units_that_cannot_hit_the_weakest():
    agents = [("Marine", 19.2, 16), ("Medivac", 19, 16, 0.1)]
    field = Field("focus_fire", agents, [("Stalker", 20, 16), ("Zealot", 20, 16)])
    assert field.orders() == [(ORDER_ATTACK, 1), (ORDER_ATTACK, 0)]


def test_kite_takes_the_weak_back():
    strong, weak = ("Marine", 16, 18), ("Marine", 16, 16, 0.3)
    field = Field("kite", [("Marine", 12, 16)], [strong, weak])
    assert field.orders() == [(ORDER_ATTACK, 0), (ORDER_MOVE, 18.0, 16.0)]
    field.battle.x[0, 0] = 7
    assert field.orders()[1] == (ORDER_STOP,), "9 away it is far enough"
    field.battle.x[0, 0] = 12
    # with nobody strong left all fight
    field.kill(1)
    assert field.orders() == [(ORDER_NONE,), (ORDER_ATTACK, 0)]
    # and so does who has a wall behind: 3m is walkable for y in [8, 24)
    field = Field("kite", [("Marine", 16, 20)], [("Marine", 10, 16), ("Marine", 16, 22.5, 0.2)])
    assert field.orders() == [(ORDER_ATTACK, 0), (ORDER_ATTACK, 0)]


def test_kite_backs_off_between_shots_from_those_with_shorter_weapons():
    field = Field(
        "kite", [("Zealot", 12, 16)], [("Stalker", 15, 12), ("Marine", 25, 10)], "3s_vs_3z"
    )
    assert field.orders()[0] == (ORDER_ATTACK, 0)
    field.battle.cooldown[0, 1] = 20
    assert field.orders()[0] == (ORDER_MOVE, 15 + 2 * 0.6, 12 - 2 * 0.8)
    field.battle.cooldown[0, 1] = 4
    assert field.orders()[0] == (ORDER_ATTACK, 0), "the weapon is as good as ready"
    field.battle.cooldown[0, 1] = 20
    field.battle.x[0, 0] = 4
    assert field.orders()[0] == (ORDER_ATTACK, 0), "out of its own range it comes nearer"
    equal = Field("kite", [("Stalker", 12, 16)], [("Stalker", 15, 12)], "3s_vs_3z")
    equal.battle.cooldown[0, 1] = 20
    assert equal.orders() == [(ORDER_ATTACK, 0)]


def test_random_target_is_kept_until_it_dies_and_is_any_agent():
    field = Field("random_target", AGENTS, [("Marine", 20, 16)] * 3)
    first = field.orders()
    assert all(code == ORDER_ATTACK for code, _ in first)
    for _ in range(5):
        assert field.orders() == first
    field.kill(first[0][1])
    assert field.orders()[0][1] != first[0][1]
    counts = np.zeros(3)
    for seed in range(600):
        field = Field("random_target", AGENTS, [("Marine", 20, 16)])
        field.opponents.begin(field.mask, [np.random.default_rng(seed)])
        counts[field.orders()[0][1]] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 13.8, "chi square, 2 degrees of freedom, p = 0.001"


@pytest.mark.parametrize("script", ["nearest", "focus_fire", "kite", "random_target"])
def test_medivacs_follow_the_fighters(script):
    field = Field(
        script,
        AGENTS,
        [("Marine", 20, 16), ("Marine", 24, 20), ("Medivac", 25, 18), ("Medivac", 25, 17)],
    )
    assert field.orders()[2:] == [(ORDER_ATTACK_MOVE, 24, 20), (ORDER_ATTACK_MOVE, 24, 20)]
    field.kill(3, 4)
    assert field.orders()[2:] == [(ORDER_NONE,)] * 2


def test_hunting_medivacs_go_to_the_agents():
    field = Field("hunt", AGENTS, [("Marine", 20, 16), ("Medivac", 25, 18)])
    assert field.orders()[1] == (ORDER_ATTACK_MOVE, 14, 12)


# the mixture


def test_the_mixture_is_drawn_with_its_weights():
    info = map_info("1o_10b_vs_1r")  # SMAC-Hard has no scripts for it
    battle = Battle.of_map(info, 4000)
    mask, rngs = np.ones(4000, dtype=bool), [np.random.default_rng(b) for b in range(4000)]
    base = ["attack_move", "nearest", "focus_fire", "kite", "random_target"]
    for weights in ({}, {"kite": 3, "attack_move": 1.0, "nearest": 0}):
        opponents = Opponents(info, battle, "attack_move", "mixture", weights)
        opponents.begin(mask, rngs)
        counts = np.bincount(opponents.script, minlength=len(SCRIPTS))
        chances = weights or dict.fromkeys(base, 1)
        assert set(opponents.names) == {name for name, weight in chances.items() if weight}
        for name, count in zip(SCRIPTS, counts, strict=True):
            p = chances.get(name, 0) / sum(chances.values())
            assert abs(count - 4000 * p) <= 4 * np.sqrt(4000 * p * (1 - p)), name
    assert "hunt" in Opponents(info, battle, "hunt", "mixture").names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"opponents": "kiter"}, "'kite'"),
        ({"opponents": "kite", "opponent_weights": {"kite": 1}}, "go with opponents: mixture"),
        ({"opponents": "mixture", "opponent_weights": {"kit": 1}}, "'kite'"),
        ({"opponents": "corners"}, "'corners' are not written for 3m, which has .*line_middle"),
        ({"opponents": "mixture", "opponent_weights": {"gather": 1}}, "not written for 3m"),
        ({"opponents": "mixture", "opponent_weights": {"kite": -1}}, "kite must be .* 0, got -1"),
        ({"opponents": "mixture", "opponent_weights": {"kite": 0}}, "all 0"),
    ],
)
def test_what_users_get_wrong(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_vector_env("sc2sim", args, 1, 0, "native", "train_env")
    assert "\n" not in str(caught.value)


def episodes(env: SC2Sim, n: int) -> list:
    """Heuristic agents against whoever comes; what happened, and who it was."""
    out = []
    for _ in range(n):
        env.reset()
        drawn = env.info["opponent"].copy()
        running = np.ones(env.n_envs, dtype=bool)
        rewards = np.zeros(env.n_envs)
        while running.any():
            env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1), running)
            rewards += env.reward * running
            running = ~(env.terminated | env.truncated)
            np.testing.assert_array_equal(env.info["opponent"], drawn)
        np.testing.assert_array_equal(drawn, env.opponents.script)
        out.append((drawn.tolist(), rewards.tolist()))
    return out


def test_whole_battles_against_the_mixture():
    own = ("attack_move", "nearest", "focus_fire", "kite", "random_target")
    args = {
        **{"map_name": "2s3z", "heuristic_ai": True, "opponents": "mixture"},
        "opponent_weights": dict.fromkeys(own, 1),
    }
    runs = []
    for seed, n_envs, threads in ((1, 6, 1), (1, 6, 2), (1, 4, 1), (2, 6, 1)):
        with SC2Sim(n_envs, seed, threads=threads, **args) as env:
            runs.append(episodes(env, 4))
            stats = env.get_stats()
            for name in own:
                drawn = [who[0] for who, _ in runs[-1]]
                assert stats[f"battles_game_{name}"][0] == drawn.count(SCRIPTS.index(name))
            assert (
                sum(stats[f"battles_won_{name}"][0] for name in env.opponents.names)
                == stats["battles_won"][0]
            )
    assert runs[0] == runs[1]
    assert [(who[:4], rewards[:4]) for who, rewards in runs[0]] == runs[2]
    assert runs[0] != runs[3]
    assert len({s for who, _ in runs[0] for s in who}) >= 4


def test_scripts_fight_harder_than_the_map():
    """Agents that stand still: those who come for them win on a map whose enemies stay where they
    are.
    """
    for opponents, dead in (("attack_move", 0), ("nearest", 2)):
        with SC2Sim(2, 0, map_name="3s_vs_3z", opponents=opponents) as env:
            env.engine._enemy_orders[:] = 0
            env.reset()
            running = np.ones(2, dtype=bool)
            for _ in range(60):
                env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1), running)
                running = ~(env.terminated | env.truncated)
                if not running.any():
                    break
            assert (env.info["dead_allies"] >= dead).all()
            assert (env.info["dead_allies"] == 0).all() == (dead == 0)
            assert "opponent" not in env.info
