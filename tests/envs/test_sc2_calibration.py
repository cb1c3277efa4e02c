"""The calibration's own numbers: what `play` counts, and a few win rates that the table in the docs
shows.
"""

import numpy as np
import pytest
from experiments import starcraft_calibration as calibration

from envs.starcraft.facts import map_names


def test_every_published_map_is_played():
    assert set(calibration.PUBLISHED) < set(map_names())


def test_play_counts_whole_battles(monkeypatch):
    """Two battles that end after 2 and 3 steps, the second one won; each step pays 1."""

    class Env:
        reward = np.ones(2, dtype=np.float32)
        avail_actions = np.ones((2, 1, 2), dtype=np.uint8)

        def __init__(self):
            self.t = 0
            self.terminated, self.truncated = np.zeros(2, dtype=bool), np.zeros(2, dtype=bool)
            self.failed = np.zeros(2, dtype=bool)
            self.info = {"battle_won": np.zeros(2)}

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def reset(self):
            pass

        def step(self, actions, mask):
            assert actions.shape == (2, 1)
            assert mask.tolist() == [self.t < 2, True]
            self.t += 1
            self.terminated = np.array([self.t >= 2, self.t >= 3])
            self.info["battle_won"][1] = self.t == 3

    monkeypatch.setattr(calibration, "make_vector_env", lambda *args: Env())
    assert calibration.play("3m", 2, heuristic=True) == calibration.Played(
        wins=0.5, returns=2.5, length=2.5
    )


@pytest.mark.parametrize(
    ("name", "low", "high"), [("3m", 0.7, 1.0), ("2s3z", 0.75, 1.0), ("5m_vs_6m", 0.0, 0.1)]
)
def test_the_heuristic_wins_where_it_does_in_the_docs(name, low, high):
    played = calibration.play(name, 100, heuristic=True)
    assert low <= played.wins <= high
    assert calibration.play(name, 50, heuristic=False).wins <= 0.05


def test_table(monkeypatch):
    monkeypatch.setattr(
        calibration, "play", lambda name, battles, heuristic: calibration.Played(0.25, 3.0, 20.4)
    )
    row = calibration.table(["2s3z"], 4).splitlines()[2]
    assert row == "| 2s3z | 25.0 | 90 | 3.0 | 20 | 25.0 | 3.00 | 20 |"
