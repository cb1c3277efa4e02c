"""Files of JSON objects, one per line, that a run appends to and cuts back to a checkpoint."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import RunFailure

FilePosition = Mapping[str, int]  # lines, bytes and crc (CRC-32) of what stands before it


class LineFile:
    """A file of JSON objects, one per line, each appended by one write call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self.lines = self.bytes = self.crc = 0
        self.cut(os.fstat(self._fd).st_size)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Writes one line; on an error nothing of it stays.

        Raises:
            OSError: e.g. the disk is full.
        """
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        done = 0
        try:
            while done < len(line):  # a second round happens only when the disk runs full
                done += os.write(self._fd, line[done:])
        except OSError as exc:
            os.ftruncate(self._fd, self.bytes)
            raise OSError(exc.errno, exc.strerror, str(self.path)) from exc
        self._count(line)

    def cut(self, size: int) -> None:
        """Keeps the complete lines within the first `size` bytes (one truncation: all or
        nothing).
        """
        self.lines = self.bytes = self.crc = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or self.bytes + len(line) > size:
                    break
                self._count(line)
        os.ftruncate(self._fd, self.bytes)

    def position(self) -> FilePosition:
        """What `check_lines` and `cut` go by later."""
        return {"lines": self.lines, "bytes": self.bytes, "crc": self.crc}

    def sync(self) -> None:
        """Waits until everything is on the disk.

        Raises:
            RunFailure: the file is no longer where it was: what is written is lost.
        """
        os.fsync(self._fd)
        try:
            there = os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            there = False
        if not there:
            raise RunFailure(
                f"the results of this run are gone: {self.path} was deleted, moved or replaced "
                "while the run was going on"
            )

    def close(self) -> None:
        """Syncs and closes."""
        try:
            os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def _count(self, line: bytes) -> None:
        self.lines += 1
        self.bytes += len(line)
        self.crc = zlib.crc32(line, self.crc)


def check_lines(path: Path, position: FilePosition) -> None:
    """Makes sure that a file still begins with what stood in it at `position`; lines may be missing
    at its end.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
    """
    with path.open("rb") as file:
        content = file.read(position["bytes"])
    complete = len(content) == position["bytes"] and "crc" in position
    if complete and zlib.crc32(content) != position["crc"]:
        raise ValueError(f"{path} was changed since the checkpoint was written")
    if complete:
        return
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        if not _is_entry(line):
            raise ValueError(f"{path}, line {number}: this is no entry of a run")


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and {"t", "key", "value"} <= set(entry)
