"""Sweeps on a Ray cluster of three nodes on this machine, one of which is killed."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
from ray.cluster_utils import Cluster  # noqa: E402

SLURM = Path(__file__).resolve().parents[1] / "slurm"
MAIN = SLURM.parents[1] / "src" / "main.py"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SPEC = """# Runs of which one loses its node
methods: {{QMIX: qmix}}
tasks: {{game: {{environment: {env}}}}}
seeds: 1-3
settings:
  plugins: [{plugin}]
  runner: vector
  t_max: 10000
  use_cuda: false
  test_interval: 1000
  log_interval: 1000
  save_model_interval: 1000
  buffer_size: 100
  batch_size: 8
resources: {{cores: 1, game: 1}}
metrics: {{test_return_mean: Return}}
"""


def metrics(results):
    return {
        json.loads((file.parent / "config.json").read_text())["seed"]: file.read_bytes()
        for file in results.glob("runs/*/sacred/*/*/*/metrics.jsonl")
    }


def events(results):
    return [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(results.glob("runs/*/events.jsonl"))
    ]


@pytest.mark.parametrize("files", ["shared", "copied"])
def test_a_run_goes_on_when_its_node_dies(tmp_path, files):
    spec = tmp_path / "dying.yaml"
    text = SPEC.format(env=SLURM / "slow_game.yaml", plugin=SLURM / "slow_game.py")
    spec.write_text(text)
    results = tmp_path / "results" / "dying"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=2, resources={"game": 2}) for _ in range(2)]
    killed = threading.Event()

    def kill():
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not killed.is_set():
            far = [value for value in metrics(results).values() if b'"t": 4' in value]
            if far:
                cluster.remove_node(nodes[0], allow_graceful=False)
                killed.set()
            time.sleep(0.5)

    killer = threading.Thread(target=kill)
    killer.start()
    command = [sys.executable, str(MAIN), "sweep", str(spec)]
    options = ["--launcher", "ray", "--address", cluster.address, "--files", files]
    try:
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=400
        )
    finally:
        killer.join()
        cluster.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed.is_set()
    starts = [sum(event["event"] == "start" for event in found) for found in events(results)]
    assert len(starts) == 3
    assert max(starts) == 2, starts
    interrupted = metrics(results)
    # What a run logs does not depend on where it runs.
    spec.write_text(text.replace("cores: 1, game: 1", "cores: 1"))
    apart = ["--results", str(tmp_path / "apart"), "--jobs", "3"]
    subprocess.run([*command, *apart], cwd=tmp_path, check=True, capture_output=True)
    assert interrupted == metrics(tmp_path / "apart")


@pytest.mark.parametrize("files", ["shared", "copied"])
def test_a_search_on_a_cluster(tmp_path, files):
    pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements-search.txt")
    spec = tmp_path / "mine.yaml"
    text = SPEC.format(env=SLURM / "slow_game.yaml", plugin=SLURM / "slow_game.py")
    section = "search:\n  trials: 3\n  space: {lr: [0.001, 0.002, 0.003]}\n  sampler: grid\n"
    spec.write_text(text.replace("t_max: 10000", "t_max: 3000").replace("1-3", "1-2") + section)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=2, resources={"game": 2})
    command = [sys.executable, str(MAIN), "search", str(spec), "--launcher", "ray", "--jobs", "2"]
    options = ["--address", cluster.address, "--files", files]
    try:
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=400
        )
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 trials: 3 complete" in done.stdout
    results = tmp_path / "results" / "mine"
    assert len(list(results.glob("trials/*/runs/*/sacred/*/*/*/metrics.jsonl"))) == 6
    assert (results / "best.yaml").exists()
