"""Returns and advantages against recursions over single episodes, and PyMARL2's against its own
loops.
"""

import io

import numpy as np
import pytest
import torch

from utils.rl_utils import (
    RunningMeanStd,
    build_gae_targets,
    build_q_lambda_targets,
    build_td_lambda_targets,
    discounted_sums,
)

GAMMA = 0.99


def ragged(lengths, ends, n_agents=1, seed=0, values=1):
    """A batch of episodes of `lengths` steps; `ends`: "terminated" or "truncated". What is behind
    them is NaN.

    Returns rewards, terminated, mask [B, T, 1] and `values` tensors [B, T + 1, n_agents].
    """
    gen = torch.Generator().manual_seed(seed)
    b, t = len(lengths), max(lengths)
    step = torch.arange(t).view(1, t, 1)
    length = torch.tensor(lengths).view(b, 1, 1)
    mask = (step < length).float()
    terminated = (
        (step == length - 1) & torch.tensor([e == "terminated" for e in ends]).view(b, 1, 1)
    ).float()
    rewards = torch.randn(b, t, 1, generator=gen).where(mask > 0, torch.nan)
    out = []
    for _ in range(values):
        v = torch.randn(b, t + 1, n_agents, generator=gen) * 3 + 2
        out.append(v.where(torch.arange(t + 1).view(1, t + 1, 1) <= length, torch.nan))
    return rewards, terminated, mask, *out


def per_episode(rewards, terminated, mask, values, recursion):
    """Applies `recursion(rewards, ends_terminally, values) -> list` to every episode and agent; 0
    elsewhere.
    """
    b, t, _ = rewards.shape
    n_agents = values[0].shape[-1]
    out = torch.zeros(b, t, n_agents, dtype=torch.float64)
    for i in range(b):
        n = int(mask[i].sum())
        for a in range(n_agents):
            r = [float(x) for x in rewards[i, :n, 0]]
            vs = [[float(x) for x in v[i, : n + 1, a]] for v in values]
            result = recursion(r, bool(terminated[i, n - 1, 0]), *vs)
            out[i, :n, a] = torch.tensor(result, dtype=torch.float64)
    return out


def td_lambda_recursion(gamma, lam):
    def recursion(r, ends_terminally, v):
        n = len(r)
        v = [*v[:n], 0.0 if ends_terminally else v[n]]
        g = [0.0] * n + [v[n]]
        for t in reversed(range(n)):
            g[t] = r[t] + gamma * ((1 - lam) * v[t + 1] + lam * g[t + 1])
        return g[:n]

    return recursion


def q_lambda_recursion(gamma, lam):
    """Harutyunyan et al.: Q_t plus the forward sum of (gamma lambda)^k delta_{t+k}."""

    def recursion(r, ends_terminally, e, q):
        n = len(r)
        e = [*e[:n], 0.0 if ends_terminally else e[n]]
        delta = [r[t] + gamma * e[t + 1] - q[t] for t in range(n)]
        return [
            q[t] + sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)
        ]

    return recursion


def gae_recursion(gamma, lam):
    def recursion(r, ends_terminally, v):
        n = len(r)
        v = [*v[:n], 0.0 if ends_terminally else v[n]]
        return [
            sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, n))
            for t in range(n)
        ]

    return recursion


RAGGED = (
    (
        [5, 3, 3, 1, 1, 5, 4],
        [
            "terminated",
            "terminated",
            "truncated",
            "terminated",
            "truncated",
            "truncated",
            "terminated",
        ],
    ),
    ([1], ["truncated"]),
    ([4, 6], ["truncated", "truncated"]),
)


# -- TD(lambda) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_steps", [3, 4, 9])
def test_truncated_episode_by_hand(batch_steps):
    """Reward 1, V = 5, three steps, cut by the time limit: 6.85, 6.51, 5.95, however long the batch
    is.
    """
    mask = torch.zeros(1, batch_steps, 1)
    mask[:, :3] = 1
    returns = build_td_lambda_targets(
        torch.ones(1, batch_steps, 1), torch.zeros(1, batch_steps, 1), mask,
        torch.full((1, batch_steps + 1, 1), 5.0),
        1, 0.99, 0.6,
    )  # fmt: skip
    expected = [6.8495, 6.5143, 5.95] + [0.0] * (batch_steps - 3)
    torch.testing.assert_close(returns.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_steps", [2, 7])
def test_terminated_episode_by_hand(batch_steps):
    """Rewards 1 and 2, V = 4 everywhere, gamma 0.5, lambda 0.5: G_1 = 2, G_0 = 1 + 0.5 (0.5 * 4 +
    0.5 * 2) = 2.5.
    """
    rewards, terminated, mask = (torch.zeros(1, batch_steps, 1) for _ in range(3))
    rewards[0, :2, 0] = torch.tensor([1.0, 2.0])
    terminated[0, 1], mask[0, :2] = 1, 1
    returns = build_td_lambda_targets(
        rewards, terminated, mask, torch.full((1, batch_steps + 1, 1), 4.0), 1, 0.5, 0.5
    )
    assert returns[0, :2, 0].tolist() == [2.5, 2.0]
    assert (returns[0, 2:] == 0).all()


@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize(("lengths", "ends"), RAGGED)
@pytest.mark.parametrize("n_agents", [1, 3])
def test_td_lambda_equals_the_recursion(lengths, ends, lam, n_agents):
    rewards, terminated, mask, v = ragged(lengths, ends, n_agents)
    returns = build_td_lambda_targets(rewards, terminated, mask, v, n_agents, GAMMA, lam)
    expected = per_episode(rewards, terminated, mask, [v], td_lambda_recursion(GAMMA, lam))
    assert returns.dtype == torch.float32
    torch.testing.assert_close(returns.double(), expected, rtol=1e-6, atol=1e-6)


def test_individual_rewards_ends_and_masks():
    """Every agent with rewards, a last step and a length of its own is an episode of its own."""
    singles = [
        ragged([4, 2], ends, seed=s) for s, ends in enumerate([RAGGED[0][1][:2], ["truncated"] * 2])
    ]
    joint = [torch.cat(parts, dim=-1) for parts in zip(*singles, strict=True)]
    returns = build_td_lambda_targets(*joint, 2, GAMMA, 0.8)
    for a, single in enumerate(singles):
        torch.testing.assert_close(
            returns[..., a : a + 1], build_td_lambda_targets(*single, 1, GAMMA, 0.8)
        )


def test_a_return_does_not_cross_a_terminal_step_or_a_gap():
    """Two episodes in one row, and a mask with a hole: what is behind does not leak."""
    rewards, v = torch.arange(1.0, 6.0).view(1, 5, 1), torch.full((1, 6, 1), 10.0)
    terminated, mask = torch.zeros(1, 5, 1), torch.ones(1, 5, 1)
    terminated[0, 1] = 1
    returns = build_td_lambda_targets(rewards, terminated, mask, v, 1, 0.5, 1.0)
    # G_4 = 5 + 5; G_3 = 4 + G_4 / 2; G_2 = 3 + G_3 / 2; terminal: G_1 = 2; G_0 = 1 + 2 / 2
    assert returns.flatten().tolist() == [2.0, 2.0, 7.5, 9.0, 10.0]
    mask[0, 1] = 0
    terminated[0, 1] = 0
    returns = build_td_lambda_targets(rewards, terminated, mask, v, 1, 0.5, 1.0)
    assert returns.flatten().tolist() == [6.0, 0.0, 7.5, 9.0, 10.0]


@pytest.mark.parametrize("lam", [0.6, 0.99, 1.0])
def test_long_episodes_keep_float32s_digits(lam):
    rewards, terminated, mask, v = ragged([400, 400, 173], ["truncated", "terminated", "truncated"])
    returns = build_td_lambda_targets(rewards, terminated, mask, v * 100, 1, GAMMA, lam)
    expected = per_episode(rewards, terminated, mask, [v * 100], td_lambda_recursion(GAMMA, lam))
    torch.testing.assert_close(returns.double(), expected, rtol=1e-6, atol=1e-7)


def test_compact_integer_types():
    rewards, terminated, mask, v = ragged(*RAGGED[0])
    expected = build_td_lambda_targets(rewards, terminated, mask, v, 1, GAMMA, 0.6)
    for dtype in (torch.uint8, torch.bool, torch.int64):
        returns = build_td_lambda_targets(
            rewards, terminated.to(dtype), mask.to(dtype), v, 1, GAMMA, 0.6
        )
        assert torch.equal(returns, expected)
    half = rewards.half()
    assert torch.equal(
        build_td_lambda_targets(half, terminated, mask, v, 1, GAMMA, 0.6),
        build_td_lambda_targets(half.float(), terminated, mask, v, 1, GAMMA, 0.6),
    )


def test_nan_in_a_valid_step_is_not_hidden():
    rewards, terminated, mask, v = ragged([4, 2], ["terminated", "truncated"])
    v[0, 2] = torch.nan
    returns = build_td_lambda_targets(rewards, terminated, mask, v, 1, GAMMA, 0.6)
    assert returns[0, :2].isnan().all()
    assert returns[1].isfinite().all()


# -- Q(lambda) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("lengths", "ends"), RAGGED)
@pytest.mark.parametrize("last_column", [True, False])
def test_q_lambda_equals_the_definition(lengths, ends, lam, last_column):
    rewards, terminated, mask, e, q = ragged(lengths, ends, 2, values=2)
    returns = build_q_lambda_targets(
        rewards, terminated, mask, e, q if last_column else q[:, :-1], GAMMA, lam
    )
    expected = per_episode(rewards, terminated, mask, [e, q], q_lambda_recursion(GAMMA, lam))
    torch.testing.assert_close(returns.double(), expected, rtol=1e-6, atol=1e-6)


def test_q_lambda_by_hand():
    """gamma = lambda = 0.5, E = (4, 6, 8), Q = (3, 5, .), r = (1, 2), truncated after two steps.

    delta_1 = 2 + 4 - 5 = 1, delta_0 = 1 + 3 - 3 = 1: G_1 = 6, G_0 = 3 + 1 + 0.25 = 4.25.
    """
    rewards, e, q = (
        torch.tensor(x).view(1, -1, 1) for x in ([1.0, 2.0], [4.0, 6.0, 8.0], [3.0, 5.0])
    )
    returns = build_q_lambda_targets(
        rewards, torch.zeros(1, 2, 1), torch.ones(1, 2, 1), e, q, 0.5, 0.5
    )
    assert returns.flatten().tolist() == [4.25, 6.0]


def test_q_lambda_is_td_lambda_on_policy():
    """Where every action taken is the target policy's (E = Q), no correction is left."""
    rewards, terminated, mask, v = ragged(*RAGGED[0])
    torch.testing.assert_close(
        build_q_lambda_targets(rewards, terminated, mask, v, v, GAMMA, 0.6),
        build_td_lambda_targets(rewards, terminated, mask, v, 1, GAMMA, 0.6),
    )


def test_q_lambda_has_the_right_fixed_point():
    """A decision of two actions, then the end. Its targets of true values are these values,
    whatever the action.
    """
    e, q = torch.tensor([[[5.0], [0.0]]] * 2), torch.tensor([[[5.0], [0.0]], [[1.0], [0.0]]])
    rewards, ones = torch.tensor([[[5.0]], [[1.0]]]), torch.ones(2, 1, 1)
    assert build_q_lambda_targets(rewards, ones, ones, e, q, 0.9, 0.7).flatten().tolist() == [
        5.0,
        1.0,
    ]
    # PyMARL2's are off by E - Q for the action that is not greedy
    assert build_q_lambda_targets(
        rewards, ones, ones, e, q, 0.9, 0.7, pymarl=True
    ).flatten().tolist() == [5.0, 5.0]


# -- PyMARL2's numbers -----------------------------------------------------------------------------


def pymarl_loop(rewards, terminated, mask, v, gamma, lam):
    last = v.shape[1] - 1
    out = torch.zeros_like(v)
    out[:, last] = v[:, last] * (1 - terminated.sum(dim=1))
    for t in reversed(range(last)):
        one_step = rewards[:, t] + (1 - lam) * gamma * v[:, t + 1] * (1 - terminated[:, t])
        out[:, t] = lam * gamma * out[:, t + 1] + mask[:, t] * one_step
    return out[:, :last]


@pytest.mark.parametrize(("lengths", "ends"), RAGGED)
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_pymarls_td_and_q_lambda(lengths, ends, lam):
    data = [x.nan_to_num(0.7) for x in ragged(lengths, ends, 2, values=2)]
    rewards, terminated, mask, e, q = data
    returns = build_td_lambda_targets(rewards, terminated, mask, e, 2, GAMMA, lam, pymarl=True)
    torch.testing.assert_close(returns, pymarl_loop(rewards, terminated, mask, e, GAMMA, lam))
    corrected = rewards + e[:, :-1] - q[:, :-1]
    returns = build_q_lambda_targets(rewards, terminated, mask, e, q, GAMMA, lam, pymarl=True)
    torch.testing.assert_close(returns, pymarl_loop(corrected, terminated, mask, e, GAMMA, lam))


def test_pymarls_agree_where_every_episode_ends_in_the_last_column_or_terminates():
    data = [
        x.nan_to_num(0.0)
        for x in ragged([5, 3, 5, 1], ["truncated", "terminated", "terminated", "terminated"])
    ]
    torch.testing.assert_close(
        build_td_lambda_targets(*data, 1, GAMMA, 0.6) * data[2],
        build_td_lambda_targets(*data, 1, GAMMA, 0.6, pymarl=True) * data[2],
    )


def test_pymarls_truncated_episode_loses_its_bootstrap():
    data = [x.nan_to_num(0.0) for x in ragged([2, 6], ["truncated", "terminated"])]
    wrong = build_td_lambda_targets(*data, 1, GAMMA, 0.6, pymarl=True)[0, 1, 0]
    right = build_td_lambda_targets(*data, 1, GAMMA, 0.6)[0, 1, 0]
    v = data[3][0, 2, 0]
    torch.testing.assert_close(right - wrong, 0.6 * GAMMA * v)


# -- GAE -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize(("lengths", "ends"), RAGGED)
def test_gae_equals_the_definition(lengths, ends, lam):
    rewards, terminated, mask, v = ragged(lengths, ends, 3)
    advantages, returns = build_gae_targets(rewards, mask, v, GAMMA, lam, terminated=terminated)
    expected = per_episode(rewards, terminated, mask, [v], gae_recursion(GAMMA, lam))
    torch.testing.assert_close(advantages.double(), expected, rtol=1e-6, atol=1e-6)
    valid = (mask > 0).expand_as(returns)
    torch.testing.assert_close(
        returns[valid], (expected + v[:, :-1])[valid].float(), rtol=1e-6, atol=1e-6
    )
    assert (returns[~valid] == 0).all()


def test_gae_by_hand():
    """gamma = lambda = 0.5, r = (1, 1), V = (2, 2, 4): truncated, then terminated, then PyMARL2's
    call.
    """
    rewards, v = torch.ones(1, 3, 1, 1), torch.tensor([2.0, 2.0, 4.0, 9.0]).view(1, 4, 1, 1)
    mask = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    end = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    # delta = (1 + 1 - 2, 1 + 2 - 2)
    advantages, returns = build_gae_targets(
        rewards, mask, v, 0.5, 0.5, terminated=torch.zeros_like(end)
    )
    assert advantages.flatten().tolist() == [0.25, 1.0, 0.0]
    assert returns.flatten().tolist() == [2.25, 3.0, 0.0]
    # delta = (0, 1 - 2)
    advantages, _ = build_gae_targets(rewards, mask, v, 0.5, 0.5, terminated=end)
    assert advantages.flatten().tolist() == [-0.25, -1.0, 0.0]
    # mask_t is a factor on what follows: A_2 = 1 - 4, A_1 = 1 + 2 - 2 + A_2 / 4, A_0 = 0 + A_1 / 4
    advantages, returns = build_gae_targets(rewards, mask, v, 0.5, 0.5)
    assert advantages.shape == (1, 3, 1, 1)
    assert advantages.flatten().tolist() == [0.0625, 0.25, -3.0]
    assert returns.flatten().tolist() == [2.0625, 2.25, 1.0]


def test_pymarls_gae_call():
    gen = torch.Generator().manual_seed(3)
    rewards, v = torch.randn(4, 9, 2, 1, generator=gen), torch.randn(4, 10, 2, 1, generator=gen)
    masks = (torch.rand(4, 9, 2, 1, generator=gen) < 0.8).float()
    advantages, returns = build_gae_targets(rewards, masks, v, GAMMA, 0.95)
    following = torch.zeros(4, 2, 1)
    for t in reversed(range(9)):
        delta = rewards[:, t] + GAMMA * v[:, t + 1] * masks[:, t] - v[:, t]
        following = delta + GAMMA * 0.95 * masks[:, t] * following
        torch.testing.assert_close(advantages[:, t], following)
        torch.testing.assert_close(returns[:, t], following + v[:, t])


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pymarl", [False, True])
def test_no_gradient(pymarl):
    rewards, terminated, mask, e, q = (
        x.nan_to_num(0.0) for x in ragged([3, 2], ["terminated"] * 2, values=2)
    )
    e.requires_grad_()
    q.requires_grad_()
    assert not build_td_lambda_targets(
        rewards, terminated, mask, e, 1, GAMMA, 0.6, pymarl=pymarl
    ).requires_grad
    assert not build_q_lambda_targets(
        rewards, terminated, mask, e, q, GAMMA, 0.6, pymarl=pymarl
    ).requires_grad
    assert not any(
        x.requires_grad
        for x in build_gae_targets(rewards, mask, e, GAMMA, 0.6, terminated=terminated)
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 64, 65])
def test_discounted_sums(steps):
    gen = torch.Generator().manual_seed(steps)
    x = torch.randn(2, steps, 3, generator=gen, dtype=torch.float64)
    decay = torch.rand(2, steps, 1, generator=gen, dtype=torch.float64)
    original = x.clone()
    y = discounted_sums(x, decay)
    following = torch.zeros(2, 3, dtype=torch.float64)
    for t in reversed(range(steps)):
        following = x[:, t] + (decay[:, t] * following if t < steps - 1 else 0)
        torch.testing.assert_close(y[:, t], following)
    assert torch.equal(x, original)


# -- running moments -------------------------------------------------------------------------------


@pytest.mark.parametrize("as_tensor", [False, True])
def test_running_mean_std_is_that_of_all_samples(as_tensor):
    rng = np.random.default_rng(0)
    samples = rng.normal(1000.0, 0.5, size=(1000, 3)).astype(np.float32)
    stats = RunningMeanStd(epsilon=1e-12, shape=(3,))
    for part in np.split(samples, [1, 1, 10, 500]):
        stats.update(torch.from_numpy(part) if as_tensor else part)
    exact = samples.astype(np.float64)
    np.testing.assert_allclose(stats.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, exact.var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats.std, exact.std(axis=0), rtol=1e-6)


def test_running_mean_std_of_scalars_starts_at_zero_and_one():
    stats = RunningMeanStd(epsilon=1.0)
    assert (stats.mean, stats.var, stats.count) == (0.0, 1.0, 1.0)
    stats.update(
        [3.0]
    )  # one sample at 0 with variance 1, one at 3: mean 1.5, var = (1 + 0) / 2 + 1.5^2
    assert (stats.mean, stats.var, stats.count) == (1.5, 2.75, 2.0)


def test_running_mean_std_survives_a_checkpoint():
    stats, other = RunningMeanStd(shape=(2,)), RunningMeanStd(shape=(2,))
    stats.update(np.array([[1.0, 2.0], [3.0, 5.0]]))
    file = io.BytesIO()
    torch.save(stats.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for s in (stats, other):
        s.update(np.array([[7.0, 8.0]]))
    assert other.count == stats.count
    np.testing.assert_array_equal(other.mean, stats.mean)
    np.testing.assert_array_equal(other.var, stats.var)
