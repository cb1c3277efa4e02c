"""F2A2: fully decentralised actor-critics whose agents agree on their critics by a primal-dual
scheme.

"F2A2" in the docstrings is the paper "F2A2: Flexible Fully-decentralized Approximate Actor-critic
for Cooperative Multi-agent Reinforcement Learning" (Li et al., JMLR 2023). Every agent is a learner
of its own, with an actor that nobody else sees, a copy of the critics, dual variables, and models
of what the others do. All agents are computed side by side; what passes between them goes through a
`Channel`. `F2A2Learner.train` is the update of algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch, ReplayBuffer
from components.transitions import Transitions
from controllers.f2a2_controller import F2A2MAC
from learners.base import Learner, make_optimiser
from learners.f2a2.consensus import (
    LINK_RANGES,
    PRIMAL_DUAL_RANGES,
    Channel,
    PrimalDual,
    check_bypass,
    check_links,
    equalise_,
    make_links,
)
from learners.f2a2.instantiations import RANGES as INSTANTIATION_RANGES
from learners.f2a2.instantiations import REGISTRY as INSTANTIATIONS
from learners.f2a2.instantiations import Actions, Instantiation, Values, values_of
from learners.f2a2.losses import joint_weights
from learners.f2a2.view import AgentsView, Reading, view_of
from learners.needs import Needs
from learners.returns import lambda_targets, last_actions, taken_or_policy
from modules.agents.policy_agent import PolicyAgent
from modules.f2a2 import Histories, OtherAgentModels, trajectories_of
from modules.f2a2.critics import COPIES, CriticCopies, first_critics_of, joint_actions
from modules.f2a2.other_agents import RANGES as MODEL_RANGES
from utils.errors import ConfigError
from utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, one_of
from utils.rl_utils import RunningMeanStd

_ALWAYS_AGREE = "agents with one set of parameters always agree"
SHARED_PARAMETERS = Needs(
    settings={"critic": "own", "topology": "full", "consensus_interval": 1.0},
    why={
        "critic": "critics of agents with one set of parameters read own observations",
        "topology": _ALWAYS_AGREE,
        "consensus_interval": _ALWAYS_AGREE,
    },
)
LOGIT_PENALTY = Needs(
    agent=PolicyAgent, why={"agent": "with another agent set policy_logit_penalty=0"}
)
SINGLE_TRANSITIONS = Needs(
    agent=PolicyAgent,
    why={"agent": "agents with a memory learn from episodes: set replay=episodes"},
)


class F2A2Learner(Learner):
    """The framework; `learners.f2a2.instantiations` has what makes it COMA, DDPG, TD3, SAC or ISAC.

    Args:
        mac: an `F2A2MAC`.
        scheme, logger: as for every learner.
        args: `f2a2_algorithm` and its keys; `alpha_1`, `alpha_2`, `joint`, `joint_scale`,
            `importance_bound`, `resampled_target`; `critic` (name in `modules.f2a2.critics.COPIES`)
            and what it reads; `moa`, `moa_*`; keys of `learners.f2a2.consensus`;
            `standardise_rewards`, `policy_logit_penalty`, `target_tau`, `hard_target_interval`,
            `critic_grad_norm_clip`, `policy_grad_norm_clip`; `share_params`: agents that agree on
            policies and critics have them in common from the start, and learn as one with the rows
            of all.

    Raises:
        ConfigError: a setting out of range, or a controller, agent or replay of another kind.
    """

    needs = Needs(
        mac=F2A2MAC,
        settings={"mixer": None},
        why={"mixer": "it has critics instead of mixed action values"},
    )
    ranges: ClassVar = {
        "alpha_1": POSITIVE,
        "alpha_2": POSITIVE,
        "joint_scale": NOT_NEGATIVE,
        "resampled_target": one_of("critic", "transition", "none"),
        **INSTANTIATION_RANGES,
        **PRIMAL_DUAL_RANGES,
        "consensus_scope": one_of("paper", "encoders", "hidden"),
        **LINK_RANGES,
        "moa_interval": COUNT,
        **MODEL_RANGES,
        "critic_hidden_dim": COUNT,
        "attention_heads": COUNT,
        "critic_grad_norm_clip": POSITIVE,
        "policy_hidden_dim": COUNT,
        "policy_logit_penalty": NOT_NEGATIVE,
        "policy_grad_norm_clip": POSITIVE,
        "hard_target_interval": NOT_NEGATIVE,
    }

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        super().check_settings(args)
        check_links(args)
        if args.share_params:
            SHARED_PARAMETERS.check_settings(args)
        else:
            check_bypass(args.consensus_beta, args.lr)
        INSTANTIATIONS[args.f2a2_algorithm].needs.check_settings(args)
        if args.moa:
            _check_models(args)

    def __init__(
        self, mac: F2A2MAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        n_agents = args.n_agents
        if args.share_params:
            # To all that follows they are one agent; the channel alone knows how many would have to
            # send.
            args = SimpleNamespace(**{**vars(args), "n_agents": 1})
        super().__init__(mac, scheme, logger, args)
        if args.policy_logit_penalty:
            LOGIT_PENALTY.check_built(mac, args)
        if args.replay == "transitions":
            SINGLE_TRANSITIONS.check_built(mac, args)
        self.algorithm: Instantiation = INSTANTIATIONS[args.f2a2_algorithm](
            args, joint_weights(args.alpha_1, args.alpha_2, args.joint_scale if args.joint else 0.0)
        )
        self.critic: CriticCopies = COPIES[args.critic](scheme, args, self.algorithm.n_critics)
        self.modules["critic"] = self.critic
        shared = {"critic": list(self.critic.shared_parameters(args.consensus_scope).values())}
        if self.algorithm.consensus_of_actors:
            shared["actor"] = list(mac.parameters())
        # What all are to agree on starts equal: the seed of its first values is agreed on
        # beforehand.
        for params in shared.values():
            equalise_(params)
        self.target_critic = self.with_target(self.critic)
        self.target_mac = self.with_target(mac) if self.algorithm.target_policies else mac
        # What an agent's own copy of what is agreed on has of numbers.
        self.copy_sizes = {
            name: sum(param[0].numel() for param in params) for name, params in shared.items()
        }
        self.consensus = {
            name: PrimalDual(
                params,
                args.consensus_beta,
                args.consensus_beta_steps,
                args.consensus_dual_scale,
                args.consensus_start,
            )
            for name, params in shared.items()
            if not args.share_params
        }
        self.links = make_links(args)
        self.channel = Channel(n_agents, ["observations", "actions", "avail_actions", *shared])
        self.models: OtherAgentModels | None = None
        self.params, self.critic_params = list(mac.parameters()), list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)
        if args.moa:
            self.models = OtherAgentModels(args.env_info["obs_sizes"], args.n_actions, args)
            self.modules["models"] = self.models
            self.model_optimiser = make_optimiser(self.models.parameters(), args)
        # For episodes; of single transitions the replay buffer knows the moments.
        self.reward_moments = RunningMeanStd(shape=scheme["reward"]["vshape"])
        self.updates = 0

    def prepare(self, buffer: ReplayBuffer) -> None:
        """Takes the first episodes as the trajectories that the others' characters are made
        from.
        """
        if self.models is not None:
            episodes = buffer.sample_latest(
                min(self.args.moa_trajectories, buffer.episodes_in_buffer)
            )
            obs, actions, filled = trajectories_of(episodes)
            obs, actions = (
                self.channel.share("observations", obs, 2),
                self.channel.share("actions", actions, 2),
            )
            self.models.set_trajectories(obs, actions, filled)

    # -- an update ---------------------------------------------------------------------------------
    def train(
        self,
        batch: Transitions | EpisodeBatch,
        t_env: int,
        episode_num: int,
        per_weight: Tensor | None = None,
    ) -> None:
        """One update of all agents; see `Learner.train`. `per_weight` has no meaning here."""
        for mac in (self.mac, self.target_mac):
            mac.agent.train()  # batch norm with the statistics of the batch
        view = view_of(batch, self._reading())
        policy = self._policy(view.logits, view.avail)
        # Line 10 of algorithm 1: actions and what they lead to.
        replayed, resampled = self._actions_with_targets(view, policy)
        # Lines 11 and 12: the critics' step, then the actors' with the new critics.
        figures = self._critic_step(view, replayed, resampled, t_env)
        figures |= self._actor_step(view, replayed, resampled, policy, t_env)
        # Lines 13 and 14: averages and dual variables.
        self._consensus_step()
        self._update_targets()
        if view.modelled is not None:  # lines 15 to 18
            figures |= self._model_step(*view.modelled, t_env)
        self.updates += 1
        if self.log_due(t_env):
            self._log(figures, policy, t_env)

    def _reading(self) -> Reading:
        """How this update reads its batch."""
        models, args = self.models, self.args
        return Reading(
            self.mac,
            self.target_mac,
            channel=self.channel if self.critic.reads_others else None,
            history=0 if models is None else args.transition_history,
            models_learn=models is not None and self.updates % args.moa_interval == 0,
            moments=self.reward_moments if args.standardise_rewards else None,
            one_agent=args.share_params,
        )

    def _policy(self, logits: Tensor, avail: Tensor) -> MaskedCategorical:
        """What is learned, [M, A, U]; on-policy that is what acts, its share of random actions
        included.
        """
        policy = MaskedCategorical(logits, avail)
        if not self.algorithm.on_policy:
            return policy
        return self.mac.action_selector.acting_policy(policy, avail)

    # -- actions and targets -----------------------------------------------------------------------
    def _actions_with_targets(
        self, view: AgentsView, policy: MaskedCategorical
    ) -> tuple[Actions, Actions]:
        """The replayed and the resampled actions; on-policy both are the actions taken."""
        if self.algorithm.on_policy:
            taken = self._taken(view, policy)
            return taken, taken
        replayed = self._actions(
            view,
            policy,
            _one_hot(view.actions, view.avail),
            joint_actions(view.actions, self.args.n_actions),
        )
        own = self.algorithm.draw(policy)
        joint = self._imagined(own, view.actions, view.history)
        resampled = self._actions(view, policy, own, joint)
        target = self._one_step_target(view)
        return (
            replayed._replace(target=target),
            resampled._replace(target=self._resampled_target(view, resampled, target)),
        )

    def _actions(
        self, view: AgentsView, policy: MaskedCategorical, own: Tensor, joint: Tensor
    ) -> Actions:
        """Own actions [A, M, U] and joint ones, with how probable the own ones are under the
        present policies and under the behaviour.
        """
        index = own.argmax(-1).t().unsqueeze(-1)
        log_prob, behaviour = (
            x.gather(-1, index).squeeze(-1).t() for x in (policy.log_probs, view.behaviour)
        )
        return Actions(own, joint, log_prob, behaviour)

    def _imagined(self, own: Tensor, known: Tensor, history: Histories | None) -> Tensor:
        """Joint actions of the own choice and what the others would do, [A, M, A, U], without
        gradient.

        Args:
            own: [A, M, U], one-hot.
            known: int64 [M, A], what stands in for the others' actions where there are no models
                (`moa: False`).
            history: what the models read; None where there are none.
        """
        if self.models is None or history is None:
            return joint_actions(known, self.args.n_actions)
        joint = self.models.imagine(history, own.argmax(-1).t())
        return F.one_hot(joint, self.args.n_actions).float()

    @property
    def _tell_intentions(self) -> bool:
        """Whether agents tell each other what they would do, for want of models of one another."""
        return self.models is None and self.critic.reads_others

    @torch.no_grad()
    def _one_step_target(self, view: AgentsView) -> Tensor:
        """The TD(0) targets of the replayed actions, [A, 1, M]."""
        next_policy = self.algorithm.next_policy(view.next_logits, view.next_avail)
        next_own = self.algorithm.draw(next_policy)
        intended = next_own.argmax(-1).t()
        if self._tell_intentions:
            intended = self.channel.share("actions", intended, 1)
        next_joint = self._imagined(next_own, intended, view.next_history)
        next_q = self.target_critic(view.next_obs, next_joint)
        next_value = self.algorithm.next_value(next_q, next_own, next_policy)
        return (view.costs + self.args.gamma * view.goes_on * next_value).unsqueeze(1)

    @torch.no_grad()
    def _resampled_target(
        self, view: AgentsView, resampled: Actions, target: Tensor
    ) -> Tensor | None:
        """The targets of the resampled actions, [A, C or 1, M]; None: they have no error.

        What a resampled action leads to has not been seen. Its target is what each critic's target
        network says of it (`resampled_target: critic`), or that of the replayed transition
        (`transition`).
        """
        if self.args.resampled_target == "critic":
            all_q = self.target_critic(view.obs, resampled.joint)
            return (all_q * resampled.own.unsqueeze(1)).sum(-1)
        return target if self.args.resampled_target == "transition" else None

    def _taken(self, view: AgentsView, policy: MaskedCategorical) -> Actions:
        """The actions taken, with their TD(lambda) targets [A, 1, M].

        With models, the others' actions are what the own models say of them. Where an episode was
        cut, the value of its last observation is the mean over own actions; without models the
        others tell what they would do there.
        """
        args, filled = self.args, view.filled
        assert filled is not None
        steps = filled.steps
        with torch.no_grad():
            probs = self._policy(filled.logits, filled.avail).probs
            known = filled.actions
            if self._tell_intentions:
                last, intended = last_actions(probs, steps)
                known = known.index_copy(0, last, self.channel.share("actions", intended, 1))
            own = _one_hot(known, filled.avail)
            joint = self._imagined(own, known, view.filled_history)
            weights = taken_or_policy(probs, own.transpose(0, 1), steps).transpose(0, 1)
            all_q = self.target_critic(filled.obs, joint)
            values = self.algorithm.combined((all_q * weights.unsqueeze(1)).sum(-1)).t()
            target = lambda_targets(
                steps, view.costs.t(), view.goes_on, values, args.gamma, args.td_lambda
            )
        taken = self._actions(view, policy, own[:, steps.cur], joint[:, steps.cur])
        return taken._replace(target=target.t().unsqueeze(1))

    # -- steps -------------------------------------------------------------------------------------
    def _values(self, obs: Tensor, parts: Sequence[tuple[Actions, bool]]) -> list[Values]:
        """The critics at several joint actions of the same observations [M, A, O].

        Args:
            parts: actions, and whether the twins of the first critics have a say in what becomes of
                them.
        """
        both = any(twins for _, twins in parts)
        critics = {False: self.critic.first_critics(), True: self.critic}
        seen = {both: critics[both].observe(obs)}
        if both:
            seen[False] = first_critics_of(seen[True])
        return [
            values_of(actions, critics[twins].values(seen[twins], actions.joint))
            for actions, twins in parts
        ]

    def _critic_step(
        self, view: AgentsView, replayed: Actions, resampled: Actions, t_env: int
    ) -> dict[str, Tensor]:
        parts = [(replayed, True)]
        if not self.algorithm.on_policy:
            resampled = resampled._replace(own=resampled.own.detach())
            parts.append((resampled, resampled.target is not None))
        values = self._values(view.obs, parts)
        q, error, target = values[0].q, values[0].error, replayed.target
        assert target is not None
        loss = self.algorithm.critic_loss(values[0], values[-1])
        inputs = {"costs": view.costs, "observations": view.obs, "targets": target, "q": q}
        norm = self._descend("critic", loss, t_env, inputs)
        return {
            "loss_value": loss.detach(),
            "critic_grad_norm": norm,
            "td_error_abs": error.detach().abs().mean((1, 2)),
            "cost_to_go_mean": q.detach().mean((1, 2)),
            "target_mean": target.mean((1, 2)),
        }

    def _actor_step(
        self,
        view: AgentsView,
        replayed: Actions,
        resampled: Actions,
        policy: MaskedCategorical,
        t_env: int,
    ) -> dict[str, Tensor]:
        due = self.algorithm.actors_due()
        if due is not None and not due.any():
            return {}
        parts = [(replayed, False)] if self.algorithm.actors_read_replayed else []
        if not self.algorithm.on_policy:
            parts.append((resampled, resampled.target is not None))
        # The critics have no part in this step; where the gradient goes through them, it goes on to
        # the actions only.
        with torch.set_grad_enabled(resampled.own.requires_grad):
            self.critic.requires_grad_(False)
            values = self._values(view.obs, parts)
            self.critic.requires_grad_(True)
        loss = self.algorithm.actor_loss(values[0], values[-1], policy)
        if self.args.policy_logit_penalty:
            mean_square = self.mac.agent.mean_square(view.logits)
            loss = loss + self.args.policy_logit_penalty * mean_square
        inputs = {
            "values": values[0].all_q,
            "log_prob": replayed.log_prob,
            "targets": replayed.target,
        }
        norm = self._descend("actor", loss, t_env, inputs, due)
        return {"loss_policy": loss.detach(), "grad_norm": norm}

    def _consensus_step(self) -> None:
        if self.args.share_params:
            for name, numbers in self.copy_sizes.items():
                self.channel.pool(name, numbers, self.params[0].element_size())
            return
        edges = self.links.draw()
        for name, scheme in self.consensus.items():
            scheme.consensus_step(self.channel, edges, name)

    def _update_targets(self) -> None:
        interval = self.args.hard_target_interval
        if not interval:
            self.soft_update_targets(self.args.target_tau)
        elif (self.updates + 1) % interval == 0:
            self.update_targets()

    def _model_step(self, histories: Histories, actions: Tensor, t_env: int) -> dict[str, Tensor]:
        """One step of the models of the others, on actions int64 [N, A] that were taken."""
        assert self.models is not None
        out = self.models.loss(histories, actions)
        params, inputs = list(self.models.parameters()), {"observations": histories.obs}
        self.optimise(self.model_optimiser, params, out.loss, t_env, inputs)
        return {
            "moa_loss": out.loss.detach(),
            "moa_accuracy": out.accuracy,
            "moa_best_constant": out.best_constant,
        }

    # -- optimisation ------------------------------------------------------------------------------
    def _descend(
        self,
        name: str,
        loss: Tensor,
        t_env: int,
        inputs: Mapping[str, Tensor | None],
        due: Tensor | None = None,
    ) -> Tensor:
        """One step of every agent's own optimiser, with the pull towards what the agents agree on.

        Every agent's gradient is clipped on its own; the dual variables' part is added afterwards,
        it is no noise.

        Args:
            name: "critic" or "actor", whose parameters it is.
            loss: [A].
            inputs: `parts` of `Learner.optimise`.
            due: bool [A], who takes the step; the others' weights and moments stay as they are.
                None: all.

        Returns:
            [A], the norms before clipping.

        Raises:
            Diverged: as `Learner.optimise`.
        """
        args = self.args
        optimiser, params, max_norm = {
            "critic": (self.critic_optimiser, self.critic_params, args.critic_grad_norm_clip),
            "actor": (self.optimiser, self.params, args.policy_grad_norm_clip),
        }[name]

        def fill_in() -> None:
            for param in params:
                if param.grad is None:  # a part that is not in use
                    param.grad = torch.zeros_like(param)

        def take_step() -> None:
            if name in self.consensus:
                # Beside Adam, which would drown it.
                self.consensus[name].add_gradients_(args.lr)
            if due is None or due.all():
                optimiser.step()
            else:
                _step_some(optimiser, params, due)

        return self.optimise(optimiser, params, loss, t_env, inputs, max_norm, fill_in, take_step)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        models = {} if self.models is None else {"models_opt": self.model_optimiser}
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser, **models}

    def cuda(self) -> None:
        """Moves all networks, and what belongs to the consensus, to the GPU."""
        super().cuda()
        for scheme in self.consensus.values():
            scheme.cuda()

    # -- figures -----------------------------------------------------------------------------------
    def _log(self, figures: dict[str, Tensor], policy: MaskedCategorical, t_env: int) -> None:
        """Logs means over the agents, and per agent (`NAME_by_agent`) the entropy of its policy and
        its TD error.

        Further: `consensus_error`, of the critics' copies; `sent_parameters` and `sent_bytes`, what
        an agent has sent of its copies (or, where there is one for all, of their gradients) in the
        mean so far; `sent_bytes_total`, observations and actions included.
        """
        figures["policy_entropy"] = policy.entropy().detach().mean(0)
        if self.consensus:
            figures["consensus_error"] = self.consensus["critic"].consensus_error()
        figures |= self.channel.figures(list(self.copy_sizes))
        for name, value in figures.items():
            self.logger.log_stat(name, value.mean().item(), t_env)
        if self.args.share_params:
            return
        for name in ("policy_entropy", "td_error_abs"):
            self.logger.log_list(f"{name}_by_agent", figures[name].tolist(), t_env)


def _one_hot(actions: Tensor, avail: Tensor) -> Tensor:
    """int64 [M, A] -> [A, M, U], as wide as `avail` [M, A, U]."""
    return F.one_hot(actions, avail.shape[-1]).float().transpose(0, 1)


@torch.no_grad()
def _step_some(optimiser: torch.optim.Optimizer, params: list[nn.Parameter], due: Tensor) -> None:
    """A step of some agents only: what an optimiser keeps per weight and the weights themselves are
    [A, ...].

    Adam's count of steps is common to all, so its correction of the first steps' bias fades sooner
    for those who wait.
    """
    kept = [(param, *_moments(optimiser, param)) for param in params]
    before = [[tensor.clone() for tensor in group] for group in kept]
    optimiser.step()
    for (param, *_), old in zip(kept, before, strict=True):
        now = [param, *_moments(optimiser, param)]
        if len(now) > len(old):  # the first step: the moments were zero
            old = [old[0], *(torch.zeros_like(tensor) for tensor in now[1:])]
        for tensor, was in zip(now, old, strict=True):
            tensor.copy_(
                torch.where(due.to(tensor.device).view(-1, *[1] * (tensor.dim() - 1)), tensor, was)
            )


def _moments(optimiser: torch.optim.Optimizer, param: Tensor) -> list[Tensor]:
    return [value for value in optimiser.state[param].values() if value.shape == param.shape]


def _check_models(args: SimpleNamespace) -> None:
    """Whether there is all that models of other agents read.

    Raises:
        ConfigError: there is not.
    """
    if not COPIES[args.critic].reads_others:
        raise ConfigError(f"critic={args.critic} does not read what others do: set moa=False")
    if args.transition_history < 1:
        raise ConfigError(
            "models of others read the last transition_history steps: set it to at least 1, or "
            "moa=False"
        )
    if args.replay == "transitions" and args.recent_transitions < 1:
        raise ConfigError(
            "models of others learn from the newest transitions: set recent_transitions to at "
            "least 1"
        )
    if args.moa_character_batch > args.moa_trajectories:
        raise ConfigError(
            f"moa_character_batch={args.moa_character_batch} trajectories are drawn from "
            f"moa_trajectories={args.moa_trajectories}: set it to at most that"
        )
