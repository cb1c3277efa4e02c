"""Result folders as runs leave them, for tests of what reads them."""

import json

import numpy as np


def write_run(folder, lines, config=None, status="COMPLETED", timing=()):
    """A run directory as the laboratory writes it; `lines` are (t, key, value)."""
    folder.mkdir(parents=True)
    config = {
        "name": "qmix",
        "seed": 1,
        "env": "sc2",
        "env_args": {"map_name": "3m"},
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"status": status}))
    for name, content in (("metrics", lines), ("timing", timing)):
        text = "".join(
            json.dumps({"t": t, "key": key, "value": value}) + "\n" for t, key, value in content
        )
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def learning_curve(points, final, seed, interval=1000):
    """Lines of a run that learns to win `final` of its test episodes, with 8 evaluation episodes
    each.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for k in range(points):
        t = k * interval + int(rng.integers(0, 50))
        wins = (rng.random(8) < final * k / points).astype(float)
        returns = 20 * wins + rng.normal(2, 1, 8)
        lines += [
            (t, "test_return_mean", float(returns.mean())),
            (t, "test_battle_won_mean", float(wins.mean())),
        ]
        lines += [(t, "test_returns", returns.tolist()), (t, "test_wins", wins.tolist())]
    return lines
