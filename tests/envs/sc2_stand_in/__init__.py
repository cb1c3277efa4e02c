"""A program in the place of StarCraft II: speaks its protocol (`program.py`), fights in the
simulator (`world.py`).
"""

import os
import sys
from pathlib import Path

from envs.starcraft.facts import map_names

BASE = "Base75689"  # of version 4.10
PROGRAM = Path(__file__).resolve().parent / "program.py"
# What a game can be told to do when it is next asked to step: see `program.Session`.
FAULTS = ("crash", "cut", "end", "error", "garbage", "hang")


class Installation:
    """A folder for SC2PATH.

    Args:
        folder: empty or missing.
        maps: names of the map files in it.
    """

    def __init__(self, folder, maps=None):
        self.folder = Path(folder)
        binary = self.folder / "Versions" / BASE / "SC2_x64"
        binary.parent.mkdir(parents=True)
        binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAM}" "$@"\n')
        binary.chmod(0o755)
        maps_folder = self.folder / "Maps" / "SMAC_Maps"
        maps_folder.mkdir(parents=True)
        for name in map_names() if maps is None else maps:
            (maps_folder / f"{name}.SC2Map").write_bytes(map_file(name))
        (self.folder / "running").mkdir()
        (self.folder / "faults").mkdir()

    def refuse(self, times):
        """The next `times` launches end at once."""
        (self.folder / "faults" / "refuse").write_text(str(times))

    def tell(self, fault):
        """One game does this when it is next asked to step."""
        assert fault in FAULTS
        (self.folder / "faults" / fault).touch()

    def launched(self):
        """Process ids of all games that were ever launched (refused ones left out), in that
        order.
        """
        files = sorted(
            (self.folder / "running").iterdir(), key=lambda path: path.stat().st_mtime_ns
        )
        return [int(path.name) for path in files]

    def running(self):
        """Process ids of the games that run."""
        return [pid for pid in self.launched() if alive(pid)]


def map_file(name):
    """What stands in for a map's file."""
    return f"stand-in for {name}".encode()


def alive(pid):
    """Whether a process runs; one that is dead but not yet collected by its parent does not."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX" and pid != os.getpid()
