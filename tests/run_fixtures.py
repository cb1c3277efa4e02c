"""Whole runs in this process, without Sacred: started, told to stop, ended. For tests of
resuming.
"""

import logging
import signal
from types import SimpleNamespace

import pytest
import torch

from training import Training
from utils.config import build_config, check_config, set_seed
from utils.logging import Logger
from utils.observers import Interrupted
from utils.seeding import seed_globals


def start_run(algorithm, env, run_dir, settings, device="cpu"):
    """The `Training` of one run; its results go to `run_dir`."""
    config = build_config(algorithm, env, settings)
    check_config(config)
    set_seed(config)
    args = SimpleNamespace(**config)
    args.device, args.unique_token = device, "test"
    seed_globals(args.seed)
    run_dir.mkdir(exist_ok=True)
    log = logging.getLogger("test_runs")
    log.setLevel(logging.ERROR)
    logger = Logger(log)
    logger.setup_files(run_dir)
    return Training(args, logger, run_dir, SimpleNamespace(received=None))


class StopAt:
    """SIGTERM comes at a certain step."""

    def __init__(self, runner, t_env):
        self.runner, self.t_env = runner, t_env

    @property
    def received(self):
        return signal.SIGTERM if self.runner.t_env >= self.t_env else None


def finish(training):
    try:
        return training.run()
    finally:
        training.close()
        training.logger.close()


def assert_goes_on(start, folder, stop_at):
    """A run that is told to stop and is resumed writes the same metrics as the one in
    `folder / "whole"`.

    Args:
        start: run_dir -> the `Training` of the run.
        stop_at: step from which on it is told to stop.
    """
    half = start(folder / "parts")
    half.stop = StopAt(half.runner, stop_at)
    with pytest.raises(Interrupted):
        finish(half)
    rest = start(folder / "parts")
    torch.manual_seed(99)  # whatever happened in between
    rest.load(folder / "parts" / "checkpoints" / str(half.runner.t_env))
    finish(rest)
    whole, parts = (folder / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()
