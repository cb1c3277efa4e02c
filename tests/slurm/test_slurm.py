"""Sweeps on a real Slurm: three nodes by name on this machine (`cluster.sh`)."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MAIN = HERE.parents[1] / "src" / "main.py"
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [name for name in NEEDED if shutil.which(name, path="/usr/sbin:/usr/bin:/bin") is None]

pytest.importorskip("submitit", reason="needs submitit: pip install -r requirements-slurm.txt")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed: no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a test cluster of Slurm needs root"),
]

SPEC = """# Runs that are interrupted in every way
methods: {{QMIX: qmix}}
tasks:
  short: {{environment: {env}}}
  long: {{environment: {env}, seeds: [6], settings: {{t_max: 100000}}}}
seeds: 1-5
settings:
  plugins: [{plugin}]
  runner: vector
  t_max: 16000
  use_cuda: false
  test_interval: 1000
  test_nepisode: 8
  log_interval: 1000
  save_model_interval: 2000
  keep_checkpoints: 2
  buffer_size: 100
  batch_size: 8
  updates_per_collection: 1
resources: {{cores: 1, hours: 0.0334}}
metrics: {{test_return_mean: Return}}
"""


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


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "interrupted.yaml"
    path.write_text(SPEC.format(env=HERE / "slow_game.yaml", plugin=HERE / "slow_game.py"))
    return path


def seed_of(key):
    """Of a run, from the name of its folder."""
    return int(re.search(r"-s(\d+)-", key)[1])


class Sweep:
    """The sweep as its user sees it."""

    def __init__(self, spec, environment):
        self.spec, self.environment = spec, environment
        self.folder = spec.parent / "results" / spec.stem
        self.pending = {}  # job -> since when

    def call(self, *words):
        command = [sys.executable, str(MAIN), "sweep", *words]
        done = subprocess.run(
            command, cwd=self.spec.parent, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def slurm(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def metrics(self):
        """Seed -> the bytes of its metrics."""
        return {self.seed(file): file.read_bytes() for file in self.files("metrics.jsonl")}

    def files(self, name):
        return list(self.folder.glob(f"runs/*/sacred/*/*/*/{name}"))

    @staticmethod
    def seed(file):
        return json.loads((file.parent / "config.json").read_text())["seed"]

    def events(self):
        """Seed -> its events."""
        return {
            seed_of(file.parent.name): [json.loads(line) for line in file.read_text().splitlines()]
            for file in self.folder.glob("runs/*/events.jsonl")
        }

    def steps(self):
        return {
            self.seed(file): json.loads(file.read_bytes().splitlines()[-1])["t"]
            for file in self.files("metrics.jsonl")
            if file.read_bytes().endswith(b"}\n")
        }

    def hurry(self):
        """Slurm lets two minutes pass before it starts a requeued job again; 20 s are enough for
        what is left of the job before to end.
        """
        for job in self.slurm("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").split():
            if time.monotonic() > self.pending.setdefault(job, time.monotonic()) + 20:
                command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
                subprocess.run(command, env=self.environment, capture_output=True)
                del self.pending[job]

    def done(self, n_runs):
        self.hurry()
        return f"{n_runs} done" in self.call("status", str(self.spec))

    def node_of(self, job):
        return self.slurm("squeue", "-h", "-j", job, "-o", "%N").strip()


def wait_until(what, seconds=240):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(1)


def test_runs_that_slurm_interrupts_end_as_if_it_had_not(cluster, spec):
    """One is requeued, the node of two goes down, one meets its time limit of two minutes."""
    sweep = Sweep(spec, cluster)
    assert "6 runs submitted in 6 jobs" in sweep.call(str(spec), "--launcher", "slurm")
    assert "0 runs are done, 6 are in the queue" in sweep.call(
        str(spec), "--launcher", "slurm"
    ).replace("0 of 6", "0")
    wait_until(lambda: len(sweep.steps()) == 6 and min(sweep.steps().values()) >= 3000)
    assert "6 running" in sweep.call("status", str(spec))

    jobs = {
        seed_of(keys[0]): job
        for job, keys in map(
            json.loads, (sweep.folder / "slurm" / "submitted.jsonl").read_text().splitlines()
        )
    }
    sweep.slurm("scontrol", "requeue", jobs[1])
    down = next(
        node for node in ("node1", "node2", "node3")
        if node not in {sweep.node_of(jobs[seed]) for seed in (1, 6)}
    )  # fmt: skip
    on_it = [seed for seed in jobs if seed != 1 and sweep.node_of(jobs[seed]) == down]
    assert on_it
    sweep.slurm("scontrol", "update", f"NodeName={down}", "State=DOWN", "Reason=test")
    wait_until(lambda: not sweep.slurm("squeue", "-h", "-w", down).strip())
    sweep.slurm("scontrol", "update", f"NodeName={down}", "State=RESUME")
    wait_until(lambda: sweep.done(6), 600)

    events = sweep.events()
    starts = {
        seed: [x["job"] for x in found if x["event"] == "start"] for seed, found in events.items()
    }
    assert all(len(starts[seed]) >= 2 for seed in (1, 6, *on_it)), starts
    assert next(x["code"] for x in events[6] if x["event"] == "end") == 143
    interrupted = sweep.metrics()
    shutil.rmtree(sweep.folder)
    sweep.call(str(spec), "--jobs", "6")
    assert all(len(found) == 2 for found in sweep.events().values())
    assert interrupted == sweep.metrics()


def test_a_cancelled_sweep_goes_on(cluster, spec):
    sweep = Sweep(spec, cluster)
    sweep.call(str(spec), "--launcher", "slurm", "--seeds", "1", "--tasks", "short")
    wait_until(lambda: sweep.steps().get(1, 0) >= 2000)
    assert "cancelled 1 jobs" in sweep.call("cancel", str(spec))
    wait_until(lambda: "1 stopped" in sweep.call("status", str(spec)))
    assert [x["code"] for x in sweep.events()[1] if x["event"] == "end"] == [143]
    wait_until(lambda: not sweep.slurm("squeue", "-h").strip())
    assert "1 runs submitted" in sweep.call("resume", str(spec))
    wait_until(lambda: sweep.done(1))
    assert "already" in sweep.call("resume", str(spec))


def test_an_option_that_slurm_refuses_is_one_line(cluster, spec):
    spec.write_text(spec.read_text() + "slurm: {partition: nowhere}\n")
    command = [sys.executable, str(MAIN), "sweep", str(spec), "--launcher", "slurm"]
    done = subprocess.run(command, cwd=spec.parent, env=cluster, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Slurm refuses the jobs" in done.stderr
    assert "partition" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_search_is_ended_and_goes_on(cluster, spec):
    """Two trials of two runs each; Ctrl-C cancels the jobs of the first one."""
    pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements-search.txt")
    section = "search:\n  trials: 2\n  space: {lr: [0.001, 0.002]}\n  sampler: grid\n"
    spec.write_text(spec.read_text() + section)
    sweep = Sweep(spec, cluster)
    words = [str(spec), "--launcher", "slurm", "--jobs", "2", "--tasks", "short"]
    command = [sys.executable, str(MAIN), "search", *words, "--seeds", "1", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def trial(number):
        return sweep.folder / "trials" / number

    def reached():
        files = trial("0000").glob("runs/*/sacred/*/*/*/checkpoints/*/state.pt")
        return len({file.parents[5] for file in files}) == 2

    first = subprocess.Popen(command, cwd=spec.parent, env=cluster, **pipes)
    wait_until(reached)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=200)
    assert first.returncode == 130, out
    assert not sweep.slurm("squeue", "-h").strip()
    for file in trial("0000").glob("runs/*/events.jsonl"):
        assert json.loads(file.read_text().splitlines()[-1])["code"] == 143

    again = subprocess.run(command, cwd=spec.parent, env=cluster, timeout=900, **pipes)
    assert again.returncode == 0, again.stdout
    assert "2 trials: 2 complete" in again.stdout
    starts = {
        number: [f.read_text().count('"start"') for f in trial(number).glob("runs/*/events.jsonl")]
        for number in ("0000", "0001")
    }
    assert starts == {"0000": [2, 2], "0001": [1, 1]}
