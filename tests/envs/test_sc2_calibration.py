"""The calibration's own numbers: what `play` counts, and a few win rates that the table in the docs
shows.
"""

from pathlib import Path

import numpy as np
import pytest
from experiments import starcraft_calibration as calibration

from analysis.runs import Run, Series
from envs.starcraft.facts import map_names
from utils.errors import UserError


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
    row = calibration.table(calibration.play_all(["2s3z"], 4)).splitlines()[2]
    assert row == "| 2s3z | 25.0 | 90 | 3.0 | 20 | 25.0 | 3.00 | 20 |"


def test_kept_figures_are_of_every_map():
    assert set(calibration.kept_plays()) == set(map_names())
    figures = calibration.published()
    rates = [
        rate
        for entry in figures["tables"].values()
        for row in entry["win_rates"].values()
        for rate in row.values()
    ]
    assert all(0 <= rate <= 100 for rate in rates)
    assert len(figures["smacv2"]["win_rates"]) == 15
    assert all(set(one["win_rates"]) <= set(map_names()) for one in figures["tables"].values())


def run(name, task, opponents, t, values):
    config = {
        **{"name": name, "seed": 1, "env": task[0]},
        "env_args": {"map_name": task[1], "opponents": opponents},
    }
    series = Series(np.array(t), np.array(values, dtype=float))
    return Run(Path("somewhere"), config, "COMPLETED", {calibration.METRIC: series})


def test_ours_are_the_last_evaluations_before_the_mark():
    t = [k * 100_000 for k in range(21)]
    learned = calibration.Learned(
        [
            run("qmix", ("sc2sim", "MMM2"), "attack_move", t, [k / 100 for k in range(21)]),
            run("qmix", ("sc2sim", "MMM2"), "attack_move", t, [k / 50 for k in range(21)]),
            run("qmix", ("sc2sim", "MMM2"), "attack_move", t[:9], [1.0] * 9),
            run("qmix", ("sc2sim", "8m"), "mixture", t, [0.5] * 21),
            run("qmix", ("sc2", "25m"), "attack_move", t, [0.5] * 21),
        ]
    )
    two = learned.find("QMIX", "MMM2", 2_000_000)
    assert (two.seeds, two.steps) == (pytest.approx([18, 36]), 2_000_000)
    # at 1 million the short run has ended before, and does not count beside the longer ones
    one = learned.find("QMIX", "MMM2", 1_000_000, exact=True)
    assert (one.seeds, one.steps) == (pytest.approx([8, 16]), 1_000_000)
    assert learned.find("QMIX", "MMM2", 10_000_000, exact=True) is None
    assert learned.find("QMIX", "MMM2", 10_000_000).steps == 2_000_000
    assert learned.find("VDN", "MMM2", None) is None
    assert learned.find("QMIX", "25m", None) is None, "the game is not the simulator"
    assert learned.find("QMIX", "8m", 2_000_000, scripts=True).seeds == [50]
    assert learned.find("QMIX", "8m", 2_000_000).seeds == [98, 100, 91], "as the docs have it"


def test_the_rank_correlation():
    # ranks 1 2 3 4 5 against 2 1 3 4 5: 1 - 6 * 2 / (5 * 24)
    pairs = [(0.0, 20.0), (10.0, 5.0), (20.0, 60.0), (90.0, 70.0), (95.0, 71.0)]
    assert calibration.rank_correlation(pairs) == pytest.approx(0.9)
    assert np.isnan(calibration.rank_correlation(pairs[:4]))
    assert np.isnan(calibration.rank_correlation([(0.0, float(k)) for k in range(5)]))


def test_the_page_keeps_its_prose(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"# Prose\n{calibration.BEGIN}\nold\n{calibration.END}\nthe end\n")
    monkeypatch.setattr(calibration, "PAGE", page)
    arguments = ["--no-play", "--results", str(tmp_path)]
    monkeypatch.setattr(calibration, "ROOT", tmp_path)
    calibration.main([*arguments, "--page"])
    text = page.read_text()
    assert text.startswith("# Prose\n")
    assert text.endswith("\nthe end\n")
    assert "\nold\n" not in text
    assert "| 2s3z | 90 | 90.5 |" in text
    assert calibration.NOT_RUN in text
    page.write_text("nothing")
    with pytest.raises(UserError, match="lacks the lines"):
        calibration.put_into(page, "")
