"""S2Q: successive sub-value functions that retain the best joint actions after the best one.

Q_0 follows an unrestricted Q* as in weighted QMIX; Q_k, k = 1..K, follows it with the joint actions
suppressed that are greedy under Q_0..Q_{k-1}. "S2Q" in the docstrings is the paper "Retaining
Suboptimal Actions to Follow Shifting Optima in Multi-Agent Reinforcement Learning".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from controllers.s2q_controller import S2QMAC
from controllers.unroll import sequence_inputs, unroll
from learners.base import Learner, make_optimiser, parts_of
from learners.max_q_learner import MaxQLearner
from learners.q_learner import episode_errors, weighted_mean
from modules.mixers import REGISTRY as MIXERS
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from modules.stacks import copy_first
from utils.errors import ConfigError

# What is searched for the culprit if an update is not finite: name -> its figure.
FIGURES_CHECKED = {
    "targets": "target_mean",
    "q": "q_taken_mean",
    "central q": "central_loss",
    "latent": "state_loss",
}
# s2q_backbone -> the mixer of the sub-value functions
BACKBONES = {"wqmix": "qmix", "vdn": "vdn", "qplex": "dmaq"}


class _Losses(NamedTuple):
    """What is computed of some episodes: the loss to minimise, figures to log, what
    `episode_errors` makes of them.
    """

    loss: Tensor | None
    figures: dict[str, Tensor]
    td: dict[str, Tensor]


class _InTurn(torch.autograd.Function):
    """The sum of losses that are computed one after the other, each with its gradient, so that
    their graphs never exist together.
    """

    @staticmethod
    def forward(ctx: Any, losses: Sequence[Callable[[], Tensor]], *params: Tensor) -> Tensor:
        total, ctx.grads = params[0].new_zeros(()), None
        for loss_of in losses:
            with torch.enable_grad():
                loss = loss_of()
            grads = torch.autograd.grad(loss, params)
            if ctx.grads is None:
                ctx.grads = grads
            else:
                for accumulated, grad in zip(ctx.grads, grads, strict=True):
                    accumulated += grad
            total += loss.detach()
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * accumulated for accumulated in ctx.grads)


class S2QLearner(MaxQLearner):
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

    Raises:
        ConfigError: a setting out of range, or a controller or mixer of another kind.
    """

    def __init__(
        self, mac: S2QMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        _check(mac, args)
        # Not QLearner's: what is one mixer there is a stack of them here.
        Learner.__init__(self, mac, scheme, logger, args)
        self.n_values = args.s2q_k + 1
        self.mixer = MIXERS[BACKBONES[args.s2q_backbone]](args, groups=self.n_values)
        self.modules["mixer"] = self.mixer
        self.params = [*mac.parameters(), *self.mixer.parameters()]
        self.central = args.s2q_backbone == "wqmix"
        if self.central:
            self.build_targets()
            self.target_mac, self.target_mixer = self.target_central_mac, self.target_central_mixer
        else:
            self._build_first_targets()
        if args.s2q_select == "oracle":
            mac.oracle = self.choice_at
        self.optimiser = make_optimiser(self.params, args)

    def _build_first_targets(self) -> None:
        """A target network of Q_0, its encoder included."""
        args = copy.copy(self.args)
        args.s2q_k = 0
        self.target_mac = S2QMAC(self.scheme, {"agents": args.n_agents}, args)
        self.target_mixer = MIXERS[BACKBONES[args.s2q_backbone]](args)
        for param in (*self.target_mac.parameters(), *self.target_mixer.parameters()):
            param.requires_grad_(False)
        self.targets.append((self.mac, self.target_mac))
        self._shared_inputs = True
        self.update_targets()

    # -- one update --------------------------------------------------------------------------------
    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_error_abs` [B] of Q_0 if `per_weight` is given, see `episode_errors`.
        """
        lengths = batch.lengths() - 1
        total, limit = int(lengths.sum()), self.args.s2q_chunk_steps
        n_chunks = min(batch.batch_size, -(-total // limit)) if limit else 1
        done: list[_Losses] = []

        def share_of_loss(episodes: slice) -> Tensor:
            weights = None if per_weight is None else per_weight[episodes]
            losses = self._losses(batch if n_chunks == 1 else batch[episodes], weights)
            n = int(lengths[episodes].sum())
            done.append(
                _Losses(
                    None,
                    {k: v.detach().mean() * n / total for k, v in losses.figures.items()},
                    losses.td,
                )
            )
            return losses.loss * (n / total)

        bounds = [batch.batch_size * i // n_chunks for i in range(n_chunks + 1)]
        chunks = [slice(*pair) for pair in pairwise(bounds)]
        if n_chunks == 1:
            loss = share_of_loss(chunks[0])
        else:
            loss = _InTurn.apply([partial(share_of_loss, chunk) for chunk in chunks], *self.params)
        figures = {
            name: torch.stack([losses.figures[name] for losses in done]).sum()
            for name in done[0].figures
        }
        parts = parts_of(
            batch, **{name: figures[key] for name, key in FIGURES_CHECKED.items() if key in figures}
        )
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        self.update_targets_if_due(episode_num)
        self.log_means(t_env, grad_norm=grad_norm, **figures)
        return {key: torch.cat([losses.td[key] for losses in done]) for key in done[0].td}

    def _losses(self, batch: EpisodeBatch, per_weight: Tensor | None) -> _Losses:
        """The loss of some episodes, the mean over their transitions."""
        steps, state, avail, actions, inputs = self.rows(batch)
        cur = steps.cur
        central_inputs = (
            inputs if self._shared_inputs else sequence_inputs(self.target_mac, batch, steps)
        )

        with torch.no_grad():
            outputs = unroll(self.target_mac, batch, steps, central_inputs)
        q, z = self.mac.unroll_all(batch, steps, inputs)
        greedy = masked_argmax(q, avail)
        # All that needs no gradient before the rest of what does, whose memory is not free again
        # until the update.
        with torch.no_grad():
            joint = torch.cat([greedy, actions.unsqueeze(0)]) if self.args.q_lambda else greedy
            values = self.target_values(outputs, joint, state, avail)
            targets = self.returns(
                batch, steps, values[0], values[-1] if self.args.q_lambda else None
            )
            best = values[: self.n_values, cur]
            choice = self.choice(best)
            known = identified(actions[cur], greedy[:, cur])
        sub_values = self.mix(self.mixer, q, actions.expand_as(greedy), avail, state)[:, cur]
        if self.central:
            central_q = unroll(self.central_mac, batch, steps, central_inputs)
            joint = actions[cur].unsqueeze(0)
            q_star = self.central_joint(self.central_mixer, central_q[cur], joint, state[cur])[0]
        else:
            q_star = sub_values[0]
        with torch.no_grad():
            errors_to = targets - self.args.s2q_lambda * (q_star + self.args.s2q_offset) * known
            weights = self.weights(sub_values - errors_to, q_star, best)

        delta = sub_values - errors_to
        losses = {
            "loss_td": sum(
                weighted_mean(loss, steps, per_weight) for loss in weights * delta.pow(2)
            ),
            **(
                {"central_loss": weighted_mean((q_star - targets).pow(2), steps, per_weight)}
                if self.central
                else {}
            ),
        }
        decoded, logits = self.mac.decoder(z[cur])
        losses["state_loss"] = F.mse_loss(decoded, state[cur])
        losses["choice_loss"] = F.cross_entropy(logits, choice)
        figures = {
            **losses,
            "td_error_abs": delta[0].detach().abs(),
            "q_taken_mean": sub_values[0],
            "target_mean": targets,
            "w_to_use": weights,
            "choice_of_first": choice[:, 0],
        }
        return _Losses(sum(losses.values()), figures, episode_errors(delta[0], steps, per_weight))

    def mix(self, mixer: Any, q: Tensor, actions: Tensor, avail: Tensor, state: Tensor) -> Tensor:
        """The values of joint actions under several utilities at once.

        Args:
            mixer: a stack of J mixers, or one for all.
            q: [J, N, A, U] values of the agents' actions.
            actions: int64 [J, N, A].
            avail: [N, A, U].
            state: [N, S], or [J, N, S] for a single mixer.

        Returns:
            [J, N, 1].
        """
        chosen = q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        if not mixer.takes_actions:
            return mixer(chosen, state)
        # Finite where nothing is available, as in `QLearner.mix`.
        best = q.detach().masked_fill(avail == 0, -1e10).amax(-1)
        return mixer.joint(chosen, state, F.one_hot(actions, q.shape[-1]), best)

    def target_values(self, outputs: Tensor, joint: Tensor, state: Tensor, avail: Tensor) -> Tensor:
        """Values of several joint actions under the target network of Q*, or of Q_0 where that
        stands in for it.

        Args:
            outputs: [N, A, U * E], of the target agent network.
            joint: int64 [J, N, A].
            state: [N, S].
            avail: [N, A, U].

        Returns:
            [J, N, 1].
        """
        n = len(joint)
        if not self.central:
            # Every joint action is mixed under the same state.
            states = state.expand(n, *state.shape)
            return self.mix(
                self.target_mixer, outputs.expand(n, *outputs.shape), joint, avail, states
            )
        return self.central_joint(self.target_mixer, outputs, joint, state)

    def central_joint(
        self, mixer: QMixerCentralFF, outputs: Tensor, joint: Tensor, state: Tensor
    ) -> Tensor:
        """Q* of several joint actions: outputs [N, A, U * E], joint int64 [J, N, A], state [N, S]
        -> [J, N, 1].
        """
        q = outputs.unflatten(-1, (self.args.n_actions, -1))
        index = joint[..., None, None].expand(*joint.shape, 1, q.shape[-1])
        chosen = q.expand(len(joint), *q.shape).gather(-2, index)
        return central_values_of_many(mixer, chosen.flatten(2), state)

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
        return self.choice(self.target_values(outputs, greedy, state, avail))

    # -- target networks ---------------------------------------------------------------------------
    def update_targets(self) -> None:
        """Copies the online weights into the target networks."""
        super().update_targets()
        if not self.central:
            copy_first(self.mixer, self.target_mixer)

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


def central_values_of_many(mixer: QMixerCentralFF, chosen: Tensor, state: Tensor) -> Tensor:
    """`mixer(chosen[j], state)` for J joint actions; what depends on the state alone is computed
    once.

    Args:
        chosen: [J, N, A * E].
        state: [N, S].

    Returns:
        [J, N, 1].
    """
    first = mixer.net[0]
    by_actions, by_state = first.weight.split([mixer.qs_dim, mixer.state_dim], dim=1)
    from_state, value = F.linear(state, by_state, first.bias), mixer.V(state)
    # One joint action after the other: products of this size gain nothing from being one, and need
    # less memory.
    return torch.stack(
        [mixer.net[1:](F.linear(rows, by_actions) + from_state) + value for rows in chosen]
    )


def _check(mac: Any, args: SimpleNamespace) -> None:
    if not isinstance(mac, S2QMAC):
        raise ConfigError(f"s2q_learner needs mac=s2q_mac, got '{args.mac}'")
    if args.s2q_backbone not in BACKBONES:
        raise ConfigError(
            f"s2q_backbone is '{args.s2q_backbone}'; choose one of {', '.join(BACKBONES)}"
        )
    if args.mixer is not None:
        raise ConfigError(
            f"s2q_backbone chooses S2Q's mixers: set it instead of mixer='{args.mixer}'"
        )
    if args.hysteretic_beta != 1.0:
        raise ConfigError(
            "hysteretic_beta is for independent learners: s2q_learner has s2q_alpha instead"
        )
    if not args.common_reward:
        raise ConfigError("s2q_learner learns joint values: set common_reward=True")
    if not args.double_q:
        raise ConfigError(
            "s2q_learner bootstraps at the online network's greedy action: set double_q=True"
        )
    if not 0.0 <= args.s2q_alpha <= 1.0:
        raise ConfigError(f"s2q_alpha is {args.s2q_alpha}; it is a weight, choose 0 to 1")
    if args.s2q_temperature <= 0.0:
        raise ConfigError(f"s2q_temperature is {args.s2q_temperature}; it must be greater than 0")
    for key in ("s2q_lambda", "s2q_offset", "s2q_chunk_steps"):
        if vars(args)[key] < 0.0:
            raise ConfigError(f"{key} is {vars(args)[key]}; it must not be negative")
