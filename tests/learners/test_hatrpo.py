"""HATRPO: Fisher products, conjugate gradients and the trust region against dense matrices and
loops.
"""

import copy

import pytest
import torch
from learner_fixtures import LENGTHS, N_AGENTS, make_batch, make_learner
from test_happo import (
    SlowHAPPO,
    continuous_args,
    happo_args,
    learns_continuous_actions,
    one_step_episodes,
    transitions,
)
from test_ppo import log_policy, logits_of, recorded
from transition_fixtures import assert_continues, train_run

from learners.heterogeneous.natural_gradient import conjugate_gradients, fisher_product, flat
from modules.layers import GRU
from utils.errors import ConfigError


def hatrpo_args(**overrides):
    return happo_args("hatrpo", **overrides)


def ready(learner, batch, agent):
    """What a step of an agent goes by, as the first one to learn."""
    learner.mac.agent.eval()
    episodes = learner.packed(batch)
    rollout = learner.rollout(episodes)
    own = learner.rollout_of(agent, rollout, torch.zeros_like(rollout.log_prob[..., :1]))
    return episodes.of_agent(agent), own


def dense_fisher(learner, batch, agent):
    """E[grad log pi grad log pi^T] of an agent, mean over its steps with a choice: [P, P]."""
    params = dict(learner.mac.agent.named_parameters())
    total, n = 0.0, 0
    for b, t in transitions():
        avail = batch["avail_actions"][b, t, agent]
        if avail.sum() < 2:
            continue
        n += 1
        log_pi = log_policy(logits_of(learner.mac, batch, b)[t][agent], avail)
        for u in avail.nonzero().flatten().tolist():
            grads = torch.autograd.grad(log_pi[u], params.values(), retain_graph=True)
            score = flat(grad[agent] for grad in grads).double()
            total = total + log_pi[u].exp().item() * torch.outer(score, score)
    return total / n


@pytest.mark.parametrize("options", [{}, {"agent": "mlp"}], ids=str)
def test_the_natural_gradient_is_that_of_the_dense_fisher_matrix(options):
    args = hatrpo_args(rnn_hidden_dim=4, cg_steps=200, cg_damping=0.05, **options)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args), noise=0.0)
    for agent in (0, 2):
        episodes, own = ready(learner, batch, agent)
        params = learner.members.parameters(agent)
        fisher = dense_fisher(learner, batch, agent)
        old = learner.policy(episodes)
        with torch.no_grad():
            before = learner.policy(episodes)
        kl = learner.divergence(episodes, before, old)
        product = fisher_product(kl, params, 0.0)
        for seed in range(3):
            v = torch.randn(len(fisher), generator=torch.Generator().manual_seed(seed))
            assert torch.allclose(product(v), (fisher @ v.double()).float(), atol=1e-4)
        loss = learner.policy_loss(episodes, own, learner.policy(episodes)).loss
        loss.backward()
        gradient = flat(param.grad for param in params)
        step = learner.full_step(episodes, params)
        damped = fisher + 0.05 * torch.eye(len(fisher))
        direction = torch.linalg.solve(damped, -gradient.double())
        expected = direction * (2 * args.kl_limit / (direction @ damped @ direction)).sqrt()
        assert torch.allclose(step, expected.float(), atol=1e-3 * float(expected.abs().max()))
        assert float(step @ gradient) < 0


def test_conjugate_gradients():
    """Exact after as many steps as there are unknowns; after fewer the best within their space."""
    torch.manual_seed(0)
    root, b = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    matrix = root @ root.T + 0.1 * torch.eye(6)
    calls = []
    product = lambda v: calls.append(1) or matrix @ v  # noqa: E731
    assert torch.allclose(conjugate_gradients(product, b, 6, 0.0), torch.linalg.solve(matrix, b))
    assert len(calls) == 6
    few = conjugate_gradients(product, b, 2, 0.0)
    basis = torch.stack([b, matrix @ b], 1)
    best = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
    assert torch.allclose(few, best)
    assert (conjugate_gradients(product, 0 * b, 5) == 0).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_gru_has_a_second_derivative(groups):
    """Through whichever way a sequence is unrolled, against single steps of torch's cell."""
    torch.manual_seed(0)
    gru, sizes = GRU(3, 4, groups), [3, 2, 2]
    x = torch.randn(*([groups] if groups > 1 else []), 7, 3, requires_grad=True)
    weights = list(gru.parameters())

    def steps(x):
        h, out = x.new_zeros(*x.shape[:-2], 3, 4), []
        for x_t in x.split(sizes, -2):
            h = gru(x_t, h[..., : x_t.shape[-2], :])
            out.append(h)
        return torch.cat(out, -2)

    vectors = [torch.randn_like(tensor) for tensor in (x, *weights)]
    found = []
    for unroll in (lambda: gru.unroll(x, sizes), lambda: steps(x)):
        grads = torch.autograd.grad(unroll().square().sum(), (x, *weights), create_graph=True)
        along = sum((grad * v).sum() for grad, v in zip(grads, vectors, strict=True))
        found.append([*grads, *torch.autograd.grad(along, (x, *weights))])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    assert max(float(second.detach().abs().max()) for second in found[0][6:]) > 0.1


def slow_kl(old, new, batch, agent):
    """KL[old || new] of an agent, mean over its steps with a choice."""
    found = []
    with torch.no_grad():
        for b in range(len(LENGTHS)):
            before, after = (logits_of(mac, batch, b) for mac in (old, new))
            for t in range(LENGTHS[b] - 1):
                avail = batch["avail_actions"][b, t, agent]
                if avail.sum() > 1:
                    p, q = (log_policy(x[t][agent], avail) for x in (before, after))
                    options = avail.nonzero().flatten().tolist()
                    found.append(sum(p[u].exp() * (p[u] - q[u]) for u in options))
    return float(sum(found) / len(found))


@pytest.mark.parametrize("kl_limit", [0.002, 0.05])
def test_every_agent_stays_in_its_trust_region_and_gains(kl_limit):
    """Also what later agents are weighted by: the surrogate with M, before and after their step."""
    args = hatrpo_args(kl_limit=kl_limit, cg_damping=0.01)
    learner, log = make_learner(args)
    batch = recorded(learner, make_batch(args), noise=0.0)
    slow = SlowHAPPO(copy.deepcopy(learner), batch)
    before = copy.deepcopy(learner.mac)
    learner.order = lambda: [1, 2, 0]
    learner.train(batch, t_env=0, episode_num=5)
    kls = [slow_kl(before, learner.mac, batch, i) for i in range(N_AGENTS)]
    assert all(0.1 * kl_limit < kl <= kl_limit * 1.001 for kl in kls), kls
    assert log.stats["policy_kl"][0][0] == pytest.approx(sum(kls) / 3, rel=1e-2)
    weights, theirs = dict.fromkeys(transitions(), 1.0), slow.learner.mac.agent
    mine = dict(learner.mac.agent.named_parameters())
    slow.learner.args.ppo_clip = 1e9  # no clipping
    with torch.no_grad():
        for i in (1, 2, 0):
            first = slow.surrogate(i, weights)
            for name, param in theirs.named_parameters():
                param[i] = mine[name][i]
            assert slow.surrogate(i, weights) < first - 1e-4
            ratios = slow.log_ratios()
            for key in weights:
                weights[key] *= ratios[key][i].exp().item()


def test_a_step_that_gains_too_little_is_not_taken():
    """No length keeps all that the slope promises: nobody moves, not by one bit."""
    args = hatrpo_args(kl_limit=50.0, backtrack_steps=2, accept_ratio=1.0)
    learner, log = make_learner(args)
    batch = recorded(learner, make_batch(args), noise=0.0)
    before = copy.deepcopy(learner.mac.agent.state_dict())
    learner.train(batch, t_env=0, episode_num=5)
    assert log.stats["step_share"][0][0] == 0.0
    assert log.stats["policy_kl"][0][0] == 0.0
    after = learner.mac.agent.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_steps_are_shortened_until_they_fit():
    """Shares are powers of the factor; the first one that fits is taken."""
    args = hatrpo_args(kl_limit=0.5, backtrack_factor=0.5, accept_ratio=0.0)
    learner, _ = make_learner(args)
    batch = recorded(learner, make_batch(args), noise=0.0)
    episodes, own = ready(learner, batch, 1)
    params = learner.members.parameters(1)
    loss = learner.policy_loss(episodes, own, learner.policy(episodes)).loss
    loss.backward()
    step, start = 4 * learner.full_step(episodes, params), flat(params).detach().clone()
    kl, share = learner.line_search(episodes, own, params, step, loss.detach())
    assert share.item() in {0.5**j for j in range(1, 10)}
    assert torch.allclose(flat(params), start + share * step, atol=1e-6)
    assert kl <= 0.5


def test_an_agent_without_a_choice_stays():
    args = hatrpo_args()
    learner, _ = make_learner(args)
    batch = make_batch(args)
    batch.stored("avail_actions")[:, :, 1] = 0
    batch.stored("avail_actions")[:, :, 1, 2] = 1
    batch.stored("actions")[:, :, 1] = 2
    batch.changed("avail_actions", "actions")
    before = copy.deepcopy(learner.mac.agent.state_dict())
    learner.train(recorded(learner, batch, noise=0.0), t_env=0, episode_num=5)
    for name, value in learner.mac.agent.state_dict().items():
        assert torch.equal(value[1], before[name][1])
        assert not torch.equal(value[0], before[name][0])


def test_a_restored_learner_continues_bit_for_bit():
    args = hatrpo_args()
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, recorded(learner, make_batch(args)))


def test_continuous_actions_stay_in_the_trust_region():
    """Against the Gaussians' divergence by hand."""
    args = continuous_args("hatrpo")
    learner, _ = make_learner(args)
    batch, play = one_step_episodes(args, learner)
    play()
    before = copy.deepcopy(learner.mac)
    learner.train(batch, t_env=0, episode_num=0)
    before.agent.eval()
    with torch.no_grad():
        # The running statistics have moved after the step: the same ones for both.
        before.agent.norm.load_state_dict(learner.mac.agent.norm.state_dict())
        avail = batch["avail_actions"][:, 0]
        learner.mac.agent.eval()
        old, new = (
            mac.policy(mac.agent.logits(batch["obs"][:, 0]), avail).normal
            for mac in (before, learner.mac)
        )
    kl = (new.scale / old.scale).log() - 0.5
    kl = kl + (old.scale**2 + (old.loc - new.loc) ** 2) / (2 * new.scale**2)
    kl[:, 1, 1] = 0  # padding
    assert ((kl.sum(-1).mean(0) > 0.0005) & (kl.sum(-1).mean(0) < 0.02)).all()


@pytest.mark.slow
def test_learns_continuous_actions():
    learns_continuous_actions(continuous_args("hatrpo", lr=0.005, kl_limit=0.05))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"entropy_coef": 0.01},
            "entropy_coef must be 0.0: the trust region is in its place, got 0.01",
        ),
        ({"kl_limit": 0.0}, "kl_limit must be greater than 0 and finite, got 0.0"),
        ({"backtrack_factor": 1.0}, "backtrack_factor must be greater than 0 and less than 1"),
        ({"cg_steps": 0}, "cg_steps must be at least 1, got 0"),
        ({"share_params": True}, "share_params=False"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(hatrpo_args(**options))


@pytest.mark.slow
@pytest.mark.parametrize(("game", "least"), [("climbing", 6.0), ("two_step", 7.0)])
def test_learns_a_matrix_game(game, least, tmp_path):
    """At least the safe equilibrium; a uniformly random joint action pays -3.1 and 4.6."""
    run = train_run(
        tmp_path, "hatrpo", "matrix_game", f"env_args.map_name={game}", "t_max=3200",
        "batch_size_run=32", "lr=0.003", "batch_size=32", "buffer_size=32", "kl_limit=0.05",
        "test_nepisode=4", "rnn_hidden_dim=16", "critic_hidden_dim=16",
    )  # fmt: skip
    assert run.last_test_return >= least
