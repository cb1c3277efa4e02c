"""What critics of joint actions read of a batch of episodes, and the targets that they
learn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from controllers.actor_controller import ActorMAC
from utils.rl_utils import build_td_lambda_targets, build_tree_backup_targets


class FilledSteps(NamedTuple):
    """All N filled steps of a batch of episodes; M of them are transitions, `steps.cur` says
    which.
    """

    steps: Steps
    obs: Tensor  # [N, A, O]
    avail: Tensor  # [N, A, U]
    actions: Tensor  # int64 [N, A]; at the end of an episode, where none is taken, meaningless
    logits: Tensor  # [N, A, U], what the policies put out, with gradient
    rewards: Tensor  # [M, A], or [M, 1] of all agents in common
    goes_on: Tensor  # [M], 0 where the task's own rules ended the episode, else 1


def filled_steps(batch: EpisodeBatch, mac: ActorMAC) -> FilledSteps:
    """Reads a batch of episodes.

    Args:
        mac: whose policies are evaluated, in the mode (training, evaluation) that its agent is in.
    """
    steps = batch.steps()
    obs, avail, actions = (steps.pack(batch[key]) for key in ("obs", "avail_actions", "actions"))
    rewards, ended = (steps.pack_transitions(batch[key]) for key in ("reward", "terminated"))
    goes_on = 1 - ended.to(obs).squeeze(-1)
    logits = mac.unroll(batch, steps)
    return FilledSteps(steps, obs, avail, actions.squeeze(-1), logits, rewards, goes_on)


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
    rows = steps.rows_last
    return rows, torch.multinomial(probs[rows].flatten(0, 1), 1).view(len(rows), -1)


@torch.no_grad()
def lambda_targets(
    steps: Steps, rewards: Tensor, goes_on: Tensor, values: Tensor, gamma: float, td_lambda: float
) -> Tensor:
    """TD(lambda) targets of the transitions (`build_td_lambda_targets`).

    Args:
        rewards: [M, A], of the transitions; or costs, where values are costs-to-go.
        goes_on: [M], 0 where the task's own rules ended the episode.
        values: [N, A], of every filled step.

    Returns:
        [M, A].
    """
    rewards, ended, mask = _columns(steps, rewards, goes_on)
    targets = build_td_lambda_targets(
        rewards, ended, mask, steps.unpack(values), values.shape[1], gamma, td_lambda
    )
    return steps.pack_transitions(targets)


@torch.no_grad()
def tree_backup_targets(
    steps: Steps,
    rewards: Tensor,
    goes_on: Tensor,
    expected: Tensor,
    taken: Tensor,
    probability: Tensor,
    gamma: float,
    td_lambda: float,
    n_steps: int,
) -> Tensor:
    """Targets of a tree backup for the transitions (`build_tree_backup_targets`).

    Args:
        rewards: [M, 1], of the transitions.
        goes_on: [M], 0 where the task's own rules ended the episode.
        expected: [N, 1], mean values under the policies, of every filled step.
        taken: [N, 1], values of the actions taken; at the end of an episode not read.
        probability: [N, 1], of the actions taken under the policies; as above.

    Returns:
        [M, 1].
    """
    rewards, ended, mask = _columns(steps, rewards, goes_on)
    taken, probability = steps.unpack(taken)[:, :-1], steps.unpack(probability)[:, :-1]
    targets = build_tree_backup_targets(
        rewards, ended, mask, steps.unpack(expected), taken, probability, gamma, td_lambda, n_steps
    )
    return steps.pack_transitions(targets)


def _columns(steps: Steps, rewards: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards [M, A], whether the episode goes on [M] -> rewards, ended and mask, [B, T - 1, A]."""

    def unpack(rows: Tensor) -> Tensor:
        filled = rows.new_zeros(steps.n_rows, *rows.shape[1:])
        return steps.unpack(filled.index_copy(0, steps.rows_cur, rows))[:, :-1]

    ended = unpack((1 - goes_on).unsqueeze(1).expand_as(rewards))
    return unpack(rewards), ended, steps.mask.expand_as(ended)
