"""PyMARL's import path of the recurrent agent."""

from modules.recurrent import Agent, RNNAgent

__all__ = ["Agent", "RNNAgent"]
