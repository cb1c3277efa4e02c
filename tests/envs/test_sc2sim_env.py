"""The environment between engine and interface, on a small engine whose every hit is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_env_contract import CHECKS, Case

from envs import REGISTRY, make_vector_env
from envs.starcraft.battle import ORDER_ATTACK, ORDER_MOVE, Battle
from envs.starcraft.env import SC2Sim
from envs.starcraft.facts import MapInfo, map_info
from envs.starcraft.render import HEADER, SIDES
from utils.errors import ConfigError

HIT = 15.0


class Engine:
    """Orders take effect at once: a move arrives, an attack within 7 takes 15; enemies hit a random
    agent for 5.
    """

    def __init__(self, info: MapInfo, n_envs: int, threads: int = 1) -> None:
        self.info = info
        self.battle = Battle.of_map(info, n_envs)
        self.rngs: list[Any] = [None] * n_envs
        self.calls: list[dict[str, Any]] = []
        self.closed = False
        self.targets = np.full((n_envs, self.battle.n_units), -1, dtype=np.int64)

    def find_targets(self, mask: np.ndarray) -> None:
        self.targets[mask] = 0

    def close(self) -> None:
        self.closed = True

    def reset(self, mask: np.ndarray, rngs: list[np.random.Generator]) -> None:
        bt = self.battle
        for b in np.flatnonzero(mask):
            self.rngs[b] = np.random.default_rng(int(rngs[b].integers(2**63)))
            points = np.concatenate(self.info.draw_points(rngs[b])) + self.rngs[b].uniform(
                -1, 1, (bt.n_units, 2)
            )
            bt.x[b], bt.y[b] = points.T
            bt.alive[b] = True
            bt.health[b], bt.shield[b], bt.energy[b] = (
                bt.health_max[b],
                bt.shield_max[b],
                bt.energy_max[b] / 4,
            )
            bt.cooldown[b] = 0

    def step(self, order, target, tx, ty, mask, loops=8) -> None:
        self.calls.append(
            {"order": order.copy(), "target": target.copy(), "mask": mask.copy(), "loops": loops}
        )
        bt = self.battle
        for b in np.flatnonzero(mask):
            for a in range(bt.n_agents):
                i = target[b, a]
                if order[b, a] == ORDER_MOVE:
                    bt.x[b, a], bt.y[b, a] = tx[b, a], ty[b, a]
                elif (
                    order[b, a] == ORDER_ATTACK
                    and np.hypot(bt.x[b, a] - bt.x[b, i], bt.y[b, a] - bt.y[b, i]) < 7
                ):
                    self.hit(b, i, HIT)
            for _ in np.flatnonzero(bt.alive[b, bt.n_agents :]):
                self.hit(b, int(self.rngs[b].integers(bt.n_agents)), 1.0)

    def hit(self, b: int, i: int, damage: float) -> None:
        bt = self.battle
        if bt.alive[b, i]:
            bt.health[b, i] = max(bt.health[b, i] - damage, 0)
            bt.alive[b, i] = bt.health[b, i] > 0


class Sim(SC2Sim):
    make_engine = staticmethod(Engine)


def gather(env: Sim) -> None:
    """Puts everybody within reach of everybody."""
    env.battle.x[:], env.battle.y[:] = 16, 16
    env.interface.observe(np.ones(env.n_envs, dtype=bool), env.obs, env.state, env.avail_actions)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "args",
    [
        {"map_name": "3m"},
        {"map_name": "1o_2r_vs_4r", "obs_timestep_number": True, "continuing_episode": True},
    ],
    ids=lambda args: args["map_name"],
)
def test_contract_on_the_small_engine(check, args):
    check(lambda n_envs, seed: Sim(n_envs, seed, **args), Case("sc2sim", args))


def test_sizes_and_features():
    with Sim(2, 0, map_name="2s3z") as env:
        assert (env.n_agents, env.n_actions, env.obs_size, env.state_size, env.episode_limit) == (
            5,
            11,
            80,
            120,
            120,
        )
        info = env.get_env_info()
        assert info["agent_features"] == [
            "health",
            "energy/cooldown",
            "rel_x",
            "rel_y",
            "shield",
            "type_0",
            "type_1",
        ]
        assert info["obs_parts"] == [4, *[8] * 5, *[8] * 4, 4]
        assert info["enemy_features"] == ["health", "rel_x", "rel_y", "shield", "type_0", "type_1"]
    with Sim(2, 0, map_name="3m", obs_timestep_number=True, obs_instead_of_state=True) as env:
        assert (env.obs_size, env.state_size) == (32, 96)
        assert env.get_env_info()["obs_parts"] == [4, *[5] * 3, *[5] * 2, 3]
        env.reset()
        assert np.array_equal(env.state, env.obs.reshape(2, -1))


def test_a_battle_is_won():
    with Sim(2, 0, map_name="3m", step_mul=5) as env:
        env.reset()
        gather(env)
        only = np.array([True, False])
        total = 0.0
        for t in range(9):
            assert env.get_stats()["battles_game"] == [0, 0]
            env.step(np.array([[6 + t // 3, 1, 1], [0, 0, 0]]), only)
            call = env.engine.calls[-1]
            assert (call["order"][0, 0], call["target"][0, 0], call["loops"]) == (
                ORDER_ATTACK,
                3 + t // 3,
                5,
            )
            assert call["mask"].tolist() == [True, False]
            assert env.info["dead_enemies"].tolist() == [(t + 1) // 3, 0]
            assert env.info["battle_won"].tolist() == [t == 8, 0]
            total += env.reward[0]
        assert env.terminated.tolist() == [True, False]
        assert total == pytest.approx(20, rel=1e-5)
        assert env.get_stats() == {
            "battles_won": [1, 0],
            "battles_game": [1, 0],
            "battles_draw": [0, 0],
            "win_rate": [1.0, 0.0],
            "timeouts": [0, 0],
            "restarts": [0, 0],
        }
        env.reset(only)
        assert env.info["battle_won"].tolist() == env.info["dead_enemies"].tolist() == [0, 0]


def test_a_lost_battle_and_dead_allies():
    with Sim(1, 3, map_name="3m") as env:
        env.reset()
        while not env.terminated[0]:
            env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1))
            assert env.info["dead_allies"][0] == (env.battle.health[0, :3] == 0).sum()
        assert env.info["dead_allies"].tolist() == [3]
        assert env.info["battle_won"].tolist() == [0]
        assert env.reward.tolist() == [0]
        assert env.get_stats()["battles_game"] == [1]
        assert env.get_stats()["win_rate"] == [0]


@pytest.mark.parametrize("continuing", [False, True])
def test_a_battle_without_end(continuing):
    with Sim(1, 0, map_name="3m", continuing_episode=continuing) as env:
        env.reset()
        env.engine.hit = lambda *args: None
        for _ in range(60):
            env.step(np.ones((1, 3), dtype=np.int64))
        assert (env.terminated[0], env.truncated[0]) == (not continuing, continuing)
        stats = env.get_stats()
        assert stats["battles_draw"] == stats["timeouts"] == stats["battles_game"] == [1]
        assert stats["battles_won"] == [0]


def test_heuristic_agents_win_whatever_the_actions_are():
    with Sim(1, 0, map_name="3m", heuristic_ai=True) as env:
        env.reset()
        env.battle.x[:], env.battle.y[:] = 16, 16
        env.interface.observe(np.ones(1, dtype=bool), env.obs, env.state, env.avail_actions)
        for _ in range(3):
            env.step(np.ones((1, 3), dtype=np.int64))
        assert env.info["battle_won"].tolist() == [1]
        assert env.interface.executed.tolist() == [[8, 8, 8]]
        assert np.flatnonzero(env.state[0, -27:]).tolist() == [1, 10, 19], (
            "SMAC remembers the actions it was given"
        )


def test_an_engine_is_closed():
    with Sim(1, 0) as env:
        env.reset()
    assert env.engine.closed


def test_replay(tmp_path):
    folder = tmp_path / "replays"
    with Sim(2, 0, map_name="MMM", replay_dir=str(folder), replay_prefix="mine") as env:
        for show in (env.save_replay, env.render):
            with pytest.raises(ValueError, match="not begun"):
                show(1)
        env.reset()
        seen, rewards = [env.battle.health[1].copy()], [0.0]
        for _ in range(4):
            env.step(np.ones((2, 10), dtype=np.int64))
            seen.append(env.battle.health[1].copy())
            rewards.append(env.reward[1])
        env.step(np.ones((2, 10), dtype=np.int64), np.array([True, False]))
        env.save_replay(1)
        env.save_replay(0)
        last = env.render(0)
        env.reset()
        env.save_replay(0)
    names = [f"mine_000{i}.{kind}" for i in range(3) for kind in ("gif", "npz")]
    assert sorted(path.name for path in folder.iterdir()) == names
    with np.load(folder / "mine_0000.npz") as replay:
        assert replay["map_name"] == "MMM"
        assert replay["unit_names"][replay["type"][[0, 2, 9]]].tolist() == [
            "Marauder",
            "Marine",
            "Medivac",
        ]
        np.testing.assert_array_equal(replay["health"], np.array(seen, dtype=np.float32))
        np.testing.assert_array_equal(replay["reward"], np.array(rewards, dtype=np.float32))
        assert replay["actions"][1:].tolist() == [[1] * 10] * 4
        assert replay["x"].shape == (5, 20)
        assert replay["target"].tolist() == [[0] * 20] * 5
    pictures = []
    for number, frames in enumerate((5, 6, 1)):
        with np.load(folder / f"mine_000{number}.npz") as replay:
            assert len(replay["x"]) == frames
        with Image.open(folder / f"mine_000{number}.gif") as film:
            assert film.n_frames == frames
            film.seek(frames - 1)
            pictures.append(np.array(film.convert("RGB")).astype(int))
    # The header is that of the last picture; below it the film shows a part of the map, in few
    # colours.
    assert np.abs(pictures[1][:HEADER] - last[:HEADER]).mean() < 2
    blue = [(np.abs(each - SIDES[0]).max(axis=2) < 9).sum() for each in (pictures[1], last)]
    assert blue[0] > 1.3 * blue[1]
    pytest.importorskip("imageio_ffmpeg")
    with Sim(1, 0, map_name="3m", replay_dir=str(folder), replay_film="mp4") as env:
        env.reset()
        env.save_replay()
    assert (folder / "3m_0000.mp4").stat().st_size > 1000
    assert (folder / "3m_0000.npz").is_file()


@pytest.mark.parametrize(("first", "frames"), [(1, 7), (4, 5), (6, 3), (None, 7)])
def test_a_film_begins_before_the_fight(first, frames, tmp_path):
    """Two frames before the first attack; whole where nobody attacks."""
    with Sim(1, 0, map_name="3m", replay_dir=str(tmp_path)) as env:
        env.engine.find_targets = lambda mask: None
        env.reset()
        for step in range(1, 7):
            env.engine.targets[:] = 0 if step == first else -1
            env.step(np.ones((1, 3), dtype=np.int64))
        env.save_replay(0)
    with Image.open(tmp_path / "3m_0000.gif") as film:
        assert film.n_frames == frames
    with np.load(tmp_path / "3m_0000.npz") as replay:
        assert len(replay["x"]) == 7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"map_name": "6h_vs_9z"}, "6h_vs_8z"),
        ({"difficulty": "A"}, '"7", the only one .*, got .A'),
        ({"step_mul": 0}, "step_mul"),
        ({"step_mul": True}, "step_mul"),
        ({"threads": 0}, "threads"),
        ({"move_amount": -1}, "move_amount"),
        ({"window_size_x": 1920}, "no argument env_args.window_size_x"),
    ],
)
def test_what_users_get_wrong(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_vector_env("sc2sim", args, 1, 0, "native", "train_env")
    assert "\n" not in str(caught.value)


def test_real_engine_through_both_registries():
    """The engine itself, started by name; a whole heuristic battle of 3m and its seeds."""
    returns = []
    for seed in (1, 1, 2):
        env = make_vector_env(
            "sc2sim", {"map_name": "3m", "heuristic_ai": True}, 4, seed, "native", "train_env"
        )
        env.reset()
        total = np.zeros(4)
        while (running := ~(env.terminated | env.truncated)).any():
            env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1), running)
            total += env.reward * running
        assert sum(env.get_stats()["battles_game"]) == 4
        assert (env.info["dead_enemies"] + env.info["dead_allies"] > 0).all(), "nobody fought"
        returns.append(total.tolist())
        env.close()
    assert returns[0] == returns[1]
    assert returns[0] != returns[2]
    single = REGISTRY["sc2sim"](map_name="2s3z", seed=1)
    single.reset()
    _, terminated, info = single.step([1] * 5)
    assert (terminated, info) == (
        False,
        {"battle_won": 0.0, "dead_allies": 0.0, "dead_enemies": 0.0},
    )
    assert map_info("2s3z").sizes[2] == single.get_state().size
    single.close()
