"""The policies' distributions against torch's own, hand-computed numbers and counts."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from components.distributions import MaskedCategorical, SquashedGaussian, policy_distribution

AVAIL = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]])


def logits_of(seed=0):
    torch.manual_seed(seed)
    return torch.randn(3, 4) * 2


def reference(logits):
    """One distribution per row, over the available actions alone."""
    return [Categorical(logits=row[a == 1]) for row, a in zip(logits, AVAIL, strict=True)]


def test_which_distribution():
    assert type(policy_distribution(logits_of(), AVAIL, False)) is MaskedCategorical
    assert type(policy_distribution(torch.zeros(3, 8), AVAIL, True)) is SquashedGaussian


def test_discrete_probabilities_entropy_and_divergence():
    logits, other = logits_of(), logits_of(1)
    policy, second = MaskedCategorical(logits, AVAIL), MaskedCategorical(other, AVAIL)
    assert not policy.probs[AVAIL == 0].any()
    for i, (p, q) in enumerate(zip(reference(logits), reference(other), strict=True)):
        assert torch.allclose(policy.probs[i][AVAIL[i] == 1], p.probs, atol=1e-6)
        assert float(policy.entropy()[i]) == pytest.approx(float(p.entropy()), abs=1e-6)
        assert float(policy.kl(second)[i]) == pytest.approx(float(kl_divergence(p, q)), abs=1e-5)
        for k, u in enumerate(AVAIL[i].nonzero()[:, 0].tolist()):
            assert float(policy.log_prob(torch.full((3,), u))[i]) == pytest.approx(
                float(p.logits[k]), abs=1e-5
            )
    several = torch.tensor([[0, 3], [0, 2], [2, 2]])
    expected = torch.stack([policy.log_prob(several[:, 0]), policy.log_prob(several[:, 1])], 1)
    assert torch.equal(policy.log_prob(several), expected)
    assert policy.mode().tolist() == logits.masked_fill(AVAIL == 0, -9e9).argmax(-1).tolist()


def test_discrete_samples():
    policy = MaskedCategorical(logits_of(), AVAIL)
    torch.manual_seed(0)
    drawn = policy.sample(20000)
    assert drawn.shape == (3, 20000)
    for i in range(3):
        shares = torch.bincount(drawn[i], minlength=4) / 20000
        assert torch.allclose(shares, policy.probs[i], atol=0.015)
        assert not shares[AVAIL[i] == 0].any()
    assert policy.sample().shape == (3,)
    batch = MaskedCategorical(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
    assert batch.sample().shape == (2, 3)
    assert batch.sample(5).shape == (2, 3, 5)


def test_discrete_gradients_are_finite():
    """Also of unavailable actions, of rows without any available action, and of very unlikely
    ones.
    """
    logits = torch.tensor(
        [[0.0, 1.0, 2.0], [300.0, -300.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True
    )
    avail = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    policy = MaskedCategorical(logits, avail)
    other = MaskedCategorical(torch.zeros(3, 3), avail)
    assert torch.allclose(policy.probs[2], torch.full((3,), 1 / 3))
    total = policy.entropy().sum() + policy.kl(other).sum() + other.kl(policy).sum()
    total = total + policy.log_prob(torch.tensor([0, 1, 2])).sum() + policy.rsample().sum()
    (grad,) = torch.autograd.grad(total, logits)
    assert torch.isfinite(grad).all()
    assert grad[0, 2] == 0
    assert grad[0, 0] != 0


def test_straight_through_samples():
    """One-hot forwards, the soft sample's gradient backwards."""
    logits = logits_of().requires_grad_()
    torch.manual_seed(3)
    hard = MaskedCategorical(logits, AVAIL).rsample(2.0)
    assert torch.allclose(hard.detach().amax(-1), torch.ones(3))
    assert torch.allclose(hard.detach().sum(-1), torch.ones(3))
    assert not hard.detach()[AVAIL == 0].any()
    weights = torch.randn(3, 4)
    torch.manual_seed(3)
    gumbel = -torch.empty(3, 4).exponential_().log()
    log_probs = torch.log_softmax(logits.masked_fill(AVAIL == 0, -1e30), -1)
    soft = torch.softmax((log_probs + gumbel) / 2.0, -1)
    mine = torch.autograd.grad((hard * weights).sum(), logits)[0]
    theirs = torch.autograd.grad((soft * weights).sum(), logits)[0]
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert theirs.abs().max() > 0.01


def gaussian(seed=0, rows=3, size=2):
    torch.manual_seed(seed)
    return torch.randn(rows, 2 * size, dtype=torch.float64)


def mean_of(outputs):
    """Before the tanh: bound to -5 to 5."""
    return 5 * (outputs.chunk(2, -1)[0] / 5).tanh()


def squashed(outputs):
    return TransformedDistribution(
        Normal(mean_of(outputs), outputs.chunk(2, -1)[1].exp()), [TanhTransform()]
    )


def test_continuous_density():
    outputs = gaussian()
    policy = SquashedGaussian(outputs, torch.ones(3, 2))
    actions = torch.tensor([[0.1, -0.7], [0.9, 0.0], [-0.2, 0.3]], dtype=torch.float64)
    assert torch.allclose(policy.log_prob(actions), squashed(outputs).log_prob(actions).sum(-1))
    many = torch.stack([actions, actions * 0.5], 1)
    expected = torch.stack([policy.log_prob(actions), policy.log_prob(actions * 0.5)], 1)
    assert torch.allclose(policy.log_prob(many), expected)
    # By hand: a = tanh(u), u = 0.5, N(0, 1): log phi(0.5) - log(1 - tanh(0.5)^2).
    unit = SquashedGaussian(torch.zeros(1, 2), torch.ones(1, 1))
    by_hand = -0.125 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(0.5) ** 2)
    assert float(unit.log_prob(torch.tensor([[math.tanh(0.5)]]))) == pytest.approx(
        by_hand, rel=1e-5
    )


def test_continuous_density_integrates_to_one():
    policy = SquashedGaussian(
        torch.tensor([[0.4, -0.3]]).double().expand(20001, 2), torch.ones(20001, 1)
    )
    grid = torch.linspace(-1 + 1e-9, 1 - 1e-9, 20001).double().unsqueeze(1)
    assert float(torch.trapezoid(policy.log_prob(grid).exp(), grid[:, 0])) == pytest.approx(
        1.0, abs=1e-3
    )


def test_continuous_divergence_is_that_of_the_gaussians():
    """The closed form against the mean over many samples."""
    one, two = gaussian(0, 1), gaussian(1, 1)
    p, q = SquashedGaussian(one, torch.ones(1, 2)), SquashedGaussian(two, torch.ones(1, 2))
    torch.manual_seed(0)
    before = squashed(one).base_dist.sample((200000,))
    ratio = (
        squashed(one).base_dist.log_prob(before) - squashed(two).base_dist.log_prob(before)
    ).sum(-1)
    assert float(p.kl(q)) == pytest.approx(float(ratio.mean()), rel=0.02)
    assert float(p.kl(p)) == pytest.approx(0.0, abs=1e-12)


def test_continuous_samples_mode_and_entropy():
    outputs = gaussian()
    policy = SquashedGaussian(outputs, torch.ones(3, 2))
    torch.manual_seed(0)
    drawn = policy.sample(50000)
    assert drawn.shape == (3, 50000, 2)
    assert drawn.abs().max() < 1
    before = drawn.atanh()
    assert torch.allclose(before.mean(1), mean_of(outputs), atol=0.05)
    assert torch.allclose(before.std(1), outputs[:, 2:].exp(), rtol=0.02)
    assert torch.allclose(policy.mode(), mean_of(outputs).tanh())
    assert torch.allclose(policy.entropy(drawn), -policy.log_prob(drawn).mean(1))
    assert policy.sample().shape == (3, 2)
    torch.manual_seed(1)
    one = policy.entropy()
    torch.manual_seed(1)
    assert torch.allclose(one, -policy.log_prob(policy.sample()))


def test_continuous_reparametrisation():
    outputs = gaussian().requires_grad_()
    torch.manual_seed(2)
    drawn = SquashedGaussian(outputs, torch.ones(3, 2)).rsample()
    noise = (drawn.detach().atanh() - mean_of(outputs).detach()) / outputs[:, 2:].detach().exp()
    expected = (mean_of(outputs) + outputs[:, 2:].exp() * noise).tanh()
    mine, theirs = (torch.autograd.grad(x.pow(2).sum(), outputs)[0] for x in (drawn, expected))
    assert torch.allclose(mine, theirs)
    assert not SquashedGaussian(outputs, torch.ones(3, 2)).sample().requires_grad


@pytest.mark.parametrize("mean", [0.0, 3.0, 20.0, -1000.0])
def test_a_narrow_policy_knows_its_own_actions(mean):
    """In float32 too, and however far out the network puts the mean; nothing is gained by a mean
    further out.
    """
    outputs = torch.tensor([[mean, -5.0]], requires_grad=True)
    policy = SquashedGaussian(outputs, torch.ones(1, 1))
    centre = mean_of(outputs).item()
    # A narrow one is a Gaussian of deviation e^-5 (1 - tanh^2) at its centre.
    exact = 0.5 * math.log(2 * math.pi * math.e) - 5.0 + 2 * math.log(1 / math.cosh(centre))
    torch.manual_seed(0)
    drawn = policy.sample(4000)
    assert policy.entropy(drawn).item() == pytest.approx(exact, abs=0.1)
    entropy = torch.stack([policy.entropy() for _ in range(1000)]).mean()
    assert entropy.item() == pytest.approx(exact, abs=0.1)
    (grad,) = torch.autograd.grad(entropy, outputs)
    assert mean * float(grad[0, 0]) <= 0.0
    assert float(grad[0, 1]) == pytest.approx(1.0, abs=0.01)


def test_continuous_padding_counts_for_nothing():
    outputs = gaussian(size=3).float().requires_grad_()
    avail = torch.tensor([[1, 1, 0]]).expand(3, -1)
    policy = SquashedGaussian(outputs, avail)
    narrow = SquashedGaussian(torch.cat([outputs[:, :2], outputs[:, 3:5]], 1), torch.ones(3, 2))
    actions = torch.rand(3, 3) * 2 - 1
    assert torch.allclose(policy.log_prob(actions), narrow.log_prob(actions[:, :2]))
    assert not policy.sample()[:, 2].any()
    assert not policy.sample(4)[..., 2].any()
    assert not policy.mode()[:, 2].any()
    other = SquashedGaussian(outputs.flip(0), avail)
    total = policy.kl(other).sum() + policy.log_prob(actions).sum()
    (grad,) = torch.autograd.grad(total, outputs)
    assert not grad[:, [2, 5]].any()
    assert grad[:, [0, 1, 3, 4]].all()


def test_continuous_extremes_are_finite():
    """Actions on the bounds, huge means, and standard deviations far out of their range."""
    outputs = torch.tensor([[50.0, -9.0, 30.0, -40.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    policy = SquashedGaussian(outputs, torch.ones(2, 2))
    assert torch.allclose(policy.normal.scale.log(), torch.tensor([[2.0, -5.0], [0.0, 0.0]]))
    total = policy.log_prob(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).sum() + policy.entropy().sum()
    assert torch.isfinite(total)
    assert torch.isfinite(torch.autograd.grad(total, outputs)[0]).all()
