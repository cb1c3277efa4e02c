"""What the public MAPPO has beside PPO: its networks, PopArt, masks of agents without a choice."""

import math

import pytest
import torch
from learner_fixtures import N_AGENTS, STATE, make_batch, make_learner, weights_of
from test_ppo import Slow, ppo_args, recorded
from transition_fixtures import assert_continues, train_run

from utils.config import build_config
from utils.errors import ConfigError


def normal(norm, row, group=None):
    """Layer norm by its definition."""
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    weight, bias = norm.weight, norm.bias
    if group is not None:
        weight, bias = weight[group], bias[group]
    return (row - mean) / (variance + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(
    ("critic", "share"), [("state", True), ("observation", True), ("observation", False)]
)
def test_critic_with_layer_norm(critic, share, recurrent):
    """Of one episode, step by step and agent by agent."""
    learner, _ = make_learner(
        ppo_args(critic=critic, share_params=share, critic_recurrent=recurrent,
                 critic_layer_norm=True)
    )  # fmt: skip
    network, batch = learner.critic, make_batch(learner.args)[1:2]
    for param in network.parameters():
        torch.nn.init.normal_(param, std=0.5)
    steps = batch.steps()
    inputs, state = learner.mac.sequence_inputs(batch, steps), steps.pack(batch["state"])
    out = network(state, inputs, steps)
    for i in range(1 if critic == "state" else N_AGENTS):
        group = None if share else i

        def of(weight, group=group):
            return weight if group is None else weight[group]

        h = torch.zeros(1, learner.args.critic_hidden_dim)
        for t in range(len(out)):
            row = state[t] if critic == "state" else inputs[t, i]
            row = normal(network.fc1.input_norm, row, group)
            for layer, norm in zip(network.fc1.layers, network.fc1.norms, strict=True):
                linear = of(layer.weight) @ row + of(layer.bias)
                row = normal(norm, linear.clamp(min=0), group)
            if recurrent:
                rnn = network.rnn
                weights = (rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh)
                h = torch.gru_cell(row.unsqueeze(0), h, *map(of, weights))
                row = normal(network.memory_norm, h[0], group)
            expected = of(network.fc3.weight) @ row + of(network.fc3.bias)
            assert out[t, i].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_critics_begin_orthogonal_where_they_are_told_to(normed, recurrent):
    args = ppo_args(
        use_orthogonal=True, critic_layer_norm=normed, critic_recurrent=recurrent,
        critic_hidden_dim=STATE,
    )  # fmt: skip
    network = make_learner(args)[0].critic
    squares = [
        (weight, 2.0 if name.startswith(("fc1", "fc2")) else 1.0)
        for name, weight in network.named_parameters()
        if weight.dim() == 2
    ]
    assert len(squares) == 3 + recurrent * (1 + normed)
    for weight, square in squares:
        small = weight if weight.shape[0] <= weight.shape[1] else weight.T
        assert torch.allclose(small @ small.T, square * torch.eye(len(small)), atol=1e-5)
    biases = [x for name, x in network.named_parameters() if "bias" in name]
    assert not any(bool(bias.any()) for bias in biases)


@pytest.mark.parametrize("individual", [False, True])
def test_popart_moves_the_statistics_and_not_the_values(individual):
    args = ppo_args(popart=True, common_reward=not individual)
    learner, _ = make_learner(args)
    k = N_AGENTS if individual else 1
    learner.value_norm.update(torch.randn(50, k) * 3 + torch.arange(k))
    batch = recorded(learner, make_batch(args))
    episodes = learner.packed(batch)
    before = learner.denormalise(learner.baselines(episodes))
    normalised = learner.baselines(episodes)
    learner.move_statistics(torch.randn(40, k) * 20 - 7)
    assert torch.allclose(learner.denormalise(learner.baselines(episodes)), before, atol=1e-4)
    assert not torch.allclose(learner.baselines(episodes), normalised, atol=1e-2)
    plain, _ = make_learner(ppo_args(common_reward=not individual))
    weights = weights_of(plain)
    plain.move_statistics(torch.randn(40, k) * 20 - 7)
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(plain), strict=True))


def test_popart_rescales_by_hand():
    """Mean 0 and deviation 1 become 3 and 4 in one sample's weight: w / 4, (b - 3) / 4."""
    learner, _ = make_learner(ppo_args(popart=True))
    learner.value_norm.beta = 0.0
    head = learner.critic.fc3
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    learner.move_statistics(torch.tensor([[-1.0], [7.0]]))
    assert torch.allclose(head.weight, weight / 4, atol=1e-6)
    assert torch.allclose(head.bias, (bias - 3) / 4, atol=1e-6)


def test_popart_needs_the_critic_of_the_state():
    for options in ({"critic": "observation"}, {"value_norm": False}):
        with pytest.raises(ConfigError, match=r"popart rescales .*value_norm=True and critic"):
            make_learner(ppo_args(popart=True, **options))


class AllSteps(Slow):
    """Every agent counts at every step."""

    def choices(self, b, t, i):
        return 2


def test_without_active_masks_every_step_counts():
    args = ppo_args(active_masks=False)
    learner, log = make_learner(args)
    batch = make_batch(args)
    batch.stored("avail_actions")[:, :, 1] = 0
    batch.stored("avail_actions")[:, :, 1, 2] = 1
    batch.stored("actions")[:, :, 1] = 2
    batch.changed("avail_actions", "actions")
    batch = recorded(learner, batch)
    losses = {}
    for slow in (AllSteps, Slow):
        policy, entropy, _ = slow(learner, batch).losses()
        losses[slow] = (sum(policy).item(), sum(entropy).item())
    learner.train(batch, t_env=0, episode_num=5)
    seen = (log.stats["loss_policy"][0][0], log.stats["policy_entropy"][0][0])
    assert seen == pytest.approx(losses[AllSteps], rel=1e-4)
    assert seen[1] < 0.9 * losses[Slow][1]


def test_public_settings():
    config = build_config("mappo_public", "sc2sim")
    expected = {
        "ppo_epochs": 15, "ppo_minibatches": 1, "ppo_clip": 0.2, "entropy_coef": 0.01,
        "gae_lambda": 0.95, "huber_delta": 10.0, "lr": 0.0005, "adam_eps": 1e-5,
        "grad_norm_clip": 10.0, "value_norm": True, "popart": False, "value_clip": True,
        "rnn_hidden_dim": 64, "critic_hidden_dim": 64, "gain": 0.01, "use_orthogonal": True,
        "active_masks": True, "gamma": 0.99,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected


def test_first_policies_are_all_but_uniform():
    learner, _ = make_learner(ppo_args("mappo_public", ppo_epochs=1, batch_size_run=64))
    batch = make_batch(learner.args)
    probs = torch.softmax(learner.mac.unroll(batch), -1)
    assert (probs - 1 / learner.args.n_actions).abs().max() < 0.02
    head = learner.mac.agent.fc2.weight
    assert torch.linalg.matrix_norm(head, 2).item() == pytest.approx(0.01, rel=1e-3)
    assert math.isclose(learner.args.gain, 0.01)


def test_a_restored_learner_continues_bit_for_bit():
    args = ppo_args("mappo_public", ppo_epochs=2, batch_size_run=64, popart=True)
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, recorded(learner, make_batch(args)))


def test_learns_a_matrix_game(tmp_path):
    run = train_run(
        tmp_path, "mappo_public", "matrix_game", "env_args.map_name=climbing", "t_max=1600",
        "batch_size_run=32", "lr=0.003", "batch_size=32", "buffer_size=32", "ppo_epochs=5",
        "accumulated_episodes=0", "test_nepisode=4", "rnn_hidden_dim=16", "critic_hidden_dim=16",
    )  # fmt: skip
    assert run.last_test_return >= 6.0
