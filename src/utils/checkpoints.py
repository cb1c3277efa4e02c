"""Checkpoints: the whole training state in one folder, written atomically, found again, pruned.

`RUN_DIR/checkpoints/T_ENV/` holds `state.pt` (networks, targets, optimisers, counters, random
states, figures not yet logged), `buffer.pt` (the replay buffer) and PyMARL's model files. A folder
appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.config import results_dir
from utils.errors import UserError

FORMAT = 1
STATE, BUFFER = "state.pt", "buffer.pt"
# What may differ between the run that is continued and the command that continues it.
FREE_KEYS = frozenset(
    [
        *(
            "resume",
            "t_max",
            "use_cuda",
            "save_model",
            "save_model_interval",
            "keep_checkpoints",
            "checkpoint_buffer",
        ),
        *(
            "use_tensorboard",
            "observers",
            "env_timeout",
            "max_env_restarts",
            "acting_threads",
            "learner_threads",
        ),
        *("render", "save_replay", "label", "local_results_path", "checkpoint_path", "load_step"),
    ]
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on: its folder, Sacred's id, the checkpoint, and the seed it was started
    with.
    """

    run_dir: Path
    run_id: str
    checkpoint_dir: Path
    seed: int


def write_checkpoint(
    folder: Path,
    t_env: int,
    state: Mapping[str, Any],
    buffer_state: Mapping[str, Any] | None,
    save_models: Callable[[str], None],
    keep: int,
) -> Path:
    """Writes one checkpoint and prunes old ones.

    Args:
        folder: `RUN_DIR/checkpoints`.
        state: what `read_checkpoint` returns later.
        buffer_state: of the replay buffer; None leaves it out.
        save_models: writes PyMARL's model files into a folder.
        keep: how many full checkpoints stay; of older ones only the model files do.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it could not be written; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / str(t_env), folder / f".{t_env}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_models(str(partial))
        if buffer_state is not None:
            _save(dict(buffer_state), partial / BUFFER)
        _save({"format": FORMAT, **state}, partial / STATE)
        for path in (*partial.iterdir(), partial):
            _fsync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _fsync(folder)
    for old in list_checkpoints(folder)[keep:]:
        (old / STATE).unlink()
        (old / BUFFER).unlink(missing_ok=True)
    return final


def _save(content: Mapping[str, Any], path: Path) -> None:
    # Through a file of ours: given a path, torch hides that a disk is full.
    with open(path, "wb") as file:
        torch.save(content, file)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def list_checkpoints(folder: Path) -> list[Path]:
    """Full checkpoints of a run, newest first."""
    if not folder.is_dir():
        return []
    steps = [path for path in folder.iterdir() if path.name.isdigit() and (path / STATE).is_file()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def read_checkpoint(
    path: Path, with_buffer: bool = True
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """State and buffer state of a checkpoint.

    Args:
        with_buffer: False checks that the buffer's file is whole but does not load it.

    Raises:
        UserError: it is torn, or of another version.
    """
    buffer = None
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if state["has_buffer"]:
            if with_buffer:
                buffer = torch.load(path / BUFFER, map_location="cpu", weights_only=True)
            else:
                zipfile.ZipFile(
                    path / BUFFER
                ).close()  # its directory stands at the end: a torn file has none
    except Exception as error:  # torch raises many types for a file that is not what it should be
        raise UserError(
            f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    if state.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {state.get('format')}, this version reads {FORMAT}"
        )
    return state, buffer


def newest_readable(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; torn ones are skipped with a warning."""
    for path in list_checkpoints(folder):
        try:
            read_checkpoint(path, with_buffer=False)
        except UserError as error:
            _log.warning("%s; trying an older one", error)
            continue
        return path
    return None


def resolve_resume(config: Mapping[str, Any]) -> ResumePoint | None:
    """Finds what `resume` asks for.

    Args:
        config: the merged configuration; `resume` is "auto", a run folder or a checkpoint folder;
            `seed` None: any.

    Returns:
        None for `auto` if there is nothing to go on with.

    Raises:
        UserError: a path without a readable checkpoint, or of a run with another configuration.
    """
    wanted = str(config["resume"])
    if wanted != "auto":
        point, differing = _resume_point(Path(wanted), config)
        if differing:
            raise UserError(
                f"the run in {point.run_dir} was started with other values of "
                f"{', '.join(differing)}: "
                "give the same ones, or start a new run"
            )
        return point
    root = results_dir(config).parent
    candidates = []
    for config_file in root.glob("*/*/config.json"):
        if list_checkpoints(config_file.parent / "checkpoints") and not _is_done(
            config_file.parent, config
        ):
            candidates.append(config_file.parent)
    for run_dir in sorted(candidates, key=_last_written, reverse=True):
        try:
            point, differing = _resume_point(run_dir, config)
        except UserError as error:
            _log.warning("%s", error)
            continue
        if not differing:
            return point
    _log.info(
        "resume=auto: no unfinished run with this configuration under %s, starting a new one", root
    )
    return None


def run_folder(path: Path) -> Path:
    """The folder of a run, for that folder or the one of a checkpoint in it.

    Raises:
        UserError: it is neither.
    """
    path = path.resolve()
    run_dir = path.parent.parent if path.parent.name == "checkpoints" else path
    if not (run_dir / "config.json").is_file():
        raise UserError(
            f"resume={path} is no run folder (no config.json): give results/sacred/ALG/MAP/ID"
        )
    return run_dir


def _last_written(run_dir: Path) -> float:
    return max(path.stat().st_mtime for path in list_checkpoints(run_dir / "checkpoints"))


def _is_done(run_dir: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run has reached `t_max` already."""
    newest = list_checkpoints(run_dir / "checkpoints")[0]
    return int(newest.name) >= config["t_max"]


def _resume_point(path: Path, config: Mapping[str, Any]) -> tuple[ResumePoint, list[str]]:
    """The point and the keys in which the run's configuration differs from the one given now."""
    run_dir, path = run_folder(path), path.resolve()
    if run_dir == path:
        checkpoint = newest_readable(run_dir / "checkpoints")
        if checkpoint is None:
            raise UserError(f"no readable checkpoint in {run_dir / 'checkpoints'}")
    else:
        checkpoint = path
        read_checkpoint(checkpoint, with_buffer=False)
    with open(run_dir / "config.json") as file:
        old = json.load(file)
    return ResumePoint(run_dir, run_dir.name, checkpoint, int(old["seed"])), _differences(
        old, config
    )


def _differences(old: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Keys with other values in the saved configuration than in this one; a seed that was not given
    (null) fits any.
    """
    now = json.loads(json.dumps(dict(config)))
    keys = sorted((set(old) | set(now)) - FREE_KEYS - {"env_args", "seed"})
    differing = [key for key in keys if old.get(key) != now.get(key)]
    old_env, now_env = old["env_args"], now["env_args"]
    keys = sorted((set(old_env) | set(now_env)) - {"seed"})
    differing += [f"env_args.{key}" for key in keys if old_env.get(key) != now_env.get(key)]
    if now["seed"] is not None and old["seed"] != now["seed"]:
        differing.append("seed")
    return differing
