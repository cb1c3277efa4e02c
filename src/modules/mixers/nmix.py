"""QMIX's monotone mixing network, as PyMARL2 configures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import linear
from modules.mixers.parts import as_rows, context_rows, hypernet, state_size
from utils.ranges import Range, check_ranges, one_of
from utils.th_utils import orthogonal_init_


def _half_square(w: Tensor) -> Tensor:
    return 0.5 * w.square()


_POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "softplus": F.softplus,
    "quadratic": _half_square,
}


class Mixer(nn.Module):
    """Q_tot = w2(s)^T ELU(W1(s)^T q + b1(s)) + b2(s) with W1, w2 >= 0 (Rashid et al. 2018, section
    4).

    The parameters of one group have PyMARL2's names and shapes, so its `mixer.th` loads.

    Args:
        args: `n_agents` (A), `state_shape` (S), `mixing_embed_dim`, `hypernet_layers` (layers of
            the networks that make W1 and w2: 1 or 2), `hypernet_embed` (their hidden width),
            `qmix_pos_func` (how W1 and w2 become non-negative: abs, softplus or quadratic, w^2 /
            2), `use_orthogonal` (linear layers begin orthogonal).
        abs: False leaves W1 and w2 unrestricted: a mixer that is not monotone.
        groups: G independent mixers side by side; with 1 the leading axis [G] is absent everywhere.

    Raises:
        ConfigError: `hypernet_layers` or `qmix_pos_func` is none of the above.
    """

    takes_actions = False
    ranges: ClassVar[Mapping[str, Range]] = {
        "qmix_pos_func": one_of(*_POSITIVE),
        "hypernet_layers": one_of(1, 2),
    }

    def __init__(self, args: SimpleNamespace, abs: bool = True, groups: int = 1) -> None:
        super().__init__()
        check_ranges(vars(args), self.ranges)
        self.n_agents, self.embed_dim, self.state_dim = (
            args.n_agents,
            args.mixing_embed_dim,
            state_size(args),
        )
        self.groups = groups
        self.pos_func = _POSITIVE[args.qmix_pos_func] if abs else None

        def weights(n_out: int) -> nn.Sequential:
            if args.hypernet_layers == 1:
                return nn.Sequential(linear(self.state_dim, n_out, groups))
            return hypernet(self.state_dim, args.hypernet_embed, n_out, groups)

        self.hyper_w1 = weights(self.n_agents * self.embed_dim)
        self.hyper_b1 = nn.Sequential(linear(self.state_dim, self.embed_dim, groups))
        self.hyper_w2 = weights(self.embed_dim)
        self.hyper_b2 = hypernet(self.state_dim, self.embed_dim, 1, groups)  # V(s) in the paper
        if args.use_orthogonal:
            for module in self.modules():
                orthogonal_init_(module)

    def forward(self, qvals: Tensor, states: Tensor) -> Tensor:
        """Mix the agents' utilities.

        Args:
            qvals: [(G,) ..., A].
            states: [..., S] (one for all groups) or [G, ..., S].

        Returns:
            [(G,) ..., 1].
        """
        q = as_rows(qvals, self.n_agents, self.groups)
        s = context_rows(states, self.state_dim, q.shape[-2], self.groups)
        w1, w2 = self.hyper_w1(s), self.hyper_w2(s)
        if self.pos_func is not None:
            w1, w2 = self.pos_func(w1), self.pos_func(w2)
        # Products and a sum, not bmm: with so few agents the batched product costs more, above all
        # backwards.
        hidden = (q.unsqueeze(-1) * w1.unflatten(-1, (self.n_agents, self.embed_dim))).sum(-2)
        hidden = F.elu(hidden + self.hyper_b1(s))
        q_tot = (hidden * w2).sum(-1, keepdim=True) + self.hyper_b2(s)
        return q_tot.view(*qvals.shape[:-1], 1)
