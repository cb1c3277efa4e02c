"""Models of other agents: who they are (character), what they are up to (mental), what they will do
(predictions).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.f2a2.histories import Histories
from modules.f2a2.sequences import SequenceEncoder, ragged
from modules.layers import StackedLinear, first_inputs
from utils.errors import ConfigError
from utils.ranges import COUNT

RANGES = {
    "moa_trajectories": COUNT,
    "moa_trajectory_steps": COUNT,
    "moa_character_batch": COUNT,
    "moa_natural_batch": COUNT,
    "moa_hidden_dim": COUNT,
    "moa_prediction_dim": COUNT,
}


class ModelLoss(NamedTuple):
    """One training batch of G models."""

    loss: Tensor  # [G], of every model alone
    accuracy: (
        Tensor  # [G], share of actions that were the model's most probable one, before the update
    )
    # [G], share of the modelled agent's most frequent action: what the best constant guess gets
    best_constant: Tensor


class OtherAgentModels(nn.Module):
    """pi~_ij(a_j | o_j, past): every agent's models of all others (F2A2, section 5.2, figure 3,
    appendix G).

    The character of agent j is the mean encoding of trajectories from before training, its mental
    state the encoding of its last H steps. Natural prediction, from observation, character and
    mental state, and impromptu prediction, from the observation alone, are added as logits.
    Observations are exchanged, so a model reads the observation of the agent that it models.

    The paper's mean is over all trajectories at every update; here it is over `moa_character_batch`
    of them, drawn anew at every update, and serves as character until the next one: an unbiased
    estimate, and an unbiased gradient of it.

    `moa_common`: what the agents know of j is the same data, and models that start equal (a seed
    agreed on beforehand) and learn from the same data stay equal. Then one of them is computed for
    all agents: G = A models, model j for agent j. Otherwise G = A (A - 1), for the ordered pairs
    (i, j) row by row.

    Args:
        obs_sizes: O of every agent; the padding behind it must be zero.
        n_actions: U.
        args: `moa_common`, `moa_trajectories`, `moa_trajectory_steps`, `moa_character_batch`,
            `moa_natural_batch`, `moa_hidden_dim`, `moa_prediction_dim`, within `RANGES`.

    Attributes:
        subjects: int64 [G], the agent j that a model is of.
        character: [G, H'], of the last update.

    Raises:
        ConfigError: there is a single agent.
    """

    subjects: Tensor
    models: Tensor
    others: Tensor
    character: Tensor
    trajectory_obs: Tensor
    trajectory_actions: Tensor
    trajectory_filled: Tensor

    def __init__(self, obs_sizes: Sequence[int], n_actions: int, args: SimpleNamespace) -> None:
        super().__init__()
        if len(obs_sizes) < 2:
            raise ConfigError("there is only one agent, and nobody else to model: set moa=False")
        self.n_agents, self.n_actions, self.common = len(obs_sizes), n_actions, args.moa_common
        self.character_batch, self.natural_batch = args.moa_character_batch, args.moa_natural_batch
        others = ~torch.eye(self.n_agents, dtype=torch.bool)
        subjects = torch.arange(self.n_agents) if self.common else others.nonzero()[:, 1]
        groups = len(subjects)
        # [A, A]: which model agent i has of agent j; what stands on the diagonal is not used
        models = subjects.expand(self.n_agents, -1).clone()
        if not self.common:
            models = torch.zeros_like(others, dtype=torch.int64)
            models[others] = torch.arange(groups)
        self.register_buffer("subjects", subjects, persistent=False)
        self.register_buffer("models", models, persistent=False)
        self.register_buffer("others", others, persistent=False)

        n_obs, hidden, width = max(obs_sizes), args.moa_hidden_dim, args.moa_prediction_dim
        sizes = [obs_sizes[j] for j in subjects.tolist()]
        encoded = (hidden, [hidden] * groups)
        self.character_net = SequenceEncoder(n_obs + n_actions, hidden, groups)
        self.mental_net = SequenceEncoder(n_obs + n_actions, hidden, groups)
        # Reads character, mental state, observation.
        natural_inputs = first_inputs(encoded, encoded, (n_obs, sizes))
        self.natural1 = StackedLinear(2 * hidden + n_obs, width, groups, in_sizes=natural_inputs)
        self.natural2 = StackedLinear(width, n_actions, groups, head=True)
        self.impromptu1 = StackedLinear(n_obs, width, groups, in_sizes=sizes)
        self.impromptu2 = StackedLinear(width, n_actions, groups, head=True)

        self.register_buffer("character", torch.zeros(groups, hidden))
        shape = args.moa_trajectories, args.moa_trajectory_steps
        self.register_buffer("trajectory_obs", torch.zeros(*shape, self.n_agents, n_obs))
        self.register_buffer(
            "trajectory_actions", torch.zeros(*shape, self.n_agents, dtype=torch.int64)
        )
        self.register_buffer("trajectory_filled", torch.zeros(shape))

    # -- Trajectories and characters ---------------------------------------------------------------
    def set_trajectories(self, obs: Tensor, actions: Tensor, filled: Tensor) -> None:
        """Takes the trajectories that characters are made from: the first ones, and the first steps
        of each.

        Args:
            obs: [B, L, A, O].
            actions: int64 [B, L, A].
            filled: [B, L], 1 for the steps of a trajectory, from its first one on.

        Raises:
            ConfigError: fewer than `moa_trajectories`.
        """
        n, length = self.trajectory_filled.shape
        if len(obs) < n:
            raise ConfigError(
                f"models of other agents need moa_trajectories={n} episodes from before training, "
                f"not {len(obs)}: "
                f"set warmup_episodes={n} and a buffer_size of at least as many"
            )
        length = min(length, obs.shape[1])
        self.trajectory_filled.zero_()
        self.trajectory_obs[:, :length] = obs[:n, :length]
        self.trajectory_actions[:, :length] = actions[:n, :length]
        self.trajectory_filled[:, :length] = filled[:n, :length]
        with torch.no_grad():
            self.character.copy_(self._draw_character())

    def _draw_character(self) -> Tensor:
        """Mean encoding of some of the trajectories: [G, H']."""
        drawn = torch.randperm(len(self.trajectory_obs), device=self.trajectory_obs.device)[
            : self.character_batch
        ]
        obs, actions, filled = (
            self.trajectory_obs[drawn],
            self.trajectory_actions[drawn],
            self.trajectory_filled[drawn],
        )
        return self._encode(self.character_net, obs, actions, filled).mean(1)

    def _encode(self, net: SequenceEncoder, obs: Tensor, actions: Tensor, filled: Tensor) -> Tensor:
        """Windows obs [N, L, A, O], actions [N, L, A], filled [N, L] -> [G, N, H']."""
        windows = ragged(filled)
        taken = F.one_hot(actions.flatten(0, 1)[windows.flat], self.n_actions)
        steps = torch.cat([obs.flatten(0, 1)[windows.flat], taken.to(obs)], -1)
        return net(self._of_subjects(steps), windows)

    def _of_subjects(self, x: Tensor) -> Tensor:
        """What the agents have, for every model: [N, A, ...] -> [G, N, ...]."""
        x = x.transpose(0, 1)
        return x.contiguous() if self.common else x.index_select(0, self.subjects)

    # -- Predictions -------------------------------------------------------------------------------
    def forward(self, histories: Histories) -> Tensor:
        """[G, N, U]: logits of what the models' subjects do; the lowest finite number for
        unavailable actions.
        """
        obs = self._of_subjects(histories.obs)
        return self._masked(
            self._impromptu(obs) + self._natural(obs, histories, self.character), histories
        )

    def logits(self, histories: Histories) -> Tensor:
        """[N, i, j, U]: logits of agent i's model of agent j; zero for i = j."""
        return self.of_pairs(self(histories)).permute(2, 0, 1, 3)

    @torch.no_grad()
    def imagine(self, histories: Histories, own_actions: Tensor) -> Tensor:
        """Joint actions as every agent imagines them: its own one, the others' drawn from its
        models.

        Args:
            own_actions: int64 [N, A].

        Returns:
            int64 [i, N, A].
        """
        probs = self(histories).softmax(-1)[self.models]
        drawn = torch.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])
        return torch.where(
            self.others.unsqueeze(1), drawn.transpose(1, 2), own_actions.unsqueeze(0)
        )

    def _impromptu(self, obs: Tensor) -> Tensor:
        """[G, N, O] -> [G, N, U]."""
        return self.impromptu2(F.leaky_relu_(self.impromptu1(obs)))

    def _natural(self, obs: Tensor, histories: Histories, character: Tensor) -> Tensor:
        """Observations of the subjects [G, N, O], characters [G, H'] -> [G, N, U]."""
        mental = self._encode(
            self.mental_net, histories.past_obs, histories.past_actions, histories.past_filled
        )
        n_obs, hidden = obs.shape[-1], character.shape[-1]
        of_character, of_rest = self.natural1.weight.split([hidden, hidden + n_obs], -1)
        # The character is the same in all rows.
        constant = torch.baddbmm(
            self.natural1.bias.unsqueeze(1), character.unsqueeze(1), of_character.mT
        )
        x = torch.baddbmm(constant, torch.cat([mental, obs], -1), of_rest.mT)
        return self.natural2(F.leaky_relu_(x))

    def _masked(self, logits: Tensor, histories: Histories) -> Tensor:
        avail = self._of_subjects(histories.avail_actions)
        return logits.masked_fill(avail == 0, torch.finfo(logits.dtype).min)

    # -- Training ----------------------------------------------------------------------------------
    def loss(self, histories: Histories, actions: Tensor) -> ModelLoss:
        """Cross-entropy of actions that were taken, with new characters.

        The impromptu prediction is trained on all rows, on its own; the sum of both predictions on
        `moa_natural_batch` of them, drawn at random (the two mini-batches of F2A2, appendix G).

        Args:
            histories: of the newest N steps.
            actions: int64 [N, A], taken in them.
        """
        character = self._draw_character()
        self.character.copy_(character.detach())
        targets = self._of_subjects(actions)
        obs = self._of_subjects(histories.obs)
        impromptu = self._impromptu(obs)
        rows = torch.randperm(len(actions), device=actions.device)[: self.natural_batch]
        part, taken = histories.rows(rows), targets[:, rows]
        both = self._masked(impromptu[:, rows] + self._natural(obs[:, rows], part, character), part)
        loss = _cross_entropy(self._masked(impromptu, histories), targets) + _cross_entropy(
            both, taken
        )
        accuracy = (both.argmax(-1) == taken).float().mean(1)
        best_constant = F.one_hot(taken, self.n_actions).float().mean(1).amax(-1)
        return ModelLoss(loss, accuracy, best_constant)

    def of_pairs(self, values: Tensor) -> Tensor:
        """[G, ...] -> [i, j, ...], zero for i = j."""
        pairs = values[self.models]
        return pairs.masked_fill(~self.others.view(*self.others.shape, *[1] * (pairs.dim() - 2)), 0)


def _cross_entropy(logits: Tensor, actions: Tensor) -> Tensor:
    """[G, N, U], [G, N] -> [G]."""
    return F.cross_entropy(logits.mT, actions, reduction="none").mean(1)
