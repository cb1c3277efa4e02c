"""MAgent's battle. What needs magent2 is skipped where it is not installed
(requirements-magent.txt).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import test_env_contract as contract
import torch
from console_fixtures import fresh_console  # noqa: F401
from PIL import Image

import doctor
import main as main_module
from envs import make_vector_env
from envs.magent_battle import (
    ATTACKS,
    MIRROR,
    MOVES,
    BattleEnv,
    chase,
    map_size_for,
    mirror,
    team_size,
)
from frozen_policy import FrozenPolicy
from utils.errors import ConfigError, MissingPackage

ROOT = Path(__file__).resolve().parents[2]
REASON = "magent2 is not installed: pip install -r requirements-magent.txt"
needs_magent = pytest.mark.skipif(importlib.util.find_spec("magent2") is None, reason=REASON)
CASES = [
    contract.Case("battle", {"n_agents": 2, "time_limit": 7}, "truncated", label="random"),
    contract.Case(
        "battle",
        {"n_agents": 6, "opponents": "scripted", "opponent_epsilon": 0.2},
        label="scripted",
    ),
    contract.Case(
        "battle",
        {"n_agents": 2, "opponents": "self", "time_limit": 5},
        "truncated",
        False,
        label="self",
    ),
]
STAY, NOTHING = 6, 0
# (dx, dy) of the 21 actions as the package's moves and attacks turn out, y downwards
BY_HAND = [
    *(
        (0, -2),
        (-1, -1),
        (0, -1),
        (1, -1),
        (-2, 0),
        (-1, 0),
        (0, 0),
        (1, 0),
        (2, 0),
        (-1, 1),
        (0, 1),
        (1, 1),
        (0, 2),
    ),
    *((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)),
]


def raw_battle(map_size, **kwargs):
    module = importlib.import_module("magent2.environments.battle_v4")
    return module.parallel_env(map_size=map_size, max_cycles=10**6, **kwargs)


def spied(env):
    """The actions of both teams, a mapping for each step that the package takes from now on."""
    steps, step = [], env.env.raw.step

    def note(actions):
        steps.append(dict(actions))
        return step(actions)

    env.env.raw.step = note
    return steps


def cells(env):
    return [env.env.raw.env.get_pos(handle) for handle in env.env.raw.handles]


def random_actions(env, rng):
    return [rng.choice(np.flatnonzero(mask)) for mask in env.get_avail_actions()]


def attackers(env):
    """Our living agents chase, the dead do nothing."""
    own, foes = cells(env)
    actions = np.zeros(env.n_agents, dtype=int)
    actions[[env.agents.index(agent) for agent in env.env.agents]] = chase(
        own, foes, env.env._walls
    )
    return actions


# without the package


def test_yaml_has_every_argument_with_its_default():
    contract.test_yaml_has_every_argument_with_its_default("battle")


def test_maps():
    assert [map_size_for(n) for n in (12, 64, 256, 625)] == [20, 40, 80, 125]
    with pytest.raises(
        ConfigError,
        match=r"^battle: no map has 60 agents on each side; n_agents near that: 42, 49, 64$",
    ):
        map_size_for(60)


def test_actions_and_their_mirror_images():
    assert np.concatenate([MOVES, ATTACKS]).tolist() == [list(one) for one in BY_HAND]
    for action, (dx, dy) in enumerate(BY_HAND):
        assert BY_HAND[MIRROR[action]] == (-dx, dy)
        assert (MIRROR[action] < 13) == (action < 13)
    obs = np.arange(2 * 13 * 13 * 5).reshape(2, 13, 13, 5)
    assert all(np.array_equal(mirror(obs)[:, :, x], obs[:, :, 12 - x]) for x in range(13))


def slow_chase(own, foes, walls):
    """For each: the set of right actions."""
    taken = {*map(tuple, own), *map(tuple, foes)}
    right = []
    for x, y in own:
        distance = min((fx - x) ** 2 + (fy - y) ** 2 for fx, fy in foes)
        near = [(fx - x, fy - y) for fx, fy in foes if (fx - x) ** 2 + (fy - y) ** 2 == distance]
        if distance <= 2:
            right.append({13 + BY_HAND[13:].index(one) for one in near})
            continue
        # of several nearest foes any may be the one
        options = set()
        for nx, ny in near:
            rated = {}
            for action, (dx, dy) in enumerate(BY_HAND[:13]):
                cell = (x + dx, y + dy)
                inside = all(0 <= one < len(walls) for one in cell)
                if (dx, dy) == (0, 0) or (inside and not walls[cell] and cell not in taken):
                    rated[action] = (nx - dx) ** 2 + (ny - dy) ** 2
            options |= {action for action, one in rated.items() if one == min(rated.values())}
        right.append(options)
    return right


def test_chasing():
    rng = np.random.default_rng(5)
    walls = np.ones((9, 9), dtype=bool)
    walls[1:-1, 1:-1] = rng.random((7, 7)) < 0.1
    free = np.argwhere(~walls)
    attacks = stays = 0
    for _ in range(60):
        chosen = free[rng.permutation(len(free))[: rng.integers(3, 30)]]
        own, foes = chosen[:-2], chosen[-2:]
        actions = chase(own, foes, walls)
        for action, right in zip(
            actions.tolist(), slow_chase(own.tolist(), foes.tolist(), walls), strict=True
        ):
            assert action in right
            attacks += action >= 13
            stays += action == STAY
    assert attacks > 50
    assert stays > 5


@pytest.mark.parametrize(
    ("env_args", "message"),
    [
        ({"opponents": "scriptd"}, r"unknown opponents 'scriptd'; did you mean 'scripted'"),
        ({"opponents": "iql"}, r"opponent_path goes with opponents iql"),
        ({"opponent_path": "results"}, r"opponent_path goes with opponents iql"),
        ({"opponent_epsilon": 1.5}, r"opponent_epsilon is 1\.5"),
        ({"n_agents": 13}, r"no map has 13 agents on each side; n_agents near that: 6, 12, 16"),
        ({"time_limit": 0}, r"time_limit must be .* 1, got 0"),
    ],
)
def test_refused_arguments(env_args, message):
    with pytest.raises(ConfigError, match=message):
        BattleEnv(seed=1, **env_args)


def test_without_the_package(monkeypatch):
    for module in [one for one in sys.modules if f"{one}.".startswith("magent2.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "magent2", None)
    with pytest.raises(
        MissingPackage,
        match=r"^battle: magent2 cannot .*: pip install -r requirements-magent\.txt$",
    ):
        BattleEnv(seed=1)
    check = doctor.check_package("magent", "magent2", "", doctor._install("magent", "magent2"))
    assert check.mend == "pip install -r requirements-magent.txt"


# the contract


@needs_magent
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_contract(case, check):
    check(
        lambda n_envs, seed: make_vector_env(
            "battle", case.env_args, n_envs, seed, "serial", "train_env"
        ),
        case,
    )


@needs_magent
@pytest.mark.parametrize("check", [contract.check_arrays, contract.check_seeding])
def test_worker_processes(check):
    args = CASES[0].env_args
    check(
        lambda n_envs, seed: make_vector_env("battle", args, n_envs, seed, "subproc", "train_env"),
        CASES[0],
    )


@needs_magent
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_pymarl_interface(case):
    contract.test_pymarl_interface(case)


# against the package itself


@needs_magent
@pytest.mark.parametrize(("n_agents", "map_size"), [(12, 20), (64, 40), (256, 80)])
def test_sizes(n_agents, map_size):
    env = BattleEnv(seed=1, n_agents=n_agents)
    info = env.get_env_info()
    assert (info["n_agents"], info["n_actions"], info["obs_shape"], info["episode_limit"]) == (
        n_agents,
        21,
        845,
        400,
    )
    assert (info["state_shape"], info["individual_rewards"]) == (map_size**2 * 5, True)
    assert len(env.env.raw.possible_agents) == 2 * n_agents
    env.close()


@needs_magent
def test_the_formation_is_the_packages():
    for map_size in (12, 15, 16, 25, 30, 33, 35):
        assert len(raw_battle(map_size).possible_agents) == 2 * team_size(map_size)


@needs_magent
@pytest.mark.parametrize("opponents", ["random", "scripted"])
def test_battles_are_the_packages(opponents):
    rewards = {
        "attack_penalty": -0.3,
        "step_reward": -0.01,
        "attack_opponent_reward": 0.5,
        "dead_penalty": -2.0,
    }
    env = BattleEnv(seed=7, n_agents=12, opponents=opponents, time_limit=60, **rewards)
    raw, steps = raw_battle(20, **rewards), spied(env)
    rng, seeds = np.random.default_rng(2), np.random.default_rng(7)
    deaths = 0
    for _ in range(2):
        env.reset()
        observations, _ = raw.reset(
            seed=int(seeds.integers(2**31))
        )  # it decides whose attack comes first
        over, t = False, 0
        while not over:
            living = [agent in raw.agents for agent in raw.possible_agents[:12]]
            for agent, obs, avail, lives in zip(
                env.agents, env.get_obs(), env.get_avail_actions(), living, strict=True
            ):
                assert avail.tolist() == ([1] * 21 if lives else [1] + [0] * 20)
                assert np.array_equal(obs, observations[agent].ravel() if lives else np.zeros(845))
            assert np.array_equal(env.get_state(), raw.state().ravel())
            steps.clear()
            # attackers of theirs, random ones of ours: some of ours die, some of theirs with random
            # opponents
            chosen = attackers(env) if opponents == "random" else random_actions(env, rng)
            reward, over, info = env.step(chosen)
            assert steps[0].keys() == set(raw.agents)
            assert all(
                steps[0][agent] == chosen[row]
                for row, agent in enumerate(env.agents)
                if living[row]
            )
            observations, rewards, terminations, _, _ = raw.step(steps[0])
            t += 1
            assert np.array_equal(
                reward, np.float32([rewards.get(agent, 0.0) for agent in env.agents])
            )
            if not all(terminations.values()):
                left = sum(agent.startswith("red") for agent in raw.agents)
                assert info["dead_allies"] == 12 - left
                assert info["dead_enemies"] == 12 - (len(raw.agents) - left)
                deaths += info["dead_allies"] + info["dead_enemies"]
            assert over == (all(terminations.values()) or t == 60)
    assert deaths > 10
    env.close()


@needs_magent
def test_victory_defeat_and_the_end_of_time():
    env = BattleEnv(seed=1, n_agents=6, opponents="random", time_limit=300)
    env.reset()
    over = False
    while not over:
        assert not env.env.figures()["battle_won"]
        _, over, info = env.step(attackers(env))
    assert info["battle_won"] == 1
    assert info["dead_enemies"] == 6 > info["dead_allies"]
    assert "episode_limit" not in info
    shown = [bool(obs.any()) for obs in env.get_obs()]
    assert (
        shown.count(True)
        == 6 - info["dead_allies"]
        == sum(mask.sum() == 21 for mask in env.get_avail_actions())
    )
    state = env.get_state().reshape(16, 16, 5)  # the package's state() fails without enemies
    assert state[..., 1].sum() == 6 - info["dead_allies"]
    assert not state[..., 3:].any()

    env = BattleEnv(seed=1, n_agents=6, opponents="scripted", opponent_epsilon=0.0, time_limit=300)
    env.reset()
    over, total = False, np.zeros(6)
    while not over:
        still = [STAY if mask.sum() == 21 else NOTHING for mask in env.get_avail_actions()]
        reward, over, info = env.step(still)
        total += reward
    assert info == {"battle_won": 0, "dead_allies": 6, "dead_enemies": 0}
    assert not np.any(env.get_obs())
    assert [mask.tolist() for mask in env.get_avail_actions()] == [[1] + [0] * 20] * 6
    assert (total <= -0.1).all()

    env = BattleEnv(seed=1, n_agents=6, time_limit=2)
    env.reset()
    assert env.step([STAY] * 6)[1:] == (
        False,
        {"battle_won": 0, "dead_allies": 0, "dead_enemies": 0},
    )
    assert env.step([STAY] * 6)[1:] == (
        True,
        {"episode_limit": True, "battle_won": 0, "dead_allies": 0, "dead_enemies": 0},
    )
    assert all(obs.any() for obs in env.get_obs())  # to be bootstrapped from


@needs_magent
def test_share_of_random_actions():
    def course(epsilon, seed):
        """Actions of the opponents, and those that the script would have taken."""
        env = BattleEnv(
            seed=seed, n_agents=12, opponents="scripted", opponent_epsilon=epsilon, time_limit=40
        )
        steps, planned = spied(env), []
        env.reset()
        over = False
        while not over:
            own, foes = cells(env)
            planned.append(chase(foes, own, env.env._walls).tolist())
            over = env.step(
                [STAY if mask.sum() == 21 else NOTHING for mask in env.get_avail_actions()]
            )[1]
        taken = [[one for agent, one in step.items() if agent.startswith("blue")] for step in steps]
        return taken, planned

    taken, planned = course(0.0, 1)
    assert taken == planned
    taken, planned = course(0.3, 1)
    assert taken != course(0.3, 2)[0]
    same = [
        one == other
        for row, wanted in zip(taken, planned, strict=True)
        for one, other in zip(row, wanted, strict=True)
    ]
    assert 0.6 < np.mean(same) < 0.85  # 0.7 + 0.3 / 21 are expected
    assert np.mean(np.concatenate(course(1.0, 1)[0]) < 13) == pytest.approx(13 / 21, abs=0.1)


@needs_magent
def test_self_play_shows_the_second_team_the_mirror_image():
    env = BattleEnv(seed=1, n_agents=12, opponents="self", time_limit=50)
    steps, rng = spied(env), np.random.default_rng(0)
    assert env.n_agents == 24
    env.reset()
    raw = raw_battle(20)
    observations, _ = raw.reset(seed=int(np.random.default_rng(1).integers(2**31)))
    for _ in range(20):
        for row, (agent, obs) in enumerate(zip(env.agents, env.get_obs(), strict=True)):
            seen = observations[agent] if row < 12 else observations[agent][:, ::-1]
            assert np.array_equal(obs.reshape(13, 13, 5), seen)
        chosen = rng.integers(21, size=24)
        env.step(chosen)
        assert steps[-1] == {
            agent: chosen[row] if row < 12 else MIRROR[chosen[row]]
            for row, agent in enumerate(env.agents)
        }
        observations, *_ = raw.step(steps[-1])
    env.close()


# opponents from a checkpoint

SMALL = [
    *(
        "seed=1",
        "use_cuda=False",
        "common_reward=False",
        "t_max=12",
        "test_interval=100",
        "test_nepisode=1",
        "runner=vector",
    ),
    *(
        "batch_size_run=1",
        "batch_size=2",
        "buffer_size=4",
        "rnn_hidden_dim=8",
        "env_args.time_limit=4",
    ),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of runs of IQL in self-play: one that fits any number of agents, one whose agents
    know their number.
    """
    folder = tmp_path_factory.mktemp("iql")
    own = "env_args.n_agents=2", "env_args.opponents=self", f"local_results_path={folder}"
    for known in (False, True):
        command = [
            "--config=iql",
            "--env-config=battle",
            "with",
            *SMALL,
            *own,
            f"obs_agent_id={known}",
        ]
        assert main_module.main(command) == 0
    return [folder / "sacred/iql/battle" / number for number in ("1", "2")]


class SlowPolicy:
    """PyMARL's recurrent agent, one agent and one step after the other."""

    def __init__(self, weights, n_agents):
        self.weights = {name: values.double().numpy() for name, values in weights.items()}
        self.hidden = [np.zeros(8) for _ in range(n_agents)]
        self.last = [np.zeros(21) for _ in range(n_agents)]

    def values(self, agent, obs):
        w, h = self.weights, self.hidden[agent]
        x = np.maximum(w["fc1.weight"] @ np.concatenate([obs, self.last[agent]]) + w["fc1.bias"], 0)
        gates = (
            [(w["rnn.weight_ih"] @ x + w["rnn.bias_ih"])[8 * i : 8 * i + 8] for i in range(3)],
            [(w["rnn.weight_hh"] @ h + w["rnn.bias_hh"])[8 * i : 8 * i + 8] for i in range(3)],
        )
        reset, update = (1 / (1 + np.exp(-gates[0][i] - gates[1][i])) for i in range(2))
        new = np.tanh(gates[0][2] + reset * gates[1][2])
        self.hidden[agent] = (1 - update) * new + update * h
        return w["fc2.weight"] @ self.hidden[agent] + w["fc2.bias"]

    def remember(self, agent, action):
        self.last[agent] = np.eye(21)[action]


@needs_magent
@pytest.mark.usefixtures("fresh_console")
def test_a_trained_policy_as_opponents(trained, tmp_path):
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    newest = run / "checkpoints" / "12"
    # weights that react more strongly than after three short episodes
    rng = torch.Generator().manual_seed(0)
    weights = torch.load(newest / "agent.th", weights_only=True)
    weights = {name: torch.randn(values.shape, generator=rng) for name, values in weights.items()}
    torch.save(weights, newest / "agent.th")
    shutil.copytree(newest, run / "checkpoints" / "9")  # an older one
    torch.save({}, run / "checkpoints" / "9" / "agent.th")
    state = torch.get_rng_state()
    args = {"n_agents": 12, "opponents": "iql", "opponent_epsilon": 0.0, "time_limit": 60}
    env = BattleEnv(seed=3, opponent_path=str(run), **args)
    same = BattleEnv(seed=3, opponent_path=str(newest), **args)
    steps, others, dead = spied(env), spied(same), 0
    kinds = set()
    for _ in range(2):  # hidden states and last actions are gone at a reset
        env.reset(), same.reset()
        slow = SlowPolicy(weights, 12)
        over = False
        while not over:
            seen = {agent: env.env._seen[agent] for agent in env.env.raw.agents}
            actions = attackers(env)
            _, over, _ = env.step(actions)
            same.step(actions)
            assert steps[-1] == others[-1]
            for row, agent in enumerate(env.env.raw.possible_agents[12:]):
                if agent not in seen:
                    dead += 1
                    continue
                values = slow.values(row, seen[agent][:, ::-1].ravel())
                action = int(np.argmax(values))
                # a tie up to rounding may go either way
                theirs = int(MIRROR[steps[-1][agent]])
                assert values[theirs] == pytest.approx(values[action], abs=1e-5)
                slow.remember(row, theirs)
                kinds.add(theirs)
    assert dead > 0
    assert len(kinds) > 5
    assert torch.equal(torch.get_rng_state(), state)


@needs_magent
@pytest.mark.usefixtures("fresh_console")
def test_checkpoints_that_do_not_fit(trained, tmp_path):
    any_number, numbered = trained
    with pytest.raises(
        ConfigError,
        match=r"do not fit a team of 12 agents .*share_params=True and obs_agent_id=False",
    ):
        FrozenPolicy(str(numbered), 12, 845, 21)
    FrozenPolicy(str(numbered), 4, 845, 21)  # what it was trained with: two teams of two
    with pytest.raises(ConfigError, match=r"no checkpoint in env_args\.opponent_path '.*nowhere'"):
        FrozenPolicy(str(tmp_path / "nowhere"), 2, 845, 21)
    (tmp_path / "copy").mkdir()
    shutil.copy(any_number / "checkpoints" / "12" / "agent.th", tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        FrozenPolicy(str(tmp_path / "copy"), 2, 845, 21)


@needs_magent
@pytest.mark.usefixtures("fresh_console")
def test_a_run_against_it_in_worker_processes(trained, tmp_path):
    command = [
        "--config=f2a2_isac",
        "--env-config=battle",
        "with",
        *SMALL[:-1],
        f"local_results_path={tmp_path}",
    ]
    command += [
        "env_args.n_agents=2",
        "env_args.opponents=iql",
        f"env_args.opponent_path={trained[0]}",
    ]
    command += ["env_args.time_limit=4", "runner=parallel", "policy_hidden_dim=8"]
    assert main_module.main([*command, "critic_hidden_dim=8"]) == 0
    lines = (tmp_path / "sacred/f2a2_isac/battle/1/metrics.jsonl").read_text().splitlines()
    figures = {line["key"]: line["value"] for line in map(json.loads, lines)}
    assert math.isfinite(figures["test_return_mean"])
    assert figures["test_battle_won_mean"] == 0  # four steps are too few


@needs_magent
def test_pictures():
    env = BattleEnv(seed=1, n_agents=12)
    env.reset()
    first = env.render()
    for _ in range(4):
        env.step(attackers(env))
    second = env.render()
    assert (first.shape, first.dtype) == (second.shape, np.uint8)
    assert 0.001 < (first != second).any(-1).mean() < 0.5
    colours = {colour for _, colour in Image.fromarray(first).getcolors(10000)}
    assert any(r > 150 and g < 100 and b < 100 for r, g, b in colours)  # red
    assert any(b > 150 and r < 100 and g < 100 for r, g, b in colours)  # blue
    env.close()
