"""MAAC's attention critic (Iqbal and Sha 2019), all agents at once, with the values of other
agents' other actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import (
    LEAKY,
    Linear,
    StackedBatchNorm,
    StackedLinear,
    added,
    first_inputs,
    grouped,
)
from utils.errors import ConfigError

# Rows of a batch whose counterfactual values are computed together: what is in between then stays
# in the cache.
_ROWS = 64
# Added to the score of what is not attended to; finite, so that a softmax over nothing else is no
# NaN.
_NEVER = -1e30


class AttentionOut(NamedTuple):
    """What the critic says of N joint observations and actions; h heads."""

    all_q: Tensor  # [N, A, U], Q_i(o, a_-i, .); continuous actions: [N, A, K], K own actions
    logits: Tensor  # [h, N, A, A], unscaled, 0 on the diagonal: nobody attends to itself
    attention: Tensor  # [h, N, A, A], the weight that agent i gives to j; 0 on the diagonal


class _Attended(NamedTuple):
    """Between the encoders and the agents' own last networks; d entries per head."""

    s: Tensor  # [A, N, H]
    query: Tensor  # [N * h, A, d]
    value: Tensor  # [N * h, A, d]
    logits: Tensor  # [N * h, A, A]
    attention: Tensor  # [N * h, A, A]


class AttentionCritic(nn.Module):
    """One value per action of every agent, given what the others see and do.

    Agent i's own observation becomes s_i = f_i(o_i), another agent's observation and action e_j =
    g_j(o_j, a_j): batch norm without affine parameters, one layer, LeakyReLU. In every head a query
    made from s_i meets the keys of all e_j, j != i (scaled dot product); the values (LeakyReLU)
    that it attends to and s_i go through agent i's own two-layer network to Q_i(o, a_-i, .).
    Queries, keys and values are made by matrices that all agents share, f_i, g_j and the last
    network are per agent. Continuous actions: agent i's own action is another input of its last
    network, which puts out one value.

    In training mode batch norm uses the statistics of the batch it is given (N >= 2).

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`, `env_info` (`obs_sizes`, `action_sizes`),
            `continuous_actions`, `critic_hidden_dim` (H), `attention_heads`.

    Raises:
        ConfigError: one agent alone, or heads that do not divide H.
    """

    others: Tensor  # [A, A], 1 for i != j
    never: Tensor  # [A, A], for i = j what no softmax lets through

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.check_settings(args)
        n_agents, n_actions = args.n_agents, args.n_actions
        width, heads = args.critic_hidden_dim, args.attention_heads
        obs = scheme["obs"]["vshape"]
        self.obs_size = obs if isinstance(obs, int) else obs[0]
        self.n_agents, self.n_actions, self.width, self.heads = n_agents, n_actions, width, heads
        self.continuous = args.continuous_actions
        obs_sizes, action_sizes = args.env_info["obs_sizes"], args.env_info["action_sizes"]
        seen = first_inputs((self.obs_size, obs_sizes), (n_actions, action_sizes))
        self.norm = StackedBatchNorm(
            self.obs_size + n_actions, n_agents
        )  # f and g normalise the same observations
        leaky: dict[str, Any] = {"rectify": True, "slope": LEAKY}
        self.state_encoder = StackedLinear(self.obs_size, width, n_agents, obs_sizes, **leaky)
        self.encoder = StackedLinear(self.obs_size + n_actions, width, n_agents, seen, **leaky)
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, **leaky)
        # The last network reads the attended values, s_i and, where actions are continuous, the own
        # one.
        parts = [(2 * width, [2 * width] * n_agents), (n_actions, action_sizes)][
            : 1 + self.continuous
        ]
        self.head1 = StackedLinear(
            sum(size for size, _ in parts), width, n_agents, first_inputs(*parts)
        )
        n_values = 1 if self.continuous else n_actions
        self.head2 = StackedLinear(width, n_values, n_agents, head=True)
        self.register_buffer("others", 1 - torch.eye(n_agents), persistent=False)
        self.register_buffer("never", _NEVER * torch.eye(n_agents), persistent=False)

    @staticmethod
    def check_settings(args: SimpleNamespace) -> None:
        """Whether there can be such a critic; learners ask before anything is built.

        Raises:
            ConfigError: one agent alone, or heads that do not divide H.
        """
        if args.n_agents < 2:
            raise ConfigError(
                "critic 'attention' needs other agents to attend to, but there is only one agent"
            )
        heads, width = args.attention_heads, args.critic_hidden_dim
        if heads < 1 or width % heads:
            raise ConfigError(f"attention_heads ({heads}) must divide critic_hidden_dim ({width})")

    def scale_shared_grads(self) -> None:
        """Divides the gradients of what all agents' losses meet in by A: shared matrices and the
        encoders g_j.
        """
        shared = (self.query, self.key, self.value, self.encoder)
        grads = [
            param.grad
            for module in shared
            for param in module.parameters()
            if param.grad is not None
        ]
        torch._foreach_div_(grads, self.n_agents)

    # -- values ------------------------------------------------------------------------------------
    def forward(self, obs: Tensor, actions: Tensor, own: Tensor | None = None) -> AttentionOut:
        """Values of a batch.

        Args:
            obs: [N, A, O].
            actions: int64 [N, A], or float [N, A, U], whose gradient is kept.
            own: for continuous actions: [N, A, K, U], own actions of each agent to value; None:
                those in `actions`.
        """
        inputs = self._inputs(obs, actions)
        attended = self._attend(self.norm(inputs))
        all_q = self._all_q(attended, actions, own)
        shape = (-1, self.heads, self.n_agents, self.n_agents)
        logits, attention = (
            x.view(shape).transpose(0, 1) for x in (attended.logits, attended.attention)
        )
        return AttentionOut(all_q, logits, attention)

    @staticmethod
    def taken(all_q: Tensor, actions: Tensor) -> Tensor:
        """Of the values [N, A, U] those of `actions`, int64 [N, A]; continuous actions: of [N, A,
        1] the only ones. [N, A].
        """
        discrete = not actions.is_floating_point()
        return (all_q.gather(-1, actions.unsqueeze(-1)) if discrete else all_q).squeeze(-1)

    def _inputs(self, obs: Tensor, actions: Tensor) -> Tensor:
        """What the encoders normalise: observations and actions as numbers, [A, N, O + U]."""
        if not actions.is_floating_point():
            actions = F.one_hot(actions, self.n_actions).to(obs.dtype)
        return torch.cat([obs, actions], dim=-1).transpose(0, 1)

    def _attend(self, x: Tensor) -> _Attended:
        """Normalised inputs [A, N, O + U] -> who attends to whom."""
        s = self.state_encoder(x[..., : self.obs_size])
        e = self.encoder(x)
        query, key = self._by_heads(self.query(s)), self._by_heads(self.key(e))
        value = self._by_heads(self.value(e))
        logits = torch.bmm(query, key.mT) * self.others
        attention = _Softmax.apply(
            torch.add(self.never, logits, alpha=1 / math.sqrt(key.shape[-1]))
        )
        return _Attended(s, query, value, logits, attention)

    def _by_heads(self, x: Tensor) -> Tensor:
        """[A, N, H] -> [N * h, A, d]."""
        return x.view(self.n_agents, -1, self.width // self.heads).transpose(0, 1)

    def _all_q(self, attended: _Attended, actions: Tensor, own: Tensor | None) -> Tensor:
        """The agents' last networks, [N, A, U or K]; see `forward`."""
        by_value, by_state, by_own = self._head1_parts()
        mixed = torch.bmm(attended.attention, attended.value).view(
            -1, self.heads, *attended.value.shape[1:]
        )
        mixed = mixed.permute(2, 0, 1, 3).reshape(attended.s.shape)
        hidden = added(added(self.head1.bias.unsqueeze(1), attended.s, by_state), mixed, by_value)
        if self.continuous:
            own = actions.unsqueeze(2) if own is None else own
            hidden = (hidden.unsqueeze(2) + torch.einsum("nakf,ahf->ankh", own, by_own)).flatten(
                1, 2
            )
        all_q = self.head2(F.leaky_relu(hidden, inplace=True))
        return all_q.view(self.n_agents, len(actions), -1).transpose(0, 1)

    def _head1_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last networks' first weights by what they read, [A, H, .]: attended values, s_i, the
        own action.
        """
        by_value, by_state, by_own = self.head1.weight.tensor_split(
            [self.width, 2 * self.width], dim=-1
        )
        return by_value, by_state, by_own

    # -- values of what others could have done -----------------------------------------------------
    @torch.no_grad()
    def counterfactual(self, obs: Tensor, actions: Tensor, samples: Tensor | None = None) -> Tensor:
        """Q_i(o, a') for every i where a' is `actions` with agent j's action replaced by each of
        its actions.

        Equal to `forward(obs, a')` with the batch norm of this batch (its running statistics do not
        move). Costs little more than the products of the agents' last networks, one row for each
        (i, j, a_j); what attention gives to j stands by itself, because a softmax with one entry
        replaced is a mixture of that entry and of the rest.

        Args:
            obs: [N, A, O].
            actions: int64 [N, A], or float [N, A, U].
            samples: for continuous actions: [N, A, K, U], what each agent could have done.

        Returns:
            [N, i, j, a_j], [N, A, A, U] or for K samples [N, A, A, K]. For i = j, Q_i(o, a).
        """
        inputs = self._inputs(obs, actions)
        shift, scale = self.norm.statistics(inputs)
        attended = self._attend((inputs - shift) * scale)
        q = self._all_q(attended, actions, None)
        if samples is None:
            q = q.gather(-1, actions.unsqueeze(-1))
            # The value of the action taken is known: [N, A, U - 1], the others.
            alternatives = (
                actions.unsqueeze(-1) + torch.arange(1, self.n_actions, device=obs.device)
            ) % self.n_actions
            samples = F.one_hot(alternatives, self.n_actions).to(obs.dtype)
        # Activations of g_j before an action is added, the actions' weights, and what Q_i has from
        # o_i and a_i.
        without = torch.cat(
            [obs, torch.zeros_like(inputs[..., self.obs_size :]).transpose(0, 1)], dim=-1
        )
        rows = (without.transpose(0, 1) - shift) * scale
        encoded = grouped(rows, self.encoder.weight, self.encoder.bias)
        by_action = self.encoder.weight[..., self.obs_size :] * scale[..., self.obs_size :]
        _, by_state, by_own = self._head1_parts()
        known = added(self.head1.bias.unsqueeze(1), attended.s, by_state)
        if self.continuous:
            known = known.baddbmm(actions.transpose(0, 1), by_own.mT)
        chunks = zip(
            encoded.split(_ROWS, 1), known.split(_ROWS, 1), samples.split(_ROWS),
            actions.split(_ROWS),
            *(
                x.split(_ROWS * self.heads)
                for x in (attended.query, attended.value, attended.logits)
            ),
            strict=True,
        )  # fmt: skip
        replaced = torch.cat([self._replaced(by_action, *chunk) for chunk in chunks])
        # So far j = i + 1, i + 2, ... for every i, going round; now by j, with Q_i(o, a) in i's own
        # place.
        unchanged = q[..., :1].unsqueeze(2)
        replaced = torch.cat([unchanged.expand(-1, -1, 1, replaced.shape[-1]), replaced], dim=2)
        agents = torch.arange(self.n_agents, device=obs.device)
        replaced = replaced[:, agents.unsqueeze(1), (agents - agents.unsqueeze(1)) % self.n_agents]
        if self.continuous:
            return replaced
        out = unchanged.expand(-1, -1, self.n_agents, self.n_actions).clone()
        return out.scatter_(-1, alternatives.unsqueeze(1).expand_as(replaced), replaced)

    def _replaced(
        self,
        by_action: Tensor,
        encoded: Tensor,
        known: Tensor,
        samples: Tensor,
        actions: Tensor,
        query: Tensor,
        value: Tensor,
        logits: Tensor,
    ) -> Tensor:
        """`counterfactual` for n rows. The rows are the last axis where work is by element, so that
        it is contiguous.

        Args:
            by_action: [A, H, U], what a unit of each entry of the action adds to `encoded`.
            encoded: [A, n, H], of the encoders g_j before an action is added and the LeakyReLU.
            known: [A, n, H], of the last networks' hidden layers without the attended values.
            samples: [n, A, K, U], the actions that replace those taken, one-hot where they are
                discrete.
            actions: as for `counterfactual`.
            query, value, logits: as in `_Attended`, of what was done.

        Returns:
            [n, A, A - 1, K]; of agent i, the values with j = i + 1, i + 2, ... (going round)
            replaced.
        """
        n, a, k, _ = samples.shape
        h, d = self.heads, self.width // self.heads
        e = torch.bmm(by_action, samples.permute(1, 3, 2, 0).flatten(2)).view(a, -1, k, n)
        e = F.leaky_relu_(e.add_(encoded.mT.contiguous().unsqueeze(2))).flatten(2)
        keys = torch.bmm(e.mT, self.key.weight.T.expand(a, -1, -1))
        keys = keys.view(a, k, n, h, d).permute(2, 3, 4, 0, 1).reshape(n * h, d, a * k)
        scores = torch.bmm(query, keys).view(n * h, a, a, k) / math.sqrt(d)
        values = torch.baddbmm(self.value.bias.unsqueeze(1), self.value.weight.expand(a, -1, -1), e)
        values = F.leaky_relu_(values).view(a, h, d, k, n)

        # What agent i attends to besides j: the mixture of the others' values, and how much they
        # weigh together.
        after = (torch.arange(a).unsqueeze(1) + torch.arange(1, a)) % a
        after = after.to(samples.device)
        never = self.never.unsqueeze(1) + _NEVER * F.one_hot(after, a)
        rest = torch.add(never, logits.unsqueeze(2), alpha=1 / math.sqrt(d))
        top = rest.amax(-1, keepdim=True)
        rest = (rest - top).exp_()
        total = rest.sum(-1, keepdim=True)
        mixture = (
            torch.bmm((rest / total).flatten(1, 2), value)
            .view(n, h, a, a - 1, d)
            .permute(2, 1, 4, 3, 0)
        )
        scores = scores[:, torch.arange(a, device=after.device).unsqueeze(1), after]
        share = (
            torch.sigmoid(scores - (top + total.log()))
            .view(n, h, a, a - 1, k)
            .permute(2, 1, 3, 4, 0)
        )

        # Row i of this view is the values of the agents after i.
        values = torch.cat([values[1:], values[:-1]]).unfold(0, a - 1, 1).permute(0, 1, 2, 5, 3, 4)
        mixed = values.new_empty(a, h, d, a - 1, k, n)
        torch.lerp(
            mixture.contiguous().unsqueeze(4), values, share.contiguous().unsqueeze(2), out=mixed
        )
        hidden = torch.bmm(self._head1_parts()[0], mixed.view(a, h * d, -1)).view(a, h * d, -1, n)
        hidden = F.leaky_relu_(hidden.add_(known.mT.contiguous().unsqueeze(2))).flatten(2)
        q = torch.baddbmm(self.head2.bias.unsqueeze(2), self.head2.weight, hidden).view(
            a, -1, a - 1, k, n
        )
        if self.continuous:
            return q.squeeze(1).permute(3, 0, 1, 2)
        taken = actions.T.view(a, 1, 1, 1, n).expand(-1, -1, a - 1, k, -1)
        return q.gather(1, taken).squeeze(1).permute(3, 0, 1, 2)


class _Softmax(torch.autograd.Function):
    """Over the last axis of [R, A, A].

    With so few entries to a row it is faster on a CPU to compute with the rows last; the gradient
    must not come out in that layout, because products of many small matrices are then computed one
    by one.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = scores.permute(1, 2, 0).contiguous().softmax(1).permute(2, 0, 1).contiguous()
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        weighted = weights * grad
        return weighted.sub_(weights * weighted.sum(-1, keepdim=True))
