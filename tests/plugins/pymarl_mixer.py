"""A mixer as PyMARL has them: [batch, time, agents] and states in, [batch, time, 1] out, views in
between.
"""

import torch as th
import torch.nn as nn
import torch.nn.functional as F


class PluginMixer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.n_agents = args.n_agents
        self.state_dim = int(th.prod(th.tensor(args.state_shape)).item())
        self.weights = nn.Linear(self.state_dim, self.n_agents)
        self.bias = nn.Linear(self.state_dim, 1)

    def forward(self, agent_qs, states):
        bs = agent_qs.size(0)
        states = states.reshape(-1, self.state_dim)
        agent_qs = agent_qs.view(-1, 1, self.n_agents)
        w = F.softplus(self.weights(states)).view(-1, self.n_agents, 1)
        b = self.bias(states).view(-1, 1, 1)
        return (th.bmm(agent_qs, w) + b).view(bs, -1, 1)
