"""QTRAN-base: utilities whose greedy joint action is that of a free joint value (Son et al.
2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from learners.base import parts_of
from learners.q_learner import QLearner
from learners.replayed import ReplayedSteps, check_hidden_states
from modules.mixers.qtran import QTranBase
from utils.errors import ConfigError
from utils.ranges import NOT_NEGATIVE


class QTranLearner(QLearner):
    """Learns Q_jt(s, a) and V_jt(s) by TD, and the agents' values by the two conditions of QTRAN's
    theorem 1.

    Q_jt sees the hidden states of the agent network, so gradients of its TD loss reach that
    network.

    Raises:
        ConfigError: the mixer is not `qtran_base`, the agent has no `unroll_hidden` and `head`, or
            a setting is out of range.
    """

    shares_updates = False
    ranges: ClassVar = {
        **QLearner.ranges,
        "opt_loss": NOT_NEGATIVE,
        "nopt_min_loss": NOT_NEGATIVE,
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        if not isinstance(self.mixer, QTranBase):
            raise ConfigError(f"{args.learner} needs mixer=qtran_base, got '{args.mixer}'")
        check_hidden_states(mac, args)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_errors_abs` [B] of Q_jt if `per_weight` is given, see `episode_errors`.
        """
        rows = ReplayedSteps.of(batch, self.mac, per_weight, self.args.td_lambda_pymarl)
        cur = rows.steps.cur
        state, actions = rows.state[cur], rows.actions[cur]
        hidden, q = rows.unroll_hidden(self.mac)
        joint_q, v = self.joint(self.mixer, hidden[cur], state, actions)
        greedy = masked_argmax(q, rows.avail)
        with torch.no_grad():
            target_hidden, target_q = rows.unroll_hidden(self.target_mac)
            best = greedy if self.args.double_q else masked_argmax(target_q, rows.avail)
            values, _ = self.joint(self.target_mixer, target_hidden, rows.state, best)
            taken = None
            if self.args.q_lambda:
                taken, _ = self.joint(self.target_mixer, target_hidden, rows.state, rows.actions)
            targets = rows.returns(self.args, values, taken)
            joint_greedy, _ = self.joint(self.mixer, hidden[cur], state, greedy[cur])

        td_error = joint_q - targets
        # Eq. 4a, 4b: sum_i Q_i - Q_jt + V_jt is 0 at the greedy joint action and not negative at
        # any other.
        opt_error = sum_of_values(q[cur], greedy[cur]) - joint_greedy + v
        nopt_error = (sum_of_values(q[cur], actions) - joint_q.detach() + v).clamp(max=0)
        loss_td = rows.mean(td_error.pow(2))
        loss_opt = rows.mean(opt_error.pow(2))
        loss_nopt = rows.mean(nopt_error.pow(2))
        loss = loss_td + self.args.opt_loss * loss_opt + self.args.nopt_min_loss * loss_nopt
        parts = parts_of(batch, **{"targets": targets, "q": q, "joint q": joint_q})
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        self.update_targets_if_due(episode_num)
        self.log_means(
            t_env,
            loss_td=loss_td,
            opt_loss=loss_opt,
            nopt_loss=loss_nopt,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=joint_q,
            target_mean=targets,
        )
        return rows.errors(td_error)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Q_jt of the greedy joint action."""
        rows = ReplayedSteps.of(batch, self.mac)
        hidden, q = rows.unroll_hidden(self.mac)
        greedy = masked_argmax(q, rows.avail)
        return {"value": Inner(self.joint(self.mixer, hidden, rows.state, greedy)[0].squeeze(-1))}

    def joint(
        self, mixer: QTranBase, hidden: Tensor, state: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Q_jt [N, 1] of the joint actions (int64 [N, A]) and V_jt [N, 1]."""
        return mixer.joint(hidden, state, F.one_hot(actions, self.args.n_actions))


def sum_of_values(q: Tensor, actions: Tensor) -> Tensor:
    """Sum over agents of the values of their actions: q [N, A, U], actions int64 [N, A] -> [N,
    1].
    """
    return q.gather(-1, actions.unsqueeze(-1)).sum(dim=-2)
