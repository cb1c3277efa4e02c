"""Returns and advantages of whole batches, under PyMARL2's names.

All of them are one recursion, backwards in time, computed without a loop over the steps:
`y_t = x_t + decay_t * y_{t+1}` with x the one-step errors.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def discounted_sums(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t y_{t+1}, y = 0 after the last step, for all t at once.

    Every round adds what the next d steps have summed, d = 1, 2, 4, ...: log2(T) rounds instead of
    T steps.

    Args:
        x: [B, T, ...].
        decay: the same, or with axes of length 1; decay[:, T - 1] has no effect.

    Returns:
        [B, T, ...].
    """
    decay = decay.expand(*decay.shape[:1], x.shape[1], *decay.shape[2:])
    d = 1
    while d < x.shape[1]:
        x = torch.cat([torch.addcmul(x[:, :-d], decay[:, :-d], x[:, d:]), x[:, -d:]], dim=1)
        decay = torch.cat([decay[:, :-d] * decay[:, d:], decay[:, -d:]], dim=1)
        d *= 2
    return x


def _corrected_values(
    rewards: Tensor,
    terminated: Tensor,
    mask: Tensor,
    values: Tensor,
    next_values: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Sums of lambda-discounted one-step errors, and `values` plus them; both 0 where `mask` is 0.

    delta_t = r_t + gamma (1 - terminated_t) next_values_t - values_t; the sum goes on to step t + 1
    if the episode does, that is if step t did not terminate it and step t + 1 is valid. So the last
    step of a truncated episode has the bootstrapped one-step target, wherever in the batch it is.
    """
    # float64: sums over hundreds of steps keep float32's digits, and reduced-precision modes do not
    # touch it.
    values, next_values, rewards = values.double(), next_values.double(), rewards.double()
    valid, ended = mask != 0, terminated != 0
    # Selected, not multiplied: what stands in padding or behind a terminal step may be infinite or
    # NaN.
    delta = rewards + gamma * torch.where(ended, 0.0, next_values) - values
    delta = torch.where(valid, delta, 0.0)
    goes_on = F.pad((valid[:, 1:] & ~ended[:, :-1]).double(), [0, 0] * (valid.dim() - 2) + [0, 1])
    sums = discounted_sums(delta, gamma * lam * goes_on)
    return sums, torch.where(valid, values + sums, 0.0)


def _pymarl_lambda_return(
    rewards: Tensor, terminated: Tensor, mask: Tensor, target_qs: Tensor, gamma: float, lam: float
) -> Tensor:
    target_qs, terminated = target_qs.double(), terminated.double()
    one_step = mask.double() * (
        rewards.double() + (1 - lam) * gamma * target_qs[:, 1:] * (1 - terminated)
    )
    start = target_qs[:, -1:] * (1 - terminated.sum(dim=1, keepdim=True))
    x = torch.cat([one_step, start], dim=1)
    return discounted_sums(x, x.new_full((1,) * x.dim(), gamma * lam))[:, :-1]


@torch.no_grad()
def build_td_lambda_targets(
    rewards: Tensor,
    terminated: Tensor,
    mask: Tensor,
    target_qs: Tensor,
    n_agents: int,
    gamma: float,
    td_lambda: float,
    pymarl: bool = False,
) -> Tensor:
    """TD(lambda) returns (Sutton and Barto 2018, chapter 12).

    G_t = r_t + gamma [(1 - lambda) V_{t+1} + lambda G_{t+1}]. After a terminal step both V and G
    are 0. At the last valid step of any other episode (the next step is masked, or outside of the
    batch) G_{t+1} is V_{t+1}.

    Args:
        rewards, terminated: [B, T, 1] or [B, T, A]; `terminated` is not set by a truncation (time
            limit). Further columns, also of `mask`, are not read.
        mask: [B, T, 1] or [B, T, A], nonzero where the transition from t to t + 1 exists
            (`Steps.mask`). The last observation of an episode is no transition, though `filled` is
            1 there.
        target_qs: V, [B, T + 1, 1] or [B, T + 1, A].
        n_agents: not read, the shapes tell (PyMARL2's signature has it).
        gamma: discount factor.
        td_lambda: lambda.
        pymarl: True: PyMARL's recursion, which starts at the batch's last column wherever an
            episode ends, so that a truncated episode shorter than the batch loses lambda gamma V of
            its last bootstrap.

    Returns:
        [B, T, 1] or [B, T, A] in the dtype of `target_qs`, without gradient; 0 where the mask is 0
        (unless `pymarl`).
    """
    n = target_qs.shape[1] - 1
    rewards, terminated, mask = rewards[:, :n], terminated[:, :n], mask[:, :n]
    if pymarl:
        returns = _pymarl_lambda_return(rewards, terminated, mask, target_qs, gamma, td_lambda)
    else:
        values, next_values = target_qs[:, :-1], target_qs[:, 1:]
        _, returns = _corrected_values(
            rewards, terminated, mask, values, next_values, gamma, td_lambda
        )
    return returns.to(target_qs.dtype)


@torch.no_grad()
def build_q_lambda_targets(
    rewards: Tensor,
    terminated: Tensor,
    mask: Tensor,
    exp_qvals: Tensor,
    qvals: Tensor,
    gamma: float,
    td_lambda: float,
    pymarl: bool = False,
) -> Tensor:
    """Q(lambda) returns with off-policy corrections (Harutyunyan et al. 2016).

    G_t = Q_t + sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma E_{t+1} - Q_t, where E_t
    is the value of the target policy at step t (its maximum, for a greedy one). Recursively: G_t =
    r_t + gamma [E_{t+1} + lambda (G_{t+1} - Q_{t+1})], ending as `build_td_lambda_targets` does.

    PyMARL2 computes G_t + E_t - Q_t instead, the quantity that the recursion passes to step t - 1:
    its targets of non-greedy actions are too high by E_t - Q_t. `pymarl=True` brings that back.

    Args:
        rewards, terminated, mask: as for `build_td_lambda_targets`.
        exp_qvals: E, [B, T + 1, 1] or [B, T + 1, A].
        qvals: Q of the actions taken, [B, T, ...] or [B, T + 1, ...] (the last column is not read).
        gamma: discount factor.
        td_lambda: lambda.
        pymarl: PyMARL2's targets, its start at the batch's last column included.

    Returns:
        [B, T, 1] or [B, T, A] in the dtype of `exp_qvals`, without gradient; 0 where the mask is 0
        (unless `pymarl`).
    """
    qvals = qvals[:, : exp_qvals.shape[1] - 1]
    if pymarl:
        rewards = rewards.double() + exp_qvals[:, :-1].double() - qvals.double()
        returns = _pymarl_lambda_return(rewards, terminated, mask, exp_qvals, gamma, td_lambda)
    else:
        _, returns = _corrected_values(
            rewards, terminated, mask, qvals, exp_qvals[:, 1:], gamma, td_lambda
        )
    return returns.to(exp_qvals.dtype)


@torch.no_grad()
def build_gae_targets(
    rewards: Tensor,
    masks: Tensor,
    values: Tensor,
    gamma: float,
    lambd: float,
    terminated: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) and the value targets A + V.

    Args:
        rewards: [B, T, ...], of as many axes as `values`.
        masks: [B, T, ...]. With `terminated`: nonzero where the transition exists. Without
            (PyMARL2's call): factor on everything that follows step t, the bootstrap included,
            delta_t = r_t + gamma masks_t V_{t+1} - V_t and A_t = delta_t + gamma lambda masks_t
            A_{t+1}, to the batch's last column.
        values: V, [B, T + 1, ...].
        gamma: discount factor.
        lambd: lambda.
        terminated: [B, T, ...], 1 at the last step of an episode that ended by the task's own
            rules. An episode that ends otherwise is truncated: its last step bootstraps from
            V_{t+1}, and no error behind it is added.

    Returns:
        (advantages, returns), each [B, T, ...] in the dtype of `values`, without gradient; with
        `terminated` both are 0 where the mask is 0.
    """
    current, following = values[:, :-1].double(), values[:, 1:].double()
    if terminated is None:
        masks = masks.double()
        delta = rewards.double() + gamma * masks * following - current
        advantages = discounted_sums(delta, gamma * lambd * masks)
        returns = current + advantages
    else:
        advantages, returns = _corrected_values(
            rewards, terminated, masks, current, following, gamma, lambd
        )
    return advantages.to(values.dtype), returns.to(values.dtype)


@torch.no_grad()
def build_nstep_targets(
    rewards: Tensor, terminated: Tensor, mask: Tensor, values: Tensor, gamma: float, n: int
) -> Tensor:
    """n-step returns (Sutton and Barto 2018, chapter 7).

    G_t = r_t + ... + gamma^(k-1) r_{t+k-1} + gamma^k V_{t+k}, k = n or what the episode has left.
    After a terminal step V is 0; an episode that ends otherwise bootstraps from its last value.

    Args:
        rewards, terminated: [B, T, 1] or [B, T, K].
        mask: [B, T, 1], nonzero where the transition exists.
        values: V, [B, T + 1, 1] or [B, T + 1, K].
        gamma: discount factor.
        n: number of rewards, at least 1.

    Returns:
        [B, T, 1] or [B, T, K] in the dtype of `values`, without gradient; 0 where the mask is 0.
    """
    valid, ended = mask != 0, terminated != 0
    following = torch.where(ended, 0.0, values[:, 1:].double())
    goes_on = F.pad(valid[:, 1:] & ~ended[:, :-1], [0, 0, 0, 1])
    returns = rewards.double() + gamma * following
    for _ in range(n - 1):
        later = F.pad(returns[:, 1:], [0, 0, 0, 1])
        returns = rewards.double() + gamma * torch.where(goes_on, later, following)
    return torch.where(valid, returns, 0.0).to(values.dtype)


class Moments(TypedDict):
    """The state of a `RunningMeanStd`."""

    mean: Tensor
    var: Tensor
    count: float


class RunningMeanStd:
    """Mean and variance of everything seen so far, by the parallel algorithm of Chan et al. (1979).

    Args:
        epsilon: weight of the start (mean 0, variance 1), in samples.
        shape: of one sample.
    """

    def __init__(self, epsilon: float = 1e-4, shape: tuple[int, ...] = ()) -> None:
        self.mean = np.zeros(shape, dtype=np.float64)
        self.var = np.ones(shape, dtype=np.float64)
        self.count = float(epsilon)

    def update(self, x: np.ndarray | Tensor) -> None:
        """Adds samples x [n, *shape]; an empty batch changes nothing."""
        x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if len(x):
            x = x.astype(np.float64, copy=False)
            self.update_from_moments(x.mean(axis=0), x.var(axis=0), len(x))

    def update_from_moments(
        self, batch_mean: np.ndarray, batch_var: np.ndarray, batch_count: float
    ) -> None:
        """Adds `batch_count` samples of which only the mean and the (population) variance are
        known.
        """
        delta = batch_mean - self.mean
        total = self.count + batch_count
        squares = (
            self.var * self.count
            + batch_var * batch_count
            + delta**2 * self.count * batch_count / total
        )
        self.mean = self.mean + delta * batch_count / total
        self.var = squares / total
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, of `shape`."""
        return np.sqrt(self.var)

    def standardise(self, x: Tensor) -> Tensor:
        """Samples [..., *shape] at mean 0 and variance 1, in the dtype of the input."""
        mean, std = (torch.from_numpy(each).to(x) for each in (self.mean, self.std))
        return (x - mean) / std

    def state_dict(self) -> Moments:
        """Everything, in a form that `torch.load(weights_only=True)` reads."""
        return {"mean": torch.tensor(self.mean), "var": torch.tensor(self.var), "count": self.count}

    def load_state_dict(self, state: Moments) -> None:
        """Inverse of `state_dict`."""
        self.mean, self.var = state["mean"].numpy().copy(), state["var"].numpy().copy()
        self.count = float(state["count"])
