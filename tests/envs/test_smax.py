"""SMAX behind the contract. What needs jaxmarl is skipped where it is not installed
(requirements-smax.txt).
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_env_contract as contract

from envs import REGISTRY, make_vector_env, smax
from utils.errors import ConfigError, MissingPackage

REASON = "jaxmarl is not installed: pip install -r requirements-smax.txt"
needs_jaxmarl = pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason=REASON)
LIMIT = 30
CASE = contract.Case("smax", {"map_name": "3m", "max_steps": LIMIT})
# map -> agents, actions, entries of observation and state: 13 an observed unit, 10 for oneself; 12
# a unit in the state
SIZES = {
    "3m": (3, 8, 5 * 13 + 10, 6 * 12),
    "2s3z": (5, 10, 9 * 13 + 10, 10 * 12),
    "25m": (25, 30, 49 * 13 + 10, 50 * 12),
    "3s5z": (8, 13, 15 * 13 + 10, 16 * 12),
    "8m": (8, 13, 15 * 13 + 10, 16 * 12),
    "5m_vs_6m": (5, 11, 10 * 13 + 10, 11 * 12),
    "10m_vs_11m": (10, 16, 20 * 13 + 10, 21 * 12),
    "27m_vs_30m": (27, 35, 56 * 13 + 10, 57 * 12),
    "3s5z_vs_3s6z": (8, 14, 16 * 13 + 10, 17 * 12),
    "3s_vs_5z": (3, 10, 7 * 13 + 10, 8 * 12),
    "6h_vs_8z": (6, 13, 13 * 13 + 10, 14 * 12),
    "smacv2_5_units": (5, 10, 9 * 13 + 10, 10 * 12),
    "smacv2_10_units": (10, 15, 19 * 13 + 10, 20 * 12),
    "smacv2_20_units": (20, 25, 39 * 13 + 10, 40 * 12),
}


def make(n_envs, seed, backend="native", **env_args):
    return make_vector_env(
        "smax", {**CASE.env_args, **env_args}, n_envs, seed, backend, "train_env"
    )


# without jaxmarl


def test_yaml_has_every_argument_with_its_default():
    contract.test_yaml_has_every_argument_with_its_default("smax")


def test_without_jaxmarl(monkeypatch):
    monkeypatch.setattr(smax.importlib.util, "find_spec", lambda name: None)
    smax.make_programs.cache_clear()
    with pytest.raises(
        MissingPackage,
        match=r"^smax needs the package jaxmarl: pip install -r requirements-smax\.txt$",
    ):
        REGISTRY["smax"](seed=1)


def test_a_jaxmarl_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "jaxmarl").mkdir()
    (tmp_path / "jaxmarl" / "__init__.py").write_text(
        "print('hello')\nraise TypeError('no such\\nthing')"
    )
    code = (
        "from envs.smax import load_smax\n"
        "try:\n    load_smax()\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    paths = [str(tmp_path), str(Path(smax.__file__).parents[1])]
    script = f"import sys\nsys.path[:0] = {paths!r}\n{code}"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout == (
        "MissingPackage jaxmarl cannot be imported (TypeError: no such thing): pip install -r "
        "requirements-smax.txt\n"
    )


@pytest.mark.parametrize(
    ("env_args", "message"),
    [
        ({"max_steps": 0}, r"max_steps must be a whole number of at least 1, got 0"),
        (
            {"world_steps_per_env_step": 1.5},
            r"world_steps_per_env_step must be a whole number of at least 1, got 1\.5",
        ),
        ({"attack_mode": "closet"}, r"unknown attack_mode 'closet'; did you mean 'closest'"),
        (
            {"observation_type": "conics"},
            r"unknown observation_type 'conics'; did you mean 'conic'",
        ),
    ],
)
def test_refused_arguments(env_args, message):
    with pytest.raises(ConfigError, match=message):
        make(1, 0, **env_args)


# with it


@pytest.mark.slow
@needs_jaxmarl
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(make, CASE)


@needs_jaxmarl
def test_serial_backend():
    with make(1, 3) as native, make(2, 3, "serial") as serial:
        contract.check_arrays(lambda n_envs, seed: make(n_envs, seed, "serial"), CASE)
        assert native.spec == serial.spec


@needs_jaxmarl
def test_pymarl_interface():
    contract.test_pymarl_interface(CASE)


@needs_jaxmarl
@pytest.mark.parametrize("map_name", SIZES)
def test_all_maps(map_name):
    known = importlib.import_module("jaxmarl.environments.smax.smax_env").MAP_NAME_TO_SCENARIO
    assert set(SIZES) == set(known)
    with make(1, 0, map_name=map_name) as env:
        assert (env.n_agents, env.n_actions, env.obs_size, env.state_size) == SIZES[map_name]
        assert env.episode_limit == LIMIT


@needs_jaxmarl
@pytest.mark.parametrize(
    "env_args",
    [{"map_name": "smacv2_5_units"}, {"observation_type": "conic"}, {"attack_mode": "random"}],
)
def test_shapes_of_other_options(env_args):
    """Traced, not compiled."""
    import jax

    with make(2, 0, **env_args) as env:
        battles, shown = jax.eval_shape(env._programs.begin, np.zeros((2, 2), dtype=np.uint32))
        actions = np.zeros((2, env.n_agents), dtype=np.int32)
        moved, after, scored = jax.eval_shape(
            env._programs.advance, battles, actions, np.ones(2, dtype=bool)
        )
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), moved) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), battles
        )
        for one in (shown, after):
            for name, leaf in one._asdict().items():
                assert (leaf.shape, leaf.dtype) == (
                    getattr(env, name).shape,
                    getattr(env, name).dtype,
                ), name
        assert all(leaf.shape == (2,) for leaf in scored)


@needs_jaxmarl
def test_unknown_map_and_device():
    with pytest.raises(ConfigError, match=r"smax: unknown map '3sz'; did you mean '3s5z'"):
        make(1, 0, map_name="3sz")
    with pytest.raises(
        ConfigError,
        match=r"smax: JAX has no device 'abacus' \(.*\): set env_args\.device to null or cpu",
    ):
        make(1, 0, device="abacus")


def focus_fire(env):
    """Attacks the first enemy in range; else walks right, where the enemies come from."""
    actions = np.ones((env.n_envs, env.n_agents), dtype=np.int64)
    for b, agent in np.ndindex(*actions.shape):
        available = np.flatnonzero(env.avail_actions[b, agent])
        attacks = available[available > 4]
        actions[b, agent] = attacks[0] if len(attacks) else 1 if 1 in available else 4
    return actions


@needs_jaxmarl
def test_equal_to_smax():
    """Each step of a battle beside others, again by SMAX itself for this battle alone."""
    import jax

    with make(2, 5) as env, make(2, 5, scale_state=False, reward_factor=10.0) as raw:
        game_env = env._programs.env
        alone = jax.jit(game_env.step_env)
        env.reset()
        raw.reset()
        assert env._battles.key.dtype == np.uint32
        ends = 0
        for t in range(LIMIT):
            before = jax.tree.map(lambda leaf: leaf[1], env._battles)
            assert int(before.game.state.step) == t
            actions = focus_fire(env)
            env.step(actions)
            raw.step(actions)
            given = {f"ally_{agent}": actions[1, agent] for agent in range(3)}
            key = jax.random.fold_in(before.key, t)
            obs, game, rewards, dones, _ = alone(key, before.game, given)
            available = game_env.get_avail_actions(game)
            for agent in range(3):
                np.testing.assert_allclose(env.obs[1, agent], obs[f"ally_{agent}"], atol=1e-5)
                assert np.array_equal(env.avail_actions[1, agent], available[f"ally_{agent}"])
                assert env.reward[1] == pytest.approx(float(rewards[f"ally_{agent}"]), abs=1e-5)
            assert raw.reward[1] == pytest.approx(10 * env.reward[1], abs=1e-4)
            state = np.array(obs["world_state"])
            np.testing.assert_allclose(raw.state[1], state, atol=1e-4)
            state[:60].reshape(6, 10)[:, 1:3] /= 32  # the places of six units on a field of 32 x 32
            np.testing.assert_allclose(env.state[1], state, atol=1e-4)
            assert env.state.max() <= 2.0
            ended = bool(env.terminated[1] or env.truncated[1])
            assert ended == bool(dones["__all__"])
            ends += ended
            if env.terminated.any() or env.truncated.any():
                break
        assert t > 5, "the battle was over before anything happened"


@needs_jaxmarl
def test_how_battles_end():
    """Wins, losses and cuts told from the health in the state, which has 10 entries per unit,
    health first.
    """
    seen = set()
    with make(2, 11) as env:
        for _ in range(6):
            env.reset()
            assert all(np.isnan(values).all() for values in env.info.values())
            returns, running, steps = np.zeros(2), np.ones(2, dtype=bool), 0
            while running.any():
                env.step(focus_fire(env), running)
                steps += 1
                returns[running] += env.reward[running]
                health = env.state[:, :60].reshape(2, 6, 10)[..., 0]
                dead = [(health[:, :3] == 0).sum(1), (health[:, 3:] == 0).sum(1)]
                for b in np.flatnonzero(running):
                    lost, won = dead[0][b] == 3, dead[1][b] == 3
                    assert env.info["dead_allies"][b] == dead[0][b]
                    assert env.info["dead_enemies"][b] == dead[1][b]
                    assert env.info["battle_won"][b] == (won and not lost)
                    assert env.terminated[b] == (won or lost)
                    assert env.truncated[b] == (steps == LIMIT and not (won or lost))
                    if env.terminated[b] or env.truncated[b]:
                        # all health of the enemies is worth 1, a victory 1
                        taken = 1 - health[b, 3:].mean()
                        assert returns[b] == pytest.approx(
                            taken + float(won and not lost), abs=1e-4
                        )
                        seen.add("won" if won and not lost else "lost" if lost else "cut")
                running &= ~(env.terminated | env.truncated)
        # nobody does anything: cut, or killed
        env.reset()
        stay = np.full((2, 3), 4)
        while not (env.terminated | env.truncated).any():
            env.step(stay)
        seen.add("cut" if env.truncated.any() else "lost")
    assert {"won", "lost"} <= seen


@needs_jaxmarl
def test_handing_over_copies_once():
    """On the CPU, numpy sees JAX's own memory; the contract's arrays are the only copy."""
    import jax

    with make(2, 1, device="cpu") as env:
        env.reset()
        leaf = env._battles.game.state.unit_positions
        assert np.shares_memory(np.asarray(leaf), np.asarray(leaf))
        assert {device.platform for device in leaf.devices()} == {"cpu"}
        assert leaf.devices() == {jax.local_devices(backend="cpu")[0]}
