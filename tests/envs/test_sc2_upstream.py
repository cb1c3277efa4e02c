"""The packages of SMACv2 and SMAC-Hard as environments.

Neither package was at hand: what runs here are small fakes with the interface that is used
(constructor, PyMARL's methods, and where they draw: SMACv2's distributions from numpy Generators of
their own, made without a seed, and from Python's global generator).
"""

import random
import sys

import numpy as np
import pytest
import test_env_contract as contract

import doctor
from envs import REGISTRY, make_vector_env
from envs.starcraft.upstream import SC2HardEnv, SC2V2Env, capabilities, find_generators
from utils.errors import ConfigError, MissingPackage, UserError

ENVIRONMENT = """
class StarCraft2Env:
    def __init__(self, map_name="8m", seed=None, difficulty="7", game_version=None, step_mul=8,
                 reward_win=200,
                 obs_timestep_number=False, obs_instead_of_state=False, {extra}):
        self.arguments = dict(locals())
        del self.arguments["self"]
        self.n_agents, self.n_enemies = 3, 3
        self.episode_limit = 4
        self.obs_timestep_number = obs_timestep_number
        self.obs_instead_of_state = obs_instead_of_state
        self.t = self.lost = 0

    def reset(self, episode_config=None):
        self.t = 0
        self.config = episode_config or {{}}
        self.drawn = [{draw}]
        return self.get_obs(), self.get_state()

    def step(self, actions):
        self.t += 1
        if self.lost:
            self.lost = 0
            return 0, True, {{}}
        self.drawn.append({draw})
        ended = self.t == self.episode_limit
        info = {{"battle_won": False, "dead_allies": 0, "dead_enemies": 1}}
        if ended:
            info["episode_limit"] = True
        return 0.5, ended, info

    def get_obs(self):
        return [self.get_obs_agent(a) for a in range(self.n_agents)]

    def get_obs_agent(self, a):
        return np.array([a, self.t, self.drawn[-1]], dtype=np.float32)

    def get_obs_size(self):
        return 3

    def get_state(self):
        numbers = [n for key in sorted(self.config) for n in np.ravel(self.config[key]["numbers"])]
        return np.array([*numbers, *[0.0] * 31][:31] + [self.t, self.drawn[-1]], dtype=np.float32)

    def get_state_size(self):
        return 33

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(a) for a in range(self.n_agents)]

    def get_avail_agent_actions(self, a):
        return [0, 1, 1]

    def get_total_actions(self):
        return 3

    def get_env_info(self):
        return {{"agent_features": ["health"]}}

    def get_stats(self):
        return {{"win_rate": 0.0}}

    def close(self):
        pass
"""
WRAPPER = """
from random import shuffle
import numpy as np
from numpy.random import default_rng
from smacv2.env.starcraft2.starcraft2 import StarCraft2Env

class Teams:
    def __init__(self, config):
        self.config, self.rng = config, default_rng()
    def generate(self):
        units = self.config["unit_types"]
        size, weights = self.config["n_units"], self.config["weights"]
        team = list(self.rng.choice(len(units), size=size, p=weights))
        shuffle(team)
        return {"team_gen": {"numbers": team}}

class Uniform:
    def __init__(self, n):
        self.n, self.rng = n, default_rng()

class Places:
    def __init__(self, config):
        self.config, self.rng = config, default_rng()
        self.parts = [Uniform(config["n_units"]), {"enemies": Uniform(config["n_enemies"])}]
    def generate(self):
        first, second = self.parts[0], self.parts[1]["enemies"]
        where = [self.rng.random(), *first.rng.random(first.n), *second.rng.random(second.n)]
        return {"start_positions": {"numbers": where}}

class StarCraftCapabilityEnvWrapper:
    def __init__(self, **kwargs):
        self.distributions = {}
        for key, make in (("team_gen", Teams), ("start_positions", Places)):
            config = kwargs["capability_config"][key]
            config["n_units"] = kwargs["capability_config"]["n_units"]  # in place, as there
            config["n_enemies"] = kwargs["capability_config"]["n_enemies"]
            self.distributions[key] = make(config)
        self.env = StarCraft2Env(**kwargs)
    def __getattr__(self, name):
        return getattr(self.env, name)
    def reset(self):
        config = {}
        for one in self.distributions.values():
            config |= one.generate()
        self.env.reset(config)  # returns nothing, as there after a lost game
"""
IMPORTS = "import random\nimport numpy as np\n"
FILES = {
    "smacv2/__init__.py": "",
    "smacv2/env/__init__.py": "",
    "smacv2/env/starcraft2/__init__.py": "",
    "smacv2/env/starcraft2/starcraft2.py": IMPORTS
    + ENVIRONMENT.format(extra="capability_config=None, conic_fov=False", draw="np.random.rand()"),
    "smacv2/env/starcraft2/wrapper.py": WRAPPER,
    "smac_hard/__init__.py": "",
    "smac_hard/env/__init__.py": IMPORTS
    + ENVIRONMENT.format(
        extra='mode="single", chances=None', draw="float(random.choice(range(1000)))"
    ),
}
FAKES = ("smacv2", "smac_hard")


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in FAKES]:
        del sys.modules[name]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The fakes; returns a function that overwrites one of their files."""
    folder = tmp_path / "packages"
    game = tmp_path / "StarCraftII" / "Versions" / "Base75689" / "SC2_x64"
    game.parent.mkdir(parents=True)
    game.touch()
    monkeypatch.setenv("SC2PATH", str(tmp_path / "StarCraftII"))

    def write(name, text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    for name, text in FILES.items():
        write(name, text)
    forget()
    monkeypatch.syspath_prepend(folder)
    yield write
    forget()


def play(env, episodes=2):
    """All states of some episodes."""
    states = []
    for _ in range(episodes):
        env.reset()
        states.append(env.get_state())
        ended = False
        while not ended:
            _, ended, _ = env.step([1, 1, 2])
            states.append(env.get_state())
    return np.array(states)


# SMACv2's teams are of ten here, so that it shows how they are shuffled
BOTH = pytest.mark.parametrize(
    ("cls", "env_args"),
    [(SC2V2Env, {"map_name": "terran_10_vs_10"}), (SC2HardEnv, {})],
    ids=["sc2v2", "sc2hard"],
)


@BOTH
def test_the_seed_decides_teams_places_and_scripts(packages, cls, env_args):
    first = play(cls(seed=1, **env_args))
    random.random()
    assert np.array_equal(first, play(cls(seed=1, **env_args)))
    other = play(cls(seed=2, **env_args))
    assert not np.array_equal(first, other)
    # in every part that is drawn: places (of three generators), team, and what the package draws in
    # a step
    parts = [[0], range(1, 11), range(11, 21), range(21, 31), [32]] if cls is SC2V2Env else [[32]]
    for columns in parts:
        assert not np.array_equal(first[:, list(columns)], other[:, list(columns)]), columns
    assert not np.array_equal(first[0], first[5]), "every episode is the same"


@BOTH
def test_two_environments_do_not_draw_from_each_other(packages, cls, env_args):
    alone = play(cls(seed=1, **env_args))
    one, other = cls(seed=1, **env_args), cls(seed=2, **env_args)
    states = []
    for _ in range(2):
        for env in (one, other):
            env.reset()
        states.append(one.get_state())
        for _ in range(4):
            other.step([1, 1, 1])
            one.step([1, 1, 2])
            states.append(one.get_state())
    assert np.array_equal(alone, states)


def test_global_generators_stay_as_they_were(packages):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for cls in (SC2V2Env, SC2HardEnv):
        play(cls(seed=1))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_generators_are_found_in_the_packages_objects_only(packages):
    env = SC2V2Env(seed=1)
    found = find_generators(env.env, "smacv2")
    assert sorted(found) == [
        ".distributions.start_positions.parts.0.rng",
        ".distributions.start_positions.parts.1.enemies.rng",
        ".distributions.start_positions.rng",
        ".distributions.team_gen.rng",
    ]
    assert len({generator.random() for generator in found.values()}) == 4
    assert find_generators(env.env, "another") == {}
    outer = type("Outer", (), {"__module__": "another.module"})()
    outer.inner, outer.itself = env.env, outer
    assert find_generators(outer, "another") == {}


def test_what_the_package_gets(packages):
    env = SC2V2Env(
        seed=3,
        map_name="zerg_10_vs_11",
        reward_win=100.0,
        conic_fov=True,
        kwargs={"difficulty": "8"},
    )
    arguments = env.env.env.arguments
    config = arguments.pop("capability_config")
    assert arguments == {
        "map_name": "10gen_zerg",
        "seed": 3,
        "difficulty": "8",
        "game_version": None,
        "step_mul": 8,
        "reward_win": 100.0,
        "obs_timestep_number": False,
        "obs_instead_of_state": False,
        "conic_fov": True,
    }
    assert (config["n_units"], config["n_enemies"]) == (10, 11)
    assert (env.n_agents, env.episode_limit) == (3, 4)
    hard = SC2HardEnv(seed=4, map_name="2s3z", kwargs={"chances": [0.5, 0.5]})
    assert {key: hard.env.arguments[key] for key in ("map_name", "seed", "mode", "chances")} == {
        "map_name": "2s3z",
        "seed": 4,
        "mode": "single",
        "chances": [0.5, 0.5],
    }


def test_capabilities():
    assert capabilities("terran_5_vs_5", {}) == (
        "10gen_terran",
        {
            "n_units": 5,
            "n_enemies": 5,
            "team_gen": {
                "dist_type": "weighted_teams",
                "unit_types": ["marine", "marauder", "medivac"],
                "weights": [0.45, 0.45, 0.1],
                "exception_unit_types": ["medivac"],
                "observe": True,
            },
            "start_positions": {
                "dist_type": "surrounded_and_reflect",
                "p": 0.5,
                "map_x": 32,
                "map_y": 32,
            },
        },
    )
    given = {"n_enemies": 6, "team_gen": {"weights": [1, 0, 0]}, "mask": {"dist_type": "mask"}}
    changed = capabilities("protoss_10_vs_10", given)[1]
    assert (changed["n_units"], changed["n_enemies"], changed["mask"]) == (
        10,
        6,
        {"dist_type": "mask"},
    )
    assert changed["team_gen"]["weights"] == [1, 0, 0]
    assert changed["team_gen"]["unit_types"] == ["stalker", "zealot", "colossus"]
    own = {"n_units": 2, "n_enemies": 3, "team_gen": {"dist_type": "all_teams"}}
    name, config = capabilities("10gen_terran", own)
    assert (name, config) == ("10gen_terran", own)
    config["team_gen"]["env_key"] = "team_gen"  # the package writes into it
    assert own["team_gen"] == {"dist_type": "all_teams"}
    with pytest.raises(
        ConfigError, match=r"unknown scenario 'terran_5_vs_6'; did you mean 'terran_5_vs_5'"
    ):
        capabilities("terran_5_vs_6", {})


def test_arguments_that_the_installed_version_does_not_have(packages):
    with pytest.raises(
        ConfigError, match=r"sc2v2: the installed smacv2\.\S+ has no argument prob_obs_enemy"
    ):
        SC2V2Env(seed=1, prob_obs_enemy=0.0)
    with pytest.raises(ConfigError, match=r"sc2hard: env_args\.kwargs has 'oddities'"):
        SC2HardEnv(seed=1, kwargs={"oddities": 1})
    env = SC2HardEnv(seed=1, move_amount=2.0)  # left at its default
    assert "move_amount" not in env.env.arguments


def test_a_lost_game_is_no_end(packages):
    env = SC2V2Env(seed=1)
    env.reset()
    assert env.step([1, 1, 1]) == (
        0.5,
        False,
        {"battle_won": False, "dead_allies": 0, "dead_enemies": 1},
    )
    env.env.env.lost = 1
    assert env.step([1, 1, 1]) == (0.0, True, {"env_error": True})


@pytest.mark.parametrize("name", ["sc2v2", "sc2hard"])
def test_many_of_them(packages, name):
    with make_vector_env(name, {}, 2, 7, "serial", "train_env") as env:
        shown = contract.episode(env)
        assert env.get_rng_state() is None
        assert [len(one) for one in shown] == [5, 5]
        assert env.truncated.all()
        assert not np.array_equal(shown[0][0]["state"], shown[1][0]["state"])
        env.seed(7)
        again = contract.episode(env)
    assert all(
        np.array_equal(x["state"], y["state"]) for x, y in zip(shown[1], again[1], strict=True)
    )


@pytest.mark.parametrize("name", ["sc2v2", "sc2hard"])
def test_yaml_has_every_argument_with_its_default(name):
    contract.test_yaml_has_every_argument_with_its_default(name)


@pytest.mark.parametrize(("name", "package"), [("sc2v2", "smacv2"), ("sc2hard", "smac_hard")])
def test_without_the_package(monkeypatch, name, package):
    forget()
    monkeypatch.setitem(sys.modules, package, None)  # find_spec and import fail
    with pytest.raises(MissingPackage) as caught:
        REGISTRY[name](seed=1)
    message = str(caught.value)
    assert message.startswith(
        f"{name} needs the package {package}: pip install -r requirements-sc2v2.txt; --env-config="
    )
    assert "\n" not in message


def test_a_package_that_cannot_be_imported(packages):
    packages("smac_hard/env/__init__.py", "raise TypeError('descriptors\\ncannot be created')")
    with pytest.raises(
        MissingPackage,
        match=r"smac_hard\.env cannot be imported \(TypeError: descriptors cannot be",
    ):
        SC2HardEnv(seed=1)
    found = {check.name: check for check in doctor._upstream()}
    assert found["smac_hard"].state == doctor.BROKEN
    assert found["smac_hard"].found == "TypeError: descriptors cannot be created"
    assert found["smac_hard"].mend == "pip install -r requirements-sc2v2.txt"
    assert (found["smacv2"].state, found["smacv2"].mend) == (doctor.OK, "")


def test_without_the_game(packages, monkeypatch, tmp_path):
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"StarCraft II is not in .*nowhere.*install_sc2\.sh"):
        SC2V2Env(seed=1)
