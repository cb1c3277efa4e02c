"""Multi-agent controllers (MACs): from an episode batch to actions."""

from controllers.basic_controller import BasicMAC
from controllers.n_controller import NMAC
from utils.registry import Registry

REGISTRY = Registry("controller")
register = REGISTRY.register

register("basic_mac")(BasicMAC)
register("n_mac")(NMAC)
