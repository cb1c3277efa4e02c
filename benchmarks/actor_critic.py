"""MAAC's update against a loop over agents and heads, on the sizes of Rover-Tower.

`LoopedMAAC` is MAAC as its authors' code computes it, written anew: a list of networks per agent,
one small product for each agent and head, the others' keys and values stacked for every agent. It
starts from copies of a learner's weights and has its losses and gradients
(`tests/learners/test_maac_learner.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.common import Table, in_turn, make_args, make_learner
from torch import Tensor, nn

from components.transitions import Transitions
from learners.base import make_optimiser
from utils.memory import keep_freed_memory

# Rover-Tower with four pairs: 4 rovers, 4 towers.
SIZES = {
    "n_agents": 8,
    "n_actions": 5,
    "obs_shape": 13,
    "state_shape": 92,
    "continuous_actions": False,
}
ENV_INFO = {"obs_sizes": (13,) * 4 + (8,) * 4, "action_sizes": (5,) * 8}
BATCH = 1024
LIMIT = 1 / 3
MAMT_LIMIT = 2.5


def rover_tower_args(algorithm: str = "maac", **overrides: Any) -> SimpleNamespace:
    """An algorithm's configuration for Rover-Tower."""
    return make_args(algorithm, **SIZES, env_info=ENV_INFO, **overrides)


def random_transitions(args: SimpleNamespace, n: int, seed: int = 0) -> Transitions:
    """n transitions of random numbers; all actions of an agent's own set are available."""
    rng = torch.Generator().manual_seed(seed)
    a, u, o = args.n_agents, args.n_actions, args.obs_shape
    seen = torch.arange(o) < torch.tensor(args.env_info["obs_sizes"]).unsqueeze(1)
    avail = (torch.arange(u) < torch.tensor(args.env_info["action_sizes"]).unsqueeze(1)).expand(
        n, -1, -1
    )
    entries = {
        "obs": torch.randn(n, a, o, generator=rng) * seen,
        "next_obs": torch.randn(n, a, o, generator=rng) * seen,
        "state": torch.randn(n, args.state_shape, generator=rng),
        "next_state": torch.randn(n, args.state_shape, generator=rng),
        "avail_actions": avail.to(torch.uint8),
        "next_avail_actions": avail.to(torch.uint8),
        "actions": (torch.rand(n, a, u, generator=rng) * avail).argmax(-1),
        "reward": torch.randn(n, a, generator=rng),
        "terminated": torch.zeros(n, 1),
    }
    return Transitions(entries, torch.zeros(a), torch.ones(a))


# -- the reference ---------------------------------------------------------------------------------


def _linear(layer: nn.Module, i: int, n_in: int, n_out: int) -> nn.Linear:
    """Agent i's part of a stacked layer, without padding."""
    single = nn.Linear(n_in, n_out)
    with torch.no_grad():
        single.weight.copy_(layer.weight[i, :n_out, :n_in])
        single.bias.copy_(layer.bias[i, :n_out])
    return single


def _network(norm_size: int, *layers: nn.Linear) -> nn.Sequential:
    """Batch norm, then the layers with LeakyReLU between them."""
    parts: list[nn.Module] = [nn.BatchNorm1d(norm_size, affine=False)]
    for layer in layers:
        parts += [layer, nn.LeakyReLU()]
    return nn.Sequential(*parts[:-1])


class LoopedCritic(nn.Module):
    """The attention critic of agents with discrete actions, agent by agent and head by head."""

    def __init__(self, critic: nn.Module, args: SimpleNamespace) -> None:
        super().__init__()
        self.obs_sizes, self.action_sizes = (
            args.env_info["obs_sizes"],
            args.env_info["action_sizes"],
        )
        width, heads = args.critic_hidden_dim, args.attention_heads
        self.d = d = width // heads
        self.encoders, self.state_encoders, self.last = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        for i, (o, u) in enumerate(zip(self.obs_sizes, self.action_sizes, strict=True)):
            both = _linear(critic.encoder, i, critic.encoder.weight.shape[-1], width)
            used = [*range(o), *range(args.obs_shape, args.obs_shape + u)]
            both.weight = nn.Parameter(both.weight.detach()[:, used].clone())
            self.encoders.append(
                nn.Sequential(nn.BatchNorm1d(o + u, affine=False), both, nn.LeakyReLU())
            )
            state = _linear(critic.state_encoder, i, o, width)
            self.state_encoders.append(
                nn.Sequential(nn.BatchNorm1d(o, affine=False), state, nn.LeakyReLU())
            )
            first, second = (
                _linear(critic.head1, i, 2 * width, width),
                _linear(critic.head2, i, width, u),
            )
            self.last.append(nn.Sequential(first, nn.LeakyReLU(), second))
        self.queries, self.keys, self.values = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            for own, stacked in ((self.queries, critic.query), (self.keys, critic.key)):
                own.append(nn.Linear(width, d, bias=False))
                own[head].weight.data.copy_(stacked.weight[part].detach())
            self.values.append(nn.Sequential(nn.Linear(width, d), nn.LeakyReLU()))
            self.values[head][0].weight.data.copy_(critic.value.weight[part].detach())
            self.values[head][0].bias.data.copy_(critic.value.bias[part].detach())

    def forward(
        self, obs: Sequence[Tensor], actions: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """For every agent values [N, U_i], and per head its unscaled logits [N, 1, A - 1]."""
        agents = range(len(obs))
        one_hot = [F.one_hot(actions[i], self.action_sizes[i]).float() for i in agents]
        s = [self.state_encoders[i](obs[i]) for i in agents]
        e = [self.encoders[i](torch.cat([obs[i], one_hot[i]], 1)) for i in agents]
        queries = [[query(x) for x in s] for query in self.queries]
        keys = [[key(x) for x in e] for key in self.keys]
        values = [[value(x) for x in e] for value in self.values]
        all_q, all_logits = [], []
        for i in agents:
            attended, logits_of = [], []
            for query, key, value in zip(queries, keys, values, strict=True):
                others_keys = torch.stack([key[j] for j in agents if j != i]).permute(1, 2, 0)
                others_values = torch.stack([value[j] for j in agents if j != i]).permute(1, 2, 0)
                logits = torch.matmul(query[i].unsqueeze(1), others_keys)
                weights = torch.softmax(logits / math.sqrt(self.d), dim=2)
                attended.append((others_values * weights).sum(2))
                logits_of.append(logits)
            all_q.append(self.last[i](torch.cat([*attended, s[i]], 1)))
            all_logits.append(logits_of)
        return all_q, all_logits

    def scale_shared_grads(self) -> None:
        """Divides the gradients of the shared matrices and of the encoders of the others by the
        number of agents.
        """
        for part in (self.queries, self.keys, self.values, self.encoders):
            for param in part.parameters():
                param.grad /= len(self.encoders)


class LoopedMAAC:
    """MAAC's update for discrete actions, agent by agent.

    Args:
        learner: a `MAACLearner`, whose weights are copied.
    """

    def __init__(self, learner: Any) -> None:
        self.args = args = learner.args
        self.critic, self.target_critic = (
            LoopedCritic(c, args) for c in (learner.critic, learner.target_critic)
        )
        self.policies, self.target_policies = (
            [self._policy(network, i) for i in range(args.n_agents)]
            for network in (learner.policy, learner.target_policy)
        )
        decayed = SimpleNamespace(**(vars(args) | {"weight_decay": args.critic_weight_decay}))
        self.critic_optimiser = make_optimiser(self.critic.parameters(), decayed)
        self.optimisers = [make_optimiser(policy.parameters(), args) for policy in self.policies]

    def _policy(self, network: nn.Module, i: int) -> nn.Sequential:
        o, u, width = (
            self.args.env_info["obs_sizes"][i],
            self.args.env_info["action_sizes"][i],
            network.fc2.bias.shape[1],
        )
        sizes = (("fc1", o, width), ("fc2", width, width), ("fc3", width, u))
        return _network(
            o, *(_linear(getattr(network, name), i, n_in, n_out) for name, n_in, n_out in sizes)
        )

    def train(
        self, batch: Transitions, next_actions: Tensor | None = None, actions: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One update.

        Args:
            next_actions, actions: [N, A], drawn from the target policies and the policies; None:
                draws them.

        Returns:
            The agents' critic and policy losses, without the penalties.
        """
        args, agents = self.args, range(self.args.n_agents)
        obs, next_obs = (
            [batch[name][:, i, : args.env_info["obs_sizes"][i]] for i in agents]
            for name in ("obs", "next_obs")
        )
        avail, next_avail = (
            [batch[name][:, i, : args.env_info["action_sizes"][i]] for i in agents]
            for name in ("avail_actions", "next_avail_actions")
        )
        rewards = batch.standardised_rewards() if args.standardise_rewards else batch["reward"]
        rewards = rewards.expand(-1, args.n_agents)
        taken = [batch["actions"][:, i] for i in agents]

        with torch.no_grad():
            log_pi = [
                _log_policy(self.target_policies[i](next_obs[i]), next_avail[i]) for i in agents
            ]
            drawn = _drawn(log_pi, next_actions)
            next_q, _ = self.target_critic(next_obs, drawn)
            targets = []
            for i in agents:
                soft = _pick(next_q[i], drawn[i]) - args.alpha_entropy * _pick(log_pi[i], drawn[i])
                targets.append(rewards[:, i] + args.gamma * (1 - batch["terminated"][:, 0]) * soft)
        all_q, all_logits = self.critic(obs, taken)
        critic_losses = [F.mse_loss(_pick(all_q[i], taken[i]), targets[i]) for i in agents]
        loss = sum(critic_losses)
        for logits_of in all_logits:
            loss = loss + args.attention_logit_penalty * sum(
                logits.pow(2).mean() for logits in logits_of
            )
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic.scale_shared_grads()
        nn.utils.clip_grad_norm_(
            self.critic.parameters(), args.critic_grad_norm_clip * args.n_agents
        )
        self.critic_optimiser.step()

        outputs = [self.policies[i](obs[i]) for i in agents]
        log_pi = [_log_policy(outputs[i], avail[i]) for i in agents]
        drawn = _drawn(log_pi, actions)
        with torch.no_grad():
            all_q, _ = self.critic(obs, drawn)
        policy_losses = []
        for i in agents:
            baseline = (log_pi[i].exp() * all_q[i]).sum(1)
            log_taken = _pick(log_pi[i], drawn[i])
            bracket = args.alpha_entropy * log_taken - (_pick(all_q[i], drawn[i]) - baseline)
            policy_losses.append((log_taken * bracket.detach()).mean())
            self.optimisers[i].zero_grad()
            (policy_losses[i] + args.policy_logit_penalty * outputs[i].pow(2).mean()).backward()
            nn.utils.clip_grad_norm_(self.policies[i].parameters(), args.policy_grad_norm_clip)
            self.optimisers[i].step()
        pairs = [
            (self.critic, self.target_critic),
            *zip(self.policies, self.target_policies, strict=True),
        ]
        with torch.no_grad():
            for online, target in pairs:
                for new, old in zip(online.parameters(), target.parameters(), strict=True):
                    old.lerp_(new, args.target_tau)
        return critic_losses, policy_losses


def _log_policy(logits: Tensor, avail: Tensor) -> Tensor:
    return torch.log_softmax(logits.masked_fill(avail == 0, torch.finfo(logits.dtype).min), dim=1)


def _drawn(log_pi: list[Tensor], given: Tensor | None) -> list[Tensor]:
    if given is not None:
        return list(given.unbind(1))
    return [torch.multinomial(log_probs.detach().exp(), 1).squeeze(1) for log_probs in log_pi]


def _pick(values: Tensor, actions: Tensor) -> Tensor:
    return values.gather(1, actions.unsqueeze(1)).squeeze(1)


# -- the tables ------------------------------------------------------------------------------------


def update(algorithm: str, **overrides: Any) -> Callable[[], Callable[[], None]]:
    """For `in_turn`: one update of an algorithm on Rover-Tower's sizes."""
    args = rover_tower_args(algorithm, **overrides)
    learner, batch = make_learner(args), random_transitions(args, BATCH)
    return lambda: lambda: learner.train(batch, 0, 0)


def looped_update() -> Callable[[], Callable[[], None]]:
    """For `in_turn`: one update of the reference."""
    args = rover_tower_args()
    reference, batch = LoopedMAAC(make_learner(args)), random_transitions(args, BATCH)
    return lambda: lambda: reference.train(batch)


def run(quick: bool) -> list[Table]:
    """One table, one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    repetitions = 3 if quick else 15
    table = Table(
        "actor_critic",
        f"Actor-critic update, Rover-Tower's sizes (8 agents), {BATCH} transitions, CPU, one "
        "thread",
        ("update", "time [ms]", "compared with", "time [ms]", "ratio", "target"),
        note="In turn in one process; in brackets the quartiles of neighbouring runs' ratios. The "
        "loop over the agents "
        "has the same networks, losses and optimisers. Of a batch, MAMT's trust regions see "
        "`trust_region_batch_size`.",
    )
    result = in_turn(update("maac"), looped_update(), repetitions)
    table.add(
        "MAAC",
        f"{result.ours:.0f}",
        "loop over the agents",
        f"{result.theirs:.0f}",
        str(result),
        f"<= {LIMIT:.2f}",
    )
    for label, algorithm, target in (
        ("MAMT", "mamt", f"<= {MAMT_LIMIT:.2f}"),
        ("MAMD", "mamd", "-"),
    ):
        result = in_turn(update(algorithm), update("maac"), repetitions)
        table.add(label, f"{result.ours:.0f}", "MAAC", f"{result.theirs:.0f}", str(result), target)
    return [table]
