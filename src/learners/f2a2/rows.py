"""What an update of F2A2 reads, whatever the batch is: transitions with their histories, as M rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from components.transitions import Transitions
from modules.opponents import Histories, episode_histories, histories_of, next_histories_of


class Rows(NamedTuple):
    """M transitions of A agents; H steps of history for the models of others, or None where there are no models."""

    obs: Tensor  # [M, A, O]
    next_obs: Tensor  # [M, A, O]
    avail: Tensor  # [M, A, U]
    next_avail: Tensor  # [M, A, U]
    actions: Tensor  # int64 [M, A]
    behaviour: Tensor  # [M, A, U], log probabilities of what the actions were drawn from
    costs: Tensor  # [A, M]
    goes_on: Tensor  # [M], 0 where the task's own rules ended the episode
    history: Histories | None
    next_history: Histories | None


def _costs(rewards: Tensor, n_agents: int) -> Tensor:
    """c = -r: [M, A], or [M, 1] of all agents in common -> [A, M]."""
    return -rewards.t().expand(n_agents, -1)


def rows_of_transitions(batch: Transitions, standardise: bool, models: bool) -> Rows:
    """Transitions drawn from a replay buffer.

    Args:
        standardise: rewards with mean 0 and deviation 1 over the whole buffer.
        models: whether histories are wanted.
    """
    rewards = batch.standardised_rewards() if standardise else batch["reward"]
    return Rows(
        batch["obs"],
        batch["next_obs"],
        batch["avail_actions"],
        batch["next_avail_actions"],
        batch["actions"],
        batch["behaviour"],
        _costs(rewards, batch["obs"].shape[1]),
        1 - batch["terminated"].squeeze(-1),
        histories_of(batch) if models else None,
        next_histories_of(batch) if models else None,
    )


def rows_of_episodes(batch: EpisodeBatch, steps: Steps, rewards: Tensor, history_length: int) -> Rows:
    """All transitions of a batch of episodes.

    Args:
        rewards: [M, A] or [M, 1], as they are to be learned.
        history_length: 0: without histories.
    """
    obs, avail = steps.pack(batch["obs"]), steps.pack(batch["avail_actions"])
    history = episode_histories(batch, steps, history_length) if history_length else None
    return Rows(
        obs[steps.cur],
        obs[steps.nxt],
        avail[steps.cur],
        avail[steps.nxt],
        steps.pack_transitions(batch["actions"]).squeeze(-1),
        steps.pack_transitions(batch["behaviour"]),
        _costs(rewards, obs.shape[1]),
        1 - steps.pack_transitions(batch["terminated"]).to(obs).squeeze(-1),
        None if history is None else history.rows(steps.cur),
        None if history is None else history.rows(steps.nxt),
    )


def concatenated(first: Histories, second: Histories) -> Histories:
    """The rows of both."""
    return Histories(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
