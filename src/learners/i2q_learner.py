"""I2Q: independent Q-learning towards the best of the next states that the other agents make
reachable.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from learners.base import make_optimiser, parts_of
from learners.needs import Needs
from learners.q_learner import QLearner
from learners.replayed import ReplayedSteps, check_hidden_states
from modules.layers import linear
from modules.recurrent import Agent
from utils.ranges import COUNT, PROBABILITY, Range


class HiddenStateValue(Agent):
    """An MLP from features of each agent to one value, with two hidden ReLU layers.

    Its weights are shared by the agents where those of the agent network are.

    Args:
        n_in: F, features of one agent.
        args: `i2q_hidden_dim` (of both layers), and what every agent network reads.
    """

    def __init__(self, n_in: int, args: SimpleNamespace) -> None:
        super().__init__(n_in, args)
        self.fc1 = linear(n_in, args.i2q_hidden_dim, self.groups)
        self.fc2 = linear(args.i2q_hidden_dim, args.i2q_hidden_dim, self.groups)
        self.fc3 = linear(args.i2q_hidden_dim, 1, self.groups)

    def forward(self, features: Tensor) -> Tensor:
        """[N, A, F] -> [N, A]."""
        x = F.relu(self.fc1(self.to_rows(features)), inplace=True)
        return self.from_rows(self.fc3(F.relu(self.fc2(x), inplace=True))).squeeze(-1)


class I2QLearner(QLearner):
    """Independent Q-learning with a share of ideal targets (Jiang and Lu 2022, "I2Q: A Fully
    Decentralized Q-Learning Algorithm").

    Two more values are learned on the hidden states h of each agent's target network: Q_ss(h_t,
    h_{t+1}), the value of a transition, and V_s(h_t), which an expectile regression (tau > 0.5)
    draws to the best transitions that happen. r + gamma V_s(h_{t+1}) is then the target as if the
    other agents did their best.

    Args:
        mac, scheme, logger: as for every learner.
        args: `i2q_lambda` (share of the ideal target), `i2q_expectile` (tau), `i2q_hidden_dim`, and
            what `QLearner` reads.

    Raises:
        ConfigError: a setting out of range, a mixer, or an agent network that does not show its
            hidden states.
    """

    shares_updates = False
    needs = Needs(settings={"mixer": None}, why={"mixer": "its agents learn on their own"})
    ranges: ClassVar = {
        **QLearner.ranges,
        "i2q_lambda": PROBABILITY,
        "i2q_expectile": Range(lambda value: 0 < value < 1, "greater than 0 and less than 1"),
        "i2q_hidden_dim": COUNT,
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        check_hidden_states(mac, args)
        super().__init__(mac, scheme, logger, args)
        self.q_ss = HiddenStateValue(2 * args.rnn_hidden_dim, args)
        self.v_s = HiddenStateValue(args.rnn_hidden_dim, args)
        self.target_q_ss, self.target_v_s = self.with_target(self.q_ss), self.with_target(self.v_s)
        self.modules |= {"q_ss": self.q_ss, "v_s": self.v_s}
        self.q_ss_params, self.v_s_params = (
            list(self.q_ss.parameters()),
            list(self.v_s.parameters()),
        )
        self.q_ss_optimiser = make_optimiser(self.q_ss_params, args)
        self.v_s_optimiser = make_optimiser(self.v_s_params, args)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `QLearner.train`."""
        rows = ReplayedSteps.of(batch, self.mac, per_weight)
        q = rows.unroll(self.mac)
        with torch.no_grad():
            hidden, target_q = rows.unroll_hidden(self.target_mac)
            ideal = rows.returns(self.args, self.target_v_s(hidden), td_lambda=0.0)
            targets = torch.lerp(self.targets_of(rows, q, target_q), ideal, self.args.i2q_lambda)
        figures = self.fit_state_values(rows, hidden, ideal, t_env)
        losses = self.losses_to(rows, q, targets)
        return self.step(batch, losses, t_env, episode_num, **figures)

    def fit_state_values(
        self, rows: ReplayedSteps, hidden: Tensor, ideal: Tensor, t_env: int
    ) -> dict[str, Tensor]:
        """One step of Q_ss towards the ideal targets, and one of V_s towards an expectile of the
        target network's Q_ss.

        Args:
            hidden: [N, A, H], of the target agent network.
            ideal: [M, A], r_t + gamma V_s(h_{t+1}) under the target network.

        Returns:
            Figures to log.
        """
        before, after = hidden[rows.steps.cur], hidden[rows.steps.nxt]
        transitions = torch.cat([before, after], dim=-1)
        q_ss_losses = 0.5 * (self.q_ss(transitions) - ideal).pow(2)
        with torch.no_grad():
            expectile_of = self.target_q_ss(transitions)
        v_s_losses = self.expectile_losses(self.v_s(before), expectile_of)
        figures = {}
        for name, losses, optimiser, params in (
            ("q_ss", q_ss_losses, self.q_ss_optimiser, self.q_ss_params),
            ("v_s", v_s_losses, self.v_s_optimiser, self.v_s_params),
        ):
            loss = rows.mean(losses, per_agent=self.decentralised)
            parts = parts_of(
                rows.batch, **{"target v_s": ideal, "target q_ss": expectile_of, name: losses}
            )
            figures[f"{name}_grad_norm"] = self.optimise(optimiser, params, loss, t_env, parts)
            figures[f"loss_{name}"] = loss
        return figures

    def expectile_losses(self, values: Tensor, targets: Tensor) -> Tensor:
        """Half the squared errors, weighted tau where the target is above the value and 1 - tau
        elsewhere.
        """
        error, tau = targets - values, self.args.i2q_expectile
        return 0.5 * torch.where(error > 0, tau, 1.0 - tau) * error.pow(2)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {
            **super().optimisers(),
            "q_ss_opt": self.q_ss_optimiser,
            "v_s_opt": self.v_s_optimiser,
        }
