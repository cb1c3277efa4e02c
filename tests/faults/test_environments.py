"""Environments that misbehave: one line with the environment, the step and the agent, exit code 1,
from every backend.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "envs"))  # env_fakes

from odd_envs import AVAIL, FAULTS, OBS, STATE, STEPS, OddEnv
from run_fixtures import finish, start_run

import envs
from envs.serial import SerialVectorEnv
from envs.subproc import SubprocVectorEnv
from envs.vector_env import EnvSpec, VectorEnv
from utils.errors import EnvFailure, report_error

SMALL = [
    "use_cuda=False",
    "t_max=60",
    "batch_size=2",
    "batch_size_run=2",
    "buffer_size=8",
    "rnn_hidden_dim=4",
    "seed=1",
    "test_nepisode=2",
    "save_model=False",
    "max_env_restarts=1",
]


@pytest.fixture
def odd():
    envs.register("odd")(OddEnv)
    yield
    envs.REGISTRY.pop("odd")
    envs.VECTOR_REGISTRY.pop("odd", None)


def run_odd(tmp_path, fault, runner):
    file = tmp_path / "odd.yaml"
    file.write_text(f"env: odd\nenv_args: {{fault: '{fault}', seed: null}}\n")
    finish(start_run("vdn", str(file), tmp_path / "run", [*SMALL, f"runner={runner}"]))


def one_line(error, capsys):
    capsys.readouterr()  # the run's log, where an earlier test of this process has set one up
    assert report_error(error) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: environment ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def expected(fault):
    """What the line has to say of a fault, besides the environment."""
    parts = []
    if any(fault in kind for kind in (STEPS, OBS, STATE, AVAIL)):
        parts.append("step 3" if fault not in ("reward nan", "reward infinite") else "reward")
    if fault.startswith("obs of one agent") or fault in ("no action", "avail -1", "avail nan"):
        parts.append("agent 1")
    return parts


@pytest.mark.parametrize("fault", FAULTS)
def test_serial(odd, tmp_path, capsys, fault):
    with pytest.raises(EnvFailure) as caught:
        run_odd(tmp_path, fault, "vector")
    line = one_line(caught.value, capsys)
    assert all(part in line for part in expected(fault)), line


def test_the_environment_without_a_fault_is_fine(odd, tmp_path):
    run_odd(tmp_path, "", "vector")


def step_until_it_fails(env, episodes=12):
    for _ in range(episodes):
        env.reset()
        running = np.ones(env.n_envs, dtype=bool)
        while running.any():
            env.step(np.zeros((env.n_envs, env.n_agents), dtype=int), running)
            running &= ~(env.terminated | env.truncated | env.failed)


# Those that only the runner sees: a sum of rewards that is not finite.
IN_A_WORKER = [fault for fault in FAULTS if fault not in ("reward nan", "reward infinite")]
QUICK = ("five values", "no action", "step raises", "obs of one agent larger", "no limit")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in QUICK else pytest.mark.long)
        for fault in IN_A_WORKER
    ],
)
def test_a_worker_process_says_the_same(capsys, fault):
    lines = []
    for backend in (SerialVectorEnv, SubprocVectorEnv):
        with pytest.raises(EnvFailure) as caught:
            step_until_it_fails(backend(OddEnv, {"fault": fault}, 1, 5, "train_env", 1))
        lines.append(one_line(caught.value, capsys).partition(": ")[2].partition(": ")[2].strip())
    assert lines[0] in lines[1]  # one that raised is replaced a few times first


def test_a_steady_fault_of_the_interface_is_not_replaced(capsys):
    env = SubprocVectorEnv(OddEnv, {"fault": "avail -1", "late": True}, 1, 5, "train_env", 1000)
    with pytest.raises(EnvFailure, match="must be 0 or 1"):
        step_until_it_fails(env)
    assert env.env_restarts == 0
    env.close()


def test_close_that_raises_is_one_line_of_warning(caplog):
    class Clinging(OddEnv):
        def close(self):
            raise OSError("the window does not close")

    SerialVectorEnv(Clinging, {}, 1, 5, "train_env").close()
    assert "close() raised OSError: the window does not close" in caplog.text
    assert "Traceback" not in caplog.text


class NativeOdd(VectorEnv):
    """Batched, with a fault where a batched environment can have one."""

    def __init__(self, n_envs, seed=None, fault=""):
        self.fault, self.t = fault, 0
        self._fail("init")
        super().__init__(n_envs, EnvSpec(2, 3, 4, 5, episode_limit=5), seed)

    def _fail(self, where):
        if self.fault == f"{where} raises":
            raise KeyError("a thing that\nis not there")
        if self.fault == f"{where} exits":
            sys.exit(0)

    def _reset(self, mask):
        self.t = 0
        self._fail("reset")
        self.avail_actions[mask] = 1

    def _step(self, actions, mask):
        self.t += 1
        self._fail("step")
        if self.fault == "no action" and self.t == 2:
            self.avail_actions[:, 1] = 0
        if self.fault == "reward nan":
            self.reward[mask] = np.nan
        if self.fault == "obs larger":
            self.obs[mask] = np.zeros((2, 9))
        self.truncated[mask] = self.t == 5

    def close(self):
        self._fail("close")


NATIVE = ["init raises", "init exits", "reset raises", "reset exits", "step raises", "step exits"]


@pytest.mark.parametrize("fault", [*NATIVE, "no action", "reward nan", "obs larger"])
def test_native(tmp_path, capsys, fault):
    envs.register_vector("odd")(NativeOdd)
    try:
        with pytest.raises(EnvFailure) as caught:
            run_odd(tmp_path, fault, "vector")
    finally:
        del envs.REGISTRY["odd"], envs.VECTOR_REGISTRY["odd"]
    line = one_line(caught.value, capsys)
    if fault == "no action":
        assert "step 3" in line
        assert "agent 1" in line
