"""Google Research Football: features without the package, everything else against the package
itself where it is there.

CI installs it (install_gfootball.sh), so nothing is skipped there.
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_env_contract as contract

import doctor
from envs import make_vector_env
from envs.gfootball import features
from envs.gfootball.env import PAPER_NAMES, FootballEnv
from utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gfootball_engine") is None,
    reason="gfootball is not installed: bash install_gfootball.sh",
)
SHORT, LEFT, RIGHT, PASS, SHOT = 3, 1, 5, 11, 12  # steps; actions of the package's default set


# the vectors, by plain loops


def slow_observation(raw, own, mates):
    """One agent's observation; `mates`: the other field players, in order."""
    x, y = raw["left_team"][own]
    vector = [x, y, *raw["left_team_direction"][own]]
    for mate in mates:
        vector += [
            raw["left_team"][mate][0] - x,
            raw["left_team"][mate][1] - y,
            *raw["left_team_direction"][mate],
        ]
    for position, velocity in zip(raw["right_team"], raw["right_team_direction"], strict=True):
        vector += [position[0] - x, position[1] - y, *velocity]
    vector += [raw["ball"][0] - x, raw["ball"][1] - y, raw["ball"][2], *raw["ball_direction"]]
    return np.array(vector, dtype=np.float32)


def slow_state(raw, field):
    vector = []
    for player in field:
        vector += [*raw["left_team"][player], *raw["left_team_direction"][player]]
    for position, velocity in zip(raw["right_team"], raw["right_team_direction"], strict=True):
        vector += [*position, *velocity]
    return np.array([*vector, *raw["ball"], *raw["ball_direction"]], dtype=np.float32)


def invented(roles, n_right, seed=0):
    """A raw observation in which no two numbers are equal."""
    rng = np.random.default_rng(seed)
    return {
        "left_team_roles": np.array(roles),
        "left_team": rng.uniform(-1, 1, (len(roles), 2)),
        "left_team_direction": rng.uniform(-0.1, 0.1, (len(roles), 2)),
        "right_team": rng.uniform(-1, 1, (n_right, 2)),
        "right_team_direction": rng.uniform(-0.1, 0.1, (n_right, 2)),
        "ball": rng.uniform(-1, 1, 3),
        "ball_direction": rng.uniform(-0.1, 0.1, 3),
    }


def test_an_observation_in_numbers():
    raw = {
        "left_team_roles": np.array([0, 5, 5]),
        "left_team": np.array([[-1.0, 0.0], [0.5, 0.25], [0.75, -0.25]]),
        "left_team_direction": np.array([[9.0, 9.0], [0.01, 0.02], [0.03, 0.04]]),
        "right_team": np.array([[1.0, 0.0]]),
        "right_team_direction": np.array([[-0.5, 0.5]]),
        "ball": np.array([0.625, 0.0, 0.125]),
        "ball_direction": np.array([0.1, 0.2, 0.3]),
    }
    first = [
        0.5,
        0.25,
        0.01,
        0.02,
        0.25,
        -0.5,
        0.03,
        0.04,
        0.5,
        -0.25,
        -0.5,
        0.5,
        0.125,
        -0.25,
        0.125,
        0.1,
        0.2,
        0.3,
    ]
    state = [
        0.5,
        0.25,
        0.01,
        0.02,
        0.75,
        -0.25,
        0.03,
        0.04,
        1.0,
        0.0,
        -0.5,
        0.5,
        0.625,
        0.0,
        0.125,
        0.1,
        0.2,
        0.3,
    ]
    observed = features.observations(raw, [1, 2])
    assert observed.dtype == np.float32
    assert observed.shape == (2, 18)
    assert np.array_equal(observed[0], np.array(first, dtype=np.float32))
    assert np.array_equal(features.state(raw), np.array(state, dtype=np.float32))
    assert features.vector_size(raw) == 18


@pytest.mark.parametrize(("n_attackers", "n_right", "size"), [(3, 2, 26), (4, 3, 34)])
def test_sizes_of_the_paper(n_attackers, n_right, size):
    raw = invented([0] + [5] * n_attackers, n_right)
    agents = range(1, n_attackers + 1)
    assert features.observations(raw, agents).shape == (n_attackers, size)
    assert features.state(raw).shape == (size,)
    assert features.vector_size(raw) == size


def test_some_players_are_nobodys_and_the_keeper_may_stand_anywhere():
    raw = invented([5, 1, 0, 9, 4], 3)
    observed = features.observations(raw, [4, 1])
    assert np.array_equal(observed[0], slow_observation(raw, 4, [0, 1, 3]))
    assert np.array_equal(observed[1], slow_observation(raw, 1, [0, 3, 4]))
    assert np.array_equal(features.state(raw), slow_state(raw, [0, 1, 3, 4]))


def test_an_agent_that_is_given_the_keeper():
    raw = invented([0, 5, 5, 5], 2)
    observed = features.observations(raw, [1, 0, 3])
    assert np.array_equal(observed[0], slow_observation(raw, 1, [2, 3]))
    assert np.array_equal(observed[1], slow_observation(raw, 0, [1, 3]))  # nobody has 2


# without the package


def test_yaml_has_every_argument_with_its_default():
    contract.test_yaml_has_every_argument_with_its_default("gfootball")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"time_limit": 0}, "time_limit must be a whole number of at least 1, got 0"),
        ({"rewards": "checkpoints"}, "unknown rewards 'checkpoints'.*scoring,checkpoints"),
        ({"representation": "simple115"}, "unknown representation 'simple115'.*simple115v2"),
        ({"write_video": True}, "write_video needs write_full_episode_dumps or write_goal_dumps"),
    ],
)
def test_refused_arguments(args, message):
    with pytest.raises(ConfigError, match=message):
        FootballEnv(seed=1, **args)


@pytest.fixture
def broken_package(tmp_path):
    """A folder with an engine that fails like one that lacks a library."""
    (tmp_path / "gfootball_engine.py").write_text(
        "raise ImportError('libboost_thread.so.1: cannot open\\nit')\n"
    )
    return tmp_path


def test_a_missing_package_is_one_line(broken_package):
    command = [
        sys.executable,
        str(ROOT / "src" / "main.py"),
        "--config=qmix",
        "--env-config=gfootball",
        "with",
    ]
    settings = [
        "batch_size_run=1",
        "use_cuda=False",
        f"local_results_path={broken_package / 'results'}",
    ]
    for runner in ("episode", "parallel"):
        done = subprocess.run(
            [*command, f"runner={runner}", *settings],
            env={
                "PYTHONPATH": str(broken_package),
                "PATH": "/usr/bin:/bin",
                "HOME": str(broken_package),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert [line for line in done.stderr.splitlines() if not line.startswith("[INFO")] == [
            "error: Google Research Football cannot be used (ImportError: libboost_thread.so.1: "
            "cannot open it): "
            "bash install_gfootball.sh builds it"
        ]


def test_doctor_shows_the_import_error(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.10.2")
    monkeypatch.setitem(sys.modules, "gfootball.env", None)
    mend = doctor._install("football", "gfootball")
    check = doctor.check_package("football", "gfootball", "", mend)
    assert check.state == doctor.BROKEN
    assert check.found.startswith("2.10.2: ModuleNotFoundError: ")
    assert check.mend == "bash install_gfootball.sh"
    assert (ROOT / "install_gfootball.sh").is_file()


# with it


def make_raw_env(scenario, n_agents, seed, rewards="scoring"):
    """The package's environment as the package makes it, its next episode seeded."""
    from gfootball.env import create_environment

    options = {"game_engine_random_seed": seed, "reverse_team_processing": bool(seed % 2)}
    return create_environment(
        env_name=scenario,
        representation="raw",
        rewards=rewards,
        number_of_left_players_agent_controls=n_agents,
        other_config_options=options,
    )


def drawn_seeds(seed, count):
    rng = np.random.default_rng(seed)
    return [int(rng.integers(2**31)) for _ in range(count)]


def play(env, actions):
    """An episode of random actions: (observations, state, reward) of each step, and the last
    info.
    """
    rng = np.random.default_rng(actions)
    env.reset()
    shown, over, info = [(np.array(env.get_obs()), env.get_state(), 0.0)], False, {}
    while not over:
        reward, over, info = env.step(rng.integers(env.n_actions, size=env.n_agents))
        shown.append((np.array(env.get_obs()), env.get_state(), reward))
    return shown, info


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(one, other, strict=True)
    )


CASE = contract.Case("gfootball", {"map_name": "academy_3_vs_2", "time_limit": 12})


@needs_package
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", ["serial", "subproc"])
def test_contract(check, backend, worker_pool):
    def make(n_envs, seed):
        return make_vector_env("gfootball", CASE.env_args, n_envs, seed, backend, "train_env")

    fresh = check in (contract.check_seeding, contract.check_close)
    check(make if fresh or backend == "serial" else worker_pool(CASE, make), CASE)


worker_pool = contract.worker_pool


@needs_package
def test_pymarl_interface():
    contract.test_pymarl_interface(CASE)


@needs_package
@pytest.mark.parametrize(
    ("map_name", "n_agents", "size"),
    [
        ("academy_3_vs_2", 3, 26),
        ("academy_3_vs_1_with_keeper", 3, 26),
        ("academy_4_vs_3", 4, 34),
        ("academy_run_pass_and_shoot_with_keeper", 2, 22),
        ("academy_counterattack_easy", 4, 90),
        ("academy_counterattack_hard", 4, 90),
    ],
)
def test_sizes(map_name, n_agents, size):
    env = FootballEnv(seed=1, map_name=map_name, time_limit=SHORT)
    info = env.get_env_info()
    assert info == {
        "n_agents": n_agents,
        "n_actions": 19,
        "obs_shape": size,
        "state_shape": size,
        "episode_limit": SHORT,
    }
    shown, last = play(env, 0)
    assert len(shown) == SHORT + 1
    assert last == {"battle_won": False, "episode_limit": True}
    env.close()


@needs_package
def test_where_the_players_of_our_scenario_start():
    env = FootballEnv(seed=3, map_name="academy_4_vs_3")
    env.reset()
    state = env.get_state()
    attackers, opponents = state[:16].reshape(4, 4), state[16:28].reshape(3, 4)
    expected = [[0.6, 0.0], [0.7, 0.2], [0.7, -0.2], [0.5, 0.0]]
    assert np.abs(attackers[:, :2] - expected).max() < 0.03
    assert np.abs(opponents[:, :2] - [[1.0, 0.0], [0.75, -0.1], [0.75, 0.1]]).max() < 0.03
    assert np.abs(state[28:30] - [0.62, 0.0]).max() < 0.02
    env.close()


@needs_package
@pytest.mark.parametrize(
    ("map_name", "n_agents"),
    [("academy_3_vs_2", 3), ("academy_4_vs_3", 4), ("academy_counterattack_hard", 4)],
)
def test_equal_to_the_package(map_name, n_agents):
    """The same seeds in the package itself: the same game, and vectors as the slow reference writes
    them.
    """
    env = FootballEnv(seed=5, map_name=map_name, time_limit=400, fixed_players=False)
    raw_env = make_raw_env(PAPER_NAMES.get(map_name, map_name), n_agents, 0)
    config = raw_env.unwrapped._config
    for episode, seed in enumerate(drawn_seeds(5, 2)):
        config["game_engine_random_seed"], config["reverse_team_processing"] = seed, bool(seed % 2)
        env.reset()
        raws, over, rng = raw_env.reset(), False, np.random.default_rng(episode)
        controlled = [raw["active"] for raw in raws]
        for _ in range(60):
            if over:
                break
            field = [p for p, role in enumerate(raws[0]["left_team_roles"]) if int(role) != 0]
            controlled = [
                raw["active"] if raw["active"] >= 0 else old
                for raw, old in zip(raws, controlled, strict=True)
            ]
            for agent, own in enumerate(controlled):
                mates = [player for player in field if player != own]
                if own == 0:  # the keeper
                    mates.remove(min(set(field) - set(controlled)))
                assert np.array_equal(
                    env.get_obs_agent(agent), slow_observation(raws[agent], own, mates)
                )
            assert np.array_equal(env.get_state(), slow_state(raws[0], field))
            actions = rng.integers(19, size=n_agents)
            raws, rewards, over, _ = raw_env.step(actions.tolist())
            reward, env_over, info = env.step(actions)
            assert reward == rewards[0]
            assert env_over == over
            assert info == {"battle_won": raws[0]["score"][0] > 0}
    env.close()
    raw_env.close()


@needs_package
@pytest.mark.parametrize(
    ("map_name", "n_agents", "players"),
    [
        ("academy_3_vs_2", None, [1, 2, 3]),
        ("academy_4_vs_3", None, [1, 2, 3, 4]),
        ("academy_3_vs_2", 2, [2, 3]),
        ("academy_counterattack_easy", None, [7, 8, 9, 10]),
    ],
)
def test_fixed_players(map_name, n_agents, players):
    env = FootballEnv(seed=6, map_name=map_name, n_agents=n_agents, time_limit=30)
    rng = np.random.default_rng(0)
    for _ in range(2):
        env.reset()
        over = False
        while not over:
            raws = env.env.unwrapped.observation()
            assert [raw["active"] for raw in raws] == players
            field = [p for p, role in enumerate(raws[0]["left_team_roles"]) if int(role) != 0]
            for agent, own in enumerate(players):
                mates = [player for player in field if player != own]
                assert np.array_equal(
                    env.get_obs_agent(agent), slow_observation(raws[0], own, mates)
                )
            _, over, _ = env.step(rng.integers(19, size=len(players)))
    # what an agent does is done by its player: all run to the right, then to the left
    for action, sign in ((RIGHT, 1), (LEFT, -1)):
        env.reset()
        for _ in range(8):
            env.step([action] * len(players))
        velocity = env.env.unwrapped.observation()[0]["left_team_direction"]
        assert (sign * velocity[players, 0] > 0.003).all()
    env.close()


@needs_package
def test_an_agent_without_a_player_keeps_the_last_one():
    env = FootballEnv(seed=6, fixed_players=False)
    env.reset()
    before = np.array(env.get_obs())
    env._observe([{**raw, "active": -1} for raw in env.env.unwrapped.observation()])
    assert np.array_equal(env.get_obs(), before)
    env.close()


@needs_package
def test_seeds_reach_the_engine():
    one, other = (FootballEnv(seed=7, time_limit=25) for _ in range(2))
    state = random.getstate()
    first = [play(one, 0)[0] for _ in range(2)]
    assert same(first[0], play(other, 0)[0])
    assert same(first[1], play(other, 0)[0])
    assert not same(first[0], first[1])
    other.seed(7)
    assert same(first[0], play(other, 0)[0])
    other.seed(8)
    assert not same(first[0], play(other, 0)[0])
    assert random.getstate() == state, "the package draws from the global generator"
    one.close()
    other.close()


@needs_package
def test_what_ends_an_episode_and_what_cuts_it():
    free = FootballEnv(seed=2, time_limit=400)
    whole, info = play(free, 1)
    steps = len(whole) - 1
    assert 1 < steps < 400
    assert info == {"battle_won": False}, "random actions lose the ball"
    # the step in which the game ends it is not a time-out, one step less is
    for limit, wanted in (
        (steps, {"battle_won": False}),
        (steps - 1, {"battle_won": False, "episode_limit": True}),
    ):
        env = FootballEnv(seed=2, time_limit=limit)
        shown, info = play(env, 1)
        assert same(shown, whole[: limit + 1])
        assert info == wanted
        with pytest.raises(ValueError, match="no running episode"):
            env.step([0, 0, 0])
        env.close()
    free.close()


@needs_package
def test_the_packages_clock_is_off():
    env = FootballEnv(seed=1, map_name="11_vs_11_easy_stochastic", n_agents=1, time_limit=5)
    env.reset()
    assert env._raw["steps_left"] > 10**6
    env.close()


@needs_package
def test_a_goal_is_a_win():
    env = FootballEnv(seed=1, map_name="academy_empty_goal_close", time_limit=100)
    wins = 0
    for _ in range(3):
        env.reset()
        rewards, over, info = [], False, {}
        while not over:
            reward, over, info = env.step([SHOT if not rewards else RIGHT])
            assert info["battle_won"] == (reward == 1)
            rewards.append(reward)
        assert sum(rewards) == info["battle_won"]
        assert "episode_limit" not in info
        wins += info["battle_won"]
    assert wins > 0
    env.close()


@needs_package
def test_share_of_won_episodes_is_logged(tmp_path):
    command = [
        *(
            sys.executable,
            str(ROOT / "src" / "main.py"),
            "--config=qmix",
            "--env-config=gfootball",
            "with",
        ),
        *(
            "env_args.map_name=academy_empty_goal_close",
            "env_args.time_limit=40",
            "runner=parallel",
        ),
        *(
            "batch_size_run=2",
            "t_max=60",
            "test_nepisode=4",
            "test_interval=50",
            "seed=1",
            "use_cuda=False",
        ),
        *("batch_size=2", f"local_results_path={tmp_path}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [
        json.loads(line)
        for file in tmp_path.rglob("metrics.jsonl")
        for line in file.read_text().splitlines()
    ]
    figures = {
        key: [line["value"] for line in lines if line["key"] == key]
        for key in ("test_wins", "test_returns")
    }
    assert len(figures["test_wins"][0]) == 4
    assert figures["test_wins"] == [
        [float(value > 0) for value in returns] for returns in figures["test_returns"]
    ]
    means = [line["value"] for line in lines if line["key"] == "test_battle_won_mean"]
    assert means == pytest.approx([np.mean(wins) for wins in figures["test_wins"]])
    assert not (tmp_path / "gfootball").exists()
    assert (tmp_path / "sacred" / "qmix" / "academy_empty_goal_close").is_dir()


@needs_package
def test_checkpoints():
    env = FootballEnv(seed=4, rewards="scoring,checkpoints", fixed_players=False)
    raw_env = make_raw_env(
        "academy_3_vs_1_with_keeper", 3, drawn_seeds(4, 1)[0], "scoring,checkpoints"
    )
    env.reset()
    raw_env.reset()
    collected = []
    for _ in range(30):
        actions = [RIGHT, RIGHT, RIGHT]
        _, rewards, over, _ = raw_env.step(actions)
        reward, env_over, _ = env.step(actions)
        assert reward == pytest.approx(sum(rewards) / 3)
        assert over == env_over
        collected.append(reward)
        if over:
            break
    assert sum(collected) == pytest.approx(0.1 / 3 * round(sum(collected) * 30))
    assert sum(collected) > 0.05
    env.close()
    raw_env.close()


@needs_package
def test_simple115():
    from gfootball.env.wrappers import Simple115StateWrapper

    env = FootballEnv(seed=4, representation="simple115v2", fixed_players=False)
    raw_env = Simple115StateWrapper(
        make_raw_env("academy_3_vs_1_with_keeper", 3, drawn_seeds(4, 1)[0]), True
    )
    assert env.get_env_info()["obs_shape"] == 115
    assert env.get_env_info()["state_shape"] == 26
    env.reset()
    observed = raw_env.reset()
    for step in range(5):
        assert np.array_equal(env.get_obs(), observed)
        actions = [step, PASS, 0]
        observed = raw_env.step(actions)[0]
        env.step(actions)
    env.close()
    raw_env.close()


@needs_package
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"map_name": "academy_4_vs_2"}, "no scenario 'academy_4_vs_2'.*academy_4_vs_3"),
        ({"n_agents": 0}, "n_agents must be a whole number of at least 1, got 0"),
        ({"n_agents": 4}, "n_agents is 4, academy_3_vs_2 has 1 to 3"),
    ],
)
def test_refused_scenarios_and_agents(args, message):
    with pytest.raises(ConfigError, match=message):
        FootballEnv(seed=1, **args)


@needs_package
def test_wrong_actions():
    env = FootballEnv(seed=1)
    env.reset()
    for actions in ([0, 0], [0, 0, 19], [-1, 0, 0]):
        with pytest.raises(ValueError, match="must be 3 from 0 to 18"):
            env.step(actions)
    env.close()


@needs_package
def test_traces_are_written_only_on_demand(tmp_path):
    for wanted in (False, True):
        folder = tmp_path / str(wanted)
        env = FootballEnv(seed=1, write_full_episode_dumps=wanted, logdir=str(folder))
        play(env, 0)
        env.close()
        assert folder.exists() == wanted
    assert [path.suffix for path in folder.iterdir()] == [".dump"]
