"""Sweeps whose runs wait in their middle for what a test does to them, and what they leave."""

import json
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
MAIN = TESTS.parent / "src" / "main.py"
GAME = TESTS / "launch" / "held_game"
SETTINGS = f"""methods: {{QMIX: qmix}}
seeds: [1]  # each task has its own
settings:
  plugins: [{GAME}.py]
  runner: vector
  t_max: 2000
  use_cuda: false
  test_interval: 500
  test_nepisode: 8
  batch_size_run: 8
  log_interval: 500
  save_model_interval: 500
  keep_checkpoints: 2
  buffer_size: 100
  batch_size: 8
  updates_per_collection: 1
metrics: {{test_return_mean: Return}}
"""


def write_spec(path, tasks, resources, folder):
    """A sweep of the held game.

    Args:
        tasks: label -> seeds. The runs of a task are held in their middle while
            `folder`/label exists.
        resources: as in yaml.
    """
    lines = [
        f"  {label}: {{environment: {GAME}.yaml, seeds: {seeds}, "
        f"settings: {{env_args.hold: {folder / label}}}}}"
        for label, seeds in tasks.items()
    ]
    text = "\n".join([f"{SETTINGS}resources: {resources}", "tasks:", *lines])
    path.write_text(f"# Runs that are interrupted\n{text}\n")


class Uninterrupted:
    """The runs of a sweep on this machine, which a test compares with; they begin at once."""

    def __init__(self, folder, tasks):
        spec = folder / "whole.yaml"
        write_spec(spec, tasks, "{cores: 1}", folder / "never")
        self.results = folder / "results" / "whole"
        with open(folder / "said", "w") as said:
            command = [sys.executable, str(MAIN), "sweep", str(spec), "--jobs", "1"]
            self.process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)

    def metrics(self):
        """Seed -> the bytes of its metrics, once all runs are over."""
        assert self.process.wait(900) == 0
        assert all(len(found) == 2 for found in events(self.results).values())
        return metrics(self.results)

    def end(self):
        self.process.terminate()
        self.process.wait(60)


def seed_of(file):
    """Of the run that a file belongs to, from the name of its folder."""
    key = file.parts[file.parts.index("runs") + 1]
    return int(key.split("-")[-2].removeprefix("s"))


def metrics(results):
    """Seed -> the bytes of its metrics."""
    files = results.glob("runs/*/sacred/*/*/*/metrics.jsonl")
    return {seed_of(file): file.read_bytes() for file in files}


def events(results):
    """Seed -> its events."""
    return {
        seed_of(file): [json.loads(x) for x in file.read_text().splitlines() if x.endswith("}")]
        for file in results.glob("runs/*/events.jsonl")
    }


def starts(results):
    """Seed -> its starts."""
    return {
        seed: [event for event in found if event["event"] == "start"]
        for seed, found in events(results).items()
    }


def held(results):
    """Seeds with a checkpoint behind which they are held."""
    files = results.glob("runs/*/sacred/*/*/*/checkpoints/[0-9]*/state.pt")
    return {seed_of(file) for file in files if int(file.parent.name) >= 1000}


def wait_until(what, seconds=600):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.5)
