"""The recurrent agent of a policy whose logits stay within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

from torch import Tensor

from modules.recurrent import RNNAgent
from utils.errors import ConfigError
from utils.ranges import ANY_NUMBER, Range, check_ranges


class BoundedRNNAgent(RNNAgent):
    """`RNNAgent` whose outputs are cut to [`logit_min`, `logit_max`], so that no available action
    ever has probability 0 (Zhou et al. 2022, in their code).

    Args:
        input_shape: F.
        args: see `Agent`; `logit_min`, `logit_max`.

    Raises:
        ConfigError: the bounds are not in this order.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"logit_min": ANY_NUMBER, "logit_max": ANY_NUMBER}

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        check_ranges(vars(args), self.ranges)
        if args.logit_min >= args.logit_max:
            raise ConfigError(
                f"logit_min must be less than logit_max, got {args.logit_min} and {args.logit_max}"
            )
        super().__init__(input_shape, args)

    def outputs(self, hidden: Tensor) -> Tensor:
        return self.fc2(hidden).clamp(self.args.logit_min, self.args.logit_max)
