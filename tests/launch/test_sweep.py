"""Sweeps on this machine: the form, the sharing out, and runs that are ended and go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.sweeps import fake_sweep

from launch import ray_tasks, slurm, spec
from launch.folder import STATES, Sweep, load_sweep, plan
from launch.jobs import Job
from launch.local import Machine
from launch.resources import Resources, read_resources
from launch.sweep import main, states
from launch.table import progress
from utils.errors import ConfigError, MissingPackage, UserError

ROOT = Path(__file__).resolve().parents[2]
SPEC = """# Two methods and a grid
methods:
  IQL: iql
  VDN: {algorithm: vdn, grid: {gamma: [0.5, 0.9]}}
tasks:
  game: {environment: matrix_game, per_method: {VDN: {t_max: 60}}}
  other: {environment: matrix_game, methods: [IQL], optional: true}
seeds: [1]
settings: {t_max: 40, use_cuda: false, test_interval: 20, test_nepisode: 2}
grid: {lr: [0.001, 0.01]}
resources: {cores: 1, memory: 0.5, gpus: 0.25, hours: 2, sc2: 1}
slurm: {partition: gpu}
metrics: {test_return_mean: Return}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    return path


def start(path, *words):
    command = [sys.executable, str(ROOT / "src" / "main.py"), "sweep", str(path), *words]
    return subprocess.Popen(
        command, cwd=path.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_grid_makes_a_method_of_every_point(path):
    experiment = spec.read(path)
    assert list(experiment.methods) == [
        *("IQL, lr=0.001", "IQL, lr=0.01"),
        *("VDN, lr=0.001, gamma=0.5", "VDN, lr=0.001, gamma=0.9"),
        *("VDN, lr=0.01, gamma=0.5", "VDN, lr=0.01, gamma=0.9"),
    ]
    part = experiment.select(methods=["VDN", "IQL, lr=0.01"], tasks=["game"])
    assert [
        (job.algorithm, job.settings["lr"], job.settings.get("gamma"), job.settings["t_max"])
        for job in part.jobs()
    ] == [
        ("iql", 0.01, None, 40),
        ("vdn", 0.001, 0.5, 60),
        ("vdn", 0.001, 0.9, 60),
        ("vdn", 0.01, 0.5, 60),
        ("vdn", 0.01, 0.9, 60),
    ]
    assert experiment.tasks["other"].methods == ("IQL, lr=0.001", "IQL, lr=0.01")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: [0.001, 0.01]", "lr: []", "grid.lr must not be empty"),
        ("lr: [0.001, 0.01]", "lr: 3", "grid.lr must be a list, got 3"),
        ("cores: 1", "cores: 0", "resources.cores must be at least 1, got 0"),
        ("gpus: 0.25", "gpus: 1.5", "resources.gpus must be a whole number, or a share"),
        ("hours: 2", "hours: 0", "resources.hours must be greater than 0 and finite"),
        ("sc2: 1", "sc2: many", "resources.sc2 must be a number, got 'many'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(path, old, new, message):
    path.write_text(SPEC.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        spec.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "mine.yaml"], "no sweep in"),
        (["mine.yaml", "--launcher", "cloud"], "invalid choice: 'cloud'"),
        (["mine.yaml"], "a run needs sc2: say how many this machine has with --have sc2=N"),
        (["mine.yaml", "--have", "sc2=1", "--gpus", ""], "a run needs 0.25 GPUs"),
        (["mine.yaml", "--have", "sc2"], "--have takes NAME=NUMBER, got 'sc2'"),
        (["mine.yaml", "with", "lr"], "cannot read 'lr': expected key=value"),
        (["mine.yaml", "with", "lr=-1"], "lr must be"),
        (["none.yaml"], "cannot read"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(path, words, message):
    with pytest.raises(UserError) as caught:
        main(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()


@pytest.mark.parametrize(("name", "part"), [("slurm", slurm), ("ray", ray_tasks)])
def test_a_missing_package_is_one_line(path, monkeypatch, name, part):
    monkeypatch.setitem(sys.modules, {"slurm": "submitit", "ray": "ray"}[name], None)
    with pytest.raises(MissingPackage, match=rf"pip install -r requirements-{name}\.txt"):
        main([str(path), "--launcher", name])
    assert not Path("results").exists()


def test_cores_memory_and_gpus_are_shared_out():
    machine = Machine({"runs": 9, "cores": 4, "memory": 10}, {"0": 1.0, "1": 1.0})
    half, whole = Resources(gpus=0.5), Resources(gpus=1)
    assert machine.take(half) == ["0"]
    assert machine.take(half) == ["0"], "the GPU that is in use already"
    assert machine.take(whole) == ["1"]
    assert machine.take(half) is None
    machine.give_back(half, ["0"])
    assert machine.take(half) == ["0"]
    assert machine.take(Resources(cores=2)) is None, "one core is left"
    assert machine.take(Resources(memory=11)) is None
    assert machine.take(Resources()) == []
    assert machine.free == {"runs": 5, "cores": 0, "memory": 10}


def test_what_a_job_on_slurm_asks_for(tmp_path):
    needs = read_resources(
        {"cores": 2, "memory": 1.5, "gpus": 0.25, "hours": 3, "sc2": 1}, "resources."
    )
    sweep = Sweep(tmp_path, "mine", "slurm", (), needs, {"partition": "gpu"})
    asked = slurm.parameters(sweep, jobs=7)
    assert (asked["cpus_per_task"], asked["time"], asked["array_parallelism"]) == (8, 180, 7)
    assert asked["additional_parameters"] == {
        "requeue": True,
        "partition": "gpu",
        "mem": "6000M",
        "gpus-per-node": 1,
        "licenses": "sc2:4",
    }


def small(path, **changes):
    text = SPEC.replace(", gpus: 0.25, hours: 2, sc2: 1", "")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


@pytest.mark.slow
def test_a_sweep_is_ended_goes_on_and_is_not_repeated(path):
    """The metrics are those of runs that nobody ended."""
    small(path, t_max="save_model_interval: 100, batch_size: 8, t_max")
    words = ["--only", "IQL", "--jobs", "2", "with", "t_max=3000", "test_interval=500"]
    sweep = start(path, *words)
    folder = path.parent / "results" / "mine"
    deadline = time.monotonic() + 100
    while sum(file.stat().st_size > 2000 for file in folder.rglob("metrics.jsonl")) < 2:
        assert time.monotonic() < deadline
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "ended by SIGINT; the same command goes on" in out
    assert set(states(load_sweep(folder)).values()) == {"stopped"}

    again = start(path, *words)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, out + err
    assert "0 of 2 runs are done already" in out
    assert "done (2/2)" in out
    starts = [file.read_text().count('"start"') for file in folder.rglob("events.jsonl")]
    assert starts == [2, 2]
    (first, second) = sorted(file.read_bytes() for file in folder.rglob("metrics.jsonl"))
    assert first != second

    assert main(["resume", str(path)]) == 0
    assert [file.read_text().count('"start"') for file in folder.rglob("events.jsonl")] == [2, 2]
    assert main([*map(str, [path, "--results", "apart"]), *words]) == 0
    whole = sorted(file.read_bytes() for file in Path("apart").rglob("metrics.jsonl"))
    assert whole == [first, second]


def test_a_launcher_that_is_killed_takes_its_runs_with_it(path):
    small(path, t_max="batch_size: 8, t_max")
    sweep = start(path, "--only", "IQL, lr=0.01", "with", "t_max=1000000", "test_interval=500")
    folder = path.parent / "results" / "mine"
    deadline = time.monotonic() + 100
    while not any(file.stat().st_size > 2000 for file in folder.rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = load_sweep(folder).runs
    assert run.state() == "running"
    assert progress(run).t > 0
    with pytest.raises(UserError, match="is at work: `sweep status` shows it"):
        main(["resume", str(folder)])
    sweep.kill()
    sweep.wait()
    while run.locked():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert run.state() == "lost"
    assert list(run.results.glob("checkpoints/*/state.pt"))


@pytest.mark.slow
def test_a_run_that_fails_does_not_end_the_others(path, capsys):
    small(path)
    path.write_text(path.read_text().replace("lr: [0.001, 0.01]", "lr: [1.0e+30, 0.01]"))
    words = [str(path), "--only", "IQL", "--jobs", "2", "with", "t_max=400", "batch_size=8"]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "error: 1 of 2 runs failed" in told.err
    assert "failed (" in told.out
    assert "done (1/2)" in told.out
    assert main(["status", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 failed, 1 done" in out
    assert "log.txt" in out
    assert main(["resume", str(path)]) == 1, "a run that failed is tried again"


def test_runs_of_the_same_experiment_count_as_done(path):
    small(path)
    job = Job("iql", "matrix_game", {"t_max": 40, "use_cuda": False, "test_interval": 20,
        "test_nepisode": 2, "lr": 0.01, "seed": 1})  # fmt: skip
    subprocess.run(job.command(Path("results/mine").absolute()), check=True, capture_output=True)
    done = start(path, "--only", "IQL, lr=0.01")
    out, err = done.communicate(timeout=100)
    assert done.returncode == 0, err
    assert "1 of 1 runs are done already" in out


def test_the_example_of_the_guide_is_valid(path):
    guide = (ROOT / "docs" / "guide" / "sweeps.md").read_text()
    path.write_text(re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)[1])
    experiment = spec.read(path)
    experiment.check()
    assert len(experiment.jobs()) == 3 * 2 * (2 + 2 * 2)


def test_the_key_of_a_run_says_which_it_is(tmp_path):
    settings = {"seed": 3, "lr": 0.1, "env_args.map_name": "3m"}
    turned = dict(reversed(settings.items()))
    (one,), (same,), (other,) = (
        plan([Job("algs/mine.yaml", "sc2", x)], tmp_path)
        for x in (settings, turned, {**settings, "lr": 0.2})
    )
    assert one.key.startswith("mine-3m-s3-")
    assert one.key == same.key != other.key


def test_status_of_many_runs(tmp_path, capsys):
    given = fake_sweep(tmp_path / "fake", 200, n_points=5)
    sweep = load_sweep(tmp_path / "fake")
    assert states(sweep) == given
    assert set(given.values()) <= set(STATES)
    assert main(["status", str(tmp_path / "fake")]) == 0
    out = capsys.readouterr().out
    assert "200 runs: 2 waiting, 2 stopped, 2 failed, 194 done" in " ".join(out.split())


def test_a_folder_travels_whole(tmp_path):
    """But for locks and what is half written."""
    folder = tmp_path / "run"
    (folder / "sacred" / "checkpoints" / ".5.partial").mkdir(parents=True)
    (folder / "sacred" / "checkpoints" / ".5.partial" / "state.pt").write_text("half")
    (folder / "sacred" / "metrics.jsonl").write_text("{}")
    (folder / "lock").touch()
    there = tmp_path / "there" / "run"
    there.mkdir(parents=True)
    (there / "old").touch()
    ray_tasks.unpack(ray_tasks.pack(folder), there)
    files = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
    assert files == ["sacred/metrics.jsonl"]
    assert [path.name for path in there.parent.iterdir()] == ["run"]


def test_run_sh_describes_its_runs_to_slurm(tmp_path):
    """The yaml that run.sh writes has the runs that it would start here."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "run.sh").write_text((ROOT / "run.sh").read_text())
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$*" >calls\n')
    stub.chmod(0o755)
    words = ["qmix", "sc2", "3m,8m", "lr=0.1,seed=5,label='a'", "4", "cpu", "2"]
    environment = {**os.environ, "LAUNCHER": "slurm", "PYTHON": str(stub), "HOURS": "3"}
    environment.pop("OMP_NUM_THREADS", None)
    command = ["bash", str(tmp_path / "run.sh"), *words]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (file,) = (tmp_path / "results" / "sweeps").glob("*.yaml")
    told = (tmp_path / "calls").read_text()
    assert told == f"src/main.py sweep results/sweeps/{file.name} --launcher slurm --jobs 4\n"
    experiment = spec.read(file)
    assert experiment.resources == Resources(cores=1, gpus=0, hours=3.0)
    assert sorted(map(str, experiment.jobs())) == [
        f"qmix sc2 lr=0.1 label='a' use_cuda=False env_args.map_name={place} seed={seed}"
        for place in ("3m", "8m")
        for seed in (5, 6)
    ]
    assert json.loads(json.dumps(experiment.tasks["3m"].settings)) == {"env_args.map_name": "3m"}
