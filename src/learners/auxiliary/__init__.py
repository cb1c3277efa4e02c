"""Auxiliary losses of the Q-learners, by the name that `auxiliary_loss` has."""

from learners.auxiliary.base import AuxiliaryLoss
from learners.auxiliary.cama import CAMALoss
from learners.auxiliary.maic import MAICLoss
from learners.auxiliary.masia import MASIALoss
from learners.auxiliary.ndq import NDQLoss
from learners.auxiliary.state import StateLoss
from learners.auxiliary.t2mac import SelectorLoss
from utils.ranges import Range
from utils.registry import Registry

REGISTRY = Registry("auxiliary loss")
register = REGISTRY.register

register("state")(StateLoss)
register("maic")(MAICLoss)
register("ndq")(NDQLoss)
register("masia")(MASIALoss)
register("t2mac")(SelectorLoss)
register("cama")(CAMALoss)

RANGES: dict[str, Range] = {
    key: wanted for loss in REGISTRY.values() for key, wanted in loss.ranges.items()
}

__all__ = ["RANGES", "REGISTRY", "AuxiliaryLoss", "register"]
