"""TD(lambda) targets of actions that were taken, for on-policy critics of joint actions."""

from __future__ import annotations

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from utils.rl_utils import build_td_lambda_targets


def taken_or_policy(probs: Tensor, taken: Tensor, steps: Steps) -> Tensor:
    """Weights of an agent's action values: the action taken, or at the end of an episode, where
    there is none, pi.

    Args:
        probs: [N, A, U], of the policies at all filled steps.
        taken: [N, A, U], one-hot; meaningless at the end of an episode.

    Returns:
        [N, A, U].
    """
    return probs.index_copy(0, steps.rows_cur, taken[steps.cur])


@torch.no_grad()
def last_actions(probs: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """Actions drawn at the end of each episode, where none is taken: what the others would do in
    its last observation.

    Where an episode was cut its last value counts, and an agent's values depend on what the others
    do.

    Args:
        probs: [N, A, U], of the policies at all filled steps.

    Returns:
        rows int64 [B] of the last steps, and actions int64 [B, A].
    """
    last = torch.ones(steps.n_rows, dtype=torch.bool, device=probs.device).index_fill(
        0, steps.rows_cur, False
    )
    rows = last.nonzero().squeeze(1)
    return rows, torch.multinomial(probs[rows].flatten(0, 1), 1).view(len(rows), -1)


@torch.no_grad()
def lambda_targets(
    batch: EpisodeBatch,
    steps: Steps,
    rewards: Tensor,
    values: Tensor,
    gamma: float,
    td_lambda: float,
) -> Tensor:
    """TD(lambda) targets of the transitions (`build_td_lambda_targets`).

    Args:
        rewards: [M, A], of the transitions; or costs, where values are costs-to-go.
        values: [N, A], of every filled step.

    Returns:
        [M, A].
    """
    n_agents = values.shape[1]
    rewards = steps.unpack(values.new_zeros(values.shape).index_copy(0, steps.rows_cur, rewards))[
        :, :-1
    ]
    ended, mask = batch["terminated"][:, :-1].expand_as(rewards), steps.mask.expand_as(rewards)
    targets = build_td_lambda_targets(
        rewards, ended, mask, steps.unpack(values), n_agents, gamma, td_lambda
    )
    return steps.pack_transitions(targets)
