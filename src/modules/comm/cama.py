"""CAMA: agents attend to some of what they see, and are told about the rest (Shao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.comm.agent import CommAgent, Remember, Said, Talk
from modules.layers import Linear
from modules.mixers.parts import hypernet
from utils.errors import ConfigError
from utils.ranges import COUNT, Range

LOG_VARIANCE = (-10.0, 0.5)  # that messages can have, softly bounded


class EntityAttention(nn.Module):
    """H heads, in each of which A queries attend to E entities.

    Args:
        size: D, entries of what is read and put out; all heads together have as many.
        heads: H.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = Linear(size, size, bias=False)
        self.keys = Linear(size, size, bias=False)
        self.values = Linear(size, size, bias=False)
        self.out = Linear(size, size)

    def by_head(self, x: Tensor) -> Tensor:
        """[N, E, D] -> [N, H, E, D / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def scores(self, own: Tensor, entities: Tensor) -> Tensor:
        """Embedded [N, A, D], of what asks, and [N, E, D] -> [N, H, A, E]."""
        query, key = self.by_head(self.queries(own)), self.by_head(self.keys(entities))
        return query @ key.mT / math.sqrt(key.shape[-1])

    def attend(self, scores: Tensor, attended: Tensor, entities: Tensor) -> Tensor:
        """What is made of the entities that are attended to, [N, A, D].

        Args:
            scores: those of `scores`.
            attended: bool [N, H, A, E]; where nothing is, the heads put out zeros.
        """
        weights = torch.softmax(scores.masked_fill(~attended, -1e30), dim=-1) * attended
        heads = weights @ self.by_head(self.values(entities))
        return self.out(heads.transpose(1, 2).flatten(2))


class CAMAAgent(CommAgent):
    """One of the agents, the coach, is sent what all see, and sends each agent a short message
    about what that agent does not attend to.

    An entity is a part of an agent's observation (`cama_parts`; the last part is the agent itself).
    It is there if any of its numbers is not 0; agents are always there for themselves. Agent i
    attends, in each head, to those of its own entities with the highest scores, the share
    `cama_keep` of them. What it makes of them is f_i, which its recurrent network reads. The coach
    attends, with the same layers and the query of agent i, to all entities of all agents except
    these: g_i. The message is z_i ~ N(mean, variance), made of f_i and g_i; in tests it is the
    mean. Q_i = head(GRU(f_i)) + network(z_i).

    Args:
        input_shape: F.
        args: see `CommAgent`; `cama_parts` (sizes of the parts of an observation, that of the agent
            itself last), `cama_keep`, `cama_embed_dim` (D), `cama_heads`, `cama_message_dim`.

    Raises:
        ConfigError: heads that do not divide D, parts that do not add up to the observation.
    """

    draws = True
    ranges: ClassVar[Mapping[str, Range]] = {
        "cama_embed_dim": COUNT,
        "cama_heads": COUNT,
        "cama_message_dim": COUNT,
        "cama_keep": Range(lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
        "cama_parts": Range(
            lambda sizes: all(isinstance(size, int) and size > 0 for size in sizes),
            "a list of sizes, each at least 1",
        ),
    }

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        size = args.cama_embed_dim
        super().__init__(input_shape, args, n_read=size)
        if size % args.cama_heads:
            raise ConfigError(
                f"cama_heads must divide cama_embed_dim ({size}), got {args.cama_heads}"
            )
        self.parts: list[int] = list(args.cama_parts)
        if sum(self.parts) != self.n_obs:
            raise ConfigError(
                f"cama_parts must add up to the {self.n_obs} entries of an observation, got "
                f"{self.parts}"
            )
        self.width = max(self.parts)
        self.n_index = args.n_agents * args.obs_agent_id
        self.n_sent = input_shape - self.n_index
        # An entity, which part it is, what its agent did last, and whose it is.
        n_entity = self.width + len(self.parts) + self.n_sent - self.n_obs + self.n_index
        self.embedding = Linear(n_entity, size, rectify=True)
        self.attention = EntityAttention(size, args.cama_heads)
        self.mean = Linear(2 * size, args.cama_message_dim)
        self.log_variance = Linear(2 * size, args.cama_message_dim)
        self.told = hypernet(args.cama_message_dim, size, args.n_actions)

    def say(self, own: Tensor) -> Said:
        """What the agents see and did last, to the coach, [N, A, 1, F less the index]."""
        return Said(own[..., : self.n_sent].unsqueeze(2))

    def numbers(self, said: Said) -> Tensor:
        """See `CommAgent.numbers`: the others send the coach what they see, and it sends each of
        them its message.
        """
        size = said.messages.shape[-1] + self.args.cama_message_dim
        return said.messages.new_full((len(said.messages),), (self.n_agents - 1) * size)

    def talk(self, inputs: Tensor, remember: Remember) -> Talk:
        """See `CommAgent.talk`; `heard` are the messages z [N, A, M].

        `said.seen` has z, its `mean` and `log_variance`, f, and g [N, A, D].
        """
        said = self.say(inputs)
        index = inputs[..., self.n_sent :]
        f = self.look(inputs[..., : self.n_sent], index)
        g = self.complement(said.messages.squeeze(2), index)
        mean, log_variance = self.message(f, g)
        z = mean
        if self.training:
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        q = self.head(self.remembered(f, remember)) + self.told(z)
        said.seen.update({"z": z, "mean": mean, "log_variance": log_variance, "f": f, "g": g})
        return Talk(q, said, z)

    # -- attention ---------------------------------------------------------------------------------
    def entities(self, seen: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What agents see, F less the index [N, A, F'], and their index [N, A, n_index], as
        embedded entities [N, A, K, D]; and which of them are there, bool [N, A, K].
        """
        obs, last_action = seen.split([self.n_obs, self.n_sent - self.n_obs], dim=-1)
        parts = obs.split(self.parts, dim=-1)
        there = torch.stack([(part != 0).any(-1) for part in parts], dim=-1)
        k = len(parts)
        padded = torch.stack([F.pad(part, (0, self.width - part.shape[-1])) for part in parts], -2)
        # Only the agent itself acted.
        acted = F.pad(last_action.unsqueeze(-2), (0, 0, k - 1, 0))
        which = torch.eye(k, device=obs.device).expand(*obs.shape[:2], k, k)
        whose = index.unsqueeze(-2).expand(-1, -1, k, -1)
        return self.embedding(torch.cat([padded, which, acted, whose], dim=-1)), there

    def choose(self, entities: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Which of its own entities each agent attends to, bool [N, H, A, K], and their scores.

        Args:
            entities, there: see `entities`.
        """
        n, a, k, _ = entities.shape
        own = entities[:, :, -1:].flatten(0, 1)
        scores = self.attention.scores(own, entities.flatten(0, 1))  # [N * A, H, 1, K]
        visible = there.view(n * a, 1, 1, k).clone()
        visible[..., -1] = True
        ranked = scores.detach().masked_fill(~visible, -torch.inf).argsort(-1, descending=True)
        places = ranked.argsort(-1)  # 0 for the highest score
        kept = (visible.sum(-1, keepdim=True) * self.args.cama_keep).ceil()
        attended = visible & (places < kept)
        shape = n, a, -1, k
        return attended.view(shape).transpose(1, 2), scores.view(shape).transpose(1, 2)

    def look(self, seen: Tensor, index: Tensor) -> Tensor:
        """f [N, A, D], what each agent makes of its own entities."""
        entities, there = self.entities(seen, index)
        attended, scores = self.choose(entities, there)
        n, a, k, _ = entities.shape
        shape = n * a, -1, 1, k
        own_scores, own_attended = (
            scores.transpose(1, 2).reshape(shape),
            attended.transpose(1, 2).reshape(shape),
        )
        f = self.attention.attend(own_scores, own_attended, entities.flatten(0, 1))
        return f.view(n, a, -1)

    def complement(self, seen: Tensor, index: Tensor) -> Tensor:
        """g [N, A, D]: what the coach, to whom all agents sent what they see, makes for each of
        them of that which it does not attend to.
        """
        entities, there = self.entities(seen, index)
        attended, _ = self.choose(entities, there)
        n, a, k, _ = entities.shape
        itself = torch.eye(a, dtype=torch.bool, device=seen.device).unsqueeze(-1)
        rest = there.view(n, 1, 1, a, k) & ~(itself & attended.unsqueeze(3))  # [N, H, A, A, K]
        everything = entities.flatten(1, 2)
        scores = self.attention.scores(entities[:, :, -1], everything)
        return self.attention.attend(scores, rest.flatten(3), everything)

    def message(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Means, from -1 to 1, and logarithms of variances of messages, [..., D] -> [..., M]."""
        both = torch.cat([f, g], dim=-1)
        low, high = LOG_VARIANCE
        log_variance = high - F.softplus(high - self.log_variance(both))
        return torch.tanh(self.mean(both)), low + F.softplus(log_variance - low)
