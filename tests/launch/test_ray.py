"""Sweeps on a Ray cluster of three nodes on this machine, one of which is killed."""

import subprocess
import sys
from pathlib import Path

import pytest
from sweep_fixtures import (
    MAIN,
    Uninterrupted,
    events,
    held,
    metrics,
    starts,
    wait_until,
    write_spec,
)

ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
TASKS = {"game": [1, 2]}
NEEDS = "{cores: 1, game: 1}"


@pytest.fixture(scope="module")
def cluster():
    """Its first node, which has no game; tests add others."""
    with pytest.MonkeyPatch.context() as patch:
        # Others may use this machine.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same runs without a cluster."""
    runs = Uninterrupted(tmp_path_factory.mktemp("whole"), TASKS)
    yield runs
    runs.end()


def with_address(cluster, files):
    return ["--launcher", "ray", "--address", cluster.address, "--files", files]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("files", ["shared", "copied"])
def test_a_run_goes_on_when_its_node_dies(tmp_path, cluster, whole, files):
    """Each of two nodes has one of two runs; a third node comes when the first is killed."""
    spec, results = tmp_path / "dying.yaml", tmp_path / "results" / "dying"
    write_spec(spec, TASKS, NEEDS, tmp_path)
    (tmp_path / "game").touch()
    nodes = [cluster.add_node(num_cpus=1, resources={"game": 1}) for _ in range(2)]
    command = [sys.executable, str(MAIN), "sweep", str(spec), *with_address(cluster, files)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    sweep = subprocess.Popen(command, cwd=tmp_path, **pipes)
    try:
        wait_until(lambda: held(results) == {1, 2} or sweep.poll() is not None, 300)
        assert sweep.poll() is None, sweep.communicate()
        ((lost, first),) = (
            (seed, start)
            for seed, (start,) in starts(results).items()
            if nodes[0].node_id.startswith(start["job"])
        )
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        wait_until(lambda: gone(first["pid"]), 120)
        nodes.append(cluster.add_node(num_cpus=1, resources={"game": 1}))
        if files == "shared":  # else the launcher hears of it later
            wait_until(lambda: len(starts(results)[lost]) == 2, 120)
        (tmp_path / "game").unlink()
        said, _ = sweep.communicate(timeout=300)
    finally:
        sweep.kill()
        for node in nodes:
            cluster.remove_node(node)
    assert sweep.returncode == 0, said
    assert {seed: len(found) for seed, found in starts(results).items()} == {lost: 2, 3 - lost: 1}
    assert nodes[1].node_id.startswith(starts(results)[lost][1]["job"])
    assert all(found[-1]["code"] == 0 for found in events(results).values())
    assert metrics(results) == whole.metrics()


@pytest.mark.parametrize("files", ["shared", "copied"])
def test_a_search_on_a_cluster(tmp_path, cluster, files):
    pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements-search.txt")
    spec, results = tmp_path / "mine.yaml", tmp_path / "results" / "mine"
    write_spec(spec, TASKS, NEEDS, tmp_path)
    section = "search:\n  trials: 2\n  space: {lr: [0.001, 0.002]}\n  sampler: grid\n"
    spec.write_text(spec.read_text() + section)
    command = [sys.executable, str(MAIN), "search", str(spec), "--jobs", "2"]
    command += [*with_address(cluster, files), "with", "t_max=1000"]
    node = cluster.add_node(num_cpus=2, resources={"game": 2})
    pipes = {"capture_output": True, "text": True}
    try:
        done = subprocess.run(command, cwd=tmp_path, timeout=600, **pipes)
    finally:
        cluster.remove_node(node)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials: 2 complete" in done.stdout
    trials = sorted(results.glob("trials/*"))
    assert len(trials) == 2
    assert all(set(metrics(trial)) == {1, 2} for trial in trials)
    assert (results / "best.yaml").exists()
