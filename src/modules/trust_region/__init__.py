"""MAMT's trust regions: models of the other agents, the network that splits the joint divergence, the local sizes."""

from modules.trust_region.local import LocalRegions
from modules.trust_region.opponents import OpponentModels, Pairs
from modules.trust_region.trd_net import TRDNet

__all__ = ["LocalRegions", "OpponentModels", "Pairs", "TRDNet"]
