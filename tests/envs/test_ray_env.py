"""Environments in actors of a Ray cluster: the contract, episodes equal to those of worker
processes, and what happens when an environment, an actor or a node breaks.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
from env_fakes import (  # noqa: E402
    CountingEnv,
    EchoEnv,
    PidEnv,
    ReseedableEnv,
    ShiftingEnv,
    TroubleEnv,
    UnevenEnv,
)
from ray.cluster_utils import Cluster  # noqa: E402
from run_fixtures import StopAt, finish, start_run  # noqa: E402
from sc2_stand_in import Installation  # noqa: E402
from sweep_fixtures import wait_until  # noqa: E402
from test_env_contract import (  # noqa: E402
    CASES,
    CHECKS,
    check_arrays,
    check_close,
    check_ends,
    worker_pool,  # noqa: F401 - a fixture
)

import nodes  # noqa: E402
from envs import make_vector_env  # noqa: E402
from envs.remote import RayVectorEnv  # noqa: E402
from envs.subproc import SubprocVectorEnv  # noqa: E402
from utils import ray_cluster  # noqa: E402
from utils.errors import ConfigError, EnvFailure, EnvQueryFailed, UserError  # noqa: E402
from utils.observers import Interrupted  # noqa: E402
from utils.seeding import derive_seed  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
ZEROS = np.zeros((3, 3), dtype=int)
ARRAYS = ("obs", "state", "avail_actions", "reward", "terminated", "truncated", "failed")
WHERE = {"address": "", "envs_per_actor": 2, "resources": {}, "patience": 300.0}


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Two nodes on this machine, with which this process is connected."""
    game = Installation(tmp_path_factory.mktemp("sc2") / "StarCraftII", maps=["3m"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC2PATH", str(game.folder))
        # Others may use this machine.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        nodes.add_node(num_cpus=2, resources={"far": 8})
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()
    assert not game.running(), "games are left"


@pytest.fixture
def build():
    """Builds environments in actors; closes them after the test."""
    built = []

    def make(factory, n_envs=3, seed=11, max_env_restarts=5, env_timeout=30.0, on=(), **args):
        env = RayVectorEnv(
            factory, args, n_envs, seed, "train_env", max_env_restarts, None, env_timeout,
            **{**WHERE, **dict(on)},
        )  # fmt: skip
        built.append(env)
        return env

    yield make
    for env in built:
        env.close()


@pytest.fixture
def flag(tmp_path):
    return tmp_path / "flag"


def seed_of(b):
    return derive_seed(11, "train_env", b)


# The contract.

# Of the real game, what its own processes have to do with.
CONTRACT = {"matrix_game": CHECKS, "sc2": [check_arrays, check_ends, check_close]}
SAMPLED = {
    case.env: case
    for case in reversed(CASES)
    if case.env in CONTRACT and "subproc" in case.backends
}


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name, checks in CONTRACT.items() for check in checks],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_contract(name, check, worker_pool):  # noqa: F811 - the fixture
    case = SAMPLED[name]

    def make(n_envs, seed):
        args = (case.env, case.env_args, n_envs, seed, "ray", "train_env")
        return make_vector_env(*args, ray=WHERE)

    if check is check_close:  # an actor takes seconds to start
        check(make, case)
    else:
        check(worker_pool(case, make), case)


# Episodes are those of worker processes.


def assert_equal(one, other):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert list(one.info) == list(other.info)
    for name, values in one.info.items():
        np.testing.assert_array_equal(values, other.info[name], name)


@pytest.mark.parametrize(
    ("factory", "env_args", "n_envs", "per_actor"),
    [
        (ReseedableEnv, {"chance": 0.3, "info_late": True}, 3, 1),
        (ReseedableEnv, {"chance": 0.3, "info_late": True}, 5, 3),
        (ShiftingEnv, {"length": 3}, 3, 3),
        (UnevenEnv, {}, 3, 3),
        (EchoEnv, {}, 3, 2),
    ],
)
def test_episodes_are_those_of_worker_processes(build, factory, env_args, n_envs, per_actor):
    env = build(factory, n_envs, on={"envs_per_actor": per_actor}, **env_args)
    rng = np.random.default_rng(3)
    with SubprocVectorEnv(factory, env_args, n_envs, 11, "train_env") as other:
        for t_env in (0, 100, 200):
            for one in (env, other):
                one.set_t_env(t_env)
                one.reset()
            running = np.ones(n_envs, dtype=bool)
            while running.any():
                if env.continuous_actions:
                    actions = rng.uniform(-1, 1, (n_envs, 2, 3)).astype(np.float32)
                else:
                    actions = env.avail_actions.argmax(-1)
                for one in (env, other):
                    one.step(actions, running)
                assert_equal(env, other)
                running &= ~(env.terminated | env.truncated)
        assert env.get_stats() == other.get_stats()
        assert factory is EchoEnv or (env.render(2) == other.render(2)).all()
        assert env.get_rng_state() == other.get_rng_state()
        assert env.get_env_info() == other.get_env_info()


SETTINGS = [
    "use_cuda=False", "seed=4", "t_max=200", "batch_size_run=3", "batch_size=4",
    "test_interval=100", "test_nepisode=3", "runner_log_interval=40",
    "learner_log_interval=40", "rnn_hidden_dim=8",
    "env_args.grid_size=4", "env_args.episode_limit=10", "ray.envs_per_actor=2",
]  # fmt: skip


def test_a_run_is_that_of_worker_processes_and_goes_on_with_either(tmp_path):
    def run(name, runner, *settings):
        return start_run(
            "qmix", "predator_prey", tmp_path / name, [*SETTINGS, f"runner={runner}", *settings]
        )

    def metrics(name):
        return (tmp_path / name / "metrics.jsonl").read_bytes()

    finish(run("ray", "ray"))
    finish(run("parallel", "parallel"))
    assert b'"test_return_mean"' in metrics("ray")
    assert metrics("ray") == metrics("parallel")
    ended = run("both", "ray")
    ended.stop = StopAt(ended.runner, 100)
    with pytest.raises(Interrupted):
        finish(ended)
    rest = run("both", "parallel")
    rest.load(max((tmp_path / "both" / "checkpoints").glob("[0-9]*")))
    finish(rest)
    assert metrics("both") == metrics("parallel")


# Broken environments, actors and nodes.


def test_a_killed_actor_is_replaced(build, caplog):
    env, undisturbed = build(ReseedableEnv), build(ReseedableEnv)
    for one in (env, undisturbed):
        one.reset()
        one.step(ZEROS)
    before = env.places
    os.kill(before[0].pid, signal.SIGKILL)
    env.step(ZEROS)
    undisturbed.step(ZEROS)
    assert env.failed.tolist() == [True, True, False]
    assert not (env.terminated | env.truncated).any()
    assert env.reward[:2].tolist() == [0, 0]
    assert env.env_restarts == 2
    assert "environment 1 (train_env) is replaced, restart 2: its actor on " in caplog.text
    assert (env.obs[2] == undisturbed.obs[2]).all()

    env.step(ZEROS, np.array([False, False, True]))  # goes on while the new ones are started
    env.reset(env.failed.copy())
    assert env.places[0].pid != before[0].pid
    assert env.places[1] == before[1]
    for b in (0, 1):
        draws = np.random.default_rng(derive_seed(seed_of(b), "restart", 1))
        assert env.obs[b, 0, 3] == np.float32(draws.random())
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [1, 1, 4]
    assert not env.failed.any()


def test_a_finished_episode_outlives_its_actor(build):
    env = build(CountingEnv, 2, length=2)
    env.reset()
    env.step(ZEROS[:2])
    env.step(ZEROS[:2], np.array([True, False]))
    assert env.terminated.tolist() == [True, False]
    os.kill(env.places[0].pid, signal.SIGKILL)
    env.step(ZEROS[:2], np.array([False, True]))
    assert env.terminated.tolist() == [True, False]
    assert env.failed.tolist() == [False, True]
    assert env.reward.tolist() == [2, 0]


def test_an_actor_that_dies_in_a_reset_is_replaced_at_once(build):
    env = build(PidEnv, slow_step=0.0)
    env.reset()
    os.kill(env.places[0].pid, signal.SIGKILL)
    env.reset()
    assert not env.failed.any()
    assert env.env_restarts == 2
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [1, 1, 1]


def test_an_actor_that_hangs_is_replaced(build, monkeypatch, caplog):
    monkeypatch.setattr("envs.remote._MARGIN", 1.0)
    env = build(CountingEnv)
    env.reset()
    os.kill(env.places[1].pid, signal.SIGSTOP)
    env.env_timeout = 3.0
    env.step(ZEROS)
    assert env.failed.tolist() == [False, False, True]
    assert "gave no answer in 4.0 s" in caplog.text


TROUBLES = {
    "raise": "the dice fell off the table",
    "kill": "worker killed by signal 9",
    "hang": "no answer in 3.0 s",
    "env_error": "it reported env_error",
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_an_environment_that_breaks_is_replaced_where_it_is(build, flag, caplog, kind):
    env = build(TroubleEnv, flag=str(flag), kind=kind, only_seed=seed_of(1))
    env.reset()
    env.step(ZEROS)
    before = env.places
    flag.touch()
    env.env_timeout = 3.0
    env.step(ZEROS)
    assert env.failed.tolist() == [False, True, False]
    assert env.obs[[0, 2], 0, 0].tolist() == [2, 2]
    assert env.env_restarts == 1
    assert "environment 1 (train_env) is replaced, restart 1: " in caplog.text
    assert TROUBLES[kind] in caplog.text
    env.env_timeout = 30.0
    env.reset(env.failed.copy())
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [3, 1, 3]
    assert env.places == before
    # An actor that takes over goes on with the counts.
    os.kill(before[0].pid, signal.SIGKILL)
    env.step(ZEROS)
    env.reset()
    for b, n_replaced in ((0, 1), (1, 2)):
        draws = np.random.default_rng(derive_seed(seed_of(b), "restart", n_replaced))
        assert env.obs[b, 0, 3] == np.float32(draws.random())


def test_too_many_failures_name_their_cause(build, flag):
    flag.touch()
    env = build(TroubleEnv, flag=str(flag), kind="raise", keep=True, max_env_restarts=1)
    env.reset()
    env.step(ZEROS)
    env.step(ZEROS)
    assert env.failed.all()
    env.reset()
    env.step(ZEROS)
    with pytest.raises(
        EnvFailure,
        match=r"environment [012] \(train_env\) broke 2 times in a row [\s\S]*"
        r"Traceback[\s\S]*ValueError: the dice fell off the table",
    ):
        env.step(ZEROS)
    with pytest.raises(RuntimeError, match="cannot be used"):
        env.reset()


def test_an_actor_that_dies_again_and_again_ends_the_run(build):
    env = build(CountingEnv, max_env_restarts=1)

    def step_with_a_dead_actor():
        env.reset()
        os.kill(env.places[1].pid, signal.SIGKILL)
        env.step(ZEROS)

    step_with_a_dead_actor()
    with pytest.raises(
        EnvFailure, match=r"environment 2 \(train_env\) broke 2 times in a row .* its actor on "
    ):
        step_with_a_dead_actor()


def test_what_the_environment_refuses_is_raised_at_once(build, flag):
    flag.touch()
    with pytest.raises(ConfigError, match="map 'nowhere' does not exist"):
        build(TroubleEnv, flag=str(flag), kind="refuse", where="init", keep=True)


def test_a_query_that_raises_does_not_cost_the_episode(build, flag):
    env = build(TroubleEnv, flag=str(flag), kind="raise", where="stats", only_seed=seed_of(1))
    env.reset()
    env.step(ZEROS)
    flag.touch()
    with pytest.raises(EnvQueryFailed, match=r"in get_stats[\s\S]*the dice fell off the table"):
        env.get_stats()
    env.step(ZEROS)
    assert env.obs[:, 0, 0].tolist() == [2, 2, 2]
    assert env.get_stats() == {"resets": [1, 1, 1]}


def test_closing_ends_actors_workers_and_games(build):
    env = build(PidEnv, game=True)
    stats = env.get_stats()
    pids = [*stats["pid"], *stats["game"], *(place.pid for place in env.places)]
    assert all(Path(f"/proc/{int(pid)}").exists() for pid in pids)
    env.close()
    env.close()
    wait_until(lambda: not any(alive(pid) for pid in pids), 60)


def alive(pid):
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Room.


def test_actors_are_where_their_resources_are(build, cluster):
    env = build(CountingEnv, 4, on={"resources": {"far": 1, "cores": 0.5}})
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    assert all("far" in nodes[place.node] for place in env.places)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"resources": {"nowhere": 1}},
            "no node of the Ray cluster has what an actor with envs_per_actor=2 environments "
            "needs: nowhere 2",
        ),
        ({"resources": {"far": 5}}, "no node .* needs: far 10"),
        ({"resources": {"far": 2}}, "cluster has far 8, the environments of this run need far 10"),
    ],
)
def test_what_the_cluster_never_has_room_for_is_said_at_once(build, where, message):
    with pytest.raises(UserError, match=message):
        build(CountingEnv, 5, on=where)


def test_waiting_for_room_comes_to_an_end(build, monkeypatch, caplog):
    monkeypatch.setattr("envs.remote._REMINDER", 0.5)
    held = build(CountingEnv, 4, on={"resources": {"far": 1.9}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayVectorEnv, "_others", set())
        with pytest.raises(EnvFailure, match=r"environments 0-1 .* far 3.8; ray.patience is over"):
            build(CountingEnv, 2, on={"resources": {"far": 1.9}, "patience": 1.0})
    assert "environments 0-1 (train_env) wait for room in the Ray cluster" in caplog.text
    held.reset()


def test_a_checkout_that_nodes_do_not_have_is_one_line(build, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_SRC", "/nowhere")
    with pytest.raises(UserError, match="must be at the same path on every node"):
        build(CountingEnv)


# What the nodes have.


def test_doctor_asks_every_node(cluster, capsys, monkeypatch):
    assert nodes.main(["--cluster", "--address", cluster.address]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{sys.version_info[0]}.{sys.version_info[1]}.") == 2
    assert said.count("1 maps") == 2
    found = nodes.ask_nodes(cluster.address)
    assert sorted(node.named.get("far", 0) for node in found) == [0, 8]
    assert all(node.torch and node.memory > 0 and not node.fault for node in found)
    monkeypatch.setattr(nodes, "_code", lambda: "other")
    assert all("has other code there" in node.fault for node in nodes.ask_nodes(cluster.address))
    monkeypatch.setattr(ray_cluster, "_SRC", "/nowhere")
    assert nodes.main(["--cluster", "--address", cluster.address]) == 1
    assert capsys.readouterr().out.count("cannot load") == 2


# Whole runs.


def command(tmp_path, address, *settings):
    words = ["--config=qmix", "--env-config=predator_prey", "with", "runner=ray", *SETTINGS]
    words += [f"ray.address={address}", f"local_results_path={tmp_path / 'results'}", *settings]
    return [sys.executable, str(ROOT / "src" / "main.py"), *words]


def reached(tmp_path, text):
    return any(text in file.read_text() for file in tmp_path.glob("results/**/metrics.jsonl"))


def test_environments_of_a_killed_node_come_up_elsewhere_and_the_run_goes_on(tmp_path, cluster):
    first = cluster.add_node(num_cpus=1, resources={"game": 6})
    settings = ["ray.resources.game=1", "t_max=3000", "test_interval=100000"]
    run = subprocess.Popen(
        command(tmp_path, cluster.address, *settings), stderr=subprocess.PIPE, text=True
    )
    said = []
    reader = threading.Thread(target=lambda: said.extend(run.stderr))
    reader.start()
    second = None
    try:
        wait_until(lambda: reached(tmp_path, '"t": 2') or run.poll() is not None)
        second = cluster.add_node(num_cpus=1, resources={"game": 6})
        cluster.remove_node(first, allow_graceful=False)
        assert run.wait(300) == 0, "".join(said)
    finally:
        run.kill()
        reader.join()
        if second is not None:
            cluster.remove_node(second)
    text = "".join(said)
    assert "its actor on" in text, text
    assert "died" in text, text
    assert reached(tmp_path, '"env_restarts"')
    assert list(tmp_path.glob("results/sacred/*/*/*/checkpoints/30*"))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_run_with_a_checkpoint(tmp_path, cluster, signum, code):
    """Ctrl-C goes to all processes of the terminal, also to those of a cluster of the run's own."""
    address = "" if signum == signal.SIGINT else cluster.address
    run = subprocess.Popen(
        command(tmp_path, address, "t_max=1000000"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: reached(tmp_path, '"t": 2') or run.poll() is not None)
        if signum == signal.SIGINT:
            os.killpg(run.pid, signum)
        else:
            run.send_signal(signum)
        _, said = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == code, said
    assert list(tmp_path.glob("results/sacred/*/*/*/checkpoints/[0-9]*"))
