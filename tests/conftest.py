"""Fixtures that any test file may name."""

import pytest
import torch


@pytest.fixture
def same_threads():
    """Training sets torch's threads: what they were before comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
