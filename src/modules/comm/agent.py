"""What all agents that talk have in common: one utility from what they see, remember and hear.

An agent network of this kind says how it talks in one method, `talk`, that serves single steps and
whole episodes alike. What passes from agent to agent is what `say` returns, and nothing else: the
rest of `talk` computes every agent's part from its own rows and from the messages to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from modules.layers import GRU, LEAKY, Linear
from modules.recurrent import RNNAgent
from utils.ranges import Range, check_ranges, one_of

if TYPE_CHECKING:
    from components.steps import Steps


def obs_size(input_shape: int, args: SimpleNamespace) -> int:
    """How many of the F entries of an agent's own input are its observation, the first ones."""
    return input_shape - args.n_actions * args.obs_last_action - args.n_agents * args.obs_agent_id


def broadcast_numbers(n_agents: int, size: int) -> int:
    """Numbers that pass when each of `n_agents` sends `size` of them to every other one."""
    return n_agents * (n_agents - 1) * size


@dataclass(frozen=True)
class Said:
    """What N rows of agents send one another.

    Attributes:
        messages: [N, A, A, D], entry (i, j) from agent i to agent j; [N, A, 1, D] where all hear
            the same. What an agent sends to itself is no message.
        seen: what came up on the way and losses read, by name.
    """

    messages: Tensor
    seen: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Talk:
    """What communicating agents compute for N rows.

    Attributes:
        q: [N, A, U], their utilities.
        said: what they sent.
        heard: [N, A, F] or [N, F], what they made of what they heard.
    """

    q: Tensor
    said: Said
    heard: Tensor


class Remember(Protocol):
    """How a recurrent layer is run: x [R, n_in] -> its hidden state after each row [R, H].

    Rows are those of N rows of A agents, the agents inside, or one for all agents of each.
    """

    def __call__(self, layer: GRU, x: Tensor) -> Tensor: ...


class OneStep:
    """One time step: every layer goes on from its part of the hidden states.

    Args:
        hidden: [B, A, H], those of all recurrent layers side by side, in the order of their use.
    """

    def __init__(self, hidden: Tensor) -> None:
        self._before = hidden
        self._after: list[Tensor] = []
        self._used = 0

    def __call__(self, layer: GRU, x: Tensor) -> Tensor:
        b, a = self._before.shape[:2]
        own = self._before[..., self._used : self._used + layer.n_hidden]
        self._used += layer.n_hidden
        if len(x) == b * a:
            h = layer(x, own.flatten(0, 1))
            self._after.append(h.view(b, a, -1))
        else:  # every agent has a copy of what all of them compute alike
            h = layer(x, own[:, 0])
            self._after.append(h.unsqueeze(1).expand(-1, a, -1))
        return h

    def hidden(self) -> Tensor:
        """The hidden states after the step, [B, A, H]."""
        return torch.cat(self._after, dim=-1)


class WholeEpisodes:
    """All filled steps of a batch, from zero hidden states.

    Args:
        steps: of the batch, N filled ones.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __call__(self, layer: GRU, x: Tensor) -> Tensor:
        each = len(x) // self._steps.n_rows
        return layer.unroll(x, [n * each for n in self._steps.sizes])


class CommAgent(RNNAgent, ABC):
    """Base of the agents that talk: fc1 - ReLU - GRU - fc2 with messages before or after the GRU.

    Args:
        input_shape: F, entries of one agent's own input: observation, last action, index.
        args: see `Agent`; `obs_last_action` and `obs_agent_id`.
        n_read: what fc1 reads; F unless given.
        n_remembered: hidden units of recurrent layers beside the GRU.

    Attributes:
        draws: whether messages are random in training.

    Raises:
        ConfigError: `share_params` is off.
    """

    draws = False
    ranges: ClassVar[Mapping[str, Range]] = {}

    def __init__(
        self,
        input_shape: int,
        args: SimpleNamespace,
        n_read: int | None = None,
        n_remembered: int = 0,
    ) -> None:
        check_ranges(vars(args), {"share_params": one_of(True), **self.ranges})
        super().__init__(input_shape if n_read is None else n_read, args)
        self.n_inputs = input_shape
        self.n_remembered = n_remembered
        self.n_obs = obs_size(input_shape, args)

    @abstractmethod
    def say(self, own: Tensor) -> Said:
        """What the agents send: each of them by its own row of [N, A, F] alone."""

    @abstractmethod
    def talk(self, inputs: Tensor, remember: Remember) -> Talk:
        """Utilities from own inputs [N, A, F] and messages."""

    def numbers(self, said: Said) -> Tensor:
        """How many numbers pass between different agents in each row, [N]."""
        n_rows, n_agents, _, size = said.messages.shape
        return said.messages.new_full((n_rows,), broadcast_numbers(n_agents, size))

    def init_hidden(self) -> Tensor:
        """Hidden states before the first step, [1, H]."""
        return self.fc1.weight.new_zeros(1, self.n_remembered + self.hidden_dim)

    def step_talk(self, inputs: Tensor, hidden: Tensor) -> tuple[Talk, Tensor]:
        """One time step: inputs [B, A, F], hidden [B, A, H] -> (talk, hidden [B, A, H])."""
        remember = OneStep(hidden)
        return self.talk(inputs, remember), remember.hidden()

    def unroll_talk(self, inputs: Tensor, steps: Steps) -> Talk:
        """All filled steps: inputs [N, A, F]."""
        return self.talk(inputs, WholeEpisodes(steps))

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: inputs [B, A, F], hidden [B, A, H] -> (utilities [B, A, U], hidden)."""
        talk, hidden = self.step_talk(inputs, hidden)
        return talk.q, hidden

    def unroll(self, inputs: Tensor, steps: Steps) -> Tensor:
        """All filled steps: inputs [N, A, F] -> utilities [N, A, U]."""
        return self.unroll_talk(inputs, steps).q

    def remembered(self, read: Tensor, remember: Remember) -> Tensor:
        """What fc1 reads [N, A, F] -> the GRU's hidden states [N, A, H]."""
        return self.from_rows(remember(self.rnn, self.fc1(self.to_rows(read))))


class TalksOfSight(CommAgent):
    """Messages about what the agents see: heard before the recurrent layer reads."""

    @abstractmethod
    def hear(self, inputs: Tensor, said: Said, remember: Remember) -> Tensor:
        """What fc1 reads of own inputs [N, A, F] and the messages, [N, A, F']."""

    def talk(self, inputs: Tensor, remember: Remember) -> Talk:
        """See `CommAgent.talk`; `heard` is what fc1 reads."""
        said = self.say(inputs)
        heard = self.hear(inputs, said, remember)
        return Talk(self.head(self.remembered(heard, remember)), said, heard)


class TalksOfMemory(CommAgent):
    """Messages about what the agents remember: heard after the recurrent layer."""

    @abstractmethod
    def hear(self, hidden: Tensor, said: Said, remember: Remember) -> tuple[Tensor, Tensor]:
        """Utilities [N, A, U] by own hidden states [N, A, H] and the messages; and `heard`."""

    def talk(self, inputs: Tensor, remember: Remember) -> Talk:
        """See `CommAgent.talk`; `say` reads the hidden states."""
        hidden = self.remembered(inputs, remember)
        said = self.say(hidden)
        q, heard = self.hear(hidden, said, remember)
        said.seen["hidden"] = hidden
        return Talk(q, said, heard)


def gaussian(parameters: Tensor, least_variance: float) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of what a network puts out: [..., 2 D] -> two of [..., D]."""
    mean, log_variance = parameters.chunk(2, dim=-1)
    return mean, log_variance.exp().clamp(min=least_variance).sqrt()


def leaky(n_in: int, n_hidden: int, n_out: int, norm: bool = False) -> nn.Sequential:
    """A network with one hidden layer and a leaky ReLU; `norm`: a LayerNorm before it."""
    first: list[nn.Module] = (
        [Linear(n_in, n_hidden), nn.LayerNorm(n_hidden), nn.LeakyReLU(LEAKY)]
        if norm
        else [Linear(n_in, n_hidden, rectify=True, slope=LEAKY)]
    )
    return nn.Sequential(*first, Linear(n_hidden, n_out))
