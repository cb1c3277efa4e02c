"""Multi-agent controllers (MACs): from an episode batch to actions."""

from controllers.actor_controller import ActorMAC
from controllers.basic_central_controller import CentralBasicMAC
from controllers.basic_controller import BasicMAC
from controllers.comm_controller import CommMAC
from controllers.dac_controller import DACMAC
from controllers.f2a2_controller import F2A2MAC
from controllers.maddpg_controller import MADDPGMAC
from controllers.mat_controller import MATMAC
from controllers.n_controller import NMAC
from controllers.s2q_controller import S2QMAC
from utils.registry import Registry

REGISTRY = Registry("controller")
register = REGISTRY.register

register("basic_mac")(BasicMAC)
register("n_mac")(NMAC)
# Its constructor takes no groups: it is made by learners, key `central_mac`.
register("basic_central_mac")(CentralBasicMAC)
register("s2q_mac")(S2QMAC)
register("dac_mac")(DACMAC)
register("actor_mac")(ActorMAC)
register("maddpg_mac")(MADDPGMAC)
register("f2a2_mac")(F2A2MAC)
register("comm_mac")(CommMAC)
# All agents as one, one after the other: acting is centralised.
register("mat_mac")(MATMAC)
