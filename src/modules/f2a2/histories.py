"""What the models of other agents read: the current step, and those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from components.episode_buffer import EpisodeBatch
    from components.steps import Steps


class Histories(NamedTuple):
    """N steps of A agents, each with the H steps before it, oldest first; O, U: entries of an
    observation, actions.
    """

    obs: Tensor  # [N, A, O]
    avail_actions: Tensor  # [N, A, U], nonzero where available
    past_obs: Tensor  # [N, H, A, O]
    past_actions: Tensor  # int64 [N, H, A]
    past_filled: Tensor  # [N, H], 0 before the episode's begin

    def rows(self, index: Tensor | slice) -> Histories:
        """Some of the steps, in the order of `index`."""
        return Histories(*(entry[index] for entry in self))

    def moved_on(self, actions: Tensor, next_obs: Tensor, next_avail: Tensor) -> Histories:
        """The steps that follow these: the histories have moved on by one.

        Args:
            actions: int64 [N, A], taken in these steps.
            next_obs, next_avail: [N, A, O], [N, A, U], of the following ones.
        """
        return Histories(
            next_obs,
            next_avail,
            torch.cat([self.past_obs[:, 1:], self.obs.unsqueeze(1)], 1),
            torch.cat([self.past_actions[:, 1:], actions.unsqueeze(1)], 1),
            torch.cat([self.past_filled[:, 1:], torch.ones_like(self.past_filled[:, :1])], 1),
        )


def episode_histories(
    obs: Tensor, avail: Tensor, actions: Tensor, steps: Steps, length: int
) -> Histories:
    """All filled steps of a batch of episodes, as rows in the order of `steps`, with H = `length`
    steps before each.

    Args:
        obs, avail: [N, A, O], [N, A, U], of the rows.
        actions: int64 [N, A].
    """
    sizes = torch.tensor(steps.sizes, device=obs.device)
    time = torch.arange(len(sizes), device=obs.device).repeat_interleave(sizes)
    # Row by row back to the step before; step 0 is its own predecessor, which does not count as
    # filled.
    before = [steps.previous]
    for _ in range(length - 1):
        before.append(steps.previous[before[-1]])
    earlier = torch.stack(before[::-1], 1)
    filled = time.unsqueeze(1) >= torch.arange(length, 0, -1, device=obs.device)
    return Histories(obs, avail, obs[earlier], actions[earlier], filled.to(obs))


def trajectories_of(episodes: EpisodeBatch) -> tuple[Tensor, Tensor, Tensor]:
    """What `OtherAgentModels.set_trajectories` takes: obs [B, T - 1, A, O], actions [B, T - 1, A],
    filled [B, T - 1].
    """
    # The last filled step of an episode has no action.
    return (
        episodes["obs"][:, :-1],
        episodes["actions"][:, :-1].squeeze(-1),
        episodes["filled"][:, 1:].squeeze(-1),
    )
