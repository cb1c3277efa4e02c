"""LOLA-DQN: deep Q-learners that shape the others' next learning step.

Foerster et al. 2018, "Learning with Opponent-Learning Awareness" (LOLA), in the combination with
DQN that the MAMT paper compares with on Spread. That paper gives no formulas; those used here are
in `shaping_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev

from components.action_selectors import masked_argmax
from components.transitions import Transitions
from learners.base import Learner, make_optimiser, parts_of
from learners.needs import Needs
from modules.agents.mlp_agent import MLPAgent
from utils.errors import ConfigError
from utils.ranges import NOT_NEGATIVE, POSITIVE

Weights = dict[str, Tensor]  # name -> [A, ...], agent i's at i


class Shaping(NamedTuple):
    """What an agent gains from the others' next steps, and how that changes with its own
    weights.
    """

    gain: Tensor  # [A]
    gradients: Weights


def shaping_gradients(
    q_of: Callable[[Weights], Tensor],
    weights: Weights,
    avail: Tensor,
    actions: Tensor,
    targets: Tensor,
    temperature: float,
    eta: float,
) -> Shaping:
    """LOLA's second-order term (Foerster et al. 2018, section 4) for agents that learn by DQN.

    Agent j's policy, as the others see it, is the Boltzmann policy pi_j = softmax(Q_j /
    temperature) over its available actions. A batch that was recorded under the present weights
    (bars) speaks about other ones by the ratios rho_k = pi_k(a_k|o_k; theta_k) / pi_k(a_k|o_k; bar
    theta_k), which are 1 now. With means over the batch:

    - agent j's learning step: Delta_j = -eta grad_{theta_j} E[(prod_{k != j} rho_k) (Q_j(o_j, a_j;
      theta_j) - y_j)^2],
    - agent i's return from what the others do: U_i = E[(prod_{j != i} rho_j) (y_i - Q_i(o_i, a_i;
      bar theta_i))],
    - its gain, to first order in the steps: S_i = sum_{j != i} (grad_{theta_j} U_i) . Delta_j.

    Each agent's gradient goes through the others' steps: grad_{theta_i} S_i = sum_j (grad_{theta_j}
    U_i)^T grad_{theta_i} Delta_j, where grad_{theta_j} U_i is a constant.

    Args:
        q_of: values [N, A, U] for given weights, of agent i by its own weights alone.
        weights: the present ones.
        avail: [N, A, U].
        actions: int64 [N, A].
        targets: y, [N, A].
        temperature: of the Boltzmann policies.
        eta: step size of the others.
    """
    index = actions.unsqueeze(-1)

    def log_prob(w: Weights) -> Tensor:
        logits = (q_of(w) / temperature).masked_fill(avail == 0, -torch.inf)
        return torch.log_softmax(logits, dim=-1).gather(-1, index).squeeze(-1)

    present = log_prob(weights).detach()
    advantages = targets - q_of(weights).gather(-1, index).squeeze(-1).detach()

    def others_ratio(w: Weights) -> Tensor:
        log_ratios = log_prob(w) - present
        return (log_ratios.sum(-1, keepdim=True) - log_ratios).exp()

    def returns(w: Weights) -> Tensor:
        return (others_ratio(w) * advantages).mean(0)

    def losses(own: Weights, others: Weights) -> Tensor:
        errors = q_of(own).gather(-1, index).squeeze(-1) - targets
        return (others_ratio(others) * errors.pow(2)).mean(0).sum()

    # Agent i at i, agent j at j: [A, A, ...]. It is 0 for i = j.
    wanted = jacrev(returns)(weights)

    def gains(w: Weights) -> tuple[Tensor, Tensor]:
        # The sum of the losses: `own` of agent j stands in its own loss only.
        steps = grad(losses)(weights, w)
        gain = -eta * sum((wanted[name] * steps[name]).flatten(1).sum(1) for name in steps)
        return gain, gain

    jacobian, gain = jacrev(gains, has_aux=True)(weights)
    own = torch.arange(len(gain), device=gain.device)
    return Shaping(
        gain.detach(), {name: value[own, own].detach() for name, value in jacobian.items()}
    )


class LOLALearner(Learner):
    """DQN for every agent (own weights, own observation), plus `lola_weight` times the gradient of
    `Shaping.gain`.

    Args:
        mac, scheme, logger: as for every learner; the agent network is feed-forward and not shared.
        args: `lola_eta` (step size that the others are assumed to take), `lola_weight`,
            `lola_temperature` (of the Boltzmann policies that stand for them),
            `standardise_rewards`, `double_q`, `target_tau`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = Needs(
        agent=MLPAgent,
        settings={
            "replay": "transitions",
            "share_params": False,
            "obs_last_action": False,
            "obs_agent_id": False,
            "agent_output_type": "q",
            "mixer": None,
        },
        why={
            "agent": "transitions have no history",
            "replay": "it learns from single transitions",
            "share_params": "every agent has weights of its own",
            "obs_last_action": "its networks read observations alone",
            "obs_agent_id": "its networks read observations alone",
            "agent_output_type": "its agents have action values",
            "mixer": "its agents have action values of their own",
        },
    )
    ranges: ClassVar = {
        "lola_eta": NOT_NEGATIVE,
        "lola_weight": NOT_NEGATIVE,
        "lola_temperature": POSITIVE,
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.target_mac = self.with_target(mac)
        self.params = list(mac.parameters())
        self.optimiser = make_optimiser(self.params, args)

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """See `Learner.check_settings`; and that there are others to shape."""
        super().check_settings(args)
        if args.n_agents < 2:
            raise ConfigError(f"LOLA is for two or more agents, environment '{args.env}' has one")

    def train(
        self, batch: Transitions, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on a batch of transitions; see `Learner.train`."""
        args, obs, agent = self.args, batch["obs"], self.mac.agent
        targets = self.targets_of(batch)
        q_taken = agent.unroll(obs).gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)
        td_error = q_taken - targets
        losses = td_error.pow(2).mean(0)

        def q_of(weights: Weights) -> Tensor:
            return functional_call(agent, weights, (obs.flatten(0, 1), None))[0].view(
                *obs.shape[:2], -1
            )

        weights = {name: param.detach() for name, param in agent.named_parameters()}
        shaping = shaping_gradients(
            q_of,
            weights,
            batch["avail_actions"],
            batch["actions"],
            targets,
            args.lola_temperature,
            args.lola_eta,
        )
        products = (
            (param * shaping.gradients[name]).flatten(1).sum(1)
            for name, param in agent.named_parameters()
        )
        shaped = sum(products)
        # Of no value to the loss: only its gradient counts.
        losses_shaped = losses - args.lola_weight * (shaped - shaped.detach())
        parts = parts_of(batch, targets=targets, q=q_taken, shaping=shaping.gain)
        grad_norm = self.optimise(self.optimiser, self.params, losses_shaped, t_env, parts)
        self.soft_update_targets(args.target_tau)
        self.log_means(
            t_env,
            loss_td=losses,
            lola_gain=shaping.gain,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q_taken,
            target_mean=targets,
        )

    @torch.no_grad()
    def targets_of(self, batch: Transitions) -> Tensor:
        """y_i = r_i + gamma max_a Q_i(o'_i, a) under the target networks, [N, A]; with double
        Q-learning.
        """
        args = self.args
        rewards = batch.standardised_rewards() if args.standardise_rewards else batch["reward"]
        following = self.target_mac.agent.unroll(batch["next_obs"])
        chooser = self.mac.agent.unroll(batch["next_obs"]) if args.double_q else following
        best = masked_argmax(chooser, batch["next_avail_actions"])
        value = following.gather(-1, best.unsqueeze(-1)).squeeze(-1)
        return rewards + args.gamma * (1 - batch["terminated"]) * value
