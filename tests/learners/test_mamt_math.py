"""MAMT's formulas against plain loops, hand-computed numbers and finite differences."""

import math

import pytest
import torch

from learners.mamt.mirror_descent import (
    coordination,
    counterfactual_effects,
    fixed_coordination,
    local_divergences,
    mirror_step,
    mirror_values,
    random_coordination,
    step_penalty,
    tsallis_log,
    weighted_sum_divergences,
)

N, A, U = 4, 3, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def policies(seed=0, n=N, a=A, u=U):
    return torch.randn(n, a, u, generator=generator(seed), dtype=torch.float64).log_softmax(-1)


# -- Tsallis logarithm -----------------------------------------------------------------------------


def test_tsallis_log_is_the_formula():
    x = torch.tensor([0.9, 0.5, 0.02], dtype=torch.float64)
    for q in (0.2, 0.5, 2.0):
        expected = [(p ** (q - 1) - 1) / (q - 1) for p in x.tolist()]
        assert torch.allclose(
            tsallis_log(x.log(), q), torch.tensor(expected, dtype=torch.float64), atol=0, rtol=1e-12
        )


def test_tsallis_log_of_a_half_by_hand():
    # (0.5^-0.8 - 1) / -0.8 with 0.5^-0.8 = 2^0.8 = 1.7411011
    assert tsallis_log(torch.tensor(0.5).log(), 0.2).item() == pytest.approx(-0.9263764, abs=1e-6)


def test_tsallis_log_approaches_the_logarithm():
    log_probs = policies()
    assert torch.equal(tsallis_log(log_probs, 1.0), log_probs)
    assert torch.allclose(tsallis_log(log_probs, 1.0 + 1e-7), log_probs, atol=1e-5)


def test_tsallis_log_of_the_impossible_is_finite():
    for q in (0.2, 1.0):
        x = tsallis_log(torch.tensor([-math.inf, -500.0, -90.0]), q)
        assert torch.isfinite(x).all()
        assert torch.allclose(x, tsallis_log(torch.tensor(1e-6).log(), q))
    assert tsallis_log(torch.tensor(-90.0), 0.2).item() == pytest.approx(
        (1e-6**-0.8 - 1) / -0.8, rel=1e-5
    )


@pytest.mark.parametrize("q", [1.0, 0.2])
def test_step_penalty_pulls_back_to_the_old_policy(q):
    new, old = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.5, 0.5]).log()
    more, less = step_penalty(new, old, q).tolist()
    assert more > 0 > less
    if q == 1.0:
        assert (more, less) == pytest.approx((math.log(1.2), math.log(0.8)))
    else:
        # (0.6^-0.8 - 0.5^-0.8) / -0.8 = (1.5048008 - 1.7411011) / -0.8, and 0.4^-0.8 = 2.0813830
        assert (more, less) == pytest.approx((0.2953755, -0.4253524), abs=1e-5)


# -- the mirror step -------------------------------------------------------------------------------


def test_mirror_step_by_loops():
    log_old, advantages = (
        policies(1),
        torch.randn(N, A, U, generator=generator(2), dtype=torch.float64),
    )
    delta = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    found = mirror_step(log_old, advantages, delta).exp()
    for n in range(N):
        for i in range(A):
            weights = [
                math.exp(log_old[n, i, u].item())
                * math.exp(delta[i].item() * advantages[n, i, u].item())
                for u in range(U)
            ]
            for u in range(U):
                assert found[n, i, u].item() == pytest.approx(weights[u] / sum(weights), rel=1e-12)


def test_a_mirror_step_without_a_region_stays_and_one_without_a_bound_is_greedy():
    log_old, values = policies(1), torch.randn(N, A, U, generator=generator(2), dtype=torch.float64)
    baselines = (log_old.exp() * values).sum(-1)
    none = mirror_values(log_old, values, baselines, torch.zeros(A, dtype=torch.float64))
    assert torch.allclose(none, baselines)
    wide = mirror_values(log_old, values, baselines, torch.full((A,), 1e4, dtype=torch.float64))
    assert torch.allclose(wide, values.amax(-1))


def test_unavailable_actions_stay_impossible_in_a_mirror_step():
    log_old = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    delta = torch.tensor([2.0], requires_grad=True)
    value = mirror_values(log_old, torch.tensor([[[1.0, 0.0, 50.0]]]), torch.tensor([[0.5]]), delta)
    p = 1 / (1 + math.exp(-2.0))
    assert value.item() == pytest.approx(p)
    value.sum().backward()
    assert delta.grad.item() == pytest.approx(p * (1 - p), rel=1e-5)


def test_value_of_a_region_grows_by_the_variance_of_the_advantages():
    log_old, values = (
        policies(3),
        2.0 * torch.randn(N, A, U, generator=generator(4), dtype=torch.float64),
    )
    baselines = (policies(5).exp() * values).sum(-1)  # of a policy that has moved on
    delta = torch.tensor([0.05, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    mirror_values(log_old, values, baselines, delta).sum().backward()
    probs = mirror_step(log_old, values - baselines.unsqueeze(-1), delta.detach()).exp()
    for i in range(A):
        variance = 0.0
        for n in range(N):
            p, a = probs[n, i].tolist(), (values[n, i] - baselines[n, i]).tolist()
            mean = sum(x * y for x, y in zip(p, a, strict=True))
            variance += sum(x * (y - mean) ** 2 for x, y in zip(p, a, strict=True))
        assert delta.grad[i].item() == pytest.approx(variance, rel=1e-10)
    assert torch.autograd.gradcheck(lambda d: mirror_values(log_old, values, baselines, d), delta)


def test_samples_with_weights_estimate_the_mirror_step():
    # pi_old and the policy that is sampled differ; samples weighted by their ratio stand for
    # pi_old.
    old, behaviour = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    values = torch.tensor([0.0, 1.0, 2.0])
    delta = torch.tensor([1.5])
    exact = mirror_values(
        old.view(1, 1, -1), values.view(1, 1, -1), torch.zeros(1, 1), delta
    ).item()
    samples = torch.multinomial(behaviour.exp(), 200_000, replacement=True, generator=generator())
    weights = (old - behaviour)[samples].view(1, 1, -1)
    estimate = mirror_values(
        weights, values[samples].view(1, 1, -1), torch.zeros(1, 1), delta
    ).item()
    assert estimate == pytest.approx(exact, abs=0.01)


# -- coordination coefficients ---------------------------------------------------------------------


def test_counterfactual_effects_by_loops():
    values = torch.randn(N, A, A, U, generator=generator(6), dtype=torch.float64)
    taken = torch.randn(N, A, generator=generator(7), dtype=torch.float64)
    probs = policies(8).exp()
    found = counterfactual_effects(values, probs, taken)
    for n in range(N):
        for i in range(A):
            for j in range(A):
                averaged = sum(probs[n, j, u].item() * values[n, i, j, u].item() for u in range(U))
                assert found[n, i, j].item() == pytest.approx(
                    abs(averaged - taken[n, i].item()), rel=1e-12
                )


def test_coordination_by_loops():
    effects = 3 * torch.rand(N, A + 2, A + 2, generator=generator(9), dtype=torch.float64)
    found = coordination(effects, 0.2)
    dropped = 0
    for n in range(N):
        for i in range(A + 2):
            others = [j for j in range(A + 2) if j != i]
            total = sum(math.exp(effects[n, i, j].item()) for j in others)
            for j in range(A + 2):
                share = math.exp(effects[n, i, j].item()) / total if j != i else 0.0
                dropped += 0 < share < 0.2
                expected = share if share >= 0.2 else 0.0
                assert found[n, i, j].item() == pytest.approx(expected, rel=1e-12)
    assert dropped > 0


def test_coordination_at_the_threshold_is_kept():
    even = coordination(torch.zeros(1, 5, 5, dtype=torch.float64), 0.25)
    assert torch.equal(even[0], fixed_coordination(5, even))
    assert coordination(torch.zeros(1, 6, 6), 0.25).sum() == 0


def test_with_two_agents_all_coordination_is_with_the_other():
    assert torch.equal(
        coordination(torch.rand(2, 2, 2), 0.2)[0], torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    )


def test_fixed_coordination():
    c = fixed_coordination(4, torch.zeros(1))
    assert torch.equal(c.diagonal(), torch.zeros(4))
    assert torch.allclose(c.sum(-1), torch.ones(4))
    assert c[0, 1] == c[2, 3] == pytest.approx(1 / 3)


def test_random_coordination():
    torch.manual_seed(0)
    c = random_coordination(2000, 4, torch.zeros(1))
    assert torch.allclose(c.sum(-1), torch.ones(2000, 4))
    assert torch.equal(c.diagonal(dim1=1, dim2=2), torch.zeros(2000, 4))
    others = c[:, 0, 1:]
    # Scores in (0, 1): no share is more than e times another one of its row.
    assert (others.amax(-1) / others.amin(-1)).max() < math.e
    assert others.mean(0) == pytest.approx(torch.full((3,), 1 / 3), abs=0.01)
    assert others.std(0).min() > 0.05


# -- divergences -----------------------------------------------------------------------------------


def test_local_divergences_by_loops():
    c = coordination(torch.rand(N, A, A, generator=generator(10)), 0.2)
    kl = 12 * torch.rand(N, A, A, generator=generator(11))
    found = local_divergences(c, kl, 0.5, 6.0)
    clipped = 0
    for n in range(N):
        for i in range(A):
            total = sum(c[n, i, j].item() * kl[n, i, j].item() for j in range(A) if j != i)
            clipped += not 0.5 <= total <= 6.0
            assert found[n, i].item() == pytest.approx(min(max(total, 0.5), 6.0), rel=1e-5)
    assert clipped > 0


def test_weighted_sum_divergences_by_loops():
    c, kl = torch.rand(N, A, A, generator=generator(12)), torch.rand(N, A, generator=generator(13))
    found = weighted_sum_divergences(c, kl, 0.0, 0.25)
    clipped = 0
    for n in range(N):
        for i in range(A):
            total = sum(c[n, i, j].item() * kl[n, j].item() for j in range(A)) / A
            clipped += total > 0.25
            assert found[n, i].item() == pytest.approx(min(total, 0.25), rel=1e-5)
    assert 0 < clipped < N * A
