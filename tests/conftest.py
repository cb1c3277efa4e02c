"""What holds for all tests."""

import os
import signal
from pathlib import Path

import pytest

# A shell starts what runs in its background with SIGINT ignored, and all it starts inherits that;
# tests send SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _trainings():
    """Process ids of the trainings that this process has started and not waited for."""
    children = Path("/proc/self/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if _is_training(pid)]


def _is_training(pid):
    try:
        return b"src/main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return False


def _kill(pid):
    """Ends a process with its group, if that is its own."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.fixture(autouse=True)
def _no_training_is_left_behind():
    """Trainings of a test that failed, or ran out of time, end with it."""
    yield
    for pid in _trainings():
        _kill(pid)
