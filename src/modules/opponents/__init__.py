"""What agents that learn alone believe the others do: models of their policies after the theory of mind (F2A2)."""

from modules.opponents.histories import (
    Histories,
    episode_histories,
    histories_of,
    next_histories_of,
    trajectories_of,
)
from modules.opponents.models import ModelLoss, ModelsOfOthers

__all__ = [
    "Histories",
    "ModelLoss",
    "ModelsOfOthers",
    "episode_histories",
    "histories_of",
    "next_histories_of",
    "trajectories_of",
]
