"""Short runs of learners on the CPU and on a device that is not there, for
`test_device_placement.py`.

`main` takes FOLDER NAME [NAME ...] from the command line and writes FOLDER/NAME.json for each of
these `RUNS`. It needs a process of its own: torch counts the devices when the first gradient is
computed, and this one must be known by then.
"""

import json
import sys
import tempfile
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch
from f2a2_fixtures import RECURRENT_RUNS, SMALL_RUN
from f2a2_fixtures import RUNS as F2A2
from pretend_cuda import PretendTensor, device, pretend_cuda, waits_noted
from run_fixtures import finish, start_run
from torch import Tensor
from torch.utils._pytree import tree_leaves

from utils.state import capture, restore

COMMON = [
    "seed=3",
    "test_interval=1000",
    "test_nepisode=2",
    "save_model_interval=100000",
    "learner_log_interval=1",
]
VALUES = [
    *(
        "env_args.episode_limit=6",
        "t_max=48",
        "batch_size=4",
        "buffer_size=8",
        "target_update_interval=2",
    ),
    *("batch_size_run=2", "runner=vector", "epsilon_anneal_time=100"),
]
SINGLES = [
    "t_max=100",
    "steps_per_update=25",
    "updates_per_step=1",
    "batch_size=16",
    "buffer_size=40",
]
EPISODES = ["t_max=100", "batch_size_run=4", "batch_size=4", "buffer_size=4"]
ACTORS = ["env_args.episode_limit=5", "critic_hidden_dim=8", "batch_size_run=4"]
# name -> configuration, environment, settings
RUNS = {
    **{
        name: (name, "predator_prey", VALUES)
        for name in (
            "qmix",
            "iql_ns",
            "qatten",
            "qplex",
            "qtran",
            "ow_qmix",
            "s2q",
            "s2q_comm",
            "s2q_vdn",
        )
    },
    **{name: (name, "predator_prey", VALUES) for name in ("dac", "hysteretic", "i2q")},
    **{
        name: (name, "predator_prey", [*VALUES, "batch_size_run=4", "critic_hidden_dim=8"])
        for name in ("ia2c", "vdac_mix")
    },
    "mappo_public": (
        "mappo_public",
        "predator_prey",
        [
            *VALUES,
            "batch_size_run=4",
            "critic_hidden_dim=8",
            "ppo_epochs=2",
            "popart=True",
            "accumulated_episodes=4",
        ],
    ),
    "pqn_vdn": ("pqn_vdn", "predator_prey", [*VALUES, "batch_size_run=4", "pqn_minibatches=1"]),
    **{
        name: (name, "predator_prey", VALUES)
        for name in ("fullcomm", "qmix_comm", "maic", "ndq", "masia", "t2mac")
    },
    **{name: (name, "spread", [*ACTORS, *SINGLES]) for name in ("maac", "mamd", "maddpg")},
    "mamt": ("mamt", "spread", [*ACTORS, *SINGLES, "trust_region_batch_size=8", "trd_steps=2"]),
    "mamt_random": (
        "mamt_random",
        "spread",
        [*ACTORS, *SINGLES, "trust_region_batch_size=8", "trd_steps=2"],
    ),
    "mamt_ppo": (
        "mamt_ppo",
        "spread",
        [*ACTORS, *EPISODES, "accumulated_episodes=4", "trust_region_batch_size=12", "trd_steps=2"],
    ),
    **{
        name: (name, "spread", [*ACTORS, *EPISODES, "accumulated_episodes=4"])
        for name in ("ma_ppo", "mappo")
    },
    "lola": ("lola", "spread", [*ACTORS[:1], *EPISODES]),
    **{name: (name, "rover_tower", [*SMALL_RUN, *own]) for name, own in F2A2.items()},
    **{
        f"{name}_rnn": (name, "rover_tower", [*SMALL_RUN, *own])
        for name, own in RECURRENT_RUNS.items()
    },
}


def trained(name: str, folder: Path, on: str) -> tuple[list[dict], dict]:
    """The records of a run and all that its learner is afterwards."""
    algorithm, env, settings = RUNS[name]
    training = start_run(algorithm, env, folder, [*COMMON, *settings], device=on)
    before = [tensor.clone() for tensor in _tensors(capture(training.learner))]
    finish(training)
    after = capture(training.learner)
    assert any(not torch.equal(x, y) for x, y in zip(before, _tensors(after), strict=False)), (
        "never trained"
    )
    if on == "cuda":
        # Training goes on where a checkpoint ended.
        file = folder / "learner.pt"
        torch.save(after, file)
        again = start_run(algorithm, env, folder / "again", [*COMMON, *settings], device=on)
        restore(again.learner, torch.load(file, map_location="cpu", weights_only=True))
        finish(again)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return records, after


def _tensors(state: dict) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def compared(name: str) -> dict:
    """What `test_device_placement.py` asserts of a run, but for `waits`."""
    found = {}
    for on in ("cpu", "cuda"):
        with (
            tempfile.TemporaryDirectory() as folder,
            pretend_cuda() if on == "cuda" else nullcontext(),
        ):
            records, learner = trained(name, Path(folder) / "run", on)
            away = [isinstance(tensor, PretendTensor) for tensor in _tensors(learner)]
            numbers = [tensor.cpu().double().flatten() for tensor in _tensors(learner)]
            found[on] = records, torch.cat(numbers), sum(away) / len(away)
    (records, numbers, there), (others, other_numbers, there_then) = found["cpu"], found["cuda"]
    values = [
        tree_leaves([record["value"] for record in recorded]) for recorded in (records, others)
    ]
    return {
        "names": [record["key"] for record in records] == [record["key"] for record in others],
        "records": len(records),
        "values": torch.allclose(
            *torch.tensor(values, dtype=torch.float64), rtol=1e-3, atol=1e-4, equal_nan=True
        ),
        "largest_difference": float((numbers - other_numbers).abs().max()),
        "share_on_device": [there, there_then],
    }


def waits(name: str) -> dict:
    """Where the updates of a run on the device wait for it, but for those that log."""
    algorithm, env, settings = RUNS[name]
    quiet = "learner_log_interval=1000000"
    found, updates = set(), 0
    with tempfile.TemporaryDirectory() as folder, pretend_cuda():
        training = start_run(
            algorithm, env, Path(folder) / "run", [*COMMON, *settings, quiet], "cuda"
        )
        train = training.learner.train

        def watched(*args, **kwargs):
            nonlocal updates
            with waits_noted() as lines:
                train(*args, **kwargs)
            updates += 1
            if updates > 1:  # the first one logs
                found.update(lines)

        training.learner.train = watched
        finish(training)
    return {"watched_updates": updates, "waiting_lines": sorted(found)}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    device()
    torch.set_num_threads(1)
    for name in names:
        try:
            result = compared(name) | waits(name)
        except Exception:
            result = {"error": traceback.format_exc()}
        (folder / f"{name}.json").write_text(json.dumps(result))
