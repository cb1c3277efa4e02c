"""The collection loop against what the environments really did."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from components.transforms import OneHot
from envs import REGISTRY, VECTOR_REGISTRY, register_vector
from envs.vector_env import EnvSpec, VectorEnv
from runners import REGISTRY as RUNNERS
from utils.errors import RunFailure

A, U, LIMIT = 2, 3, 6


class Ragged(VectorEnv):
    """Episodes of different lengths whose every number tells where it comes from; keeps a protocol
    of all steps.

    Environment b's episode e ends after 2 + (b + e) % 4 steps, by termination where b is even, else
    by truncation. `broken` lists (b, e) pairs that fail in their second step.
    """

    def __init__(self, n_envs, seed, individual=False, broken=()):
        super().__init__(
            n_envs, EnvSpec(A, U, 4, 3, LIMIT, individual_rewards=individual), seed, ("battle_won",)
        )
        self.episode = np.full(n_envs, -1)
        self.t = np.zeros(n_envs, dtype=int)
        self.broken = set(map(tuple, broken))
        self.protocol = []

    def _observe(self, mask):
        for b in np.flatnonzero(mask):
            self.obs[b] = [[b, self.episode[b], self.t[b], a] for a in range(A)]
            self.state[b] = [b, self.episode[b], self.t[b]]
            self.avail_actions[b] = 1
            self.avail_actions[b, 0, self.t[b] % U] = 0

    def _reset(self, mask):
        self.episode[mask] += 1
        self.t[mask] = 0
        self._observe(mask)

    def _step(self, actions, mask):
        self.t[mask] += 1
        for b in np.flatnonzero(mask):
            self.protocol.append((b, self.episode[b], self.t[b] - 1, actions[b].tolist()))
            if (b, self.episode[b]) in self.broken and self.t[b] == 2:
                self.failed[b] = True
                self.env_restarts += 1
                continue
            self.reward[b] = self.step_reward(b, self.episode[b], self.t[b] - 1)
            if self.t[b] == 2 + (b + self.episode[b]) % 4:
                (self.truncated if b % 2 else self.terminated)[b] = True
                self.info["battle_won"][b] = float(b == 0)
        self._observe(mask)

    def step_reward(self, b, e, t):
        team = 100 * b + 10 * e + t
        return [team, team + 0.5] if self.individual_rewards else team


class Logger:
    def __init__(self):
        self.points, self.lists = [], []

    def log_stat(self, key, value, t, to_sacred=True):
        self.points.append((key, value, t))

    def log_list(self, key, values, t):
        self.lists.append((key, values, t))


class RandomMAC:
    """Uniform over the available actions; notes which rows it was asked for."""

    def __init__(self):
        self.asked = []

    def init_hidden(self, batch_size):
        self.batch_size = batch_size

    def select_actions(self, ep_batch, t_ep, t_env, bs=slice(None), test_mode=False):
        rows = np.arange(ep_batch.batch_size)[bs if isinstance(bs, slice) else bs.numpy()]
        self.asked.append((t_ep, rows.tolist()))
        avail = ep_batch["avail_actions"][bs, t_ep].float()
        return torch.multinomial(avail.flatten(0, 1), 1).view(len(rows), A)


def make_runner(n_envs=4, common_reward=True, scalarisation="sum", max_env_restarts=2, **env_args):
    VECTOR_REGISTRY.get("ragged_fake") or register_vector("ragged_fake")(Ragged)
    args = SimpleNamespace(
        env="ragged_fake",
        env_args=env_args,
        batch_size_run=n_envs,
        test_nepisode=8,
        seed=5,
        plugins=[],
        env_timeout=5.0,
        max_env_restarts=max_env_restarts,
        ray={},
        env_args_optional=[],
        common_reward=common_reward,
        reward_scalarisation=scalarisation,
        device="cpu",
        runner_log_interval=1,
        render=False,
    )
    logger, mac = Logger(), RandomMAC()
    runner = RUNNERS["vector"](args, logger)
    scheme = {
        "state": {"vshape": 3},
        "obs": {"vshape": 4, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (U,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (1,) if common_reward else (A,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        "truncated": {"vshape": (1,), "dtype": torch.uint8},
    }
    runner.setup(scheme, {"agents": A}, {"actions": ("actions_onehot", [OneHot(U)])}, mac)
    return runner, logger, mac


@pytest.fixture(autouse=True)
def _unregister():
    torch.manual_seed(0)
    yield
    for registry in (REGISTRY, VECTOR_REGISTRY):
        registry.pop("ragged_fake", None)


def test_batch_holds_exactly_what_happened():
    runner, _, _ = make_runner()
    for episode in range(3):
        batch = runner.run()
        protocol = {(b, t): actions for b, e, t, actions in runner.env.protocol if e == episode}
        for b in range(4):
            length = 2 + (b + episode) % 4
            assert int(batch["filled"][b].sum()) == length + 1
            for t in range(length + 1):
                assert batch["state"][b, t].tolist() == [b, episode, t]
                assert batch["obs"][b, t, 1].tolist() == [b, episode, t, 1]
                assert batch["avail_actions"][b, t, 0].tolist() == [
                    int(u != t % U) for u in range(U)
                ]
            for t in range(length):
                assert batch["actions"][b, t].flatten().tolist() == protocol[b, t]
                assert batch["reward"][b, t].item() == 100 * b + 10 * episode + t
                last = t == length - 1
                assert batch["terminated"][b, t].item() == int(last and b % 2 == 0)
                assert batch["truncated"][b, t].item() == int(last and b % 2 == 1)
            assert (batch["reward"][b, length:] == 0).all()
            assert (batch["obs"][b, length + 1 :] == 0).all()
    assert runner.t_env == sum(2 + (b + e) % 4 for b in range(4) for e in range(3))


def test_only_running_environments_are_asked_for_actions():
    runner, _, mac = make_runner()
    runner.run()
    assert mac.asked == [
        (0, [0, 1, 2, 3]),
        (1, [0, 1, 2, 3]),
        (2, [1, 2, 3]),
        (3, [2, 3]),
        (4, [3]),
    ]


def test_broken_episodes_are_dropped_counted_and_do_not_count_as_steps():
    runner, logger, _ = make_runner(broken=[(1, 0), (3, 0)])
    batch = runner.run()
    assert batch.batch_size == 2
    assert batch["state"][:, 0, 0].tolist() == [0, 2]
    assert runner.t_env == 2 + 4
    assert ("env_restarts", 2, 6) in logger.points
    means = {key: value for key, value, _ in logger.points}
    assert means["return_mean"] == np.mean([0 + 1, 200 + 201 + 202 + 203])
    assert runner.run().batch_size == 4


def test_a_collection_without_any_whole_episode_is_repeated_and_then_given_up():
    runner, _, _ = make_runner(n_envs=2, broken=[(b, e) for b in range(2) for e in range(2)])
    batch = runner.run()
    assert batch["state"][:, 0, 1].tolist() == [2, 2]
    hopeless, _, _ = make_runner(n_envs=1, broken=[(0, e) for e in range(9)])
    with pytest.raises(RunFailure, match="3 times in a row"):
        hopeless.run()


@pytest.mark.parametrize(
    ("common", "scalarisation"), [(True, "sum"), (True, "mean"), (False, "sum")]
)
def test_individual_rewards_become_what_the_scheme_asks_for(common, scalarisation):
    runner, logger, _ = make_runner(
        common_reward=common, scalarisation=scalarisation, individual=True
    )
    batch = runner.run()
    team = torch.tensor([100.0, 101.0, 102.0])  # environment 1, episode 0
    each = torch.stack([team, team + 0.5], dim=1)
    expected = (
        each if not common else (each.sum(1) if scalarisation == "sum" else each.mean(1))[:, None]
    )
    assert torch.equal(batch["reward"][1, :3], expected)
    means = {key: value for key, value, _ in logger.points}
    if not common:
        returns = np.array([sum(100 * b + t for t in range(2 + b)) for b in range(4)])
        assert means["agent_0_return_mean"] == pytest.approx(returns.mean())
        assert means["agent_1_return_mean"] == pytest.approx(
            (returns + 0.5 * np.arange(2, 6)).mean()
        )
        assert means["return_mean"] == pytest.approx(
            (means["agent_0_return_mean"] + means["agent_1_return_mean"]) / 2
        )


def test_a_common_reward_is_every_agents_reward_where_the_scheme_is_individual():
    runner, _, _ = make_runner(common_reward=False)
    batch = runner.run()
    assert batch["reward"][2, :4].tolist() == [[200.0 + t] * A for t in range(4)]


def test_evaluation_disturbs_neither_training_environments_nor_generators():
    def train(evaluate):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - what plug-ins draw from
        runner, logger, _ = make_runner()
        rows = []
        for _ in range(3):
            rows.append(runner.run()["actions"].clone())
            if evaluate:
                for _ in range(2):
                    runner.run(test_mode=True)
        rows.append(torch.rand(3))
        rows.append(torch.from_numpy(np.random.rand(3)))  # noqa: NPY002
        return rows, logger, runner

    plain, _, _ = train(False)
    evaluated, logger, runner = train(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, evaluated, strict=True))
    # 8 test episodes on 4 environments are two runs: one record for both, at the training step.
    tests = [point for point in logger.points if point[0] == "test_return_mean"]
    assert len(tests) == 3
    assert tests[-1][2] == runner.t_env
    assert [len(values) for key, values, _ in logger.lists if key == "test_returns"] == [8, 8, 8]
    assert [sum(values) for key, values, _ in logger.lists if key == "test_wins"] == [2, 2, 2]


def test_figures_not_yet_logged_survive_a_checkpoint():
    runner, logger, _ = make_runner()
    runner.args.runner_log_interval = 10**9
    runner.log_train_stats_t = 0
    runner.run()
    state = runner.state_dict()
    other, other_logger, _ = make_runner()
    other.load_state_dict(state)
    other.env.episode[:] = 0  # the fake's own counter
    assert other.t_env == runner.t_env
    for each in (runner, other):
        each.args.runner_log_interval = 1
        torch.manual_seed(3)
        each.run()
    assert other_logger.points == logger.points
    assert len(logger.points) > 0
