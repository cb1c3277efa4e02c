"""Q-learning with value decomposition: IQL, VDN, QMIX, Qatten and QPLEX are this learner with another mixer.

VDN: Sunehag et al. 2018; QMIX: Rashid et al. 2018; Qatten: Yang et al. 2020; QPLEX: Wang et al. 2021. The keys
`td_lambda` (0 for one-step targets), `q_lambda` and `double_q` choose the targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from controllers.unroll import sequence_inputs, unroll
from learners.base import Learner, make_optimiser
from modules.mixers import REGISTRY as MIXERS
from utils.errors import ConfigError
from utils.rl_utils import build_q_lambda_targets, build_td_lambda_targets


class QLearner(Learner):
    """TD learning of a joint value that a mixer builds from the agents' values."""

    def __init__(self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace) -> None:
        super().__init__(mac, scheme, logger, args)
        self.params = list(mac.parameters())
        self.mixer = None if args.mixer is None else MIXERS[args.mixer](args)
        if self.mixer is not None and not args.common_reward:
            raise ConfigError(f"mixer '{args.mixer}' learns one joint value: set common_reward=True, or use iql")
        if self.mixer is not None:
            self.modules["mixer"] = self.mixer
            self.params += list(self.mixer.parameters())
        self.build_targets()
        self.optimiser = make_optimiser(self.params, args)

    def build_targets(self) -> None:
        """The networks that the targets come from, and the parameters of those that are trained for it."""
        self.target_mac = self.with_target(self.mac)
        self.target_mixer = None if self.mixer is None else self.with_target(self.mixer)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_error_abs` [B], the mean absolute TD error per episode (for prioritised buffers).
        """
        steps = batch.steps()
        state = steps.pack(batch["state"])
        avail = steps.pack(batch["avail_actions"])
        actions = steps.pack(batch["actions"]).squeeze(-1)
        inputs = sequence_inputs(self.mac, batch, steps)

        q = unroll(self.mac, batch, steps, inputs)
        q_taken = self.mix(self.mixer, q, actions, avail, state)[steps.cur]
        with torch.no_grad():
            target_q = unroll(self.target_mac, batch, steps, inputs)
            greedy = masked_argmax(q if self.args.double_q else target_q, avail)
            target_max = self.mix(self.target_mixer, target_q, greedy, avail, state)
            if self.args.q_lambda:
                target_taken = self.mix(self.target_mixer, target_q, actions, avail, state)
                targets = self.returns(batch, steps, target_max, target_taken)
            else:
                targets = self.returns(batch, steps, target_max)

        td_error = q_taken - targets
        loss = weighted_mean(0.5 * td_error.pow(2), steps, per_weight)
        parts = {"observations": inputs, "states": state, "rewards": batch["reward"], "targets": targets, "q": q_taken}
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        self.update_targets_if_due(episode_num)
        self.log_means(
            t_env,
            loss_td=loss,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q_taken,
            target_mean=targets,
        )
        return {"td_error_abs": per_episode_mean(td_error.detach().abs(), steps)}

    def mix(self, mixer: Any, q: Tensor, actions: Tensor, avail: Tensor, state: Tensor) -> Tensor:
        """The value of joint actions.

        Args:
            mixer: None for independent values.
            q: [N, A, U] values of the agents' actions.
            actions: int64 [N, A].
            avail: [N, A, U].
            state: [N, S].

        Returns:
            [N, 1], or [N, A] without a mixer.
        """
        chosen = q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        if mixer is None:
            return chosen
        if hasattr(mixer, "joint"):
            # Duplex duelling (QPLEX): the advantages are weighted by what the others do. Finite where nothing is
            # available (after the end of an episode): an infinite advantage would make the gradient NaN.
            best = q.detach().masked_fill(avail == 0, -1e10).amax(-1)
            return mixer.joint(chosen, state, F.one_hot(actions, q.shape[-1]), best)
        # As an axis of time of length 1: PyMARL's mixers are written for [B, T, A] and [B, T, S].
        return mixer(chosen.unsqueeze(1), state.unsqueeze(1)).view(-1, 1)

    def returns(self, batch: EpisodeBatch, steps: Steps, values: Tensor, taken: Tensor | None = None) -> Tensor:
        """Targets of the transitions, [M, 1 or A]: TD(lambda), or Q(lambda) where `taken` is given.

        Args:
            values: [N, 1 or A] bootstrap values of all filled steps.
            taken: [N, 1 or A] values of the actions that were taken, under the same network.
        """
        rewards = batch["reward"][:, :-1]
        terminated = batch["terminated"][:, :-1].float()
        args = self.args
        if taken is None:
            targets = build_td_lambda_targets(
                rewards, terminated, steps.mask, steps.unpack(values), args.n_agents, args.gamma, args.td_lambda,
                pymarl=args.td_lambda_pymarl,
            )  # fmt: skip
        else:
            targets = build_q_lambda_targets(
                rewards, terminated, steps.mask, steps.unpack(values), steps.unpack(taken), args.gamma, args.td_lambda,
                pymarl=args.td_lambda_pymarl,
            )  # fmt: skip
        return steps.pack_transitions(targets)


def masked_argmax(q: Tensor, avail: Tensor) -> Tensor:
    """The best available action: q [..., U], avail [..., U] -> int64 [...]."""
    return torch.where(avail != 0, q.detach(), -torch.inf).argmax(-1)


def weighted_mean(losses: Tensor, steps: Steps, per_weight: Tensor | None) -> Tensor:
    """Mean over transitions of losses [M, ...], each weighted by its episode's `per_weight` [B] if given."""
    if per_weight is not None:
        weights = per_weight.to(losses).view(-1, 1, 1).expand(-1, steps.max_steps, 1)
        losses = losses * steps.pack_transitions(weights)
    return losses.mean()


def per_episode_mean(values: Tensor, steps: Steps) -> Tensor:
    """Mean over an episode's transitions (and agents) of values [M, ...]: [B]."""
    padded = values.new_zeros(steps.n_rows, 1).index_copy(0, steps.rows_cur, values.flatten(1).mean(1, keepdim=True))
    total = steps.unpack(padded).sum(dim=(1, 2))
    return total / (steps.lengths.to(total.device) - 1).clamp(min=1)
