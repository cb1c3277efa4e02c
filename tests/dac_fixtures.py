"""DAC one by one: agents, episodes, steps and contexts in plain loops over the stacked weights."""

import math

import torch
import torch.nn.functional as F
from learner_fixtures import LENGTHS, make_args


def dac_args(**overrides):
    """Small networks, k = 3, m = 4."""
    small = {"dac_k": 3, "dac_m": 4, "dac_hidden_dim": 7, "dac_beta": 0.3}
    return make_args("dac", **(small | overrides))


def layer(module, i, x):
    """The part of a stacked linear layer that belongs to agent i."""
    return F.linear(x, module.weight[i], module.bias[i])


def window_of(batch, b, i, t, k):
    """The flattened window that ends with transition t of episode b, as agent i sees it."""
    n_actions = batch["avail_actions"].shape[-1]
    parts = []
    for h in range(t - k + 1, t + 1):
        if h < 0:
            parts.append(torch.zeros(2 * batch["obs"].shape[-1] + n_actions + 1))
            continue
        action = torch.zeros(n_actions)
        action[batch["actions"][b, h, i, 0]] = 1
        parts += [
            batch["obs"][b, h, i],
            action,
            reward_of(batch, b, i, h).view(1),
            batch["obs"][b, h + 1, i],
        ]
    return torch.cat(parts)


def reward_of(batch, b, i, t):
    """Agent i's own reward, or the common one."""
    rewards = batch["reward"][b, t]
    return rewards[i] if len(rewards) > 1 else rewards[0]


def logits_of(encoder, i, window):
    return layer(encoder.fc2, i, layer(encoder.fc1, i, window).clamp(min=0))


def decode(decoder, i, obs, action, context):
    """f_s [O] and f_r of a transition: obs [O], action an int, context [m]."""
    n_actions = decoder.fc1.weight.shape[-1] - len(obs) - len(context)
    x = torch.cat([obs, F.one_hot(action, n_actions).float(), context])
    hidden = layer(decoder.fc1, i, x).clamp(min=0)
    half = len(hidden) // 2
    return layer(decoder.fc_s, i, hidden[:half]), layer(decoder.fc_r, i, hidden[half:])[0]


def features_of(mac, batch, b, i, n_steps):
    """What agent i's head reads at every step of episode b: a list of [H]."""
    agent, out = mac.agent, []
    h = torch.zeros(1, mac.args.rnn_hidden_dim)
    for t in range(n_steps):
        x = [batch["obs"][b, t, i]]
        if mac.args.obs_last_action:
            last = torch.zeros(mac.args.n_actions)
            if t > 0:
                last[batch["actions"][b, t - 1, i, 0]] = 1
            x.append(last)
        if mac.args.obs_agent_id:
            x.append(torch.eye(mac.n_agents)[i])
        x = layer(agent.fc1, i, torch.cat(x)[None]).clamp(min=0)
        gru = [getattr(agent.rnn, n)[i] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = torch.gru_cell(x, h, *gru)
        out.append(layer(agent.fc2, i, h)[0])
    return out


def q_in(agent, i, features, context):
    """Q(s, ., c) of agent i: features [H], context [m] -> [U]."""
    head = agent.q_head
    if hasattr(head, "fc"):
        return layer(head.fc, i, torch.cat([features, context]))
    weights = layer(head.hyper_w, i, context).view(head.n_actions, -1)
    return weights @ features + layer(head.hyper_b, i, context)


def noise_of(args, lengths, seed):
    """The noise that `train` draws after `torch.manual_seed(seed)`: (episode, step) -> Gumbel noise
    [A, m].
    """
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    where = [(b, t) for t in range(max(lengths) - 1) for b in order if t < lengths[b] - 1]
    torch.manual_seed(seed)
    noise = -torch.empty(args.n_agents, len(where), args.dac_m).exponential_().log()
    return {bt: noise[:, row] for row, bt in enumerate(where)}


def straight_through(logits, noise, temperature):
    """A one-hot sample whose gradient is that of the soft one."""
    soft = torch.softmax((logits + noise) / temperature, -1)
    hard = F.one_hot(soft.argmax(-1), len(logits)).float()
    return hard + soft - soft.detach()


def losses_of(learner, batch, seed, lengths=LENGTHS, weights=None):
    """Value, reconstruction and divergence losses of an update, each a list of one per agent, and
    the targets.

    Args:
        weights: of the episodes.
    """
    args, mac = learner.args, learner.mac
    noise = noise_of(args, lengths, seed)
    weights = [1.0] * len(lengths) if weights is None else weights
    value, rec, kl, targets = [], [], [], {}
    for i in range(args.n_agents):
        sums, n = [0.0, 0.0, 0.0], 0
        for b, length in enumerate(lengths):
            contexts = []
            for t in range(length - 1):
                logits = logits_of(learner.encoder, i, window_of(batch, b, i, t, args.dac_k))
                c = straight_through(logits, noise[b, t][i], args.dac_temperature)
                contexts.append(c)
                for h in range(max(0, t - args.dac_k + 1), t + 1):
                    state, reward = decode(
                        learner.decoder, i, batch["obs"][b, h, i], batch["actions"][b, h, i, 0], c
                    )
                    error = (batch["obs"][b, h + 1, i] - state).pow(2).sum() + (
                        reward_of(batch, b, i, h) - reward
                    ) ** 2
                    sums[1] = sums[1] + weights[b] * error
                q = torch.softmax(logits, -1)
                sums[2] = sums[2] + weights[b] * sum(p * torch.log(p * args.dac_m) for p in q)
            online = features_of(mac, batch, b, i, length)
            target = features_of(learner.target_mac, batch, b, i, length)
            for t in range(length - 1):
                after = contexts[min(t + 1, length - 2)].detach()
                q_next = q_in(learner.target_mac.agent, i, target[t + 1], after)
                chosen_by = q_in(mac.agent, i, online[t + 1], after) if args.double_q else q_next
                options = [
                    u for u in range(args.n_actions) if batch["avail_actions"][b, t + 1, i, u]
                ]
                goal = reward_of(batch, b, i, t)
                if not batch["terminated"][b, t, 0]:
                    goal = (
                        goal
                        + args.gamma
                        * q_next[max(options, key=lambda u: float(chosen_by[u].detach()))]
                    )
                goal = targets[b, t, i] = goal.detach()
                c = contexts[t] if args.dac_value_trains_encoder else contexts[t].detach()
                taken = q_in(mac.agent, i, online[t], c)[batch["actions"][b, t, i, 0]]
                sums[0] = sums[0] + weights[b] * (taken - goal) ** 2
                n += 1
        for total, losses in zip(sums, (value, rec, kl), strict=True):
            losses.append(total / n)
    return value, rec, kl, targets


def entropy_to_uniform(probabilities):
    """KL divergence from the uniform distribution, of a list of floats."""
    return sum(p * math.log(p * len(probabilities)) for p in probabilities)
