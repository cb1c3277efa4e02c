"""Environments written against PyMARL's interface, for the tests of the backends. Everything they
do is predictable.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np

from envs.multiagentenv import MultiAgentEnv
from utils.errors import ConfigError


class CountingEnv(MultiAgentEnv):
    """Deterministic but for one random number per step, drawn from its seed.

    obs of agent a: [t, a, action of a in the last step, last draw]; state: [t, sum of actions, last
    draw]; an action is available if it has the parity of t + a (action 0 always is). The reward is
    sum(actions) + t. The episode ends by itself after `length` steps, or is cut at `limit`.

    Args:
        length: steps until the episode terminates.
        limit: the episode limit.
        tell_limit: ends the episode at the limit itself and says so through info["episode_limit"],
            as SMAC does; otherwise it just goes on.
        info_late: gives an info figure from its second step on only.
        chance: probability of terminating after any step.
    """

    def __init__(
        self,
        seed=None,
        length=100,
        limit=5,
        n_agents=3,
        n_actions=4,
        tell_limit=True,
        info_late=False,
        chance=0.0,
    ):
        self.seed_given = seed
        self.n_agents = n_agents
        self.n_actions = n_actions
        self.episode_limit = limit
        self.length = length
        self.tell_limit = tell_limit
        self.info_late = info_late
        self.chance = chance
        self.rng = np.random.default_rng(seed)
        self.t = None
        self.resets = 0

    def reset(self):
        self.t = 0
        self.resets += 1
        self.last = [0] * self.n_agents
        self.draw = self.rng.random()
        return self.get_obs(), self.get_state()

    def step(self, actions):
        self.last = [int(a) for a in actions]
        self.t += 1
        self.draw = self.rng.random()
        reward = float(sum(self.last) + self.t)
        info = {"won": self.t == self.length, "name": "text is left out", "draw": self.draw}
        if self.info_late and self.t >= 2:
            info["late"] = np.float32(self.t)
        terminated = self.t >= self.length or self.draw < self.chance
        if not terminated and self.tell_limit and self.t >= self.episode_limit:
            terminated = True
            info["episode_limit"] = True
        return reward, terminated, info

    def get_obs(self):
        return [
            np.array([self.t, a, self.last[a], self.draw], dtype=np.float32)
            for a in range(self.n_agents)
        ]

    def get_obs_size(self):
        return 4

    def get_state(self):
        return np.array([self.t, sum(self.last), self.draw])

    def get_state_size(self):
        return 3

    def get_avail_agent_actions(self, agent_id):
        return [int(u == 0 or (u + self.t + agent_id) % 2 == 0) for u in range(self.n_actions)]

    def get_total_actions(self):
        return self.n_actions

    def seed(self):
        """As in PyMARL: tells the seed."""
        return self.seed_given

    def get_stats(self):
        return {"resets": self.resets}

    def render(self):
        return np.full((2, 3, 3), self.t, dtype=np.uint8)

    def get_env_info(self):
        return {**super().get_env_info(), "unit_dim": 7}


class ReseedableEnv(CountingEnv):
    """Takes a seed through `seed` and can hand out its random state."""

    def seed(self, seed):
        self.rng = np.random.default_rng(seed)

    def get_rng_state(self):
        return self.rng.bit_generator.state

    def set_rng_state(self, state):
        self.rng.bit_generator.state = state


class ShiftingEnv(CountingEnv):
    """Pays `t_env` on top, as last told before the episode."""

    t_env = 0

    def set_t_env(self, t_env):
        self.told = t_env

    def reset(self):
        self.t_env = getattr(self, "told", 0)
        return super().reset()

    def step(self, actions):
        reward, terminated, info = super().step(actions)
        return reward + self.t_env, terminated, info


class UnevenEnv(CountingEnv):
    """Individual observation sizes 2, 4, 3, action sizes 4, 2, 3, individual rewards (each agent's
    own action).
    """

    def get_obs(self):
        return [x[:n] + 1 for x, n in zip(super().get_obs(), (2, 4, 3), strict=True)]

    def get_avail_actions(self):
        return [[1] * n for n in (4, 2, 3)]

    def step(self, actions):
        _, terminated, info = super().step(actions)
        return list(self.last), terminated, info

    def get_env_info(self):
        sizes = {"obs_sizes": (2, 4, 3), "action_sizes": (4, 2, 3)}
        return {**super().get_env_info(), **sizes, "individual_rewards": True}


class PaddedUnevenEnv(UnevenEnv):
    """The same, but pads by itself (and badly: the padding is not zero)."""

    def get_obs(self):
        return [np.concatenate([x, np.full(4 - len(x), 9.0)]) for x in super().get_obs()]

    def get_avail_actions(self):
        return [[1] * 4 for _ in range(3)]


class EchoEnv(MultiAgentEnv):
    """Continuous actions of 1 and 3 entries. Obs of agent a: [t, its last action]; its reward: the
    sum of the entries.

    The state is both actions, padding included; info tells whether they came as float32 [2, 3].
    """

    n_agents, episode_limit = 2, 4
    sizes = (1, 3)

    def __init__(self, seed=None):
        self.reset()

    def reset(self):
        self.t = 0
        self.last = np.zeros((2, 3), dtype=np.float32)

    def step(self, actions):
        self.t += 1
        self.last = actions.copy()
        well_formed = (
            isinstance(actions, np.ndarray)
            and actions.dtype == np.float32
            and actions.shape == (2, 3)
        )
        reward = [own[:size].sum() for own, size in zip(actions, self.sizes, strict=True)]
        return reward, False, {"well_formed": well_formed}

    def get_obs_agent(self, agent_id):
        return np.append(self.t, self.last[agent_id, : self.sizes[agent_id]]).astype(np.float32)

    def get_obs_size(self):
        return 4

    def get_state(self):
        return self.last.reshape(-1)

    def get_state_size(self):
        return 6

    def get_avail_agent_actions(self, agent_id):
        return [1] * self.sizes[agent_id]

    def get_total_actions(self):
        return 3

    def get_env_info(self):
        sizes = {"obs_sizes": (2, 4), "action_sizes": self.sizes}
        return {
            **super().get_env_info(),
            **sizes,
            "individual_rewards": True,
            "continuous_actions": True,
        }


class BadRewardEnv(CountingEnv):
    """Gives individual rewards without having said so."""

    def step(self, actions):
        _, terminated, info = super().step(actions)
        return list(self.last), terminated, info


class TroubleEnv(ReseedableEnv):
    """Gets into trouble while the file `flag` exists, once per file: it is removed by whoever
    stumbles first.

    Args:
        flag: path; empty for never.
        kind: what happens then: "raise", "refuse", "exit", "kill", "hang", "stop" (ignores SIGTERM
            too), "env_error".
        where: "step" (the second of an episode), "reset", "init" or "stats".
        keep: leave the file, so that it happens every time.
        only_seed: nothing happens to environments with other seeds.
    """

    def __init__(
        self, seed=None, flag="", kind="raise", where="step", keep=False, only_seed=None, **kwargs
    ):
        super().__init__(seed=seed, **kwargs)
        self.flag, self.kind, self.where, self.keep = flag, kind, where, keep
        self.armed = bool(flag) and only_seed in (None, seed)
        self._stumble("init")

    def _stumble(self, where):
        """True if the environment shall report env_error."""
        if not self.armed or where != self.where or not os.path.exists(self.flag):
            return False
        if not self.keep:
            try:
                os.remove(self.flag)
            except FileNotFoundError:  # another process was faster
                return False
        if self.kind == "raise":
            raise ValueError("the dice fell off the table")
        if self.kind == "refuse":
            raise ConfigError("map 'nowhere' does not exist")
        if self.kind == "exit":
            os._exit(7)
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "stop":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.kind in ("hang", "stop"):
            time.sleep(1000)
        return True

    def reset(self):
        self._stumble("reset")
        return super().reset()

    def step(self, actions):
        if self.t == 1 and self._stumble("step"):
            return 0.0, True, {"env_error": True}
        return super().step(actions)

    def get_stats(self):
        self._stumble("stats")
        return super().get_stats()


class PidEnv(CountingEnv):
    """Tells the process ids of itself and of a game that it has started, through its state."""

    def __init__(self, seed=None, game=False, slow_step=0.0, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.game = None
        self.slow_step = slow_step
        if game:
            self.game = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])

    def step(self, actions):
        time.sleep(self.slow_step)
        return super().step(actions)

    def get_stats(self):
        return {"pid": os.getpid(), "game": self.game.pid if self.game else 0}


class PlainEnv(MultiAgentEnv):
    """Does nothing, in the shapes of SMAC's 6h_vs_8z, to measure what the backends cost."""

    def __init__(self, seed=None, n_agents=6, n_actions=14, obs=78, state=140, limit=150):
        self.n_agents, self.n_actions, self.episode_limit = n_agents, n_actions, limit
        self.obs = [np.zeros(obs, dtype=np.float32) for _ in range(n_agents)]
        self.state = np.zeros(state, dtype=np.float32)
        self.avail = [[1] * n_actions for _ in range(n_agents)]
        self.t = 0

    def reset(self):
        self.t = 0

    def step(self, actions):
        self.t += 1
        done = self.t == self.episode_limit
        return 1.0, done, {"battle_won": False, "dead_allies": 0, "dead_enemies": 0}

    def get_obs(self):
        return self.obs

    def get_obs_size(self):
        return len(self.obs[0])

    def get_state(self):
        return self.state

    def get_state_size(self):
        return len(self.state)

    def get_avail_actions(self):
        return self.avail

    def get_total_actions(self):
        return self.n_actions
