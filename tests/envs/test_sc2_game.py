"""The real game's side, through pysc2, against a stand-in for the game; and the script that
installs the game.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pysc2.lib import remote_controller
from s2clientprotocol import common_pb2, raw_pb2
from sc2_stand_in import Installation, alive
from sc2_stand_in.world import World, to_game_positions
from websocket import WebSocketException

from envs import make_vector_env
from envs.starcraft.battle import Battle
from envs.starcraft.env import SC2Sim
from envs.starcraft.facts import UNIT_INDEX, map_info, map_names, unit_type
from envs.starcraft.game import client, make_env, smac_env
from envs.starcraft.game import env as game_env
from envs.starcraft.game.grids import pathing_grid, terrain_height
from envs.starcraft.interface import Interface, Options
from utils.errors import ConfigError, EnvFailure, MissingPackage, UserError
from utils.seeding import derive_seed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """So that no game has to compile the simulator while somebody waits for its answer."""
    World("3m", 1).step(8)


@pytest.fixture
def sc2(tmp_path, monkeypatch):
    """A stand-in installation that SC2PATH points to; afterwards no game may be left."""
    installation = Installation(tmp_path / "StarCraftII")
    monkeypatch.setenv("SC2PATH", str(installation.folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "workers").mkdir()  # a worker that is killed cannot clear up after its game
    monkeypatch.setenv("TMPDIR", str(tmp_path / "workers"))
    yield installation
    assert wait_for(lambda: not installation.running(), 5), "games are left"
    assert not list(tmp_path.glob("sc-*")), "pysc2's temporary folders are left"


@pytest.fixture
def build(sc2, monkeypatch):
    """Builds environments in this process that lose no time waiting, and closes them."""
    built = []
    pauses = []
    monkeypatch.setattr(game_env, "time", types.SimpleNamespace(sleep=pauses.append))
    # pysc2 tries to connect once a second: the stand-in is there sooner than the game would be
    monkeypatch.setattr(
        remote_controller, "time", types.SimpleNamespace(sleep=lambda seconds: time.sleep(0.2))
    )

    def make(**env_args):
        built.append(make_env(**{"seed": 7, "start_interval": 0.0, **env_args}))
        return built[-1]

    make.pauses = pauses
    yield make
    for one in built:
        one.close()


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def random_actions(env, rng):
    return [int(rng.choice(np.flatnonzero(row))) for row in env.get_avail_actions()]


# the same battles as in the simulator


class Simulator(SC2Sim):
    """The simulator with positions as coarse as the game's."""

    def _observe(self, mask):
        to_game_positions(self.battle)
        self.interface.observe(mask, self.obs, self.state, self.avail_actions)

    def _reset(self, mask):
        super()._reset(mask)
        self._observe(mask)

    def _step(self, actions, mask):
        super()._step(actions, mask)
        self._observe(mask)


ALL_OPTIONS = {
    "obs_last_action": True, "obs_pathing_grid": True, "obs_terrain_height": True,
    "obs_timestep_number": True,
    "reward_only_positive": False, "state_timestep_number": True, "continuing_episode": True,
    "step_mul": 5,
}  # fmt: skip


@pytest.mark.parametrize(("map_name", "options"), [("3m", {}), ("2s3z", ALL_OPTIONS), ("MMM", {})])
def test_episodes_equal_those_of_the_simulator(build, sc2, map_name, options):
    """Two episodes, so that the units' deaths, the restart by the map's script and the new tags are
    all there.
    """
    env = build(map_name=map_name, **options)
    sim = Simulator(1, seed=7, map_name=map_name, **options)
    everyone = np.ones(1, bool)
    assert env.get_env_info() == {k: sim.get_env_info()[k] for k in env.get_env_info()}
    assert env.game_pid is None
    rng = np.random.default_rng(3)
    pids = set()
    for _ in range(2):
        env.reset()
        sim.reset(everyone)
        pids.add(env.game_pid)
        ended = False
        while True:
            np.testing.assert_allclose(env.get_obs(), sim.obs[0], atol=1e-6)
            np.testing.assert_allclose(env.get_state(), sim.state[0], atol=1e-6)
            np.testing.assert_array_equal(env.get_avail_actions(), sim.avail_actions[0])
            if ended:  # these were of the state in which the episode ended
                break
            actions = random_actions(env, rng)
            reward, ended, info = env.step(actions)
            sim.step(np.array([actions]), everyone)
            assert reward == pytest.approx(sim.reward[0], abs=1e-5)
            assert ended == bool(sim.terminated[0] or sim.truncated[0])
            assert info.pop("episode_limit", False) == sim.truncated[0]
            assert info == {key: value[0] for key, value in sim.info.items()}
    assert len(pids) == 1
    assert env.get_stats() == {key: values[0] for key, values in sim.get_stats().items()}
    assert env.get_stats()["battles_game"] == 2
    with pytest.raises(ValueError, match="no running episode"):
        env.step(actions)


def test_agents_are_sorted_and_read_from_the_raw_units(build, sc2, tmp_path, monkeypatch):
    """MMM: what the environment shows is what follows from the game's list of units, put in order
    by a plain loop.
    """
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    env = build(map_name="MMM", replay_dir=str(tmp_path / "replays"), replay_prefix="mine")
    info = map_info("MMM")
    env.reset()
    rng = np.random.default_rng(0)
    tags = None
    seen_dead = healed = aimed = 0
    energy = []
    rules = Interface(info, battle := Battle(1, info.n_agents, info.n_enemies), Options())
    obs = np.zeros((1, 10, rules.obs_size), np.float32)
    state = np.zeros((1, rules.state_size), np.float32)
    avail = np.zeros((1, 10, rules.n_actions), np.uint8)
    everyone = np.ones(1, bool)
    for _ in range(40):
        units = {unit.tag: unit for unit in env._game.observe()}
        if tags is None:
            agents = sorted(
                (u for u in units.values() if u.owner == 1),
                key=lambda u: (u.unit_type, u.pos.x, u.pos.y),
            )
            tags = [u.tag for u in agents] + [u.tag for u in units.values() if u.owner == 2]
            names = ["Marauder"] * 2 + ["Marine"] * 7 + ["Medivac"]
            numbers = {48: "Marine", 51: "Marauder", 54: "Medivac"}
            names += [numbers[units[tag].unit_type] for tag in tags[10:]]
            assert names[10:] == ["Marine"] * 7 + ["Marauder"] * 2 + ["Medivac"]
            for i, name in enumerate(names):
                battle.type[0, i] = UNIT_INDEX[name]
                battle.health_max[0, i] = unit_type(name).health
            rules.begin(everyone)
        for i, tag in enumerate(tags):
            battle.alive[0, i] = tag in units
            if tag not in units:
                seen_dead += 1
                battle.health[0, i] = 0.0
                continue
            u = units[tag]
            battle.x[0, i], battle.y[0, i], battle.health[0, i] = u.pos.x, u.pos.y, u.health
            battle.energy[0, i], battle.cooldown[0, i] = u.energy, u.weapon_cooldown
        energy.append(battle.energy[0, 9])
        aims = [units[tag].engaged_target_tag if tag in units else 0 for tag in tags]
        assert env._targets[0].tolist() == [tags.index(aim) if aim in tags else -1 for aim in aims]
        aimed += sum(env._targets[0] >= 0)
        for name in ("type", "alive", "x", "y", "health", "energy", "cooldown"):
            np.testing.assert_array_equal(getattr(env.battle, name), getattr(battle, name))
        rules.observe(everyone, obs, state, avail)
        np.testing.assert_array_equal(env.get_obs(), obs[0])
        np.testing.assert_array_equal(env.get_state(), state[0])
        np.testing.assert_array_equal(env.get_avail_actions(), avail[0])
        actions = random_actions(env, rng)
        hurt = battle.health[0] < battle.health_max[0]
        patients = [a for a in np.flatnonzero(avail[0, 9, 6:]) if hurt[a]]
        if patients:  # the medivac heals whenever there is somebody to heal
            actions[9] = 6 + int(patients[0])
            healed += 1
        _, ended, _ = env.step(actions)
        rules.last_action[0] = actions
        if ended:
            break
    assert seen_dead > 0
    assert healed > 0
    assert aimed > healed
    assert min(energy) < 49 < 50 < energy[0] < 51
    assert env.get_unit_types() == [0, 0, *[1] * 7, 2]
    seen = env.get_visibility_matrix()
    assert seen.shape == (10, 20)
    assert not seen[:, :10].diagonal().any()

    env.save_replay()
    (replay,) = (tmp_path / "replays").iterdir()
    assert re.fullmatch(r"mine_7_.*\.SC2Replay", replay.name)
    figures = json.loads(replay.read_text())
    assert (figures["map"], figures["seed"], figures["difficulty"]) == ("MMM", 7, "VeryHard")
    assert (figures["agents"], figures["enemies"]) == ("Terran", "Terran")
    assert figures["steps"] == len(energy)
    assert figures["libraries"] == "/mine:" + str(sc2.folder / "Libs") + "/"
    assert os.environ["LD_LIBRARY_PATH"] == "/mine"
    with pytest.raises(ValueError, match=r"agent 0: action 0 is not available, only \[1"):
        env.reset() and env.step([0] * 10)


def test_heuristic(build):
    """The list of actions is overwritten; agents attack from any distance, so they win some and
    lose some health.
    """
    env = build(map_name="3m", heuristic_ai=True)
    with pytest.raises(ValueError, match="has not begun an episode"):
        env.render()
    env.reset()
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    tags = set(env._tags)
    env.reset()  # though everybody is alive
    assert not tags & set(env._tags)
    total, ended = 0.0, False
    while not ended:
        actions = [int(np.flatnonzero(row)[0]) for row in env.get_avail_actions()]
        given = list(actions)
        reward, ended, info = env.step(actions)
        total += reward
        if given[0] == 1:
            assert actions[0] >= 6
    assert info["dead_enemies"] > 0
    assert total > 3
    assert env.render().shape == picture.shape
    assert (env.render() != picture).any()
    assert env.get_stats()["battles_game"] == 1


def test_grids():
    """Width 8, height 2: bit-packed from the south, and the old format from the north with 255
    where it is blocked.
    """
    size = common_pb2.Size2DI(x=8, y=2)

    def start(bits, pathing, height):
        return raw_pb2.StartRaw(
            pathing_grid=common_pb2.ImageData(bits_per_pixel=bits, size=size, data=bytes(pathing)),
            terrain_height=common_pb2.ImageData(bits_per_pixel=8, size=size, data=bytes(height)),
        )

    walkable = np.zeros((8, 2), bool)
    walkable[0, 0] = walkable[1, 0] = walkable[7, 1] = True
    ground = np.zeros((8, 2))
    ground[2, 0], ground[3, 1] = 51 / 255, 1.0
    south, north = [0, 0, 51, 0, 0, 0, 0, 0], [0, 0, 0, 255, 0, 0, 0, 0]

    packed = start(1, [0b11000000, 0b00000001], south + north)
    np.testing.assert_array_equal(pathing_grid(packed), walkable)
    np.testing.assert_array_equal(terrain_height(packed), ground)
    old = start(8, [255] * 7 + [0] + [0, 0] + [255] * 6, north + south)
    np.testing.assert_array_equal(pathing_grid(old), walkable)
    np.testing.assert_array_equal(terrain_height(old), ground)
    with pytest.raises(ValueError, match="4 bits per cell"):
        pathing_grid(start(4, [0] * 8, south + north))
    with pytest.raises(ValueError, match="3 bytes"):
        pathing_grid(start(1, [0] * 3, south + north))


# games that break


def test_games_that_break(build, sc2, caplog):
    """Whatever happens, the step reports env_error, the next reset has another game, and it is
    counted.
    """
    env = build()
    pids, seeds = [], []
    troubles = ["kill", "crash", "cut", "error", "end", "garbage"]
    for number, trouble in enumerate(troubles):
        env.reset()
        pids.append(env.game_pid)
        seeds.append(json.loads(env._game._controller.save_replay())["seed"])
        os.kill(env.game_pid, signal.SIGINT)  # a Ctrl-C in the terminal is not for the game
        _, ended, _ = env.step([1, 1, 1])
        assert not ended
        before = env.get_obs()
        if trouble == "kill":
            os.kill(env.game_pid, signal.SIGKILL)
        else:
            sc2.tell(trouble)
        assert env.step([1, 1, 1]) == (0.0, True, {"env_error": True})
        assert np.array_equal(env.get_obs(), before)
        assert env.game_pid is None
        assert wait_for(lambda: not alive(pids[-1]), 1)
        assert env.get_stats()["restarts"] == number + 1
        with pytest.raises(ValueError, match="no running episode"):
            env.step([1, 1, 1])
    assert build.pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert seeds == [7, *(derive_seed(7, "game", i) for i in range(1, 6))]
    assert len(set(pids)) == 6
    assert env.get_stats()["battles_game"] == 0
    for text in (
        "already closed",
        "something is wrong with the stand-in",
        "the game is over",
        "Truncated message",
        "last: Segm",
    ):
        assert text in caplog.text


def hang_up(request):
    raise WebSocketException("mute")


def test_a_game_lost_between_episodes_costs_no_episode(build, sc2, monkeypatch):
    env = build()
    env.reset()
    first = env.game_pid
    os.kill(first, signal.SIGKILL)
    env.reset()
    assert env.game_pid not in (None, first)
    assert env.get_stats()["restarts"] == 1
    ended = False
    while not ended:
        _, ended, info = env.step(random_actions(env, np.random.default_rng(0)))
        assert "env_error" not in info
    assert build.pauses == [1.0]
    os.kill(env.game_pid, signal.SIGKILL)
    env.reset()
    assert build.pauses == [1.0, 1.0]  # not in a row with the first
    env.seed(11)  # another seed is another game
    env.reset()
    assert env.game_pid not in (None, first)
    assert json.loads(env._game._controller.save_replay())["seed"] == 11
    monkeypatch.setattr(env._game._controller._client, "write", hang_up)
    env.close()  # a game that cannot be told to quit is ended all the same
    assert not sc2.running()


def test_a_game_that_hangs(build, sc2):
    env = build(game_timeout=90.0)
    env.reset()
    pid = env.game_pid
    socket = env._game._controller._client._sock
    assert socket.gettimeout() == 90
    socket.settimeout(1.0)
    sc2.tell("hang")
    start = time.monotonic()
    assert env.step([1, 1, 1]) == (0.0, True, {"env_error": True})
    assert 0.9 < time.monotonic() - start < 8
    assert wait_for(lambda: not alive(pid), 1)


def test_start_refused_twice(build, sc2, caplog):
    sc2.refuse(2)
    env = build()
    env.reset()
    assert build.pauses == [1.0, 2.0]
    assert len(sc2.launched()) == 1
    assert env.get_stats()["restarts"] == 0
    assert caplog.text.count("(it printed last: told to refuse)") == 2
    # What never came up has used nothing of the seed.
    assert json.loads(env._game._controller.save_replay())["seed"] == 7
    assert "loss 2 in a row" in caplog.text


def test_start_refused_for_good(build, sc2, monkeypatch):
    monkeypatch.setattr(game_env, "ATTEMPTS", 2)
    sc2.refuse(99)
    env = build()
    with pytest.raises(
        EnvFailure, match=r"failed 2 times in a row on 3m: launching: .* told to refuse"
    ):
        env.reset()
    assert build.pauses == [1.0]


def test_a_damaged_map(build, sc2):
    (sc2.folder / "Maps/SMAC_Maps/3m.SC2Map").write_bytes(b"<html>not found</html>")
    env = build()
    with pytest.raises(
        UserError, match=r"refuses map SMAC_Maps/3m.SC2Map: .*InvalidMapData: 'damaged: b'<html>"
    ):
        env.reset()


def test_starts_are_staggered(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    times = []

    def start():
        client.wait_turn(0.3)
        times.append(time.monotonic())

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.diff(sorted(times)).min() > 0.28
    assert max(times) - min(times) < 2
    client.wait_turn(0.0)
    before = time.monotonic()
    client.wait_turn(0.0)
    assert time.monotonic() - before < 0.2


# many games


@pytest.mark.slow
def test_eight_games_at_once(sc2):
    env_args = {"map_name": "3m", "start_interval": 0.1, "replay_dir": str(sc2.folder / "replays")}
    env = make_vector_env(
        "sc2", env_args, 8, seed=5, backend="subproc", role="train_env", env_timeout=120.0
    )
    try:
        env.reset()
        games = sc2.launched()
        assert len(games) == len(set(games)) == 8
        for b in range(8):
            env.save_replay(b)
        replays = [json.loads(path.read_text()) for path in (sc2.folder / "replays").iterdir()]
        assert {one["seed"] for one in replays} == {
            derive_seed(5, "train_env", b) for b in range(8)
        }
        stop = np.ones((8, 3), dtype=int)
        env.step(stop)

        # a game dies: its environment alone has failed, and not terminated
        os.kill(games[0], signal.SIGKILL)
        env.step(stop)
        assert env.failed.sum() == 1
        assert not env.terminated.any()
        assert not env.truncated.any()
        assert env.reward[env.failed] == 0
        failed = env.failed.copy()
        assert env.env_restarts == 1

        # a worker dies: its game goes with it, before anybody has noticed
        victim = int(np.flatnonzero(~failed)[0])
        pid = env.worker_pids[victim]
        game = next(game for game in games if alive(game) and parent(game) == pid)
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: not alive(game), 2)
        assert len(sc2.running()) == 6
        env.step(stop, ~failed)
        assert np.flatnonzero(env.failed & ~failed).tolist() == [victim]
        env.reset(env.failed.copy())
        env.step(stop)
        assert not env.failed.any()
        assert len(sc2.running()) == 8
        assert env.env_restarts == 2
    finally:
        env.close()
    assert not sc2.running()


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command(results, *settings):
    return [
        *(
            sys.executable,
            str(ROOT / "src/main.py"),
            "--config=qmix",
            "--env-config=sc2",
            "with",
            "use_cuda=False",
        ),
        *(
            "env_args.start_interval=0.0",
            "runner=parallel",
            "batch_size_run=2",
            "batch_size=2",
            "test_nepisode=2",
        ),
        *(
            "rnn_hidden_dim=8",
            "mixing_embed_dim=4",
            "hypernet_embed=8",
            f"local_results_path={results}",
            "seed=1",
        ),
        *settings,
    ]


@pytest.mark.slow
def test_training(sc2, tmp_path):
    """A short run through the command line; a game is lost on the way and costs one episode, not
    the run.
    """
    results = tmp_path / "results"
    run = subprocess.Popen(
        command(
            results,
            "t_max=100",
            "test_interval=200",
            "runner_log_interval=20",
            "learner_log_interval=20",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert wait_for(sc2.launched, 60)
    sc2.tell("crash")
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output[-3000:]
    (metrics,) = results.glob("sacred/qmix/3m/*/metrics.jsonl")
    points = [json.loads(line) for line in metrics.read_text().splitlines()]
    values = {point["key"]: point["value"] for point in points}
    assert {"battle_won_mean", "test_battle_won_mean", "return_mean", "loss_td"} <= values.keys()
    assert "it reported env_error" in output
    assert not sc2.running()


def test_ctrl_c(sc2, tmp_path):
    """Nothing is left, though the second Ctrl-C ends the run in mid-episode."""
    run = subprocess.Popen(
        command(tmp_path / "results", "t_max=100000", "test_interval=200000"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert wait_for(lambda: len(sc2.running()) == 2, 60)
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output[-3000:]
    assert wait_for(lambda: not sc2.running(), 5)


# what may be missing


def test_without_starcraft(tmp_path):
    """One line, exit code 2, nothing written."""
    results = tmp_path / "results"
    done = subprocess.run(
        command(results),
        capture_output=True,
        text=True,
        env={**os.environ, "SC2PATH": str(tmp_path / "nowhere")},
    )
    assert done.returncode == 2
    line = (
        f"error: StarCraft II is not in {tmp_path / 'nowhere'} (SC2PATH): bash install_sc2.sh "
        "installs it, "
    )
    assert line + "--env-config=sc2sim needs no game" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert not results.exists()


def test_what_may_be_missing_or_wrong(sc2, monkeypatch):
    (sc2.folder / "Maps/SMAC_Maps/8m.SC2Map").unlink()
    with pytest.raises(UserError, match=r"map 8m is not in .*/Maps/SMAC_Maps: bash install_sc2.sh"):
        make_env(seed=1, map_name="8m")
    for wrong, text in [
        ({"map_name": "3n"}, "unknown StarCraft map '3n'"),
        ({"difficulty": "B"}, "difficulty is 'B'"),
        ({"step_mul": 0}, "step_mul must be .*, got 0"),
        ({"game_timeout": 0.5}, "game_timeout must be .* 1, got 0.5"),
        ({"start_interval": -1.0}, "start_interval must be .* 0, got -1.0"),
        ({"move_amount": -1.0}, "move_amount must be .* 0, got -1.0"),
        ({"engine": "gam"}, "unknown engine 'gam' of sc2; did you mean 'game'"),
    ]:
        with pytest.raises(ConfigError, match=text):
            make_env(seed=1, **wrong)
    with pytest.raises(ConfigError, match=r"no argument env_args.map_nam; did you mean 'map_name'"):
        make_vector_env("sc2", {"map_nam": "3m"}, 1, 1, "serial", "train_env")
    with pytest.raises(UserError, match=r"game_version is '4.9': .*4.10.0"):
        make_env(seed=1, game_version="4.9")
    make_env(seed=1, game_version="4.10").close()
    (sc2.folder / "Versions/Base75689/SC2_x64").chmod(0o644)
    with pytest.raises(UserError, match=r"there is no program .*SC2_x64"):
        make_env(seed=1)
    shutil.rmtree(sc2.folder / "Versions/Base75689")
    with pytest.raises(UserError, match=r"is not in .*install_sc2.sh.*sc2sim"):
        make_env(seed=1)
    monkeypatch.delitem(sys.modules, "envs.starcraft.game.client")
    monkeypatch.delattr("envs.starcraft.game.client")
    monkeypatch.setitem(sys.modules, "pysc2", None)
    with pytest.raises(
        MissingPackage, match=r"pysc2 cannot be used \(.*\): .*requirements-sc2.txt.*sc2sim"
    ):
        make_env(seed=1)


def test_config_and_arguments_agree():
    """Every key of sc2.yaml is an argument with the same default, and the other way round."""
    import inspect

    from utils.config import load_file

    written = load_file(ROOT / "src/config/envs/sc2.yaml")["env_args"]
    parameters = inspect.signature(make_env).parameters
    assert set(written) | {"seed"} == set(parameters)
    for key, value in written.items():
        assert parameters[key].default == value, key
        assert type(parameters[key].default) is type(value), key


# engine: smac


@pytest.fixture(autouse=True)
def _no_fake_left():
    yield
    forget_smac()


def forget_smac():
    for name in [name for name in sys.modules if name.split(".")[0] == "smac"]:
        del sys.modules[name]


def fake_package(tmp_path, monkeypatch, files):
    for name, text in files.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    forget_smac()
    monkeypatch.syspath_prepend(tmp_path / "packages")


FAKE_SMAC = """
class StarCraft2Env:
    def __init__(
        self, map_name, seed, obs_timestep_number=False, obs_instead_of_state=False, **rest
    ):
        self.arguments = {"map_name": map_name, "seed": seed, **rest}
        self.n_agents, self.episode_limit = 2, 60
        self.obs_timestep_number = obs_timestep_number
        self.obs_instead_of_state = obs_instead_of_state
        self.answers = [(1.5, False, {"battle_won": False}), (0, True, {})]
    def step(self, actions):
        return self.answers.pop(0)
    def get_obs_size(self):
        return 30
    def get_state_size(self):
        return 48
    def get_total_actions(self):
        return 9
    def get_env_info(self):
        return {"obs_shape": 30, "agent_features": ["health"]}
"""


def test_engine_smac(sc2, tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, {"smac/__init__.py": "", "smac/env/__init__.py": FAKE_SMAC})
    env = make_env(
        engine="smac", seed=3, map_name="8m", game_timeout=1.0, start_interval=1.0, reward_win=100.0
    )
    assert env.env.arguments == {
        "map_name": "8m",
        "game_version": None,
        "seed": 3,
        "reward_win": 100.0,
    }
    assert env.step([1, 1]) == (1.5, False, {"battle_won": False})
    assert env.step([1, 1]) == (
        0.0,
        True,
        {"env_error": True},
    )  # SMAC's way to say that the game was lost
    assert env.get_env_info() == {
        "obs_shape": 30, "state_shape": 48, "n_actions": 9, "n_agents": 2, "episode_limit": 60,
        "agent_features": ["health"],
    }  # fmt: skip
    timed = make_env(
        engine="smac", seed=3, map_name="8m", obs_timestep_number=True, obs_instead_of_state=True
    )
    assert (timed.get_obs_size(), timed.get_state_size()) == (31, 62)
    with pytest.raises(UserError, match=r"install_sc2.sh"):
        make_env(engine="smac", seed=3, map_name="not_a_map")


def test_engine_smac_with_the_wrong_package(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, {"smac/__init__.py": "__version__ = '2.2.0'"})
    with pytest.raises(
        MissingPackage, match=r"PyPI's hyper-parameter optimiser.*pip uninstall smac && pip inst"
    ):
        make_env(engine="smac", seed=1)
    fake_package(
        tmp_path, monkeypatch, {"smac/env/__init__.py": "import something_that_is_not_there"}
    )
    with pytest.raises(
        MissingPackage, match=r"smac cannot be imported .*something_that_is_not_there"
    ):
        make_env(engine="smac", seed=1)


def oxwhirls_smac_is_there():
    try:
        smac_env.load_smac()
    except MissingPackage:
        return False
    return True


def test_engine_smac_is_not_there(monkeypatch):
    monkeypatch.setattr(smac_env.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackage, match=r"engine: smac needs oxwhirl's package: pip install git\+https"
    ):
        make_env(engine="smac", seed=1)


@pytest.mark.skipif(
    not oxwhirls_smac_is_there(), reason="needs pip install git+https://github.com/oxwhirl/smac.git"
)
def test_equal_to_smac(build):
    """SMAC's own environment and ours on two stand-ins with the same seed and the same actions."""
    rng = np.random.default_rng(1)
    for map_name in ("3m", "2s3z", "MMM"):
        ours, smac = build(map_name=map_name), build(engine="smac", map_name=map_name)
        for _ in range(2):
            ours.reset()
            smac.reset()
            ended = False
            while not ended:
                np.testing.assert_allclose(ours.get_obs(), smac.get_obs(), atol=1e-6)
                np.testing.assert_allclose(ours.get_state(), smac.get_state(), atol=1e-6)
                np.testing.assert_array_equal(ours.get_avail_actions(), smac.get_avail_actions())
                actions = random_actions(ours, rng)
                reward, ended, info = ours.step(actions)
                assert smac.step(actions) == (pytest.approx(reward, abs=1e-5), ended, info)
            np.testing.assert_allclose(ours.get_obs(), smac.get_obs(), atol=1e-6)
        assert smac.get_stats() == pytest.approx(ours.get_stats())


# install_sc2.sh

# StarCraftII/Versions/Base75689/SC2_x64 and StarCraftII/Libs/libfake.so, encrypted as Blizzard's
# package is.
GAME_ZIP = """
UEsDBAoAAAAAADOTdV0AAAAAAAAAAAAAAAAMAAAAU3RhckNyYWZ0SUkvUEsDBAoAAAAAADOTdV0AAAAAAAAAAAAAAAAVAAAAU3RhckNyYWZ0SU
kvVmVyc2lvbnMvUEsDBAoAAAAAADOTdV0AAAAAAAAAAAAAAAAfAAAAU3RhckNyYWZ0SUkvVmVyc2lvbnMvQmFzZTc1Njg5L1BLAwQKAAkAAAAz
k3VdxJrgHiUAAAAZAAAAJgAAAFN0YXJDcmFmdElJL1ZlcnNpb25zL0Jhc2U3NTY4OS9TQzJfeDY0ixZzYVVLyvwzlzOHVG+VGHVG4r+q91hGC/
feLYklaqmdPhd2dlBLBwjEmuAeJQAAABkAAABQSwMECgAAAAAAM5N1XQAAAAAAAAAAAAAAABEAAABTdGFyQ3JhZnRJSS9MaWJzL1BLAwQKAAkA
AAAzk3VdM4esoBAAAAAEAAAAGwAAAFN0YXJDcmFmdElJL0xpYnMvbGliZmFrZS5zb9cTr5XCr86RIwNEvkJk+ExQSwcIM4esoBAAAAAEAAAAUE
sBAh4DCgAAAAAAM5N1XQAAAAAAAAAAAAAAAAwAAAAAAAAAAAAQAO1BAAAAAFN0YXJDcmFmdElJL1BLAQIeAwoAAAAAADOTdV0AAAAAAAAAAAAA
AAAVAAAAAAAAAAAAEADtQSoAAABTdGFyQ3JhZnRJSS9WZXJzaW9ucy9QSwECHgMKAAAAAAAzk3VdAAAAAAAAAAAAAAAAHwAAAAAAAAAAABAA7U
FdAAAAU3RhckNyYWZ0SUkvVmVyc2lvbnMvQmFzZTc1Njg5L1BLAQIeAwoACQAAADOTdV3EmuAeJQAAABkAAAAmAAAAAAAAAAEAAACkgZoAAABT
dGFyQ3JhZnRJSS9WZXJzaW9ucy9CYXNlNzU2ODkvU0MyX3g2NFBLAQIeAwoAAAAAADOTdV0AAAAAAAAAAAAAAAARAAAAAAAAAAAAEADtQRMBAA
BTdGFyQ3JhZnRJSS9MaWJzL1BLAQIeAwoACQAAADOTdV0zh6ygEAAAAAQAAAAbAAAAAAAAAAEAAACkgUIBAABTdGFyQ3JhZnRJSS9MaWJzL2xp
YmZha2Uuc29QSwUGAAAAAAYABgCmAQAAmwEAAAAA
"""


@pytest.fixture
def install(tmp_path):
    """Runs install_sc2.sh with files in the place of the downloads."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "game.zip").write_bytes(base64.b64decode(GAME_ZIP))
    with zipfile.ZipFile(source / "maps.zip", "w") as file:
        for name in map_names():
            if map_info(name).suite == "SMAC":
                file.writestr(f"SMAC_Maps/{name}.SC2Map", "MPQ\x1b map")

    def run(*options, answer=None, **environment):
        """`answer`: what is typed on the terminal; None: there is none."""
        typed, terminal = os.openpty()
        os.write(typed, f"{answer}\n".encode())
        try:
            return subprocess.run(
                ["bash", str(ROOT / "install_sc2.sh"), *options],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL if answer is None else terminal,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(tmp_path),
                    "SC2_URL": (source / "game.zip").as_uri(),
                    "SC2_MAPS_URL": (source / "maps.zip").as_uri(),
                    **environment,
                },
            )
        finally:
            os.close(typed)
            os.close(terminal)

    run.source = source
    return run


def test_install(install, tmp_path):
    game = tmp_path / "StarCraftII"
    for answer in (None, "no", "y"):
        refused = install(answer=answer)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: nothing installed: Blizzard's licence") or answer
        assert "--accept-licence" in refused.stderr.splitlines()[-1]
        assert not list(game.rglob("*"))

    done = install(answer="yes")
    assert done.returncode == 0, done.stderr
    assert (
        subprocess.run([game / "Versions/Base75689/SC2_x64"], capture_output=True).stdout
        == b"fake game\n"
    )
    assert (game / "Libs/libfake.so").read_text() == "lib\n"
    maps = {path.stem for path in (game / "Maps/SMAC_Maps").iterdir()}
    assert maps == {name for name in map_names() if map_info(name).suite == "SMAC"}
    assert len(maps) == 23
    assert not (game / ".downloads").exists()
    assert "export" not in done.stdout

    # again: nothing is loaded, so it does not matter that there is nothing to load
    for path in install.source.iterdir():
        path.unlink()
    again = install()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already") == 2


def test_install_mends_and_complains(install, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder = elsewhere / "Maps/SMAC_Maps"
    folder.mkdir(parents=True)
    (folder / "3m.SC2Map").write_text("<html>404</html>")
    done = install("--maps-only", SC2PATH=str(elsewhere))
    assert done.returncode == 0, done.stderr
    assert (folder / "3m.SC2Map").read_text() == "MPQ\x1b map"
    assert not (elsewhere / "Versions").exists()
    assert f"export SC2PATH={elsewhere}" in done.stdout

    (folder / "MMM2.SC2Map").unlink()
    with zipfile.ZipFile(install.source / "maps.zip", "w") as file:
        file.writestr("SMAC_Maps/3m.SC2Map", "MPQ")
    lacking = install("--maps-only", SC2PATH=str(elsewhere))
    assert lacking.returncode == 1
    assert lacking.stderr.strip().endswith("lacks maps, or they are damaged: MMM2")

    (install.source / "game.zip").write_bytes(b"cut off")
    damaged = install("--accept-licence")
    assert damaged.returncode == 1
    assert "error: game.zip cannot be unpacked" in damaged.stderr
    assert not (tmp_path / "StarCraftII/Versions").exists()
    (install.source / "game.zip").unlink()
    gone = install("--accept-licence")
    assert gone.returncode == 1
    assert "the download of file://" in gone.stderr
    unknown = install("--accept")
    assert unknown.returncode == 1
    assert "unknown option '--accept'" in unknown.stderr
