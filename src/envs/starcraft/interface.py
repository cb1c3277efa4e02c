"""SMAC's and SMACv2's actions, availability, observations, state, reward and end of episode on
arrays of units, B battles at once.

Samvelyan et al. 2019, sections 4 and 5, and Ellis et al. 2023, with the public environments'
options and oddities. Distances are between centres. The rules themselves stand in `smac`: compiled
functions that run over a range of battles each (`Workers`) and write into the arrays that they are
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.starcraft.battle import Battle, Workers
from envs.starcraft.facts import MapInfo
from envs.starcraft.options import Options, V2Options
from envs.starcraft.smac import observations, orders, rewards
from envs.starcraft.smac.rewards import DRAWN, LOST, RUNNING, TIMEOUT, WON
from envs.starcraft.smac.rules import MEDIVAC, UNKNOWN_ACTION, Views, make_rules, make_tables

__all__ = ["DRAWN", "LOST", "RUNNING", "TIMEOUT", "WON", "Interface", "Options", "V2Options"]


class Interface:
    """The rules of SMAC between a `Battle` and a `VectorEnv`'s arrays.

    An episode: `begin`, `observe`, then per step `give_orders`, the engine's step, `score`,
    `observe`.

    Args:
        info: the map.
        battle: of B battles with the map's numbers of units; unit types may differ from battle to
            battle.
        options: see `Options`; with `V2Options` the rules are SMACv2's.
        sight, shoot: see `smac.rules.make_tables`.
        threads: over battles.

    Attributes:
        n_actions, obs_size, state_size: U, O, S. With obs_timestep_number O is the length of the
            vector that comes, one more than SMAC reports. order (int8 [B, A]), target (int64 [B,
            A], unit index), target_x, target_y (float64 [B, A]): for the engine.
        executed: int64 [B, A], the actions behind the orders: the given ones, or the heuristic's.
        last_action: int64 [B, A], the given ones of the last step, -1 before the first.
        steps: int64 [B], of the running episode.
        won: bool [B]. outcome: int64 [B]. dead_agents, dead_enemies: int64 [B]. All after the last
            step.
        max_reward: float64 [B], what scales battle b's rewards; NaN until its first episode has
            begun.
    """

    def __init__(
        self,
        info: MapInfo,
        battle: Battle,
        options: Options,
        sight: np.ndarray | None = None,
        shoot: np.ndarray | None = None,
        threads: int = 1,
    ) -> None:
        if (battle.n_agents, battle.n_enemies) != (info.n_agents, info.n_enemies):
            raise ValueError(
                f"a battle of {battle.n_agents} against {battle.n_enemies} units is not map "
                f"{info.name}"
            )
        b, a, n = battle.n_envs, battle.n_agents, battle.n_units
        self.info, self.options, self.battle = info, options, battle
        self.n_agents, self.n_enemies = a, battle.n_enemies
        self._rules = make_rules(info, options)
        self._tables = make_tables(info, sight, shoot)
        self._units = battle.units
        self._workers = Workers(threads, b)
        self._describe()

        self.order = np.zeros((b, a), dtype=np.int8)
        self.target = np.zeros((b, a), dtype=np.int64)
        self.target_x = np.zeros((b, a))
        self.target_y = np.zeros((b, a))
        self.executed = np.zeros((b, a), dtype=np.int64)
        self.last_action = np.full((b, a), UNKNOWN_ACTION, dtype=np.int64)
        self.steps = np.zeros(b, dtype=np.int64)
        self.won = np.zeros(b, dtype=np.bool_)
        self.outcome = np.zeros(b, dtype=np.int64)
        self.dead_agents = np.zeros(b, dtype=np.int64)
        self.dead_enemies = np.zeros(b, dtype=np.int64)
        self.max_reward = np.full(b, np.nan)
        self._views = Views(
            look=np.zeros((b, a), dtype=np.int64),
            finder=np.full((b, battle.n_enemies), -1, dtype=np.int64),
            draw=np.zeros(b, dtype=np.uint64),
        )
        self._heuristic_target = np.full((b, a), -1, dtype=np.int64)
        self._points = np.zeros((b, n))  # health and shield after the last step
        self._counted_dead = np.zeros((b, n), dtype=np.bool_)

    def _describe(self) -> None:
        """Sizes, and names of what is in the state."""
        info, rules, a = self.info, self._rules, self.n_agents
        # a healer's targets are agents
        self.n_actions = rules.first_attack + (
            max(a, self.n_enemies) if info.heals else self.n_enemies
        )
        sizes = observations.part_sizes(info, rules, self.n_actions)
        self.move_feature_size, self.enemy_feature_size = sizes.move, sizes.enemy
        self.ally_feature_size, self.own_feature_size = sizes.ally, sizes.own
        self.obs_size = (
            sizes.move
            + self.n_enemies * sizes.enemy
            + (a - 1) * sizes.ally
            + sizes.own
            + int(rules.obs_timestep_number)
        )
        self.agent_attributes, self.enemy_attributes = observations.state_attributes(info, rules)
        self.state_size = (
            a * self.obs_size
            if rules.obs_instead_of_state
            else a * len(self.agent_attributes)
            + self.n_enemies * len(self.enemy_attributes)
            + a * self.n_actions * rules.state_last_action
            + int(rules.state_timestep_number)
        )

    def begin(self, mask: np.ndarray, rngs: Sequence[np.random.Generator] = ()) -> None:
        """Starts episodes in `mask` (bool [B]): the battles' units are those of the first
        observation.

        Args:
            rngs: B generators; drawn from only where what agents see is random (`prob_obs_enemy`
                below 1).
        """
        battle, a = self.battle, self.n_agents
        self._views.look[mask] = 0
        if self._rules.prob_obs_enemy < 1:
            self._views.finder[mask] = -1
            for b in np.flatnonzero(mask).tolist():
                self._views.draw[b] = rngs[b].integers(2**64, dtype=np.uint64)
        self.steps[mask] = 0
        self.last_action[mask] = UNKNOWN_ACTION
        self.won[mask] = False
        self.outcome[mask] = RUNNING
        self.dead_agents[mask] = 0
        self.dead_enemies[mask] = 0
        self._heuristic_target[mask] = -1
        self._points[mask] = battle.health[mask] + battle.shield[mask]
        self._counted_dead[mask] = ~battle.alive[mask]
        first = mask & np.isnan(self.max_reward)
        if first.any():
            whole = battle.health_max[first, a:].sum(axis=1) + battle.shield_max[first, a:].sum(
                axis=1
            )
            fixed = self.n_enemies * self.options.reward_death_value + self.options.reward_win
            self.max_reward[first] = whole + fixed

    def give_orders(self, actions: np.ndarray, mask: np.ndarray, avail: np.ndarray) -> None:
        """Turns actions into `order`, `target`, `target_x`, `target_y` and remembers them.

        With `heuristic_ai` the actions are only remembered, and each agent goes for its nearest
        enemy (medivac: hurt agent) until that is dead (healed).

        Args:
            actions: int64 [B, A], available ones.
            mask: bool [B].
            avail: uint8 [B, A, U], of the present state.
        """
        told = self.order, self.target, self.target_x, self.target_y
        if self.options.heuristic_ai:
            self._workers.run(
                orders.heuristic, mask, self._rules, self._units, avail, self._heuristic_target,
                self.executed, *told,
            )  # fmt: skip
            self.last_action[mask] = actions[mask]
        else:
            self._workers.run(
                orders.give_orders, mask, self._rules, self._tables, self._units, self._views,
                actions, self.executed, self.last_action, *told,
            )  # fmt: skip

    def score(
        self, mask: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        """Counts the step that the engine has just made in `mask` (bool [B]).

        Writes reward (float32 [B]), terminated, truncated (bool [B]) and the attributes of the last
        step. An episode cut by its limit is `truncated` with `continuing_episode`, else
        `terminated`, as in SMAC.
        """
        self._workers.run(
            rewards.score, mask, self._rules, self._units, self._points, self._counted_dead,
            self.max_reward, self.steps, self.outcome, self.won, self.dead_agents,
            self.dead_enemies, reward, terminated, truncated,
        )  # fmt: skip

    def observe(
        self, mask: np.ndarray, obs: np.ndarray, state: np.ndarray, avail: np.ndarray
    ) -> None:
        """Writes obs (float32 [B, A, O]), state (float32 [B, S]) and avail (uint8 [B, A, U]) of
        `mask` (bool [B]).
        """
        self._workers.run(
            observations.observe, mask, self._rules, self._tables, self._units, self._views,
            self.steps, self.last_action, obs, state, avail,
        )  # fmt: skip

    def env_info(self) -> dict[str, Any]:
        """SMAC's own entries of `get_env_info`."""
        return {
            "agent_features": list(self.agent_attributes),
            "enemy_features": list(self.enemy_attributes),
            "obs_entities": self.obs_entities(),
        }

    def obs_entities(self) -> dict[str, int | None]:
        """Where an observation has what: the entries of the enemies, then those of the other
        agents, in the order of their numbers; all others are of the agent itself. Action
        `first_target` + k of an agent is aimed at enemy k, that of a healer at agent k.

        `healer` is the entry that is 1 for a healer, None where there is none on the map.
        """
        enemies, allies = self.n_enemies, self.n_agents - 1
        first_ally = self.move_feature_size + enemies * self.enemy_feature_size
        own = first_ally + allies * self.ally_feature_size
        healer = None
        if self.info.heals:
            # The bits of the types are the last of what an agent knows of itself, but for the time.
            bits = own + self.own_feature_size - int(self._rules.obs_timestep_number)
            bits -= self.info.unit_type_bits
            healer = bits + int(self._tables.agent_bit[MEDIVAC])
        return {
            "n_enemies": enemies,
            "first_enemy": self.move_feature_size,
            "enemy_size": self.enemy_feature_size,
            "n_allies": allies,
            "first_ally": first_ally,
            "ally_size": self.ally_feature_size,
            "first_target": self._rules.first_attack,
            "healer": healer,
        }

    def visibility(self) -> np.ndarray:
        """What SMAC's `get_visibility_matrix` tells: bool [B, A, N], agents first; a unit does not
        see itself.

        SMACv2's cone and `prob_obs_enemy` are not counted.
        """
        u, a = self.battle, self.n_agents
        dx = u.x[:, None, :] - u.x[:, :a, None]
        dy = u.y[:, None, :] - u.y[:, :a, None]
        sight = self._tables.sight[u.type[:, :a, None]]
        seen = (np.sqrt(dx * dx + dy * dy) < sight) & u.alive[:, None, :] & u.alive[:, :a, None]
        seen[:, np.arange(a), np.arange(a)] = False
        return seen

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        self._workers.close()
