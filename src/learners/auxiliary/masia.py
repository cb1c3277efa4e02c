"""MASIA's losses: aggregated messages hold the state and foresee themselves and the reward (Guan et
al. 2022).
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learners.auxiliary.base import AuxiliaryLoss
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.comm.agent import Talk
from modules.comm.masia import MASIAAgent
from modules.layers import Linear
from modules.mixers.parts import hypernet, state_size
from utils.ranges import COUNT, NOT_NEGATIVE


class LatentModel(nn.Module):
    """The next z by the present one and the joint action: z + F(z, a).

    Args:
        size: Z, entries of z.
        args: `n_agents`, `n_actions`, `masia_action_dim`, `masia_hidden_dim`.
    """

    def __init__(self, size: int, args: SimpleNamespace) -> None:
        super().__init__()
        width = args.masia_hidden_dim
        self.action = Linear(args.n_actions, args.masia_action_dim)
        self.of_actions = hypernet(args.n_agents * args.masia_action_dim, width, width)
        self.of_latent = hypernet(size, width, width)
        self.of_both = hypernet(2 * width, width, size)

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """z [R, Z], actions int64 [R, A] -> [R, Z]."""
        one_hot = F.one_hot(actions, self.action.in_features).to(z)
        by_action = self.of_actions(F.relu(self.action(one_hot)).flatten(1))
        return z + self.of_both(torch.cat([self.of_latent(z), by_action], dim=-1))


class MASIALoss(AuxiliaryLoss):
    """z reconstructs the state; K steps of a latent model from it predict what the target encoder
    makes of later messages, and the rewards.

    Args:
        mac: the learner's controller.
        args: `masia_horizon` (K), `masia_weight` (of all), `masia_prediction_weight`,
            `masia_reward_weight`, `masia_hidden_dim`, `masia_projection_dim`, `masia_action_dim`,
            and what `MASIAAgent` reads.
    """

    needs = AuxiliaryLoss.needs | Needs(agent=MASIAAgent)
    ranges: ClassVar = {
        "masia_horizon": NOT_NEGATIVE,
        "masia_weight": NOT_NEGATIVE,
        "masia_prediction_weight": NOT_NEGATIVE,
        "masia_reward_weight": NOT_NEGATIVE,
        "masia_hidden_dim": COUNT,
        "masia_projection_dim": COUNT,
        "masia_action_dim": COUNT,
    }
    of_parts = False  # means over pairs of steps

    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        super().__init__(mac, args)
        size, width = mac.agent.latent_size, args.masia_hidden_dim
        self.decoder = Linear(size, state_size(args))
        self.projection = hypernet(size, width, args.masia_projection_dim)
        self.predictor = hypernet(args.masia_projection_dim, width, args.masia_projection_dim)
        self.model = LatentModel(size, args)
        self.reward = hypernet(size, width, 1)
        self.target_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.targets = [(self.projection, self.target_projection)]
        self.modules = {
            "decoder": self.decoder,
            "projection": self.projection,
            "predictor": self.predictor,
            "latent_model": self.model,
            "reward": self.reward,
        }

    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """`state_loss`, `prediction_loss`, `reward_loss`; see `AuxiliaryLoss.losses`."""
        args, steps = self.args, rows.steps
        z = online.said.seen["z"]
        with torch.no_grad():
            following = self.target_projection(target.said.seen["z"])
        # int64 [N]: the row of the next step; -1 at the end of an episode
        successor = torch.full((steps.n_rows,), -1, device=z.device)
        successor[steps.rows_cur] = torch.arange(steps.n_rows, device=z.device)[steps.nxt]
        rewards = z.new_zeros(steps.n_rows, 1)
        rewards[steps.rows_cur] = steps.pack_transitions(rows.batch["reward"][:, :-1])
        weights = z.new_ones(steps.n_rows, 1)
        if rows.per_weight is not None:
            each = rows.per_weight.to(z).view(-1, 1, 1)
            weights = steps.pack(each.expand(-1, steps.max_steps, 1))

        at = torch.arange(steps.n_rows, device=z.device)
        state_errors = F.mse_loss(self.decoder(z), rows.state, reduction="none")
        prediction, reward = z.new_zeros(()), z.new_zeros(())
        latent = z
        for k in range(args.masia_horizon + 1):
            if k > 0:
                more = successor[at] >= 0
                latent, at = self.model(latent[more], rows.actions[at[more]]), successor[at[more]]
            if len(at) == 0:
                break
            errors = (self.predictor(self.projection(latent)) - following[at]).pow(2)
            prediction = prediction + (weights[at] * errors.sum(-1, keepdim=True)).mean()
            acted = successor[at] >= 0  # the last step of an episode has no reward
            if acted.any():
                missed = (self.reward(latent[acted]) - rewards[at[acted]]).pow(2)
                reward = reward + (weights[at[acted]] * missed).mean()
        state = (weights * state_errors.mean(-1, keepdim=True)).mean()
        losses = {
            "state_loss": state,
            "prediction_loss": args.masia_prediction_weight * prediction,
            "reward_loss": args.masia_reward_weight * reward,
        }
        return {name: args.masia_weight * loss for name, loss in losses.items()}
