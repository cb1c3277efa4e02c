"""The configuration of a run: yaml files and command line merged, every key and value checked.

`default.yaml <- learners/LEARNER.yaml <- envs/ENV.yaml <- algs/ALG.yaml <-
scenarios/SCENARIO.yaml <- command line`, each file after those that it inherits from
(`config_files`). The first four define which keys exist; the first non-null value that they give a
key fixes its type. `effects` has the keys of PyMARL2 and EPyMARL that mean another one, or nothing.
Nothing here imports torch (except `resolve_device`) or writes anything (except
`check_results_folder`, which cleans up after itself).
"""

from __future__ import annotations

import copy
import difflib
import errno
import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.config_files import (
    CONFIG_DIR,
    SUFFIXES,
    check_size,
    find_config,
    load_chain,
    read_file,
    shown_path,
)
from utils.config_files import KINDS as KINDS
from utils.config_files import list_configs as list_configs
from utils.config_files import load_file as load_file
from utils.effects import FIXED, FOREIGN, meant, merged, without_effect
from utils.errors import ConfigError, UserError
from utils.films import FORMATS
from utils.loggers import check as check_loggers
from utils.ranges import (
    AMOUNTS,
    COUNT,
    FINITE_POSITIVE,
    NAME,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SMOOTHING,
    Range,
    check_ranges,
    one_of,
)
from utils.registry import nearest

_WRITE_TEST_BYTES = 64 * 1024
_ORIGIN_COLUMN = 40
_LONGEST_NAME = 200  # bytes of a folder's name; file systems allow 255
# What torch.save says instead of the operating system's error when its file cannot be written to
# the end.
_TORCH_WRITE_ERRORS = (
    "PytorchStreamWriter failed",
    "] . unexpected pos ",
    "basic_ios::clear: iostream error",
)

_log = logging.getLogger(__name__)


# --- Types ---

# Keys whose default is null but that are not free: their type when they are set.
_NULLABLE = {
    "name": str,
    "env_config": str,
    "seed": int,
    "env": str,
    "mixer": str,
    "auxiliary_loss": str,
}
# Keys of two types: the first one is tried first, so that True stays True and never becomes 1.
_EITHER = {"agent_own_state_size": (bool, int)}
_WORDS = {
    bool: "True or False",
    int: "an int",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def _wrong_type(key: str, kind: type, value: object, source: str) -> ConfigError:
    nullable = " or null" if key in _NULLABLE else ""
    shown = "null" if value is None else repr(value)
    return ConfigError(f"{source}{key} must be {_WORDS[kind]}{nullable}, got {shown}")


def _free(value: object) -> object:
    """A value of a key without a type: the words that yaml knows are read as yaml reads them."""
    words = {"true": True, "false": False, "null": None, "none": None}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def convert(key: str, value: Any, kind: type, source: str = "", raw: str | None = None) -> Any:
    """`value` as the type of its key, if it can be read as one without loss.

    Args:
        key: dotted name of the key, for the message.
        kind: bool, int, float, str, list or dict.
        source: where the value comes from ("FILE: "), for the message.
        raw: what was typed, for a str key whose value reads as something else (`label=007`).

    Raises:
        ConfigError: the value is of another type.
    """
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
    elif kind in (int, float) and not isinstance(value, bool):
        number = (
            value if isinstance(value, int) else _number(value) if isinstance(value, str) else value
        )
        if kind is int and isinstance(number, float) and number.is_integer():
            return int(number)
        if isinstance(number, int) or (
            kind is float and isinstance(number, float) and not math.isnan(number)
        ):
            return kind(number)
    elif kind is str:
        if isinstance(value, str):
            return value
        if raw is not None and value is not None:
            return raw
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    elif kind is list:
        if isinstance(value, list | tuple):
            return list(value)
        if isinstance(value, str):
            parts = value.removeprefix("[").removesuffix("]").split(",")
            return [part.strip() for part in parts if part.strip()]
    elif kind is dict and isinstance(value, dict):
        return value
    raise _wrong_type(key, kind, value, source)


def _convert_either(key: str, value: Any, source: str) -> Any:
    for kind in _EITHER[key]:
        try:
            return convert(key, value, kind, source)
        except ConfigError:
            continue
    words = " or ".join(_WORDS[kind] for kind in _EITHER[key])
    raise ConfigError(f"{source}{key} must be {words}, got {value!r}")


# --- Merging ---


@dataclass(frozen=True)
class _Source:
    """Where settings come from.

    Attributes:
        shown: what `describe_config` says of it.
        path: the file, with which messages about its settings begin; None: without.
        raw: what was typed, on a command line.
    """

    shown: str
    path: Path | None = None
    raw: str | None = None

    @classmethod
    def file(cls, path: Path, part: str = "") -> _Source:
        return cls(f"{shown_path(path)}{part}", path)

    @property
    def shipped(self) -> bool:
        """Whether it is one of this laboratory's own files."""
        return self.path is not None and Path(os.path.abspath(self.path)).is_relative_to(CONFIG_DIR)

    def __str__(self) -> str:
        return f"{self.path}: " if self.path else ""


@dataclass
class _Merger:
    """The config so far, with the type and the source of every key known so far."""

    config: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, type] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    origins: dict[str, str] = field(default_factory=dict)
    asked: dict[str, tuple[Any, _Source]] = field(default_factory=dict)

    def define(self, layer: Mapping[str, Any], source: _Source) -> None:
        """Merges a yaml file that belongs to the definition: keys that it adds exist from now
        on.
        """
        self._merge(self.config, self._understood(layer, source, True), "", source, new_keys=True)

    def update(self, layer: Mapping[str, Any], source: _Source) -> None:
        """Merges settings whose keys must exist already."""
        self._merge(self.config, self._understood(layer, source, False), "", source, new_keys=False)

    def _understood(
        self, layer: Mapping[str, Any], source: _Source, new_keys: bool
    ) -> Mapping[str, Any]:
        """A layer with what its foreign keys mean; notes what the user asks for."""
        if source.shipped:
            return layer
        full = dict(layer)
        for foreign, key, value in meant(layer):
            if not new_keys and key not in self.config:
                continue  # it belongs to an algorithm that is not asked for
            full[key] = merged(full.get(key), value)
            _log.info("%s%s=%s means %s=%s here", source, foreign, layer[foreign], key, value)
        self.asked |= {key: (value, source) for key, value in full.items()}
        return full

    def _merge(
        self,
        target: dict[str, Any],
        layer: Mapping[str, Any],
        prefix: str,
        source: _Source,
        new_keys: bool,
    ) -> None:
        known = [
            str(key) for key in target
        ]  # the keys of earlier files: those of one file may resemble each other
        for key, value in layer.items():
            full = f"{prefix}{key}"
            if key not in target:
                self._add(target, key, value, prefix, source, new_keys, known)
            elif isinstance(target[key], dict):
                if not isinstance(value, Mapping):
                    raise _wrong_type(full, dict, value, str(source))
                self._merge(target[key], value, f"{full}.", source, new_keys)
            else:
                target[key] = self._convert(full, value, source)
                self.origins[full] = source.shown
                self._fix_type(full, target[key], new_keys)

    def _convert(self, full: str, value: Any, source: _Source) -> Any:
        """A new value of a key that exists, in the key's type."""
        if full not in self.kinds:
            return copy.deepcopy(_free(value))
        null = value is None or (isinstance(value, str) and value.lower() in ("null", "none"))
        if null and full in _NULLABLE:
            return None
        if full in _EITHER:
            return _convert_either(full, value, str(source))
        return convert(full, value, self.kinds[full], str(source), source.raw)

    def _fix_type(self, full: str, value: Any, new_keys: bool) -> None:
        """The first value that a defining file gives a key fixes the key's type."""
        kind = _NULLABLE.get(full) or (type(value) if type(value) in _WORDS else None)
        if kind is not None and new_keys:
            self.kinds.setdefault(full, kind)

    def _add(
        self,
        target: dict[str, Any],
        key: str,
        value: object,
        prefix: str,
        source: _Source,
        new_keys: bool,
        known: list[str],
    ) -> None:
        full, parent = f"{prefix}{key}", prefix.removesuffix(".")
        foreign = not parent and full in FOREIGN
        if not new_keys and parent not in self.open and not foreign:
            hint = (
                nearest(full, self._names(self.config))
                or "src/config/default.yaml lists and explains the keys"
            )
            raise ConfigError(f"{source}unknown key '{full}'; {hint}")
        if not foreign and not (
            new_keys and parent
        ):  # inside a mapping of one's own file, similar names are no accident
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.8 if parent else 0.93)
            if close:
                _log.warning(
                    "%skey '%s' is new; did you mean '%s%s'?", source, full, prefix, close[0]
                )
        self.origins[full] = source.shown
        if parent == "env_args" and new_keys and not source.shipped:
            self.config["env_args_optional"].append(str(key))
        if isinstance(value, Mapping):
            target[key] = {}
            if not value or parent in self.open:
                self.open.add(full)
            self._merge(target[key], value, f"{full}.", source, new_keys)
            return
        target[key] = copy.deepcopy(_free(value) if not new_keys else value)
        self._fix_type(full, value, new_keys)

    def _names(self, mapping: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
        for key, value in mapping.items():
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from self._names(value, f"{prefix}{key}.")


def build_config(algorithm: str, environment: str, updates: Iterable[str] = ()) -> dict[str, Any]:
    """The config of a run, merged and checked; `seed` may still be None (`set_seed` draws it).

    Args:
        algorithm: name of a file in `config/algs/`, or the path of a yaml file.
        environment: the same in `config/envs/`.
        updates: what stands behind `with` on the command line: `key=value`, `env_args.key=value` or
            files of settings. Files count less than single settings, as in Sacred.

    Raises:
        ConfigError: an unknown key, algorithm, environment or scenario, a value of the wrong type
            or out of range, a broken file.
    """
    return trace_config(algorithm, environment, updates)[0]


def trace_config(
    algorithm: str, environment: str, updates: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """`build_config`, and where each value comes from.

    Returns:
        The config, and for each of its keys (`env_args.map_name` for entries of mappings) the file,
        section or other source that gave it its value, in words for `describe_config`.
    """
    alg_path, env_path = find_config("algs", algorithm), find_config("envs", environment)
    merger = _Merger()
    defaults = read_file(CONFIG_DIR / "default.yaml")
    merger.define(defaults, _Source("default.yaml", CONFIG_DIR / "default.yaml"))
    env_chain, alg_chain = load_chain(env_path, "envs"), load_chain(alg_path, "algs")
    updates = [update.strip() for update in updates if update.strip()]
    layers = _read_updates(updates)
    contents = [content for _, content in (*env_chain, *alg_chain)]
    of_learner = _learner_files().get(_learner([*contents, *(one for one, _ in layers)]))
    if of_learner is not None:
        merger.define(read_file(of_learner), _Source.file(of_learner))
    for path, content in env_chain:
        merger.define(content, _Source.file(path))
    of_env = list(merger.config["env_args_optional"])
    for path, content in alg_chain:
        merger.define(content, _Source.file(path))

    for layer, source in layers:
        merger.update(layer, source)
    if merger.config["scenario"]:
        ancestors = [path.stem for path, _ in alg_chain]
        _update_for_scenario(merger, merger.config["scenario"], ancestors)
        # Once more: what is asked for counts more than what a scenario suggests.
        for layer, source in layers:
            merger.update(layer, source)
    config = merger.config
    for key, path in (("name", alg_path), ("env_config", env_path)):
        if not config[key]:
            config[key], merger.origins[key] = path.stem, f"the name of {shown_path(path)}"
    if config["seed"] is None:
        merger.origins["seed"] = "the system's random numbers"
    merger.origins["env_args.seed"] = "seed"
    if not config["plugins"]:  # then an environment's file is for one of ours, and a typo an error
        config["env_args_optional"] = [
            key for key in config["env_args_optional"] if key not in of_env
        ]
    for key in ("local_results_path", "checkpoint_path", "resume"):
        config[key] = os.path.expanduser(config[key])
    check_config(config)
    _say_what_changes_nothing(merger, defaults)
    return config, merger.origins


def describe_config(config: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """The config as yaml, one line per value with a comment that says where it comes from, in the
    order of the files. (As a file behind `with`, it gives the same config again.)

    Args:
        config, origins: as from `trace_config`.
    """
    return "".join(
        f"{line:<{_ORIGIN_COLUMN}}  # from {origin}\n" if origin else f"{line}\n"
        for line, origin in _described(config, origins, "")
    )


def _described(
    mapping: Mapping[str, Any], origins: Mapping[str, str], prefix: str
) -> Iterator[tuple[str, str]]:
    indent = "  " * prefix.count(".")
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", ""
            yield from _described(value, origins, f"{prefix}{key}.")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
            shown = text.removesuffix("...\n").rstrip("\n")
            yield f"{indent}{key}: {shown}", origins[f"{prefix}{key}"]


def _read_updates(updates: Iterable[str]) -> list[tuple[dict[str, Any], _Source]]:
    """The settings of a command line as layers, files before single ones."""
    from sacred.arg_parser import get_config_updates

    layers: list[tuple[dict[str, Any], _Source]] = []
    for update in updates:
        if "=" not in update:
            if not update.endswith(SUFFIXES):
                raise ConfigError(
                    f"cannot read '{update}': expected key=value or the path of a .yaml or .json "
                    "file"
                )
            path = Path(update).expanduser()
            layers.append((read_file(path), _Source.file(path)))
    for update in updates:
        if "=" in update:
            key, _, text = update.partition("=")
            if not all(key.strip().split(".")):
                raise ConfigError(f"cannot read '{update}': expected key=value")
            try:
                layer, _ = get_config_updates([update])
            except (RecursionError, MemoryError, ValueError, OverflowError) as exc:
                raise ConfigError(f"cannot read the value of {key.strip()[:200]}: {exc}") from exc
            check_size(layer, key.strip())
            layers.append((layer, _Source("the command line", raw=text.strip())))
    return layers


def _learner(layers: Iterable[Mapping[str, Any]]) -> str:
    """The learner that the last layer which names one names."""
    named = [layer["learner"] for layer in layers if "learner" in layer]
    return str(named[-1]) if named else ""


def _say_what_changes_nothing(merger: _Merger, defaults: Mapping[str, Any]) -> None:
    """One line for each setting that was asked for and has no effect."""
    asked = {key: value for key, (value, _) in merger.asked.items()}
    for key, words in without_effect(merger.config, asked, defaults):
        value, source = merger.asked[key]
        _log.warning("%s%s=%s %s", source, key, value, words)
    if merger.config["plugins"]:
        return  # they read keys of their own
    new = [key for key in asked if key not in defaults and key not in FOREIGN]
    shipped = list(_shipped_contents()) if new else []
    learners = {one.get("learner") for one in shipped} | set(_learner_files())
    if merger.config.get("learner") not in learners:
        return  # somebody else's, which may read any key
    known = set().union(*shipped)
    unread: dict[str, list[str]] = {}
    for key in new:
        if key not in known:
            unread.setdefault(str(merger.asked[key][1]), []).append(key)
    for where, keys in unread.items():
        _log.warning("%snothing here reads %s", where, ", ".join(keys))


def _learner_files() -> dict[str, Path]:
    return {path.stem: path for path in (CONFIG_DIR / "learners").glob("*.yaml")}


def _shipped_contents() -> Iterator[dict[str, Any]]:
    for kind in ("algs", "envs", "learners"):
        for path in (CONFIG_DIR / kind).glob("*.yaml"):
            yield read_file(path)


def _update_for_scenario(merger: _Merger, scenario: str, ancestors: list[str]) -> None:
    """Merges what a scenario has for the algorithm: the section of its learner, then those of the
    files that it inherits from, then that of its own name.

    Args:
        merger: what the sections are merged into.
        scenario: name of a file in `config/scenarios/`, or the path of a yaml file.
        ancestors: names of the algorithm's files, the root first, its own last.

    Raises:
        ConfigError: there is no such scenario, it has nothing for this algorithm, or a section is
            no mapping.
    """
    chain = load_chain(find_config("scenarios", scenario), "scenarios")
    sections = dict.fromkeys(name for _, content in chain for name in content)
    mine = [name for name in (merger.config.get("learner"), *ancestors) if name in sections]
    if not mine:
        raise ConfigError(
            f"scenario '{scenario}' has no settings for '{ancestors[-1]}', only for "
            f"{', '.join(sections) or 'nothing'}"
        )
    for name in mine:
        for path, content in chain:
            source = _Source.file(path, f", {name}")
            section = content.get(name, {})
            if not isinstance(section, Mapping):
                raise _wrong_type(name, dict, section, str(source))
            merger.update(section, source)


# --- Checks ---


# Names of plug-ins (runner, mac, learner, ...) only have to be names: their registries know them,
# plug-ins of the user included. Keys of algorithms have their ranges in their learners.
RANGES: dict[str, Range] = {
    # run
    "name": NAME,
    "env_config": NAME,
    "repeat_id": COUNT,
    "seed": Range(lambda value: 0 <= value < 2**32, "between 0 and 4294967295"),
    "t_max": COUNT,
    "acting_threads": COUNT,
    "learner_threads": NOT_NEGATIVE,
    # environment
    "reward_scalarisation": one_of("sum", "mean"),
    "env_timeout": POSITIVE,
    "max_env_restarts": NOT_NEGATIVE,
    # collecting episodes
    "runner": NAME,
    "batch_size_run": COUNT,
    "mac": NAME,
    "action_selector": NAME,
    "ray.envs_per_actor": COUNT,
    "ray.resources": AMOUNTS,
    "ray.patience": POSITIVE,
    "epsilon_start": PROBABILITY,
    "epsilon_finish": PROBABILITY,
    "epsilon_anneal_time": COUNT,
    # evaluation
    "evaluation_epsilon": PROBABILITY,
    "test_interval": COUNT,
    "test_nepisode": COUNT,
    "film_format": one_of(*FORMATS),
    # results, logging
    "local_results_path": NAME,
    "log_interval": COUNT,
    "runner_log_interval": COUNT,
    "learner_log_interval": COUNT,
    # checkpoints
    "save_model_interval": COUNT,
    "keep_checkpoints": COUNT,
    "load_step": NOT_NEGATIVE,
    "checkpoint_agents": NOT_NEGATIVE,
    # replay buffer
    "buffer_size": COUNT,
    "buffer_dtype": one_of("float32", "float16"),
    "replay": one_of("episodes", "transitions", "latest"),
    "batch_size": COUNT,
    "accumulated_episodes": NOT_NEGATIVE,
    "updates_per_collection": COUNT,
    "steps_per_update": NOT_NEGATIVE,
    "updates_per_step": COUNT,
    "warmup_episodes": NOT_NEGATIVE,
    "transition_history": NOT_NEGATIVE,
    "recent_transitions": NOT_NEGATIVE,
    "per_alpha": PROBABILITY,
    "per_beta": PROBABILITY,
    # optimisation
    "gamma": PROBABILITY,
    "lr": FINITE_POSITIVE,
    "optimizer": one_of("rmsprop", "adam", "radam"),
    "optim_alpha": SMOOTHING,
    "optim_eps": FINITE_POSITIVE,
    "adam_eps": FINITE_POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "grad_norm_clip": POSITIVE,
    "target_update_interval": COUNT,
    "target_tau": PROBABILITY,
    # targets of value-based learners
    "td_lambda": PROBABILITY,
    "hysteretic_beta": PROBABILITY,
    # networks
    "agent": NAME,
    "agent_output_type": one_of("q", "pi_logits"),
    "rnn_hidden_dim": COUNT,
    "gain": FINITE_POSITIVE,
    "norm_layers": COUNT,
    "norm_place": one_of("before", "after"),
    "mixing_embed_dim": COUNT,
    "hypernet_embed": COUNT,
    "hypernet_layers": one_of(1, 2),
    "qmix_pos_func": one_of("abs", "softplus", "quadratic"),
}

OBSERVERS = ("mongo", "sql")


def check_config(config: Mapping[str, Any]) -> None:
    """Checks ranges and choices (`RANGES`) and keys that depend on each other.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    check_ranges(config, RANGES)
    if not config["plugins"]:  # they may mean something else by them
        check_ranges(config, FIXED)
    for key, what in (("env", "environment"), ("learner", "algorithm")):
        if not config.get(key):
            raise ConfigError(f"the {what}'s yaml file sets no '{key}'")
    if config["runner"] == "episode" and config["batch_size_run"] != 1:
        raise ConfigError(
            "runner 'episode' steps one environment: set batch_size_run=1 (got "
            f"{config['batch_size_run']}) "
            "or runner=parallel"
        )
    if config["use_per"] and config["replay"] != "episodes":
        raise ConfigError(
            f"use_per draws whole episodes: set replay=episodes (got {config['replay']})"
        )
    for key in ("batch_size", "batch_size_run"):
        in_episodes = key == "batch_size_run" or config["replay"] != "transitions"
        if in_episodes and config[key] > config["buffer_size"]:
            raise ConfigError(
                f"{key} ({config[key]}) must not be greater than buffer_size "
                f"({config['buffer_size']})"
            )
    if config["evaluate"] and not config["checkpoint_path"]:
        raise ConfigError("evaluate=True needs checkpoint_path=..., the checkpoint to evaluate")
    if config["checkpoint_agents"] and not config["evaluate"]:
        raise ConfigError("checkpoint_agents is for evaluation only: set evaluate=True")
    if config["checkpoint_path"] and not os.path.exists(config["checkpoint_path"]):
        raise ConfigError(f"checkpoint_path: no such file or folder: {config['checkpoint_path']}")
    check_loggers(config)
    for kind, options in config["observers"].items():
        if kind not in OBSERVERS:
            raise ConfigError(f"unknown observer '{kind}'; {nearest(kind, OBSERVERS)}")
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"observers.{kind} must be a mapping such as {{url: ...}}, got {options!r}"
            )


# --- What a run needs besides ---


def set_seed(config: dict[str, Any]) -> None:
    """Draws `seed` from the operating system if it is None, and passes it on as `env_args["seed"]`,
    as PyMARL does.
    """
    if config["seed"] is None:
        config["seed"] = int.from_bytes(os.urandom(4), "little") >> 1
    config["env_args"]["seed"] = config["seed"]


def resolve_device(config: dict[str, Any], log: logging.Logger) -> str:
    """`"cuda"` or `"cpu"`; without a CUDA device, `use_cuda` becomes False with one warning."""
    if not config["use_cuda"]:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    why = (
        "this torch is built without CUDA"
        if torch.version.cuda is None
        else "torch finds no CUDA device"
    )
    log.warning(
        "use_cuda: True, but %s: training on the CPU (`python src/main.py doctor` tells more)", why
    )
    config["use_cuda"] = False
    return "cpu"


def task_name(config: Mapping[str, Any]) -> str:
    """What a run is about, as a folder name: `env_args.map_name`, else `env_args.key`, else
    `env_config`.
    """
    for name in (config["env_args"].get("map_name"), config["env_args"].get("key")):
        if isinstance(name, str) and name.strip():
            return safe_name(name)
    return safe_name(config["env_config"])


def safe_name(name: str) -> str:
    """`name` with every character replaced that means something in a path or a shell; one that is
    too long for a folder ends in a digest.
    """
    safe = re.sub(r"[^\w.+=@-]", "-", name.strip()).lstrip(".-") or "unnamed"
    if len(safe.encode()) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(safe.encode()).hexdigest()[:8]
    return f"{safe.encode()[: _LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def results_dir(config: Mapping[str, Any]) -> Path:
    """`results/sacred/ALG/MAP`, in which every run has a folder named by its number."""
    return (
        Path(config["local_results_path"])
        / "sacred"
        / safe_name(config["name"])
        / task_name(config)
    )


def check_results_folder(folder: Path) -> None:
    """Makes sure that a run can write into `folder`, by writing, syncing and deleting 64 kB. Leaves
    nothing behind.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    missing = missing_folders(folder)
    probe = folder / f".write_test_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(os.urandom(_WRITE_TEST_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        what = (
            "no space left: free some"
            if is_disk_full(exc)
            else f"cannot write there ({exc.strerror}): mend that"
        )
        raise UserError(f"results folder {folder}: {what} or set local_results_path=...") from exc
    finally:
        try:
            probe.unlink(missing_ok=True)
        except OSError as exc:  # e.g. the path leads through a file: nothing was written
            _log.debug("%s: %s", probe, exc)
        remove_empty(missing)


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and those of its parents that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, innermost first, stopping at the first that is not empty or not there to be
    removed.
    """
    for path in folders:
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


_DISK_PROBLEMS = {
    errno.EIO: "the disk of {} fails (input/output error): see to it",
    errno.EROFS: "the disk of {} has become read-only: see to it",
    errno.ESTALE: "the disk of {} is gone (stale file handle): bring it back",
}


def disk_problem(exc: BaseException | None) -> str:
    """What an exception, or one that led to it, says about the disk: a message with `{}` for the
    folder; empty if it is about something else.
    """
    if is_disk_full(exc):
        # The file system says the same when it has bytes left but no more files (inodes).
        return "no space left on the disk of {}: free some"
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in _DISK_PROBLEMS:
            return _DISK_PROBLEMS[exc.errno]
        exc = exc.__cause__ or exc.__context__
    return ""


def is_disk_full(exc: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that the disk or the quota is full."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(exc, RuntimeError) and any(text in str(exc) for text in _TORCH_WRITE_ERRORS):
            return True
        exc = exc.__cause__ or exc.__context__
    return False
