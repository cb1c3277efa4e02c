"""DAC's ablations (its appendix D.4) on predator-prey: window, number of contexts, weight of L_KL,
exploration.

`python -m experiments.dac_ablations` trains every variant at a budget that is a fraction of the
paper's and writes one table (`final.md`) and the learning curves. An interrupted experiment goes on
from the runs' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments import ROOT
from experiments.common import Job, carry_out, command, parser_of
from experiments.dac_predator_prey import SETTINGS

RESULTS = ROOT / "results" / "dac_ablations"
REDUCED = {
    "scenario": "predator_prey",
    "t_max": 1000000,
    "epsilon_anneal_time": 500000,
    "test_interval": 25000,
}
# The scenario's own values, written out: a run of another variant must not pass for one with these.
DEFAULTS = {"dac_k": 10, "dac_m": 10, "dac_beta": 0.001}
# panel -> label of a curve -> (algorithm, what it changes)
VARIANTS = {
    "window": {f"k = {k}": ("dac", {"dac_k": k}) for k in (5, 10, 15, 20)},
    "contexts": {f"m = {m}": ("dac", {"dac_m": m}) for m in (5, 10, 15, 20)},
    "weight of L_KL": {
        f"beta = {beta:g}": ("dac", {"dac_beta": beta}) for beta in (0.0, 0.001, 0.01, 0.1)
    },
    "exploration": {"random contexts": ("dac", {}), "always phi": ("dac_phi", {})},
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, RESULTS, seeds=2)
    # With a penalty DAC is near 0 after so many steps (docs/dac.md): a comparison needs something
    # to compare.
    parser.add_argument(
        "--penalty", type=float, default=0.0, help="for hunting alone; the paper: 0 to 1"
    )
    options = parser.parse_args(argv)
    reduced = {**SETTINGS, **REDUCED, **DEFAULTS, "env_args.penalty": options.penalty}
    cells = {
        panel: {
            label: [
                Job(algorithm, "predator_prey", {**reduced, **own, "seed": seed})
                for seed in range(1, options.seeds + 1)
            ]
            for label, (algorithm, own) in variants.items()
        }
        for panel, variants in VARIANTS.items()
    }
    carry_out(
        cells,
        options,
        "test_return_mean",
        "Test return",
        options.results / f"penalty_{options.penalty:g}",
    )


if __name__ == "__main__":
    command(main)
