"""The controller of agents that talk to one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from controllers.basic_controller import ALL
from controllers.n_controller import NMAC
from controllers.sent_numbers import SentNumbers
from modules.comm.agent import CommAgent, Talk
from utils.errors import ConfigError


class CommMAC(NMAC):
    """`BasicMAC` for agent networks that send messages (`CommAgent`), which it counts.

    The agents act decentralised but for their messages: the utilities of an agent depend on its own
    observations and actions and on what others say to it.

    Args:
        scheme, groups: of the episode batch.
        args: as for `BasicMAC`, and what the agent network reads.

    Raises:
        ConfigError: an agent network that sends nothing, one of its settings, or policies in place
            of action values.
    """

    def _build_agents(self, input_shape: int) -> None:
        super()._build_agents(input_shape)
        if not isinstance(self.agent, CommAgent):
            raise ConfigError(
                f"controller '{self.args.mac}' needs an agent network that sends messages, got "
                f"agent={self.args.agent}"
            )
        if self.args.agent_output_type != "q":
            raise ConfigError(
                f"controller '{self.args.mac}' needs agent_output_type=q, got "
                f"agent_output_type={self.args.agent_output_type}"
            )
        self.sent = SentNumbers()

    # -- acting ------------------------------------------------------------------------------------
    def init_hidden(self, batch_size: int) -> None:
        """Starts new episodes: zero hidden states, nothing said yet."""
        super().init_hidden(batch_size)
        assert self.hidden_states is not None
        self.sent.start(batch_size, self.hidden_states.device)

    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A]."""
        actions = super().select_actions(ep_batch, t_ep, t_env, bs, test_mode)
        self.sent.add(bs, self._numbers)
        return actions

    def _step_agent(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        talk, hidden = self.agent.step_talk(inputs, hidden)
        with torch.no_grad():
            self._numbers = self.agent.numbers(talk.said)
        return talk.q, hidden

    def episode_figures(self) -> dict[str, Tensor]:
        """Figures of the episodes under way, [B] each; the collector logs their means."""
        return self.sent.figures()

    # -- training ----------------------------------------------------------------------------------
    def talk(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> Talk:
        """What the agents compute and say at all filled steps of a batch, as in training episodes.

        Args:
            inputs: `sequence_inputs(batch)` where it is already there.
        """
        steps = batch.steps() if steps is None else steps
        self._set_mode(test_mode=False)
        return self.agent.unroll_talk(
            self.sequence_inputs(batch, steps) if inputs is None else inputs, steps
        )

    def unroll(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """Utilities at all filled steps, [N, A, U]."""
        return self.talk(batch, steps, inputs).q
