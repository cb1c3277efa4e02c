"""The controller of DAC: every agent acts on the best value over all contexts, and explores
contexts and actions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from components.action_selectors import EpsilonGreedyActionSelector, masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from components.steps import Steps
from controllers.basic_controller import ALL
from controllers.n_controller import NMAC
from modules.dac.agent import DACAgent
from utils.errors import ConfigError


class DACMAC(NMAC):
    """Acts on the optimistic marginal value phi(s, a), the maximum over the contexts of Q(s, a, c)
    (DAC, eq. 11).

    Training (eq. 14): with probability epsilon an agent follows Q(s, ., c) of a context that it
    draws uniformly at this step, else phi; on these values it is epsilon-greedy. Evaluation: greedy
    on phi. No window is needed for acting.

    Args:
        scheme, groups: of the episode batch.
        args: as for `BasicMAC`, and `dac_context_exploration` (False: always phi), and what
            `DACAgent` reads.

    Raises:
        ConfigError: an agent network of another kind, or one of its settings.
    """

    drawn: ClassVar = {"dac_context": {"vshape": (), "group": "agents", "dtype": torch.long}}

    def _build_agents(self, input_shape: int) -> None:
        super()._build_agents(input_shape)
        self.last_record: dict[str, Tensor] = {}
        if not isinstance(self.agent, DACAgent):
            raise ConfigError(f"dac_mac needs agent=dac_rnn, got '{self.args.agent}'")

    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A]."""
        avail = ep_batch["avail_actions"][bs, t_ep]
        values = self.forward_all(ep_batch, t_ep, test_mode, bs)
        q = values.amax(2) if test_mode else self.behaviour(values, t_env)
        return self.action_selector.select_action(q, avail, t_env, test_mode=test_mode)

    def behaviour(self, values: Tensor, t_env: int) -> Tensor:
        """What the agents follow in training (eq. 14): values in all contexts [B, A, m, U] -> [B,
        A, U].
        """
        phi = values.amax(2)
        if not self.args.dac_context_exploration:
            self.last_record = {"dac_context": phi.new_full(phi.shape[:2], -1, dtype=torch.long)}
            return phi
        n_rows, n_agents, n_contexts, n_actions = values.shape
        selector: EpsilonGreedyActionSelector = self.action_selector
        contexts = torch.randint(n_contexts, (n_rows, n_agents, 1, 1), device=values.device)
        drawn = values.gather(2, contexts.expand(-1, -1, 1, n_actions)).squeeze(2)
        explore = torch.rand(n_rows, n_agents, 1, device=values.device) < selector.schedule.eval(
            t_env
        )
        self.last_record = {
            "dac_context": torch.where(explore, contexts.flatten(2), -1).squeeze(-1)
        }
        return torch.where(explore, drawn, phi)

    def forward(
        self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False, bs: Any = ALL
    ) -> Tensor:
        """phi of step t for the episodes `bs`, [len(bs), A, U]; carries the hidden state from step
        to step.
        """
        return self.forward_all(ep_batch, t, test_mode, bs).amax(2)

    def forward_all(
        self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False, bs: Any = ALL
    ) -> Tensor:
        """Values in all contexts of step t for the episodes `bs`, [len(bs), A, m, U]; see
        `forward`.
        """
        return super().forward(ep_batch, t, test_mode, bs)

    def unroll(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """phi at all filled steps, [N, A, U]."""
        steps = batch.steps() if steps is None else steps
        return self.agent.unroll(
            self.sequence_inputs(batch, steps) if inputs is None else inputs, steps
        ).amax(2)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """phi, the values in all contexts, in which context the best action has its value, and,
        where it was recorded, the context that was explored.
        """
        steps = batch.steps()
        values = self.agent.unroll(self.sequence_inputs(batch, steps), steps)
        phi, contexts = values.max(2)
        greedy = masked_argmax(phi, steps.pack(batch["avail_actions"])).unsqueeze(-1)
        best = contexts.gather(-1, greedy).squeeze(-1)
        shown = {
            "action values": Inner(phi, ("agent", "action")),
            "context of the best action": Inner(best, ("agent",), "number"),
            "values by context": Inner(values, ("agent", "context", "action")),
        }
        if "dac_context" in batch.scheme:
            followed = steps.pack(batch["dac_context"]).clone()
            followed[-1] = -1  # after the last step nobody acts
            shown["context that is explored"] = Inner(followed, ("agent",), "number")
        return shown
