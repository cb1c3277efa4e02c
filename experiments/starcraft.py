"""Learning curves on simulated StarCraft II maps.

`python -m experiments.starcraft` trains QMIX, OW-QMIX and S2Q on 3m, 2s3z and 5m_vs_6m and writes
the test win rates (`curves.png`, `final.md`). S2Q takes the paper's settings of a map where its
table has them. An interrupted experiment goes on from the runs' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments import ROOT
from experiments.common import Job, carry_out, command, parser_of
from utils.config import list_configs

RESULTS = ROOT / "results" / "starcraft"
MAPS = ("3m", "2s3z", "5m_vs_6m")
METHODS = {"QMIX": "qmix", "OW-QMIX": "ow_qmix", "S2Q": "s2q"}
SETTINGS = {
    "runner": "vector",
    "batch_size_run": 8,
    "test_interval": 10000,
    "test_nepisode": 32,
    "log_interval": 50000,
    "use_cuda": False,
}


def jobs_of(method: str, map_name: str, steps: int, seeds: Sequence[int]) -> list[Job]:
    """The runs of one curve."""
    own = {"env_args.map_name": map_name, "t_max": steps}
    if method == "S2Q" and map_name in list_configs("scenarios"):
        own["scenario"] = map_name
    return [Job(METHODS[method], "sc2sim", {**SETTINGS, **own, "seed": seed}) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, RESULTS, seeds=3)
    parser.add_argument("--maps", nargs="+", default=MAPS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=500000, help="environment steps of a run")
    options = parser.parse_args(argv)
    seeds = range(1, options.seeds + 1)
    cells = {
        name: {method: jobs_of(method, name, options.steps, seeds) for method in options.methods}
        for name in options.maps
    }
    carry_out(cells, options, "test_battle_won_mean", "Test win rate")


if __name__ == "__main__":
    command(main)
