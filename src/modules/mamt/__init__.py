"""MAMT's trust regions: models of the other agents, the network that splits the joint divergence,
the local sizes.
"""

from modules.mamt.local_trust_regions import LocalRegions
from modules.mamt.opponents import OpponentPolicies, Pairs
from modules.mamt.trd_net import TRDNet

__all__ = ["LocalRegions", "OpponentPolicies", "Pairs", "TRDNet"]
