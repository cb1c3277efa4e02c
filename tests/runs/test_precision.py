"""`precision: bfloat16` in whole runs of every learner family: close to float32, the same every
time, resumed bit for bit, refused where the machine cannot.
"""

import pytest
import torch
from device_runs import COMMON, EPISODES, RUNS
from run_fixtures import assert_goes_on, finish, start_run

from learners import base, parts
from modules.kernels import linear as kernels
from utils.errors import ConfigError

needs_kernel = pytest.mark.skipif(
    not kernels.takes_bfloat16(), reason="this processor has no AVX512_BF16, or no compiler"
)
# Of every family one; widths are those of the configurations, where roundings average out.
FAMILIES = [
    *("qmix", "qplex", "s2q", "dac", "i2q", "masia"),
    *("maac", "mamt", "maddpg", "mappo", "mamt_ppo"),
    *(name for name in RUNS if name.startswith("f2a2_sac")),
]
# Several steps of Adam in one update, of which the later ones start from other weights.
STEPS_BETWEEN = {"mamt": 0.15, "mamt_ppo": 0.15, "mappo": 0.3}
QUICK = ("qmix", "s2q", "maac")
TOLERANCE = 0.06  # of the gradient's norm; bfloat16 has 8 bits: an operand is off by 0.2 to 0.4 %


class Enough(Exception):
    """One update was made."""


def first_update(name, precision, folder):
    """Gradients of the first update of a run, which is the same up to there."""
    algorithm, env, settings = RUNS[name]
    wide = [text for text in settings if not text.startswith("critic_hidden_dim")]
    run = start_run(algorithm, env, folder, [*COMMON, *wide, f"precision={precision}"])
    update = run._update

    def once():
        update()
        raise Enough

    run._update = once
    with pytest.raises(Enough):
        finish(run)
    networks = {"mac": run.mac.agent, **run.learner.modules}
    return {
        f"{part}.{key}": param.grad.clone()
        for part, network in networks.items()
        for key, param in network.named_parameters()
        if param.grad is not None
    }


@needs_kernel
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_gradients_are_close_to_those_of_float32(name, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_WORK", 0)
    exact, half = (first_update(name, p, tmp_path / p) for p in ("float32", "bfloat16"))
    assert exact.keys() == half.keys()
    exact, half = (torch.cat([g.flatten() for g in found.values()]) for found in (exact, half))
    error = float((half - exact).norm() / exact.norm())
    assert 1e-5 < error < STEPS_BETWEEN.get(name, TOLERANCE)


@needs_kernel
@pytest.mark.parametrize("name", ["s2q", pytest.param("maac", marks=pytest.mark.slow)])
def test_resumed_bit_for_bit_and_the_same_every_time(name, tmp_path, monkeypatch):
    """With two learner threads, which have to know the precision, too."""
    monkeypatch.setattr(kernels, "LEAST_WORK", 0)
    monkeypatch.setattr(parts, "LEAST_PER_THREAD", 1)
    algorithm, env, settings = RUNS[name]
    own = [*COMMON, *settings, "precision=bfloat16", "learner_threads=2"]

    def start(folder):
        return start_run(algorithm, env, folder, own)

    finish(start(tmp_path / "whole"))
    assert_goes_on(start, tmp_path, stop_at=40)
    exact = start_run(algorithm, env, tmp_path / "exact", [*own, "precision=float32"])
    finish(exact)
    whole, exact = (tmp_path / name / "metrics.jsonl" for name in ("whole", "exact"))
    assert whole.read_bytes() != exact.read_bytes()


def test_refused_in_one_line_where_the_processor_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "takes_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match=r"precision=bfloat16 needs a processor with AVX512_BF16"):
        start_run("qmix", "spread", tmp_path, [*COMMON, *EPISODES, "precision=bfloat16"])
