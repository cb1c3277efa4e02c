"""PettingZoo environments through `GymmaEnv`: real ones against their own interface, then a
scripted one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Sequence
from pettingzoo import ParallelEnv

from envs.gymma import GymmaEnv
from utils.errors import ConfigError, MissingPackage, UserError

# real environments


@pytest.mark.parametrize(
    ("key", "kwargs"),
    [
        ("mpe2.simple_spread_v3", {"N": 2, "max_cycles": 8}),
        ("mpe2.simple_speaker_listener_v4", {"max_cycles": 8}),
        ("mpe2.simple_tag_v3", {"max_cycles": 8}),
        ("pettingzoo.sisl.pursuit_v5", {"max_cycles": 8, "n_pursuers": 3}),
    ],
)
def test_shows_what_the_environment_itself_shows(key, kwargs):
    env = GymmaEnv(key, seed=7, time_limit=50, kwargs=kwargs)
    raw = importlib.import_module(key).parallel_env(**kwargs)
    seeds = np.random.default_rng(7)
    actions = np.random.default_rng(1)
    for _ in range(2):
        env.reset()
        observations, _ = raw.reset(seed=int(seeds.integers(2**31)))
        for step in range(8):
            for i, agent in enumerate(raw.possible_agents):
                own = np.asarray(observations[agent], dtype=np.float32).ravel()
                assert np.array_equal(
                    env.get_obs_agent(i), np.pad(own, (0, env.get_obs_size() - len(own)))
                )
                assert env.obs_sizes[i] == len(own)
                n = raw.action_space(agent).n
                assert env.get_avail_agent_actions(i).tolist() == [1] * n + [0] * (
                    env.n_actions - n
                )
            assert np.array_equal(env.get_state(), raw.state().astype(np.float32).ravel())
            chosen = [
                int(actions.integers(raw.action_space(agent).n)) for agent in raw.possible_agents
            ]
            observations, rewards, _, truncations, _ = raw.step(
                dict(zip(raw.possible_agents, chosen, strict=True))
            )
            reward, over, info = env.step(chosen)
            assert np.array_equal(
                reward, np.array([rewards[agent] for agent in raw.possible_agents], np.float32)
            )
            assert over == (step == 7) == all(truncations.values())
            assert info == ({"episode_limit": True} if over else {})
        for i, agent in enumerate(
            raw.possible_agents
        ):  # a cut episode is to be bootstrapped from its last observation
            own = np.asarray(observations[agent], dtype=np.float32).ravel()
            assert np.array_equal(env.get_obs_agent(i)[: len(own)], own)
            assert env.get_avail_agent_actions(i).sum() == raw.action_space(agent).n
    env.close()
    raw.close()


def test_unequal_sizes_of_speaker_and_listener():
    env = GymmaEnv("mpe2.simple_speaker_listener_v4", seed=1)
    info = env.get_env_info()
    assert info["obs_sizes"] == (3, 11)
    assert info["action_sizes"] == (3, 5)
    assert (info["obs_shape"], info["n_actions"], info["state_shape"]) == (11, 5, 14)
    assert info["individual_rewards"] is True
    env.reset()
    assert not env.get_obs()[0][3:].any()
    assert [mask.tolist() for mask in env.get_avail_actions()] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    env.close()


def test_agents_that_die_in_knights_archers_zombies():
    env = GymmaEnv(
        "pettingzoo.butterfly.knights_archers_zombies_v11",
        seed=4,
        time_limit=400,
        kwargs={"max_cycles": 900},
        rebuild=True,
    )
    rng_state = env.get_rng_state()

    def play():
        rng, dead_steps, returns = np.random.default_rng(4), 0, 0.0
        env.reset()
        over, info = False, {}
        while not over:
            dead = [i for i, agent in enumerate(env.agents) if agent not in env.env.agents]
            for i in dead:
                assert not env.get_obs_agent(i).any()
                assert env.get_avail_agent_actions(i).tolist() == [1, 0, 0, 0, 0, 0]
            reward, over, info = env.step(
                [rng.choice(np.flatnonzero(mask)) for mask in env.get_avail_actions()]
            )
            assert not reward[dead].any()
            dead_steps += bool(dead)
            returns += reward.sum()
        return dead_steps, returns, info, env.get_state()

    first = play()
    assert first[0] > 0, "nobody died: the test needs another seed"
    assert first[2] == {}  # all dead is an end by the task's rules
    env.set_rng_state(rng_state)
    again = play()
    assert again[:3] == first[:3]
    assert np.array_equal(again[3], first[3])
    env.close()


@pytest.mark.parametrize("key", ["mpe2.simple_speaker_listener_v4", "mpe2.simple_tag_v3"])
def test_continuous_actions_are_scaled_to_the_box(key):
    """mpe2's continuous actions are from 0 to 1."""
    kwargs = {"max_cycles": 6, "continuous_actions": True}
    env = GymmaEnv(key, seed=7, time_limit=50, kwargs=kwargs)
    raw = importlib.import_module(key).parallel_env(**kwargs)
    seeds, rng = np.random.default_rng(7), np.random.default_rng(1)
    assert env.get_env_info()["continuous_actions"] is True
    sizes = tuple(raw.action_space(agent).shape[0] for agent in raw.possible_agents)
    assert (env.action_sizes, env.get_total_actions()) == (sizes, 5)
    env.reset()
    raw.reset(seed=int(seeds.integers(2**31)))
    for step in range(6):
        assert [row.tolist() for row in env.get_avail_actions()] == [
            [1] * n + [0] * (5 - n) for n in sizes
        ]
        chosen = rng.uniform(-1, 1, (env.n_agents, 5)).astype(np.float32)
        acting = {
            a: (own[:n] + 1) / 2
            for a, own, n in zip(raw.possible_agents, chosen, sizes, strict=True)
        }
        observations, rewards, _, _, _ = raw.step(acting)
        reward, over, _ = env.step(chosen)
        assert over == (step == 5)
        np.testing.assert_allclose(
            reward, [rewards[agent] for agent in raw.possible_agents], rtol=1e-5
        )
        for i, agent in enumerate(raw.possible_agents):
            own = np.asarray(observations[agent], dtype=np.float32)
            np.testing.assert_allclose(env.get_obs_agent(i)[: len(own)], own, rtol=1e-5, atol=1e-6)
    env.close()
    raw.close()


def test_a_discrete_observation_becomes_one_hot_and_a_broken_state_is_replaced(caplog):
    with caplog.at_level("INFO", logger="envs.gymma"):
        env = GymmaEnv("pettingzoo.classic.rps_v2", seed=1, time_limit=3)
    assert "no usable state()" in caplog.text
    env.reset()
    env.step([0, 2])  # rock, scissors: each sees what the other did
    assert [row.tolist() for row in env.get_obs()] == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert env.get_state().tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    env.close()


# a scripted environment


class Scripted(ParallelEnv):
    """Agents a, b, c; `ends[agent] = (step, how)` takes an agent out.

    Observations: number of the agent and step, c sees this twice. Actions are numbered from 5.
    Agent b's masks come with its observation, c's in its info.
    """

    metadata = {"name": "scripted"}

    def __init__(self, ends=None, render_mode=None, state=None, masks=None):
        self.possible_agents = ["a", "b", "c"]
        self.ends = ends or {}
        self.render_mode = render_mode
        self.given_state = state
        self.masks = masks or {"b": [1, 0, 1], "c": [0, 1]}
        self.seeds, self.actions = [], []

    def observation_space(self, agent):
        if agent == "b":
            return Dict(
                {"observation": Box(-1, 99, (2,)), "action_mask": Box(0, 1, (3,), dtype=np.int8)}
            )
        return Box(-1, 99, (2,)) if agent == "a" else Box(-1, 99, (2, 2))

    def action_space(self, agent):
        return Discrete({"a": 2, "b": 3, "c": 2}[agent], start=5)

    def see(self, agent):
        number = {"a": 1, "b": 2, "c": 3}[agent]
        seen = np.array([number, self.t], dtype=np.float32)
        if agent == "b":
            return {"observation": seen, "action_mask": np.array(self.masks["b"], dtype=np.int8)}
        return seen if agent == "a" else np.stack([seen, seen])

    def info(self, agent):
        return {"action_mask": np.array(self.masks["c"], dtype=np.int8)} if agent == "c" else {}

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.t, self.agents = 0, list(self.possible_agents)
        return {agent: self.see(agent) for agent in self.agents}, {
            agent: self.info(agent) for agent in self.agents
        }

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.actions.append(dict(actions))
        self.t += 1
        now = self.agents
        how = {
            agent: self.ends[agent][1] if self.ends.get(agent, (0,))[0] == self.t else ""
            for agent in now
        }
        self.agents = [agent for agent in now if not how[agent]]
        return (
            {agent: self.see(agent) for agent in now},
            {
                agent: 10.0 * self.t + "abc".index(agent) for agent in "abc"
            },  # some reward the dead, too
            {agent: "terminated" in how[agent] for agent in now},
            {agent: "truncated" in how[agent] for agent in now},
            {agent: self.info(agent) for agent in now},
        )

    def state(self):
        if self.given_state is None:
            raise NotImplementedError
        return np.full(self.given_state, self.t, dtype=np.uint8)


@pytest.fixture
def scripted(monkeypatch):
    """Makes a `GymmaEnv` of a `Scripted` (or what `parallel_env` gives), through a module as for
    real environments.
    """

    def make(parallel_env=Scripted, time_limit=9, use_env_state=True, **kwargs):
        module = types.ModuleType("scripted_env")
        module.__spec__ = importlib.machinery.ModuleSpec("scripted_env", None)
        module.parallel_env = parallel_env
        monkeypatch.setitem(sys.modules, "scripted_env", module)
        return GymmaEnv(
            "scripted_env",
            seed=4,
            time_limit=time_limit,
            kwargs=kwargs,
            use_env_state=use_env_state,
        )

    return make


def test_observations_masks_and_actions_of_unequal_agents(scripted):
    env = scripted()
    assert env.get_env_info()["obs_sizes"] == (2, 2, 4)
    assert env.get_env_info()["action_sizes"] == (2, 3, 2)
    env.reset()
    assert [row.tolist() for row in env.get_obs()] == [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 3, 0]]
    assert env.get_state().tolist() == [1, 0, 2, 0, 3, 0, 3, 0]
    assert [row.tolist() for row in env.get_avail_actions()] == [[1, 1, 0], [1, 0, 1], [0, 1, 0]]
    for bad in ([2, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, -1], [0, 0, 3]):
        with pytest.raises(ValueError, match="is not available"):
            env.step(bad)
    with pytest.raises(ValueError, match="2 actions for 3 agents"):
        env.step([0, 0])
    assert env.env.actions == []
    reward, over, info = env.step([1, 2, 1])
    assert env.env.actions == [{"a": 6, "b": 7, "c": 6}]
    assert reward.tolist() == [10, 11, 12]
    assert (over, info) == (False, {})


class Boxes(Scripted):
    """The same with continuous actions: a's from -1 to 1, b's [2, 2] with bounds of their own, c's
    one number.
    """

    spaces = {
        "a": Box(-1, 1, (2,)),
        "b": Box(np.array([[0, -4], [2, -1]]), np.array([[1, 4], [6, 0]]), dtype=np.float64),
        "c": Box(-0.3, 0.1, ()),
    }

    def action_space(self, agent):
        return self.spaces[agent]


def test_continuous_actions_of_unequal_agents(scripted):
    env = scripted(parallel_env=Boxes)
    info = env.get_env_info()
    assert (info["continuous_actions"], info["n_actions"], info["action_sizes"]) == (
        True,
        4,
        (2, 4, 1),
    )
    assert scripted().get_env_info()["continuous_actions"] is False
    env = scripted(parallel_env=Boxes)
    env.reset()
    # masks, such as b and c give, mean nothing here
    assert [row.tolist() for row in env.get_avail_actions()] == [
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 0, 0, 0],
    ]
    thirds = np.float32([1 / 3, -1 / 3, 0.9, -0.9])
    env.step(np.stack([thirds, np.float32([-1, 0.5, 0, 1]), np.float32([1, 1, 1, 1])]))
    (taken,) = env.env.actions
    assert taken["a"].tolist() == thirds[:2].tolist(), (
        "not a bit may change where nothing is to be scaled"
    )
    assert taken["b"].tolist() == [[0, 2], [4, 0]]
    for agent, action in taken.items():
        assert action.dtype == Boxes.spaces[agent].dtype
        assert Boxes.spaces[agent].contains(action), agent
    assert taken["c"] == np.float32(0.1)
    env.step(np.full((3, 4), -1.0))
    assert env.env.actions[1]["b"].tolist() == [[0, -4], [2, -1]]
    assert env.env.actions[1]["c"] == np.float32(-0.3)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_rounding_does_not_pass_a_bound(scripted, end):
    class Odd(Boxes):
        spaces = dict.fromkeys(
            "abc", Box(np.linspace(-1, 0.9, 99), np.full(99, 1.1), dtype=np.float64)
        )

    env = scripted(parallel_env=Odd)
    env.reset()
    env.step(np.full((3, 99), end))
    assert Odd.spaces["a"].contains(env.env.actions[0]["a"])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((3, 3)), r"actions are \[3, 3\], must be \[3, 4\]"),
        (np.zeros(3), r"actions are \[3\]"),
        (np.diag([0, 1.5, 0, 0])[:3], r"b: action \[0.0, 1.5, 0.0, 0.0\] is not all from -1 to 1"),
        (np.full((3, 4), np.nan), "a: action .*nan"),
    ],
)
def test_bad_continuous_actions(scripted, actions, message):
    env = scripted(parallel_env=Boxes)
    with pytest.raises(ValueError, match="no running episode"):
        env.step(np.zeros((3, 4)))
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.env.actions == []


def test_dropped_agents_with_continuous_actions(scripted):
    env = scripted(parallel_env=Boxes, ends={"b": (1, "terminated")})
    env.reset()
    env.step(np.zeros((3, 4)))
    assert not env.get_obs_agent(1).any()
    assert [row.tolist() for row in env.get_avail_actions()] == [
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 0, 0, 0],
    ]
    reward, _, _ = env.step(np.ones((3, 4)))
    assert reward.tolist() == [20, 0, 22]
    assert set(env.env.actions[1]) == {"a", "c"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            Discrete(2),
            "the actions of scripted_env are discrete for some agents, continuous for others",
        ),
        (
            Box(-np.inf, 1, (2,)),
            r"c of scripted_env has the actions Box\(-inf, .*only discrete ones and bounded boxes",
        ),
        (Box(0, 9, (2,), dtype=np.int64), "only discrete ones and bounded boxes of floats work"),
        (MultiDiscrete([2, 3]), "only discrete ones and bounded boxes of floats work"),
    ],
)
def test_actions_that_do_not_work(scripted, space, message):
    class Mixed(Boxes):
        spaces = {**Boxes.spaces, "c": space}

    with pytest.raises(ConfigError, match=message) as caught:
        scripted(parallel_env=Mixed)
    assert "\n" not in str(caught.value)


def test_dropped_agents_show_nothing_do_nothing_and_get_nothing(scripted):
    env = scripted(ends={"b": (1, "terminated"), "a": (2, "truncated"), "c": (3, "terminated")})
    env.reset()
    reward, over, _ = env.step([0, 0, 1])
    assert reward.tolist() == [10, 11, 12]  # what b earned in its last step is still its own
    assert not over
    assert [row.tolist() for row in env.get_obs()] == [[1, 1, 0, 0], [0, 0, 0, 0], [3, 1, 3, 1]]
    assert [row.tolist() for row in env.get_avail_actions()] == [[1, 1, 0], [1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="b: action 2 is not available, only \\[0\\]"):
        env.step([0, 2, 1])
    reward, over, _ = env.step([0, 0, 1])
    assert (reward.tolist(), over) == ([20, 0, 22], False)
    reward, over, info = env.step([0, 0, 1])
    assert (reward.tolist(), over, info) == ([0, 0, 32], True, {})
    assert env.env.actions == [{"a": 5, "b": 5, "c": 6}, {"a": 5, "c": 6}, {"c": 6}]
    assert [row.tolist() for row in env.get_obs()] == [[0] * 4, [0] * 4, [3, 3, 3, 3]]
    with pytest.raises(ValueError, match="no running episode"):
        env.step([0, 0, 1])


@pytest.mark.parametrize(
    ("ends", "time_limit", "length", "info"),
    [
        (dict.fromkeys("abc", (2, "terminated")), 9, 2, {}),
        (dict.fromkeys("abc", (2, "truncated")), 9, 2, {"episode_limit": True}),
        (dict.fromkeys("abc", (2, "terminated truncated")), 9, 2, {}),
        (
            {"a": (1, "terminated"), "b": (2, "terminated"), "c": (2, "truncated")},
            9,
            2,
            {"episode_limit": True},
        ),
        ({}, 3, 3, {"episode_limit": True}),
        (dict.fromkeys("abc", (3, "terminated")), 3, 3, {}),
    ],
)
def test_ends(scripted, ends, time_limit, length, info):
    env = scripted(ends=ends, time_limit=time_limit)
    for _ in range(2):
        env.reset()
        for step in range(1, length + 1):
            _, over, step_info = env.step([0, 0, int(env.get_avail_agent_actions(2)[1])])
            assert over == (step == length)
            assert step_info == (info if over else {})


def test_states(scripted):
    assert scripted(state=(2, 2)).get_env_info()["state_shape"] == 4
    env = scripted(state=(2, 2))
    env.reset()
    env.step([0, 0, 1])
    assert env.get_state().tolist() == [1, 1, 1, 1]
    assert env.get_state().dtype == np.float32
    env = scripted(state=(2, 2), use_env_state=False)
    assert env.get_env_info()["state_shape"] == 8


def test_a_state_that_fails_in_an_episode(scripted):
    class Fragile(Scripted):
        def state(self):
            assert len(self.agents) == 3, "somebody is missing"
            return np.zeros(2)

    env = scripted(parallel_env=Fragile, ends={"b": (2, "terminated")})
    env.reset()
    env.step([0, 0, 1])
    with pytest.raises(
        ConfigError,
        match=r"state\(\) of scripted_env fails .*somebody is missing.*use_env_state=False",
    ):
        env.step([0, 0, 1])


def test_every_reset_is_seeded_from_the_stream(scripted):
    env = scripted()
    for _ in range(3):
        env.reset()
    drawn = env.env.seeds[1:]  # the first was at construction
    assert len(set(drawn)) == 3
    assert all(isinstance(seed, int) for seed in drawn)
    expected = np.random.default_rng(4)
    assert drawn == [int(expected.integers(2**31)) for _ in range(3)]
    env.seed(4)
    env.reset()
    assert env.env.seeds[-1] == drawn[0]
    state = env.get_rng_state()
    env.reset()
    env.set_rng_state(state)
    env.reset()
    assert env.env.seeds[-1] == env.env.seeds[-2] == drawn[1]


def test_a_mask_that_allows_nothing_is_an_error(scripted):
    env = scripted(masks={"b": [0, 0, 0], "c": [0, 1]})
    with pytest.raises(ValueError, match="b is alive, but its action mask allows nothing"):
        env.reset()


def test_an_environment_that_knows_no_render_mode(scripted):
    env = scripted(parallel_env=lambda state=None: Scripted(state=state), state=(3,))
    assert env.env.render_mode is None
    assert env.get_env_info()["state_shape"] == 3
    assert scripted().env.render_mode == "rgb_array"
    assert scripted(render_mode="human").env.render_mode == "human"


def test_rebuild_makes_a_new_environment_for_every_episode(scripted):
    env = scripted()
    first = env.env
    env.reset()
    assert env.env is first
    env = GymmaEnv("scripted_env", seed=4, rebuild=True)
    first = env.env
    env.reset()
    assert env.env is not first


# what users get wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": "mpe2.simple_spraed_v3"}, "did you mean 'mpe2.simple_spread_v3'"),
        ({"key": "mpe2.simple_spread_v2"}, "did you mean 'mpe2.simple_spread_v3'"),
        (
            {"key": "pettingzoo.butterfly.pistonbal_v6"},
            "did you mean 'pettingzoo.butterfly.pistonball_v6'",
        ),
        ({"key": "mpe2.all_modules"}, "has no parallel_env"),
        ({"key": "pettingzoo.mpe.simple_spread_v3"}, "cannot import"),
        (
            {"key": "mpe2.simple_spread_v3", "kwargs": {"n": 3}},
            r"refuses env_args.kwargs {'n': 3}: .*'n'",
        ),
        ({"key": "mpe2.simple_spread_v3", "time_limit": 0}, "time_limit must be .* 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        GymmaEnv(seed=1, **arguments)
    assert "\n" not in str(caught.value)


def test_observations_without_a_size(scripted):
    class Growing(Scripted):
        def observation_space(self, agent):
            return Sequence(Discrete(2))

    with pytest.raises(ConfigError, match="without a fixed size"):
        scripted(parallel_env=Growing)


@pytest.mark.parametrize("package", ["mpe2", "pettingzoo", "gymnasium"])
def test_packages_that_are_not_installed(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(
        MissingPackage, match=r"pip install -r requirements-pettingzoo\.txt"
    ) as caught:
        GymmaEnv(f"{package}.anything_v1", seed=1)
    assert "\n" not in str(caught.value)


def test_packages_that_an_environment_needs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needy_one_env.py").write_text("import surely_not_installed.physics\n")
    (tmp_path / "needy_two_env.py").write_text(
        "def parallel_env(**kwargs):\n    import surely_not_installed\n"
    )
    for key in ("needy_one_env", "needy_two_env"):
        with pytest.raises(
            MissingPackage, match=f"{key} needs .* pip install surely_not_installed"
        ):
            GymmaEnv(key, seed=1)


# -- Gymnasium environments of several agents, by EPyMARL's form of key ----------------------------

TEAM = '''
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple


class Count(gymnasium.Env):
    """Two agents; agent i is paid its action times (i + 1), and the game ends after three steps."""

    observation_space = Tuple([Box(0, 9, (2,)), Box(0, 9, (3,))])
    action_space = Tuple([Discrete(2), Discrete(4)])

    def __init__(self, length=3, render_mode=None):
        self.length = length

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.first = 0, int(self.np_random.integers(9))
        return self._obs(), {}

    def step(self, actions):
        self.t += 1
        rewards = [action * (i + 1) for i, action in enumerate(actions)]
        return self._obs(), rewards, self.t == self.length, False, {}

    def _obs(self):
        return (np.array([self.t, self.first]), np.array([self.t, self.first, 1.0]))


class Lone(gymnasium.Env):
    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)


gymnasium.register("Count-v0", entry_point=Count)
gymnasium.register("Lone-v0", entry_point=Lone)
'''


@pytest.fixture
def team(tmp_path, monkeypatch):
    (tmp_path / "team_games.py").write_text(TEAM)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_gymnasium_id_with_its_module(team):
    env = GymmaEnv("team_games:Count-v0", seed=3, time_limit=5)
    assert (env.n_agents, env.obs_sizes, env.action_sizes) == (2, (2, 3), (2, 4))
    obs, state = env.reset()
    first = obs[0][1]
    assert obs[1].tolist() == [0, first, 1]
    assert state.tolist() == [0, first, 0, first, 1]
    for t, actions in enumerate([(1, 3), (0, 2), (1, 0)], start=1):
        reward, over, info = env.step(actions)
        assert reward.tolist() == [actions[0], 2 * actions[1]]
        assert env.get_obs()[1].tolist() == [t, first, 1]
        assert over == (t == 3)
    assert info == {}  # it ended by its own rules
    short = GymmaEnv("team_games:Count-v0", seed=3, time_limit=2, kwargs={"length": 7})
    short.reset()
    short.step((0, 0))
    assert short.step((0, 0))[1:] == (True, {"episode_limit": True})


@pytest.mark.parametrize(
    ("key", "kwargs", "message"),
    [
        ("team_games:Nothing-v0", {}, "team_games:Nothing-v0 cannot be made"),
        ("team_games:Count-v0", {"lenght": 3}, "cannot be made: .*lenght"),
        ("team_games:Lone-v0", {}, "is not an environment of several agents"),
        ("no_such_games:Count-v0", {}, "there is no package 'no_such_games'"),
    ],
)
def test_what_a_gymnasium_id_must_be(team, key, kwargs, message):
    with pytest.raises(UserError, match=message):
        GymmaEnv(key, seed=0, kwargs=kwargs)


# --- EPyMARL's form, with the package itself ---


@pytest.mark.skipif(
    importlib.util.find_spec("lbforaging") is None, reason="lbforaging is not installed"
)
def test_steps_are_those_of_lbforaging():
    """EPyMARL's key, step by step beside Gymnasium's own environment from the same seed; rewards
    are one for each player, the time limit is ours.
    """
    import gymnasium
    import lbforaging  # noqa: F401

    name = "Foraging-8x8-2p-3f-v3"
    env = GymmaEnv(key=f"lbforaging:{name}", seed=5, time_limit=30)
    theirs = gymnasium.make(name, disable_env_checker=True).unwrapped
    info = env.get_env_info()
    assert (info["n_agents"], info["n_actions"], info["obs_shape"]) == (2, 6, 15)
    assert (info["state_shape"], info["episode_limit"]) == (30, 30)
    assert info["individual_rewards"]
    stream, rng, loaded = np.random.default_rng(5), np.random.default_rng(0), 0.0
    for _ in range(4):
        observed, _ = theirs.reset(seed=int(stream.integers(2**31)))
        env.reset()
        steps, over, step_info = 0, False, {}
        while not over:
            assert np.array_equal(env.get_obs(), np.array(observed, dtype=np.float32))
            assert np.array_equal(env.get_state(), np.concatenate(observed, dtype=np.float32))
            actions = rng.choice([0, 1, 2, 3, 4, 5, 5], size=2)
            rewards, over, step_info = env.step(actions)
            observed, their_rewards, ended, _, _ = theirs.step(actions.tolist())
            assert rewards == pytest.approx(their_rewards)
            loaded += rewards.sum()
            steps += 1
            assert over == (ended or steps == 30)
        assert step_info.get("episode_limit", False) == (not ended)
    assert loaded > 0, "no food was loaded"
    env.close()
