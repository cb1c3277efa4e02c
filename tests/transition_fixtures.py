"""Random transitions for tests of off-policy learners, and short whole runs on matrix games."""

import copy
import logging
from types import SimpleNamespace

import torch

import training
from components.transitions import Transitions
from utils.config import build_config, check_config
from utils.seeding import seed_globals
from utils.state import capture, restore


def make_transitions(args, n=9, seed=0, sizes=None):
    """n random transitions; entries behind an agent's own sizes are 0, every third one is terminal.

    Args:
        sizes: (obs sizes, action sizes), one each per agent; the largest ones everywhere unless
            given.
    """
    rng = torch.Generator().manual_seed(seed)
    a, u, o = args.n_agents, args.n_actions, args.obs_shape
    obs_sizes, action_sizes = sizes or ([o] * a, [u] * a)
    seen = torch.arange(o) < torch.tensor(obs_sizes)[:, None]
    exists = torch.arange(u) < torch.tensor(action_sizes)[:, None]

    def available():
        avail = (torch.rand(n, a, u, generator=rng) < 0.6) & exists
        avail[..., 0] |= ~avail.any(-1)
        return avail

    avail = available()
    entries = {
        "obs": torch.randn(n, a, o, generator=rng) * seen,
        "next_obs": torch.randn(n, a, o, generator=rng) * seen,
        "state": torch.randn(n, args.state_shape, generator=rng),
        "next_state": torch.randn(n, args.state_shape, generator=rng),
        "avail_actions": avail.to(torch.uint8),
        "next_avail_actions": available().to(torch.uint8),
        "actions": torch.where(avail, torch.rand(n, a, u, generator=rng), -1.0).argmax(-1),
        "reward": torch.randn(n, 1 if args.common_reward else a, generator=rng),
        "terminated": (torch.arange(n) % 3 == 2).float().unsqueeze(1),
    }
    if args.continuous_actions:
        entries["actions"] = (torch.rand(n, a, u, generator=rng) * 2 - 1) * exists
        for name in ("avail_actions", "next_avail_actions"):
            entries[name] = torch.ones(n, a, u, dtype=torch.uint8)
    size = entries["reward"].shape[1]
    return Transitions(entries, torch.full((size,), 0.5), torch.arange(1, size + 1) * 2.0)


def assert_continues(learner, other, batch):
    """A learner that takes over the state of another one in mid-training goes on as that one
    does.
    """
    learner.train(batch, 0, 0)
    # What is captured refers to the weights themselves.
    state = copy.deepcopy(capture(learner, shared=(learner.args, learner.logger)))
    restore(other, copy.deepcopy(state))
    for twin in (learner, other):
        torch.manual_seed(9)
        twin.train(batch, 1, 1)
        twin.train(batch, 2, 2)
    first, second = (capture(twin, shared=(twin.args, twin.logger)) for twin in (learner, other))
    assert _flat(first) == _flat(second)
    assert _flat(first) != _flat(state)


def _flat(state):
    """The numbers of a nested state."""
    if isinstance(state, dict):
        return {key: _flat(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_flat(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def train_run(tmp_path, algorithm, environment, *settings):
    """A short whole run; the `Training` after it."""
    quiet = ["seed=1", "use_cuda=False", "save_model=False", "runner=vector", *settings]
    config = build_config(algorithm, environment, quiet)
    check_config(config)
    config["env_args"]["seed"] = config["seed"]
    logger = training.Logger(logging.getLogger("test"))
    logger.setup_files(tmp_path)
    seed_globals(config["seed"])
    args, nobody_stops = SimpleNamespace(**config, device="cpu"), SimpleNamespace(received=None)
    run = training.Training(args, logger, tmp_path, nobody_stops)
    try:
        run.run()
    finally:
        run.close()
    return run
