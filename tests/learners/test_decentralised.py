"""Fully decentralised learners: nothing of an agent's learning or acting depends on another agent,
not by one bit.
"""

import copy

import pytest
import torch
from learner_fixtures import N_AGENTS, make_args, make_batch, make_learner, weights_of
from torch import nn

from learners.base import clip_per_agent_
from utils.errors import ConfigError, Diverged

SMALL = {
    "i2q": {"i2q_hidden_dim": 8},
    "dac": {"dac_k": 3, "dac_m": 4, "dac_hidden_dim": 8},
    "dac_phi": {"dac_k": 3, "dac_m": 4, "dac_hidden_dim": 8, "dac_head": "hyper_net"},
}
BASELINES = ("iql_ns", "hysteretic", "distributed_q", "i2q")
ALGORITHMS = (*BASELINES, "dac", "dac_phi")
# Clipping at every update: off, on (every agent's gradient is larger), on.
CLIPS = (1e9, 1e-3, 1e-2)


def decentralised_args(alg, **overrides):
    # Targets move at every update; half of the actions explore.
    exploring = {
        "epsilon_start": 0.5,
        "epsilon_finish": 0.5,
        "target_update_interval": 1,
        "learner_log_interval": 1,
    }
    return make_args(alg, **(SMALL.get(alg, {}) | exploring | overrides))


def other_data(batch, agents):
    """The batch with other observations and actions of some agents, and another state; the reward
    stays.
    """
    batch = copy.deepcopy(batch)
    generator = torch.Generator().manual_seed(5)
    for j in agents:
        batch.stored("avail_actions")[:, :, j] = 1
        obs, actions = batch.stored("obs")[:, :, j], batch.stored("actions")[:, :, j]
        obs.copy_(30 * torch.randn(obs.shape, generator=generator))
        actions.copy_(
            torch.randint(batch["avail_actions"].shape[-1], actions.shape, generator=generator)
        )
    batch.stored("state").mul_(-3)
    batch.changed("obs", "actions", "avail_actions", "state")
    return batch


def other_weights(learner, agents):
    """Adds noise to all weights of some agents, the target networks' included."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for _, param in all_params(learner):
            for j in agents:
                param[j] += 2 * torch.randn(param[j].shape, generator=generator)


def all_params(learner):
    """(name, [A, ...]) of everything trained and of every target network."""
    networks = [learner.mac.agent, *learner.modules.values()]
    networks += [getattr(target, "agent", target) for _, target in learner.targets]
    return [
        (f"{i}.{name}", param)
        for i, net in enumerate(networks)
        for name, param in net.named_parameters()
    ]


def selected_actions(learner, batch, test_mode):
    """[A, M], at all steps that an action was taken at."""
    torch.manual_seed(11)
    learner.mac.init_hidden(batch.batch_size)
    lengths, chosen = batch.lengths().tolist(), []
    with torch.no_grad():
        for t in range(max(lengths) - 1):
            running = [b for b, length in enumerate(lengths) if t < length - 1]
            chosen.append(
                learner.mac.select_actions(batch, t, t_env=0, bs=running, test_mode=test_mode)
            )
    return torch.cat(chosen).t()


def play_and_learn(learner, batch):
    """Everything of every agent after each of a few updates: a list of name -> [A, ...]."""
    records = []
    for update, clip in enumerate(CLIPS):
        learner.args.grad_norm_clip = clip
        torch.manual_seed(update)
        learner.train(batch, t_env=update, episode_num=update)
        record = {}
        for name, param in all_params(learner):
            record[f"weights of {name}"] = param.detach().clone()
            if param.grad is not None:
                record[f"gradient of {name}"] = param.grad.clone()
        for key, optimiser in learner.optimisers().items():
            for i, state in optimiser.state_dict()["state"].items():
                record |= {
                    f"{key} {i} {k}": v.clone()
                    for k, v in state.items()
                    if v.dim() and v.shape[0] == N_AGENTS
                }
        for test_mode in (False, True):
            record[f"actions, test_mode={test_mode}"] = selected_actions(learner, batch, test_mode)
        records.append(record)
    return records


def compare(before, after, perturbed):
    """Agents not in `perturbed` are the same bit by bit; the others differ in weights, gradients
    and the optimiser.
    """
    for mine, theirs in zip(before, after, strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in mine.items():
            assert len(values) == N_AGENTS, name
            for i in set(range(N_AGENTS)) - set(perturbed):
                assert torch.equal(values[i], theirs[name][i]), f"agent {i}: {name}"
        for kind in ("weights of 0", "gradient of 0", "opt ", "actions"):
            for j in perturbed:
                names = [name for name in mine if name.startswith(kind)]
                assert names, kind
                assert any(not torch.equal(mine[name][j], theirs[name][j]) for name in names), (
                    f"agent {j}: {kind}"
                )


@pytest.mark.parametrize("perturbed", [(0,), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_other_agents_data_change_nothing(alg, perturbed):
    args = decentralised_args(alg)
    batch = make_batch(args)
    before = play_and_learn(make_learner(args)[0], batch)
    after = play_and_learn(make_learner(args)[0], other_data(batch, perturbed))
    compare(before, after, perturbed)


@pytest.mark.parametrize("perturbed", [(0,), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_other_agents_weights_change_nothing(alg, perturbed):
    args = decentralised_args(alg)
    batch = make_batch(args)
    before = play_and_learn(make_learner(args)[0], batch)
    learner, _ = make_learner(args)
    other_weights(learner, perturbed)
    compare(before, play_and_learn(learner, batch), perturbed)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_clipping_was_active(alg):
    """Each agent's gradient has the norm that it is clipped to, not only all of them together."""
    args = decentralised_args(alg)
    learner, log = make_learner(args)
    records = play_and_learn(learner, make_batch(args))
    trained = [p for group in learner.optimiser.param_groups for p in group["params"]]
    for i in range(N_AGENTS):
        assert sum(float(p.grad[i].pow(2).sum()) for p in trained) ** 0.5 == pytest.approx(
            CLIPS[-1], rel=1e-3
        )
    assert all(value > 10 * CLIPS[-1] for value, _ in log.stats["grad_norm"])
    assert len(records) == len(CLIPS)


def test_shared_weights_would_be_noticed():
    """The comparison above is not blind: with shared weights (the first axis is no agent) every row
    changes.
    """
    args = decentralised_args("iql")
    batch, results = make_batch(args), []
    for data in (batch, other_data(batch, (0,))):
        learner, _ = make_learner(args)
        learner.train(data, t_env=0, episode_num=1)
        results.append(learner.mac.agent.fc2.bias.detach().clone())
    assert not torch.equal(*results)


@pytest.mark.parametrize("clip", [1e9, 0.05])
@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("alg", BASELINES)
def test_agents_side_by_side_are_agents_alone(alg, individual, clip):
    """A loop over learners of one agent each, with the same weights and that agent's part of the
    batch.
    """
    settings = {"common_reward": not individual, "grad_norm_clip": clip, "optim_eps": 1e-3}
    args = decentralised_args(alg, **settings)
    learner, _ = make_learner(args)
    batch = make_batch(args)
    single_args = decentralised_args(alg, n_agents=1, **settings)
    singles = []
    for i in range(N_AGENTS):
        single, _ = make_learner(single_args)
        with torch.no_grad():
            for (_, own), (_, stacked) in zip(all_params(single), all_params(learner), strict=True):
                own.copy_(stacked[i].view_as(own))
        own_batch = make_batch(single_args)
        for key in ("obs", "actions", "avail_actions"):
            own_batch.stored(key).copy_(batch.stored(key)[:, :, i : i + 1])
        own_batch.stored("reward").copy_(
            batch.stored("reward")[..., i : i + 1] if individual else batch["reward"]
        )
        own_batch.changed("obs", "actions", "avail_actions", "reward")
        singles.append((single, own_batch))
    start = weights_of(learner)
    for update in range(3):
        learner.train(batch, t_env=update, episode_num=update)
        for single, own_batch in singles:
            single.train(own_batch, t_env=update, episode_num=update)
    assert all(
        not torch.equal(old, new) for old, new in zip(start, weights_of(learner), strict=True)
    )
    for i, (single, _) in enumerate(singles):
        for (name, own), (_, stacked) in zip(all_params(single), all_params(learner), strict=True):
            assert torch.allclose(own.flatten(), stacked[i].flatten(), atol=1e-6), name
            if own.grad is not None:
                assert torch.allclose(own.grad.flatten(), stacked.grad[i].flatten(), atol=1e-6), (
                    name
                )


@pytest.mark.parametrize("max_norm", [1e-3, 4.0, 1e6])
def test_clip_per_agent_is_a_loop_over_agents(max_norm):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(4, *shape)) for shape in ((3, 2), (5,), (), (7, 1, 2))]
    unused = nn.Parameter(torch.zeros(4, 2))
    sizes = torch.tensor([0.1, 1.0, 10.0, 0.0])  # the last agent has no gradient at all
    for param in params:
        noise = torch.randn(param.shape, generator=generator)
        param.grad = noise * sizes.view(-1, *[1] * (param.dim() - 1))
    expected, norms = [], []
    for i in range(4):
        own = [nn.Parameter(torch.zeros_like(param[i])) for param in params]
        for mine, param in zip(own, params, strict=True):
            mine.grad = param.grad[i].clone()
        norms.append(nn.utils.clip_grad_norm_(own, max_norm).item())
        expected.append([mine.grad for mine in own])
    result = clip_per_agent_([*params, unused], max_norm, n_agents=4)
    assert result.tolist() == pytest.approx(norms, rel=1e-6)
    assert unused.grad is None
    for i, own in enumerate(expected):
        for grad, param in zip(own, params, strict=True):
            assert torch.allclose(param.grad[i], grad, rtol=1e-6, atol=0)


def test_weights_that_are_not_one_per_agent_are_refused():
    with pytest.raises(
        ConfigError, match=r"shape \(2, 3\) is not one per agent \(4, ...\): set share_params=False"
    ):
        clip_per_agent_(
            [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(2, 3))], 1.0, n_agents=4
        )
    with pytest.raises(ConfigError, match=r"shape \(\)"):
        clip_per_agent_([nn.Parameter(torch.zeros(()))], 1.0, n_agents=4)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_divergence_names_agent_and_culprit(alg):
    args = decentralised_args(alg)
    learner, _ = make_learner(args)
    batch = make_batch(args)
    batch.stored("obs")[1, 1, 2] = float("nan")
    before = weights_of(learner)
    with pytest.raises(
        Diverged, match=r"^agent 2: loss nan.* at t_env=7: not finite in observations"
    ):
        learner.train(batch, t_env=7, episode_num=1)
    assert all(torch.equal(old, new) for old, new in zip(before, weights_of(learner), strict=True))


@pytest.mark.parametrize("alg", BASELINES)
def test_a_shared_network_learns_the_mean_over_agents(alg):
    """With share_params=True there is one loss; equal networks that are not shared have its
    gradient on average.
    """
    shared, _ = make_learner(decentralised_args(alg, share_params=True))
    own, _ = make_learner(decentralised_args(alg))
    with torch.no_grad():
        for (_, one), (_, stacked) in zip(all_params(shared), all_params(own), strict=True):
            stacked.copy_(one.expand_as(stacked))
    batch = make_batch(shared.args)
    for learner in (shared, own):
        learner.train(batch, t_env=0, episode_num=1)
    for (name, one), (_, stacked) in zip(all_params(shared), all_params(own), strict=True):
        if one.grad is not None:
            assert one.grad.abs().max() > 1e-4, name
            assert torch.allclose(one.grad, stacked.grad.mean(0), rtol=1e-4, atol=1e-6), name
