"""Signals on their way to a run."""

import os
import signal
import sys
import time
from collections import deque

import pytest

from launch.process import Child, Stopped, side_by_side

WAITS = (
    "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); "
)
WAITS += "signal.pause()"


def child(path, program):
    with open(path, "wb") as output:
        process = Child([sys.executable, "-c", program], output, os.environ)
    while "ready" not in path.read_text():
        time.sleep(0.05)
    return process


def test_signals_that_are_for_the_launcher_leave_a_run_alone(tmp_path):
    process = child(tmp_path / "out", WAITS)
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(process.pid, signum)
    time.sleep(0.3)
    assert process.poll() is None
    process.stop()
    assert process.wait() == 7


def test_a_signal_ends_all_and_starts_none(tmp_path):
    todo, ended = deque(range(5)), []

    def start(item):
        if len(todo) == 3:  # two are at work
            return None
        return child(tmp_path / str(item), WAITS)

    def tick(running, stopping):
        if len(running) == 2 and not stopping:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="ended by SIGTERM"):
        side_by_side(todo, start, lambda item, process, code: ended.append((item, code)), tick)
    assert sorted(ended) == [(0, 7), (1, 7)]
    assert list(todo) == [2, 3, 4]
