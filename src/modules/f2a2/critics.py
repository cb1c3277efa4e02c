"""The critics of agents that learn on their own: every agent has its copy, all of them computed
side by side.

Copy i values the actions of agent i alone: Q_i(o, a_-i, .). All parameters are [A, C, ...], one set
for each of A agents and C critics (twins). What the agents are to agree on (`shared_parameters`)
has the same shape in all copies.

All are built as `Critic(scheme, args, n_critics)` and called as `critic(obs, joint)`: observations
[M, A, O], one-hot joint actions [A, M, A, U] as agent i sees or imagines them -> values [A, C, M,
U]. The own action among them is not read: there is a value for each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.kernels.attention import attend
from modules.kernels.linear import affine, relu_
from modules.layers import LEAKY, StackedLinear, first_inputs, grouped
from utils.errors import ConfigError
from utils.registry import Registry


def joint_actions(actions: Tensor, n_actions: int) -> Tensor:
    """Joint actions that all agents know, as critics read them: int64 [M, A] -> [A, M, A, U]."""
    return F.one_hot(actions, n_actions).float().expand(actions.shape[1], -1, -1, -1)


class CopiedLinear(nn.Module):
    """Linear layers for every agent, critic and further axes: [A, C, *inner, M, n_in] -> [A, C,
    *inner, M, n_out].

    Args:
        lead: (A, C, *inner); axes of the input that are 1 are shared.
        bias: whether there is one.
        used: bool [product of lead, n_in], the inputs that are no padding; None: all.
        head: values come out, computed in float32 with every `precision`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        lead: tuple[int, ...],
        bias: bool = True,
        used: Tensor | None = None,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.lead, self.is_head = lead, head
        layer = StackedLinear(n_in, n_out, math.prod(lead), used)
        self.weight = nn.Parameter(layer.weight.detach().view(*lead, n_out, n_in))
        self.bias = nn.Parameter(layer.bias.detach().view(*lead, n_out)) if bias else None

    def forward(self, x: Tensor, rectify: bool = False) -> Tensor:
        """[A, C, *inner, M, n_in] -> [A, C, *inner, M, n_out], through a leaky ReLU if
        `rectify`.
        """
        bias = None if self.bias is None else self.bias.flatten(0, -2)
        weight = self.weight.flatten(0, -3)
        out = grouped(self._rows(x), weight, bias, rectify, LEAKY, self.is_head)
        return out.view(*self.lead, *out.shape[-2:])

    def first(self, x: Tensor) -> Tensor:
        """The layer for the first inputs alone, the bias included; `add` has the others."""
        assert self.bias is not None
        weight = self.weight.flatten(0, -3).narrow(-1, 0, x.shape[-1])
        out = grouped(self._rows(x), weight, self.bias.flatten(0, -2))
        return out.view(*self.lead, *out.shape[-2:])

    def add(
        self, so_far: Tensor, x: Tensor, start: int, width: int, rectify: bool = False
    ) -> Tensor:
        """so_far plus the product with the inputs `start` to `start + width`."""
        weight = self.weight.flatten(0, -3).narrow(-1, start, width)
        out = grouped(self._rows(x), weight, None) + so_far.flatten(0, -3)
        out = relu_(out, LEAKY) if rectify else out
        return out.view(*self.lead, *out.shape[-2:])

    def _rows(self, x: Tensor) -> Tensor:
        """[A, C, *inner, M, n], with axes of 1 that are shared -> [A C ..., M, n]."""
        return x.expand(*self.lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])

    def first_critics(self) -> CopiedLinear:
        """The layers of every agent's first critic, on the same parameters."""
        view = copy.copy(self)
        view.lead = (self.lead[0], 1, *self.lead[2:])
        view._parameters = {}
        view.weight = self.weight[:, :1]
        view.bias = None if self.bias is None else self.bias[:, :1]
        return view


def _normalised(x: Tensor) -> Tensor:
    """Batch norm of [..., M, F] over the rows, without affine parameters; what never changes
    becomes 0.
    """
    var, mean = torch.var_mean(x, dim=-2, correction=0, keepdim=True)
    return (x - mean) * (var + 1e-5).rsqrt()


class CriticCopies(nn.Module):
    """Base: see the module.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`, `critic_hidden_dim`, `env_info`.
        n_critics: C.

    Attributes:
        reads_others: whether a value depends on what other agents observe and do.
        scopes: what agents may agree on, name -> layers; None: all.
    """

    reads_others = True
    scopes: Mapping[str, tuple[str, ...] | None] = {"paper": None}

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace, n_critics: int) -> None:
        super().__init__()
        obs = scheme["obs"]["vshape"]
        self.obs_size = obs if isinstance(obs, int) else obs[0]
        self.n_agents, self.n_actions, self.width = (
            args.n_agents,
            args.n_actions,
            args.critic_hidden_dim,
        )
        self.lead = (args.n_agents, n_critics)

    def forward(self, obs: Tensor, joint: Tensor) -> Tensor:
        """[M, A, O], [A, M, A, U] -> [A, C, M, U]."""
        return self.values(self.observe(obs), joint)

    def observe(self, obs: Tensor) -> Any:
        """What the values of several joint actions at the same observations have in common; [M, A,
        O].
        """
        raise NotImplementedError

    def values(self, seen: Any, joint: Tensor) -> Tensor:
        """[A, C, M, U], given what `observe` returned."""
        raise NotImplementedError

    def first_critics(self) -> CriticCopies:
        """The first critic of every agent alone, on the same parameters: where second critics are
        unused, they need not be computed.
        """
        if self.lead[1] == 1:
            return self
        view = copy.copy(self)
        view.lead = (self.n_agents, 1)
        view._modules = {
            name: layer.first_critics()
            for name, layer in self.named_children()
            if isinstance(layer, CopiedLinear)
        }
        return view

    def shared_parameters(self, scope: str) -> dict[str, nn.Parameter]:
        """Name -> parameter [A, ...] that agents exchange if this is their `consensus_scope`.

        Raises:
            ConfigError: the critic does not have it.
        """
        if scope not in self.scopes:
            known = ", ".join(self.scopes)
            raise ConfigError(
                f"consensus_scope of this critic must be one of {known}, got '{scope}'"
            )
        layers = self.scopes[scope] or tuple(self._modules)
        return {
            name: param
            for name, param in self.named_parameters()
            if name.partition(".")[0] in layers
        }


def first_critics_of(seen: Any) -> Any:
    """What the first critics make of the observations, from what all do: tensors [A, C, ...]."""
    return seen[:, :1] if isinstance(seen, Tensor) else type(seen)(*(part[:, :1] for part in seen))


class _Seen(NamedTuple):
    """What an attention critic makes of the observations; J = A - 1 others, h heads."""

    s: Tensor  # [A, C, M, H]
    query: Tensor  # [A, C, h, M, H], meets the encodings themselves: the keys' matrix is in it
    encoded: Tensor  # [A, C, M, J * H], of the encoders g_j before the actions are added


class AttentionCopies(CriticCopies):
    """MAAC's attention critic (Iqbal and Sha 2019), a copy for every agent: `attention`.

    Copy i has an encoder f of the own observation, an encoder g_j of every other agent's
    observation and action, the matrices of the attention and a last network. The agents agree on
    the matrices, the rest is their own (F2A2, table 1); with `consensus_scope: encoders` they agree
    on the encoders g_j too.

    Args:
        args: further `attention_heads`.

    Raises:
        ConfigError: there is one agent alone, or the heads do not divide the width.
    """

    others: Tensor  # int64 [A, A - 1], of every agent, in order

    scopes = {"paper": ("query", "key", "value"), "encoders": ("query", "key", "value", "encoder")}

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace, n_critics: int) -> None:
        super().__init__(scheme, args, n_critics)
        a, u, width, self.heads = self.n_agents, self.n_actions, self.width, args.attention_heads
        if a < 2:
            raise ConfigError(
                "critic 'attention' needs other agents to attend to, but there is only one agent"
            )
        if width % self.heads:
            raise ConfigError(
                f"attention_heads ({self.heads}) must divide critic_hidden_dim ({width})"
            )
        obs_sizes, action_sizes = args.env_info["obs_sizes"], args.env_info["action_sizes"]
        own = first_inputs((self.obs_size, obs_sizes)).repeat_interleave(n_critics, 0)
        others = first_inputs((self.obs_size, obs_sizes), (u, action_sizes)).repeat(
            a * n_critics, 1
        )
        self.state_encoder = CopiedLinear(self.obs_size, width, self.lead, used=own)
        self.encoder = CopiedLinear(self.obs_size + u, width, (*self.lead, a), used=others)
        self.query = CopiedLinear(width, width, self.lead, bias=False)
        self.key = CopiedLinear(width, width, self.lead, bias=False)
        self.value = CopiedLinear(width, width, self.lead)
        self.head1 = CopiedLinear(2 * width, width, self.lead)
        self.head2 = CopiedLinear(width, u, self.lead, head=True)
        others = (~torch.eye(a, dtype=torch.bool)).nonzero()[:, 1].view(a, a - 1)
        self.register_buffer("others", others, persistent=False)

    def observe(self, obs: Tensor) -> _Seen:
        x = _normalised(obs.transpose(0, 1))
        s = self.state_encoder(x.unsqueeze(1), rectify=True)
        # q (K e) = (q K) e: one query for each head instead of a key for each other agent.
        query, key = (
            y.unflatten(d, (self.heads, -1))
            for y, d in ((self.query(s), -1), (self.key.weight, -2))
        )
        query = torch.einsum("icmhd,ichdk->ichmk", query, key)
        weight, bias = self._encoder_of_others()
        by_obs = weight[..., : self.obs_size].flatten(0, 2).mT
        rows = x[self.others].unsqueeze(1).expand(*bias.shape[:3], -1, -1).flatten(0, 2)
        encoded = torch.baddbmm(bias.flatten(0, 2).unsqueeze(1), rows, by_obs)
        return _Seen(
            s, query, encoded.view(*bias.shape[:3], *encoded.shape[1:]).transpose(2, 3).flatten(3)
        )

    def values(self, seen: _Seen, joint: Tensor) -> Tensor:
        a, n_others, rows = self.n_agents, self.n_agents - 1, joint.shape[1]
        # The actions of all others in one product: the matrix has a block for each of them.
        weight = self._encoder_of_others()[0][..., self.obs_size :].mT.flatten(
            0, 1
        )  # [A * C, J, U, H]
        blocks = (
            torch.diag_embed(weight.permute(0, 2, 3, 1), dim1=1, dim2=3).flatten(1, 2).flatten(2)
        )
        actions = joint.gather(
            2, self.others.view(a, 1, -1, 1).expand(-1, rows, -1, joint.shape[-1])
        )
        actions = _normalised(actions.flatten(2)).repeat_interleave(self.lead[1], 0)
        encoded = torch.baddbmm(seen.encoded.flatten(0, 1), actions, blocks)
        e = relu_(encoded, LEAKY).view(-1, rows, n_others, self.width)
        assert self.value.bias is not None
        mixed = attend(
            e,
            seen.query.flatten(0, 1),
            self.value.weight.flatten(0, 1),
            self.value.bias.flatten(0, 1),
            LEAKY,
        ).view(*self.lead, rows, self.width)
        hidden = self.head1.add(
            self.head1.first(seen.s), mixed, self.width, self.width, rectify=True
        )
        return self.head2(hidden)

    def _encoder_of_others(self) -> tuple[Tensor, Tensor]:
        """Weights [A, C, J, H, O + U] and biases [A, C, J, H] of the encoders that are in use:
        nobody has its own.
        """
        assert self.encoder.bias is not None
        agents = torch.arange(self.n_agents, device=self.others.device).unsqueeze(1)
        weight, bias = (
            p.transpose(1, 2)[agents, self.others] for p in (self.encoder.weight, self.encoder.bias)
        )
        return weight.transpose(1, 2), bias.transpose(1, 2)


class CentralCopies(CriticCopies):
    """One network on all observations, the others' actions and the own number, a copy for every
    agent: `central`.

    It is COMA's critic (Foerster et al. 2018): one value for each own action. All its parameters
    are agreed on (F2A2, table 1); with `consensus_scope: hidden` on the hidden layer alone, between
    an own first and an own last one. Observations pass batch norm without affine parameters, as in
    MAAC's version of MADDPG.
    """

    numbers: Tensor  # [A, A], the identity

    scopes = {"paper": None, "hidden": ("fc2",)}

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace, n_critics: int) -> None:
        super().__init__(scheme, args, n_critics)
        a, u, width = self.n_agents, self.n_actions, self.width
        self.fc1 = CopiedLinear(a * self.obs_size + a * u + a, width, self.lead)
        self.fc2 = CopiedLinear(width, width, self.lead)
        self.fc3 = CopiedLinear(width, u, self.lead, head=True)
        self.register_buffer("numbers", torch.eye(a), persistent=False)

    def observe(self, obs: Tensor) -> Tensor:
        """[A, C, M, H], before the actions are added."""
        a, n = self.n_agents, self.n_actions
        by_obs, _, by_number = self.fc1.weight.split([a * self.obs_size, a * n, a], -1)
        # All copies read the same observations: one product.
        x = affine(_normalised(obs.flatten(1)), by_obs.flatten(0, 2)).view(-1, *by_obs.shape[:3])
        number = (by_number * self.numbers.view(a, 1, 1, a)).sum(-1) + self.fc1.bias
        return (x + number).permute(1, 2, 0, 3)

    def values(self, seen: Tensor, joint: Tensor) -> Tensor:
        others = (joint * (1 - self.numbers).view(self.n_agents, 1, -1, 1)).flatten(2).unsqueeze(1)
        start = self.n_agents * self.obs_size
        hidden = self.fc1.add(seen, others, start, others.shape[-1], rectify=True)
        return self.fc3(self.fc2(hidden, rectify=True))


class OwnCopies(CriticCopies):
    """A critic of the own observation and action alone, for very many agents: `own` (F2A2-ISAC,
    section 6.3).
    """

    reads_others = False

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace, n_critics: int) -> None:
        super().__init__(scheme, args, n_critics)
        self.fc1 = CopiedLinear(self.obs_size, self.width, self.lead)
        self.fc2 = CopiedLinear(self.width, self.width, self.lead)
        self.fc3 = CopiedLinear(self.width, self.n_actions, self.lead, head=True)

    def observe(self, obs: Tensor) -> Tensor:
        """[A, C, M, U], which do not depend on the others' actions."""
        x = self.fc1(obs.transpose(0, 1).unsqueeze(1), rectify=True)
        return self.fc3(self.fc2(x, rectify=True))

    def values(self, seen: Tensor, joint: Tensor) -> Tensor:
        return seen


COPIES = Registry("critic of agents that learn on their own")
COPIES.register("attention")(AttentionCopies)
COPIES.register("central")(CentralCopies)
COPIES.register("own")(OwnCopies)
