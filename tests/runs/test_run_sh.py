"""run.sh with a stand-in for python that notes how it was called."""

import itertools
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# One line per call: start and end time, GPUs, arguments. `fail` in the arguments fails; `sleep`
# waits for SIGTERM.
STUB = r"""#!/usr/bin/env bash
start=$(date +%s%N)
code=0
echo "output of $*"
case "$*" in
*fail*) echo "error: told to fail"; code=3 ;;
*sleep*)
    trap 'code=143; kill "$child" 2>/dev/null' TERM
    sleep 60 & child=$!
    echo $$ >>"$CALLS.pids"
    wait "$child"
    echo checkpoint
    ;;
*) sleep 0.2 ;;
esac
gpu=${CUDA_VISIBLE_DEVICES-unset}
printf '%s|%s|%s|%s|%s\n' "$start" "$(date +%s%N)" "$gpu" "$code" "$*" >>"$CALLS"
exit $code
"""


@pytest.fixture
def sweep(tmp_path):
    """Calls run.sh; returns the process, started but not waited for."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHON": str(stub),
        "CALLS": str(tmp_path / "calls"),
        "LOG_DIR": str(tmp_path / "logs"),
    }

    def start(*words):
        return subprocess.Popen(
            ["bash", str(ROOT / "run.sh"), *words],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def calls(tmp_path):
    """(start, end, gpus, code, arguments) of every call, in order of their start."""
    rows = [line.split("|", 4) for line in (tmp_path / "calls").read_text().splitlines()]
    return sorted(
        (int(start), int(end), gpu, int(code), words) for start, end, gpu, code, words in rows
    )


def test_times_by_maps_jobs_with_gpus_in_turn(sweep, tmp_path):
    code, out, err = finish(sweep("qmix", "sc2", "3m,8m", "lr=0.1,td_lambda=0.3", "3", "0,5", "2"))
    assert (code, err) == (0, "")
    done = calls(tmp_path)
    assert len(done) == 4
    pattern = (
        r"src/main\.py --config=qmix --env-config=sc2 with seed=(\d+) env_args\.map_name=(\w+) "
        r"lr=0\.1 td_lambda=0\.3"
    )
    found = [re.fullmatch(pattern, words) for *_, words in done]
    assert sorted(match[2] for match in found) == ["3m", "3m", "8m", "8m"]
    assert len({match[1] for match in found}) == 4
    assert all(int(match[1]) < 2**31 for match in found)
    assert sorted(gpu for _, _, gpu, _, _ in done) == ["0", "0", "5", "5"]
    assert out.count("done after") == 4
    started = re.findall(r"\[(\d)/4\] qmix sc2 (\w+) seed \d+ gpu (\d): log (\S+)", out)
    assert [job[:3] for job in started] == [
        ("1", "3m", "0"),
        ("2", "8m", "5"),
        ("3", "3m", "0"),
        ("4", "8m", "5"),
    ]
    for *_, log in started:
        assert Path(log).read_text().startswith("output of src/main.py --config=qmix")


def test_at_most_threads_at_once(sweep, tmp_path):
    code, _, _ = finish(sweep("qmix", "predator_prey", "", "", "2", "cpu", "5"))
    assert code == 0
    done = calls(tmp_path)
    assert len(done) == 5
    busiest = max(sum(start <= moment < end for start, end, *_ in done) for moment, *_ in done)
    assert busiest == 2


def test_defaults_and_no_map(sweep, tmp_path):
    code, out, _ = finish(sweep("qmix", "predator_prey", ""))
    assert code == 0
    done = calls(tmp_path)
    assert len(done) == 5
    for _, _, gpu, _, words in done:
        assert re.fullmatch(
            r"src/main\.py --config=qmix --env-config=predator_prey with seed=\d+", words
        )
        assert gpu == "0"
    assert all(
        before[1] <= after[0] for before, after in itertools.pairwise(done)
    )  # one after the other
    assert "[5/5] qmix predator_prey seed" in out


def test_seeds_count_up_and_the_cpu_is_no_gpu(sweep, tmp_path):
    assert finish(sweep("qmix", "predator_prey", "", "seed=7,t_max=10", "1", "-1", "3"))[0] == 0
    assert [(gpu, words.partition("with ")[2]) for _, _, gpu, _, words in calls(tmp_path)] == [
        ("", f"seed={seed} use_cuda=False t_max=10") for seed in (7, 8, 9)
    ]


def test_names_of_maps_and_lists_in_settings(sweep, tmp_path):
    assert (
        finish(sweep("vdn", "gymma", "mpe2.simple_tag_v3", "plugins=[a,b],seed=1", "1", "0", "1"))[
            0
        ]
        == 0
    )
    assert (
        finish(
            sweep(
                "vdn",
                "x",
                "env_args.penalty=0.5",
                "seed=2,env_args.winds=[[0,1],[2,3]],a=1",
                "1",
                "0",
                "1",
            )
        )[0]
        == 0
    )
    assert [words.partition("with ")[2] for *_, words in calls(tmp_path)] == [
        "seed=1 env_args.key=mpe2.simple_tag_v3 plugins=[a,b]",
        "seed=2 env_args.penalty=0.5 env_args.winds=[[0,1],[2,3]] a=1",
    ]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "vdn_gymma_mpe2.simple_tag_v3_seed1.log",
        "vdn_x_env_args.penalty=0.5_seed2.log",
    ]


def test_one_failure_does_not_stop_the_others_but_counts(sweep, tmp_path):
    code, out, err = finish(sweep("qmix", "sc2", "fail,3m,8m", "", "2", "0", "1"))
    assert code == 1
    assert len(calls(tmp_path)) == 3
    assert out.count("done after") == 2
    assert re.search(
        r"\[1/3\] qmix sc2 fail seed \d+ gpu 0: exit code 3 after \d+ s: error: told to fail", err
    )


def test_a_python_that_is_not_there_is_a_failure(sweep, tmp_path):
    (tmp_path / "python").unlink()
    code, _, err = finish(sweep("qmix", "sc2", "3m", "", "1", "0", "2"))
    assert code == 1
    assert err.count("exit code 127") == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_its_own_runs_only(sweep, tmp_path, signum):
    bystander = sweep("qmix", "sc2", "sleep", "", "1", "0", "1")
    process = sweep("qmix", "sc2", "sleep", "", "2", "0", "5")
    pids = tmp_path / "calls.pids"
    deadline = time.monotonic() + 30
    while not pids.exists() or len(pids.read_text().split()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signum)  # as a terminal does with the processes in front
    code, _, err = finish(process)
    assert code == 130
    assert "stopping 2 run(s)" in err
    assert "[3/5]" not in err
    done = calls(tmp_path)
    assert [code for _, _, _, code, _ in done] == [
        143,
        143,
    ]  # each told once, each ended in its own way
    assert bystander.poll() is None
    os.killpg(bystander.pid, signum)
    assert finish(bystander)[0] == 130
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    logs = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert all("checkpoint" in log for log in logs)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_kill_of_the_script_ends_its_runs(sweep, tmp_path, signum):
    process = sweep("qmix", "sc2", "sleep", "", "2", "0", "5")
    pids = tmp_path / "calls.pids"
    deadline = time.monotonic() + 30
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)  # to the script alone
    process.send_signal(signum)
    assert finish(process)[0] == 130
    assert [code for _, _, _, code, _ in calls(tmp_path)] == [143, 143]
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qmix"], "run.sh takes 3 to 7 arguments, got 1"),
        (["a", "b", "c", "", "0"], "THREADS and TIMES must be numbers of at least 1, got '0'"),
        (
            ["a", "b", "c", "", "1", "0", "x"],
            "THREADS and TIMES must be numbers of at least 1, got 'x'",
        ),
        (["a", "b", "c", "", "1", ","], "GPUS must name a GPU, or be cpu"),
        (["a", "b", "c", "seed=x"], "seed must be a number, got 'x'"),
    ],
)
def test_bad_arguments(sweep, tmp_path, words, message):
    code, out, err = finish(sweep(*words))
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "calls").exists()


def test_help(sweep):
    code, out, _ = finish(sweep("-h"))
    assert code == 0
    assert out.startswith("Usage: bash run.sh CONFIG ENV MAPS [ARGS] [THREADS] [GPUS] [TIMES]")
