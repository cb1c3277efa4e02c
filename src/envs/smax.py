"""SMAX (Rutherford et al. 2023, JaxMARL): a StarCraft-like game in JAX with scripted enemies,
natively batched.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from envs.ranges import NUMBER, SIZE, SWITCH
from envs.vector_env import EnvSpec, VectorEnv
from utils.errors import ConfigError, MissingPackage
from utils.ranges import check_ranges
from utils.registry import nearest

if TYPE_CHECKING:
    from types import ModuleType

    import jax

INSTALL = "pip install -r requirements-smax.txt"
ATTACK_MODES = ("closest", "random")
OBSERVATIONS = ("unit_list", "conic")
# Compiled programs, beside what Python and numba keep; JAX_COMPILATION_CACHE_DIR names another
# place.
CACHE = Path(__file__).parent / "__pycache__" / "smax"
PICTURE = 6.4  # inches, at 80 dots each


def load_smax() -> ModuleType:
    """The module `jaxmarl.environments.smax`.

    Raises:
        MissingPackage: jaxmarl is not installed or cannot be imported.
    """
    if importlib.util.find_spec("jaxmarl") is None:
        raise MissingPackage(f"smax needs the package jaxmarl: {INSTALL}")
    # On a GPU, JAX would take three quarters of its memory, which torch may want.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    logging.getLogger("jax").setLevel(
        logging.WARNING
    )  # else it tells of every kind of device that is not there
    try:
        with _quiet():
            smax = importlib.import_module("jaxmarl.environments.smax")
    except Exception as error:  # JAX and what is built on it do not always fit together
        reason = " ".join(str(error).split())
        raise MissingPackage(
            f"jaxmarl cannot be imported ({type(error).__name__}: {reason}): {INSTALL}"
        ) from error
    import jax

    # JAX gives its settings their names while it is imported.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
    return smax


@contextmanager
def _quiet() -> Iterator[None]:
    """jaxmarl prints which environments it has, and sets both streams to what they were when Python
    started.
    """
    streams = sys.stdout, sys.stderr, sys.__stdout__
    # Python's own stream counts as final and as a file: neither matters to what is printed here.
    sys.stdout = sys.__stdout__ = io.StringIO()  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__ = streams  # type: ignore[misc] # final, as above


class Battles(NamedTuple):
    """B running battles on JAX's device."""

    game: Any  # SMAX's own state, every leaf [B, ...]
    key: jax.Array  # uint32 [B, 2], that of the episode


class Shown(NamedTuple):
    """What the agents see, on JAX's device."""

    obs: jax.Array  # float32 [B, A, O]
    state: jax.Array  # float32 [B, S]
    avail_actions: jax.Array  # uint8 [B, A, U]


class Scored(NamedTuple):
    """What the last step brought, on JAX's device."""

    reward: jax.Array  # float32 [B]
    terminated: jax.Array  # bool [B]
    truncated: jax.Array  # bool [B]
    battle_won: jax.Array  # bool [B]
    dead_allies: jax.Array  # int32 [B]
    dead_enemies: jax.Array  # int32 [B]


@dataclass(frozen=True)
class Programs:
    """SMAX and what is compiled of it, once per number of environments.

    Args:
        env: its `HeuristicEnemySMAX`.
        begin: keys uint32 [B, 2] -> (Battles, Shown), new episodes.
        advance: (Battles, actions int32 [B, A], mask bool [B]) -> (Battles, Shown, Scored); outside
            of the mask the battles stay as they are and the rest means nothing.
        merge: (mask bool [B], Battles, Battles) -> the first where the mask says so, else the
            second.
    """

    env: Any
    begin: Callable[[Any], tuple[Battles, Shown]]
    advance: Callable[[Battles, Any, Any], tuple[Battles, Shown, Scored]]
    merge: Callable[[Any, Battles, Battles], Battles]


@cache
def make_programs(map_name: str, scale_state: bool, **options: Any) -> Programs:
    """The programs for a map, shared by all environments with the same options.

    Args:
        scale_state: positions in the state as shares of the field.
        options: of `HeuristicEnemySMAX`.

    Raises:
        ConfigError: an unknown map.
        MissingPackage: see `load_smax`.
    """
    smax = load_smax()
    import jax
    import jax.numpy as jnp

    try:
        scenario = smax.map_name_to_scenario(map_name)
    except KeyError:
        known = importlib.import_module("jaxmarl.environments.smax.smax_env").MAP_NAME_TO_SCENARIO
        raise ConfigError(
            f"smax: unknown map '{map_name}'; {nearest(str(map_name), tuple(known))}"
        ) from None
    env = smax.HeuristicEnemySMAX(scenario=scenario, **options)
    allies = env.num_allies
    units = jnp.ones((allies + env.num_enemies, len(env.own_features)))
    if scale_state:  # in a unit's entries, its place follows its health
        units = units.at[:, 1:3].divide(jnp.array([env.map_width, env.map_height]))
    scale = jnp.ones(env.state_size).at[: units.size].set(units.reshape(-1))

    def show(game: Any, obs: dict[str, Any]) -> Shown:
        avail = env.get_avail_actions(game)
        by_agent = [jnp.stack([values[agent] for agent in env.agents]) for values in (obs, avail)]
        return Shown(by_agent[0], obs["world_state"] * scale, by_agent[1])

    def begin(key: Any) -> tuple[Battles, Shown]:
        first, rest = jax.random.split(key)
        obs, game = env.reset(first)
        return Battles(game, rest), show(game, obs)

    def advance(battle: Battles, actions: Any) -> tuple[Battles, Shown, Scored]:
        key = jax.random.fold_in(battle.key, battle.game.state.step)
        given = dict(zip(env.agents, actions, strict=True))
        # not `step`, which would begin the next episode by itself
        obs, game, rewards, dones, _ = env.step_env(key, battle.game, given)
        alive = game.state.unit_alive
        lost, beaten = ~alive[:allies].any(), ~alive[allies:].any()
        scored = Scored(
            reward=rewards[env.agents[0]],  # of the team: the same for all
            terminated=lost | beaten,
            truncated=dones["__all__"] & ~(lost | beaten),
            battle_won=beaten & ~lost,
            dead_allies=(~alive[:allies]).sum(),
            dead_enemies=(~alive[allies:]).sum(),
        )
        return Battles(game, battle.key), show(game, obs), scored

    def merge(mask: Any, one: Battles, other: Battles) -> Battles:
        return jax.tree.map(
            lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), one, other
        )

    def advance_all(battles: Battles, actions: Any, mask: Any) -> tuple[Battles, Shown, Scored]:
        moved, shown, scored = jax.vmap(advance)(battles, actions)
        return merge(mask, moved, battles), shown, scored

    return Programs(env, jax.jit(jax.vmap(begin)), jax.jit(advance_all), jax.jit(merge))


class Smax(VectorEnv):
    """B battles of SMAX, its `HeuristicEnemySMAX`: jitted and vmapped; observations and, but for
    `scale_state`, state are its own.

    A battle ends when a side is dead, or is cut at `max_steps`. The reward is the team's: the share
    of the enemies' health that was taken in the step, and `won_battle_bonus`.

    Actions: 0 to 3 move (up, right, down, left), 4 stops (all that dead agents can do), 5 + e
    attacks enemy e, if it is in range.

    Every episode's course depends on a key that is drawn from the environment's own stream and on
    the actions. How many environments are computed at once may change the rounding of the last
    bits, as XLA compiles for each size anew.

    `info`: battle_won (1.0 only in the step that wins), dead_allies, dead_enemies.

    Args:
        n_envs: B.
        seed: environment b's stream depends on `seed` and b only.
        map_name: one of SMAX's scenarios, e.g. "2s3z" or "smacv2_10_units" (random units and
            places).
        see_enemy_actions: whether observations contain what visible enemies did last.
        walls_cause_death: whether units that touch the edge of the field die.
        attack_mode: whom an enemy attacks of those in its range: "closest" or "random".
        enemy_shoots: whether the enemies attack at all.
        won_battle_bonus: reward for a victory.
        world_steps_per_env_step: steps of the game, 1/16 s each, per step.
        observation_type: "unit_list" (an entry per unit) or "conic" (two units in each of 32
            directions).
        max_steps: the longest episode.
        scale_state: positions in the state from 0 to 1, as shares of the field, instead of SMAX's 0
            to 32; on those the values of mixing networks that are initialised as usual grow without
            bound.
        reward_factor: all rewards are multiplied by this, the bonus among them.
        device: where JAX computes: "cpu", "gpu" or "tpu"; None: as JAX chooses.

    Raises:
        ConfigError: an unknown map or device, a value out of range.
        MissingPackage: jaxmarl is not there.
    """

    ranges = {
        "see_enemy_actions": SWITCH,
        "walls_cause_death": SWITCH,
        "enemy_shoots": SWITCH,
        "won_battle_bonus": NUMBER,
        "world_steps_per_env_step": SIZE,
        "max_steps": SIZE,
        "scale_state": SWITCH,
        "reward_factor": NUMBER,
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        map_name: str = "3m",
        see_enemy_actions: bool = True,
        walls_cause_death: bool = True,
        attack_mode: str = "closest",
        enemy_shoots: bool = True,
        won_battle_bonus: float = 1.0,
        world_steps_per_env_step: int = 8,
        observation_type: str = "unit_list",
        max_steps: int = 100,
        scale_state: bool = True,
        reward_factor: float = 1.0,
        device: str | None = None,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        for name, choice, known in (
            ("attack_mode", attack_mode, ATTACK_MODES),
            ("observation_type", observation_type, OBSERVATIONS),
        ):
            if choice not in known:
                raise ConfigError(f"smax: unknown {name} '{choice}'; {nearest(str(choice), known)}")
        self._programs = make_programs(
            map_name,
            scale_state,
            see_enemy_actions=see_enemy_actions,
            walls_cause_death=walls_cause_death,
            attack_mode=attack_mode,
            enemy_shoots=enemy_shoots,
            won_battle_bonus=float(won_battle_bonus),
            world_steps_per_env_step=world_steps_per_env_step,
            observation_type=observation_type,
            max_steps=max_steps,
        )
        self._reward_factor = reward_factor
        self._device = _find_device(device)
        self._battles: Battles | None = None
        env = self._programs.env
        spec = EnvSpec(
            n_agents=env.num_allies,
            n_actions=env.num_ally_actions,
            obs_size=env.obs_size,
            state_size=env.state_size,
            episode_limit=max_steps,
            extra={"n_enemies": env.num_enemies},
        )
        super().__init__(
            n_envs, spec, seed, info_keys=("battle_won", "dead_allies", "dead_enemies")
        )

    def _reset(self, mask: np.ndarray) -> None:
        import jax

        keys = np.zeros((self.n_envs, 2), dtype=np.uint32)
        for b in np.flatnonzero(mask):
            keys[b] = self.rngs[b].integers(2**32, size=2, dtype=np.uint32)
        begun, shown = self._programs.begin(jax.device_put(keys, self._device))
        self._battles = (
            begun if self._battles is None else self._programs.merge(mask, begun, self._battles)
        )
        self._show(shown, mask)
        for values in self.info.values():
            values[mask] = np.nan

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        if not mask.any():
            return
        assert self._battles is not None
        self._battles, shown, scored = self._programs.advance(
            self._battles, actions.astype(np.int32), mask
        )
        self._show(shown, mask)
        for name, values in scored._asdict().items():
            array = self.info[name] if name in self.info else getattr(self, name)
            np.copyto(array, np.asarray(values), where=mask)
        self.reward[mask] *= self._reward_factor

    def _show(self, shown: Shown, mask: np.ndarray) -> None:
        everyone = bool(mask.all())
        for name, values in shown._asdict().items():
            array = getattr(self, name)
            where = True if everyone else mask.reshape(-1, *[1] * (array.ndim - 1))
            # on the CPU `asarray` is a view of JAX's own memory: this is the one copy, as the
            # arrays here stay the same
            np.copyto(array, np.asarray(values), where=where)

    def render(self, index: int = 0) -> np.ndarray:
        """SMAX's own picture of battle `index`, uint8 [H, W, 3].

        Raises:
            ValueError: no episode has begun there.
        """
        import jax
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if self._battles is None or not (self._running | self.terminated | self.truncated)[index]:
            raise ValueError(
                f"environment {index} has not begun an episode: there is nothing to draw"
            )
        env = self._programs.env
        game = jax.tree.map(lambda leaf: np.asarray(leaf[index]), self._battles.game.state)
        attacks = dict(zip(env.all_agents, game.prev_attack_actions.tolist(), strict=True))
        figure = Figure(figsize=(PICTURE, PICTURE), dpi=80)
        FigureCanvasAgg(figure)
        # it draws into the axes, and shows them there again as the picture that it returns
        picture = env.init_render(figure.add_subplot(), (None, game, attacks), 0, int(game.step))
        return np.array(picture.get_array(), dtype=np.uint8)[..., :3]

    def close(self) -> None:
        """Lets go of JAX's memory; may be called twice."""
        self._battles = None


def _find_device(name: str | None) -> Any:
    import jax

    try:
        return jax.local_devices(backend=name)[0]
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"smax: JAX has no device '{name}' ({reason}): set env_args.device to null or cpu"
        ) from None
