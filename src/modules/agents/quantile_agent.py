"""The agent network of distributions of returns: quantiles of every action's return."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from modules import risk
from modules.agents.n_rnn_agent import NRNNAgent
from utils.ranges import COUNT, Range, check_ranges

if TYPE_CHECKING:
    from components.steps import Steps


class QuantileAgent(NRNNAgent):
    """`NRNNAgent` with W quantiles for each action, whose outputs are what these are worth by a
    risk measure (Shen et al. 2023, section 4).

    The quantiles of an action are sorted. The controller sees the outputs [N, A, U] alone, so
    agents act on them as on action values.

    Args:
        input_shape: F.
        args: see `NRNNAgent`; `n_quantiles` (W), `risk_measure`, `risk_parameter`.

    Raises:
        ConfigError: a key is out of range.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"n_quantiles": COUNT, **risk.RANGES}
    weights: Tensor  # [W], of the risk measure

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        check_ranges(vars(args), self.ranges)
        super().__init__(input_shape, args, n_out=args.n_actions * args.n_quantiles)
        weights = risk.risk_weights(args.risk_measure, args.risk_parameter, args.n_quantiles)
        self.register_buffer("weights", weights, persistent=False)

    def outputs(self, hidden: Tensor) -> Tensor:
        return self.worth(self._sorted(hidden))

    def worth(self, quantiles: Tensor) -> Tensor:
        """Sorted quantiles [..., W] -> their value by the risk measure [...]."""
        return quantiles @ self.weights

    def unroll_quantiles(self, inputs: Tensor, steps: Steps) -> Tensor:
        """All filled steps: inputs [N, A, F] -> sorted quantiles [N, A, U, W]."""
        hidden = self.to_rows(self.unroll_hidden(inputs, steps))
        quantiles = self._sorted(hidden)
        return self.from_rows(quantiles.flatten(-2)).unflatten(-1, quantiles.shape[-2:])

    def _sorted(self, hidden: Tensor) -> Tensor:
        """Hidden states in the layout of `to_rows` -> [..., U, W]."""
        return super().outputs(hidden).unflatten(-1, (self.args.n_actions, -1)).sort(-1).values
