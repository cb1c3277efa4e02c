"""The controller that drives one agent network for all agents."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.action_selectors import REGISTRY as SELECTORS
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from components.steps import Steps
from controllers.agent_forms import is_current, takes_rows
from controllers.unroll import pack_steps, unroll_by_steps
from modules.agents import REGISTRY as AGENTS

ALL = slice(None)


@cache
def _identity(n: int, device: torch.device) -> Tensor:
    """Row i is the one-hot form of i; shared by all who ask, so not to be written to."""
    return torch.eye(n, device=device)


class BasicMAC:
    """PyMARL's controller, with `unroll` for whole sequences beside the step-wise `forward`.

    An agent's input is its observation, then its last action (one-hot, `obs_last_action`), then its
    index (one-hot, `obs_agent_id`).

    Args:
        scheme: of the episode batch.
        groups: of the episode batch.
        args: `n_agents`, `n_actions`, `agent`, `action_selector`, `agent_output_type` ("q" or
            "pi_logits"), ...

    Attributes:
        drawn: scheme entries for what a subclass draws in training beside the actions. They are
            stored only where somebody watches (`recorded` then has them), and `last_record` has
            their values.
    """

    drawn: ClassVar[Mapping[str, dict[str, Any]]] = {}

    # A plug-in may override `forward` with PyMARL's signature, which has no `bs`: then all rows are
    # computed.
    _forward_takes_rows = True
    _agent_takes_rows: bool | None = None  # see `agent_forms.takes_rows`; None: not asked yet

    def __init_subclass__(cls) -> None:
        cls._forward_takes_rows = "bs" in inspect.signature(cls.forward).parameters

    def __init__(
        self, scheme: Mapping[str, Any], groups: Mapping[str, int], args: SimpleNamespace
    ) -> None:
        self.n_agents = args.n_agents
        self.args = args
        input_shape = self._get_input_shape(scheme)
        self._build_agents(input_shape)
        self.agent_output_type = args.agent_output_type
        self.action_selector = SELECTORS[args.action_selector](args)
        self.hidden_states: Tensor | None = None

    # -- acting ------------------------------------------------------------------------------------
    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A]. Only these go through
        the network.
        """
        avail_actions = ep_batch["avail_actions"][bs, t_ep]
        if self._forward_takes_rows:
            outputs = self.forward(ep_batch, t_ep, test_mode=test_mode, bs=bs)
        else:
            outputs = self.forward(ep_batch, t_ep, test_mode=test_mode)[bs]
        return self.action_selector.select_action(
            outputs, avail_actions, t_env, test_mode=test_mode
        )

    def forward(
        self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False, bs: Any = ALL
    ) -> Tensor:
        """Outputs of step t for the episodes `bs`, [len(bs), A, U]; carries the hidden state from
        step to step.

        As in PyMARL, the agent is in evaluation mode (dropout, ...) where `test_mode` is true.
        """
        self._set_mode(test_mode)
        b = ep_batch.batch_size
        inputs = self._build_inputs(ep_batch, t).reshape(b, self.n_agents, -1)[bs]
        assert self.hidden_states is not None  # see init_hidden
        before = self.hidden_states.reshape(b, self.n_agents, -1)
        outputs, hidden = self._step_agent(inputs, before[bs])
        if isinstance(bs, slice) and bs == ALL:
            self.hidden_states = hidden
        else:
            self.hidden_states = before.clone()
            self.hidden_states[bs] = hidden
        if self.agent_output_type == "pi_logits":
            outputs = self._policy(outputs, ep_batch["avail_actions"][bs, t])
        return outputs

    def _set_mode(self, test_mode: bool) -> None:
        if self.agent.training == test_mode:
            self.agent.train(not test_mode)

    def _step_agent(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[B, A, F], [B, A, H] -> ([B, A, U], [B, A, H]), also for agents that know PyMARL's
        `forward` only.
        """
        if is_current(self.agent.__class__, "step"):
            return self.agent.step(inputs, hidden)
        if self._agent_takes_rows is None:
            self._agent_takes_rows = takes_rows(self.agent, inputs, hidden)
        n = inputs.shape[0]
        outputs, hidden = self.agent(
            inputs.flatten(0, 1) if self._agent_takes_rows else inputs, hidden
        )
        return outputs.reshape(n, self.n_agents, -1), hidden.reshape(n, self.n_agents, -1)

    def _policy(self, logits: Tensor, avail_actions: Tensor) -> Tensor:
        if self.args.mask_before_softmax:
            logits = logits.masked_fill(avail_actions == 0, -1e10)
        return torch.softmax(logits, dim=-1)

    def init_hidden(self, batch_size: int) -> None:
        """Zero hidden states for `batch_size` episodes, [B, A, H]; None for an agent without."""
        hidden = self.agent.init_hidden()
        self.hidden_states = None
        if hidden is None:
            return
        self.hidden_states = hidden.unsqueeze(0).expand(batch_size, self.n_agents, -1)

    # -- training ----------------------------------------------------------------------------------
    def unroll(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """Outputs of all filled steps of a batch, [N, A, U] in the order of `batch.steps()`.

        Args:
            inputs: `sequence_inputs(batch)` where it is already there (networks that read the same
                inputs share it).

        The numbers are those of `forward` called step by step; agents without `unroll` are called
        that way.
        """
        steps = batch.steps() if steps is None else steps
        own, ours = type(self), BasicMAC
        overridden = own.forward is not ours.forward or own.init_hidden is not ours.init_hidden
        if overridden or not is_current(self.agent.__class__, "unroll"):
            return unroll_by_steps(self, batch, steps)
        outputs = self.agent.unroll(
            self.sequence_inputs(batch, steps) if inputs is None else inputs, steps
        )
        if self.agent_output_type == "pi_logits":
            outputs = self._policy(outputs, steps.pack(batch["avail_actions"]))
        return outputs

    def sequence_inputs(self, batch: EpisodeBatch, steps: Steps | None = None) -> Tensor:
        """The agents' inputs at all filled steps, built once: [N, A, F]."""
        steps = batch.steps() if steps is None else steps
        if type(self)._build_inputs is not BasicMAC._build_inputs:
            per_step = [
                self._build_inputs(batch, t).reshape(batch.batch_size, self.n_agents, -1)
                for t in range(len(steps.sizes))
            ]
            return pack_steps(per_step, batch, steps)
        obs = batch["obs"]
        o = obs.shape[-1]
        inputs = obs.new_zeros(steps.n_rows, self.n_agents, self._n_inputs)
        steps.pack(obs, out=inputs[..., :o])
        if self.args.obs_last_action:
            # Row by row the action of the step before; the first step has none.
            actions = steps.pack(batch["actions"])[steps.cur]
            inputs[steps.nxt, :, o : o + self.args.n_actions].scatter_(-1, actions, 1.0)
        if self.args.obs_agent_id:
            inputs[..., -self.n_agents :] = _identity(self.n_agents, obs.device)
        return inputs

    def _build_inputs(self, batch: EpisodeBatch, t: int) -> Tensor:
        """The agents' inputs at step t, [B, A, F] as in PyMARL2; one that overrides this may also
        give [B * A, F].
        """
        obs = batch["obs"][:, t]
        parts = [obs]
        if self.args.obs_last_action:
            if t > 0:
                last = batch.stored("actions")[:, t - 1, :, 0].long()
                parts.append(torch.embedding(_identity(self.args.n_actions, obs.device), last))
            else:
                parts.append(obs.new_zeros(*obs.shape[:2], self.args.n_actions))
        if self.args.obs_agent_id:
            parts.append(_identity(self.n_agents, obs.device).expand(obs.shape[0], -1, -1))
        return torch.cat(parts, dim=-1)

    def _get_input_shape(self, scheme: Mapping[str, Any]) -> int:
        obs = scheme["obs"]["vshape"]
        n = obs if isinstance(obs, int) else obs[0]
        n += self.args.n_actions if self.args.obs_last_action else 0
        n += self.n_agents if self.args.obs_agent_id else 0
        self._n_inputs = n
        return n

    def _build_agents(self, input_shape: int) -> None:
        self.agent = AGENTS[self.args.agent](input_shape, self.args)

    # -- for people who watch ---------------------------------------------------------------------
    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """What the agents act on, at all N filled steps of one recorded episode.

        Here the outputs of `unroll`: action values or, with agent_output_type=pi_logits,
        probabilities.
        """
        self._set_mode(test_mode=True)
        steps = batch.steps()
        outputs = self.unroll(batch, steps)
        if self.agent_output_type == "q":
            return {"action values": Inner(outputs, ("agent", "action"))}
        return {"probabilities": Inner(outputs, ("agent", "action"), "probability")}

    # -- parameters --------------------------------------------------------------------------------
    def parameters(self) -> Iterator[nn.Parameter]:
        return self.agent.parameters()

    def load_state(self, other_mac: BasicMAC) -> None:
        """Copies the other controller's weights."""
        self.agent.load_state_dict(other_mac.agent.state_dict())

    def cuda(self) -> None:
        self.agent.cuda()

    def save_models(self, path: str) -> None:
        """Writes `agent.th` into a folder."""
        torch.save(self.agent.state_dict(), f"{path}/agent.th")

    def load_models(self, path: str, trained_agents: int = 0) -> None:
        """Reads `agent.th` from a folder.

        Args:
            trained_agents: how many agents it is of; agent i takes the networks of agent i mod
                that. 0: as many.
        """
        weights = torch.load(f"{path}/agent.th", map_location="cpu", weights_only=True)
        if trained_agents and not self.args.share_params:
            turns = torch.arange(self.n_agents) % trained_agents
            weights = {
                name: x[turns] if x.shape[:1] == (trained_agents,) else x
                for name, x in weights.items()
            }
        self.agent.load_state_dict(weights)
