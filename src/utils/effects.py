"""Settings that mean another one, and settings without effect: each is said in one line.

PyMARL2's and EPyMARL's yaml files and command lines name keys that have another name here, or that
nothing here reads: `MEANS` and `UNREAD`. Other keys count only beside another setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from utils.errors import ConfigError
from utils.ranges import Range, one_of

Settings = Mapping[str, Any]


def _to(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {key: value}


def _network(use_rnn: Any) -> dict[str, Any]:
    return {} if use_rnn else {"agent": "mlp"}


def _interval(value: Any) -> dict[str, Any]:
    if not isinstance(value, int | float) or value <= 1:
        raise ConfigError(
            f"target_update_interval_or_tau={value} asks for soft updates, which the Q-learners do "
            "not have: set target_update_interval=..., in episodes"
        )
    return {"target_update_interval": int(value)}


def _loop(value: Any) -> dict[str, Any]:
    return {"use_per": True} if value == "per_run" else {}


def _wandb(option: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {} if value is None else {"logger_args": {"wandb": {option: value}}}


# A key of PyMARL2 or EPyMARL -> the settings of this laboratory that its value means.
MEANS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "hidden_dim": _to("rnn_hidden_dim"),
    "use_rnn": _network,
    "target_update_interval_or_tau": _interval,
    "test_noise": _to("evaluation_epsilon"),
    "type": lambda value: {"weighted_head": value == "weighted"},
    "run": _loop,
    "use_wandb": lambda value: {"loggers": ["wandb"]} if value else {},
    "wandb_team": _wandb("entity"),
    "wandb_project": _wandb("project"),
    "wandb_mode": _wandb("mode"),
}


@dataclass(frozen=True)
class Unread:
    """A key that nothing here reads.

    Attributes:
        agrees: whether a value says what is done anyway, by the settings and the value.
        why: half a sentence, for the line.
    """

    agrees: Callable[[Settings, Any], bool]
    why: str


def _is(*neutral: Any) -> Callable[[Settings, Any], bool]:
    return lambda config, value: value in neutral


UNREAD: dict[str, Unread] = {
    "wandb_save_model": Unread(_is(False), "models stay in the run's folder"),
    "hypergroup": Unread(_is(None), "it groups EPyMARL's runs in databases; label does that"),
    "critic_lr": Unread(lambda config, value: value == config["lr"], "lr is that of all networks"),
    "is_stop_gradient": Unread(_is(True), "advantages are always detached, as in PyMARL2"),
    "is_adv_attention": Unread(_is(True), "the attention is always there, as in PyMARL2"),
    "n_head_embedding_layer2": Unread(
        lambda config, value: value == config.get("n_attention_head"), "it is n_attention_head"
    ),
}
# Keys that have one value here, or a few.
FIXED: dict[str, Range] = {
    "run": one_of("default", "per_run"),
    "central_mac": one_of("basic_central_mac"),
    "central_mixer": one_of("ff"),
    "abs": one_of(True),
}
FOREIGN = {*MEANS, *UNREAD, *FIXED}


def meant(layer: Settings) -> Iterator[tuple[str, str, Any]]:
    """(foreign key, key, value): what the foreign keys of a layer of settings mean.

    Raises:
        ConfigError: a value that nothing here can do.
    """
    for key in MEANS.keys() & layer.keys():
        for ours, value in MEANS[key](layer[key]).items():
            if ours not in layer:
                yield key, ours, value


def merged(old: Any, new: Any) -> Any:
    """`new`, or both where both are mappings."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def _needs(key: str) -> tuple[Callable[[Settings], bool], str]:
    return lambda config: bool(config.get(key)), f"without {key}"


_EVALUATION = _needs("evaluate")
_CHECKPOINTS = _needs("save_model")
_PRIORITIES = _needs("use_per")
_TRANSITIONS = (lambda config: config["replay"] == "transitions", "without replay=transitions")
_N_RNN = (lambda config: config["agent"] == "n_rnn", "with another agent than n_rnn")
_NORM_RNN = (lambda config: config["agent"] == "norm_rnn", "with another agent than norm_rnn")


def _orthogonal_reader(config: Settings) -> bool:
    readers = config["agent"] in ("n_rnn", "norm_rnn") or "critic_layer_norm" in config
    return readers or config["mixer"] in ("qmix", "nmix")


# Key -> when it counts, and how it reads after "has no effect" where it does not. First what a run
# itself reads, then what its parts do: those of a plug-in may read it anyhow.
_RUN: dict[str, tuple[Callable[[Settings], bool], str]] = {
    "load_step": _needs("checkpoint_path"),
    "save_replay": _EVALUATION,
    "render": _EVALUATION,
    "save_model_interval": _CHECKPOINTS,
    "keep_checkpoints": _CHECKPOINTS,
    "checkpoint_buffer": _CHECKPOINTS,
    "per_alpha": _PRIORITIES,
    "per_beta": _PRIORITIES,
    "return_priority": _PRIORITIES,
    "transition_history": _TRANSITIONS,
    "recent_transitions": _TRANSITIONS,
    "updates_per_step": _needs("steps_per_update"),
    "accumulated_episodes": (
        lambda config: not config["steps_per_update"],
        "beside steps_per_update",
    ),
    "reward_scalarisation": _needs("common_reward"),
    "checkpoint_agents": _EVALUATION,
}
_PARTS: dict[str, tuple[Callable[[Settings], bool], str]] = {
    "optim_alpha": (
        lambda config: config["optimizer"] == "rmsprop",
        "with another optimizer than rmsprop",
    ),
    "optim_eps": (
        lambda config: config["optimizer"] == "rmsprop",
        "with another optimizer than rmsprop; Adam's own is adam_eps",
    ),
    "adam_eps": (lambda config: config["optimizer"] != "rmsprop", "with optimizer=rmsprop"),
    "use_layer_norm": _N_RNN,
    "norm_layers": _NORM_RNN,
    "norm_place": _NORM_RNN,
    "norm_inputs": _NORM_RNN,
    "norm_memory": _NORM_RNN,
    "use_orthogonal": (_orthogonal_reader, "with this agent and mixer"),
    "gain": _needs("use_orthogonal"),
    "env_timeout": (
        lambda config: config["runner"] not in ("episode", "vector"),
        "without worker processes (runner=parallel)",
    ),
}


def without_effect(
    config: Settings, asked: Mapping[str, Any], defaults: Settings
) -> Iterator[tuple[str, str]]:
    """(key, why) of the settings that were asked for and change nothing.

    Args:
        config: merged.
        asked: key -> value of what the command line and the user's own files say.
        defaults: what default.yaml says: a value that is the default changes nothing anyway.
    """
    plugged = bool(config["plugins"])
    only_with = _RUN if plugged else _RUN | _PARTS
    for key, typed in asked.items():
        value = config.get(key, typed)
        if key in UNREAD and not plugged and not UNREAD[key].agrees(config, value):
            yield key, f"has no effect here: {UNREAD[key].why}"
        if key in only_with and value != defaults.get(key):
            counts, words = only_with[key]
            if not counts(config):
                yield key, f"has no effect {words}"
