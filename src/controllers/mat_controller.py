"""The controller of the multi-agent transformer: all agents act as one, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from controllers.actor_controller import ActorMAC
from controllers.basic_controller import ALL
from controllers.sent_numbers import SentNumbers
from modules.comm.agent import broadcast_numbers
from modules.mat import MATAgent
from utils.errors import ConfigError

_log = logging.getLogger(__name__)


class MATMAC(ActorMAC):
    """`ActorMAC` whose acting is centralised: agent i acts on the observations of all agents and on
    the actions that the agents before it have just taken (Wen et al. 2022).

    A run says so when it starts, and `numbers_sent` counts what would have to pass between agents:
    every observation to all others, and every action to all later ones.

    Args:
        scheme, groups: of the episode batch.
        args: as for `ActorMAC`, and what `MATAgent` reads.

    Attributes:
        centralised_acting: True.

    Raises:
        ConfigError: an agent network of another kind.
    """

    centralised_acting = True

    def __init__(
        self, scheme: Mapping[str, Any], groups: Mapping[str, int], args: SimpleNamespace
    ) -> None:
        super().__init__(scheme, groups, args)
        self.sent = SentNumbers()
        action_size = args.n_actions if args.continuous_actions else 1
        self._numbers = broadcast_numbers(self.n_agents, args.obs_shape)
        self._numbers += broadcast_numbers(self.n_agents, action_size) // 2
        _log.info(
            "controller '%s': acting is centralised, every action depends on the observations of "
            "all agents and on the actions of those before",
            args.mac,
        )

    def _build_agents(self, input_shape: int) -> None:
        super()._build_agents(input_shape)
        if not isinstance(self.agent, MATAgent):
            raise ConfigError(
                f"controller '{self.args.mac}' needs agent=mat, got agent={self.args.agent}"
            )

    # -- acting ------------------------------------------------------------------------------------
    def init_hidden(self, batch_size: int) -> None:
        """Starts new episodes."""
        super().init_hidden(batch_size)
        assert self.hidden_states is not None
        self.sent.start(batch_size, self.hidden_states.device)

    @torch.no_grad()
    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`, agent by agent: int64 [len(bs), A], or
        float32 [len(bs), A, U].
        """
        self._set_mode(test_mode)
        avail = ep_batch["avail_actions"][bs, t_ep]
        reps = self.agent.encode(self._inputs_at(ep_batch, t_ep, bs)).reps
        actions = self._joint(ep_batch["actions"][bs, t_ep, :0])
        log_probs = []
        for i in range(self.n_agents):
            outputs = self.agent.decode(reps[:, : i + 1], actions)[:, -1:]
            own, log_prob = self._choose(outputs, avail[:, i : i + 1], t_env, test_mode)
            actions = torch.cat([actions, own], dim=1)
            log_probs.append(log_prob)
        self.last_record = {"log_prob": torch.cat(log_probs, dim=1)}
        self.sent.add(bs, self._numbers)
        return actions

    def episode_figures(self) -> dict[str, Tensor]:
        """Figures of the episodes under way, [B] each; the collector logs their means."""
        return self.sent.figures()

    def forward(
        self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False, bs: Any = ALL
    ) -> Tensor:
        """Outputs of step t for the episodes `bs`, [len(bs), A, U or 2U], given its actions."""
        self._set_mode(test_mode)
        actions = self._joint(ep_batch["actions"][bs, t])
        return self.agent.decode(self.agent.encode(self._inputs_at(ep_batch, t, bs)).reps, actions)

    def _inputs_at(self, ep_batch: EpisodeBatch, t: int, bs: Any) -> Tensor:
        """[len(bs), A, F]."""
        inputs = self._build_inputs(ep_batch, t)
        return inputs.reshape(ep_batch.batch_size, self.n_agents, -1)[bs]

    def _joint(self, actions: Tensor) -> Tensor:
        """Actions as they are stored, [..., A, 1] or [..., A, U], as the network takes them."""
        return actions if self.args.continuous_actions else actions.squeeze(-1)

    # -- training ----------------------------------------------------------------------------------
    def unroll(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """Outputs at all filled steps, [N, A, U or 2U], given the actions that were taken: those of
        all agents at once, equal to what they acted on.
        """
        steps = batch.steps() if steps is None else steps
        inputs = self.sequence_inputs(batch, steps) if inputs is None else inputs
        actions = self._joint(steps.pack(batch["actions"]))
        return self.agent.decode(self.agent.encode(inputs).reps, actions)
