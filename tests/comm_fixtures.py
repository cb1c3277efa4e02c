"""Agents that talk, one by one: what each sends and makes of what it hears, in plain loops over
agents, pairs and steps.
"""

import math

import torch
import torch.nn.functional as F
from learner_fixtures import N_ACTIONS, N_AGENTS, OBS, make_args, make_batch

# algorithm -> settings: every form in which agents talk
FORMS = [
    ("fullcomm", {}),
    ("fullcomm", {"obs_last_action": True, "obs_agent_id": False}),
    ("qmix_comm", {}),
    ("qmix_comm", {"comm_merge": "add", "encoder_type": "rnn"}),
    ("maic", {}),
    ("maic", {"maic_speaker": "receiver"}),
    ("ndq", {}),
    ("ndq", {"ndq_test_mean": False, "ndq_cut": 0.3}),
    ("masia", {}),
    ("masia", {"obs_last_action": True, "obs_agent_id": False}),
    ("t2mac", {}),
    ("t2mac", {"t2mac_fusion_weight": 1.0, "t2mac_send_probability": 0.55}),
    ("cama", {}),
    ("cama", {"cama_keep": 0.5, "obs_last_action": False}),
    ("cama", {"cama_parts": [5], "obs_agent_id": False}),
]
SMALL = {
    "qmix_comm": {"encoder_hidden_dim": 7, "latent_dim": 4},
    "maic": {"maic_latent_dim": 3, "maic_hidden_dim": 7, "maic_attention_dim": 5},
    "ndq": {"ndq_message_dim": 2, "ndq_hidden_dim": 7},
    "masia": {
        "masia_latent_dim": 3,
        "masia_attention_dim": 4,
        "masia_encoder_dim": 5,
        "masia_obs_dim": 7,
        "masia_hidden_dim": 7,
        "masia_projection_dim": 5,
        "masia_action_dim": 3,
    },
    "t2mac": {"t2mac_hidden_dim": 7},
    "cama": {
        "cama_parts": [2, 1, 2],
        "cama_embed_dim": 6,
        "cama_heads": 2,
        "cama_message_dim": 3,
    },
}
NOISE = 0.7  # what stands for every random number


def comm_args(alg, **settings):
    return make_args(alg, **{**SMALL.get(alg, {}), **settings})


def make_comm_batch(args):
    """`make_batch`; where an agent attends to entities, some of them are not there."""
    batch = make_batch(args)
    if "cama_parts" in vars(args):
        drawn = torch.rand(batch["obs"].shape[:3], generator=torch.Generator().manual_seed(0))
        batch.stored("obs")[..., :2] *= (drawn > 0.3).float().unsqueeze(-1)
        batch.changed("obs")
    return batch


def form_id(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


def gru(layer, x, h):
    weights = layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh
    return torch.gru_cell(x.unsqueeze(0), h.unsqueeze(0), *weights)[0]


def recurrent(agent, x, h):
    return gru(agent.rnn, agent.fc1(x).clamp(min=0), h)


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


class Slow:
    """The agents of one episode; `step` is one time step of all.

    Attributes:
        sent: numbers that passed between different agents in the last step.
        seen: of the last step, what losses read.
    """

    def __init__(self, mac, test=False):
        self.agent, self.args, self.test = mac.agent, mac.args, test
        self.h = [torch.zeros(self.args.rnn_hidden_dim) for _ in range(N_AGENTS)]
        width = {"qmix_comm": "encoder_hidden_dim", "masia": "masia_encoder_dim"}
        self.memory = None
        for key in width.values():
            if hasattr(self.args, key):
                self.memory = [torch.zeros(getattr(self.args, key)) for _ in range(N_AGENTS)]
        self.seen = {}

    def step(self, inputs):
        """inputs [A, F] -> utilities [A, U]."""
        kind = type(self.agent).__name__.removesuffix("Agent").lower()
        return torch.stack(getattr(self, kind)(list(inputs)))

    def remember(self, reads):
        self.h = [recurrent(self.agent, reads[i], self.h[i]) for i in range(N_AGENTS)]
        return [self.agent.fc2(h) for h in self.h]

    def fullcomm(self, inputs):
        everything = torch.cat([x[:OBS] for x in inputs])
        self.sent = N_AGENTS * (N_AGENTS - 1) * OBS
        return self.remember([torch.cat([everything, x[OBS:]]) for x in inputs])

    def latent(self, inputs):
        self.h = [recurrent(self.agent, inputs[i], self.h[i]) for i in range(N_AGENTS)]
        x = torch.cat(self.h)
        if self.args.encoder_type == "rnn":
            self.memory[0] = x = gru(self.agent.encoder.rnn, x, self.memory[0])
        first, _, second, _, third = self.agent.encoder.net
        z = third(second(first(x).clamp(min=0)).clamp(min=0))
        self.sent = N_AGENTS * (N_AGENTS - 1) * self.args.rnn_hidden_dim
        self.seen = {"z": z}
        if self.args.comm_merge == "concat":
            return [self.agent.fc2(torch.cat([h, z])) for h in self.h]
        return [self.agent.fc2(h + self.agent.fc_message(z)) for h in self.h]

    def maic(self, inputs):
        agent, args, d = self.agent, self.args, self.args.maic_latent_dim
        q = self.remember(inputs)
        z, means, variances, weights = {}, {}, {}, {}
        self.sent = 0
        added = [0.0] * N_AGENTS
        for i in range(N_AGENTS):
            numbers = agent.model(self.h[i])
            half = N_AGENTS * d
            for j in range(N_AGENTS):
                means[i, j] = numbers[j * d : (j + 1) * d]
                logs = numbers[half + j * d : half + (j + 1) * d]
                variances[i, j] = torch.stack(
                    [torch.maximum(x.exp(), torch.tensor(args.maic_least_variance)) for x in logs]
                )
                z[i, j] = means[i, j] + (0.0 if self.test else NOISE) * variances[i, j].sqrt()
            others = [j for j in range(N_AGENTS) if j != i]
            query = agent.query(self.h[i])
            scores = [
                float(query @ agent.key(z[i, j])) / math.sqrt(args.maic_attention_dim)
                for j in others
            ]
            for j, weight in zip(others, softmax(scores), strict=True):
                silent = self.test and weight < args.maic_gate / N_AGENTS
                weights[i, j] = 0.0 if silent else weight
                receiver = args.maic_speaker == "receiver"
                h = self.h[j] if receiver else self.h[i]
                added[j] = added[j] + weights[i, j] * agent.message(torch.cat([h, z[i, j]]))
                if not silent:
                    self.sent += 1 + d if receiver else N_ACTIONS
        self.seen = {"mean": means, "variance": variances, "z": z, "weights": weights}
        return [q[j] + added[j] for j in range(N_AGENTS)]

    def ndq(self, inputs):
        agent, args, d = self.agent, self.args, self.args.ndq_message_dim
        codes, means = {}, {}
        self.sent = 0
        for i in range(N_AGENTS):
            numbers = agent.encoder(inputs[i])
            for j in range(N_AGENTS):
                means[i, j] = numbers[j * d : (j + 1) * d]
                random = not self.test or not args.ndq_test_mean
                codes[i, j] = means[i, j] + (NOISE if random else 0.0)
                if i != j and self.test:
                    kept = (means[i, j].abs() >= args.ndq_cut).float()
                    codes[i, j] = codes[i, j] * kept
                    self.sent += int(kept.sum())
                elif i != j:
                    self.sent += d
        reads = [
            torch.cat([inputs[j], *(codes[i, j] for i in range(N_AGENTS))]) for j in range(N_AGENTS)
        ]
        self.seen = {"mean": means, "code": codes, "read": reads}
        return self.remember(reads)

    def masia(self, inputs):
        agent, args = self.agent, self.args
        n_index = N_AGENTS * args.obs_agent_id
        without = [x[: len(x) - n_index] for x in inputs]
        parts = []
        for i in range(N_AGENTS):
            query = agent.query(inputs[i])
            scores = [
                float(query @ agent.key(x)) / math.sqrt(args.masia_attention_dim) for x in inputs
            ]
            attended = sum(
                weight * agent.value(x) for weight, x in zip(softmax(scores), inputs, strict=True)
            )
            self.memory[i] = gru(agent.encoder_rnn, attended, self.memory[i])
            parts.append(agent.latent(self.memory[i]))
        z = torch.cat(parts)
        self.seen = {"z": z}
        self.sent = N_AGENTS * (N_AGENTS - 1) * len(without[0])
        return self.remember(
            [
                torch.cat(
                    [
                        agent.embedding(without[i]),
                        torch.sigmoid(agent.gate(inputs[i])) * z,
                        inputs[i][len(inputs[i]) - n_index :],
                    ]
                )
                for i in range(N_AGENTS)
            ]
        )

    def t2mac(self, inputs):
        agent, args = self.agent, self.args
        logits_of_own = self.remember(inputs)
        told, chosen, logits = {}, {}, {}
        self.sent = 0
        for i in range(N_AGENTS):
            numbers, links = (
                two_layers(agent.message, self.h[i]),
                two_layers(agent.selector, self.h[i]),
            )
            for j in range(N_AGENTS):
                told[i, j] = F.softplus(numbers[j * N_ACTIONS : (j + 1) * N_ACTIONS])
                logits[i, j] = links[j]
                probability = 1 / (1 + math.exp(-float(links[j])))
                chosen[i, j] = i != j and probability > args.t2mac_send_probability
                self.sent += N_ACTIONS * chosen[i, j]
        own = [F.softplus(logit) for logit in logits_of_own]
        self.seen = {"own": own, "told": told, "logits": logits}
        q = []
        for j in range(N_AGENTS):
            belief, doubt = opinion(own[j])
            for i in range(N_AGENTS):
                if chosen[i, j]:
                    belief, doubt = dempster(belief, doubt, *opinion(told[i, j]))
            fused = belief * N_ACTIONS / doubt
            w = args.t2mac_fusion_weight
            q.append((1 - w) * own[j] + w * fused)
        return q

    def cama(self, inputs):
        agent, args = self.agent, self.args
        n_index = N_AGENTS * args.obs_agent_id
        n_sent = len(inputs[0]) - n_index
        self.sent = (N_AGENTS - 1) * (n_sent + args.cama_message_dim)
        entities, there = {}, {}
        k = len(args.cama_parts)
        for i, x in enumerate(inputs):
            at = 0
            for p, size in enumerate(args.cama_parts):
                part = x[at : at + size]
                at += size
                padding = torch.zeros(max(args.cama_parts) - size)
                which = torch.tensor([float(p == m) for m in range(k)])
                last = x[OBS:n_sent] if p == k - 1 else torch.zeros(n_sent - OBS)
                entity = torch.cat([part, padding, which, last, x[n_sent:]])
                entities[i, p] = agent.embedding(entity).clamp(min=0)
                there[i, p] = bool(part.abs().sum() > 0)
        f, g, z, means, logs, added = [], [], [], [], [], []
        for i in range(N_AGENTS):
            own = [(i, p) for p in range(k) if there[i, p] or p == k - 1]
            kept = math.ceil(args.cama_keep * len(own))
            attended, rest = [], []
            for head in range(args.cama_heads):
                scores = {e: score(agent, head, entities[i, k - 1], entities[e]) for e in entities}
                best = sorted(own, key=lambda e, s=scores: s[e], reverse=True)[:kept]
                others = [e for e in entities if there[e] and e not in best]
                attended.append(head_of(agent, head, best, scores, entities))
                rest.append(head_of(agent, head, others, scores, entities))
            f.append(agent.attention.out(torch.cat(attended)))
            g.append(agent.attention.out(torch.cat(rest)))
            mean, log = slow_message(agent, f[i], g[i])
            means.append(mean)
            logs.append(log)
            z.append(mean if self.test else mean + NOISE * log.exp().sqrt())
            added.append(two_layers(agent.told, z[i]))
        self.seen = {"f": f, "g": g, "z": z, "mean": means, "log_variance": logs}
        self.h = [recurrent(agent, f[i], self.h[i]) for i in range(N_AGENTS)]
        return [agent.fc2(self.h[i]) + added[i] for i in range(N_AGENTS)]


def rows_of_head(agent, layer, head, x):
    size = agent.args.cama_embed_dim // agent.args.cama_heads
    return layer(x)[head * size : (head + 1) * size]


def score(agent, head, own, entity):
    query = rows_of_head(agent, agent.attention.queries, head, own)
    key = rows_of_head(agent, agent.attention.keys, head, entity)
    return float(query @ key) / math.sqrt(len(key))


def head_of(agent, head, attended, scores, entities):
    values = [rows_of_head(agent, agent.attention.values, head, entities[e]) for e in attended]
    if not values:
        return torch.zeros(agent.args.cama_embed_dim // agent.args.cama_heads)
    weights = softmax([scores[e] for e in attended])
    return sum(w * value for w, value in zip(weights, values, strict=True))


def slow_message(agent, f, g):
    """Mean and logarithm of the variance, which stays softly between -10 and 0.5."""
    both = torch.cat([f, g])
    logs = [0.5 - math.log1p(math.exp(0.5 - float(x))) for x in agent.log_variance(both)]
    logs = [-10 + math.log1p(math.exp(x + 10)) for x in logs]
    return agent.mean(both).tanh(), torch.tensor(logs)


def two_layers(network, x):
    return network[2](network[0](x).clamp(min=0))


def opinion(evidence):
    """Beliefs and uncertainty by evidence."""
    total = sum(float(e) + 1 for e in evidence)
    return evidence / total, len(evidence) / total


def dempster(b, u, b2, u2):
    """Two opinions as one: the products of what they agree on, without what they contradict."""
    n = len(b)
    conflict = sum(float(b[k] * b2[m]) for k in range(n) for m in range(n) if k != m)
    return (b * b2 + b * u2 + b2 * u) / (1 - conflict), u * u2 / (1 - conflict)


def inputs_at(mac, episode, t):
    return mac._build_inputs(episode, t).view(N_AGENTS, -1)


def slow_episode(mac, episode, n_steps, test=False):
    """Utilities [A, U] of every step, numbers sent in each, and what losses read."""
    slow = Slow(mac, test)
    q, sent, seen = [], [], []
    for t in range(n_steps):
        q.append(slow.step(inputs_at(mac, episode, t)))
        sent.append(slow.sent)
        seen.append({**slow.seen, "hidden": list(slow.h)})
    return q, sent, seen


def same_noise(monkeypatch):
    """Every random number of the messages is `NOISE`."""
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, NOISE))
