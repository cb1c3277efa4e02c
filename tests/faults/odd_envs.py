"""An environment that misbehaves in one of many ways, at a certain step of every episode."""

import sys

import numpy as np
from env_fakes import CountingEnv

AT = 3  # the step of an episode in which it happens


def _five_values(reward, ended, info):
    return None, reward, ended, False, info


STEPS = {
    "five values": _five_values,
    "four values": lambda reward, ended, info: (None, reward, ended, info),
    "two values": lambda reward, ended, info: (reward, ended),
    "no values": lambda reward, ended, info: None,
    "a number alone": lambda reward, ended, info: reward,
    "terminated as text": lambda reward, ended, info: (reward, "False", info),
    "terminated None": lambda reward, ended, info: (reward, None, info),
    "terminated per agent": lambda reward, ended, info: (reward, [ended] * 3, info),
    "terminated 7": lambda reward, ended, info: (reward, 7, info),
    "reward as text": lambda reward, ended, info: ("1.5", ended, info),
    "reward None": lambda reward, ended, info: (None, ended, info),
    "reward per agent": lambda reward, ended, info: ([reward] * 3, ended, info),
    "reward ragged": lambda reward, ended, info: ([[1.0], [1.0, 2.0]], ended, info),
    "reward dict": lambda reward, ended, info: ({"team": 1.0}, ended, info),
    "reward nan": lambda reward, ended, info: (float("nan"), ended, info),
    "reward infinite": lambda reward, ended, info: (float("inf"), ended, info),
    "info None": lambda reward, ended, info: (reward, ended, None),
    "info list": lambda reward, ended, info: (reward, ended, [1]),
    "info crowded": lambda reward, ended, info: (reward, ended, {str(i): i for i in range(999)}),
    "step raises": lambda reward, ended, info: {}["missing"],
    "step raises lines": lambda reward, ended, info: int("a\nb"),
    "step exits": lambda reward, ended, info: sys.exit(0),
    "step is not there": lambda reward, ended, info: NotImplemented.nothing,
}
OBS = {
    "obs None": lambda rows: None,
    "obs text": lambda rows: "abcd",
    "obs of one agent larger": lambda rows: [rows[0], np.zeros(9), rows[2]],
    "obs of one agent text": lambda rows: [rows[0], ["a"] * 4, rows[2]],
    "obs of one agent None": lambda rows: [rows[0], None, rows[2]],
    "obs of all larger": lambda rows: [np.zeros(9)] * 3,
    "obs of two agents": lambda rows: rows[:2],
    "obs raises": lambda rows: rows[7],
}
STATE = {
    "state None": lambda state: None,
    "state larger": lambda state: np.zeros(9),
    "state text": lambda state: "abc",
    "state ragged": lambda state: [[1], [1, 2]],
    "state raises": lambda state: 1 // 0,
}
AVAIL = {
    "no action": lambda rows: [rows[0], [0] * 4, rows[2]],
    "avail -1": lambda rows: [rows[0], [1, -1, 0, 0], rows[2]],
    "avail 2": lambda rows: [rows[0], [2, 1, 1, 1], rows[2]],
    "avail nan": lambda rows: np.array([rows[0], [1, np.nan, 0, 0], rows[2]]),
    "avail half": lambda rows: np.array([rows[0], [1, 0.5, 0, 0], rows[2]]),
    "avail text": lambda rows: [rows[0], ["1"] * 4, rows[2]],
    "avail shorter": lambda rows: [rows[0], [1], rows[2]],
    "avail of two agents": lambda rows: rows[:2],
    "avail None": lambda rows: None,
    "avail raises": lambda rows: rows[9],
}
INFO = {
    "env_info None": lambda info: None,
    "env_info list": lambda info: list(info),
    "env_info lacks a key": lambda info: {k: v for k, v in info.items() if k != "n_actions"},
    "no agents": lambda info: {**info, "n_agents": 0},
    "n_agents None": lambda info: {**info, "n_agents": None},
    "n_agents text": lambda info: {**info, "n_agents": "three"},
    "n_agents True": lambda info: {**info, "n_agents": True},
    "n_agents contradicts": lambda info: {**info, "n_agents": 5},
    "half a limit": lambda info: {**info, "episode_limit": 2.5},
    "no limit": lambda info: {**info, "episode_limit": None},
    "negative limit": lambda info: {**info, "episode_limit": -3},
    "limit nan": lambda info: {**info, "episode_limit": float("nan")},
    "obs_shape contradicts": lambda info: {**info, "obs_shape": 7},
    "obs_shape text": lambda info: {**info, "obs_shape": "7"},
    "obs_shape negative": lambda info: {**info, "obs_shape": (-1, 4)},
    "state_shape contradicts": lambda info: {**info, "state_shape": (2, 2)},
    "n_actions contradicts": lambda info: {**info, "n_actions": 9},
    "obs_sizes contradict": lambda info: {**info, "obs_sizes": (4, 4)},
    "obs_sizes a number": lambda info: {**info, "obs_sizes": 4},
    "action_sizes too large": lambda info: {**info, "action_sizes": (4, 4, 9)},
    "rewards individual": lambda info: {**info, "individual_rewards": True},
    "env_info raises": lambda info: info["colour"],
}
ALWAYS = ("init raises", "init exits", "reset raises", "reset exits", "reset is not there")
FAULTS = [*STEPS, *OBS, *STATE, *AVAIL, *INFO, *ALWAYS]


class OddEnv(CountingEnv):
    """Args: fault: one of `FAULTS`, or "" for none. late: not in the first episode."""

    def __init__(self, seed=None, fault="", late=False):
        super().__init__(seed=seed)
        self.fault, self.late = fault, late
        self._fail("init")

    def _due(self):
        return self.t == AT and not (self.late and self.resets < 2)

    def _fail(self, where):
        if self.fault == f"{where} raises":
            raise KeyError("a thing that\nis not there")
        if self.fault == f"{where} exits":
            sys.exit(0)
        if self.fault == f"{where} is not there":
            raise NotImplementedError

    def reset(self):
        self._fail("reset")
        return super().reset()

    def step(self, actions):
        given = super().step(actions)
        return STEPS[self.fault](*given) if self.fault in STEPS and self._due() else given

    def get_obs(self):
        rows = super().get_obs()
        return OBS[self.fault](rows) if self.fault in OBS and self._due() else rows

    def get_state(self):
        state = super().get_state()
        return STATE[self.fault](state) if self.fault in STATE and self._due() else state

    def get_avail_actions(self):
        rows = super().get_avail_actions()
        return AVAIL[self.fault](rows) if self.fault in AVAIL and self._due() else rows

    def get_env_info(self):
        info = super().get_env_info()
        return INFO[self.fault](info) if self.fault in INFO else info
