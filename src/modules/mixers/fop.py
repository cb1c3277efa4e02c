"""FOP's mixer: QPLEX's with soft values, and a value of the state."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from modules.mixers.dmaq_general import DMAQer
from modules.mixers.parts import hypernet


class FOPMixer(DMAQer):
    """Q_tot = sum_i Q_i + V(s) + sum_i (lambda_i(s, a) - 1) (Q_i - v_i), lambda_i > 0 (Zhang et al.
    2021, section 4).

    `joint` takes the soft values v_i in place of the largest utilities.

    Args:
        args: those of `DMAQer`, and `mixing_embed_dim` (hidden width of V).
        groups: G independent mixers side by side.
    """

    def __init__(self, args: SimpleNamespace, groups: int = 1) -> None:
        super().__init__(args, groups)
        self.state_value = hypernet(self.state_dim, args.mixing_embed_dim, 1, groups)

    def joint(self, agent_qs: Tensor, states: Tensor, actions: Tensor, max_q_i: Tensor) -> Tensor:
        """Q_tot, [(G,) ..., 1]. Arguments as in `DMAQer.forward`, v_i as `max_q_i`."""
        value = self.state_value(self._rows(agent_qs, states)[1])
        mixed = super().joint(agent_qs, states, actions, max_q_i)
        return mixed + value.view(mixed.shape)
