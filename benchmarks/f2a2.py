"""What an update of F2A2 costs: all instantiations on the sizes of Rover-Tower, ISAC as the agents
grow in number.

F2A2-ISAC is meant for very many agents, so its update should grow in proportion to their number.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.actor_critic import rover_tower_args
from benchmarks.actor_critic import update as maac_update
from benchmarks.common import Table, in_turn, make_args, make_learner, median_seconds

from components.distributions import MaskedCategorical
from components.transitions import Transitions
from utils.memory import keep_freed_memory

INSTANTIATIONS = ("sac", "ddpg", "td3", "isac")
AGENTS = (12, 32, 64, 128, 256)
# MAgent's battle as PettingZoo has it: 13 x 13 cells of 5 channels, 21 actions.
BATTLE = {"n_actions": 21, "obs_shape": 845, "state_shape": 1, "continuous_actions": False}
BATCH = 1024


def random_transitions(
    args: SimpleNamespace, n: int, recent: bool = True, seed: int = 0
) -> Transitions:
    """n transitions of random numbers, with what F2A2 reads beside them; all actions are
    available.
    """
    rng = torch.Generator().manual_seed(seed)
    a, u, o, h = args.n_agents, args.n_actions, args.obs_shape, args.transition_history
    seen = torch.arange(o) < torch.tensor(args.env_info["obs_sizes"]).unsqueeze(1)
    avail = torch.ones(n, a, u, dtype=torch.uint8)
    entries = {
        "obs": torch.randn(n, a, o, generator=rng) * seen,
        "next_obs": torch.randn(n, a, o, generator=rng) * seen,
        "avail_actions": avail,
        "next_avail_actions": avail,
        "actions": torch.randint(u, (n, a), generator=rng),
        "behaviour": MaskedCategorical(torch.randn(n, a, u, generator=rng), avail).log_probs,
        "reward": torch.randn(n, a, generator=rng),
        "terminated": torch.zeros(n, 1),
    }
    if h:
        entries["past_obs"] = torch.randn(n, h, a, o, generator=rng) * seen
        entries["past_actions"] = torch.randint(u, (n, h, a), generator=rng)
        entries["past_filled"] = torch.ones(n, h)
    batch = Transitions(entries, torch.zeros(a), torch.ones(a))
    if recent and args.recent_transitions:
        batch.recent = random_transitions(args, args.recent_transitions, False, seed + 1)
    return batch


def update_of(args: SimpleNamespace) -> Callable[[], Any]:
    """A function that takes one update of a new learner."""
    learner = make_learner(args)
    if learner.models is not None:
        shape = args.moa_trajectories, args.moa_trajectory_steps, args.n_agents
        obs = torch.zeros(*shape, args.obs_shape)
        learner.models.set_trajectories(
            obs, torch.zeros(shape, dtype=torch.int64), torch.ones(shape[:2])
        )
    batch = random_transitions(args, args.batch_size)
    return lambda: learner.train(batch, 0, 0)


def instantiations(quick: bool) -> Table:
    """One update on Rover-Tower's sizes beside one of MAAC."""
    table = Table(
        "f2a2_update",
        f"F2A2: one update, Rover-Tower's sizes (8 agents), {BATCH} transitions, CPU, one thread",
        ("method", "time [ms]", "MAAC [ms]", "ratio"),
        note="F2A2 has a critic for every agent (SAC, TD3: two) instead of one for all, and models "
        "of the others.",
    )
    quiet = {"seed": 1, "batch_size": BATCH}
    without = {"moa": False, "transition_history": 0, "recent_transitions": 0}
    methods = {name: (name, {}) for name in INSTANTIATIONS} | {"sac, no models": ("sac", without)}
    for label, (name, own) in methods.items():
        update = update_of(rover_tower_args(f"f2a2_{name}", share_params=False, **quiet, **own))
        result = in_turn(
            lambda update=update: update, maac_update("maac"), 1 if quick else 5, warm_up=1
        )
        table.add(label, f"{result.ours:.0f}", f"{result.theirs:.0f}", str(result))
    return table


def growth(quick: bool) -> Table:
    """F2A2-ISAC on MAgent's sizes, 12 to 256 agents."""
    table = Table(
        "f2a2_isac",
        "F2A2-ISAC: one update, MAgent's battle, 128 transitions of all agents, CPU, one thread",
        ("agents", "networks in common [ms]", "per agent [ms]", "copies [ms]", "per agent [ms]"),
    )
    for n in AGENTS[:2] if quick else AGENTS:
        info = {"obs_sizes": (BATTLE["obs_shape"],) * n, "action_sizes": (BATTLE["n_actions"],) * n}
        columns = []
        for share in (True, False):
            args = make_args(
                "f2a2_isac",
                n_agents=n,
                env_info=info,
                **(BATTLE | {"seed": 1, "share_params": share}),
            )
            ms = 1e3 * median_seconds(update_of(args), 1 if quick else 3)
            columns += [f"{ms:.0f}", f"{ms / n:.2f}"]
        table.add(n, *columns)
    return table


def run(quick: bool) -> list[Table]:
    """All tables, one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    return [instantiations(quick), growth(quick)]
