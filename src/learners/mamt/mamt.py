"""MAMT: MAAC with mirror descent, each agent within a trust region of its own (Li et al., ICLR
2022).

"MAMT" in the docstrings is the paper "Dealing with Non-Stationarity in MARL via Trust-Region
Decomposition". With fixed trust regions this learner is the paper's MAMD (and MAMD-OP);
`learners.mamt.trust_region` has the splits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from controllers.actor_controller import ActorMAC
from learners.mamt.maac import MAACLearner, PolicyStep
from learners.mamt.mirror_descent import coordination, step_penalty
from learners.mamt.situation import Situation, effects_of, make_situation
from learners.mamt.trust_region import RANGES, check_split, make_split
from utils.ranges import ANY_NUMBER, COUNT


class MAMTLearner(MAACLearner):
    """Agent i's loss is MAAC's with (1 / delta_i) D_i in the bracket, where D_i compares its policy
    with an old one.

    The old policies are the present ones of at most `old_policy_interval` updates ago; at every
    refresh their mean KL divergence from the new ones is noted (`consecutive_kl`).

    Args:
        mac, scheme, logger: as for `MAACLearner`.
        args: further `tsallis_q`, `md_entropy` (the term alpha log pi_i stays in the bracket),
            `old_policy_interval`, `trust_region_batch_size` (so many transitions of a batch the
            trust regions are learned from; 0: all), and what `learners.mamt.trust_region` reads.

    Raises:
        ConfigError: a setting out of range.
    """

    ranges: ClassVar = {
        **MAACLearner.ranges,
        **RANGES,
        "tsallis_q": ANY_NUMBER,
        "old_policy_interval": COUNT,
    }

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.split = make_split(args, self.optimise)
        self.modules |= self.split.modules
        self.old_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.updates = 0
        self.consecutive_kl: Tensor | None = None  # [A], at the last refresh
        self._penalty: Tensor | None = None  # [N, A], (1 / delta_i) D_i, within an update

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Also what the split of the trust region needs."""
        super().check_settings(args)
        check_split(args, args.batch_size)

    def before_policy_step(self, step: PolicyStep, t_env: int) -> dict[str, Tensor]:
        """Compares with the old policies; the trust regions learn."""
        old_outputs = self._old_outputs(step)
        old = self.distribution(old_outputs, step.avail_actions)
        figures = self.split.learn(self._situation(step, old_outputs), t_env)
        sizes = self.split.sizes()
        penalty = step_penalty(
            step.log_prob.detach(), old.log_prob(step.actions), self.args.tsallis_q
        )
        self._penalty = penalty / sizes
        if self.consecutive_kl is not None:
            figures["consecutive_kl"] = self.consecutive_kl
        return figures | {"trust_region": sizes}

    def policy_bracket(self, step: PolicyStep) -> Tensor:
        """(1 / delta_i) D_i + alpha log pi_i - (Q_i - b_i), [N, A] (MAMT, section 3.2)."""
        bracket = super().policy_bracket(step) if self.args.md_entropy else -step.advantage
        assert self._penalty is not None  # of before_policy_step
        bracket, self._penalty = bracket + self._penalty, None
        return bracket

    @torch.no_grad()
    def _old_outputs(self, step: PolicyStep) -> Tensor:
        """What the old policy networks put out, [N, A, U or 2U]; where that is due they become the
        present ones.
        """
        self.old_policy.train()  # as the present ones: normalised with this batch
        outputs = self.old_policy.logits(step.obs)
        if self.updates > 0 and self.updates % self.args.old_policy_interval == 0:
            self.consecutive_kl = step.policy.kl(
                self.distribution(outputs, step.avail_actions)
            ).mean(0)
            self.old_policy.load_state_dict(self.policy.state_dict())
            outputs = step.outputs.detach()
        self.updates += 1
        return outputs

    def _situation(self, step: PolicyStep, old_outputs: Tensor) -> Situation:
        """What the trust regions learn from: the first rows, which are as random as all of them."""
        n = self.args.trust_region_batch_size or len(step.obs)
        return make_situation(
            self.critic,
            obs=step.obs[:n],
            avail_actions=step.avail_actions[:n],
            replayed=step.replayed[:n],
            actions=step.actions[:n],
            samples=None if step.samples is None else step.samples[:n],
            outputs=step.outputs[:n],
            old_outputs=old_outputs[:n],
            values=step.all_q[:n],
            baselines=step.baseline[:n],
            reward_unit=step.reward_unit,
        )

    # -- for people who watch ---------------------------------------------------------------------
    @property
    def explained_by(self) -> tuple[str, ...]:
        regions = ("regions",) if "regions" in self.modules else ()
        return (*super().explained_by, *regions)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Also the coordination coefficients C_ij (eq. 5) where they are learned, before and after
        those below `coordination_sigma` are set to 0, and the local trust regions.
        """
        shown = super().explain(batch)
        obs, actions, policy = self.watched(batch)
        sizes = self.split.sizes().expand(len(obs), -1)
        shown["local trust region"] = Inner(sizes, ("agent",))
        if self.args.trust_region_split == "learned" and self.args.coordination == "learned":
            samples = policy.sample(self.args.mc_actions) if self.args.continuous_actions else None
            effects = effects_of(self.critic, obs, actions, policy, samples)
            for name, sigma in (
                ("influence of the others, before the threshold", 0.0),
                ("coordination coefficients", self.args.coordination_sigma),
            ):
                c = coordination(effects, sigma)
                shown[name] = Inner(c, ("agent", "other agent"), "probability")
        return shown

    # -- devices and files -------------------------------------------------------------------------
    def cuda(self) -> None:
        """Moves all networks to the GPU."""
        super().cuda()
        self.old_policy.cuda()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return super().optimisers() | self.split.optimisers

    def load_models(self, path: str) -> None:
        """As `Learner.load_models`; the old policies become the loaded ones."""
        super().load_models(path)
        self.old_policy.load_state_dict(self.policy.state_dict())
