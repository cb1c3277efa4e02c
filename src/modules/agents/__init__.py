"""Agent networks: from an agent's inputs to action values or policy logits."""

from modules.agents.central_rnn_agent import CentralRNNAgent
from modules.agents.hpn_agent import HPNAgent
from modules.agents.mlp_agent import MLPAgent
from modules.agents.n_rnn_agent import NRNNAgent
from modules.agents.norm_rnn_agent import NormRNNAgent
from modules.agents.policy_agent import PolicyAgent
from modules.comm import AGENTS as COMM_AGENTS
from modules.dac.agent import DACAgent
from modules.recurrent import RNNAgent
from modules.s2q.agent import S2QAgent
from utils.registry import Registry

REGISTRY = Registry("agent")
register = REGISTRY.register

register("rnn")(RNNAgent)
register("n_rnn")(NRNNAgent)
register("norm_rnn")(NormRNNAgent)
register("mlp")(MLPAgent)
register("hpn_rnn")(HPNAgent)
# The joint value of Weighted QMIX and S2Q: key `central_agent`, not `agent`.
register("central_rnn")(CentralRNNAgent)
register("s2q_rnn")(S2QAgent)
register("dac_rnn")(DACAgent)
# Those that talk to one another: with mac=comm_mac.
REGISTRY.update(COMM_AGENTS)
# One feed-forward policy per agent, for the actor-critic learners.
register("mlp_policy")(PolicyAgent)
