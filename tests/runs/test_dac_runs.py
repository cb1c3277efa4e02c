"""Whole runs of DAC: through the command line, resumed ones equal uninterrupted ones, evaluation of
saved models.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_fixtures import StopAt, finish, start_run

from utils.config import CONFIG_DIR, load_file
from utils.observers import Interrupted

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *(
        "runner=vector",
        "batch_size_run=4",
        "batch_size=4",
        "buffer_size=20",
        "env_args.episode_limit=6",
        "seed=3",
    ),
    *(
        "rnn_hidden_dim=8",
        "dac_hidden_dim=8",
        "dac_k=3",
        "dac_m=4",
        "test_interval=72",
        "test_nepisode=4",
    ),
    *("use_cuda=False", "epsilon_anneal_time=200", "target_update_interval=10", "t_max=240"),
    *("learner_log_interval=1", "runner_log_interval=1", "save_model_interval=100000"),
]


def start(algorithm, run_dir, *settings):
    """A run in this process, without Sacred."""
    return start_run(algorithm, "predator_prey", run_dir, [*SMALL, *settings])


def logged(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("settings", [[], ["dac_head=hyper_net"], ["common_reward=False"]], ids=str)
@pytest.mark.parametrize("algorithm", ["dac", "dac_phi"])
def test_every_form_trains(algorithm, settings, tmp_path):
    training = start(algorithm, tmp_path, *settings)
    params = [*training.learner.params, *training.learner.context_params]
    before = [param.detach().clone() for param in params]
    assert finish(training) is not None
    assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    wanted = {
        "test_return_mean",
        "loss_value",
        "loss_rec",
        "loss_kl",
        "context_entropy",
        "context_largest_share",
    }
    assert wanted <= {line["key"] for line in logged(tmp_path / "metrics.jsonl")}


@pytest.mark.parametrize(
    "settings", [["dac_head=hyper_net"], ["dac_value_trains_encoder=True"]], ids=str
)
def test_resumed_run_equals_the_uninterrupted_one(settings, tmp_path):
    finish(start("dac", tmp_path / "whole", *settings))
    half = start("dac", tmp_path / "parts", *settings)
    half.stop = StopAt(half.runner, 100)
    with pytest.raises(Interrupted):
        finish(half)
    rest = start("dac", tmp_path / "parts", *settings)
    torch.manual_seed(99)  # whatever happened in between
    rest.load(tmp_path / "parts" / "checkpoints" / str(half.runner.t_env))
    finish(rest)
    whole, parts = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


def test_evaluation_of_saved_models(tmp_path):
    trained = start("dac", tmp_path / "trained")
    finish(trained)
    other = start("dac", tmp_path / "other", "seed=4")
    other.load_models(tmp_path / "trained" / "checkpoints", 0)
    for name in ("params", "context_params"):
        for mine, theirs in zip(
            getattr(other.learner, name), getattr(trained.learner, name), strict=True
        ):
            assert torch.equal(mine, theirs)
    assert other.evaluate_only() == other.last_test_return
    other.close()
    other.logger.close()


def test_the_matrix_game_through_the_command_line(tmp_path):
    """The preset of Table 4 on the game of Table 1, a few episodes of it."""
    settings = [
        "scenario=dac_matrix_game",
        "t_max=300",
        "test_interval=100",
        "test_nepisode=2",
        "seed=1",
    ]
    settings += ["use_cuda=False", "learner_log_interval=50", f"local_results_path={tmp_path}"]
    command = [
        sys.executable,
        str(ROOT / "src/main.py"),
        "--config=dac",
        "--env-config=matrix_game",
        "with",
        *settings,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run_dir = tmp_path / "sacred" / "dac" / "climbing" / "1"
    lines = logged(run_dir / "metrics.jsonl")
    assert {line["value"] for line in lines if line["key"] == "test_return_mean"} <= {
        8.0,
        6.0,
        0.0,
        -12.0,
    }
    losses = [line["value"] for line in lines if line["key"] == "loss_rec"]
    assert losses[-1] < losses[0]
    files = {path.name for path in (run_dir / "checkpoints" / "300").iterdir()}
    assert {"agent.th", "encoder.th", "decoder.th", "opt.th", "context_opt.th"} <= files


def test_the_ablation_changes_one_key():
    plain = load_file(CONFIG_DIR / "algs" / "dac.yaml")
    ablation = load_file(CONFIG_DIR / "algs" / "dac_phi.yaml")
    assert ablation == plain | {"dac_context_exploration": False}
    assert plain["dac_context_exploration"]
