"""QPLEX: duplex dueling mixing."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modules.mixers.parts import MultiHeadMLP, as_rows, context_rows, hypernet, state_size
from utils.ranges import COUNT, Range, check_ranges, one_of


class DMAQSIWeight(nn.Module):
    """Importance weights lambda_i(s, a) > 0 of the agents' advantages (Wang et al. 2021, section
    3.2).

    lambda_i = sum_k |key_k(s)| sigmoid(agents_ik(s)) sigmoid(action_ik(s, a)).

    Args:
        args: `n_agents` (A), `n_actions` (U), `state_shape` (S), `num_kernel` (terms k),
            `adv_hypernet_layers` (1 to 3) and `adv_hypernet_embed` (hidden width) of the three
            networks.
        groups: G independent sets.

    """

    def __init__(self, args: SimpleNamespace, groups: int = 1) -> None:
        super().__init__()
        layers, embed, kernels = args.adv_hypernet_layers, args.adv_hypernet_embed, args.num_kernel
        n_state = state_size(args)
        n_joint = n_state + args.n_agents * args.n_actions
        self.key = MultiHeadMLP(n_state, embed, 1, kernels, layers, groups)
        self.agents = MultiHeadMLP(n_state, embed, args.n_agents, kernels, layers, groups)
        self.action = MultiHeadMLP(n_joint, embed, args.n_agents, kernels, layers, groups)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """states [(G,) N, S], one-hot actions [(G,) N, A * U] -> [(G,) N, A]."""
        if states.dim() != actions.dim():  # one of them is shared by the groups, the other is not
            groups = max(states, actions, key=Tensor.dim).shape[0]
            states, actions = (x.expand(groups, *x.shape[-2:]) for x in (states, actions))
        key = self.key(states).abs() + 1e-10
        action = self.action(torch.cat([states, actions.to(states.dtype)], dim=-1))
        return (key * self.agents(states).sigmoid() * action.sigmoid()).sum(-2)


class DMAQer(nn.Module):
    """Q_tot = sum_i V_i + sum_i lambda_i(s, a) A_i (Wang et al. 2021, section 3.2),
    V_i = max_a Q_i, A_i = Q_i - V_i <= 0.

    With `weighted_head` every utility is transformed first: Q_i <- w_i(s) Q_i + b_i(s), w_i > 0.
    All lambda_i > 0, so the greedy joint action is the tuple of the agents' greedy actions (IGM),
    and nothing else is restricted. As in the authors' code no gradient flows through A_i in
    lambda_i A_i.

    Args:
        args: `n_agents` (A), `n_actions` (U), `state_shape` (S), `hypernet_embed`, `weighted_head`,
            `is_minus_one` (False: the advantages' weights are 1 + lambda_i, as the value stream
            keeps its own A_i), and what `DMAQSIWeight` reads.
        groups: G independent mixers side by side; with 1 the leading axis [G] is absent everywhere.

    Raises:
        ConfigError: a key is out of range.
    """

    takes_actions = True
    ranges: ClassVar[Mapping[str, Range]] = {
        "num_kernel": COUNT,
        "adv_hypernet_layers": one_of(1, 2, 3),
        "adv_hypernet_embed": COUNT,
    }

    def __init__(self, args: SimpleNamespace, groups: int = 1) -> None:
        super().__init__()
        check_ranges(vars(args), self.ranges)
        self.n_agents, self.state_dim = args.n_agents, state_size(args)
        self.action_dim = args.n_agents * args.n_actions
        self.weighted_head, self.is_minus_one, self.groups = (
            args.weighted_head,
            args.is_minus_one,
            groups,
        )
        if self.weighted_head:
            self.hyper_w_final = hypernet(
                self.state_dim, args.hypernet_embed, self.n_agents, groups
            )
            self.V = hypernet(self.state_dim, args.hypernet_embed, self.n_agents, groups)
        self.si_weight = DMAQSIWeight(args, groups)

    def _transform(self, states: Tensor, *qs: Tensor) -> list[Tensor]:
        if not self.weighted_head:
            return list(qs)
        w = self.hyper_w_final(states).abs() + 1e-10
        v = self.V(states)
        return [torch.addcmul(v, w, q) for q in qs]

    def _advantage(self, q: Tensor, max_q: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        actions = context_rows(actions, self.action_dim, q.shape[-2], self.groups)
        weight = self.si_weight(states, actions)
        if self.is_minus_one:
            weight = weight - 1.0
        return ((q - max_q).detach() * weight).sum(-1, keepdim=True)

    def _rows(self, agent_qs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        q = as_rows(agent_qs, self.n_agents, self.groups)
        return q, context_rows(states, self.state_dim, q.shape[-2], self.groups)

    def forward(
        self,
        agent_qs: Tensor,
        states: Tensor,
        actions: Tensor | None = None,
        max_q_i: Tensor | None = None,
        is_v: bool = False,
    ) -> Tensor:
        """One of the two terms of Q_tot, as in PyMARL2: Q_tot is the sum of both.

        Args:
            agent_qs: [(G,) ..., A], utilities of the actions taken.
            states: [..., S] or [G, ..., S].
            actions: one-hot [..., A, U] or [G, ..., A, U]; not read with `is_v`.
            max_q_i: [(G,) ..., A], the agents' largest utilities; not read with `is_v`.
            is_v: True: sum_i Q_i. False: sum_i (lambda_i - 1) A_i, or lambda_i A_i without
                `is_minus_one`.

        Returns:
            [(G,) ..., 1].

        Raises:
            ValueError: `actions` or `max_q_i` is needed and missing.
        """
        q, s = self._rows(agent_qs, states)
        if is_v:
            (q,) = self._transform(s, q)
            y = q.sum(-1, keepdim=True)
        elif actions is None or max_q_i is None:
            raise ValueError("the advantage term needs actions and max_q_i")
        else:
            q, max_q = self._transform(s, q, as_rows(max_q_i, self.n_agents, self.groups))
            y = self._advantage(q, max_q, s, actions)
        return y.view(*agent_qs.shape[:-1], 1)

    def joint(self, agent_qs: Tensor, states: Tensor, actions: Tensor, max_q_i: Tensor) -> Tensor:
        """Q_tot, both terms at once: [(G,) ..., 1]. Arguments as in `forward`."""
        q, s = self._rows(agent_qs, states)
        q, max_q = self._transform(s, q, as_rows(max_q_i, self.n_agents, self.groups))
        y = q.sum(-1, keepdim=True) + self._advantage(q, max_q, s, actions)
        return y.view(*agent_qs.shape[:-1], 1)
