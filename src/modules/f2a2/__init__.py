"""The networks of F2A2: agents' copies of critics, and their models of what other agents do."""

from modules.f2a2.histories import Histories, episode_histories, trajectories_of
from modules.f2a2.other_agents import ModelLoss, OtherAgentModels

__all__ = [
    "Histories",
    "ModelLoss",
    "OtherAgentModels",
    "episode_histories",
    "trajectories_of",
]
