"""Finished runs that git keeps: one gzipped file of JSON lines each.

The first line has the run's `config` and `record` (status, times, commit of the code). Every other
line is one series of `metrics.jsonl` or `timing.jsonl`: `{"file": "metrics", "key": "return_mean",
"t": [...], "values": [...]}`, with the numbers as they stood there. Equal runs give equal files.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

SUFFIX = ".jsonl.gz"
# A curve needs nothing about the machine or its folders.
_LEFT_OUT = ("local_results_path", "checkpoint_path")

# Name of a series -> its steps and values, in the order of recording.
Points = dict[str, tuple[list[int], list[Any]]]


def write(run: Path, file: Path, metrics: Collection[str], timing: Collection[str]) -> None:
    """Packs a finished run.

    Args:
        run: its folder, `.../ALGORITHM/MAP/ID`.
        file: what is written, with the ending `SUFFIX`.
        metrics, timing: the names of the series that are kept.

    Raises:
        OSError, ValueError: a file of the run is missing or broken.
    """
    lines: list[Mapping[str, Any]] = [_head(run)]
    for name, keys in (("metrics", metrics), ("timing", timing)):
        lines += [
            {"file": name, "key": key, "t": t, "values": values}
            for key, (t, values) in _points(run / f"{name}.jsonl", keys).items()
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def _head(run: Path) -> dict[str, Any]:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    code = [
        {key: source[key] for key in ("commit", "dirty")}
        for source in record["experiment"]["repositories"]
    ]
    kept = {key: record[key] for key in ("status", "start_time", "stop_time")}
    return {
        "config": {key: config[key] for key in sorted(config) if key not in _LEFT_OUT},
        "record": {"experiment": {"repositories": code}, **kept},
    }


def _points(path: Path, keys: Collection[str]) -> Points:
    points: Points = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["key"] in keys:
            t, values = points.setdefault(entry["key"], ([], []))
            t.append(entry["t"])
            values.append(entry["value"])
    return points


def read_head(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's configuration and record.

    Raises:
        OSError, EOFError, ValueError, KeyError: the file is no published run.
    """
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        head = json.loads(lines.readline())
    return head["config"], head["record"]


def read_series(file: Path) -> tuple[Points, Points]:
    """The series of the run's metrics and those of its timing.

    Raises:
        OSError, EOFError, ValueError, KeyError: the file is no published run.
    """
    found: dict[str, Points] = {"metrics": {}, "timing": {}}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        next(lines)
        for line in map(json.loads, lines):
            found[line["file"]][line["key"]] = (line["t"], line["values"])
    return found["metrics"], found["timing"]
