"""MAMT-PPO: the clip range is the agent's own, and follows the split of the trust region."""

import copy
import math

import pytest
import torch
from learner_fixtures import N_AGENTS, OBS, make_args, make_batch
from maac_fixtures import ListLog
from test_ppo import recorded
from transition_fixtures import train_run

from assembly import build_learner
from components.episode_buffer import EpisodeBatch
from utils.config import CONFIG_DIR, load_file
from utils.errors import ConfigError
from utils.state import capture, restore


def ppo_args(**overrides):
    small = {
        "critic_hidden_dim": 8, "ppo_epochs": 2, "batch_size": 5, "batch_size_run": 5,
        "accumulated_episodes": 5,
        "policy_hidden_dim": 6, "attention_heads": 2, "trd_steps": 2, "trust_region_batch_size": 0,
        "learner_log_interval": 1, "coordination_sigma": 0.0,
    }  # fmt: skip
    args = make_args("mamt_ppo", **(small | overrides))
    args.env_info = {"obs_sizes": (OBS,) * N_AGENTS, "action_sizes": (args.n_actions,) * N_AGENTS}
    return args


def make_learner(args, seed=0):
    torch.manual_seed(seed)
    log = ListLog()
    return build_learner(args, log)[1], log


def set_sizes(learner, sizes):
    with torch.no_grad():
        learner.split.regions.log_sizes.copy_(torch.tensor(sizes).log())


def test_it_is_ma_ppo_with_more_keys():
    algs = CONFIG_DIR / "algs"
    ma_ppo, mamt_ppo, mamt = (
        load_file(algs / f"{name}.yaml") for name in ("ma_ppo", "mamt_ppo", "mamt")
    )
    assert {key for key in ma_ppo if mamt_ppo.get(key) != ma_ppo[key]} == {"learner"}
    more = set(mamt_ppo) - set(ma_ppo)
    assert len(more) == 15
    assert {key: mamt_ppo[key] for key in more} == {key: mamt[key] for key in more}


def test_clip_range_by_hand():
    learner, _ = make_learner(ppo_args())
    assert learner.clip_range().tolist() == pytest.approx([0.2] * 3)
    set_sizes(learner, [5.0, 1.0, 2.0])  # delta is 10
    assert learner.clip_range().tolist() == pytest.approx([0.3, 0.06, 0.12])
    log_ratio = torch.tensor([1.5, 1.5, 1.5]).log().expand(2, 3)
    advantages = torch.tensor([[1.0, 2.0, 1.0], [-1.0, -2.0, -1.0]])
    losses = learner.surrogate_losses(log_ratio, advantages)
    assert losses[0].tolist() == pytest.approx([-1.3, -2.12, -1.12])
    assert losses[1].tolist() == pytest.approx([1.5, 3.0, 1.5])


def test_splits_that_are_not_learned():
    learner, _ = make_learner(ppo_args(trust_region_split="equal"))
    assert learner.clip_range().tolist() == pytest.approx([0.2] * 3)
    learner, _ = make_learner(ppo_args(trust_region_split="none"))
    assert learner.clip_range().tolist() == [math.inf] * 3
    ratio = torch.tensor([9.0, 0.01, 3.0]).log().expand(1, 3)
    assert learner.surrogate_losses(ratio, torch.ones(1, 3))[0].tolist() == pytest.approx(
        [-9.0, -0.01, -3.0]
    )
    batch = recorded(learner, make_batch(learner.args))
    learner.train(batch, 0, 0)


def test_what_the_trust_regions_learn_from():
    args = ppo_args(trust_region_batch_size=9)
    learner, _ = make_learner(args)
    with torch.no_grad():
        for param in learner.old_policy.parameters():
            param.add_(0.3 * torch.randn_like(param))
    learner.mac.agent.eval()
    learner.old_policy.eval()
    batch = recorded(learner, make_batch(args))
    rows = learner.packed(batch)
    s = learner.situation(rows)
    where = [(b, t) for b, length in enumerate((4, 7, 2, 5, 4)) for t in range(length - 1)]
    picked = [
        next((b, t) for b, t in where if torch.equal(batch["obs"][b, t], s.obs[n]))
        for n in range(9)
    ]
    assert len(set(picked)) == 9
    for n, (b, t) in enumerate(picked):
        assert torch.equal(s.avail_actions[n], batch["avail_actions"][b, t])
        assert torch.equal(s.replayed[n], batch["actions"][b, t, :, 0])
        assert (batch["avail_actions"][b, t].gather(-1, s.actions[n].unsqueeze(-1)) == 1).all()
    with torch.no_grad():
        new = learner.mac.policy(learner.mac.agent.logits(s.obs), s.avail_actions)
        old = learner.mac.policy(learner.old_policy.logits(s.obs), s.avail_actions)
        values = learner.critic(s.obs, s.actions).all_q
    assert torch.allclose(s.kl, new.kl(old))
    assert s.kl.max() > 0.01
    assert torch.allclose(s.log_weights, old.log_probs)
    assert torch.allclose(s.values, values, atol=1e-6)
    assert torch.allclose(s.baselines, (new.probs * values).sum(-1), atol=1e-6)
    assert not any(x.requires_grad for x in s if isinstance(x, torch.Tensor))


def test_trust_regions_learn_before_every_step_of_the_policies():
    learner, log = make_learner(ppo_args(ppo_epochs=3))
    divergences, sizes = [], []
    learn, clip_range = learner.split.learn, learner.clip_range

    def watched(situation, t_env):
        divergences.append(situation.kl.mean(0))
        return learn(situation, t_env)

    def asked():
        sizes.append(learner.split.sizes())
        return clip_range()

    learner.split.learn, learner.clip_range = watched, asked
    batch = recorded(learner, make_batch(learner.args))
    learner.train(batch, t_env=4, episode_num=5)
    assert len(divergences) == 3
    assert torch.allclose(
        divergences[0], torch.zeros(3), atol=1e-6
    )  # the policies are those that collected it
    assert (divergences[2] > divergences[1]).all()
    assert len({tuple(x.tolist()) for x in sizes}) == 3
    for name, size in (("consecutive_kl_by_agent", 3), ("trust_region_by_agent", 3),
                       ("non_stationarity_by_agent", 3),
                       ("coordination_by_pair", 9),
                       ("coordination_variance_by_pair", 9)):  # fmt: skip
        ((values, t),) = log.lists[name]
        assert len(values) == size
        assert t == 4
    assert log.lists["consecutive_kl_by_agent"][0][0] == pytest.approx(divergences[2].tolist())
    assert {"loss_trd", "loss_opponents", "loss_policy", "loss_value"} <= set(log.stats)
    learner.train(batch, t_env=8, episode_num=10)
    assert torch.allclose(divergences[3], torch.zeros(3), atol=1e-6)


def test_a_restored_learner_continues_bit_for_bit():
    args = ppo_args()
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    batch = recorded(learner, make_batch(args))
    learner.train(batch, 0, 0)
    restore(other, copy.deepcopy(capture(learner, shared=(args, learner.logger))))
    for twin in (learner, other):
        torch.manual_seed(9)
        twin.train(batch, 1, 1)
        twin.train(batch, 2, 2)
    networks = [
        {**twin.modules, "agent": twin.mac.agent, "old": twin.old_policy}
        for twin in (learner, other)
    ]
    for name, module in networks[0].items():
        for key, value in module.state_dict().items():
            assert torch.equal(networks[1][name].state_dict()[key], value), (name, key)


def test_model_files(tmp_path):
    learner, _ = make_learner(ppo_args())
    learner.save_models(str(tmp_path))
    names = {
        "agent",
        "critic",
        "value_norm",
        "opponents",
        "trd_net",
        "regions",
        "opt",
        "critic_opt",
    }
    names |= {"opponents_opt", "trd_net_opt", "regions_opt"}
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.th" for name in names}
    other, _ = make_learner(ppo_args(), seed=3)
    set_sizes(learner, [1.0, 2.0, 3.0])
    learner.save_models(str(tmp_path))
    other.load_models(str(tmp_path))
    assert torch.equal(other.clip_range(), learner.clip_range())


def test_continuous_actions():
    """One-step episodes of random numbers: everything learns, and nothing is infinite."""
    args = ppo_args(n_actions=2, batch_size=16, batch_size_run=16, accumulated_episodes=16)
    args.continuous_actions = True
    learner, log = make_learner(args)
    scheme = {
        "state": {"vshape": args.state_shape},
        "obs": {"vshape": OBS, "group": "agents"},
        "actions": {"vshape": (2,), "group": "agents"},
        "avail_actions": {"vshape": (2,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (N_AGENTS,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        **learner.mac.recorded,
    }
    batch = EpisodeBatch(scheme, {"agents": N_AGENTS}, 16, 2)
    batch.update(
        {"obs": torch.randn(16, 2, N_AGENTS, OBS), "avail_actions": torch.ones(16, 2, N_AGENTS, 2)}
    )
    learner.mac.init_hidden(16)
    actions = learner.mac.select_actions(batch, 0, 0)
    played = {
        "actions": actions,
        "reward": -actions.square().sum(-1),
        "terminated": torch.ones(16, 1),
    }
    batch.update({**played, **learner.mac.last_record}, ts=0)
    situation = learner.situation(learner.packed(batch))
    assert situation.values.shape == situation.log_weights.shape == (16, N_AGENTS, args.mc_actions)
    assert torch.allclose(
        situation.log_weights, torch.zeros(()), atol=1e-5
    )  # the old policies are the present ones
    sizes = learner.split.sizes()
    learner.train(batch, t_env=0, episode_num=0)
    assert (learner.split.sizes() != sizes).all()
    for values in log.lists.values():
        assert all(math.isfinite(value) for value in values[0][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trd_steps": 3}, "at least 2 transitions each"),
        ({"trust_region_batch_size": -1}, "trust_region_batch_size must be at least 0, got -1"),
        ({"trust_region_split": "half"}, "trust_region_split must be one of learned.*got 'half'"),
        ({"share_params": True}, "share_params=False"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(ppo_args(**settings))


def test_whole_run(tmp_path):
    settings = [
        "t_max=200",
        "batch_size_run=4",
        "accumulated_episodes=4",
        "batch_size=4",
        "buffer_size=4",
    ]
    settings += [
        "env_args.episode_limit=6",
        "critic_hidden_dim=8",
        "policy_hidden_dim=8",
        "trd_steps=2",
    ]
    settings += [
        "trust_region_batch_size=12",
        "test_interval=1000",
        "test_nepisode=4",
        "learner_log_interval=1",
    ]
    run = train_run(tmp_path, "mamt_ppo", "spread", *settings, "ppo_epochs=2")
    sizes = run.learner.split.sizes()
    assert torch.isfinite(sizes).all()
    assert (sizes != 5.0).all()
