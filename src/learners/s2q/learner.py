"""S2Q: successive sub-value functions that retain the best joint actions after the best one.

Q_0 follows an unrestricted Q* as in weighted QMIX; Q_k, k = 1..K, follows it with the joint actions
suppressed that are greedy under Q_0..Q_{k-1}. "S2Q" in the docstrings is the paper "Retaining
Suboptimal Actions to Follow Shifting Optima in Multi-Agent Reinforcement Learning".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from controllers.s2q_controller import S2QMAC, SELECTIONS
from learners.base import Learner, make_optimiser, parts_of
from learners.joint_values import FollowedValue, UnrestrictedValue
from learners.needs import Needs
from learners.parts import Losses, in_parts
from learners.replayed import ReplayedSteps, joint_value
from learners.s2q.first_value import FirstValue
from modules.comm.latent import LatentEncoder
from modules.mixers import RANGES as MIXER_RANGES
from modules.mixers import REGISTRY as MIXERS
from modules.s2q.agent import S2QAgent
from utils.ranges import NOT_NEGATIVE, POSITIVE, PROBABILITY, one_of

# What is searched for the culprit if an update is not finite: name -> its figure.
FIGURES_CHECKED = {
    "targets": "target_mean",
    "q": "q_taken_mean",
    "central q": "central_loss",
    "latent": "state_loss",
}
# s2q_backbone -> the mixer of the sub-value functions
BACKBONES = {"wqmix": "qmix", "vdn": "vdn", "qplex": "dmaq"}


class S2QLearner(Learner):
    """S2Q on one of three backbones (`s2q_backbone`).

    `wqmix`: QMIX mixers and an unrestricted Q* with a target network, as `MaxQLearner` has them.
    `vdn` and `qplex` have no Q* of their own: Q_0 and a target network of it stand in for it (S2Q,
    appendix G.3), and the loss of Q* is that of Q_0.

    Args:
        mac: an `S2QMAC`.
        scheme, logger: as for every learner.
        args: `s2q_backbone`, `s2q_k` (K), `s2q_lambda` (suppression factor), `s2q_offset` (C, added
            to Q* where it is suppressed), `s2q_alpha` (weight of the errors that count less),
            `s2q_temperature` (T of P_t), `s2q_weighted_td` (False: all errors count alike),
            `s2q_chunk_steps` (transitions whose gradients are computed at once, which bounds the
            memory of an update and changes nothing else; 0: all of them), and what the networks
            read.

    Attributes:
        mixer: K + 1 mixers, stacked.
        q_star: what the sub-value functions follow.

    Raises:
        ConfigError: a setting out of range, or a controller or mixer of another kind.
    """

    weights_episodes = True
    shares_updates = True
    resets_networks = True
    needs = Needs(
        mac=S2QMAC,
        settings={
            "mixer": None,
            "hysteretic_beta": 1.0,
            "common_reward": True,
            "double_q": True,
        },
        why={
            "mixer": "s2q_backbone chooses its mixers",
            "hysteretic_beta": "hysteretic_beta is for independent learners: S2Q has s2q_alpha",
            "common_reward": "it learns joint values",
            "double_q": "it bootstraps at the online network's greedy action",
        },
    )
    ranges: ClassVar = {
        "s2q_backbone": one_of(*BACKBONES),
        "s2q_lambda": NOT_NEGATIVE,
        "s2q_offset": NOT_NEGATIVE,
        "s2q_alpha": PROBABILITY,
        "s2q_temperature": POSITIVE,
        "s2q_chunk_steps": NOT_NEGATIVE,
        "s2q_fixed_prob": PROBABILITY,
        "s2q_select": one_of(*SELECTIONS),
        **S2QAgent.ranges,
        **LatentEncoder.ranges,
        **UnrestrictedValue.ranges,
        **MIXER_RANGES,
    }

    def __init__(
        self, mac: S2QMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.mixer = MIXERS[BACKBONES[args.s2q_backbone]](args, groups=args.s2q_k + 1)
        q_star = self._followed()
        self.modules |= {"mixer": self.mixer, **q_star.modules}
        self.params = [*mac.parameters(), *self.mixer.parameters(), *q_star.params]
        self.targets += q_star.targets
        # The names under which checkpoints know them.
        self.target_mac, self.target_mixer = q_star.target_mac, q_star.target_mixer
        self.q_star = q_star
        if args.s2q_select == "oracle":
            mac.oracle = self.choice_at
        self.optimiser = make_optimiser(self.params, args)

    def _followed(self) -> FollowedValue:
        if self.args.s2q_backbone == "wqmix":
            return UnrestrictedValue(self.mac, self.scheme, self.args, state_once=True)
        return FirstValue(self.mac, self.mixer, self.scheme, self.args)

    # -- one update --------------------------------------------------------------------------------
    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_errors_abs` [B] of Q_0 if `per_weight` is given, see `episode_errors`.
        """
        loss, figures, errors = in_parts(
            self.losses_of,
            batch,
            per_weight,
            self.params,
            threads=self.threads,
            limit=self.args.s2q_chunk_steps,
        )
        checked = {name: figures[key] for name, key in FIGURES_CHECKED.items() if key in figures}
        grad_norm = self.optimise(
            self.optimiser, self.params, loss, t_env, parts_of(batch, **checked)
        )
        self.update_targets_if_due(episode_num)
        self.log_means(t_env, grad_norm=grad_norm, **figures)
        return errors

    def losses_of(self, batch: EpisodeBatch, per_weight: Tensor | None) -> Losses:
        """The loss of some episodes, the mean over their transitions."""
        rows = ReplayedSteps.of(batch, self.mac, per_weight)
        cur, args = rows.steps.cur, self.args
        with torch.no_grad():
            outputs = self.q_star.target_outputs(rows)
        q, z = self.mac.unroll_all(batch, rows.steps, rows.inputs)
        greedy = masked_argmax(q, rows.avail)
        # All that needs no gradient before the rest of what does, whose memory is not free again
        # until the update.
        with torch.no_grad():
            values, targets = self.q_star.targets_of(rows, outputs, greedy)
            best = values[:, cur]
            choice = self.choice(best)
            known = identified(rows.actions[cur], greedy[:, cur])
        actions = rows.actions.expand_as(greedy)
        sub_values = joint_value(self.mixer, q, actions, rows.avail, rows.state)[:, cur]
        q_star = self.q_star.taken(rows, own=sub_values[0], at=cur)
        with torch.no_grad():
            errors_to = targets - args.s2q_lambda * (q_star + args.s2q_offset) * known
            weights = self.weights(sub_values - errors_to, q_star, best)

        delta = sub_values - errors_to
        decoded, logits = self.mac.decoder(z[cur])
        losses = {
            "loss_td": reduce(torch.add, map(rows.mean, weights * delta.pow(2))),
            **self.q_star.losses(q_star, targets, rows),
            "state_loss": F.mse_loss(decoded, rows.state[cur]),
            "choice_loss": F.cross_entropy(logits, choice),
        }
        figures = {
            **losses,
            "td_error_abs": delta[0].detach().abs(),
            "q_taken_mean": sub_values[0],
            "target_mean": targets,
            "w_to_use": weights,
            "choice_of_first": choice[:, 0],
            **self.mechanism(greedy[:, cur], known, best),
        }
        return Losses(reduce(torch.add, losses.values()), figures, rows.errors(delta[0]))

    def weights(self, delta: Tensor, q_star: Tensor, best: Tensor) -> Tensor:
        """Weights of the squared errors, each 1 or alpha (S2Q, eq. C.5).

        w_0 is 1 where Q* of the joint action taken is not below the largest value of the identified
        ones; w_k, k >= 1, where Q_k is too low.

        Args:
            delta: [K + 1, M, 1], errors of the sub-value functions.
            q_star: [M, 1], of the actions taken.
            best: [K + 1, M, 1], target Q* of the greedy joint actions a_0*..a_K*.

        Returns:
            [K + 1, M, 1].
        """
        if not self.args.s2q_weighted_td:
            return torch.ones_like(delta)
        full = torch.cat([(q_star >= best.amax(0)).unsqueeze(0), delta[1:] < 0])
        return torch.where(full, 1.0, self.args.s2q_alpha)

    def choice(self, best: Tensor) -> Tensor:
        """P_t(k) = softmax over k of target Q*(a_k*) / T (S2Q, eq. 4): [K + 1, N, 1] -> [N, K +
        1].
        """
        return torch.softmax(best.squeeze(-1).t() / self.args.s2q_temperature, dim=-1)

    @torch.no_grad()
    def mechanism(self, greedy: Tensor, known: Tensor, best: Tensor) -> dict[str, Tensor]:
        """Figures that tell whether there is anything to choose from.

        For k = 1..K: `suppressed_k`, whether the joint action taken is suppressed in Q_k's target;
        `differs_k`, whether a_k* is another joint action than a_0*; `agents_differ_k`, how many
        agents act differently in it. `choice_spread`: the largest less the smallest Q*(a_k*),
        divided by T; far below 1 the choice is a uniform draw.

        Args:
            greedy: int64 [K + 1, M, A].
            known: bool [K + 1, M, 1].
            best: [K + 1, M, 1].
        """
        others = (greedy[1:] != greedy[:1]).sum(-1)
        spread = (best.amax(0) - best.amin(0)) / self.args.s2q_temperature
        figures = {"choice_spread": spread}
        for k, differ in enumerate(others, start=1):
            figures[f"suppressed_{k}"] = known[k].float()
            figures[f"differs_{k}"] = (differ > 0).float()
            figures[f"agents_differ_{k}"] = differ.float()
        return figures

    # -- for people who watch ---------------------------------------------------------------------
    @property
    def explained_by(self) -> tuple[str, ...]:
        return tuple(self.q_star.modules) or ("mixer",)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Target Q* of the greedy joint actions a_0*..a_K*, and the true P_t, which they make."""
        rows = ReplayedSteps.of(batch, self.mac)
        greedy = masked_argmax(self.mac.unroll_all(batch, rows.steps, rows.inputs).q, rows.avail)
        outputs = self.q_star.target_outputs(rows)
        best = self.q_star.target_values(outputs, greedy, rows.state, rows.avail)
        return {
            "value": Inner(best[0].squeeze(-1)),
            "Q* of a_k*": Inner(best.squeeze(-1).t(), ("Q",)),
            "P_t, from Q*": Inner(self.choice(best), ("Q",), "probability"),
        }

    # -- the true P_t at acting time (ablation S2Q_oracle) -----------------------------------------
    def choice_at(self, ep_batch: EpisodeBatch, t: int, bs: Any, greedy: Tensor) -> Tensor:
        """P_t of step t for the episodes `bs`; the steps must come in order.

        Args:
            greedy: int64 [K + 1, len(bs), A], the greedy joint actions.

        Returns:
            [len(bs), K + 1].
        """
        if t == 0:
            self.target_mac.init_hidden(ep_batch.batch_size)
        outputs = self.target_mac.forward(ep_batch, t, bs=bs)
        avail, state = ep_batch["avail_actions"][bs, t], ep_batch["state"][bs, t]
        return self.choice(self.q_star.target_values(outputs, greedy, state, avail))

    # -- target networks ---------------------------------------------------------------------------
    def update_targets(self) -> None:
        """Copies the online weights into the target networks."""
        super().update_targets()
        self.q_star.update_targets()

    def networks(self) -> list[Any]:
        """See `Learner.networks`."""
        return [*super().networks(), self.target_mixer]

    def cuda(self) -> None:
        """Moves all networks to the GPU."""
        super().cuda()
        self.target_mixer.cuda()


def identified(actions: Tensor, greedy: Tensor) -> Tensor:
    """Whether the joint action taken is in A_{k-1} = {a_0*, ..., a_{k-1}*}, for k = 0..K.

    Args:
        actions: int64 [M, A].
        greedy: int64 [K + 1, M, A].

    Returns:
        bool [K + 1, M, 1]; False for k = 0.
    """
    same = (greedy == actions).all(-1, keepdim=True)
    before = same.roll(1, 0)
    before[0] = False
    return before.cumsum(0) > 0
