"""What an update of F2A2 reads, whatever the batch is: `view_of` makes one `AgentsView` of it.

What agents know of each other has passed a `learners.f2a2.consensus.Channel` (F2A2, table 2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.transitions import Transitions
from controllers.f2a2_controller import F2A2MAC
from learners.f2a2.consensus import Channel
from learners.returns import FilledSteps, filled_steps
from modules.f2a2 import Histories, episode_histories
from utils.rl_utils import RunningMeanStd


class AgentsView(NamedTuple):
    """M transitions as all A agents know them; of episodes, the M rows are `filled.steps.cur`.

    Histories, with H steps before each, are there for the models of other agents, else None.
    """

    obs: Tensor  # [M, A, O]
    next_obs: Tensor  # [M, A, O]
    avail: Tensor  # [M, A, U]
    next_avail: Tensor  # [M, A, U]
    actions: Tensor  # int64 [M, A]
    behaviour: Tensor  # [M, A, U], log probabilities of what the actions were drawn from
    costs: Tensor  # [A, M]
    goes_on: Tensor  # [M], 0 where the task's own rules ended the episode
    logits: Tensor  # [M, A, U], what the policies put out, with gradient
    next_logits: Tensor  # [M, A, U], what the target policies put out at `next_obs`, without
    history: Histories | None = None
    next_history: Histories | None = None
    # What models learn from, if they do in this update: N steps, and actions int64 [N, A].
    modelled: tuple[Histories, Tensor] | None = None
    # Of episodes: all filled steps, with what has been received, and their histories.
    filled: FilledSteps | None = None
    filled_history: Histories | None = None


class Reading(NamedTuple):
    """How a batch is to be read."""

    mac: F2A2MAC  # its policies are learned
    target_mac: F2A2MAC  # the next own action comes from these; it may be `mac`
    channel: Channel | None  # None: the critics read nothing of other agents
    history: int  # H; 0: there are no models of other agents
    models_learn: bool  # whether the models take a step in this update
    # Moments of the rewards so far, to standardise by; None: rewards are learned as they are.
    # Transitions know the moments of the whole replay buffer, which are taken instead.
    moments: RunningMeanStd | None
    one_agent: bool  # whether all agents have their networks in common

    def receive(self, name: str, values: Tensor, dim: int = 1) -> Tensor:
        """What the agents have, with A entries along `dim`, as all of them know it: it has passed
        the channel under this name, if there is one.
        """
        return values if self.channel is None else self.channel.share(name, values, dim)


def view_of(batch: Transitions | EpisodeBatch, reading: Reading) -> AgentsView:
    """What agents know of a batch; the others' part of it passes the channel here."""
    if isinstance(batch, Transitions):
        view = _view_of_transitions(batch, reading)
    else:
        view = _view_of_episodes(batch, reading)
    return _as_one_agent(view) if reading.one_agent else view


# -- Transitions drawn from a replay buffer --------------------------------------------------------
def _view_of_transitions(batch: Transitions, reading: Reading) -> AgentsView:
    obs = reading.receive("observations", batch["obs"])
    next_obs = reading.receive("observations", batch["next_obs"])
    actions = reading.receive("actions", batch["actions"])
    avail, next_avail = batch["avail_actions"], batch["next_avail_actions"]
    history = next_history = None
    if reading.history:
        # For models alone: what others could have done.
        avail = reading.receive("avail_actions", avail)
        next_avail = reading.receive("avail_actions", next_avail)
        history = _with_past(batch, obs, avail, reading)
        next_history = history.moved_on(actions, next_obs, next_avail)
    rewards = batch["reward"] if reading.moments is None else batch.standardised_rewards()
    logits = reading.mac.agent.logits(obs)
    with torch.no_grad():
        next_logits = reading.target_mac.agent.logits(next_obs)
    return AgentsView(
        obs=obs,
        next_obs=next_obs,
        avail=avail,
        next_avail=next_avail,
        actions=actions,
        behaviour=batch["behaviour"],
        costs=_costs(rewards, obs.shape[1]),
        goes_on=1 - batch["terminated"].squeeze(-1),
        logits=logits,
        next_logits=next_logits,
        history=history,
        next_history=next_history,
        modelled=_newest(batch, reading) if reading.models_learn else None,
    )


def _with_past(batch: Transitions, obs: Tensor, avail: Tensor, reading: Reading) -> Histories:
    """The steps of transitions with those before them."""
    past_obs = reading.receive("observations", batch["past_obs"], 2)
    past_actions = reading.receive("actions", batch["past_actions"], 2)
    return Histories(obs, avail, past_obs, past_actions, batch["past_filled"])


def _newest(batch: Transitions, reading: Reading) -> tuple[Histories, Tensor]:
    """What models learn from: the newest transitions, of which what came next is not read."""
    recent = batch.recent
    assert recent is not None
    obs = reading.receive("observations", recent["obs"])
    actions = reading.receive("actions", recent["actions"])
    avail = reading.receive("avail_actions", recent["avail_actions"])
    return _with_past(recent, obs, avail, reading), actions


# -- Whole episodes --------------------------------------------------------------------------------
def _view_of_episodes(batch: EpisodeBatch, reading: Reading) -> AgentsView:
    filled = filled_steps(batch, reading.mac)
    steps = filled.steps
    next_logits = filled.logits.detach()
    if reading.target_mac is not reading.mac:
        with torch.no_grad():
            next_logits = reading.target_mac.unroll(batch, steps)
    behaviour = steps.pack_transitions(batch["behaviour"])
    filled, history = _receive_steps(filled, reading)
    cur, nxt, actions = steps.cur, steps.nxt, filled.actions[steps.cur]
    now, following = (None if history is None else history.rows(rows) for rows in (cur, nxt))
    return AgentsView(
        obs=filled.obs[cur],
        next_obs=filled.obs[nxt],
        avail=filled.avail[cur],
        next_avail=filled.avail[nxt],
        actions=actions,
        behaviour=behaviour,
        costs=_costs(_standardised(filled.rewards, reading.moments), filled.obs.shape[1]),
        goes_on=filled.goes_on,
        logits=filled.logits[cur],
        next_logits=next_logits[nxt],
        history=now,
        next_history=following,
        modelled=(now, actions) if now is not None and reading.models_learn else None,
        filled=filled,
        filled_history=history,
    )


def _receive_steps(filled: FilledSteps, reading: Reading) -> tuple[FilledSteps, Histories | None]:
    """The steps as every agent has received them, and their histories."""
    obs = reading.receive("observations", filled.obs)
    actions = reading.receive("actions", filled.actions)
    if not reading.history:
        return filled._replace(obs=obs, actions=actions), None
    # For models alone: what others could have done.
    avail = reading.receive("avail_actions", filled.avail)
    history = episode_histories(obs, avail, actions, filled.steps, reading.history)
    return filled._replace(obs=obs, avail=avail, actions=actions), history


def _standardised(rewards: Tensor, moments: RunningMeanStd | None) -> Tensor:
    """Rewards [M, A] or [M, 1], by what every agent has seen of its own so far, these included."""
    if moments is None:
        return rewards
    moments.update(rewards)
    return moments.standardise(rewards)


def _costs(rewards: Tensor, n_agents: int) -> Tensor:
    """c = -r: [M, A], or [M, 1] of all agents in common -> [A, M]."""
    return -rewards.t().expand(n_agents, -1)


# -- Agents with networks in common ----------------------------------------------------------------
def _as_one_agent(view: AgentsView) -> AgentsView:
    """The transitions of agents that have everything in common, as those of one: A = 1, with M * A
    rows, an agent's beside the next one's. Nobody is modelled.
    """

    def rows(x: Tensor) -> Tensor:
        """[M, A, F] -> [M * A, 1, F]."""
        return x.flatten(0, 1).unsqueeze(1)

    return AgentsView(
        obs=rows(view.obs),
        next_obs=rows(view.next_obs),
        avail=rows(view.avail),
        next_avail=rows(view.next_avail),
        actions=view.actions.reshape(-1, 1),
        behaviour=rows(view.behaviour),
        costs=view.costs.t().reshape(1, -1),
        goes_on=view.goes_on.repeat_interleave(len(view.costs)),
        logits=rows(view.logits),
        next_logits=rows(view.next_logits),
    )
