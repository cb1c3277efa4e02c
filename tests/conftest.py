"""What holds for all tests."""

import os
import signal
import subprocess

import pytest

# A shell starts what runs in its background with SIGINT ignored, and all it starts inherits that;
# tests send SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_trainings = []
_start = subprocess.Popen.__init__


def _noting(self, args, *rest, **options):
    _start(self, args, *rest, **options)
    if "src/main.py" in str(args):  # Ray has a main.py, too
        _trainings.append(self)


subprocess.Popen.__init__ = _noting


def _kill(process):
    """Ends a process with its group, if that is its own."""
    try:
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        pass
    process.wait()


@pytest.fixture(autouse=True)
def _no_training_is_left_behind():
    """Trainings of a test that failed, or ran out of time, end with it."""
    yield
    while _trainings:
        process = _trainings.pop()
        if process.poll() is None:
            _kill(process)
