"""The controller of S2Q: K + 1 sub-value functions, of which one is drawn and followed by all
agents at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from components.action_selectors import greedy_actions, masked_argmax, sample_actions
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from components.steps import Steps
from controllers.basic_controller import ALL, BasicMAC
from controllers.n_controller import NMAC
from controllers.sent_numbers import SentNumbers
from modules.agents import REGISTRY as AGENTS
from modules.comm.agent import broadcast_numbers
from modules.comm.latent import LatentEncoder
from modules.s2q.agent import S2QAgent
from modules.s2q.decoder import LatentDecoder
from modules.stacks import FirstOf, copy_first
from utils.errors import ConfigError, UserError

SELECTIONS = ("learned", "oracle", "uniform", "zero")

# (episode batch, step, episodes, greedy joint actions [K + 1, B, A]) -> the true P_t [B, K + 1]
Oracle = Callable[[EpisodeBatch, int, Any, Tensor], Tensor]


class SubValues(NamedTuple):
    """What `S2QMAC` computes for N rows: `q` [K + 1, N, A, U] and the latent `z` [N, Z], None where
    nobody needs it.
    """

    q: Tensor
    z: Tensor | None


class S2QMAC(NMAC):
    """Acts on the sub-value functions Q_0..Q_K (S2Q, sections 4.2 and 4.3).

    Training: with probability `s2q_fixed_prob` an environment follows Q_0 for the whole episode.
    Otherwise one k is drawn at every step for all its agents; each then takes its part of the
    greedy joint action a_k*, or explores as the action selector says. Evaluation: Q_0 alone; the
    encoder is not read, unless its latent is a message (`s2q_comm`).

    Args:
        scheme, groups: of the episode batch.
        args: as for `BasicMAC`, and `s2q_k` (K), `s2q_select` (where k comes from: `learned`, the
            decoder's estimate of P_t; `oracle`, the true P_t; `uniform`; `zero`, always 0),
            `s2q_synchronised` (False: every agent draws its own k), `s2q_fixed_prob`, and what
            `S2QAgent`, `LatentEncoder` and `LatentDecoder` read.

    Attributes:
        oracle: computes the true P_t, set by the learner, which has the networks for it.
        chosen: int64 [B, A], the k that every agent followed in the last training step.

    Raises:
        ConfigError: an agent network of another kind, or one of its settings.
    """

    oracle: Oracle | None = None
    drawn: ClassVar = {"s2q_k": {"vshape": (), "group": "agents", "dtype": torch.long}}

    def _build_agents(self, input_shape: int) -> None:
        args = self.args
        self.agent = AGENTS[args.agent](input_shape, args)
        if not isinstance(self.agent, S2QAgent):
            raise ConfigError(f"s2q_mac needs agent=s2q_rnn, got '{args.agent}'")
        only_first = copy.copy(args)
        only_first.s2q_k = 0
        self._first = FirstOf(AGENTS[args.agent](input_shape, only_first))
        self.encoder = LatentEncoder(args.n_agents * args.rnn_hidden_dim, args)
        self.decoder = LatentDecoder(args)
        self.chosen: Tensor | None = None
        self.sent = SentNumbers()
        self.last_record: dict[str, Tensor] = {}

    # -- acting ------------------------------------------------------------------------------------
    def init_hidden(self, batch_size: int) -> None:
        """Starts new episodes: zero hidden states [B, K + 1, A, H], nothing drawn yet."""
        hidden = self.agent.init_hidden()
        self.hidden_states = hidden.view(1, -1, 1, hidden.shape[-1]).expand(
            batch_size, -1, self.n_agents, -1
        )
        self.encoder_hidden: Tensor | None = None
        self.fixed: Tensor | None = None
        self.sent.start(batch_size, hidden.device)

    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A]."""
        avail = ep_batch["avail_actions"][bs, t_ep]
        if test_mode:
            q = self.forward(ep_batch, t_ep, test_mode=True, bs=bs)
        else:
            values = self.forward_all(ep_batch, t_ep, bs)
            self.chosen = self._draw(ep_batch, t_ep, bs, avail, values)
            self.last_record = {"s2q_k": self.chosen}
            index = self.chosen[None, ..., None].expand(1, *values.q.shape[1:])
            q = values.q.gather(0, index).squeeze(0)
        if self.args.s2q_comm:
            self.sent.add(bs, broadcast_numbers(self.n_agents, self.args.rnn_hidden_dim))
        return self.action_selector.select_action(q, avail, t_env, test_mode=test_mode)

    def episode_figures(self) -> dict[str, Tensor]:
        """Figures of the episodes under way, [B] each: with `s2q_comm` what the agents sent."""
        return self.sent.figures() if self.args.s2q_comm else {}

    def forward(
        self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False, bs: Any = ALL
    ) -> Tensor:
        """Utilities of Q_0 at step t for the episodes `bs`, [len(bs), A, U]; in `test_mode` no
        other is computed.
        """
        return self.forward_all(ep_batch, t, bs, only_first=test_mode).q[0]

    def forward_all(
        self, ep_batch: EpisodeBatch, t: int, bs: Any = ALL, only_first: bool = False
    ) -> SubValues:
        """One step of all networks for the episodes `bs`; carries the hidden states from step to
        step.

        Args:
            only_first: compute Q_0 alone (K = 0 in what is returned), without gradients.
        """
        agent: Any = self._first(self.agent) if only_first else self.agent
        before = self.hidden_states
        assert before is not None, "init_hidden comes before the first step"
        inputs = self._build_inputs(ep_batch, t).view(ep_batch.batch_size, self.n_agents, -1)[bs]
        hidden = agent.step_hidden(inputs, before[bs, : agent.n_values].transpose(0, 1))
        self.hidden_states = _with_rows(before, bs, hidden.transpose(0, 1))
        z = None
        if self.args.s2q_comm or not (only_first or self.args.s2q_select != "learned"):
            if self.encoder_hidden is None:
                self.encoder_hidden = self.encoder.init_hidden(ep_batch.batch_size)
            z, memory = self.encoder.step(hidden[0].detach().flatten(1), self.encoder_hidden[bs])
            self.encoder_hidden = _with_rows(self.encoder_hidden, bs, memory)
        return SubValues(agent.head(hidden, z), z)

    def _draw(
        self, ep_batch: EpisodeBatch, t: int, bs: Any, avail: Tensor, values: SubValues
    ) -> Tensor:
        """The k that the agents follow, int64 [len(bs), A]."""
        args, (n_values, n_rows) = self.args, values.q.shape[:2]
        if args.s2q_select == "zero":
            return torch.zeros(n_rows, self.n_agents, dtype=torch.int64, device=values.q.device)
        if self.fixed is None:
            self.fixed = (
                torch.rand(ep_batch.batch_size, device=values.q.device) < args.s2q_fixed_prob
            )
        if args.s2q_select == "learned":
            assert values.z is not None
            weights = torch.softmax(self.decoder.choice_logits(values.z), dim=-1)
        elif args.s2q_select == "oracle":
            assert self.oracle is not None, "the learner sets it"
            weights = self.oracle(
                ep_batch, t, bs, greedy_actions(values.q, avail.expand(n_values, -1, -1, -1))
            )
        else:
            weights = values.q.new_ones(n_rows, n_values)
        n_draws = 1 if args.s2q_synchronised else self.n_agents
        weights = weights.unsqueeze(1).expand(-1, n_draws, -1)
        k = sample_actions(weights, torch.ones_like(weights)).expand(-1, self.n_agents)
        return k.masked_fill(self.fixed[bs].unsqueeze(1), 0)

    # -- training ----------------------------------------------------------------------------------
    def unroll_all(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> SubValues:
        """All filled steps of a batch at once, in the order of `batch.steps()`.

        Gradients of `q` reach the agent networks, and with `s2q_comm` the encoder; those of `z` the
        encoder alone, whose inputs are detached.

        Args:
            inputs: `sequence_inputs(batch)` where it is already there.
        """
        return self._unroll(batch, steps, inputs, latent=True)

    def unroll(
        self, batch: EpisodeBatch, steps: Steps | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """Utilities of Q_0 at all filled steps, [N, A, U]."""
        return self._unroll(batch, steps, inputs, latent=self.args.s2q_comm).q[0]

    def _unroll(
        self, batch: EpisodeBatch, steps: Steps | None, inputs: Tensor | None, latent: bool
    ) -> SubValues:
        steps = batch.steps() if steps is None else steps
        hidden = self.agent.unroll_hidden(
            self.sequence_inputs(batch, steps) if inputs is None else inputs, steps
        )
        z = self.encoder.unroll(hidden[0].detach().flatten(1), steps) if latent else None
        return SubValues(self.agent.head(hidden, z), z)

    # -- for people who watch ---------------------------------------------------------------------
    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Values of Q_0..Q_K, their greedy joint actions a_k*, the decoder's estimate of P_t and,
        where it was recorded, the k that was followed.
        """
        steps = batch.steps()
        q, z = self.unroll_all(batch, steps)
        assert z is not None
        greedy = masked_argmax(q, steps.pack(batch["avail_actions"]))
        choice = torch.softmax(self.decoder.choice_logits(z), dim=-1)
        shown = {
            "action values": Inner(q.transpose(0, 1), ("Q", "agent", "action")),
            "best joint action a_k*": Inner(greedy.transpose(0, 1), ("Q", "agent"), "action"),
            "P_t, as the decoder estimates it": Inner(choice, ("Q",), "probability"),
        }
        if self.args.s2q_comm:
            shown["message z that all agents read"] = Inner(z, ("entry",))
        if "s2q_k" in batch.scheme:
            followed = steps.pack(batch["s2q_k"]).clone()
            followed[-1] = -1  # after the last step nobody acts
            shown["k that is followed"] = Inner(followed, ("agent",), "number")
        return shown

    # -- parameters --------------------------------------------------------------------------------
    def networks(self) -> dict[str, nn.Module]:
        """File name stem -> network."""
        return {"agent": self.agent, "encoder": self.encoder, "decoder": self.decoder}

    def parameters(self) -> Iterator[nn.Parameter]:
        return chain.from_iterable(network.parameters() for network in self.networks().values())

    def load_state(self, other_mac: BasicMAC) -> None:
        """Copies the other controller's weights; a controller with K = 0 takes Q_0 and the
        encoder.
        """
        assert isinstance(other_mac, S2QMAC)
        if self.args.s2q_k == other_mac.args.s2q_k:
            for name, network in self.networks().items():
                network.load_state_dict(other_mac.networks()[name].state_dict())
        else:
            copy_first(other_mac.agent, self.agent)
            self.encoder.load_state_dict(other_mac.encoder.state_dict())

    def cuda(self) -> None:
        for network in self.networks().values():
            network.cuda()

    def save_models(self, path: str) -> None:
        """Writes `agent.th`, `encoder.th` and `decoder.th` into a folder."""
        for name, network in self.networks().items():
            torch.save(network.state_dict(), f"{path}/{name}.th")

    def load_models(self, path: str, trained_agents: int = 0) -> None:
        """Reads what `save_models` wrote.

        Raises:
            UserError: networks of another number of agents are asked for; the encoder reads all.
        """
        if trained_agents:
            raise UserError(
                "s2q_mac needs the agents that it was trained with: checkpoint_agents=0"
            )
        for name, network in self.networks().items():
            network.load_state_dict(
                torch.load(f"{path}/{name}.th", map_location="cpu", weights_only=True)
            )


def _with_rows(old: Tensor, rows: Any, new: Tensor) -> Tensor:
    """`old` [B, ...] with the rows replaced by `new`; `old` itself stays as it is."""
    if isinstance(rows, slice) and rows == ALL:
        return new
    merged = old[:, : new.shape[1]].clone()
    merged[rows] = new
    return merged
