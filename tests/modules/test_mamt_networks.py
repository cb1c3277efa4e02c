"""TRD-Net, the models of other agents and the local trust regions against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from learners.mamt.mirror_descent import coordination
from modules.mamt import LocalRegions, OpponentPolicies, Pairs, TRDNet

N = 6
OBS_SIZES, ACTION_SIZES = (4, 7, 5), (3, 5, 2)
A, O, U = 3, 7, 5
H = 8


def padded(sizes, width, seed):
    x = torch.randn(N, A, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * (torch.arange(width) < torch.tensor(sizes)[:, None])


def one_hot_actions(seed):
    rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (N,), generator=rng) for size in ACTION_SIZES]
    return F.one_hot(torch.stack(columns, dim=1), U).double()


def coefficients(seed=2, sigma=0.4):
    """Random ones; agent 1 has no edges in the first observation."""
    effects = 3 * torch.rand(
        N, A, A, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    c = coordination(effects, sigma)
    c[0, 1] = 0.0
    return c


def normalised(rows):
    """Batch normalisation without weights: rows is a list of vectors."""
    x = torch.stack(rows)
    return list((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def dense(layer, x):
    return layer.weight @ x + layer.bias


def stacked(layer, group, x):
    return layer.weight[group] @ x + layer.bias[group]


def trd_net_by_loops(net, obs, actions, sizes, c):
    """KL_i [N, A], one observation, one agent and one pair at a time; agents read their own entries
    only.
    """
    actions_of = [normalised([actions[n, i] for n in range(N)]) for i in range(A)]
    out = torch.zeros(N, A, dtype=torch.float64)
    for n in range(N):
        nodes = []
        for i in range(A):
            seen = leaky(
                net.obs.weight[i, :, : OBS_SIZES[i]] @ obs[n, i, : OBS_SIZES[i]] + net.obs.bias[i]
            )
            own = ACTION_SIZES[i]
            done = leaky(
                net.action.weight[i, :, :own] @ actions_of[i][n][:own] + net.action.bias[i]
            )
            region = leaky(dense(net.region, sizes[i].view(1)))
            nodes.append(leaky(dense(net.merge, torch.cat([seen, done, region]))))
        for layer in net.convolutions:
            moved = []
            for i in range(A):
                total = sum(c[n, i, j].item() for j in range(A))
                message = nodes[i].clone()
                for j in range(A):
                    if c[n, i, j] > 0:
                        message = message + c[n, i, j] / total * nodes[j]
                moved.append(leaky(dense(layer, message)))
            nodes = moved
        for i in range(A):
            for j in range(A):
                if j != i:
                    hidden = leaky(dense(net.pair, torch.cat([nodes[i], nodes[j]])))
                    out[n, i] += c[n, i, j] * math.log1p(
                        math.exp(dense(net.divergence, hidden).item())
                    )
    return out


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TRDNet(OBS_SIZES, ACTION_SIZES, U).double()


def test_trd_net_by_loops(net):
    obs, actions, c = padded(OBS_SIZES, O, 0), one_hot_actions(1), coefficients()
    sizes = torch.tensor([0.05, 2.0, 7.0], dtype=torch.float64)
    assert set((c > 0).sum(-1).flatten().tolist()) == {0, 1, 2}
    with torch.no_grad():
        found, expected = net(obs, actions, sizes, c), trd_net_by_loops(net, obs, actions, sizes, c)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert (found[c.sum(-1) == 0] == 0).all()
    assert (found >= 0).all()
    assert (found > 0).any()


def test_trd_net_has_the_layers_of_the_paper(net):
    sizes = {name: tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")}
    assert sizes == {
        "obs.weight": (3, 128, 7),
        "action.weight": (3, 32, 5),
        "region.weight": (32, 1),
        "merge.weight": (128, 192),
        "convolutions.0.weight": (128, 128),
        "convolutions.1.weight": (128, 128),
        "pair.weight": (128, 256),
        "divergence.weight": (1, 128),
    }


def test_trd_net_is_differentiable_in_the_sizes(net):
    obs, actions, c = padded(OBS_SIZES, O, 0), one_hot_actions(1), coefficients(sigma=0.0)
    sizes = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: net(obs, actions, s, c).sum(), sizes)
    (gradient,) = torch.autograd.grad(net(obs, actions, sizes, c).sum(), sizes)
    assert (gradient != 0).all()


def test_padding_is_inert(net):
    obs, actions, c = padded(OBS_SIZES, O, 0), one_hot_actions(1), coefficients(sigma=0.0)
    sizes = torch.ones(A, dtype=torch.float64)
    net(obs, actions, sizes, c).sum().backward()
    for i in range(A):
        assert (net.obs.weight.grad[i, :, OBS_SIZES[i] :] == 0).all()
        assert (net.action.weight.grad[i, :, ACTION_SIZES[i] :] == 0).all()


def test_pairs():
    pairs = Pairs(3)
    assert pairs.first.tolist() == [0, 0, 1, 1, 2, 2]
    assert pairs.second.tolist() == [1, 2, 0, 2, 0, 1]
    x = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(pairs.of_second(x)[3], x[:, 2])
    matrix = pairs.matrix(torch.arange(1.0, 13.0).view(6, 2))
    assert matrix[1].tolist() == [[0.0, 2.0, 4.0], [6.0, 0.0, 8.0], [10.0, 12.0, 0.0]]


def test_opponent_models_by_loops():
    torch.manual_seed(0)
    pairs = Pairs(A)
    models = OpponentPolicies(pairs, OBS_SIZES, U, H).double()
    obs = padded(OBS_SIZES, O, 3)
    with torch.no_grad():
        found = models(obs)
    assert found.shape == (A * (A - 1), N, U)
    row = 0
    for i in range(A):
        inputs = normalised([obs[n, i] for n in range(N)])
        for j in range(A):
            if j == i:
                continue
            for n in range(N):
                own = OBS_SIZES[i]
                x = leaky(models.fc1.weight[row, :, :own] @ inputs[n][:own] + models.fc1.bias[row])
                x = stacked(models.fc3, row, leaky(stacked(models.fc2, row, x)))
                assert torch.allclose(found[row, n], x, rtol=1e-9)
            row += 1


def test_local_regions():
    regions = LocalRegions(4, 10.0)
    assert torch.allclose(regions.sizes(), torch.full((4,), 2.5))
    assert regions.excess(torch.tensor([2.0, 3.0])) == 0
    assert regions.excess(torch.tensor([8.0, 3.0])) == 1
    with torch.no_grad():
        regions.log_sizes.copy_(torch.tensor([-20.0, 20.0, 0.0, math.log(0.02)]))
    regions.clip_()
    assert regions.sizes().tolist() == pytest.approx([0.01, 100.0, 1.0, 0.02])
