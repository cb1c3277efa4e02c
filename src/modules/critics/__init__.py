"""Critics: networks that value states or joint actions for actor-critic learners."""

from modules.critics.attention import AttentionCritic
from modules.critics.joint import JointCritic
from modules.critics.mixed import MixedCritic
from modules.critics.value import ObservationCritic, StateCritic
from utils.registry import Registry

REGISTRY = Registry("critic")
register = REGISTRY.register

register("state")(StateCritic)
register("observation")(ObservationCritic)
register("mixed")(MixedCritic)
register("attention")(AttentionCritic)
register("joint")(JointCritic)
