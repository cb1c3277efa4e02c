"""PyMARL2's import path of the weights of QPLEX's advantages."""

from modules.mixers.dmaq_general import DMAQSIWeight as DMAQ_SI_Weight

__all__ = ["DMAQ_SI_Weight"]
