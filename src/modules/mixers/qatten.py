"""Qatten: utilities mixed by attention of the state to the agents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modules.layers import Linear
from modules.mixers.parts import MultiHeadMLP, as_rows, context_rows, hypernet, state_size
from utils.errors import ConfigError
from utils.ranges import COUNT, Range, check_ranges

_ENTRIES = Range(
    # `assembly.describe_env` puts a number in the place of True
    lambda value: value is False or (not isinstance(value, bool) and value >= 0),
    "a number of entries, at least 0",
)


class QattenMixer(nn.Module):
    """Q_tot = c(s) + sum_h w_h(s) sum_i lambda_ih Q_i with w_h >= 0 (Yang et al. 2020, "Qatten").

    lambda_ih = softmax_i(key_ih . query_h / sqrt(d)). Queries come from the state. Keys come from
    what the state says about agent i: with `agent_own_state_size` u > 0 from entries [i u, (i + 1)
    u) of the state (SMAC's layout), with 0 from an embedding of the whole state learned for each
    agent, which assumes no layout. Neither depends on the utilities, so Q_tot is monotone in them.

    Args:
        args: `n_agents` (A), `state_shape` (S), `n_attention_head` (H), `n_query_embedding_layer1`
            (hidden width of the queries), `n_query_embedding_layer2` (d, entries of a query and of
            a key), `n_key_embedding_layer1` and `hypernet_embed` (size of an agent's embedding and
            of the layer before it), `n_head_embedding_layer1` and `n_constrant_value` (hidden
            widths of w and c), `weighted_head` (False: w_h = 1), `agent_own_state_size`.

    Raises:
        ConfigError: a key is out of range, or the state is too short for `agent_own_state_size`
            entries per agent.
    """

    takes_actions = False
    ranges: ClassVar[Mapping[str, Range]] = {
        "n_attention_head": COUNT,
        "n_query_embedding_layer1": COUNT,
        "n_query_embedding_layer2": COUNT,
        "n_key_embedding_layer1": COUNT,
        "n_head_embedding_layer1": COUNT,
        "n_constrant_value": COUNT,
        "agent_own_state_size": _ENTRIES,
    }

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        check_ranges(vars(args), self.ranges)
        self.n_agents, self.state_dim, self.heads = (
            args.n_agents,
            state_size(args),
            args.n_attention_head,
        )
        self.key_dim = args.n_query_embedding_layer2
        self.unit_dim = int(args.agent_own_state_size)
        if self.unit_dim * self.n_agents > self.state_dim:
            raise ConfigError(
                f"agent_own_state_size is {self.unit_dim}, but the state has {self.state_dim} "
                "entries for "
                f"{self.n_agents} agents; set it to 0 if the state does not begin with one block "
                "per agent"
            )
        self.query = MultiHeadMLP(
            self.state_dim, args.n_query_embedding_layer1, self.key_dim, self.heads
        )
        n_unit = self.unit_dim or args.n_key_embedding_layer1
        if not self.unit_dim:
            self.agent_embedding = hypernet(
                self.state_dim, args.hypernet_embed, self.n_agents * n_unit
            )
        # No bias: it would shift all logits of a head alike, which a softmax does not see.
        self.key = Linear(n_unit, self.heads * self.key_dim, bias=False)
        self.head_weight = None
        if args.weighted_head:
            self.head_weight = hypernet(self.state_dim, args.n_head_embedding_layer1, self.heads)
        self.constant = hypernet(self.state_dim, args.n_constrant_value, 1)

    def _logits(self, states: Tensor) -> Tensor:
        """[N, S] -> [N, H, A]."""
        units = (
            states[:, : self.n_agents * self.unit_dim]
            if self.unit_dim
            else self.agent_embedding(states)
        )
        keys = self.key(units.unflatten(-1, (self.n_agents, -1))).unflatten(
            -1, (self.heads, self.key_dim)
        )
        return torch.einsum("nhd,nahd->nha", self.query(states), keys) / math.sqrt(self.key_dim)

    def forward_with_reg(self, agent_qs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and what Qatten's authors add to the loss to keep the attention from
        saturating.

        Returns:
            Q_tot [..., 1], and a scalar: the mean squared attention logit, summed over the heads
            (scaled by 0.001 in their experiments).
        """
        q = as_rows(agent_qs, self.n_agents)
        s = context_rows(states, self.state_dim, q.shape[0])
        logits = self._logits(s)
        per_head = (logits.softmax(dim=-1) * q.unsqueeze(1)).sum(-1)
        if self.head_weight is not None:
            per_head = per_head * self.head_weight(s).abs()
        q_tot = per_head.sum(-1, keepdim=True) + self.constant(s)
        return q_tot.view(*agent_qs.shape[:-1], 1), logits.square().mean(dim=(0, 2)).sum()

    def forward(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """Mix the agents' utilities.

        Args:
            agent_qs: [..., A].
            states: [..., S].

        Returns:
            [..., 1].
        """
        return self.forward_with_reg(agent_qs, states)[0]

    def of_several(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """Joint values of J sets of utilities in every state; the weights are computed once.

        Args:
            agent_qs: [J, N, A].
            states: [N, S].

        Returns:
            [J, N, 1].
        """
        weights = self._logits(states).softmax(dim=-1)
        if self.head_weight is not None:
            weights = weights * self.head_weight(states).abs().unsqueeze(-1)
        return (agent_qs * weights.sum(1)).sum(-1, keepdim=True) + self.constant(states)
