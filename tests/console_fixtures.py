"""For tests that set up the console logger."""

import logging

import pytest


@pytest.fixture
def fresh_console():
    """`get_logger` starts from scratch, and the next test finds the root logger as it was
    before.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers[:] = [handler for handler in handlers if handler.name != "console"]
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)  # not by assignment: loggers remember what is enabled
