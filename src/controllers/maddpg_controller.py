"""The controller of MADDPG: deterministic continuous actions with noise; discrete ones are samples
of a policy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from controllers.actor_controller import ActorMAC
from controllers.basic_controller import ALL


class MADDPGMAC(ActorMAC):
    """`ActorMAC`, whose continuous actions are the policies' modes, in training with Gaussian
    noise.

    Args:
        args: as for `ActorMAC`, and `action_noise`, the noise's standard deviation (actions lie in
            [-1, 1]).
    """

    recorded: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A], or float32 [len(bs), A,
        U].
        """
        if not self.args.continuous_actions:
            return super().select_actions(ep_batch, t_ep, t_env, bs, test_mode)
        avail = ep_batch["avail_actions"][bs, t_ep]
        actions = self.policy(self.forward(ep_batch, t_ep, test_mode, bs), avail).mode()
        if test_mode:
            return actions
        noise = self.args.action_noise * torch.randn_like(actions) * (avail != 0)
        return (actions + noise).clamp(-1, 1)
