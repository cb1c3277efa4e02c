"""Agent networks: from an agent's inputs to action values or policy logits."""

from modules.agents.mlp_agent import MLPAgent
from modules.agents.n_rnn_agent import NRNNAgent
from modules.agents.rnn_agent import RNNAgent
from utils.registry import Registry

REGISTRY = Registry("agent")
register = REGISTRY.register

register("rnn")(RNNAgent)
register("n_rnn")(NRNNAgent)
register("mlp")(MLPAgent)
