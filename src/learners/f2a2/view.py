"""What an update of F2A2 reads, whatever the batch is: transitions with their histories, as M rows.

What agents know of each other has passed a `learners.f2a2.consensus.Channel`: `heard` for
transitions, `told_of` for episodes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from components.transitions import Transitions
from learners.f2a2.consensus import Channel
from modules.f2a2 import Histories, episode_histories, histories_of, next_histories_of

# Entries of transitions -> under what name they pass, and their axis of agents.
_SEEN_AND_DONE = {
    "obs": ("observations", 1),
    "next_obs": ("observations", 1),
    "actions": ("actions", 1),
}
_FOR_MODELS = {
    "avail_actions": ("avail_actions", 1),
    "next_avail_actions": ("avail_actions", 1),
    "past_obs": ("observations", 2),
    "past_actions": ("actions", 2),
}


class Told(NamedTuple):
    """All N filled steps of a batch of episodes, as every agent knows them; H steps of history, or
    None.
    """

    obs: Tensor  # [N, A, O]
    avail: Tensor  # [N, A, U]
    actions: Tensor  # int64 [N, A]
    history: Histories | None


class Rows(NamedTuple):
    """M transitions of A agents; H steps of history for the models of others, or None where there
    are no models.
    """

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


def heard(
    batch: Transitions, channel: Channel, models: bool, following: bool = True
) -> Transitions:
    """Transitions as every agent knows them: what others saw and did has passed the channel.

    Args:
        models: whether agents model each other, from what was done before and what others could
            have done too.
        following: whether anybody reads what came next; what models learn from does not contain it.
    """
    names = {
        entry: passes
        for entry, passes in (_SEEN_AND_DONE | (_FOR_MODELS if models else {})).items()
        if following or not entry.startswith("next_")
    }
    passed = {entry: channel.share(name, batch[entry], dim) for entry, (name, dim) in names.items()}
    return Transitions({**batch, **passed}, batch.reward_mean, batch.reward_std, batch.recent)


def told_of(
    batch: EpisodeBatch, steps: Steps, channel: Channel | None, history_length: int
) -> Told:
    """The steps of episodes as every agent knows them.

    Args:
        channel: through which they have passed; None: agents do not read what others see or do.
        history_length: H, for models of others; 0: none, and nobody tells what it could have done.
    """
    obs, avail = steps.pack(batch["obs"]), steps.pack(batch["avail_actions"])
    actions = steps.pack(batch["actions"]).squeeze(-1)
    if channel is not None:
        obs, actions = channel.share("observations", obs, 1), channel.share("actions", actions, 1)
        avail = channel.share("avail_actions", avail, 1) if history_length else avail
    history = (
        episode_histories(obs, avail, actions, steps, history_length) if history_length else None
    )
    return Told(obs, avail, actions, history)


def as_one(x: Tensor) -> Tensor:
    """The rows of all agents as those of one, an agent's beside the next one's: [M, A, F] -> [M *
    A, 1, F].
    """
    return x.flatten(0, 1).unsqueeze(1)


def rows_of_one(rows: Rows) -> Rows:
    """The transitions of agents that have everything in common, without histories: A = 1, with M *
    A rows.
    """
    return Rows(
        *(as_one(x) for x in (rows.obs, rows.next_obs, rows.avail, rows.next_avail)),
        rows.actions.reshape(-1, 1),
        as_one(rows.behaviour),
        rows.costs.t().reshape(1, -1),
        rows.goes_on.repeat_interleave(len(rows.costs)),
        None,
        None,
    )


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


def rows_of_episodes(batch: EpisodeBatch, steps: Steps, told: Told, rewards: Tensor) -> Rows:
    """All transitions of a batch of episodes.

    Args:
        told: all their steps.
        rewards: [M, A] or [M, 1], as they are to be learned.
    """
    return Rows(
        told.obs[steps.cur],
        told.obs[steps.nxt],
        told.avail[steps.cur],
        told.avail[steps.nxt],
        told.actions[steps.cur],
        steps.pack_transitions(batch["behaviour"]),
        _costs(rewards, told.obs.shape[1]),
        1 - steps.pack_transitions(batch["terminated"]).to(told.obs).squeeze(-1),
        None if told.history is None else told.history.rows(steps.cur),
        None if told.history is None else told.history.rows(steps.nxt),
    )
