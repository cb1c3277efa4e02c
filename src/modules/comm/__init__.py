"""Networks of agents that talk to one another: what they say, and what they make of it."""

from modules.comm.agent import CommAgent
from modules.comm.cama import CAMAAgent
from modules.comm.fullcomm import FullCommAgent
from modules.comm.latent import LatentAgent
from modules.comm.maic import MAICAgent
from modules.comm.masia import MASIAAgent
from modules.comm.ndq import NDQAgent
from modules.comm.t2mac import T2MACAgent
from utils.ranges import Range

AGENTS: dict[str, type[CommAgent]] = {
    "fullcomm_rnn": FullCommAgent,
    "latent_rnn": LatentAgent,
    "maic_rnn": MAICAgent,
    "ndq_rnn": NDQAgent,
    "masia_rnn": MASIAAgent,
    "t2mac_rnn": T2MACAgent,
    "cama_rnn": CAMAAgent,
}

# What the keys that only these networks read must be; learners check them before anything is built.
RANGES: dict[str, Range] = {
    key: wanted for agent in AGENTS.values() for key, wanted in agent.ranges.items()
}
