"""A matrix game that takes its time, so that a test can interrupt runs of it."""

import time

from envs.matrix_game import MatrixGame


class SlowGame(MatrixGame):
    """10 ms a round."""

    def step(self, actions, mask=None):
        time.sleep(0.01)
        super().step(actions, mask)
