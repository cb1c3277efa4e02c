"""From an environment's sizes to a learner: stored entries, controller, replay buffer, learner.

Whoever needs one of these parts gets it here (a run, a benchmark, an opponent with frozen weights,
a test), so that all of them are built alike.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from components.episode_buffer import EpisodeBatch, PrioritizedReplayBuffer, ReplayBuffer
from components.transforms import OneHot
from controllers import REGISTRY as CONTROLLERS
from learners import REGISTRY as LEARNERS
from learners.resets import Resets
from utils.errors import ConfigError
from utils.seeding import derive_seed

_log = logging.getLogger(__name__)

Scheme = tuple[dict[str, dict[str, Any]], dict[str, int], dict[str, tuple[str, list[Any]]]]


@dataclass(frozen=True)
class Parts:
    """What trains: the controller, the buffer its episodes go to, the learner."""

    mac: Any
    buffer: ReplayBuffer
    learner: Any


def assemble(args: SimpleNamespace, env_info: Mapping[str, Any], logger: Any) -> Parts:
    """All parts of a run in this environment, on the devices that `args` names.

    Args:
        args: the run's configuration, with `device`; it gets the environment's sizes.
        env_info: PyMARL's `get_env_info()`.
        logger: `utils.logging.Logger`.

    Raises:
        ConfigError: the settings do not fit one another, or not the environment.
        UserError: a name that no registry has, a buffer larger than the free memory.
    """
    describe_env(args, env_info)
    mac, learner = build_learner(args, logger)
    return Parts(mac, build_buffer(args, mac, logger.console_logger), learner)


def describe_env(args: SimpleNamespace, env_info: Mapping[str, Any]) -> None:
    """Sets in `args` what controllers and learners have to know of the environment."""
    for key in ("n_agents", "n_actions", "state_shape", "obs_shape", "episode_limit"):
        setattr(args, key, env_info[key])
    args.env_info = env_info
    if vars(args).get("agent_own_state_size") is True:
        args.agent_own_state_size = _own_state_size(args)
    if vars(args).get("cama_parts") == []:
        args.cama_parts = list(env_info.get("obs_parts", [args.obs_shape]))
    args.continuous_actions = env_info.get("continuous_actions", False)


def _own_state_size(args: SimpleNamespace) -> int:
    """With how many entries for each agent the state begins, as SMAC's: health, cooldown, two
    coordinates, the shield, the types' bits. 0 where the environment does not say.
    """
    features = args.env_info.get("agent_features")
    if features is None or args.env_args.get("obs_instead_of_state"):
        _log.info(
            "agent_own_state_size=True: environment '%s' does not say what its state begins with, "
            "so it is 0",
            args.env,
        )
        return 0
    return len(features)


def scheme_of(args: SimpleNamespace, mac: Any = None) -> Scheme:
    """What is stored of every step: scheme, groups and preprocess, as `EpisodeBatch` takes them.

    Args:
        args: with the environment's sizes (`describe_env`).
        mac: a controller, what it notes beside the actions (`recorded`) is stored too.
    """
    actions = {"vshape": (1,), "group": "agents", "dtype": torch.long}
    preprocess = {"actions": ("actions_onehot", [OneHot(out_dim=args.n_actions)])}
    if args.continuous_actions:
        actions, preprocess = {"vshape": (args.n_actions,), "group": "agents"}, {}
    scheme = {
        "state": {"vshape": args.state_shape},
        "obs": {"vshape": args.obs_shape, "group": "agents"},
        "actions": actions,
        "avail_actions": {"vshape": (args.n_actions,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (1 if args.common_reward else args.n_agents,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        "truncated": {"vshape": (1,), "dtype": torch.uint8},
    }
    # Controllers written for PyMARL record nothing.
    return scheme | getattr(mac, "recorded", {}), {"agents": args.n_agents}, preprocess


def new_batch(
    args: SimpleNamespace, n_episodes: int = 1, n_steps: int = 1, mac: Any = None
) -> EpisodeBatch:
    """An empty batch [n_episodes, n_steps] in main memory; its `scheme` has the derived entries,
    too.
    """
    scheme, groups, preprocess = scheme_of(args, mac)
    return EpisodeBatch(scheme, groups, n_episodes, n_steps, preprocess=preprocess)


def build_mac(args: SimpleNamespace) -> Any:
    """The controller that `args.mac` names."""
    batch = new_batch(args)
    return CONTROLLERS[args.mac](batch.scheme, batch.groups, args)


def build_buffer(args: SimpleNamespace, mac: Any, log: Any = None) -> ReplayBuffer:
    """The replay buffer, in main memory with `buffer_cpu_only`.

    Args:
        log: where its size is announced.
    """
    scheme, groups, preprocess = scheme_of(args, mac)
    shape = scheme, groups, args.buffer_size, args.episode_limit + 1
    options: dict[str, Any] = {
        "preprocess": preprocess,
        "device": "cpu" if args.buffer_cpu_only else args.device,
        "seed": derive_seed(args.seed, "buffer"),
        "dtype": getattr(torch, args.buffer_dtype),
        "log": log,
    }
    if not args.use_per:
        return ReplayBuffer(*shape, **options)
    priorities = args.per_alpha, args.per_beta, args.t_max
    return PrioritizedReplayBuffer(*shape, *priorities, by_return=args.return_priority, **options)


def _weights_episodes(learner_class: Any) -> bool:
    """Whether a learner can do with a prioritised buffer; one written for PyMARL2 shows it by the
    argument `per_weight`.
    """
    takes_weights = "per_weight" in inspect.signature(learner_class.train).parameters
    return getattr(learner_class, "weights_episodes", takes_weights)


def build_learner(args: SimpleNamespace, logger: Any) -> tuple[Any, Any]:
    """The controller and the learner that trains it, on `args.device`.

    Raises:
        ConfigError: settings that do not fit the learner, before anything is built.
    """
    learner_class = LEARNERS[args.learner]
    if hasattr(learner_class, "check_settings"):  # one written for PyMARL has no such method
        learner_class.check_settings(args)
    if args.use_per and not _weights_episodes(learner_class):
        raise ConfigError(
            f"learner '{args.learner}' does not weight episodes (per_weight): set use_per=False"
        )
    if args.reset_interval and not getattr(learner_class, "resets_networks", False):
        raise ConfigError(
            f"learner '{args.learner}' does not know resets of its networks: set reset_interval=0"
        )
    mac, learner = _new_learner(learner_class, logger, args)
    if args.reset_interval:
        learner.resets = Resets(
            learner, args, fresh=lambda: _new_learner(learner_class, logger, args)[1]
        )
    return mac, learner


def _new_learner(learner_class: Any, logger: Any, args: SimpleNamespace) -> tuple[Any, Any]:
    mac = build_mac(args)
    learner = learner_class(mac, new_batch(args, mac=mac).scheme, logger, args)
    if args.device == "cuda":
        learner.cuda()
    return mac, learner
