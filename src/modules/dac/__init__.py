"""Contexts of DAC: from a window of an agent's transitions to a category, and from it to the task's
dynamics.
"""

from modules.dac.context_encoder import ContextEncoder
from modules.dac.dynamics_decoder import DynamicsDecoder

__all__ = ["ContextEncoder", "DynamicsDecoder"]
