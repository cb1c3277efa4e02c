"""The value normaliser against averages written out."""

import io

import pytest
import torch

from utils.value_norm import ValueNorm


def test_identity_before_any_update():
    norm = ValueNorm(1)
    x = torch.tensor([[3.0], [-2.0]])
    assert torch.equal(norm.normalize(x), x)
    assert torch.equal(norm.denormalize(x), x)


def test_first_batch_is_normalised_exactly():
    """Debiasing: after one update the moments are the batch's, though beta is almost 1."""
    norm = ValueNorm(1)
    x = torch.tensor([[10.0], [14.0], [18.0]])
    norm.update(x)
    mean, var = norm.running_mean_var()
    torch.testing.assert_close(mean, torch.tensor([14.0], dtype=torch.float64))
    torch.testing.assert_close(var, torch.tensor([32 / 3], dtype=torch.float64))
    torch.testing.assert_close(
        norm.normalize(x).flatten(), torch.tensor([-4.0, 0.0, 4.0]) / (32 / 3) ** 0.5
    )


@pytest.mark.parametrize("per_element", [False, True])
def test_weights_of_older_batches_decay(per_element):
    beta = 0.9
    norm = ValueNorm(2, norm_axes=2, beta=beta, per_element_update=per_element)
    gen = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, 2, generator=gen) * 4 + 7 for n in (2, 5, 1)]
    mean, square, total = [0.0, 0.0], [0.0, 0.0], 0.0
    for x in batches:
        norm.update(x)
        rows = x.reshape(-1, 2).tolist()
        keep = beta ** len(rows) if per_element else beta
        for j in range(2):
            mean[j] = keep * mean[j] + (1 - keep) * sum(row[j] for row in rows) / len(rows)
            square[j] = keep * square[j] + (1 - keep) * sum(row[j] ** 2 for row in rows) / len(rows)
        total = keep * total + 1 - keep
    got_mean, got_var = norm.running_mean_var()
    for j in range(2):
        m = mean[j] / total
        assert got_mean[j].item() == pytest.approx(m, rel=1e-6)
        assert got_var[j].item() == pytest.approx(square[j] / total - m * m, rel=1e-5)


def test_small_spread_far_from_zero():
    """Mean 100,000, standard deviation 1: float32 averages of the squares would lose the
    variance.
    """
    norm = ValueNorm(1)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 100_000
    norm.update(x[:2000])
    norm.update(x[2000:])
    normal = norm.normalize(x)
    assert normal.dtype == torch.float32
    assert normal.std().item() == pytest.approx(1.0, abs=0.01)
    assert normal.mean().item() == pytest.approx(0.0, abs=0.01)


def test_denormalize_is_the_inverse_and_variance_has_a_floor():
    norm = ValueNorm((2,))
    norm.update(torch.tensor([[5.0, 1.0], [5.0, 3.0]]))
    torch.testing.assert_close(
        norm.running_mean_var()[1], torch.tensor([0.01, 1.0], dtype=torch.float64)
    )
    x = torch.randn(3, 4, 2)
    torch.testing.assert_close(norm.denormalize(norm.normalize(x)), x)
    assert norm.normalize(torch.tensor([[6.0, 1.0]])).tolist() == [
        [pytest.approx(10.0), pytest.approx(-1.0)]
    ]


def test_gradient_goes_through_values_and_not_into_the_statistics():
    norm = ValueNorm(1)
    norm.update(torch.tensor([[0.0], [4.0]], requires_grad=True))
    assert not list(norm.parameters())
    x = torch.tensor([[1.0]], requires_grad=True)
    norm.normalize(x).sum().backward()
    assert x.grad.item() == pytest.approx(0.5)


def test_empty_batch_changes_nothing():
    norm = ValueNorm(1)
    norm.update(torch.tensor([[2.0], [4.0]]))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    norm.update(torch.zeros(0, 1))
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_survives_a_checkpoint():
    norm, other = ValueNorm(1), ValueNorm(1)
    norm.update(torch.tensor([[2.0], [4.0]]))
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for n in (norm, other):
        n.update(torch.tensor([[7.0]]))
    x = torch.randn(5, 1)
    assert torch.equal(norm.normalize(x), other.normalize(x))
