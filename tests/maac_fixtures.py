"""Small MAAC learners, agents of different size, and continuous critics and policies agent by
agent.
"""

import torch
import torch.nn.functional as F
from learner_fixtures import Log, make_args
from transition_fixtures import make_transitions

from assembly import build_learner

N_AGENTS, N_ACTIONS, OBS = 3, 4, 5
SIZES = ((5, 3, 2), (4, 4, 2))  # of the agents' observations and action sets


class ListLog(Log):
    """Also the lists of figures."""

    def __init__(self):
        super().__init__()
        self.lists = {}

    def log_list(self, key, values, t):
        self.lists.setdefault(key, []).append((values, t))


def maac_args(algorithm="maac", sizes=SIZES, continuous=False, **overrides):
    """Narrow networks; every update is logged."""
    small = {
        "critic_hidden_dim": 8,
        "attention_heads": 2,
        "policy_hidden_dim": 6,
        "learner_log_interval": 1,
    }
    small |= {
        "n_agents": len(sizes[0]),
        "obs_shape": max(sizes[0]),
        "n_actions": max(sizes[1]),
        "batch_size": 32,
    }
    args = make_args(algorithm, **(small | {"continuous_actions": continuous} | overrides))
    args.env_info = {"obs_sizes": tuple(sizes[0]), "action_sizes": tuple(sizes[1])}
    return args


def maac_learner(args, seed=0):
    """A learner whose targets differ from the online networks, and its log."""
    torch.manual_seed(seed)
    log = ListLog()
    _, learner = build_learner(args, log)
    for online, target in learner.targets:
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.add_(0.1 * torch.randn_like(old) * (new != 0))  # padding stays zero
    return learner, log


def transitions(args, n=16, seed=0):
    return make_transitions(
        args, n, seed, (args.env_info["obs_sizes"], args.env_info["action_sizes"])
    )


def normalised(x):
    """Batch norm of [N, F] with the batch's statistics."""
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


def layer(module, i, x):
    """Agent i's part of a stacked layer, for inputs [N, F]."""
    return F.linear(x, module.weight[i], module.bias[i])


def critic_value(critic, obs, actions, i, own=None, norm=normalised):
    """all_q of agent i [N, U or 1] in plain loops over the other agents and heads, its logits and
    its attention.

    Args:
        actions: [N, A], or continuous [N, A, U].
        own: [N, U], a continuous own action in place of agent i's in `actions`, for its last
            network only.
        norm: from [N, A, O + U] to the normalised.
    """
    n, a, d = len(obs), critic.n_agents, critic.width // critic.heads
    features = (
        actions if actions.is_floating_point() else F.one_hot(actions, critic.n_actions).float()
    )
    x = norm(torch.cat([obs, features], -1))
    s = F.leaky_relu(layer(critic.state_encoder, i, x[:, i, : obs.shape[-1]]))
    e = [F.leaky_relu(layer(critic.encoder, j, x[:, j])) for j in range(a)]
    attended, all_logits, weights_of = [], [], []
    for head in range(critic.heads):
        part = slice(head * d, (head + 1) * d)
        query = s @ critic.query.weight[part].T
        logits, values = {}, {}
        for j in range(a):
            if j != i:
                logits[j] = (query * (e[j] @ critic.key.weight[part].T)).sum(-1)
                values[j] = F.leaky_relu(
                    e[j] @ critic.value.weight[part].T + critic.value.bias[part]
                )
        total = sum(torch.exp(logit / d**0.5) for logit in logits.values())
        weights = {j: torch.exp(logit / d**0.5) / total for j, logit in logits.items()}
        attended.append(sum(weights[j].unsqueeze(1) * values[j] for j in values))
        all_logits.append(torch.stack([logits.get(j, torch.zeros(n)) for j in range(a)], 1))
        weights_of.append(torch.stack([weights.get(j, torch.zeros(n)) for j in range(a)], 1))
    parts = [*attended, s]
    if critic.continuous:
        parts.append(actions[:, i] if own is None else own)
    hidden = F.leaky_relu(layer(critic.head1, i, torch.cat(parts, 1)))
    return layer(critic.head2, i, hidden), torch.stack(all_logits), torch.stack(weights_of)


def policy_outputs(policy, obs, i):
    """What agent i's policy network puts out in training mode, [N, U or 2U]."""
    x = F.leaky_relu(layer(policy.fc1, i, normalised(obs[:, i])))
    return layer(policy.fc3, i, F.leaky_relu(layer(policy.fc2, i, x)))
