"""Files that grow: what was appended to `metrics.jsonl` since the last look, and nothing else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from analysis.published import Points
from analysis.runs import Episodes, Series, add_points, as_series

# So many bytes before the place reached so far are compared at every look: a resumed run cuts its
# files, and may have grown beyond the old place again before anybody looked.
GUARD = 64


class Tail:
    """The complete lines of a file, each handed out once.

    Attributes:
        bytes_read: how much was read from the disk so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self._inode = -1
        self._start_over()

    def _start_over(self) -> None:
        self._offset = 0
        self._rest = b""
        self._guard = b""

    @property
    def rest(self) -> bytes:
        """A last line without its end: its writer is not done yet, or was killed."""
        return self._rest

    def read(self) -> tuple[bytes, bool]:
        """The complete lines that are new, and whether the file began anew (what was read before no
        longer counts).

        Raises:
            OSError: the file cannot be read.
        """
        with open(self.path, "rb") as file:
            state = os.fstat(file.fileno())
            anew = self._offset > 0 and not self._continues(file.fileno(), state)
            if anew:
                self._start_over()
            self._inode = state.st_ino
            if state.st_size == self._offset:
                return b"", anew
            file.seek(self._offset)
            new = file.read()
        self.bytes_read += len(new)
        self._offset += len(new)
        self._guard = (self._guard + new)[-GUARD:]
        lines, newline, self._rest = (self._rest + new).rpartition(b"\n")
        return lines + newline, anew

    def _continues(self, file: int, state: os.stat_result) -> bool:
        if state.st_ino != self._inode or state.st_size < self._offset:
            return False
        if state.st_size == self._offset:
            return True
        before = os.pread(file, len(self._guard), self._offset - len(self._guard))
        self.bytes_read += len(before)
        return before == self._guard


def last_lines(path: Path, size: int) -> tuple[bytes, bool]:
    """The complete lines within the last `size` bytes of a file, and whether that is all of it.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        file.seek(max(0, length - size))
        content = file.read(size)
    whole = length <= size
    if not whole:
        content = content.partition(b"\n")[2]
    lines, newline, _ = content.rpartition(b"\n")
    return lines + newline, whole


def select(lines: bytes, keys: frozenset[str] | None) -> list[bytes]:
    """The lines with one of the keys, None for all; empty lines are left out."""
    if keys is None:
        return [line for line in lines.split(b"\n") if line.strip()]
    if not keys:
        return []
    wanted = re.compile(b"|".join(re.escape(json.dumps(key).encode()) for key in sorted(keys)))
    found = []
    end = 0
    while match := wanted.search(lines, end):
        start = lines.rfind(b"\n", 0, match.start()) + 1
        end = lines.find(b"\n", match.end())
        end = len(lines) if end < 0 else end
        found.append(lines[start:end])
    return found


class SeriesFile:
    """The series of a growing `metrics.jsonl` or `timing.jsonl`.

    Args:
        keys: the series that are read, None for all.
    """

    def __init__(self, path: Path, keys: frozenset[str] | None = None) -> None:
        self.tail = Tail(path)
        self.keys = keys
        self.broken = 0
        self._points: Points = {}
        self._series: tuple[dict[str, Series], dict[str, Episodes]] = {}, {}

    def refresh(self) -> bool:
        """Reads what is new; whether there was anything.

        Raises:
            OSError: the file cannot be read.
        """
        lines, anew = self.tail.read()
        if anew:
            self._points, self.broken = {}, 0
        if not lines and not anew:
            return False
        self.broken += len(add_points(select(lines, self.keys), self._points, self.keys))
        metrics, episodes, _ = as_series(self._points)
        self._series = metrics, episodes
        return True

    @property
    def metrics(self) -> dict[str, Series]:
        return self._series[0]

    @property
    def episodes(self) -> dict[str, Episodes]:
        return self._series[1]
