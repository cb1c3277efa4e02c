"""S2Q's networks one by one: k, agent by agent, step by step, in plain loops over the stacked
weights.
"""

import torch
import torch.nn.functional as F

GRU = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def weights(param, g, n_groups):
    """The part of a stacked parameter that belongs to group g."""
    return param if n_groups == 1 else param[g]


def inputs_at(mac, episode, t):
    return mac._build_inputs(episode, t).view(mac.n_agents, -1)


def sub_values(mac, episode, n_steps):
    """Utilities [t][k] -> [A, U] and latents [t] -> [Z] of one episode (batch of 1)."""
    args, agent = mac.args, mac.agent
    n_values, n_agents = args.s2q_k + 1, mac.n_agents
    groups = n_values * (1 if args.share_params else n_agents)
    hidden = [
        [torch.zeros(1, args.rnn_hidden_dim) for _ in range(n_agents)] for _ in range(n_values)
    ]
    memory = torch.zeros(1, args.encoder_hidden_dim)
    q, z = [], []

    def layer(module, x, g):
        return F.linear(x, weights(module.weight, g, groups), weights(module.bias, g, groups))

    for t in range(n_steps):
        inputs = inputs_at(mac, episode, t)
        for k in range(n_values):
            for i in range(n_agents):
                g = k if args.share_params else k * n_agents + i
                x = layer(agent.fc1, inputs[i : i + 1], g).clamp(min=0)
                gru = [
                    weights(getattr(agent.rnn, n), g, groups)
                    for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                ]
                hidden[k][i] = torch.gru_cell(x, hidden[k][i], *gru)
        latent = torch.cat([h.detach() for h in hidden[0]], dim=-1)
        if args.encoder_type == "rnn":
            rnn = mac.encoder.rnn
            latent = memory = torch.gru_cell(
                latent, memory, rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh
            )
        for number, linear in enumerate(
            m for m in mac.encoder.net if isinstance(m, torch.nn.Linear)
        ):
            latent = linear(latent if number == 0 else latent.clamp(min=0))
        values = []
        for k in range(n_values):
            rows = []
            for i in range(n_agents):
                g = k if args.share_params else k * n_agents + i
                h = hidden[k][i]
                if args.s2q_comm and args.s2q_comm_merge == "concat":
                    h = torch.cat([h, latent], dim=-1)
                elif args.s2q_comm:
                    h = h + layer(agent.fc_message, latent, g)
                rows.append(layer(agent.fc2, h, g)[0])
            values.append(torch.stack(rows))
        q.append(values)
        z.append(latent[0])
    return q, z
