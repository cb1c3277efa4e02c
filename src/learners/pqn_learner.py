"""PQN: Q-learning on the newest episodes, without a replay buffer and without target networks.

"Simplifying Deep Temporal Difference Learning" (Gallici et al. 2024). What keeps it stable is layer
normalisation in the agents' network; with a mixer it is PQN-VDN.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from learners.base import check_fresh, random_parts
from learners.needs import Needs
from learners.parts import Losses, in_parts
from learners.q_learner import QLearner
from learners.replayed import ReplayedSteps
from utils.ranges import COUNT


class PQNLearner(QLearner):
    """Several rounds of updates on a batch of fresh episodes, each on a share of them.

    The targets of an update are lambda returns of the network that it trains, with the values that
    this network has at the moment: G_t = r_t + gamma [(1 - lambda) max Q(s_{t+1}) + lambda
    G_{t+1}], Peng's Q(lambda) (algorithm 1 of the paper). No gradient passes through them.

    Args:
        mac, scheme, logger: as for every learner.
        args: those of `QLearner`; `pqn_epochs`, `pqn_minibatches`, `pqn_lr_decay`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    weights_episodes = False
    needs = Needs(
        settings={"replay": "latest", "updates_per_collection": 1, "steps_per_update": 0},
        why={
            "replay": "it has no replay buffer",
            "updates_per_collection": "pqn_epochs and pqn_minibatches say how often it learns",
            "steps_per_update": "it learns from whole episodes, once they are there",
        },
    )
    ranges: ClassVar = {**QLearner.ranges, "pqn_epochs": COUNT, "pqn_minibatches": COUNT}

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """See `QLearner.check_settings`; and that a batch is of what has just been collected."""
        super().check_settings(args)
        check_fresh(args, "PQN")

    def build_targets(self) -> None:
        """There are none: targets come from the networks that are trained."""
        self.target_mac, self.target_mixer = self.mac, self.mixer

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`pqn_epochs` times `pqn_minibatches` updates; see `Learner.train`. `per_weight` has no
        meaning here.
        """
        args = self.args
        if args.pqn_lr_decay:
            for group in self.optimiser.param_groups:
                group["lr"] = args.lr * max(1.0 - t_env / args.t_max, 0.0)
        figures: dict[str, list[Tensor]] = defaultdict(list)
        for _ in range(args.pqn_epochs):
            parts = random_parts(batch.batch_size, args.pqn_minibatches)
            for part in parts:
                episodes = batch if len(parts) == 1 else batch[part.tolist()]
                for name, value in self.update(episodes, t_env).items():
                    figures[name].append(value.detach().mean())
        self.log_means(t_env, **{name: torch.stack(values) for name, values in figures.items()})
        return {}

    def update(self, batch: EpisodeBatch, t_env: int) -> dict[str, Tensor]:
        """One step of the optimiser; figures to log."""
        threads = 1 if self.args.td_lambda_pymarl else self.threads
        losses = in_parts(self.losses_of, batch, None, self.params, threads)
        return {"grad_norm": self.optimise_losses(batch, losses, t_env), **losses.figures}

    def losses_of(self, batch: EpisodeBatch, per_weight: Tensor | None) -> Losses:
        """The loss of some episodes, the mean over their transitions."""
        rows = ReplayedSteps.of(batch, self.mac, None, self.args.td_lambda_pymarl)
        q: Any = rows.unroll(self.mac)
        with torch.no_grad():
            targets = self.targets_of(rows, q, q)
        return self.losses_to(rows, q, targets)
