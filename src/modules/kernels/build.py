"""Builds a C++ file of this folder into a library for this very processor, once.

The library lies beside the sources (or in the user's cache where that cannot be written), under a
name that contains a digest of the source, the compiler and the processor: another machine on the
same file system builds its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# No -ffast-math: NaN and infinity must come out as such, and sums keep their order.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fno-trapping-math", "-shared", "-fPIC"),
)
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT = 120.0  # s that a compiler may take

_log = logging.getLogger(__name__)


@cache
def load(name: str) -> ctypes.CDLL | None:
    """The library of `NAME.cpp`, built if it has not been; None where it cannot be had.

    What stands in the way is logged once as information: everything works without.
    """
    command = compiler()
    if command is None:
        _log.info("no C++ compiler: %s runs through torch, which is slower", name)
        return None
    source = FOLDER / f"{name}.cpp"
    headers = (path.read_bytes() for path in sorted(FOLDER.glob("*.h")))
    key = _digest(source.read_bytes(), *headers, *map(str.encode, (command, *FLAGS)), _processor())
    for folder in _caches():
        path = folder / f"{name}-{key}.so"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _compile(command, source, path)
            return ctypes.CDLL(str(path))
        except OSError as error:
            _log.debug("%s: %s", path, error)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or error
            _log.info("%s cannot be compiled and runs through torch: %s", name, _first_line(said))
            return None
    _log.info("no folder for compiled kernels can be written: %s runs through torch", name)
    return None


def compiler() -> str | None:
    """The compiler's command: what CXX says, or the first that is there."""
    chosen = os.environ.get("CXX")
    return next(filter(shutil.which, (chosen,) if chosen else COMPILERS), None)


def names() -> list[str]:
    """All kernels."""
    return sorted(path.stem for path in FOLDER.glob("*.cpp"))


def _compile(command: str, source: Path, path: Path) -> None:
    """Makes `path`, whole or not at all."""
    _log.info("compiling the kernel %s, once, a few seconds", source.stem)
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        words = [command, *FLAGS, str(source), "-o", name]
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _caches() -> Iterator[Path]:
    yield FOLDER / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "murmuration"
    yield Path(tempfile.gettempdir()) / f"murmuration-{os.getuid()}"


def _processor() -> bytes:
    """What distinguishes processors that need different code."""
    about = platform.machine().encode()
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:  # not Linux
        return about + platform.processor().encode()
    wanted = (b"model name", b"flags", b"Features", b"CPU part")
    return about + b"".join(sorted({line for line in lines if line.startswith(wanted)}))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _first_line(text: object) -> str:
    return next(iter(str(text).strip().splitlines()), "")
