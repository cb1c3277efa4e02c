"""The agent network of an unrestricted joint value: several values per action."""

from __future__ import annotations

from types import SimpleNamespace

from modules.recurrent import RNNAgent


class CentralRNNAgent(RNNAgent):
    """`RNNAgent` with E = `central_action_embed` outputs per action, [N, A, U * E] (Weighted QMIX,
    Rashid et al. 2020).

    The outputs of action u are the entries u * E to (u + 1) * E - 1.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(input_shape, args, n_out=args.n_actions * args.central_action_embed)
