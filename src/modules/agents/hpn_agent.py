"""HPN: agents that do not care in which order they see others (Hao et al. 2023).

"Boosting Multiagent Reinforcement Learning via Permutation Invariant and Permutation Equivariant
Networks" (ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modules.layers import GRU, Linear
from modules.recurrent import Agent
from utils.errors import ConfigError
from utils.ranges import COUNT, Range, check_ranges, one_of

if TYPE_CHECKING:
    from components.steps import Steps


RANGES: dict[str, Range] = {"hpn_hyper_dim": COUNT, "hpn_heads": COUNT}


@dataclass(frozen=True)
class EntityLayout:
    """Where an agent's observation has its entities, and which actions are aimed at them.

    Attributes:
        n_enemies, n_allies: entities of each kind; the allies are the other agents.
        first_enemy, first_ally: entry at which the first one begins, the others follow.
        enemy_size, ally_size: entries of each.
        first_target: the action that is aimed at enemy 0 (by a healer at agent 0).
        healer: the entry that is 1 for a healer, None where nobody heals.
    """

    n_enemies: int
    first_enemy: int
    enemy_size: int
    n_allies: int
    first_ally: int
    ally_size: int
    first_target: int
    healer: int | None

    @classmethod
    def of(cls, args: SimpleNamespace) -> EntityLayout:
        """What the environment says of its observations (`obs_entities`).

        Raises:
            ConfigError: it says nothing.
        """
        entities: Mapping[str, Any] | None = args.env_info.get("obs_entities")
        if entities is None:
            raise ConfigError(
                f"agent '{args.agent}' needs observations that are made of entities, and "
                f"environment '{args.env}' does not say where they are (obs_entities): choose "
                "sc2sim, sc2sim_v2, sc2, sc2v2 or sc2hard"
            )
        return cls(**entities)

    def enemies(self, inputs: Tensor) -> Tensor:
        """[..., F] -> [..., n_enemies, enemy_size]."""
        return self._entities(inputs, self.first_enemy, self.n_enemies, self.enemy_size)

    def allies(self, inputs: Tensor) -> Tensor:
        """[..., F] -> [..., n_allies, ally_size]."""
        return self._entities(inputs, self.first_ally, self.n_allies, self.ally_size)

    @staticmethod
    def _entities(inputs: Tensor, first: int, count: int, size: int) -> Tensor:
        return inputs[..., first : first + count * size].unflatten(-1, (count, size))

    def own(self, n_inputs: int) -> Tensor:
        """The entries of F that are of the agent itself, int64."""
        others = torch.zeros(n_inputs, dtype=torch.bool)
        for first, count, size in (
            (self.first_enemy, self.n_enemies, self.enemy_size),
            (self.first_ally, self.n_allies, self.ally_size),
        ):
            others[first : first + count * size] = True
        return (~others).nonzero().squeeze(1)


class EntityInput(nn.Module):
    """sum_j e_j W(e_j), with the weights of an entity made from the entity itself by a hypernetwork
    of two layers: permutation invariant.

    Args:
        n_in: entries of an entity.
        n_hyper: units of the hypernetwork's hidden layer.
        n_out: outputs.
    """

    def __init__(self, n_in: int, n_hyper: int, n_out: int) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.first = Linear(n_in, n_hyper, rectify=True)
        self.second = Linear(n_hyper, n_in * n_out)

    def forward(self, entities: Tensor) -> Tensor:
        """[R, J, n_in] -> [R, n_out].

        W is linear in the hidden layer z, so the sum over the entities is taken of the products
        z e^T, and the large product comes once for all of them.
        """
        hidden = self.first(entities)
        products = torch.einsum("rjk,rjf->rfk", hidden, entities)
        weight = self.second.weight.view(self.n_in, self.n_out, -1).transpose(0, 1)
        bias = self.second.bias.view(self.n_in, self.n_out)
        out = products.flatten(1) @ weight.flatten(1).T
        return out + entities.sum(1) @ bias


class EntityOutput(nn.Module):
    """h w(e_j) + b(e_j) for every entity, w and b by hypernetworks of two layers: permutation
    equivariant.

    Args:
        n_in: entries of an entity.
        n_hyper: units of the hypernetworks' hidden layers.
        n_hidden: entries of h.
        n_out: outputs for each entity.
    """

    def __init__(self, n_in: int, n_hyper: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.n_hidden, self.n_out = n_hidden, n_out
        self.first = Linear(n_in, n_hyper, rectify=True)
        self.second = Linear(n_hyper, n_hidden * n_out)
        self.first_bias = Linear(n_in, n_hyper, rectify=True)
        self.second_bias = Linear(n_hyper, n_out)

    def forward(self, hidden: Tensor, entities: Tensor) -> Tensor:
        """[R, H], [R, J, n_in] -> [R, J, n_out]."""
        weights = self.second(self.first(entities)).unflatten(-1, (self.n_hidden, self.n_out))
        products = torch.einsum("rh,rjho->rjo", hidden, weights)
        return products + self.second_bias(self.first_bias(entities))


class Merger(nn.Module):
    """A weighted mean over heads, [..., heads, n] -> [..., n]; the weights of every entry are
    learned and sum to 1.

    Args:
        heads: number of heads.
        n: entries.
    """

    def __init__(self, heads: int, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, n)) if heads > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return x.squeeze(-2)
        return (torch.softmax(self.weight, 0) * x).sum(-2)


class HPNAgent(Agent):
    """Hyper-policy network: one agent network for all agents, `hpn_rnn`.

    An agent's own entries, its last action and its index go through a linear layer; what comes of
    every enemy and every ally is added. Behind a ReLU and a GRU layer a linear layer values the
    actions that are aimed at nobody, and every enemy (for a healer every ally) makes the weights
    that value the action aimed at it.

    Args:
        input_shape: F.
        args: see `Agent`; `hpn_hyper_dim` (units of the hypernetworks), `hpn_heads` (weights that
            an entity makes, which a weighted mean combines), `env_info`.

    Raises:
        ConfigError: the environment does not describe its observations, or `share_params` is off.
    """

    own_entries: Tensor

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        check_ranges(vars(args), {"share_params": one_of(True)})
        super().__init__(input_shape, args)
        self.layout = layout = EntityLayout.of(args)
        hidden, heads, hyper = self.hidden_dim, args.hpn_heads, args.hpn_hyper_dim
        self.heads = heads
        self.n_targets = args.n_actions - layout.first_target
        own = layout.own(input_shape)
        self.register_buffer("own_entries", own, persistent=False)
        self.fc_own = Linear(len(own), hidden)
        self.enemy_input = EntityInput(layout.enemy_size, hyper, hidden * heads)
        self.ally_input = (
            EntityInput(layout.ally_size, hyper, hidden * heads) if layout.n_allies else None
        )
        self.merge_input = Merger(heads, hidden)
        self.rnn = GRU(hidden, hidden)
        self.fc_others = Linear(hidden, layout.first_target)
        self.enemy_output = EntityOutput(layout.enemy_size, hyper, hidden, heads)
        self.merge_output = Merger(heads, 1)
        self.ally_output: EntityOutput | None = None
        if layout.healer is not None and layout.n_allies:
            self.ally_output = EntityOutput(layout.ally_size, hyper, hidden, heads)
            self.merge_ally_output = Merger(heads, 1)

    def init_hidden(self) -> Tensor:
        """The hidden state before the first step, [1, H]."""
        return self.fc_own.weight.new_zeros(1, self.hidden_dim)

    def encode(self, inputs: Tensor) -> Tensor:
        """What the recurrent layer reads: [N, A, F] -> [N * A, H]."""
        rows = inputs.flatten(0, 1)
        others = self.enemy_input(self.layout.enemies(rows))
        if self.ally_input is not None:
            others = others + self.ally_input(self.layout.allies(rows))
        own = self.fc_own(rows.index_select(-1, self.own_entries))
        return (own + self.merge_input(others.unflatten(-1, (self.heads, -1)))).relu()

    def values(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """[N * A, H], [N, A, F] -> [N, A, U]; 0 for actions that have no target."""
        rows, layout = inputs.flatten(0, 1), self.layout
        aimed = self._aimed(self.enemy_output, self.merge_output, hidden, layout.enemies(rows))
        aimed = nn.functional.pad(aimed, (0, self.n_targets - layout.n_enemies))
        if self.ally_output is not None:
            allies = layout.allies(rows)
            healing = self._aimed(self.ally_output, self.merge_ally_output, hidden, allies)
            # Ally k of agent i is agent k, or k + 1 from i on; itself it cannot heal.
            healing = self._by_agent(healing.unflatten(0, (-1, self.n_agents))).flatten(0, 1)
            healing = nn.functional.pad(healing, (0, self.n_targets - self.n_agents))
            heals = rows[:, layout.healer : layout.healer + 1] != 0  # type: ignore[operator]
            aimed = torch.where(heals, healing, aimed)
        q = torch.cat([self.fc_others(hidden), aimed], dim=-1)
        return q.view(-1, self.n_agents, q.shape[-1])

    def _aimed(
        self, output: EntityOutput, merge: Merger, hidden: Tensor, entities: Tensor
    ) -> Tensor:
        """Values of the actions aimed at entities: [R, H], [R, J, n_in] -> [R, J]."""
        return merge(output(hidden, entities).unsqueeze(-1)).squeeze(-1)

    def _by_agent(self, of_allies: Tensor) -> Tensor:
        """[N, A, A - 1] by the others' order -> [N, A, A] by their number, an agent's own 0."""
        a = self.n_agents
        out = of_allies.new_zeros(*of_allies.shape[:-1], a)
        others = ~torch.eye(a, dtype=torch.bool, device=of_allies.device)
        index = others.nonzero()[:, 1].view(a, a - 1)
        return out.scatter(-1, index.expand_as(of_allies), of_allies)

    def unroll(self, inputs: Tensor, steps: Steps) -> Tensor:
        """All filled steps: inputs [N, A, F] -> outputs [N, A, U]."""
        hidden = self.rnn.unroll(self.encode(inputs), self.row_sizes(steps.sizes))
        return self.values(hidden, inputs)

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: inputs [B, A, F], hidden [B, A, H] -> (outputs [B, A, U], hidden [B, A,
        H]).
        """
        h = self.rnn(self.encode(inputs), hidden.flatten(0, 1))
        return self.values(h, inputs), h.view(*inputs.shape[:2], -1)

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """PyMARL's step: inputs [B * A, F], hidden [B, A, H] or [B * A, H] -> ([B * A, U], [B * A,
        H]).
        """
        inputs = inputs.reshape(-1, self.n_agents, inputs.shape[-1])
        out, h = self.step(inputs, hidden_state.reshape(*inputs.shape[:2], -1))
        return out.reshape(-1, out.shape[-1]), h.reshape(-1, h.shape[-1])
