"""`python src/main.py search`: looks for good settings with Optuna, on this machine or a cluster.

`spec` and `space` read the yaml file. `study` is what all processes of a search share: trials in
Optuna's storage. `work` runs trials, `figures` reads how good they are, `best` writes the best
settings down, `report` draws, `command` is the command line. A trial is a sweep (`launch.folder`)
with the runs of its settings.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.errors import MissingPackage


def main(argv: Sequence[str]) -> int:
    """The command line.

    Returns:
        0; 128 + N after signal N.

    Raises:
        MissingPackage: Optuna is not installed.
        UserError: what is wrong with the command or the file.
        RunFailure: no trial was completed, several failed in a row, or the storage is gone.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as exc:
        raise MissingPackage("search needs Optuna: pip install -r requirements-search.txt") from exc
    from launch.search.command import main as command

    return command(argv)
