"""Sweeps on a real Slurm: three nodes by name on this machine (`cluster.sh`)."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
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

HERE = Path(__file__).resolve().parent
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [name for name in NEEDED if shutil.which(name, path="/usr/sbin:/usr/bin:/bin") is None]

pytest.importorskip("submitit", reason="needs submitit: pip install -r requirements-slurm.txt")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed: no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a test cluster of Slurm needs root"),
]

# The first one will meet its time limit, the next two are interrupted in other ways.
TASKS = {"limited": [6], "ended": [1, 2], "free": [3, 4, 5]}
NEEDS = "{cores: 1, hours: 0.0334}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which Slurm's commands use the test cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    script = ["bash", str(HERE / "cluster.sh")]
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] += ":/usr/sbin"
    # Its ports are fixed: test processes side by side take turns.
    with open(Path(tempfile.gettempdir()) / "test-slurm.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            subprocess.run([*script, "start", str(folder)], check=True, env=environment, timeout=60)
            yield environment
        finally:
            subprocess.run([*script, "stop", str(folder)], check=True, env=environment, timeout=60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same runs without Slurm."""
    runs = Uninterrupted(tmp_path_factory.mktemp("whole"), TASKS)
    yield runs
    runs.end()


class Sweep:
    """The sweep as its user sees it."""

    def __init__(self, folder, environment):
        self.spec, self.environment = folder / "interrupted.yaml", environment
        write_spec(self.spec, TASKS, NEEDS, folder)
        self.results = folder / "results" / "interrupted"
        self.pending = {}  # job -> since when

    def call(self, *words):
        command = [sys.executable, str(MAIN), "sweep", *words]
        done = subprocess.run(
            command, cwd=self.spec.parent, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *words):
        return self.call(str(self.spec), "--launcher", "slurm", *words)

    def status(self):
        return self.call("status", str(self.spec))

    def slurm(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def hold(self, *tasks):
        for task in tasks:
            (self.spec.parent / task).touch()

    def release(self, task):
        (self.spec.parent / task).unlink()

    def jobs(self):
        """Seed -> the job that has its run."""
        lines = (self.results / "slurm" / "submitted.jsonl").read_text().splitlines()
        return {
            int(key.split("-s")[-1].split("-")[0]): job for job, (key,) in map(json.loads, lines)
        }

    def node_of(self, job):
        return self.slurm("squeue", "-h", "-j", job, "-o", "%N").strip()

    def queue(self, *options):
        return self.slurm("squeue", "-h", *options).strip()

    def hurry(self):
        """Slurm lets two minutes pass before it starts a requeued job again; 10 s are enough for
        what is left of the job before to end.
        """
        for job in self.queue("-r", "-t", "PENDING", "-o", "%i").split():
            if time.monotonic() > self.pending.setdefault(job, time.monotonic()) + 10:
                command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
                subprocess.run(command, env=self.environment, capture_output=True)
                del self.pending[job]

    def started_again(self, *seeds):
        self.hurry()
        found = starts(self.results)
        return all(len(found[seed]) >= 2 for seed in seeds)

    def done(self, n_runs):
        self.hurry()
        found = [found[-1] for found in events(self.results).values() if found]
        return sum(event.get("code") == 0 for event in found) == n_runs


def codes(found):
    """Of all ends of a run."""
    return [event["code"] for event in found if event["event"] == "end"]


def test_runs_that_slurm_interrupts_end_as_if_it_had_not(cluster, tmp_path, whole):
    """One is requeued, the node of one goes down, one meets its time limit of two minutes."""
    sweep = Sweep(tmp_path, cluster)
    sweep.hold("limited", "ended")
    assert "6 runs submitted in 6 jobs" in sweep.submit()
    assert "0 of 6 runs are done, 6 are in the queue" in sweep.submit()
    wait_until(lambda: held(sweep.results) >= {6, 1, 2})
    assert "3 running, 2 waiting, 1 done" in sweep.status()

    jobs = sweep.jobs()
    sweep.slurm("scontrol", "requeue", jobs[1])
    down = sweep.node_of(jobs[2])
    sweep.slurm("scontrol", "update", f"NodeName={down}", "State=DOWN", "Reason=test")
    wait_until(lambda: not sweep.queue("-w", down))
    sweep.slurm("scontrol", "update", f"NodeName={down}", "State=RESUME")
    wait_until(lambda: sweep.started_again(1, 2))
    sweep.release("ended")
    wait_until(lambda: sweep.started_again(6))
    sweep.release("limited")
    wait_until(lambda: sweep.done(6))
    assert "6 done" in sweep.status()

    assert codes(events(sweep.results)[6])[0] == 143
    assert metrics(sweep.results) == whole.metrics()


def test_a_job_of_higher_priority_takes_the_place(cluster, tmp_path, whole):
    sweep = Sweep(tmp_path, cluster)
    sweep.hold("ended")
    sweep.submit("--seeds", "1", "--tasks", "ended")
    wait_until(lambda: held(sweep.results) == {1})
    job = sweep.jobs()[1]
    place = ["--nodelist", sweep.node_of(job), "--exclusive", "--output", "/dev/null"]
    sweep.slurm("sbatch", "--partition=urgent", *place, "--wrap", "sleep 1")
    wait_until(lambda: len(events(sweep.results)[1]) >= 2)
    assert codes(events(sweep.results)[1]) == [143]
    sweep.release("ended")
    wait_until(lambda: sweep.done(1))
    assert [start["job"] for start in starts(sweep.results)[1]] == [job, job], "another one went on"
    assert metrics(sweep.results)[1] == whole.metrics()[1]


def test_a_cancelled_sweep_goes_on(cluster, tmp_path, whole):
    sweep = Sweep(tmp_path, cluster)
    sweep.hold("ended")
    sweep.submit("--seeds", "1", "--tasks", "ended")
    wait_until(lambda: held(sweep.results) == {1})
    assert "cancelled 1 jobs" in sweep.call("cancel", str(sweep.spec))
    wait_until(lambda: not sweep.queue())
    assert "1 stopped" in sweep.status()
    assert codes(events(sweep.results)[1]) == [143]
    sweep.release("ended")
    assert "1 runs submitted" in sweep.call("resume", str(sweep.spec))
    wait_until(lambda: sweep.done(1))
    assert metrics(sweep.results)[1] == whole.metrics()[1]
    wait_until(lambda: not sweep.queue())
    assert "already" in sweep.call("resume", str(sweep.spec))


def test_an_option_that_slurm_refuses_is_one_line(cluster, tmp_path):
    sweep = Sweep(tmp_path, cluster)
    sweep.spec.write_text(sweep.spec.read_text() + "slurm: {partition: nowhere}\n")
    command = [sys.executable, str(MAIN), "sweep", str(sweep.spec), "--launcher", "slurm"]
    done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Slurm refuses the jobs" in done.stderr
    assert "partition" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_search_is_ended_and_goes_on(cluster, tmp_path):
    """Two trials of two runs each; Ctrl-C cancels the jobs of the first one."""
    pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements-search.txt")
    sweep = Sweep(tmp_path, cluster)
    sweep.hold("ended")
    section = "search:\n  trials: 2\n  space: {lr: [0.001, 0.002]}\n  sampler: grid\n"
    sweep.spec.write_text(sweep.spec.read_text() + section)
    words = [str(sweep.spec), "--launcher", "slurm", "--jobs", "2", "--tasks", "ended"]
    command = [sys.executable, str(MAIN), "search", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    trials = [sweep.results / "trials" / number for number in ("0000", "0001")]

    first = subprocess.Popen(command, cwd=tmp_path, env=cluster, **pipes)
    wait_until(lambda: held(trials[0]) == {1, 2} or first.poll() is not None)
    assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=300)
    assert first.returncode == 130, out
    assert not sweep.queue()
    assert {seed: codes(found) for seed, found in events(trials[0]).items()} == {1: [143], 2: [143]}

    sweep.release("ended")
    again = subprocess.run(command, cwd=tmp_path, env=cluster, timeout=900, **pipes)
    assert again.returncode == 0, again.stdout
    assert "2 trials: 2 complete" in again.stdout
    n_starts = [[len(found) for found in starts(trial).values()] for trial in trials]
    assert n_starts == [[2, 2], [1, 1]]
