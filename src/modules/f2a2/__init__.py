"""What agents that learn alone believe the others do: models of their policies after the theory of
mind (F2A2).
"""

from modules.f2a2.histories import (
    Histories,
    episode_histories,
    histories_of,
    next_histories_of,
    trajectories_of,
)
from modules.f2a2.other_agents import ModelLoss, OtherAgentModels

__all__ = [
    "Histories",
    "ModelLoss",
    "OtherAgentModels",
    "episode_histories",
    "histories_of",
    "next_histories_of",
    "trajectories_of",
]
