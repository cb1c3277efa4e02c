"""A matrix game that takes its time, so that a test can interrupt runs of it."""

import os
import time

from envs.matrix_game import MatrixGame

# What a run logs does not depend on it.
PAUSE = float(os.environ.get("SLOW_GAME_PAUSE", "0.04"))  # [s]


class SlowGame(MatrixGame):
    """A pause in every round."""

    def step(self, actions, mask=None):
        time.sleep(PAUSE)
        super().step(actions, mask)
