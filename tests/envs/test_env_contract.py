"""What every environment must do, on every backend (docs/reference/contracts.md, "Environments").

A new environment adds one line to `CASES`. The checks are functions of a way to make environments,
so that the last test of this file can hand them deliberately broken ones and see each check fail.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sc2_stand_in import Installation

from envs import REGISTRY, VECTOR_REGISTRY, Lazy, Single, VectorEnv, make_vector_env
from envs.matrix_game import MatrixGame
from envs.predator_prey import PredatorPrey
from utils.config import load_file

BACKENDS = ("native", "serial", "subproc")


@dataclass(frozen=True)
class Case:
    """One environment with small arguments.

    Args:
        env, env_args: for `make_vector_env`.
        ends: how episodes end under random actions: "terminated", "truncated", or "either".
        random: whether episodes under equal actions differ.
        renders: whether there are pictures.
        resumable: whether the random state can be saved.
        backends: where it is tested.
        label: tells cases of one environment apart.
    """

    env: str
    env_args: dict[str, Any] = field(default_factory=dict)
    ends: str = "either"
    random: bool = True
    renders: bool = True
    resumable: bool = True
    backends: tuple[str, ...] = BACKENDS
    label: str = ""


UNEQUAL = [[[1, 2], [3, 4], [5, 6]], [[0, 1], [-1, 0], [2, 2]]]  # 2, 3 and 2 actions
CASES = [
    Case(
        "matrix_game",
        {"map_name": "climbing"},
        "terminated",
        random=False,
        backends=("native",),
        label="climbing",
    ),
    Case(
        "matrix_game",
        {"map_name": "two_step"},
        "terminated",
        random=False,
        backends=("native",),
        label="two_step",
    ),
    Case(
        "matrix_game",
        {"map_name": "custom", "payoff": UNEQUAL, "episode_limit": 4},
        "terminated",
        random=False,
    ),
    Case(
        "predator_prey",
        {"penalty": 0.5, "grid_size": 4, "n_prey": 2, "episode_limit": 12},
        "truncated",
    ),
    Case("hint", {"n_actors": 3, "episode_limit": 4}, "truncated"),
    Case("switching_wind", {"episode_limit": 9, "switch_every": 3}, "truncated"),
    Case("spread", {"map_name": "spread3_mix", "episode_limit": 5}, "truncated"),
    Case("rover_tower", {"n_pairs": 3, "n_landmarks": 2, "episode_limit": 5}, "truncated"),
    Case("treasure_collection", {"episode_limit": 8}, "truncated", backends=("native", "serial")),
    Case(
        "treasure_collection",
        {"common_reward": True, "episode_limit": 3},
        backends=("native",),
        label="common",
    ),
    Case("lbf", {"map_name": "2s-6x6-3p-2f", "time_limit": 15}),
    Case(
        "lbf",
        {"map_name": "grid-2s-5x7-2p-2f-pen", "action_mask": True, "time_limit": 9},
        backends=("native",),
        label="grid",
    ),
    Case("rware", {"map_name": "tiny-3h-3ag", "time_limit": 15}, "truncated"),
    Case(
        "rware",
        {"map_name": "2x1-3h-9ag-3req-twostage", "max_inactivity_steps": 9, "time_limit": 40},
        backends=("native",),
        label="crowd",
    ),
    Case("sc2sim", {"map_name": "3m"}),
    Case(
        "sc2sim",
        {
            "map_name": "1o_2r_vs_4r",
            "continuing_episode": True,
            "obs_timestep_number": True,
            "threads": 2,
        },
        backends=("native",),
        label="comm",
    ),
    Case(
        "sc2sim", {"map_name": "MMM", "opponents": "mixture"}, backends=("native",), label="mixture"
    ),
    Case("sc2sim_v2", {"map_name": "terran_5_vs_5"}),
    Case(
        "sc2sim_v2",
        {
            "map_name": "zerg_10_vs_11",
            "conic_fov": True,
            "prob_obs_enemy": 0.5,
            "action_mask": False,
            "threads": 2,
        },
        backends=("native",),
        label="partial",
    ),
    # the stand-in for the game, see `stand_in`
    Case("sc2", {"map_name": "3m", "start_interval": 0.0}, resumable=False, backends=("subproc",)),
    Case(
        "gymma",
        {"key": "mpe2.simple_speaker_listener_v4", "time_limit": 6},
        "truncated",
        backends=("serial", "subproc"),
    ),
    Case(
        "gymma",
        {"key": "mpe2.simple_tag_v3", "time_limit": 6},
        "truncated",
        backends=("serial",),
        label="tag",
    ),
    Case(
        "gymma",
        {
            "key": "mpe2.simple_speaker_listener_v4",
            "time_limit": 6,
            "kwargs": {"continuous_actions": True},
        },
        "truncated",
        backends=("serial",),
        label="continuous",
    ),
    Case(
        "gymma",
        {"key": "pettingzoo.sisl.multiwalker_v9", "time_limit": 30, "use_env_state": False},
        backends=("serial", "subproc"),
        label="multiwalker",
    ),
    Case(
        "gymma",
        {
            "key": "pettingzoo.sisl.pursuit_v5",
            "time_limit": 8,
            "kwargs": {"n_pursuers": 3, "shared_reward": False},
        },
        "truncated",
        backends=("serial", "subproc"),
        label="pursuit",
    ),
]

# (number of environments, seed) -> a new VectorEnv that no episode was started in
Make = Callable[[int, int], VectorEnv]

ARRAYS = ("obs", "state", "avail_actions", "reward", "terminated", "truncated", "failed")


# helpers


@pytest.fixture(scope="module", autouse=True)
def stand_in(tmp_path_factory):
    """What stands where StarCraft II is expected."""
    installation = Installation(tmp_path_factory.mktemp("sc2") / "StarCraftII", maps=["3m"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC2PATH", str(installation.folder))
        yield
    assert not installation.running(), "games are left"


@contextmanager
def opened(make: Make, n_envs: int, seed: int) -> Iterator[VectorEnv]:
    env = make(n_envs, seed)
    try:
        yield env
    finally:
        env.close()


def snapshot(env: VectorEnv, b: int, start: bool = False) -> dict[str, Any]:
    """All that environment b shows, copied; at the start of an episode there is no last step for
    `info` to tell of.
    """
    shown = {name: getattr(env, name)[b].copy() for name in ARRAYS}
    if start:
        return shown
    figures = {
        name: float(values[b]) for name, values in env.info.items() if not np.isnan(values[b])
    }
    return {**shown, "info": figures}


def equal(one: Any, other: Any) -> bool:
    """Whether nested lists, dicts and arrays are equal in every bit that matters."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return np.array_equal(one, other)


def over(env: VectorEnv) -> np.ndarray:
    return env.terminated | env.truncated | env.failed


def nothing(env: VectorEnv) -> np.ndarray:
    """Zeros in the shape of actions: int64 [B, A], continuous ones float32 [B, A, U]."""
    if env.continuous_actions:
        return np.zeros((env.n_envs, env.n_agents, env.n_actions), dtype=np.float32)
    return np.zeros((env.n_envs, env.n_agents), dtype=np.int64)


def random_action(rng: np.random.Generator, available: np.ndarray, continuous: bool) -> Any:
    """One agent's action; a continuous one has something in the padding, too."""
    return (
        rng.uniform(-1, 1, len(available)) if continuous else rng.choice(np.flatnonzero(available))
    )


class Player:
    """Plays random available actions. All environments draw from equal generators, so equal ones
    stay equal.
    """

    def __init__(self, env: VectorEnv, seed: int = 0) -> None:
        self.env = env
        self.rngs = [np.random.default_rng(seed) for _ in range(env.n_envs)]

    def actions(self, mask: np.ndarray) -> np.ndarray:
        chosen = nothing(self.env)
        for b in np.flatnonzero(mask):
            for agent, available in enumerate(self.env.avail_actions[b]):
                chosen[b, agent] = random_action(
                    self.rngs[b], available, self.env.continuous_actions
                )
        return chosen

    def step(self, mask: np.ndarray) -> None:
        self.env.step(self.actions(mask), mask)


def episode(env: VectorEnv, seed: int = 0) -> list[list[dict[str, Any]]]:
    """Starts and plays one episode everywhere: for each environment its snapshots from reset to
    end.
    """
    player = Player(env, seed)
    env.reset()
    shown = [[snapshot(env, b, start=True)] for b in range(env.n_envs)]
    running = ~over(env)
    while running.any():
        assert len(max(shown, key=len)) <= env.episode_limit, (
            "an episode is longer than episode_limit"
        )
        player.step(running)
        for b in np.flatnonzero(running):
            shown[b].append(snapshot(env, b))
        running &= ~over(env)
    return shown


def plain(value: Any) -> bool:
    """Whether a value consists of plain Python values only."""
    if isinstance(value, dict):
        return all(type(key) in (str, int) and plain(entry) for key, entry in value.items())
    if type(value) in (list, tuple):
        return all(map(plain, value))
    return type(value) in (int, float, bool, str, bytes, type(None))


# checks


def check_arrays(make: Make, case: Case) -> None:
    """Shapes, dtypes, padding, finite values; the same objects from construction on."""
    with opened(make, 2, 1) as env:
        b, a, u, o, s = env.n_envs, env.n_agents, env.n_actions, env.obs_size, env.state_size
        expected = {
            "obs": ((2, a, o), np.float32),
            "state": ((2, s), np.float32),
            "avail_actions": ((2, a, u), np.uint8),
            "reward": ((2, a) if env.individual_rewards else (2,), np.float32),
            "terminated": ((2,), np.bool_),
            "truncated": ((2,), np.bool_),
            "failed": ((2,), np.bool_),
        }
        assert (b, len(env.obs_sizes), len(env.action_sizes)) == (2, a, a)
        assert (max(env.obs_sizes), max(env.action_sizes)) == (o, u)
        assert env.episode_limit >= 1
        objects = {name: getattr(env, name) for name in ARRAYS}
        figures: dict[str, np.ndarray] = {}
        player = Player(env)
        env.reset()
        for t in range(env.episode_limit + 1):
            for name, (shape, dtype) in expected.items():
                array = getattr(env, name)
                assert array is objects[name], f"{name} is another array than at the start"
                assert (array.shape, array.dtype) == (shape, dtype), name
                assert np.isfinite(array).all(), name
            assert set(np.unique(env.avail_actions)) <= {0, 1}
            for agent in range(a):
                assert not env.obs[:, agent, env.obs_sizes[agent] :].any(), (
                    "padding of obs is not zero"
                )
                assert not env.avail_actions[:, agent, env.action_sizes[agent] :].any(), (
                    "padding is available"
                )
            for name, values in env.info.items():
                assert figures.setdefault(name, values) is values, (
                    f"info {name} is another array than before"
                )
                assert values.shape == (2,)
                assert values.dtype == np.float64
            if t == 0:
                assert not env.reward.any()
            if over(env).any():
                break
            player.step(~over(env))
        info = env.get_env_info()
        assert {
            key: info[key]
            for key in ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")
        } == {
            "n_agents": a,
            "n_actions": u,
            "obs_shape": o,
            "state_shape": s,
            "episode_limit": env.episode_limit,
        }
        assert tuple(info["obs_sizes"]) == tuple(env.obs_sizes)
        assert tuple(info["action_sizes"]) == tuple(env.action_sizes)
        assert info["individual_rewards"] is env.individual_rewards
        assert info["continuous_actions"] is env.continuous_actions


def check_availability(make: Make, case: Case) -> None:
    """Every agent can do something in every step of an episode, its last observation included;
    continuous actions are always available.
    """
    with opened(make, 2, 2) as env:
        own = np.arange(env.n_actions) < np.array(env.action_sizes)[:, None]
        for shown in episode(env):
            for t, one in enumerate(shown):
                assert one["avail_actions"].any(axis=1).all(), (
                    f"step {t}: an agent has no available action"
                )
                if env.continuous_actions:
                    assert np.array_equal(one["avail_actions"], own), (
                        f"step {t}: a continuous action is not available"
                    )


def check_refusals(make: Make, case: Case) -> None:
    """What must be a ValueError, and changes nothing."""
    with opened(make, 2, 3) as env:
        player = Player(env)
        nobody, everyone = np.zeros(2, dtype=bool), np.ones(2, dtype=bool)
        noop = nothing(env)
        refuses(env, noop, everyone, "it steps before the first reset")
        env.reset()
        good = player.actions(everyone)
        for b in range(2):
            for agent in range(env.n_agents):
                if env.continuous_actions:
                    unavailable = [-1.01, 1.01, np.nan, np.inf]
                else:
                    unavailable = [
                        -1,
                        env.n_actions,
                        *np.flatnonzero(env.avail_actions[b, agent] == 0).tolist(),
                    ]
                for action in unavailable:
                    bad = good.copy()
                    bad[(b, agent, -1) if env.continuous_actions else (b, agent)] = action
                    refuses(env, bad, everyone, f"it takes the unavailable action {action}")
        refuses(env, good[:1], everyone, "it takes too few rows of actions")
        wrong = np.int64 if env.continuous_actions else np.float32
        refuses(env, good.astype(wrong), everyone, f"it takes {np.dtype(wrong)} as actions")
        refuses(env, good, np.ones(3, dtype=bool), "it takes a mask of wrong length")
        refuses(env, good, np.ones(2, dtype=np.int64), "it takes a mask of integers")
        before = [snapshot(env, b) for b in range(2)]
        env.step(good, nobody)
        assert equal(before, [snapshot(env, b) for b in range(2)]), (
            "a step of no environment changes something"
        )
        # after all these refusals the episode still runs, and at its end there is no further step
        running = everyone.copy()
        while running.any():
            player.step(running)
            running &= ~over(env)
        refuses(env, noop, everyone, "it steps episodes that are over")
        env.reset(np.array([True, False]))
        refuses(env, noop, everyone, "it steps an episode that is over")
        player.step(np.array([True, False]))


def refuses(env: VectorEnv, actions: np.ndarray, mask: np.ndarray, otherwise: str) -> None:
    before = [snapshot(env, b) for b in range(env.n_envs)]
    try:
        env.step(actions, mask)
    except ValueError:
        assert equal(before, [snapshot(env, b) for b in range(env.n_envs)]), (
            "a refused step changes something"
        )
    else:
        raise AssertionError(otherwise)


def check_masks(make: Make, case: Case) -> None:
    """Environments outside of a mask stay as they are, and go on as if nothing had happened."""
    with opened(make, 2, 4) as env:
        undisturbed = episode(env)[1]
    first, second = np.array([True, False]), np.array([False, True])
    with opened(make, 2, 4) as env:
        player = Player(env)
        env.reset()
        shown, now = [snapshot(env, 1, start=True)], snapshot(env, 1)
        while not over(env)[1]:
            # environment 0 steps when it can, starts anew when it cannot and in every third step
            if over(env)[0] or len(shown) % 3 == 0:
                env.reset(first)
            else:
                player.step(first)
            assert equal(snapshot(env, 1), now), (
                "environment 1 changes while only environment 0 is stepped or reset"
            )
            other = snapshot(env, 0)
            player.step(second)
            assert equal(snapshot(env, 0), other), (
                "environment 0 changes while only environment 1 is stepped"
            )
            now = snapshot(env, 1)
            shown.append(now)
        assert equal(shown, undisturbed), (
            "what environment 0 does changes the episode of environment 1"
        )


def check_seeding(make: Make, case: Case) -> None:
    """Equal seeds, equal episodes; environment b's depend on seed and b only."""
    with opened(make, 2, 5) as env:
        first = [episode(env, seed) for seed in (0, 0)]
    with opened(make, 3, 5) as env:
        assert equal(first, [episode(env, seed)[:2] for seed in (0, 0)]), (
            "an equal seed gives other episodes, or the number of environments changes them"
        )
        env.seed(11)
        reseeded = episode(env)
        player = Player(env)
        env.reset()
        player.step(np.ones(3, dtype=bool))
        env.seed(11)
        assert equal(reseeded, episode(env)), "seed() does not restart the random streams"
        env.seed(12)
        other = episode(env)
    with opened(make, 1, 6) as env:
        differently = episode(env)
    if case.random:
        assert not equal(first[0], first[1]), "every episode is the same"
        assert not equal(first[0][0], first[0][1]), "all environments are the same"
        assert not equal(first[0][:1], differently), "the seed does nothing"
        assert not equal(reseeded, other), "seed() does nothing"
    else:
        assert equal(first[0], first[1])


def check_reset(make: Make, case: Case) -> None:
    """A reset in the middle of an episode gives a whole new one; two in a row are one too many, but
    legal.
    """
    with opened(make, 2, 7) as env:
        whole = [len(shown) for shown in episode(env)]
        player = Player(env)
        env.reset()
        env.reset()
        for _ in range(max(1, min(whole) - 2)):
            if not over(env).any():  # this episode may be shorter than the last one
                player.step(np.ones(2, dtype=bool))
        env.reset()
        assert not over(env).any(), "the reset leaves an episode ended"
        assert not env.reward.any(), "the reset leaves a reward"
        again = [len(shown) for shown in episode(env)]
        if case.ends != "either":  # then all episodes under test are equally long
            assert again == whole, "an episode after a reset in mid-episode has another length"
    with opened(make, 2, 7) as env:
        env.reset()
        before = [snapshot(env, b) for b in range(2)]
        env.reset(np.zeros(2, dtype=bool))
        assert equal(before, [snapshot(env, b) for b in range(2)]), (
            "a reset of no environment changes something"
        )
        if not case.random:
            env.reset()
            assert equal(before, [snapshot(env, b) for b in range(2)]), (
                "two resets give something else than one"
            )


def check_ends(make: Make, case: Case) -> None:
    """Episodes end once, by exactly one of `terminated` and `truncated`, after episode_limit steps
    at the latest.
    """
    with opened(make, 2, 8) as env:
        for repeat in range(3):
            for shown in episode(env, repeat):
                assert 2 <= len(shown) <= env.episode_limit + 1
                for one in shown[:-1]:
                    assert not one["terminated"], "terminated before the end"
                    assert not one["truncated"], "truncated before the end"
                last = shown[-1]
                assert last["terminated"] != last["truncated"], (
                    "an end must be one of terminated and truncated"
                )
                assert not last["failed"]
                if case.ends != "either":
                    assert last[case.ends], f"expected an episode to be {case.ends}"


def check_rng_state(make: Make, case: Case) -> None:
    """The random state, saved between episodes, brings the same continuation back, in another
    object too.
    """
    with opened(make, 2, 9) as env:
        episode(env)
        state = env.get_rng_state()
        if not case.resumable:
            assert state is None
            return
        assert plain(state), f"the random state has more than plain Python values: {state}"
        kept = pickle.loads(pickle.dumps(state))
        following = [episode(env, seed) for seed in (1, 2)]
        assert plain(state)
        assert state == kept, "the saved random state changes while the environment goes on"
        env.set_rng_state(copy.deepcopy(kept))
        assert equal(following, [episode(env, seed) for seed in (1, 2)]), "the continuation differs"
    with opened(make, 2, 1009) as env:
        env.set_rng_state(kept)
        assert equal(following, [episode(env, seed) for seed in (1, 2)]), (
            "the continuation elsewhere differs"
        )


def check_render(make: Make, case: Case) -> None:
    """Pictures of any environment, at the start and later; they show that something happens."""
    with opened(make, 2, 10) as env:
        env.reset()
        if not case.renders:
            with pytest.raises(NotImplementedError):
                env.render(0)
            return
        before = [snapshot(env, b) for b in range(2)]
        pictures = [env.render(0), env.render(1)]
        assert equal(before, [snapshot(env, b) for b in range(2)]), "render changes the environment"
        player = Player(env)
        while not over(env).any():
            player.step(np.ones(2, dtype=bool))
        pictures.append(env.render(1))
        for picture in pictures:
            assert isinstance(picture, np.ndarray)
            assert picture.dtype == np.uint8, "a picture is not uint8"
            assert picture.ndim == 3, "a picture is not [H, W, 3]"
            assert picture.shape[2] == 3, "a picture is not [H, W, 3]"
            assert (picture != picture[0, 0]).any(), "a picture is of one colour"
        assert not np.array_equal(pictures[1], pictures[2]), "the picture does not change"


def check_close(make: Make, case: Case) -> None:
    """`close` may be called twice, before and after use."""
    env = make(1, 1)
    env.close()
    env.close()
    env = make(1, 1)
    env.reset()
    env.close()
    env.close()


CHECKS = [
    check_arrays,
    check_availability,
    check_refusals,
    check_masks,
    check_seeding,
    check_reset,
    check_ends,
    check_rng_state,
    check_render,
    check_close,
]


# the registered environments


def implementation(name: str) -> Any:
    """The class behind a registered environment."""
    factory = VECTOR_REGISTRY[name] if name in VECTOR_REGISTRY else REGISTRY[name]
    return factory.load() if isinstance(factory, Lazy) else factory


def own_environments() -> set[str]:
    """The names that `envs` itself registers; other tests may have registered plug-ins."""
    found = set()
    for name, factory in REGISTRY.items():
        inner = factory.vector_env if isinstance(factory, Single) else factory
        if (inner.module if isinstance(inner, Lazy) else inner.__module__).startswith("envs."):
            found.add(name)
    return found


@pytest.fixture(scope="module")
def worker_pool():
    """From a case and its `Make` to a `Make` that hands out the same environments every time,
    seeded anew.
    """
    pool, closers = {}, []

    def recycling(case: Case, make: Make) -> Make:
        def recycled(n_envs: int, seed: int) -> VectorEnv:
            key = id(case), n_envs
            if key not in pool:
                pool[key] = make(n_envs, seed)
                closers.append(pool[key].close)
                pool[key].close = lambda: None
            pool[key].seed(seed)
            return pool[key]

        return recycled

    yield recycling
    for close in closers:
        close()


# Environments of packages that may be missing: the same checks in a file of their own.
ELSEWHERE = {
    "smax": "test_smax.py",
    "vmas": "test_vmas.py",
    "overcooked": "test_overcooked.py",
    "gfootball": "test_gfootball.py",
    "battle": "test_magent_battle.py",
    "sc2v2": "test_sc2_upstream.py",
    "sc2hard": "test_sc2_upstream.py",
}


def test_every_environment_is_tested():
    assert own_environments() == {case.env for case in CASES} | set(ELSEWHERE)
    for name, file in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text()
        assert "test_env_contract" in text, file
        assert f'"{name}"' in text, file


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("case", "backend"),
    [(case, backend) for case in CASES for backend in case.backends],
    ids=lambda value: (
        value if isinstance(value, str) else "_".join(filter(None, (value.env, value.label)))
    ),
)
def test_contract(case, backend, check, worker_pool):
    def make(n_envs: int, seed: int) -> VectorEnv:
        return make_vector_env(case.env, case.env_args, n_envs, seed, backend, "train_env")

    # worker processes take a while to start, and most checks do not need new ones
    if backend == "subproc" and check not in (check_refusals, check_seeding, check_close):
        check(worker_pool(case, make), case)
    else:
        check(make, case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_environments_learn_how_far_the_run_is(backend):
    args = {"map_name": "shifting", "switch_step": 100}
    with make_vector_env("matrix_game", args, 2, 1, backend, "test_env") as env:
        # S2Q's game: the third action pays 6 before the switch and 8 after it
        for t_env, reward in ((0, 6), (99, 6), (100, 8)):
            env.set_t_env(t_env)
            env.reset()
            env.step(np.full((2, 2), 2))
            assert env.reward.tolist() == [reward, reward], t_env


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "_".join(filter(None, (case.env, case.label)))
)
def test_pymarl_interface(case):
    """One environment by itself, as PyMARL's runners use it."""
    env = REGISTRY[case.env](**case.env_args, seed=1)
    info = env.get_env_info()
    sizes = info["n_agents"], info["n_actions"], info["obs_shape"], info["state_shape"]
    assert sizes == (
        env.n_agents,
        env.get_total_actions(),
        env.get_obs_size(),
        env.get_state_size(),
    )
    continuous = info.get("continuous_actions", False)
    rng = np.random.default_rng(0)
    for _ in range(2):
        env.reset()
        terminated, steps, step_info = False, 0, {}
        while not terminated:
            assert np.shape(env.get_state()) == (sizes[3],)
            obs, avail = env.get_obs(), env.get_avail_actions()
            assert len(obs) == len(avail) == sizes[0]
            assert all(np.shape(one) == (sizes[2],) for one in obs)
            assert all(np.array_equal(one, env.get_obs_agent(i)) for i, one in enumerate(obs))
            assert all(
                np.array_equal(one, env.get_avail_agent_actions(i)) for i, one in enumerate(avail)
            )
            kept = [one.copy() for one in obs]
            reward, terminated, step_info = env.step(
                [random_action(rng, one, continuous) for one in avail]
            )
            assert equal(obs, kept), "observations handed out earlier change"
            assert isinstance(terminated, bool)
            assert np.shape(reward) == (
                (sizes[0],) if info.get("individual_rewards", False) else ()
            )
            steps += 1
            assert terminated or not step_info.get("episode_limit", False)
        assert steps <= info["episode_limit"]
        if case.ends != "either":
            assert step_info.get("episode_limit", False) == (case.ends == "truncated")
        with pytest.raises(ValueError, match="no running episode"):
            env.step(np.zeros(sizes[:2], dtype=np.float32) if continuous else [0] * sizes[0])
    assert isinstance(env.get_stats(), dict)
    env.close()
    env.close()


@pytest.mark.parametrize("name", sorted({case.env for case in CASES}))
def test_yaml_has_every_argument_with_its_default(name):
    path = Path(__file__).parents[2] / "src" / "config" / "envs" / f"{name}.yaml"
    config = load_file(path)
    assert config["env"] == name
    parameters = inspect.signature(implementation(name)).parameters
    wanted = {key: one.default for key, one in parameters.items() if key not in ("n_envs", "seed")}
    assert set(config["env_args"]) == set(wanted)
    for key, default in wanted.items():
        if default is not inspect.Parameter.empty:
            given = config["env_args"][key]
            assert (
                np.array_equal(given, default)
                if isinstance(given, list)
                else (given or None) == (default or None)
            ), key


# broken environments, and the check that must notice


class Broken(PredatorPrey):
    """A small predator-prey; each subclass breaks one promise."""

    def __init__(self, n_envs: int, seed: int) -> None:
        super().__init__(n_envs, seed, grid_size=4, episode_limit=8)


class NewArrays(Broken):
    def _step(self, actions, mask):
        self.obs = self.obs.copy()
        super()._step(actions, mask)


class WrongType(Broken):
    def _allocate(self, layout):
        return {
            **super()._allocate(layout),
            "avail_actions": np.zeros(layout["avail_actions"][0], dtype=np.int64),
        }


class NotANumber(Broken):
    def _reset(self, mask):
        super()._reset(mask)
        self.state[mask, 0] = np.nan


class PaddingAvailable(MatrixGame):
    def __init__(self, n_envs, seed):
        super().__init__(n_envs, seed, "custom", payoff=UNEQUAL, episode_limit=3)
        self.avail_actions[:] = 1


class NothingAvailable(Broken):
    def _step(self, actions, mask):
        super()._step(actions, mask)
        self.avail_actions[self.truncated] = 0


class TakesAnything(Broken):
    def _check_actions(self, actions, mask):
        return np.clip(np.asarray(actions), 0, 4).astype(np.int64)


class HalfRefused(Broken):
    def step(self, actions, mask=None):
        self.reward += 1
        super().step(actions, mask)


class ResetsAll(Broken):
    def _reset(self, mask):
        super()._reset(np.ones_like(mask))


class StepLeaks(Broken):
    def _step(self, actions, mask):
        super()._step(actions, mask)
        self.state[:] += 1


class SharedStream(Broken):
    def seed(self, seed):
        super().seed(seed)
        self.rngs = [self.rngs[0]] * self.n_envs


class SeedIgnored(Broken):
    def seed(self, seed):
        super().seed(0)


class SameEverywhere(Broken):
    def seed(self, seed):
        super().seed(seed)
        self.rngs = [np.random.default_rng(seed) for _ in self.rngs]


class NotReseeded(Broken):
    def seed(self, seed):
        if not hasattr(self, "rngs"):
            super().seed(seed)


class TimeGoesOn(Broken):
    def _reset(self, mask):
        time = self._time[mask]
        super()._reset(mask)
        self._time[mask] = time % self.episode_limit


class TooLong(Broken):
    def __init__(self, n_envs, seed):
        super().__init__(n_envs, seed)
        self.episode_limit = 7

    def _step(self, actions, mask):
        self.episode_limit = 8
        super()._step(actions, mask)
        self.episode_limit = 7


class EndsTwice(Broken):
    def _step(self, actions, mask):
        super()._step(actions, mask)
        self.terminated[mask] = self.truncated[mask]


class WrongEnd(Broken):
    def _step(self, actions, mask):
        super()._step(actions, mask)
        self.terminated[mask], self.truncated[mask] = self.truncated[mask], False


class HiddenStream(Broken):
    def __init__(self, n_envs, seed):
        self._hidden = np.random.default_rng(0)
        super().__init__(n_envs, seed)

    def _step(self, actions, mask):
        super()._step(actions, mask)
        self.reward[mask] += self._hidden.random()


class LiveState(Broken):
    def get_rng_state(self):
        return {"rngs": [rng.bit_generator.state for rng in self.rngs], "generators": self.rngs}


class FloatPicture(Broken):
    def render(self, index=0):
        return super().render(index) / 255.0


class StillPicture(Broken):
    def render(self, index=0):
        return np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


class ClosesOnce(Broken):
    _open = True

    def close(self):
        assert self._open, "closed twice"
        self._open = False


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (NewArrays, check_arrays),
        (WrongType, check_arrays),
        (NotANumber, check_arrays),
        (PaddingAvailable, check_arrays),
        (NothingAvailable, check_availability),
        (TakesAnything, check_refusals),
        (HalfRefused, check_refusals),
        (ResetsAll, check_masks),
        (StepLeaks, check_masks),
        (SharedStream, check_seeding),
        (SeedIgnored, check_seeding),
        (SameEverywhere, check_seeding),
        (NotReseeded, check_seeding),
        (TimeGoesOn, check_reset),
        (TooLong, check_ends),
        (EndsTwice, check_ends),
        (WrongEnd, check_ends),
        (HiddenStream, check_seeding),
        (HiddenStream, check_rng_state),
        (LiveState, check_rng_state),
        (FloatPicture, check_render),
        (StillPicture, check_render),
        (ClosesOnce, check_close),
    ],
    ids=lambda value: value.__name__,
)
def test_a_broken_environment_is_found(broken, check):
    case = Case("predator_prey", ends="truncated")
    check(lambda n_envs, seed: Broken(n_envs, seed), case)
    with pytest.raises(AssertionError):
        check(broken, case)
