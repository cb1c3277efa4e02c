"""PAC: values assisted by predictions of the best deviations, and policies that follow them (Zhou
et al. 2022).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from controllers.comm_controller import CommMAC
from learners.auxiliary.ndq import NDQLoss
from learners.base import make_optimiser, parts_of
from learners.joint_values import UnrestrictedValue
from learners.max_q_learner import MaxQLearner
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.agents.bounded_rnn_agent import BoundedRNNAgent
from modules.comm.ndq import NDQAgent
from utils.ranges import ANY_NUMBER, FINITE_POSITIVE

# Below the smallest probability of an available action, and above 0.
_LEAST_PROBABILITY = 1e-30


class Temperature(nn.Module):
    """alpha, the weight of the policies' entropy: the exponential of what is trained.

    Args:
        initial: alpha before training.
        largest: that alpha can have.
    """

    def __init__(self, initial: float, largest: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))
        self.largest = largest

    def forward(self) -> Tensor:
        """alpha, a scalar without gradient."""
        return self.log_alpha.detach().exp().clamp(max=self.largest)

    def loss(self, log_probs: Tensor, target_entropy: float) -> Tensor:
        """-log(alpha) (E log pi + target), a scalar: alpha falls where the entropy is above its
        target.

        Args:
            log_probs: [...], expectations of log pi under pi.
        """
        return -self.log_alpha * (log_probs.detach().mean() + target_entropy)


class PACLearner(MaxQLearner):
    """Weighted QMIX as a critic of policies: only the policies act, each on its own observations.

    The critic's agents send one another codes (`NDQAgent`), in training alone. The codes shall tell
    their receivers a*, the best of the joint action that is greedy under the policies and of all
    joint actions in which one agent deviates from it, by the target network of Q*. Q_tot mixes the
    critic's utilities; it follows the returns of Q*, which bootstrap at the greedy joint action.

    The policies minimise the mixer's value of the agents' soft costs, E_pi_i [alpha log pi_i -
    Q_i].

    Args:
        mac: a controller of policies.
        scheme, logger: as for every learner.
        args: `pac_alpha` (temperature before training), `pac_alpha_max`, `pac_alpha_lr`,
            `pac_target_entropy` (as a multiple of the number of actions), the keys of `NDQAgent`
            and `NDQLoss`, and what `MaxQLearner` reads.

    Attributes:
        critic: the controller of the critic's agents, which never acts.
        codes: the losses of what they say.
        temperature: alpha.
    """

    shares_updates = False  # codes are random: several threads would draw in any order
    needs = MaxQLearner.needs | Needs(
        agent=BoundedRNNAgent,
        settings={
            "agent_output_type": "pi_logits",
            "mask_before_softmax": True,
            "share_params": True,
            "mixer": ("qmix", "nmix", "vdn"),
            "td_lambda_pymarl": False,
        },
        why={
            "agent_output_type": "its agents act on policies",
            "mask_before_softmax": "its policies have no unavailable actions",
            "share_params": "the codes come from one network",
            "mixer": "it mixes soft values, whatever the actions",
            "td_lambda_pymarl": "its codes are those of steps that exist",
        },
    )
    ranges: ClassVar = {
        **MaxQLearner.ranges,
        **NDQAgent.ranges,
        **NDQLoss.ranges,
        **BoundedRNNAgent.ranges,
        "pac_alpha": FINITE_POSITIVE,
        "pac_alpha_max": FINITE_POSITIVE,
        "pac_alpha_lr": FINITE_POSITIVE,
        "pac_target_entropy": ANY_NUMBER,
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.actor_params = list(mac.parameters())
        self.actor_optimiser = make_optimiser(self.actor_params, args)
        self.temperature = Temperature(args.pac_alpha, args.pac_alpha_max)
        self.modules["temperature"] = self.temperature
        self.temperature_optimiser = torch.optim.Adam(
            self.temperature.parameters(), lr=args.pac_alpha_lr
        )

    def build_targets(self) -> None:
        """The critic's agents, and Q* with its target network; the policies have an optimiser of
        their own.
        """
        args = copy.copy(self.args)
        args.mac, args.agent, args.agent_output_type = "comm_mac", "ndq_rnn", "q"
        self.critic = CommMAC(self.scheme, {"agents": args.n_agents}, args)
        self.codes = NDQLoss(self.critic, args)
        self.modules |= {"critic": self.critic.agent, **self.codes.modules}
        self.q_star = UnrestrictedValue(self.mac, self.scheme, args, state_once=True)
        self.modules |= self.q_star.modules
        self.targets += self.q_star.targets
        self.params = [param for each in self.modules.values() for param in each.parameters()]

    # -- one update --------------------------------------------------------------------------------
    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update of policies, critic and temperature; see `Learner.train`.

        Returns:
            `td_errors_abs` [B] if `per_weight` is given, see `episode_errors`.
        """
        args = self.args
        rows = ReplayedSteps.of(batch, self.mac, per_weight)
        probs = rows.unroll(self.mac)
        talk = rows.talk(self.critic)
        greedy = masked_argmax(probs, rows.avail)
        with torch.no_grad():
            outputs = self.q_star.target_outputs(rows)
            best = self.best_deviations(rows, outputs, greedy)
        losses = self.losses_of_values(rows, talk.q, greedy, outputs)
        losses = losses.plus(self.codes.losses_about(rows, talk, best))
        policy_loss, log_probs = self.policy_loss(rows, probs, talk.q)
        alpha = self.temperature()

        # The gradient that it leaves at the mixer is cleared with those of the critic.
        parts = parts_of(batch, **{"critic's values": talk.q})
        policy_norm = self.optimise(
            self.actor_optimiser, self.actor_params, policy_loss, t_env, parts, max_norm=math.inf
        )
        errors = self.step(
            batch,
            losses,
            t_env,
            episode_num,
            policy_loss=policy_loss,
            policy_grad_norm=policy_norm,
            policy_entropy=-log_probs,
            alpha=alpha,
        )
        self.temperature_optimiser.zero_grad()
        self.temperature.loss(log_probs, args.pac_target_entropy * args.n_actions).backward()
        self.temperature_optimiser.step()
        return errors

    def best_deviations(self, rows: ReplayedSteps, outputs: Tensor, greedy: Tensor) -> Tensor:
        """a*: the best, by the target network of Q*, of the greedy joint action and of those in
        which one agent does something else that is available. The first one of equals.

        Args:
            outputs: see `FollowedValue.target_outputs`.
            greedy: int64 [N, A].

        Returns:
            int64 [N, A].
        """

        def value(joint: Tensor) -> Tensor:
            return self.q_star.target_values(outputs, joint, rows.state, rows.avail).squeeze(-1)

        best, highest = greedy, value(greedy.unsqueeze(0))[0]
        n_actions = self.args.n_actions
        # One agent after the other, to bound the memory.
        for i in range(greedy.shape[1]):
            joint = greedy.expand(n_actions, -1, -1).clone()
            joint[:, :, i] = torch.arange(n_actions, device=greedy.device).unsqueeze(-1)
            values = value(joint).masked_fill(rows.avail[:, i].T == 0, -torch.inf)
            top, action = values.max(0)
            better = top > highest
            best = torch.where(better.unsqueeze(-1), _with(greedy, i, action), best)
            highest = torch.where(better, top, highest)
        return best

    def policy_loss(self, rows: ReplayedSteps, probs: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """What the policies minimise, a scalar; and E_pi_i log pi_i, [M, A].

        Args:
            probs: [N, A, U], pi.
            q: [N, A, U], the critic's utilities, which get no gradient.
        """
        cur = rows.steps.cur
        pi, q = probs[cur], q[cur].detach()
        log_pi = pi.clamp(min=_LEAST_PROBABILITY).log()
        costs = (pi * (self.temperature() * log_pi - q)).sum(-1)
        mixed = self.mixer(costs.unsqueeze(-2), rows.state[cur].unsqueeze(-2))
        return rows.mean(mixed.view(-1, 1)), (pi * log_pi).sum(-1).detach()

    # -- files, and people who watch ---------------------------------------------------------------
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """See `Learner.optimisers`."""
        return {
            "opt": self.optimiser,
            "actor_opt": self.actor_optimiser,
            "temperature_opt": self.temperature_optimiser,
        }

    @property
    def explained_by(self) -> tuple[str, ...]:
        return ("mixer", "critic")

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Q_tot of the joint action that is greedy under the policies, by one draw of the codes."""
        rows = ReplayedSteps.of(batch, self.mac)
        greedy = masked_argmax(rows.unroll(self.mac), rows.avail)
        values = self.mix(self.mixer, rows.talk(self.critic).q, greedy, rows)
        return {"value": Inner(values.squeeze(-1))}


def _with(joint: Tensor, agent: int, actions: Tensor) -> Tensor:
    """Joint actions [N, A] in which one agent does `actions` [N]."""
    other = joint.clone()
    other[:, agent] = actions
    return other
