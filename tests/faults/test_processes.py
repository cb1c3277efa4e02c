"""Whole trainings that are killed, told to stop, started twice: nothing is lost, nothing is written
twice.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.run_lock import hold

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--config=vdn",
    "--env-config=predator_prey",
    "with",
    "use_cuda=False",
    "env_args.episode_limit=20",
    "batch_size=4",
    "buffer_size=50",
    "rnn_hidden_dim=8",
    "test_interval=400",
    "test_nepisode=2",
    "log_interval=200",
    "runner_log_interval=100",
    "learner_log_interval=100",
    "save_model_interval=60",
    "runner=vector",
    "batch_size_run=2",
    "seed=1",
]
ENDLESS = "t_max=10000000"


@pytest.fixture
def trainer(tmp_path):
    """Starts trainings whose results go to `tmp_path/results`; ends all of them after the test."""
    started = []

    def start(*settings, **options):
        process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "src/main.py"),
                *SMALL,
                f"local_results_path={tmp_path / 'results'}",
                *settings,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=tmp_path,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished(process, code=0):
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, err[-3000:]
    assert "Traceback" not in err
    return out + err


def runs(tmp_path):
    return sorted((tmp_path / "results/sacred/vdn/predator_prey").glob("[0-9]*"))


def status(run_dir):
    return json.loads((run_dir / "run.json").read_text())["status"]


def wait_for_checkpoint(tmp_path, process, number=1):
    pattern = f"results/sacred/vdn/predator_prey/{number}/checkpoints/[0-9]*/state.pt"
    end = time.monotonic() + 100
    while not list(tmp_path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_that_is_going_on_is_left_alone(trainer, tmp_path):
    first = trainer(ENDLESS)
    wait_for_checkpoint(tmp_path, first)
    (run_dir,) = runs(tmp_path)
    said = finished(trainer(ENDLESS, f"resume={run_dir}"), 2)
    assert said.startswith(f"error: the run in {run_dir} is going on in process {first.pid} on ")
    second = trainer(ENDLESS, "resume=auto")
    wait_for_checkpoint(tmp_path, second, 2)
    first.send_signal(signal.SIGTERM)
    finished(first, 143)
    second.send_signal(signal.SIGHUP)
    time.sleep(0.05)
    second.send_signal(signal.SIGTERM)
    finished(second, 129)
    assert [path.name for path in runs(tmp_path)] == ["1", "2"]
    for path in runs(tmp_path):
        assert status(path) == "INTERRUPTED"
        steps = [
            (line["key"], line["t"]) for line in map(json.loads, (path / "metrics.jsonl").open())
        ]
        assert len(steps) == len(set(steps))


@pytest.fixture
def whole(trainer, tmp_path):
    """Metrics of a run of so many steps that nobody disturbed."""

    def get(t_max):
        finished(trainer(f"t_max={t_max}", f"local_results_path={tmp_path / 'whole'}"))
        return (tmp_path / "whole/sacred/vdn/predator_prey/1/metrics.jsonl").read_bytes()

    return get


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "t_max"), [(1, 800), pytest.param(60, 30_000, marks=pytest.mark.long)]
)
def test_kills_at_random_moments(trainer, tmp_path, whole, kills, t_max):
    expected = whole(t_max)
    draw = random.Random(kills)
    done = 0
    while done < kills:
        process = trainer(f"t_max={t_max}", "resume=auto")
        wait_for_checkpoint(tmp_path, process)
        # The first one while it trains; the others while they start or train.
        time.sleep(draw.uniform(0.0, 0.3) if done == 0 else draw.uniform(2.0, 7.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        done += 1
    said = finished(trainer(f"t_max={t_max}", "resume=auto"))
    (run_dir,) = runs(tmp_path)
    assert (run_dir / "metrics.jsonl").read_bytes() == expected
    assert status(run_dir) == "COMPLETED"
    again = finished(trainer(f"t_max={t_max}", "resume=auto"))
    assert f"finished already: {run_dir}" in again, said
    assert (run_dir / "metrics.jsonl").read_bytes() == expected


@pytest.mark.long
def test_repeated_signals_and_a_second_ctrl_c(trainer, tmp_path):
    process = trainer(ENDLESS)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGUSR1)
    for _ in range(20):
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
    finished(process, 128 + signal.SIGUSR1)
    assert status(runs(tmp_path)[0]) == "INTERRUPTED"
    process = trainer(ENDLESS, "env_args.episode_limit=1000000", "save_model_interval=1000000")
    wait_for_lines(process, "training for")
    process.send_signal(signal.SIGINT)
    wait_for_lines(process, "Ctrl-C once more aborts")
    process.send_signal(signal.SIGINT)
    assert "aborted" in finished(process, 130)


def wait_for_lines(process, text):
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"'{text}' was not said")


@pytest.mark.long
def test_sys_exit_in_a_plugin_is_a_failure(trainer, tmp_path):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    said = finished(trainer("plugins=[leaves]"), 1)
    assert "sys.exit(0)" in said
    assert "leaves.py, line 2" in said


@pytest.mark.long
def test_a_fault_of_the_program_is_one_line(trainer, tmp_path):
    (tmp_path / "broken.py").write_text(
        "import training\n\ndef work(self, steps=None):\n    return {}['nothing']\n\n"
        "training.Training.work = work\n"
    )
    process = trainer("plugins=[broken]")
    said = finished(process, 1).splitlines()[-1]
    assert said.startswith("error: KeyError: 'nothing'")
    assert "broken.py, line 4 is not part of this project" in said
    assert "in work" in (runs(tmp_path)[0] / "cout.txt").read_text()


@pytest.mark.long
def test_a_folder_that_is_deleted_meanwhile(trainer, tmp_path):
    process = trainer(ENDLESS)
    wait_for_checkpoint(tmp_path, process)
    (run_dir,) = runs(tmp_path)
    run_dir.rename(tmp_path / "moved")
    said = finished(process, 1)
    assert "was deleted, moved or replaced while the run was going on" in said.splitlines()[-1]
    assert not run_dir.exists()


@pytest.mark.long
def test_a_terminal_that_is_closed(tmp_path, trainer):
    if not hasattr(os, "openpty"):
        pytest.skip("needs pseudo-terminals")
    master, slave = os.openpty()
    script = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            str(ROOT / "src/main.py"),
            *SMALL,
            ENDLESS,
            f"local_results_path={tmp_path / 'results'}",
        ],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(slave)
    try:
        pattern = "results/sacred/vdn/predator_prey/1/checkpoints/[0-9]*/state.pt"
        end = time.monotonic() + 100
        os.set_blocking(master, False)
        while not list(tmp_path.glob(pattern)):
            assert process.poll() is None
            assert time.monotonic() < end
            try:
                os.read(master, 65536)
            except BlockingIOError:
                time.sleep(0.02)
        os.close(master)
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert status(runs(tmp_path)[0]) == "INTERRUPTED"


def workers_of(parent):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            is_child = int(stat.read_text().rpartition(")")[2].split()[1]) == parent
            if is_child and "envs.worker" in (stat.parent / "cmdline").read_text():
                found.append(int(stat.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.long
def test_a_stopped_worker_ends_with_its_trainer(tmp_path, trainer):
    process = trainer(ENDLESS, "runner=parallel")
    wait_for_checkpoint(tmp_path, process)
    workers = workers_of(process.pid)
    assert len(workers) >= 2
    os.kill(workers[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "a worker is still there"
        time.sleep(0.05)


def test_a_lock_is_shared_within_a_process_and_ends_with_it(tmp_path):
    lock = hold(tmp_path)
    assert hold(tmp_path) is lock
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from pathlib import Path\nfrom utils.run_lock import hold\n"
        f"lock = hold(Path({str(tmp_path)!r}))\n"
    )

    def other():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert f"is going on in process {os.getpid()} on " in other().stderr
    lock.release()
    assert other().returncode == 0
    hold(tmp_path).release()


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    import errno

    from utils import run_lock

    def unsupported(file, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    hold(tmp_path).release()
    assert "cannot be locked (Operation not supported)" in caplog.text
