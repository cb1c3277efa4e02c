"""Worker processes: what happens when they die, hang, raise or lose their parent, and what is left
behind (nothing).
"""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from env_fakes import CountingEnv, PidEnv, ReseedableEnv, ShiftingEnv, TroubleEnv

from envs.subproc import SubprocVectorEnv
from plugins import load_plugins
from utils.errors import ConfigError, EnvFailure
from utils.seeding import derive_seed

TESTS = Path(__file__).resolve().parent
SRC = TESTS.parents[1] / "src"
ZEROS = np.zeros((3, 3), dtype=int)


def alive(pid):
    """Whether a process runs; one that is dead but not yet collected by its parent does not."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(seconds, pids):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def child_processes():
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid():
            children.append(int(stat.parent.name))
    return sorted(children)


def pids_of(env):
    stats = env.get_stats()
    return [int(pid) for pid in stats["pid"]], [int(pid) for pid in stats["game"]]


@pytest.fixture
def build():
    """Builds a SubprocVectorEnv, and checks after the test that closing it leaves nothing
    behind.
    """
    gc.collect()
    before = child_processes(), sorted(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    built = []

    def make(
        factory, n_envs=3, seed=11, max_env_restarts=5, env_timeout=30.0, setup=None, **env_args
    ):
        env = SubprocVectorEnv(
            factory, env_args, n_envs, seed, "train_env", max_env_restarts, setup, env_timeout
        )
        built.append(env)
        return env

    yield make
    while built:
        built.pop().close()
    gc.collect()  # the mapping of the shared memory lives as long as the arrays
    after = child_processes(), sorted(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    assert after == before


@pytest.fixture
def flag(tmp_path):
    return tmp_path / "flag"


def seed_of(b):
    return derive_seed(11, "train_env", b)


# broken workers


def test_kill_in_mid_episode(build, caplog):
    env, undisturbed = build(PidEnv), build(PidEnv)
    for one in (env, undisturbed):
        one.reset()
        one.step(ZEROS)
    pids, _ = pids_of(env)
    os.kill(pids[1], signal.SIGKILL)
    env.step(ZEROS)
    undisturbed.step(ZEROS)
    assert env.failed.tolist() == [False, True, False]
    assert not (env.terminated | env.truncated).any()
    assert env.reward[1] == 0
    assert env.env_restarts == 1
    assert (
        "environment 1 (train_env) is replaced, restart 1: worker killed by signal 9" in caplog.text
    )
    assert (env.obs[[0, 2]] == undisturbed.obs[[0, 2]]).all()

    rest = np.array([True, False, True])
    for one in (env, undisturbed):
        one.step(ZEROS, rest)  # the others go on while the new one is started
        one.reset(~rest)
        one.step(ZEROS)
    assert (env.obs[[0, 2]] == undisturbed.obs[[0, 2]]).all()
    assert env.obs[1, :, 0].tolist() == [1, 1, 1]
    assert not env.failed.any()
    now, _ = pids_of(env)
    assert (now[0], now[2]) == (pids[0], pids[2])
    assert now[1] != pids[1]
    draws = np.random.default_rng(derive_seed(seed_of(1), "restart", 1))
    draws.random()
    assert env.info["draw"][1] == draws.random()


TROUBLES = {
    "raise": "the dice fell off the table",
    "exit": "worker exited with code 7",
    "kill": "worker killed by signal 9",
    "hang": "no answer in 1.0 s",
    "stop": "no answer in 1.0 s",
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_trouble_in_a_step(build, flag, caplog, kind):
    env = build(TroubleEnv, flag=str(flag), kind=kind, only_seed=seed_of(1))
    env.reset()
    env.step(ZEROS)
    flag.touch()
    env.env_timeout = 1.0
    start = time.monotonic()
    env.step(ZEROS)
    assert time.monotonic() - start < 6
    assert env.failed.tolist() == [False, True, False]
    assert env.obs[[0, 2], 0, 0].tolist() == [2, 2]
    assert env.env_restarts == 1
    assert TROUBLES[kind] in caplog.text

    env.env_timeout = 30.0
    env.reset(env.failed.copy())
    env.step(ZEROS)
    assert not env.failed.any()
    assert env.obs[:, 0, 0].tolist() == [3, 1, 3]
    assert env.env_restarts == 1


def test_a_new_worker_hears_t_env(build):
    env = build(ShiftingEnv)
    env.set_t_env(1000)
    env.reset()
    os.kill(env.worker_pids[1], signal.SIGKILL)
    env.step(ZEROS)
    env.reset()
    env.step(ZEROS)
    assert env.reward.tolist() == [1001, 1001, 1001]


def test_seeds_of_replacements_follow_from_seed_and_state(build):
    def break_first(env):
        env.reset()
        os.kill(env.worker_pids[0], signal.SIGKILL)
        env.step(ZEROS)
        env.reset()
        return env.obs[:, 0, 3].tolist()

    env = build(ReseedableEnv)
    first = break_first(env)
    state = env.get_rng_state()
    second = break_first(env)
    assert second[0] == np.float32(
        np.random.default_rng(derive_seed(seed_of(0), "restart", 2)).random()
    )
    other = build(ReseedableEnv, seed=99)
    other.set_rng_state(state)
    assert break_first(other) == second
    env.seed(11)
    assert break_first(env) == first


@pytest.mark.parametrize("kind", ["raise", "kill", "hang"])
def test_trouble_in_a_reset(build, flag, caplog, kind):
    env = build(TroubleEnv, flag=str(flag), kind=kind, where="reset", only_seed=seed_of(1))
    env.reset()
    env.step(ZEROS)
    flag.touch()
    timer = threading.Timer(0.5, setattr, (env, "env_timeout", 30.0))  # in time for the new worker
    timer.start()
    env.env_timeout = 1.0
    env.reset(np.array([True, True, False]))
    timer.join()
    del timer
    assert not env.failed.any(), "a reset always ends with a new episode"
    assert env.obs[:, 0, 0].tolist() == [0, 0, 1]
    assert env.env_restarts == 1
    assert TROUBLES[kind] in caplog.text
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [1, 1, 2]


def test_hanging_workers_cost_one_timeout_together(build, flag):
    flag.touch()
    env = build(TroubleEnv, flag=str(flag), kind="hang", keep=True)
    env.reset()
    env.step(ZEROS)
    env.env_timeout = 1.0
    start = time.monotonic()
    env.step(ZEROS)
    assert 1.0 <= time.monotonic() - start < 2.0
    assert env.failed.all()
    assert env.env_restarts == 3


def test_trouble_while_the_environment_is_built(build, flag, caplog):
    flag.touch()
    env = build(TroubleEnv, flag=str(flag), kind="raise", where="init")  # one of the three stumbles
    assert env.env_restarts == 1
    assert "the dice fell off the table" in caplog.text
    env.reset()
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [1, 1, 1]


def test_a_replacement_that_breaks_is_replaced(build, flag):
    env = build(TroubleEnv, flag=str(flag), kind="raise", where="init")
    env.reset()
    flag.touch()
    os.kill(env.worker_pids[2], signal.SIGKILL)
    env.step(ZEROS)
    env.reset(env.failed.copy())
    assert env.env_restarts == 2
    assert env.obs[:, 0, 0].tolist() == [1, 1, 0]
    draws = np.random.default_rng(derive_seed(seed_of(2), "restart", 2))
    assert env.obs[2, 0, 3] == np.float32(draws.random())


@pytest.mark.parametrize(
    ("kind", "where", "cause"),
    [
        ("raise", "step", r"Traceback[\s\S]*in step[\s\S]*ValueError: the dice fell off the table"),
        (
            "raise",
            "reset",
            r"Traceback[\s\S]*in reset[\s\S]*ValueError: the dice fell off the table",
        ),
        (
            "raise",
            "init",
            r"Traceback[\s\S]*in __init__[\s\S]*ValueError: the dice fell off the table",
        ),
        ("kill", "step", "worker killed by signal 9"),
        ("exit", "init", "worker exited with code 7"),
        ("env_error", "step", "reported env_error"),
    ],
)
def test_too_many_failures_name_their_cause(build, flag, kind, where, cause):
    def run():
        env = build(
            TroubleEnv,
            n_envs=2,
            max_env_restarts=1,
            flag=str(flag),
            kind=kind,
            where=where,
            keep=True,
        )
        for episode in range(4):
            env.reset()
            env.step(ZEROS[:2])
            env.step(ZEROS[:2])
            assert env.failed.all()
            assert env.env_restarts == 2 * (episode + 1)

    flag.touch()
    with pytest.raises(
        EnvFailure, match=r"environment \d \(train_env\) broke 2 times in a row [\s\S]*" + cause
    ):
        run()


def test_hanging_again_and_again(build, flag):
    env = build(
        TroubleEnv,
        n_envs=2,
        max_env_restarts=0,
        flag=str(flag),
        kind="hang",
        where="reset",
        keep=True,
    )
    flag.touch()
    env.env_timeout = 0.5
    with pytest.raises(EnvFailure, match=r"broke 1 times in a row .* no answer in 0.5 s"):
        env.reset()
    with pytest.raises(RuntimeError, match="cannot be used"):
        env.reset()


def test_killed_again_and_again(build):
    env = build(CountingEnv, n_envs=2, max_env_restarts=2)

    def step_with_dead_workers():
        env.reset()
        for pid in env.worker_pids:
            os.kill(pid, signal.SIGKILL)
        env.step(ZEROS[:2])

    step_with_dead_workers()
    step_with_dead_workers()
    assert env.env_restarts == 4
    with pytest.raises(EnvFailure, match=r"broke 3 times in a row .* worker killed by signal 9"):
        step_with_dead_workers()


def test_what_the_environment_refuses_is_raised_at_once(build, flag):
    flag.touch()
    with pytest.raises(ConfigError, match="map 'nowhere' does not exist"):
        build(TroubleEnv, flag=str(flag), kind="refuse", where="init", keep=True)


def test_a_query_that_raises_does_not_cost_the_episode(build, flag):
    env = build(TroubleEnv, flag=str(flag), kind="raise", where="stats", only_seed=seed_of(1))
    env.reset()
    env.step(ZEROS)
    flag.touch()
    with pytest.raises(RuntimeError, match=r"in get_stats[\s\S]*the dice fell off the table"):
        env.get_stats()
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [2, 2, 2]
    assert env.env_restarts == 0
    assert env.get_stats() == {"resets": [1, 1, 1]}


def test_a_worker_that_dies_of_a_query_is_replaced(build, flag):
    env = build(TroubleEnv, flag=str(flag), kind="kill", where="stats", only_seed=seed_of(1))
    env.reset()
    env.step(ZEROS)
    flag.touch()
    assert env.get_stats() == {"resets": [1, 0, 1]}
    assert env.failed.tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"\[1\] have no running episode"):
        env.step(ZEROS)
    env.reset(env.failed.copy())
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [2, 1, 2]


# nothing is left behind


def test_close_ends_workers_and_what_they_started(build):
    env = build(PidEnv, game=True)
    env.reset()
    workers, games = pids_of(env)
    assert all(map(alive, workers + games))
    assert workers == env.worker_pids
    obs = env.obs.copy()
    env.close()
    assert gone_within(5, workers + games)
    env.close()
    assert (env.obs == obs).all(), "the arrays outlive the workers"
    with pytest.raises(RuntimeError, match="cannot be used"):
        env.step(ZEROS)


def test_a_killed_workers_game_ends_with_it(build):
    env = build(PidEnv, game=True)
    env.reset()
    workers, games = pids_of(env)
    os.kill(workers[0], signal.SIGKILL)
    env.step(ZEROS)
    assert env.failed.tolist() == [True, False, False]
    assert gone_within(5, games[:1])
    assert all(map(alive, games[1:]))


def test_garbage_collection_ends_workers(build):
    env = SubprocVectorEnv(PidEnv, {"game": True}, 2, 0, "train_env")
    workers, games = pids_of(env)
    del env
    gc.collect()
    assert gone_within(5, workers + games)


def test_workers_hold_no_connections_of_others(build):
    env = build(CountingEnv)
    env.reset()
    for pid in env.worker_pids:
        links = [
            os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
        ]
        assert sum(link.startswith("socket:") for link in links) == 1


def test_workers_ignore_interrupts(build):
    env = build(CountingEnv)
    env.reset()
    for pid in env.worker_pids:
        os.kill(pid, signal.SIGINT)
    env.step(ZEROS)
    assert not env.failed.any()
    assert env.env_restarts == 0


def test_interrupt_in_mid_step(build):
    env = build(PidEnv, game=True, slow_step=2.0)
    env.reset()
    workers, games = pids_of(env)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        env.step(ZEROS)
    with pytest.raises(RuntimeError, match="cannot be used"):
        env.step(ZEROS)
    env.close()
    assert gone_within(1, workers + games)


SCRIPT = """
import sys
sys.path[:0] = [{src!r}, {tests!r}]
import numpy as np
from env_fakes import PidEnv
from envs.subproc import SubprocVectorEnv

if __name__ == "__main__":
    env = SubprocVectorEnv(PidEnv, dict(game=True, slow_step={slow_step}), 2, 0, "train_env")
    stats = env.get_stats()
    print(*stats["pid"], *stats["game"], flush=True)
    env.reset()
    env.step(np.zeros((2, 3), dtype=int))
    {end}
"""


def script(slow_step, end):
    code = SCRIPT.format(src=str(SRC), tests=str(TESTS), slow_step=slow_step, end=end)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process, [int(float(pid)) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise SystemExit", "1 / 0"])
def test_a_parent_that_forgets_to_close(end):
    process, pids = script(
        0.0, end if end != "1 / 0" else "sys.excepthook = lambda *_: None; 1 / 0"
    )
    with process:
        assert len(pids) == 4
        process.wait(20)
    assert gone_within(2, pids)


@pytest.mark.parametrize(
    ("slow_step", "end"), [(0.0, "__import__('time').sleep(100)"), (1000.0, "pass")]
)
def test_workers_vanish_when_the_parent_is_killed(slow_step, end):
    """Idle ones notice at once; ones that hang in their environment a little later."""
    process, pids = script(slow_step, end)
    with process:
        assert len(pids) == 4
        assert all(map(alive, pids))
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(5)
    assert gone_within(8, pids)


# what workers are given


def test_workers_see_the_present_environment_variables(build, monkeypatch):
    build(CountingEnv, n_envs=1)
    monkeypatch.setenv("GAME_PATH", "/games")
    env = build(CountingEnv, n_envs=1)
    variables = Path(f"/proc/{env.worker_pids[0]}/environ").read_bytes().split(b"\0")
    assert b"GAME_PATH=/games" in variables
    assert any(v.startswith(b"OMP_NUM_THREADS=") for v in variables)


def test_workers_load_plugins_first(build, tmp_path, monkeypatch):
    plugin = "import env_fakes\nenv_fakes.CountingEnv.get_stats = lambda self: {'marked': 5}\n"
    (tmp_path / "my_plugin.py").write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    env = build(CountingEnv, n_envs=2, setup=partial(load_plugins, ["my_plugin"]))
    assert env.get_stats() == {"marked": [5, 5]}
    with pytest.raises(ConfigError, match="not_there"):
        build(CountingEnv, n_envs=2, setup=partial(load_plugins, ["not_there"]))


def test_environments_that_cannot_be_sent(build):
    class Local(CountingEnv):
        pass

    with pytest.raises(ConfigError, match="top level of a module"):
        build(Local)
    with pytest.raises(ConfigError, match="plain values in env_args"):
        build(CountingEnv, length=threading.Lock())


@pytest.mark.parametrize("own_class", [False, True])
def test_the_main_script_is_executed_again_only_if_the_environment_is_in_it(tmp_path, own_class):
    path = tmp_path / "my_script.py"
    path.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path[:0] = [{str(SRC)!r}, {str(TESTS)!r}]
            from env_fakes import CountingEnv
            from envs.subproc import SubprocVectorEnv

            with open({str(tmp_path / "executed")!r}, "a") as file:
                file.write(__name__ + "\\n")


            class Mine(CountingEnv):
                pass


            if __name__ == "__main__":
                cls = {"Mine" if own_class else "CountingEnv"}
                with SubprocVectorEnv(cls, {{}}, 2, 0, "train_env") as env:
                    env.reset()
                    print(env.obs.shape)
            """)
    )
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "(2, 3, 4)\n"
    assert (tmp_path / "executed").read_text().split() == ["__main__"] + ["__mp_main__"] * (
        2 if own_class else 0
    )
