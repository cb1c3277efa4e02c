"""Trained policies on the disk: found, read with what they need, and written small.

A policy is the folder of a run, or what `export` makes of one: `config.json`, the networks below
`checkpoints/STEP/` in half precision, and `policy.json`, which says how good it is.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from assembly import build_learner, describe_env
from plugins import load_plugins
from runners import REGISTRY as RUNNERS
from session import Session
from utils.checkpoints import find_models
from utils.config import build_config, task_name
from utils.errors import ConfigError, UserError
from utils.logging import Logger, get_logger
from utils.parsing import Parser
from utils.seeding import isolated_global_rng

CARD = "policy.json"
FIGURES = ("test_return_mean", "test_win_rate", "test_ep_length_mean")  # on the card
# What a policy does not take over from the run that trained it.
_OF_THE_RUN = (
    *("resume", "local_results_path", "checkpoint_path", "load_step", "evaluate", "render"),
    *("save_replay", "observers", "use_tensorboard", "label", "repeat_id"),
)


@dataclass(frozen=True)
class Policy:
    """A policy on the disk.

    Attributes:
        run: its folder.
        models: the folder of its networks.
        config: of the run; keys that came after it have their defaults.
    """

    run: Path
    models: Path
    config: dict[str, Any]

    @property
    def step(self) -> int:
        """How long it was trained [environment steps]."""
        return int(self.models.name)

    @property
    def title(self) -> str:
        """Algorithm and map."""
        return f"{self.config['name']} on {task_name(self.config)}"


def find_policy(path: Path, step: int = 0) -> Policy:
    """The policy in a folder.

    Args:
        path: a run, an exported policy, or the folder of one checkpoint.
        step: of a run's checkpoints the nearest one; 0: the newest.

    Raises:
        UserError: there is none.
    """
    run, models = find_models(path, f"'{path}'", step)
    try:
        recorded = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{run / 'config.json'} cannot be read: {error}") from error
    return Policy(run, models, _completed(recorded))


def _completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration, with the defaults of keys that it does not know yet."""
    try:
        defaults = build_config(recorded["name"], recorded["env_config"])
    except (ConfigError, KeyError):  # yaml files of the user's own: the record is all there is
        return dict(recorded)
    return {**defaults, **recorded}


def build(policy: Policy, env_info: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """The controller of a policy and the learner around it, with their weights, on the CPU.

    Args:
        env_info: PyMARL's, of the environment.

    Returns:
        Controller, learner, and in words which of the learner's networks are missing, "" if none
        of those that explain what the policy does.

    Raises:
        UserError: the models do not fit.
    """
    # Nothing is trained, so any processor will do.
    cpu = {"device": "cpu", "use_cuda": False, "precision": "float32"}
    args = SimpleNamespace(**{**policy.config, **cpu})
    args.learner_threads = args.learner_threads or 1
    load_plugins(args.plugins)
    describe_env(args, env_info)
    with isolated_global_rng(0):
        mac, learner = build_learner(args, Logger(get_logger()))
    try:
        mac.load_models(str(policy.models))
        missing = _load_modules(learner, policy.models)
    except Exception as error:  # what torch raises for a damaged or foreign file, and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the models in {policy.models} cannot be read: {reason}") from error
    return mac, learner, missing


def _load_modules(learner: Any, folder: Path) -> str:
    needed = getattr(learner, "explained_by", ())
    absent = [name for name in needed if not (folder / f"{name}.th").is_file()]
    if absent:
        return f"The networks {', '.join(absent)} are not there: values of the learner are missing."
    for name in needed:
        weights = torch.load(folder / f"{name}.th", map_location="cpu", weights_only=True)
        learner.modules[name].load_state_dict(weights)
    if needed:
        learner.update_targets()
    return ""


# --- Export ---


def main(argv: Sequence[str]) -> int:
    """`python src/main.py export RUN FOLDER`: writes a policy small, and says how good it is.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, no policy there, a folder that exists.
    """
    parser = Parser(
        "export",
        description="Writes what acting needs of a trained run to a folder of its own: its "
        "networks in half precision, its configuration, and the result of an evaluation.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that is not there")
    parser.add_argument(
        "--step", type=int, default=0, help="of which checkpoint (default: the newest)"
    )
    parser.add_argument(
        "--episodes", type=int, default=96, help="of the evaluation (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.step < 0 or args.episodes < 1:
        raise UserError("export: --step is at least 0, --episodes at least 1")
    card = export(find_policy(args.run, args.step), args.folder, args.episodes)
    sys.stdout.write(f"{args.folder}: {json.dumps(card)}\n")
    return 0


def export(policy: Policy, folder: Path, n_episodes: int) -> dict[str, Any]:
    """Writes a policy small.

    The weights are rounded to half precision, and what is evaluated is the policy with these.

    Args:
        folder: where to; it must not be there yet.
        n_episodes: of the evaluation.

    Returns:
        The content of `policy.json`.

    Raises:
        UserError: the folder is there, or weights are beyond half precision.
    """
    if folder.exists():
        raise UserError(f"export: {folder} is there already: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        models = made / "checkpoints" / str(policy.step)
        models.mkdir(parents=True)
        config = {key: x for key, x in policy.config.items() if key not in _OF_THE_RUN}
        config["test_nepisode"] = n_episodes
        _write(made / "config.json", config)
        for file in sorted(_files_of(policy)):
            weights = torch.load(policy.models / file, map_location="cpu", weights_only=True)
            torch.save(_halved(weights, file), models / file)
        figures = evaluate(find_policy(made))
        card = {
            "algorithm": config["name"],
            "environment": config["env_config"],
            "map": task_name(config),
            "seed": config["seed"],
            "steps": policy.step,
            "episodes": n_episodes,
            **{name: round(figures[name], 4) for name in FIGURES if name in figures},
        }
        _write(made / CARD, card)
        shutil.move(made, folder)
    return card


def evaluate(policy: Policy) -> dict[str, float]:
    """Means over `test_nepisode` greedy episodes, named as in the results; the numbers of
    `evaluate=True checkpoint_path=...`.
    """
    config = {
        **policy.config,
        "evaluate": True,
        "checkpoint_path": str(policy.models.parent),
        "load_step": policy.step,
        "use_cuda": False,
        "precision": "float32",
    }
    with tempfile.TemporaryDirectory(prefix="evaluation-") as scratch:
        session = Session(config, get_logger())
        try:
            return session.evaluate(config["test_nepisode"], Path(scratch))
        finally:
            session.close()


def _files_of(policy: Policy) -> set[str]:
    """Names of the files that acting, and explaining what is done, need."""
    args = SimpleNamespace(**{**policy.config, "batch_size_run": 1, "use_cuda": False})
    runner = RUNNERS["vector"](args=args, logger=Logger(get_logger()))
    try:
        mac, learner, _ = build(policy, runner.get_env_info())
    finally:
        runner.close_env()
    with tempfile.TemporaryDirectory(prefix="models-") as scratch:
        mac.save_models(scratch)
        of_controller = {file.name for file in Path(scratch).iterdir()}
    explaining = {f"{name}.th" for name in learner.explained_by}
    return of_controller | {name for name in explaining if (policy.models / name).is_file()}


def _halved(weights: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Weights with fractional numbers in half precision.

    Raises:
        UserError: a number is too large for that.
    """
    halves = {
        name: value.half() if torch.is_floating_point(value) else value
        for name, value in weights.items()
    }
    for name, value in halves.items():
        if not torch.isfinite(value).all():
            raise UserError(f"export: {name} in {file} has numbers beyond half precision")
    return halves


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
