"""F2A2: fully decentralised actor-critics whose agents agree on their critics by a primal-dual
scheme.

"F2A2" in the docstrings is the paper "F2A2: Flexible Fully-decentralized Approximate Actor-critic
for Cooperative Multi-agent Reinforcement Learning" (Li et al., JMLR 2023). Every agent is a learner
of its own, with an actor that nobody else sees, a copy of the critics, dual variables, and models
of what the others do. All agents are computed side by side; what passes between them goes through a
`Channel`. An update is algorithm 1: a step of the critics, one of the actors with the new critics,
a consensus step, and at intervals one of the models of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch, ReplayBuffer
from components.transitions import Transitions
from controllers.f2a2_controller import F2A2MAC
from learners.base import Learner, make_optimiser
from learners.f2a2.consensus import Channel, PrimalDual, equalise_, make_links
from learners.f2a2.instantiations import Actions, Values, make_instantiation, values_of
from learners.f2a2.losses import joint_weights
from learners.f2a2.view import (
    Rows,
    Told,
    as_one,
    heard,
    rows_of_episodes,
    rows_of_one,
    rows_of_transitions,
    told_of,
)
from learners.returns import lambda_targets, last_actions, taken_or_policy
from modules.agents.policy_agent import PolicyAgent
from modules.f2a2 import Histories, OtherAgentModels, histories_of, trajectories_of
from modules.f2a2.critics import COPIES, CriticCopies, first_critics_of
from utils.errors import ConfigError
from utils.rl_utils import RunningMeanStd

RESAMPLED_TARGETS = ("critic", "transition", "none")


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

    def __init__(
        self, mac: F2A2MAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        _check(mac, args)
        n_agents = args.n_agents
        if args.share_params:
            # To all that follows they are one agent; the channel alone knows how many would have to
            # send.
            args = SimpleNamespace(**{**vars(args), "n_agents": 1})
        super().__init__(mac, scheme, logger, args)
        self.algorithm = make_instantiation(
            args, joint_weights(args.alpha_1, args.alpha_2, args.joint_scale if args.joint else 0.0)
        )
        if self.algorithm.on_policy != (args.replay == "latest"):
            wanted = "latest" if self.algorithm.on_policy else "transitions or episodes"
            raise ConfigError(
                f"F2A2 with {args.f2a2_algorithm} needs replay={wanted}, got '{args.replay}'"
            )
        if args.share_params and not self.algorithm.consensus_of_actors:
            raise ConfigError(
                f"the agents of F2A2 with {args.f2a2_algorithm} share no policies: set "
                "share_params=False"
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
                params, args.consensus_beta, args.consensus_beta_steps, args.consensus_dual_scale
            )
            for name, params in shared.items()
            if not args.share_params
        }
        for agreement in self.consensus.values():
            agreement.check_bypass(args.lr)
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
        if isinstance(batch, Transitions):
            batch = (
                heard(batch, self.channel, self.models is not None)
                if self.critic.reads_others
                else batch
            )
            told = None
            rows = rows_of_transitions(
                batch, self.args.standardise_rewards, self.models is not None
            )
        else:
            told = self._told(batch)
            rows = rows_of_episodes(batch, batch.steps(), told, self._rewards(batch))
        logits, next_logits, ends = self._logits(batch)
        if self.args.share_params:
            rows = rows_of_one(rows)
            logits, next_logits = as_one(logits), as_one(next_logits)
        policy = self._policy(logits, rows.avail)
        if told is not None and self.algorithm.on_policy:
            done, target = self._on_policy(batch, told, rows, policy, ends)
            would, new_target = done, target
        else:
            done = self._actions(
                rows, policy, self._joint(rows.actions), _one_hot(rows.actions, rows.avail)
            )
            would, target, new_target = self._off_policy(rows, policy, next_logits)
        figures = self._critic_step(rows, done, target, would, new_target, t_env)
        figures |= self._actor_step(rows, done, target, would, new_target, policy, logits, t_env)
        self._consensus_step()
        self._update_targets()
        if self.models is not None and self.updates % self.args.moa_interval == 0:
            figures |= self._model_step(self.models, batch, rows, t_env)
        self.updates += 1
        if self.log_due(t_env):
            self._log(figures, policy, t_env)

    def _told(self, batch: EpisodeBatch) -> Told:
        """What agents know of the steps of episodes: of each other what has passed the channel
        [F2A2, table 2].
        """
        channel = self.channel if self.critic.reads_others else None
        return told_of(
            batch,
            batch.steps(),
            channel,
            self.args.transition_history if self.models is not None else 0,
        )

    def _rewards(self, batch: EpisodeBatch) -> Tensor:
        """Rewards of all transitions, [M, A] or [M, 1]; standardised by what every agent has seen
        of its own so far.
        """
        rewards = batch.steps().pack_transitions(batch["reward"])
        if not self.args.standardise_rewards:
            return rewards
        self.reward_moments.update(rewards)
        mean, std = (
            torch.from_numpy(x).to(rewards)
            for x in (self.reward_moments.mean, self.reward_moments.std)
        )
        return (rewards - mean) / std

    @property
    def _told_actions(self) -> bool:
        """Whether agents tell what they would do, for want of models of one another."""
        return self.models is None and self.critic.reads_others

    def _logits(self, batch: Transitions | EpisodeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of the policies at the rows (with gradient), of those of the targets at the next, and of
        the first at all.

        Returns:
            [M, A, U], [M, A, U], [N, A, U] for the N filled steps of episodes (of transitions: the
            first again).
        """
        if isinstance(batch, Transitions):
            logits = self.mac.agent.logits(batch["obs"])
            with torch.no_grad():
                following = self.target_mac.agent.logits(batch["next_obs"])
            return logits, following, logits
        steps = batch.steps()
        outputs = self.mac.unroll(batch, steps)
        if self.target_mac is self.mac:
            return outputs[steps.cur], outputs[steps.nxt].detach(), outputs
        with torch.no_grad():
            of_target = self.target_mac.unroll(batch, steps)
        return outputs[steps.cur], of_target[steps.nxt], outputs

    def _policy(self, logits: Tensor, avail: Tensor) -> MaskedCategorical:
        """What is learned, [M, A, U]; on-policy that is what acts, its share of random actions
        included.
        """
        policy = MaskedCategorical(logits, avail)
        if not self.algorithm.on_policy:
            return policy
        return self.mac.action_selector.acting_policy(policy, avail)

    # -- actions -----------------------------------------------------------------------------------
    def _joint(self, actions: Tensor) -> Tensor:
        """Joint actions known to all, int64 [M, A] -> [A, M, A, U]."""
        return (
            F.one_hot(actions, self.args.n_actions).float().expand(self.args.n_agents, -1, -1, -1)
        )

    def _imagined(self, own: Tensor, known: Tensor, history: Histories | None) -> Tensor:
        """Joint actions of the own choice and what the others would do, [A, M, A, U], without
        gradient.

        Args:
            own: [A, M, U], one-hot.
            known: int64 [M, A], what stands in for the others' actions where there are no models
                (`moa: False`).
        """
        if self.models is None:
            return self._joint(known)
        joint = self.models.imagine(history, own.argmax(-1).t())
        return F.one_hot(joint, self.args.n_actions).float()

    def _actions(
        self, rows: Rows, policy: MaskedCategorical, joint: Tensor, own: Tensor
    ) -> Actions:
        """Probabilities of own actions [A, M, U], once under the present policies and once under
        the behaviour.
        """
        index = own.argmax(-1).t().unsqueeze(-1)
        log_prob, behaviour = (
            x.gather(-1, index).squeeze(-1).t() for x in (policy.log_probs, rows.behaviour)
        )
        return Actions(own, joint, log_prob, behaviour)

    # -- targets -----------------------------------------------------------------------------------
    def _off_policy(
        self, rows: Rows, policy: MaskedCategorical, next_logits: Tensor
    ) -> tuple[Actions, Tensor, Tensor | None]:
        """Resampled actions; the TD(0) targets of the replayed ones [A, 1, M], of the resampled
        ones [A, C or 1, M].

        What a resampled action leads to has not been seen. Its target is what each critic's target
        network says of it, or, with `resampled_target: transition`, the target of the replayed
        transition; with `none` (None) there is no error.
        """
        own = self.algorithm.draw(policy)
        with torch.no_grad():
            would = self._actions(
                rows, policy, self._imagined(own, rows.actions, rows.history), own
            )
            next_policy = self.algorithm.next_policy(next_logits, rows.next_avail)
            next_own = self.algorithm.draw(next_policy)
            # Without models every agent tells the others what it would do next.
            told = next_own.argmax(-1).t()
            if self._told_actions:
                told = self.channel.share("actions", told, 1)
            joint = self._imagined(next_own, told, rows.next_history)
            value = self.algorithm.next_value(
                self.target_critic(rows.next_obs, joint), next_own, next_policy
            )
            target = (rows.costs + self.args.gamma * rows.goes_on * value).unsqueeze(1)
            new_target = target if self.args.resampled_target == "transition" else None
            if self.args.resampled_target == "critic":
                new_target = (self.target_critic(rows.obs, would.joint) * own.unsqueeze(1)).sum(-1)
        log_prob = policy.log_probs.gather(-1, own.argmax(-1).t().unsqueeze(-1)).squeeze(-1).t()
        return would._replace(log_prob=log_prob), target, new_target

    def _on_policy(
        self, batch: EpisodeBatch, told: Told, rows: Rows, policy: MaskedCategorical, logits: Tensor
    ) -> tuple[Actions, Tensor]:
        """The actions taken and their TD(lambda) targets [A, 1, M].

        With models, the others' actions are what the own models say of them. Where an episode was
        cut, the value of its last observation is the mean over own actions; without models the
        others tell what they would do there.
        """
        args, steps = self.args, batch.steps()
        with torch.no_grad():
            taken = told.actions
            probs = self._policy(logits, told.avail).probs
            if self._told_actions:
                rows_last, intended = last_actions(probs, steps)
                taken = taken.index_copy(0, rows_last, self.channel.share("actions", intended, 1))
            own = _one_hot(taken, told.avail)
            joint = self._imagined(own, taken, told.history)
            all_q = self.target_critic(told.obs, joint)
            weights = taken_or_policy(probs, own.transpose(0, 1), steps).transpose(0, 1)
            values = self.algorithm.combined((all_q * weights.unsqueeze(1)).sum(-1)).t()
            target = lambda_targets(
                batch, steps, rows.costs.t(), values, args.gamma, args.td_lambda
            )
        return self._actions(
            rows, policy, joint[:, steps.cur], own[:, steps.cur]
        ), target.t().unsqueeze(1)

    # -- steps -------------------------------------------------------------------------------------
    def _values(
        self, rows: Rows, parts: Sequence[tuple[Actions, Tensor | None, bool]]
    ) -> list[Values]:
        """The critics at several joint actions of the same observations, with their targets.

        Args:
            parts: actions, target, and whether the twins of the first critics have a say in what
                becomes of it.
        """
        both = any(twins for *_, twins in parts)
        critics = {False: self.critic.first_critics(), True: self.critic}
        seen = {both: critics[both].observe(rows.obs)}
        if both:
            seen[False] = first_critics_of(seen[True])
        return [
            values_of(critics[twins].values(seen[twins], actions.joint), actions.own, target)
            for actions, target, twins in parts
        ]

    def _critic_step(
        self,
        rows: Rows,
        done: Actions,
        target: Tensor,
        would: Actions,
        new_target: Tensor | None,
        t_env: int,
    ) -> dict[str, Tensor]:
        held = would._replace(own=would.own.detach())
        parts = [(done, target, True)]
        if not self.algorithm.on_policy:
            parts.append((held, new_target, new_target is not None))
        values = self._values(rows, parts)
        replayed, resampled = values[0], values[-1]
        loss = self.algorithm.critic_loss(replayed, done, resampled, held)
        inputs = {"costs": rows.costs, "observations": rows.obs, "targets": target, "q": replayed.q}
        norm = self.descend(
            self.critic_optimiser,
            self.critic_params,
            loss,
            self.args.critic_grad_norm_clip,
            t_env,
            inputs,
            "critic",
        )
        return {
            "loss_value": loss.detach(),
            "critic_grad_norm": norm,
            "td_error_abs": replayed.error.detach().abs().mean((1, 2)),
            "cost_to_go_mean": replayed.q.detach().mean((1, 2)),
            "target_mean": target.mean((1, 2)),
        }

    def _actor_step(
        self,
        rows: Rows,
        done: Actions,
        target: Tensor,
        would: Actions,
        new_target: Tensor | None,
        policy: MaskedCategorical,
        logits: Tensor,
        t_env: int,
    ) -> dict[str, Tensor]:
        due = self.algorithm.actors_due()
        if due is not None and not due.any():
            return {}
        # The critics have no part in this step; where the gradient goes through them, it goes on to
        # the actions only.
        with torch.set_grad_enabled(would.own.requires_grad):
            for param in self.critic_params:
                param.requires_grad_(False)
            parts = [(done, target, False)] if self.algorithm.actors_read_replayed else []
            if not self.algorithm.on_policy:
                parts.append((would, new_target, new_target is not None))
            values = self._values(rows, parts)
            for param in self.critic_params:
                param.requires_grad_(True)
        loss = self.algorithm.actor_loss(values[0], done, values[-1], would, policy)
        if self.args.policy_logit_penalty:
            loss = loss + self.args.policy_logit_penalty * self.mac.agent.mean_square(logits)
        inputs = {"values": values[0].all_q, "log_prob": done.log_prob, "targets": target}
        norm = self.descend(
            self.optimiser,
            self.params,
            loss,
            self.args.policy_grad_norm_clip,
            t_env,
            inputs,
            "actor",
            due,
        )
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

    def _model_step(
        self, models: OtherAgentModels, batch: Transitions | EpisodeBatch, rows: Rows, t_env: int
    ) -> dict[str, Tensor]:
        """One step of the models of the others, on the newest transitions or on all of a batch of
        episodes.
        """
        if isinstance(batch, Transitions):
            recent = heard(batch.recent, self.channel, models=True, following=False)
            histories, actions = histories_of(recent), recent["actions"]
        else:
            histories, actions = rows.history, rows.actions
        out = models.loss(histories, actions)
        parts = {"observations": histories.obs}
        self.optimise(self.model_optimiser, list(models.parameters()), out.loss, t_env, parts)
        return {
            "moa_loss": out.loss.detach(),
            "moa_accuracy": out.accuracy,
            "moa_best_constant": out.best_constant,
        }

    # -- optimisation ------------------------------------------------------------------------------
    def descend(
        self,
        optimiser: torch.optim.Optimizer,
        params: list[nn.Parameter],
        loss: Tensor,
        max_norm: float,
        t_env: int,
        parts: Mapping[str, Tensor | None],
        name: str,
        due: Tensor | None = None,
    ) -> Tensor:
        """One step of every agent's own optimiser, with the pull towards what the agents agree on.

        Every agent's gradient is clipped on its own; the dual variables' part is added afterwards,
        it is no noise.

        Args:
            loss: [A].
            name: of the parameters, in `consensus` if they are agreed on.
            due: bool [A], who takes the step; the others' weights and moments stay as they are.
                None: all.

        Returns:
            [A], the norms before clipping.

        Raises:
            Diverged: as `Learner.optimise`.
        """

        def fill_in() -> None:
            for param in params:
                if param.grad is None:  # a part that is not in use
                    param.grad = torch.zeros_like(param)

        def take_step() -> None:
            if name in self.consensus:
                self.consensus[name].add_gradients_(
                    self.args.lr
                )  # beside Adam, which would drown it
            if due is None or due.all():
                optimiser.step()
            else:
                _step_some(optimiser, params, due)

        return self.optimise(optimiser, params, loss, t_env, parts, max_norm, fill_in, take_step)

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
        sent = [self.channel.sent(name) for name in self.copy_sizes]
        figures["sent_parameters"] = sum(traffic.numbers for traffic in sent).float()
        figures["sent_bytes"] = sum(traffic.bytes for traffic in sent).float()
        figures["sent_bytes_total"] = self.channel.total().bytes.float()
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


def _moments(optimiser: torch.optim.Optimizer, param: nn.Parameter) -> list[Tensor]:
    return [value for value in optimiser.state[param].values() if value.shape == param.shape]


def _check(mac: Any, args: SimpleNamespace) -> None:
    if not isinstance(mac, F2A2MAC):
        raise ConfigError(f"learner '{args.learner}' needs mac=f2a2_mac, got '{args.mac}'")
    if args.share_params and (args.topology != "full" or args.consensus_interval != 1.0):
        raise ConfigError(
            "agents with one set of parameters always agree: set share_params=False, or "
            "topology=full and "
            "consensus_interval=1.0"
        )
    if args.share_params and args.critic != "own":
        raise ConfigError(
            "critics of agents with one set of parameters read own observations: set critic=own"
        )
    if args.mixer is not None:
        raise ConfigError(
            "F2A2 has critics instead of mixed action values: set mixer=null instead of "
            f"'{args.mixer}'"
        )
    if args.resampled_target not in RESAMPLED_TARGETS:
        raise ConfigError(
            f"resampled_target must be one of {', '.join(RESAMPLED_TARGETS)}, got "
            f"'{args.resampled_target}'"
        )
    if args.alpha_1 <= 0 or args.alpha_2 <= 0:
        raise ConfigError(
            f"alpha_1={args.alpha_1} and alpha_2={args.alpha_2} must be greater than 0"
        )
    for key in ("joint_scale", "policy_logit_penalty"):
        if vars(args)[key] < 0:
            raise ConfigError(f"{key} is {vars(args)[key]}; it must not be negative")
    if args.policy_logit_penalty and not isinstance(mac.agent, PolicyAgent):
        raise ConfigError(
            f"policy_logit_penalty is for agent=mlp_policy: set it to 0 for agent={args.agent}"
        )
    if args.moa and args.critic == "own":
        raise ConfigError("critic=own does not read what others do: set moa=False")
    if args.moa and args.transition_history < 1:
        raise ConfigError(
            "models of others read the last transition_history steps: set it to at least 1, or "
            "moa=False"
        )
    if args.moa and args.replay == "transitions" and args.recent_transitions < 1:
        raise ConfigError(
            "models of others learn from the newest transitions: set recent_transitions to at "
            "least 1"
        )
    if args.moa_interval < 1 or args.hard_target_interval < 0:
        raise ConfigError("moa_interval must be at least 1, and hard_target_interval at least 0")
    for key in ("critic_grad_norm_clip", "policy_grad_norm_clip"):
        if vars(args)[key] <= 0.0:
            raise ConfigError(f"{key} is {vars(args)[key]}; it must be greater than 0")
