"""Checkpoints: the whole training state in one folder, written atomically, found again, pruned.

`RUN_DIR/checkpoints/T_ENV/` holds `state.pt` (networks, targets, optimisers, counters, random
states, figures not yet logged), `buffer.pt` (the replay buffer), their checksums in `crc32.json`,
and PyMARL's model files. A folder appears under its name only when it is complete. While it
replaces one of the same step, the old one is `.T_ENV.old`: `list_checkpoints` knows that name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.config import results_dir
from utils.errors import ConfigError, Finished, UserError, first_line
from utils.line_file import check_lines
from utils.run_lock import Held, RunLock, hold

FORMAT = 1
STATE, BUFFER, CHECKSUMS = "state.pt", "buffer.pt", "crc32.json"
# What has to be in the two files; looked at where no checksums vouch for them.
SECTIONS = ("training", "runner", "learner", "rng", "logger", "progress")
BUFFER_SECTIONS = ("transition_data", "episode_data", "lengths", "buffer_index", "rng")
_NAME = re.compile(r"(?a:\d+)|\.(?a:\d+)\.old")
_CHUNK = 1 << 20  # bytes read at once
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
            "loggers",
            "logger_args",
            "use_tensorboard",
            "observers",
            "env_timeout",
            "max_env_restarts",
            "acting_threads",
            "learner_threads",
            "ray",
        ),
        *("render", "film_format", "save_replay", "label"),
        *("local_results_path", "checkpoint_path", "load_step"),
    ]
)
FREE_ENV_KEYS = frozenset(["seed", "replay_dir", "replay_prefix", "replay_film"])

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        run_dir: its folder.
        run_id: Sacred's id.
        checkpoint_dir: the checkpoint.
        seed: that it was started with.
        older: checkpoints to fall back on if that one cannot be loaded, newest first.
        lock: keeps other processes away.
    """

    run_dir: Path
    run_id: str
    checkpoint_dir: Path
    seed: int
    older: tuple[Path, ...] = ()
    lock: RunLock | None = None


# --- Writing ---


def write_checkpoint(
    folder: Path,
    t_env: int,
    state: Mapping[str, Any],
    buffer_state: Mapping[str, Any] | None,
    save_models: Callable[[str], None],
    keep: int,
) -> Path:
    """Writes one checkpoint and prunes old ones.

    Whenever this is cut short, there is a checkpoint to read: the new one, or one that was there.

    Args:
        folder: `RUN_DIR/checkpoints`.
        state: what `read_checkpoint` returns later.
        buffer_state: of the replay buffer; None leaves it out.
        save_models: writes PyMARL's model files into a folder.
        keep: how many full checkpoints stay, this one among them; of older ones only the model
            files do.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it could not be written; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy_checkpoints(folder)
    final, partial, old = folder / str(t_env), folder / f".{t_env}.partial", _old(folder, t_env)
    partial.mkdir()
    try:
        save_models(str(partial))
        checksums = {}
        if buffer_state is not None:
            checksums[BUFFER] = _save(dict(buffer_state), partial / BUFFER)
        checksums[STATE] = _save({"format": FORMAT, **state}, partial / STATE)
        (partial / CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _fsync(path)
        if final.exists():
            os.replace(final, old)
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _fsync(folder)
    shutil.rmtree(old, ignore_errors=True)
    others = [path for path in list_checkpoints(folder) if path != final]
    for path in others[keep - 1 :]:
        _prune(path)
    return final


def tidy_checkpoints(folder: Path) -> None:
    """Clears away what a process left that ended while it wrote a checkpoint. Only for whoever
    holds the run.
    """
    for path in sorted(folder.glob(".*.old")):
        final = folder / path.name.split(".")[1]
        if final.exists():
            shutil.rmtree(path)
        else:
            os.replace(path, final)
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path)
    for path in folder.iterdir():
        if _is_step(path) and path.is_dir() and not (path / STATE).exists():
            _prune(path)


def _prune(path: Path) -> None:
    """Leaves the model files of a checkpoint only; `state.pt`, which makes it one, goes first."""
    for name in (STATE, BUFFER, CHECKSUMS):
        (path / name).unlink(missing_ok=True)


def _old(folder: Path, t_env: int) -> Path:
    return folder / f".{t_env}.old"


class _Checked:
    """A file that is written once, front to back, with the CRC-32 of what was written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.crc = 0
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        try:
            return self._file.write(data)
        except BaseException as exc:  # torch would make an error of its own of it
            self.error = exc
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(content: Mapping[str, Any], path: Path) -> int:
    """Writes a file; its CRC-32."""
    # Through a file of ours: given a path, torch hides that a disk is full.
    with open(path, "wb") as file:
        checked = _Checked(file)
        try:
            torch.save(content, checked)  # type: ignore[arg-type] # it needs write and flush only
        except RuntimeError:
            if checked.error is not None:
                raise checked.error from None
            raise
    return checked.crc


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- Reading ---


def _is_step(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder: 500 of `500`, and of `.500.old`."""
    return int(path.name.removeprefix(".").removesuffix(".old"))


def find_models(path: Path, what: str, step: int = 0) -> tuple[Path, Path]:
    """The run and the model files (`agent.th`, ...) that a path means.

    Args:
        path: a run's folder, its `checkpoints`, or the folder of one checkpoint.
        what: how the user named it.
        step: of a run's checkpoints the one nearest to this step; 0: the newest.

    Returns:
        The run's folder, which has `config.json`, and the folder of the model files.

    Raises:
        ConfigError: it means none.
    """
    folder = path.resolve()
    if not (folder / "agent.th").is_file():
        of_run = folder if folder.name == "checkpoints" else folder / "checkpoints"
        found = [one.parent for one in of_run.glob("*/agent.th") if one.parent.name.isdecimal()]
        if not found:
            raise ConfigError(
                f"no checkpoint in {what}: give the folder of a run, results/sacred/ALG/MAP/ID, "
                "or of one of its checkpoints"
            )
        found.sort(key=lambda one: int(one.name))
        folder = min(found, key=lambda one: abs(int(one.name) - step)) if step else found[-1]
    run = folder.parent.parent
    if not (run / "config.json").is_file():
        raise ConfigError(f"{run} has no config.json, which says what network is in {folder}")
    return run, folder


def list_checkpoints(folder: Path) -> list[Path]:
    """Full checkpoints of a run, newest first."""
    if not folder.is_dir():
        return []
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # `.500.old` last: it counts where 500 is
        if _is_step(path) and (path / STATE).is_file():  # not there
            found.setdefault(step_of(path), path)
    return [found[step] for step in sorted(found, reverse=True)]


def read_checkpoint(
    path: Path, with_buffer: bool = True
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """State and buffer state of a checkpoint, after a look at their checksums.

    Args:
        with_buffer: False checks the buffer's file but does not give it.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        checksums = _checksums(path)
        state = _read(path / STATE, checksums, SECTIONS)
        buffer = None
        if state["has_buffer"]:
            buffer = _read(path / BUFFER, checksums, BUFFER_SECTIONS, mmap=not with_buffer)
    except Exception as error:  # torch raises many types for a file that is not what it should be
        raise UserError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    if state.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {state.get('format')}, this version reads {FORMAT}"
        )
    return state, buffer if with_buffer else None


def _checksums(path: Path) -> dict[str, int] | None:
    """File name -> CRC-32; None for a checkpoint of an older version."""
    file = path / CHECKSUMS
    if not file.exists():
        return None
    checksums = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(checksums, dict):
        raise ValueError(f"{CHECKSUMS} is damaged")
    return checksums


def _read(
    path: Path, checksums: dict[str, int] | None, sections: tuple[str, ...], mmap: bool = False
) -> dict[str, Any]:
    if checksums is None:
        check_archive(path)
    elif _crc32(path) != checksums[path.name]:
        raise ValueError(f"{path.name} is damaged (its checksum is another one)")
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no mapping")
    missing = [name for name in sections if name not in content] if checksums is None else []
    if missing:
        raise ValueError(f"{path.name} has no section '{missing[0]}'")
    return content


def check_archive(path: Path) -> None:
    """Compares the members of a file of `torch.save` with their checksums.

    Raises:
        ValueError: one of them is damaged.
        zipfile.BadZipFile: the file is no such archive.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path.name} is damaged (checksum of {damaged})")


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def newest_readable(folder: Path) -> Path | None:
    """The newest checkpoint in `RUN_DIR/checkpoints` that can be gone on with; others are skipped
    with a warning.
    """
    for path in list_checkpoints(folder):
        try:
            check_checkpoint(path, folder.parent)
        except UserError as error:
            _log.warning("%s; trying an older one", error)
            continue
        return path
    return None


def check_checkpoint(path: Path, run_dir: Path) -> None:
    """Makes sure that a run can go on with a checkpoint: that it is whole, and that the metrics up
    to it are those of its time.

    Raises:
        UserError: it cannot.
    """
    state, _ = read_checkpoint(path, with_buffer=False)
    position = state.get("logger", {}).get("metrics")
    if position is None:
        return
    try:
        check_lines(run_dir / "metrics.jsonl", position)
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} does not fit the metrics: {error}") from error


# --- Resuming ---


def resolve_resume(config: Mapping[str, Any]) -> ResumePoint | None:
    """Finds what `resume` asks for, and takes it for this process.

    Args:
        config: the merged configuration; `resume` is "auto", a run folder or a checkpoint folder;
            `seed` None: any.

    Returns:
        None for `auto` if there is nothing to go on with.

    Raises:
        UserError: a path without a readable checkpoint, of a run with another configuration, or
            of one that another process is at work on.
        Finished: `auto`, and the run of this configuration and seed is at its end.
    """
    wanted = str(config["resume"])
    if wanted != "auto":
        return _explicit(Path(wanted), config)
    root = results_dir(config).parent
    done = None
    for run_dir in sorted(root.glob("*/*"), key=_last_written, reverse=True):
        try:
            if not (run_dir / "config.json").is_file() or _differences(run_dir, config):
                continue
            if _is_done(run_dir, config):
                done = done or run_dir
            elif list_checkpoints(run_dir / "checkpoints"):
                return _point(run_dir)
        except Held as error:
            _log.info("%s (resume=auto looks on)", error)
        except Exception as error:  # whatever is wrong with a candidate: there may be another one
            _log.warning("resume=auto passes %s over: %s", run_dir, first_line(error))
    if done is not None and config["seed"] is not None:
        raise Finished(done)
    _log.info(
        "resume=auto: no unfinished run with this configuration under %s, starting a new one", root
    )
    return None


def _explicit(path: Path, config: Mapping[str, Any]) -> ResumePoint:
    run_dir = run_folder(path)
    try:
        differing = _differences(run_dir, config)
        if not differing:
            return _point(run_dir, None if path.resolve() == run_dir else path.resolve())
    except OSError as error:
        raise UserError(f"resume={path} cannot be continued: {error}") from error
    raise UserError(
        f"the run in {run_dir} was started with other values of {', '.join(differing)}: "
        "give the same ones, or start a new run"
    )


def run_folder(path: Path) -> Path:
    """The folder of a run, for that folder or the one of a checkpoint in it.

    Raises:
        UserError: it is neither.
    """
    path = Path(os.path.realpath(path))
    run_dir = path.parent.parent if path.parent.name == "checkpoints" else path
    if not os.path.isfile(run_dir / "config.json"):
        raise UserError(
            f"resume={path} is no run folder (no config.json): give results/sacred/ALG/MAP/ID"
        )
    return run_dir


def read_config(run_dir: Path) -> dict[str, Any]:
    """The configuration that a run was started with.

    Raises:
        UserError: its file is damaged.
    """
    file = run_dir / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content["env_args"], dict):
            raise TypeError("it is no configuration")
        int(content["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    return content


def _last_written(run_dir: Path) -> float:
    try:
        checkpoints = list_checkpoints(run_dir / "checkpoints")
        return max((path.stat().st_mtime for path in checkpoints), default=0.0)
    except OSError:  # why, is found out when it is its turn
        return 0.0


def _is_done(run_dir: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run has reached `t_max` already, and has ended in good order."""
    try:
        status = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        status = None
    if status == "COMPLETED" and int(read_config(run_dir)["t_max"]) >= config["t_max"]:
        return True
    # One that was ended after its last checkpoint has its last evaluation still before it.
    steps = [step_of(path) for path in list_checkpoints(run_dir / "checkpoints")]
    return status in (None, "COMPLETED") and bool(steps) and steps[0] >= config["t_max"]


def _point(run_dir: Path, chosen: Path | None = None) -> ResumePoint:
    """Takes a run for this process, and finds the checkpoint to go on from.

    Args:
        chosen: the checkpoint; None: the newest that can be read.

    Raises:
        Held: another process has it.
        UserError: there is no readable checkpoint.
    """
    lock = hold(run_dir)
    folder, older = run_dir / "checkpoints", []
    if folder.is_dir():
        tidy_checkpoints(folder)
    if chosen is not None:
        check_checkpoint(chosen, run_dir)
    else:
        chosen = newest_readable(folder)
        if chosen is None:
            raise UserError(f"no readable checkpoint in {folder}")
        full = list_checkpoints(folder)
        older = full[full.index(chosen) + 1 :]
    seed = int(read_config(run_dir)["seed"])
    return ResumePoint(run_dir, run_dir.name, chosen, seed, tuple(older), lock)


def _differences(run_dir: Path, config: Mapping[str, Any]) -> list[str]:
    """Keys with other values in a run's configuration than in this one; a seed that was not given
    (null) fits any.
    """
    old = read_config(run_dir)
    now = json.loads(json.dumps(dict(config)))
    keys = sorted((set(old) | set(now)) - FREE_KEYS - {"env_args", "seed"})
    differing = [key for key in keys if old.get(key) != now.get(key)]
    old_env, now_env = old["env_args"], now["env_args"]
    keys = sorted((set(old_env) | set(now_env)) - FREE_ENV_KEYS)
    differing += [f"env_args.{key}" for key in keys if old_env.get(key) != now_env.get(key)]
    if now["seed"] is not None and old["seed"] != now["seed"]:
        differing.append("seed")
    return differing
