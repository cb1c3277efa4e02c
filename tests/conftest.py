"""Fixtures that any test file may name."""

import signal

import pytest
import torch

# A shell starts what runs in its background with SIGINT ignored, and all it starts inherits that; tests send SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def same_threads():
    """Training sets torch's threads: what they were before comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
