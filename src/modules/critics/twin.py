"""FOP's critics: two joint values side by side, each of utilities of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from modules.critics.decomposed import UtilityCritic
from modules.mixers.fop import FOPMixer
from utils.ranges import COUNT, Range

N_CRITICS = 2


class TwinUtilityCritic(nn.Module):
    """Two `UtilityCritic`s of what an agent sees, and an `FOPMixer` for each (Zhang et al. 2021).

    Args:
        scheme, args: as for `UtilityCritic` and `FOPMixer`.
    """

    ranges: ClassVar[Mapping[str, Range]] = {**FOPMixer.ranges, "critic_hidden_dim": COUNT}

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.utilities = UtilityCritic(scheme, args, with_state=False, groups=N_CRITICS)
        self.mixer = FOPMixer(args, groups=N_CRITICS)

    def forward(self, obs: Tensor) -> Tensor:
        """Observations [N, A, O] -> utilities [2, N, A, U]."""
        return self.utilities(None, obs)

    def joint(
        self, q: Tensor, actions: Tensor, avail_actions: Tensor, state: Tensor, alpha: float
    ) -> Tensor:
        """Q_tot of joint actions.

        Args:
            q: [2, N, A, U], utilities.
            actions: int64 [N, A].
            avail_actions: [N, A, U].
            state: [N, S].
            alpha: weight of the entropy.

        Returns:
            [2, N, 1].
        """
        onehot = F.one_hot(actions, q.shape[-1])
        chosen = (q * onehot).sum(-1)
        # Finite where nothing is available, at the end of an episode.
        possible = q.masked_fill(avail_actions == 0, -1e10)
        soft = alpha * (possible / alpha).logsumexp(-1)
        return self.mixer.joint(chosen, state, onehot, soft)
