"""Multi-Walker and Pursuit (PettingZoo's sisl family) as `--env-config` gives them, against
PettingZoo itself.

The checks that hold for every environment are in test_env_contract.py.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import requires
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from console_fixtures import fresh_console  # noqa: F401
from pettingzoo.sisl import multiwalker_v9, pursuit_v5
from pettingzoo.sisl.multiwalker.multiwalker_base import MultiWalkerEnv
from pettingzoo.sisl.pursuit.pursuit_base import Pursuit
from PIL import Image

import doctor
import main as main_module
from envs import make_vector_env
from envs.gymma import GymmaEnv
from utils.config import build_config
from utils.errors import ConfigError, MissingPackage

ROOT = Path(__file__).resolve().parents[2]
RAW = {"multiwalker": (multiwalker_v9, MultiWalkerEnv), "pursuit": (pursuit_v5, Pursuit)}
STILL = np.zeros((3, 4), dtype=np.float32)


def env_args(name, *updates):
    """The arguments of the environment as a run gets them."""
    return build_config("iql", name, updates)["env_args"]


def make(name, *updates, seed=7):
    return GymmaEnv(**{**env_args(name, *updates), "seed": seed})


def actions_of(env, rng):
    """Random ones, as `GymmaEnv` wants them and as PettingZoo does."""
    if env.continuous_actions:
        chosen = rng.uniform(-1, 1, (env.n_agents, env.n_actions)).astype(np.float32)
    else:
        chosen = rng.integers(env.n_actions, size=env.n_agents)
    return chosen, dict(zip(env.agents, chosen, strict=True))


# what the configuration says


@pytest.mark.parametrize("name", RAW)
def test_every_keyword_of_the_environment_is_in_the_yaml(name):
    config = build_config("iql", name)
    assert (config["env"], config["env_args"]["map_name"]) == ("gymma", name)
    parameters = inspect.signature(RAW[name][1]).parameters
    own = {key: one.default for key, one in parameters.items()}
    for key in (
        "render_mode",
        "evader_controller",
        "pursuer_controller",
    ):  # what a yaml cannot give
        own.pop(key, None)
    given = config["env_args"]["kwargs"]
    assert given.keys() == own.keys()
    # PettingZoo's defaults but for what is decided otherwise
    others = {"shared_reward": False, "max_cycles": 1000000, "urgency_reward": 0.0}
    assert given == {key: others.get(key, default) for key, default in own.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 24 of the walker itself, 4 of its neighbours, 3 of the package; 3 walkers
        (
            "multiwalker",
            {
                "n_agents": 3,
                "n_actions": 4,
                "obs_shape": 31,
                "state_shape": 93,
                "continuous_actions": True,
            },
        ),
        # 7 x 7 cells and 16 x 16 cells in 3 layers each
        (
            "pursuit",
            {
                "n_agents": 8,
                "n_actions": 5,
                "obs_shape": 147,
                "state_shape": 768,
                "continuous_actions": False,
            },
        ),
    ],
)
def test_sizes(name, expected):
    env = make(name)
    info = env.get_env_info()
    assert {key: info[key] for key in expected} == expected
    assert (info["individual_rewards"], info["episode_limit"]) == (True, 500)
    env.close()


# what the environments do


@pytest.mark.parametrize("name", RAW)
def test_episodes_are_those_of_the_environment_itself(name):
    module, _ = RAW[name]
    args = env_args(name)
    env, raw = make(name, "env_args.time_limit=40"), module.parallel_env(**args["kwargs"])
    seeds, rng = np.random.default_rng(7), np.random.default_rng(2)
    unequal = ends = 0
    for _ in range(3):
        env.reset()
        observations, _ = raw.reset(seed=int(seeds.integers(2**31)))
        for step in range(1, 41):
            for own, agent in zip(env.get_obs(), raw.possible_agents, strict=True):
                assert np.array_equal(
                    own, np.asarray(observations[agent], dtype=np.float32).ravel()
                )
            chosen, acting = actions_of(env, rng)
            observations, rewards, terminations, _, _ = raw.step(acting)
            reward, over, info = env.step(chosen)
            assert np.array_equal(
                reward, np.array([rewards[agent] for agent in raw.possible_agents], np.float32)
            )
            unequal += len(set(reward.tolist())) > 1
            fell = all(terminations.values())
            assert over == (fell or step == 40)
            assert info == ({"episode_limit": True} if over and not fell else {})
            if over:
                ends += 1
                break
    assert ends == 3
    assert unequal > 10, "all agents always get the same"
    env.close()
    raw.close()


def test_a_fall_terminates_and_the_time_limit_truncates():
    lively, still = [True, False], [False, True]
    args = env_args("multiwalker", "env_args.time_limit=60")
    with make_vector_env("gymma", args, 2, 3, "serial", "train_env") as env:
        env.reset()
        actions = np.zeros((2, 3, 4), dtype=np.float32)
        actions[0] = -1.0  # all legs backward: somebody falls
        while not (env.terminated | env.truncated)[0]:
            env.step(actions)
        assert (env.terminated.tolist(), env.truncated.tolist()) == (lively, [False, False])
        assert (env.reward[0] < -90).all()  # terminate_reward, for all
        assert env.reward[0].min() < env.reward[0].max() - 9  # fall_reward, for who fell
        while not (env.terminated | env.truncated)[1]:
            env.step(actions, np.array(still))
        assert (env.terminated.tolist(), env.truncated.tolist()) == (lively, still)
        assert (env.reward[1] > -10).all()


def test_why_the_environments_limit_is_out_of_reach():
    """Multi-Walker calls it a termination when its max_cycles are over."""
    env = make("multiwalker", "env_args.kwargs.max_cycles=3")
    env.reset()
    assert [env.step(STILL)[1:] for _ in range(3)] == [(False, {}), (False, {}), (True, {})]
    env = make("multiwalker", "env_args.time_limit=3")
    env.reset()
    assert [env.step(STILL)[1:] for _ in range(3)] == [
        (False, {}),
        (False, {}),
        (True, {"episode_limit": True}),
    ]


def test_walkers_that_are_removed():
    env = make("multiwalker", "env_args.kwargs.terminate_on_fall=False", seed=1)
    env.reset()
    rng, alone, over = np.random.default_rng(0), 0, False
    while not over:
        here = [agent in env.env.agents for agent in env.agents]
        for walks, seen in zip(here, env.get_obs(), strict=True):
            assert seen.any() == walks
        reward, over, _ = env.step(actions_of(env, rng)[0])
        assert not reward[~np.array(here)].any()
        alone += not all(here)
    assert alone > 0, "nobody fell: the test needs another seed"
    with pytest.raises(ConfigError, match="set use_env_state=False"):
        fall(make("multiwalker", "env_args.use_env_state=True", seed=1))


def fall(env):
    """All legs backward: somebody falls within 60 steps."""
    env.reset()
    for _ in range(60):
        env.step(-np.ones((3, 4)))


@pytest.mark.parametrize("name", RAW)
def test_seeds_reach_the_environments(name):
    def starts(seed):
        with make_vector_env("gymma", env_args(name), 2, seed, "serial", "train_env") as env:
            found = []
            for _ in range(2):
                env.reset()
                found.append(env.obs.copy())
            return np.array(found)  # [2 episodes, 2 environments, A, O]

    once, again, other = starts(1), starts(1), starts(2)
    assert np.array_equal(once, again)
    distinct = np.concatenate([once, other]).reshape(8, -1)
    assert len(np.unique(distinct, axis=0)) == 8


@pytest.mark.parametrize(
    ("name", "size"), [("multiwalker", (400, 600, 3)), ("pursuit", (480, 480, 3))]
)
def test_pictures_are_rgb_and_move(name, size):
    env = make(name)
    env.reset()
    first = env.render()
    rng = np.random.default_rng(0)
    for _ in range(5):
        env.step(actions_of(env, rng)[0])
    second = env.render()
    assert (first.shape, first.dtype) == (size, np.uint8)
    assert 0.001 < (first != second).any(-1).mean() < 0.5
    if name == "multiwalker":  # blue sky above, green ground below
        sky, ground = first[5, 300].tolist(), first[-5, 300].tolist()
        assert (sky, ground) == ([215, 215, 255], [102, 153, 76])
    env.close()


def test_no_window_is_opened():
    """Multi-Walker draws through a display; with the dummy driver there is none."""
    code = (
        "import os, sys; sys.path.insert(0, 'src'); from envs.gymma import GymmaEnv; import numpy "
        "as np\n"
        "env = GymmaEnv('pettingzoo.sisl.multiwalker_v9', seed=1, use_env_state=False); "
        "env.reset(); env.render()\n"
        "import pygame; sys.stdout.write(pygame.display.get_driver())"
    )
    bare = {
        key: value for key, value in os.environ.items() if key not in ("SDL_VIDEODRIVER", "DISPLAY")
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "dummy"), done.stderr


@pytest.mark.usefixtures("fresh_console")
def test_a_run_on_pursuit_with_a_film(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [
        *(
            "--config=iql",
            "--env-config=pursuit",
            "with",
            "use_cuda=False",
            "common_reward=False",
            "save_model=True",
        ),
        *(
            "env_args.kwargs.n_pursuers=2",
            "env_args.time_limit=5",
            "t_max=40",
            "test_interval=20",
            "test_nepisode=2",
        ),
        *("runner=vector", "batch_size_run=2", "batch_size=4", "buffer_size=8", "rnn_hidden_dim=8"),
    ]
    assert main_module.main(settings) == 0
    runs = tmp_path / "results/sacred/iql/pursuit"
    keys = {json.loads(line)["key"] for line in (runs / "1/metrics.jsonl").read_text().splitlines()}
    assert {"return_mean", "test_return_mean"} <= keys
    assert (
        main_module.main(
            [*settings, f"checkpoint_path={runs / '1/checkpoints'}", "evaluate=True", "render=True"]
        )
        == 0
    )
    film = Image.open(runs / "2/evaluation.gif")
    assert (film.size, film.n_frames) == ((480, 480), 6)


# what is missing


@pytest.mark.parametrize("package", ["pettingzoo", "Box2D"])
def test_packages_that_are_not_installed(monkeypatch, package):
    name = "pettingzoo.sisl.multiwalker_v9"
    for module in [
        one for one in sys.modules if f"{one}.".startswith((f"{package}.", "pettingzoo.sisl."))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(
        sys.modules, package, None
    )  # `import` then says that there is no such module
    with pytest.raises(MissingPackage, match=r"pip install -r requirements-sisl\.txt") as caught:
        make("multiwalker")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_versions_that_are_gone():
    with pytest.raises(ConfigError, match=r"multiwalker_v9"):
        make("multiwalker", "env_args.key=pettingzoo.sisl.multiwalker_v7")


def test_doctor_knows_them(monkeypatch):
    checks = {check.name: check for check in islice(doctor._optional(), 4) if check.group == "sisl"}
    assert set(checks) == {"box2d", "pygame-ce"}
    assert {check.state for check in checks.values()} == {doctor.OK}
    monkeypatch.setitem(sys.modules, "Box2D", None)
    broken = doctor.check_package("sisl", "box2d", "", doctor._install("sisl", "box2d"))
    assert (broken.state, broken.mend) == (doctor.BROKEN, "pip install -r requirements-sisl.txt")


def test_doctor_looks_for_what_the_requirements_file_brings():
    assert doctor.read_requirements(ROOT / "requirements-sisl.txt") == [("pettingzoo", ">=1.27")]
    extra = [line for line in requires("pettingzoo") if "sisl" in line]
    for package in ("box2d==", "box2d-py==", "pygame-ce>="):
        assert sum(line.startswith(package) for line in extra) == 1, package
