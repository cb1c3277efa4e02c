"""Names of agents, actions and observations: as many as there are, and each where its number is."""

import numpy as np
import pytest

from envs import make_vector_env

TASKS = {
    "sc2sim 2s3z": ("sc2sim", {"map_name": "2s3z"}),
    "sc2sim MMM2": ("sc2sim", {"map_name": "MMM2"}),
    "sc2sim everything": (
        "sc2sim",
        {
            "map_name": "3s5z",
            "obs_last_action": True,
            "obs_pathing_grid": True,
            "obs_terrain_height": True,
            "obs_timestep_number": True,
        },
    ),
    "sc2sim_v2": ("sc2sim_v2", {"map_name": "terran_5_vs_5"}),
    "predator_prey": ("predator_prey", {"n_predators": 3, "n_prey": 2}),
    "switching_wind": ("switching_wind", {}),
    "matrix_game": ("matrix_game", {"map_name": "climbing"}),
    "spread": ("spread", {"n_agents": 3}),
    "rover_tower": ("rover_tower", {}),
    "treasure_collection": ("treasure_collection", {}),
    "lbf": ("lbf", {"map_name": "2s-8x8-3p-2f"}),
    "lbf grid": ("lbf", {"map_name": "grid-2s-8x8-3p-2f"}),
    "lbf without levels": ("lbf", {"observe_agent_levels": False}),
    "rware": ("rware", {"map_name": "2s-tiny-2ag"}),
    "gymma": ("gymma", {"key": "mpe2.simple_spread_v3"}),
}


def made(task):
    name, env_args = TASKS[task]
    if name == "gymma":
        pytest.importorskip("mpe2")
    return make_vector_env(name, env_args, 1, 3, "native", "test_env")


@pytest.mark.parametrize("task", TASKS)
def test_there_is_a_name_for_everything(task):
    with made(task) as env:
        words = env.words()
        assert len(set(words.agents)) == env.n_agents
        assert tuple(map(len, words.observations)) == tuple(env.obs_sizes)
        assert tuple(map(len, words.actions)) == tuple(env.action_sizes)
        for names in (*words.observations, *words.actions):
            assert len(set(names)) == len(names)
        assert all(": " in name for names in words.observations for name in names)


def seen(env, words, agent):
    return dict(zip(words.observations[agent], env.obs[0, agent].tolist(), strict=False))


def test_starcraft_s_names_stand_where_the_rules_write():
    """Against the units themselves, over a whole battle."""
    with made("sc2sim 2s3z") as env:
        words, bt = env.words(), env.battle
        assert words.agents == (
            *("agent 0 (Stalker)", "agent 1 (Stalker)"),
            *(f"agent {i} (Zealot)" for i in (2, 3, 4)),
        )
        env.reset()
        met = 0
        for _ in range(40):
            for a in range(env.n_agents):
                view = seen(env, words, a)
                alive = bt.health[0, a] > 0
                own = bt.health[0, a] / bt.health_max[0, a] if alive else 0.0
                assert view["self: health"] == pytest.approx(own, abs=1e-6)
                kind = words.agents[a].split("(")[1][:-1]
                assert view[f"self: is a {kind}"] == alive
                for k, name in enumerate(words.actions[a]):
                    if name.startswith("attack "):
                        enemy = name.removeprefix("attack ")
                        assert view[f"{enemy}: can be attacked"] == env.avail_actions[0, a, k]
                        unit = env.n_agents + int(enemy.split()[1])
                        if alive and view[f"{enemy}: distance"] > 0:
                            met += 1
                            dx = bt.x[0, unit] - bt.x[0, a]
                            assert view[f"{enemy}: x"] == pytest.approx(dx / 9, abs=1e-6)
                            health = bt.health[0, unit] / bt.health_max[0, unit]
                            assert view[f"{enemy}: health"] == pytest.approx(health, abs=1e-6)
                for k, name in enumerate(("north", "south", "east", "west")):
                    assert view[f"can move: {name}"] == env.avail_actions[0, a, 2 + k]
            if env.terminated[0] or env.truncated[0]:
                break
            attacks = env.avail_actions[..., 6:]
            env.step(
                np.where(
                    attacks.any(-1),
                    6 + attacks.argmax(-1),
                    np.where(env.avail_actions[..., 4], 4, env.avail_actions.argmax(-1)),
                )
            )
        assert met > 20


def test_a_medivac_heals():
    with made("sc2sim MMM2") as env:
        words = env.words()
        medivac = next(i for i, name in enumerate(words.agents) if "Medivac" in name)
        marine = next(i for i, name in enumerate(words.agents) if "Marine" in name)
        assert words.actions[medivac][6] == f"heal {words.agents[0]}"
        assert words.actions[marine][6].startswith("attack enemy 0 (")


def test_predators_see_the_prey_where_it_is():
    with made("predator_prey") as env:
        words = env.words()
        env.reset()
        for a in range(env.n_agents):
            view = seen(env, words, a)
            place = env._coordinates[env._cells[0, a]]
            prey = env._coordinates[env._cells[0, env.n_agents + 1]]
            assert (view["self: x"], view["self: y"]) == tuple(place)
            assert view["prey 1: x from here"] == pytest.approx(prey[0] - place[0])
            assert view[f"number: is {a}"] == 1


def test_rovers_hear_their_tower():
    with made("rover_tower") as env:
        words = env.words()
        env.reset()
        env.step(np.array([[0, 1, 2, 3, 4, 3, 2, 1]]))
        for rover in range(4):
            view = seen(env, words, rover)
            tower = env.tower_of[0, rover]
            assert view[f"my tower: is tower {tower}"] == 1
            assert view[f"it said: {env.said[0, tower]}"] == 1
            assert view["self: velocity y"] == np.float32(env.velocities[0, rover, 1])
            goal = env.landmarks[0, env.goal_of[0, rover]]
            assert seen(env, words, 4 + tower)["goal: y"] == np.float32(goal[1])


def test_treasures_and_the_agents_around():
    with made("treasure_collection") as env:
        words = env.words()
        env.reset()
        for a in (0, 7):
            view = seen(env, words, a)
            apart = env.treasures[0] - env.positions[0, a]
            nearest = np.linalg.norm(apart, axis=1).argmin()
            assert view["treasure, nearest 1: x from here"] == pytest.approx(
                apart[nearest, 0], abs=1e-6
            )
            colour = env.colours[0, nearest]
            assert view[f"treasure, nearest 1: has colour {colour}"] == 1


def test_robots_and_players_see_themselves():
    with made("rware") as env:
        words = env.words()
        env.reset()
        view = seen(env, words, 1)
        assert view["self: x"] == env.houses.x[0, 1]
        assert view["cell +0 +0: has a robot"] == 1
        faces = ("up", "down", "left", "right")[env.houses.direction[0, 1]]
        assert view[f"self: faces {faces}"] == view[f"cell +0 +0: faces {faces}"] == 1
        other = (env.houses.x[0, 0] - env.houses.x[0, 1], env.houses.y[0, 0] - env.houses.y[0, 1])
        near = f"cell {other[0]:+d} {other[1]:+d}: has a robot"
        assert view.get(near, 1) == 1
    with made("lbf") as env:
        words = env.words()
        env.reset()
        assert seen(env, words, 2)["self: level"] == env.fields.levels[0, 2]
    with made("lbf grid") as env:
        words = env.words()
        env.reset()
        assert seen(env, words, 2)["level of a player: +0 +0"] == env.fields.levels[0, 2]
