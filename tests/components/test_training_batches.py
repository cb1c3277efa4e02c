"""What the training loop hands to a learner, and how often: `replay`, `steps_per_update`,
`updates_per_step`.
"""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import training
from components.episode_buffer import EpisodeBatch
from components.transitions import Transitions
from controllers import REGISTRY as CONTROLLERS
from envs import REGISTRY, VECTOR_REGISTRY, register_vector
from envs.vector_env import EnvSpec, VectorEnv
from learners import REGISTRY as LEARNERS
from learners.base import Learner
from utils.config import build_config, check_config
from utils.errors import ConfigError

STEPS, A = 5, 2


class Counting(VectorEnv):
    """Episodes of 5 steps; observations tell environment, episode, step and agent, rewards the
    episode and step.
    """

    continuous = False

    def __init__(self, n_envs, seed):
        spec = EnvSpec(
            A, 3, 4, 2, STEPS, individual_rewards=True, continuous_actions=self.continuous
        )
        super().__init__(n_envs, spec, seed)
        self.episode, self.t = np.full(n_envs, -1), np.zeros(n_envs, dtype=int)

    def _reset(self, mask):
        self.episode[mask] += 1
        self.t[mask] = 0
        self._observe()

    def _step(self, actions, mask):
        self.reward[:] = (10 * self.episode + self.t)[:, None] + [0, 0.5]
        self.t += 1
        self.truncated[:] = self.t == STEPS
        self._observe()

    def _observe(self):
        for b in range(self.n_envs):
            self.obs[b] = [[b, self.episode[b], self.t[b], a] for a in range(A)]
        self.avail_actions[:] = 1


class Noting(Learner):
    """Keeps every batch it is given, and when."""

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.seen = []

    def train(self, batch, t_env, episode_num, per_weight=None):
        self.seen.append((t_env, batch))


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Runs the loop with these settings and returns [(t_env, batch), ...]."""
    register_vector("counting")(Counting)
    monkeypatch.setitem(LEARNERS, "noting", Noting)

    def run(*settings):
        changes = [
            *(
                "runner=vector",
                "batch_size_run=3",
                "t_max=60",
                "use_cuda=False",
                "common_reward=False",
            ),
            *("save_model=False", "test_nepisode=1", "seed=0", "rnn_hidden_dim=4", *settings),
        ]
        config = build_config("iql", "matrix_game", changes)
        config |= {"env": "counting", "learner": "noting", "env_args": {}, "name": "noting"}
        check_config(config)
        log = logging.getLogger("test")
        args = SimpleNamespace(**config, device="cpu")
        logger = training.Logger(log)
        logger.setup_files(tmp_path)
        run = training.Training(args, logger, tmp_path, SimpleNamespace(received=None))
        try:
            run.run()
        finally:
            run.close()
        return run.learner.seen

    yield run
    del VECTOR_REGISTRY["counting"], REGISTRY["counting"]


def test_updates_follow_the_environment_steps(seen):
    """15 steps a collection, 2 updates every 10 steps: 1, 2, 1, 2 rounds, once 20 transitions are
    there.
    """
    batches = seen(
        "replay=transitions", "steps_per_update=10", "updates_per_step=2", "batch_size=20"
    )
    assert [t for t, _ in batches] == [30] * 4 + [45] * 2 + [60] * 4
    assert all(isinstance(batch, Transitions) and batch.size == 20 for _, batch in batches)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("wanted", [0, 2])
def test_torch_has_its_threads_back(seen, wanted, monkeypatch):
    """A second run in the same process would otherwise take the first one's threads for torch's
    default.
    """
    used = set()
    monkeypatch.setattr(Noting, "train", lambda *_, **__: used.add(torch.get_num_threads()))
    seen("acting_threads=1", f"learner_threads={wanted}", "batch_size=3")
    assert used == {wanted or 3}
    assert torch.get_num_threads() == 3


def test_training_waits_for_the_first_episodes_and_prepares_once(seen, monkeypatch):
    stored = []
    monkeypatch.setattr(
        Noting, "prepare", lambda self, buffer: stored.append(buffer.episodes_in_buffer)
    )
    batches = seen("replay=transitions", "batch_size=5", "warmup_episodes=7")
    assert [t for t, _ in batches] == [45, 60]
    assert stored == [9]


def test_transitions_are_those_of_the_environment(seen):
    for _, batch in seen("replay=transitions", "steps_per_update=15", "batch_size=15"):
        assert batch["actions"].shape == (15, A)
        assert batch["actions"].dtype == torch.int64
        env, episode, t, agent = batch["obs"].unbind(-1)
        assert torch.equal(agent, torch.tensor([[0.0, 1.0]]).expand(15, A))
        assert torch.equal(batch["next_obs"], torch.stack([env, episode, t + 1, agent], -1))
        assert torch.equal(batch["reward"], 10 * episode + t + torch.tensor([0, 0.5]))
        # An episode that is cut does not end: there is a value after it.
        assert torch.equal(batch["terminated"], torch.zeros(15, 1))
        assert t.max() < STEPS


def test_on_policy_learners_get_the_newest_episodes(seen):
    batches = seen("replay=latest", "batch_size=3")
    assert [t for t, _ in batches] == [15, 30, 45, 60]
    for number, (_, batch) in enumerate(batches):
        assert isinstance(batch, EpisodeBatch)
        assert torch.equal(batch["obs"][:, :, 0, 1], torch.full((3, STEPS + 1), float(number)))
        assert sorted(batch["obs"][:, 0, 0, 0].tolist()) == [0, 1, 2]


def test_what_the_controller_notes_is_stored_with_the_actions(seen, monkeypatch):
    from controllers.basic_controller import BasicMAC

    class Noter(BasicMAC):
        recorded = {"twice": {"vshape": (), "group": "agents"}}

        def select_actions(self, *args, **kwargs):
            actions = super().select_actions(*args, **kwargs)
            self.last_record = {"twice": 2 * actions}
            return actions

    monkeypatch.setitem(CONTROLLERS, "noter", Noter)
    batches = seen("mac=noter", "replay=transitions", "batch_size=15", "epsilon_anneal_time=1000")
    assert len(batches) == 4
    for _, batch in batches:
        assert batch["twice"].shape == (15, A)
        assert batch["actions"].max() > 0
        assert torch.equal(batch["twice"], 2.0 * batch["actions"])


def test_a_learner_of_values_refuses_continuous_actions(seen, monkeypatch):
    monkeypatch.setattr(Counting, "continuous", True)
    with pytest.raises(ConfigError, match="needs discrete actions"):
        seen("replay=transitions")


def test_bad_settings_are_refused(seen):
    for settings, text in [
        (["replay=newest"], "replay must be one of episodes, transitions, latest"),
        (["steps_per_update=-1"], "steps_per_update must be at least 0"),
        (["updates_per_step=0"], "updates_per_step must be at least 1"),
        (["warmup_episodes=-1"], "warmup_episodes must be at least 0"),
        (["batch_size=40", "buffer_size=30"], "must not be greater than buffer_size"),
    ]:
        with pytest.raises(ConfigError, match=text):
            seen(*settings)
    # Transitions are not episodes: more of them than episodes fit in the buffer.
    assert seen("replay=transitions", "batch_size=40", "buffer_size=30")
