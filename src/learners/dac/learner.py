"""DAC: fully decentralised Q-learning on contexts of the task's dynamics.

An agent alone sees a task whose dynamics change with what the others do. A VAE-like network gives
each window of its last transitions a discrete context; Q(s, a, c) is learned for each context, and
the agent acts on the best of them. "DAC" in the docstrings is the paper "Fully Decentralized
Cooperative Multi-Agent Reinforcement Learning is A Context Modeling Problem";
`controllers.dac_controller` has the behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from components.steps import Steps
from controllers.dac_controller import DACMAC
from learners.base import Learner, make_optimiser, parts_of
from learners.needs import Needs
from learners.replayed import episode_errors, transition_weights
from modules.dac import ContextEncoder, DynamicsDecoder
from modules.dac.agent import DACAgent
from modules.dac.windows import Windows
from utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE


class AgentTransitions(NamedTuple):
    """The M transitions of a batch as every agent sees them: A agents, O entries of an observation,
    U actions.
    """

    obs: Tensor  # [A, M, O]
    actions: Tensor  # [A, M, U], one-hot
    rewards: Tensor  # [A, M]
    next_obs: Tensor  # [A, M, O]


class ContextLosses(NamedTuple):
    """Contexts of M windows and the losses of encoder and decoder, the means over the windows."""

    contexts: Tensor  # [A, M, m], sampled, one-hot; their gradient reaches the encoder
    rec: Tensor  # [A]
    kl: Tensor  # [A]


def transitions_of(batch: EpisodeBatch, steps: Steps) -> AgentTransitions:
    """The transitions of a batch; with a common reward every agent is given it."""
    obs = steps.pack(batch["obs"]).transpose(0, 1)
    n_actions = batch["avail_actions"].shape[-1]
    actions = (
        F.one_hot(steps.pack_transitions(batch["actions"]).squeeze(-1), n_actions)
        .to(obs)
        .transpose(0, 1)
    )
    rewards = steps.pack_transitions(batch["reward"]).t().expand(len(obs), -1)
    return AgentTransitions(obs[:, steps.cur], actions, rewards, obs[:, steps.nxt])


def context_losses(
    encoder: ContextEncoder,
    decoder: DynamicsDecoder,
    transitions: AgentTransitions,
    windows: Windows,
    temperature: float,
    weights: Tensor | None = None,
) -> ContextLosses:
    """Samples a context for every window, by the hard Gumbel-softmax with a straight-through
    gradient.

    Args:
        windows: of these transitions.
        temperature: of the Gumbel-softmax.
        weights: [M], of the windows; None: 1.

    Returns:
        The contexts, L_REC (DAC, eq. 13) and L_KL, the divergence from the uniform distribution
        (eq. 12).
    """
    logits = encoder(*transitions, windows)
    contexts = F.gumbel_softmax(logits, tau=temperature, hard=True)
    log_q = F.log_softmax(logits, dim=-1)
    kl = (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])
    return ContextLosses(
        contexts, decoder.loss(*transitions, contexts, windows, weights), _mean(kl, weights)
    )


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over transitions: losses [A, M], weights [M] -> [A]."""
    return (losses if weights is None else losses * weights).mean(1)


class DACLearner(Learner):
    """DAC; all agents' networks are computed side by side, and nothing passes from one agent to
    another.

    The value networks and the context networks (encoder and decoder) have an optimiser each; of
    both, the gradient is clipped for each agent on its own.

    Args:
        mac: a `DACMAC`.
        scheme, logger: as for every learner.
        args: `dac_k` (k, transitions of a window), `dac_m` (m, contexts), `dac_beta` (weight of
            L_KL), `dac_temperature` (of the Gumbel-softmax), `dac_hidden_dim`,
            `dac_value_trains_encoder` (True: gradients of the value loss reach the encoder),
            `double_q`, and what the networks read.

    Raises:
        ConfigError: a setting out of range, or a controller of another kind.
    """

    weights_episodes = True
    resets_networks = True
    needs = Needs(
        mac=DACMAC,
        settings={
            "share_params": False,
            "mixer": None,
            "td_lambda": 0.0,
            "q_lambda": False,
            "agent_output_type": "q",
            "action_selector": "epsilon_greedy",
        },
        why={
            "share_params": "every agent has its own networks",
            "mixer": "its agents learn on their own",
            "td_lambda": "its targets are one-step targets",
            "q_lambda": "its targets are one-step targets",
            "agent_output_type": "its agents act on values",
            "action_selector": "epsilon is its rate of exploring contexts too",
        },
    )
    ranges: ClassVar = {
        "dac_k": COUNT,
        "dac_hidden_dim": COUNT,
        "dac_beta": NOT_NEGATIVE,
        "dac_temperature": POSITIVE,
        **DACAgent.ranges,
    }

    def __init__(
        self, mac: DACMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        obs = scheme["obs"]["vshape"]
        obs_size = obs if isinstance(obs, int) else obs[0]
        self.encoder = ContextEncoder(obs_size, args)
        self.decoder = DynamicsDecoder(obs_size, args)
        self.modules = {"encoder": self.encoder, "decoder": self.decoder}
        self.target_mac = self.with_target(mac)
        self.params = list(mac.parameters())
        self.context_params = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimiser = make_optimiser(self.params, args)
        self.context_optimiser = make_optimiser(self.context_params, args)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_errors_abs` [B] if `per_weight` is given, see `episode_errors`.
        """
        args, steps = self.args, batch.steps()
        windows = Windows(steps, args.dac_k)
        transitions = transitions_of(batch, steps)
        weights = None
        if per_weight is not None:
            weights = transition_weights(
                torch.as_tensor(per_weight).to(transitions.rewards), steps
            ).squeeze(-1)
        sampled, loss_rec, loss_kl = context_losses(
            self.encoder, self.decoder, transitions, windows, args.dac_temperature, weights
        )
        # The value loss sees a copy, whose gradient is handed on to the encoder only where that is
        # wanted.
        contexts = sampled.detach().requires_grad_(args.dac_value_trains_encoder)

        inputs = self.mac.sequence_inputs(batch, steps)
        features = self.mac.agent.unroll_features(inputs, steps)
        with torch.no_grad():
            targets = self.targets_of(batch, steps, windows, features, contexts, inputs)
        values = self.mac.agent.q_head.given(features[:, steps.cur], contexts)
        q_taken = (values * transitions.actions).sum(-1)
        td_error = q_taken - targets
        loss_value = _mean(td_error.pow(2), weights)

        parts = parts_of(batch, targets=targets, q=q_taken)
        grad_norm = self.optimise(self.optimiser, self.params, loss_value, t_env, parts)
        loss_context = loss_rec + args.dac_beta * loss_kl
        if contexts.grad is not None:  # with dac_value_trains_encoder
            loss_context = loss_context + _without_value((contexts.grad * sampled).sum((1, 2)))
        parts = parts_of(batch, reconstruction=loss_rec, divergence=loss_kl)
        context_grad_norm = self.optimise(
            self.context_optimiser, self.context_params, loss_context, t_env, parts
        )
        self.update_targets_if_due(episode_num)
        usage = contexts.detach().mean(1)
        self.log_means(
            t_env,
            loss_value=loss_value,
            loss_rec=loss_rec,
            loss_kl=loss_kl,
            grad_norm=grad_norm,
            context_grad_norm=context_grad_norm,
            context_entropy=-torch.xlogy(usage, usage).sum(-1),
            context_largest_share=usage.amax(-1),
            td_error_abs=td_error.abs(),
            q_taken_mean=q_taken,
            target_mean=targets,
        )
        return episode_errors(td_error.t(), steps, per_weight)

    def targets_of(
        self,
        batch: EpisodeBatch,
        steps: Steps,
        windows: Windows,
        features: Tensor,
        contexts: Tensor,
        inputs: Tensor,
    ) -> Tensor:
        """r_t + gamma max_a Q(s_{t+1}, a, c_{t+1}) under the target networks (DAC, eq. 10), with
        double Q-learning.

        The context c_{t+1} ends with transition t + 1. Where the episode was cut before it, c_t
        stands in for it; at a terminal nothing follows.

        Args:
            features: [A, N, H], what the online head reads at all filled steps.
            contexts: [A, M, m], of the transitions.
            inputs: [N, A, F], of the agent networks.

        Returns:
            [A, M].
        """
        following = contexts[:, windows.following]
        avail = steps.pack(batch["avail_actions"])[steps.nxt].transpose(0, 1)
        target_agent = self.target_mac.agent
        target_q = target_agent.q_head.given(
            target_agent.unroll_features(inputs, steps)[:, steps.nxt], following
        )
        q = (
            self.mac.agent.q_head.given(features[:, steps.nxt], following)
            if self.args.double_q
            else target_q
        )
        best = target_q.gather(-1, masked_argmax(q, avail).unsqueeze(-1)).squeeze(-1)
        goes_on = 1 - steps.pack_transitions(batch["terminated"]).to(best).t()
        return steps.pack_transitions(batch["reward"]).t() + self.args.gamma * goes_on * best

    @property
    def explained_by(self) -> tuple[str, ...]:
        return ("encoder",)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """phi of the best action, and what the encoder makes of the window that ends with the
        transition before each step; before the first one there is none.
        """
        steps = batch.steps()
        phi = self.mac.unroll(batch, steps)
        avail = steps.pack(batch["avail_actions"])
        best = phi.masked_fill(avail == 0, -math.inf).amax(-1)
        logits = self.encoder(*transitions_of(batch, steps), Windows(steps, self.args.dac_k))
        contexts = logits.softmax(-1).transpose(0, 1)
        before = torch.full_like(contexts[:1], math.nan)
        return {
            "value": Inner(best, ("agent",)),
            "context of the last transitions": Inner(
                torch.cat([before, contexts]), ("agent", "context"), "probability"
            ),
        }

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "context_opt": self.context_optimiser}


def _without_value(x: Tensor) -> Tensor:
    """Zero, with the gradient of x."""
    return x - x.detach()
