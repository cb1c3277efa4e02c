"""A matrix game that a test holds back, so that runs of it are interrupted in their middle."""

import time
from pathlib import Path

from envs.matrix_game import MatrixGame

HELD_FROM = 1100  # training steps
PAUSE = 2.0  # [s]


class HeldGame(MatrixGame):
    """Its episodes take their time late in the training while there is a file; what a run logs does
    not depend on it.

    Args:
        hold: path of the file; None: there is none.
    """

    def __init__(self, n_envs, seed, hold=None, **rest):
        super().__init__(n_envs, seed, **rest)
        self.hold = hold

    def set_t_env(self, t_env):
        super().set_t_env(t_env)
        if t_env >= HELD_FROM and self.hold is not None and Path(self.hold).exists():
            time.sleep(PAUSE)
