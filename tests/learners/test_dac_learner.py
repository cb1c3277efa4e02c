"""DAC's update against plain loops over agents, episodes, steps and contexts."""

import copy
from types import SimpleNamespace

import pytest
import torch
from dac_fixtures import (
    dac_args,
    decode,
    entropy_to_uniform,
    features_of,
    logits_of,
    losses_of,
    noise_of,
    q_in,
    window_of,
)
from learner_fixtures import LENGTHS, TERMINATED, assert_same_gradients, make_batch, make_learner

from components.steps import Steps
from learners.dac.learner import context_losses, transitions_of
from modules.dac import DynamicsDecoder
from modules.dac.windows import Windows
from utils.errors import ConfigError

SEED = 11
HEADS = ("normal_net", "hyper_net")


def trained_gradients(args, batch, per_weight=None):
    """A learner after one update, and one with the gradients of the slow reference; the log of the
    former.
    """
    learner, log = make_learner(args)
    reference = copy.deepcopy(learner)
    torch.manual_seed(SEED)
    learner.train(batch, t_env=0, episode_num=0, per_weight=per_weight)
    value, rec, kl, _ = losses_of(
        reference, batch, SEED, weights=None if per_weight is None else per_weight.tolist()
    )
    total = sum(value) + sum(rec) + args.dac_beta * sum(kl)
    total.backward()
    return learner, reference, log, (value, rec, kl)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dac_head": "hyper_net"},
        {"dac_k": 1},
        {"dac_k": 9},
        {"dac_m": 1},
        {"dac_m": 1, "dac_head": "hyper_net"},
        {"double_q": False, "obs_agent_id": True, "obs_last_action": False},
        {"dac_temperature": 0.4, "dac_beta": 2.0},
        {"dac_value_trains_encoder": True},
        {"dac_value_trains_encoder": True, "dac_head": "hyper_net"},
        {"common_reward": False},
    ],
    ids=str,
)
def test_losses_and_gradients(settings):
    args = dac_args(**settings)
    learner, reference, log, losses = trained_gradients(args, make_batch(args))
    assert_same_gradients(learner, reference)
    for name, expected in zip(("loss_value", "loss_rec", "loss_kl"), losses, strict=True):
        mean = float(sum(expected).detach()) / len(expected)
        assert log.stats[name][0][0] == pytest.approx(mean, rel=1e-4, abs=1e-6), name


def test_importance_weights():
    args = dac_args()
    weights = torch.tensor([0.5, 1.0, 0.0, 2.0, 0.1])
    learner, reference, _, _ = trained_gradients(args, make_batch(args), weights)
    assert_same_gradients(learner, reference)
    errors = make_learner(args)[0].train(make_batch(args), 0, 0, weights)["td_errors_abs"]
    assert errors.shape == (5,)
    assert (errors > 0).all()


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 7, 2, 5, 4)])
def test_equally_long_and_ragged_episodes(lengths):
    """Both ways in which windows are laid out; an episode of one transition among them."""
    args = dac_args(dac_k=4)
    terminated = TERMINATED[: len(lengths)]
    batch = make_batch(args, lengths, terminated)
    learner, _ = make_learner(args)
    reference = copy.deepcopy(learner)
    torch.manual_seed(SEED)
    learner.train(batch, 0, 0)
    value, rec, kl, _ = losses_of(reference, batch, SEED, lengths)
    (sum(value) + sum(rec) + args.dac_beta * sum(kl)).backward()
    assert_same_gradients(learner, reference)


@pytest.mark.parametrize("head", HEADS)
def test_value_targets(head):
    """Terminal, cut and ragged episodes."""
    args = dac_args(dac_head=head)
    batch = make_batch(args)
    learner, _ = make_learner(args)
    steps = batch.steps()
    windows, transitions = Windows(steps, args.dac_k), transitions_of(batch, steps)
    torch.manual_seed(SEED)
    contexts = context_losses(
        learner.encoder, learner.decoder, transitions, windows, args.dac_temperature
    ).contexts
    inputs = learner.mac.sequence_inputs(batch, steps)
    features = learner.mac.agent.unroll_features(inputs, steps)
    targets = learner.targets_of(batch, steps, windows, features, contexts.detach(), inputs)
    expected = losses_of(learner, batch, SEED)[3]
    order = sorted(range(len(LENGTHS)), key=lambda b: -LENGTHS[b])
    where = [(b, t) for t in range(max(LENGTHS) - 1) for b in order if t < LENGTHS[b] - 1]
    for row, (b, t) in enumerate(where):
        for i in range(args.n_agents):
            assert float(targets[i, row]) == pytest.approx(
                float(expected[b, t, i]), rel=1e-4, abs=1e-5
            )
    ended = [(b, LENGTHS[b] - 2) for b in range(len(LENGTHS)) if TERMINATED[b]]
    for b, t in ended:
        assert targets[:, where.index((b, t))].tolist() == pytest.approx(
            [float(batch["reward"][b, t])] * args.n_agents
        )


def test_contexts_and_their_losses():
    args = dac_args()
    batch = make_batch(args)
    learner, _ = make_learner(args)
    steps = batch.steps()
    windows, transitions = Windows(steps, args.dac_k), transitions_of(batch, steps)
    torch.manual_seed(SEED)
    losses = context_losses(
        learner.encoder, learner.decoder, transitions, windows, args.dac_temperature
    )
    noise = noise_of(args, LENGTHS, SEED)
    rec, kl = [0.0] * args.n_agents, [0.0] * args.n_agents
    assert torch.equal(losses.contexts.detach().sum(-1), torch.ones(args.n_agents, windows.n))
    for row, (b, t) in enumerate(noise):
        for i in range(args.n_agents):
            logits = logits_of(learner.encoder, i, window_of(batch, b, i, t, args.dac_k))
            sampled = int((logits + noise[b, t][i]).argmax())
            assert losses.contexts[i, row].detach().tolist() == pytest.approx(
                [float(c == sampled) for c in range(4)]
            )
            kl[i] += entropy_to_uniform(torch.softmax(logits, -1).tolist()) / windows.n
            context = torch.eye(4)[sampled]
            for h in range(max(0, t - 2), t + 1):
                state, reward = decode(
                    learner.decoder, i, batch["obs"][b, h, i], batch["actions"][b, h, i, 0], context
                )
                error = (state - batch["obs"][b, h + 1, i]).pow(2).sum() + (
                    reward - batch["reward"][b, h, 0]
                ) ** 2
                rec[i] += float(error.detach()) / windows.n
    assert losses.rec.tolist() == pytest.approx(rec, rel=1e-5)
    assert losses.kl.tolist() == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_reconstruction_against_its_definition(weighted):
    """Value and gradients of L_REC from the decoder's predictions and autograd, with a factor of
    its own per agent.
    """
    args = dac_args()
    batch = make_batch(args)
    learner, _ = make_learner(args)
    decoder, steps = learner.decoder, batch.steps()
    windows, transitions = Windows(steps, args.dac_k), transitions_of(batch, steps)
    contexts = torch.randn(args.n_agents, windows.n, args.dac_m).requires_grad_()
    weights = torch.rand(windows.n) if weighted else None
    expected = torch.zeros(args.n_agents)
    for j in range(args.dac_k):
        to, rows = windows.lag(j)
        obs, actions, rewards, next_obs = (x[:, rows] for x in transitions)
        state, reward = decoder(obs, actions, contexts[:, to])
        errors = (state - next_obs).pow(2).sum(-1) + (reward - rewards).pow(2)
        expected = expected + (errors * (weights[to] if weighted else 1.0)).sum(1) / windows.n
    loss = decoder.loss(*transitions, contexts, windows, weights)
    assert torch.allclose(loss, expected, rtol=1e-5)
    factor, inputs = torch.tensor([1.0, -0.5, 2.0]), [*decoder.parameters(), contexts]
    grads = (torch.autograd.grad(value, inputs, factor) for value in (loss, expected))
    for mine, reference in zip(*grads, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-4, atol=1e-4)


def test_reconstruction_is_accurate_where_it_is_good():
    """Large observations that are predicted well: what is left of the error, and its gradient, are
    not rounding.
    """
    torch.manual_seed(1)
    windows = Windows(Steps(torch.tensor([40, 40]), 40), 5)
    decoder = DynamicsDecoder(
        2, SimpleNamespace(n_agents=1, n_actions=2, dac_m=3, dac_hidden_dim=16)
    )
    obs = 30 * torch.randn(1, windows.n, 2)
    actions, contexts = (torch.eye(n)[torch.randint(n, (1, windows.n))] for n in (2, 3))
    with torch.no_grad():
        decoder.fc1.weight[..., -3:] = (
            0.0  # all windows that hold a transition predict the same of it
        )
        state, reward = decoder(obs, actions, contexts)
    data = [obs, actions, *(x + 0.1 * torch.randn_like(x) for x in (reward, state))]
    loss = decoder.loss(*data, contexts, windows)
    grads = torch.autograd.grad(loss.sum(), decoder.parameters())
    exact = copy.deepcopy(decoder).double()
    loss_exact = exact.loss(*(x.double() for x in data), contexts.double(), windows)
    assert float(loss_exact.detach()) == pytest.approx(3 * 0.01 * 4.75, rel=0.3)
    assert float(loss.detach()) == pytest.approx(float(loss_exact.detach()), rel=0.02)
    for mine, reference in zip(
        grads, torch.autograd.grad(loss_exact.sum(), exact.parameters()), strict=True
    ):
        assert float((mine - reference).norm()) <= 0.01 * float(reference.norm())


def test_where_the_encoder_learns_from():
    """From the reconstruction through the straight-through sample; from the value loss only where
    that is asked for.
    """

    def gradient(**settings):
        args = dac_args(dac_beta=0.0, **settings)
        learner, _ = make_learner(args)
        torch.manual_seed(SEED)
        learner.train(make_batch(args), 0, 0)
        return learner.encoder.fc1.weight.grad

    with_rec = gradient()
    assert with_rec.abs().max() > 1e-3
    # Another target network changes nothing but the value loss.
    args = dac_args(dac_beta=0.0)
    learner, _ = make_learner(args)
    for param in learner.target_mac.parameters():
        param.mul_(3.0)
    torch.manual_seed(SEED)
    learner.train(make_batch(args), 0, 0)
    assert torch.equal(learner.encoder.fc1.weight.grad, with_rec)
    assert not torch.allclose(gradient(dac_value_trains_encoder=True), with_rec, atol=1e-3)


def test_padded_steps_enter_nothing():
    """Garbage behind an episode's end, and more padding, do not change one bit of an update."""
    args = dac_args()
    grads = []
    for garbage in (1e3, -7.0):
        batch = make_batch(args)
        for b, length in enumerate(LENGTHS):
            batch.data.transition_data["obs"][b, length:] = garbage
            batch.data.transition_data["reward"][b, length - 1 :] = garbage
            batch.data.transition_data["actions"][b, length - 1 :] = int(garbage > 0)
        learner, _ = make_learner(args)
        torch.manual_seed(SEED)
        learner.train(batch, 0, 0)
        grads.append([p.grad for p in (*learner.params, *learner.context_params)])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("head", HEADS)
def test_all_contexts_at_once(head):
    """The values of all contexts, computed in one call, are those of a loop over agents and
    contexts.
    """
    args = dac_args(dac_head=head, dac_m=5)
    batch = make_batch(args)
    learner, _ = make_learner(args)
    steps, agent = batch.steps(), learner.mac.agent
    values = agent.unroll(learner.mac.sequence_inputs(batch, steps), steps)
    assert values.shape == (steps.n_rows, args.n_agents, 5, args.n_actions)
    values, phi = steps.unpack(values), steps.unpack(learner.mac.unroll(batch))
    for b, length in enumerate(LENGTHS):
        for i in range(args.n_agents):
            features = features_of(learner.mac, batch, b, i, length)
            for t in range(length):
                of_context = torch.stack([q_in(agent, i, features[t], c) for c in torch.eye(5)])
                assert torch.allclose(values[b, t, i], of_context, atol=1e-5)
                assert torch.allclose(phi[b, t, i], of_context.max(0).values, atol=1e-5)


def test_an_update_follows_the_gradient_and_targets_stay():
    args = dac_args(target_update_interval=5)
    learner, log = make_learner(args)
    batch = make_batch(args)
    learner.update_targets()
    before = [p.clone() for p in learner.target_mac.parameters()]
    for n in range(30):
        learner.train(batch, t_env=n * args.learner_log_interval, episode_num=4)
    for name in ("loss_value", "loss_rec"):
        assert log.stats[name][-1][0] < log.stats[name][0][0]
    assert all(
        torch.equal(a, b) for a, b in zip(before, learner.target_mac.parameters(), strict=True)
    )
    learner.train(batch, 0, episode_num=5)
    pairs = zip(learner.mac.parameters(), learner.target_mac.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_figures():
    """The usage of the contexts: its entropy, and the share of the most used one."""
    args = dac_args(dac_m=2)
    learner, log = make_learner(args)
    with torch.no_grad():
        learner.encoder.fc2.weight.zero_()
        learner.encoder.fc2.bias[:] = torch.tensor([100.0, 0.0])
    learner.train(make_batch(args), 0, 0)
    assert log.stats["context_entropy"][0][0] == pytest.approx(0.0, abs=1e-6)
    assert log.stats["context_largest_share"][0][0] == 1.0
    assert {"grad_norm", "context_grad_norm", "q_taken_mean", "target_mean"} <= log.stats.keys()


def test_networks_are_clipped_apart():
    """Per agent, and the context networks apart from the value networks."""
    args = dac_args(grad_norm_clip=0.01)
    learner, _ = make_learner(args)
    learner.train(make_batch(args), 0, 0)
    for params in (learner.params, learner.context_params):
        for i in range(args.n_agents):
            norm = torch.cat([p.grad[i].flatten() for p in params]).norm()
            assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_model_files(tmp_path):
    args = dac_args(dac_head="hyper_net")
    learner, _ = make_learner(args)
    batch = make_batch(args)
    learner.train(batch, 0, 0)
    learner.save_models(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"agent.th", "encoder.th", "decoder.th", "opt.th", "context_opt.th"}
    other, _ = make_learner(args, seed=5)
    other.load_models(str(tmp_path))
    learner.update_targets()
    for it in (learner, other):
        torch.manual_seed(SEED)
        it.train(batch, 0, 0)
    for mine, theirs in (
        (learner.params, other.params),
        (learner.context_params, other.context_params),
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_one_agent():
    args = dac_args(n_agents=1)
    batch = make_batch(args)
    learner, _ = make_learner(args)
    assert learner.train(batch, 0, 0) == {}
    assert learner.mac.unroll(batch).shape == (sum(LENGTHS), 1, args.n_actions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dac_k": 0}, "dac_k must be at least 1, got 0"),
        ({"dac_m": 0}, "dac_m must be at least 1, got 0"),
        ({"dac_hidden_dim": 0}, "dac_hidden_dim must be at least 1, got 0"),
        ({"dac_beta": -0.1}, "dac_beta must be at least 0, got -0.1"),
        ({"dac_temperature": 0.0}, "dac_temperature must be greater than 0, got 0.0"),
        ({"dac_head": "hyper"}, "dac_head must be one of normal_net, hyper_net, got 'hyper'"),
        (
            {"share_params": True},
            "needs share_params=False (every agent has its own networks)",
        ),
        ({"mixer": "vdn"}, "needs mixer=null (its agents learn on their own), got mixer=vdn"),
        (
            {"td_lambda": 0.5},
            "needs td_lambda=0.0 (its targets are one-step targets)",
        ),
        ({"mac": "basic_mac"}, "learner 'dac_learner' needs mac=dac_mac, got mac=basic_mac"),
        ({"agent": "rnn"}, "dac_mac needs agent=dac_rnn, got 'rnn'"),
        ({"agent_output_type": "pi_logits"}, "needs agent_output_type=q"),
        (
            {"action_selector": "multinomial"},
            "needs action_selector=epsilon_greedy",
        ),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError) as caught:
        make_learner(dac_args(**settings))
    assert message in str(caught.value)
