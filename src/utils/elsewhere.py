"""Under which ids a run is known elsewhere: `elsewhere.json` in its folder, for when it is
resumed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "elsewhere.json"

_guard = threading.Lock()


def recall(run_dir: Path, name: str) -> dict[str, Any]:
    """What was noted for a logger or database; empty if nothing was.

    Raises:
        ValueError: the file is damaged.
    """
    return _read(run_dir / FILE).get(name, {})


def note(run_dir: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Replaces what is noted for a logger or database; other threads may note others."""
    file = run_dir / FILE
    temporary = file.with_name(f".{FILE}.{os.getpid()}.tmp")
    with _guard:
        temporary.write_text(json.dumps({**_read(file), name: facts}, indent=2), encoding="utf-8")
        os.replace(temporary, file)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
