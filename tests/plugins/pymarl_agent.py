"""Recurrent agent networks in the forms of PyMARL and EPyMARL, of PyMARL2, and on top of RNNAgent;
none has unroll.
"""

import torch as th
import torch.nn as nn
import torch.nn.functional as F

from modules.agents.rnn_agent import RNNAgent


class PluginAgent(nn.Module):
    """PyMARL's and EPyMARL's form: one row per agent, [batch * agents, features]."""

    def __init__(self, input_shape, args):
        super().__init__()
        self.args = args
        self.fc1 = nn.Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc2 = nn.Linear(args.rnn_hidden_dim, args.n_actions)

    def init_hidden(self):
        return self.fc1.weight.new(1, self.args.rnn_hidden_dim).zero_()

    def forward(self, inputs, hidden_state):
        assert inputs.dim() == 2, "written for one row per agent"
        x = F.relu(self.fc1(inputs))
        h_in = hidden_state.reshape(-1, self.args.rnn_hidden_dim)
        h = self.rnn(x, h_in)
        q = self.fc2(h)
        return q, h


class PluginBlockAgent(nn.Module):
    """The same in PyMARL2's form: [batch, agents, features] in, values and hidden states of that
    shape out.
    """

    def __init__(self, input_shape, args):
        super().__init__()
        self.args = args
        self.fc1 = nn.Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc2 = nn.Linear(args.rnn_hidden_dim, args.n_actions)

    def init_hidden(self):
        return self.fc1.weight.new(1, self.args.rnn_hidden_dim).zero_()

    def forward(self, inputs, hidden_state):
        b, a, e = inputs.size()
        x = F.relu(self.fc1(inputs.view(-1, e)), inplace=True)
        h_in = hidden_state.reshape(-1, self.args.rnn_hidden_dim)
        h = self.rnn(x, h_in)
        q = self.fc2(th.tanh(h))
        return q.view(b, a, -1), h.view(b, a, -1)


class PluginSkipAgent(RNNAgent):
    """Inherits from the laboratory's agent and replaces `forward` alone: the head also reads what
    the GRU reads.
    """

    def forward(self, inputs, hidden_state):
        b, a, e = inputs.size()
        x = F.relu(self.fc1(inputs.view(-1, e)))
        h = self.rnn(x, hidden_state.reshape(-1, self.args.rnn_hidden_dim))
        q = self.fc2(h + x)
        return q.view(b, a, -1), h.view(b, a, -1)
