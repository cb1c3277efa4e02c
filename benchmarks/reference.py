"""QMIX as PyMARL2 computes it, to compare with: dense padded batches, one network call per time
step.

Every step of every episode is computed, padding included; inputs are concatenated anew at each
step, once for the online and once for the target network; the mixers run over all [B, T];
TD(lambda) is a loop over time from the batch's last column. Parameters have the names and shapes of
this project's `RNNAgent` and `Mixer`, so weights can be copied.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dense_batch(batch) -> dict[str, Tensor]:
    """An `EpisodeBatch` as PyMARL stores it: one-hot actions beside int64 ones, masks int32 and
    int64.
    """
    keys = (
        "obs",
        "state",
        "actions",
        "actions_onehot",
        "avail_actions",
        "reward",
        "terminated",
        "filled",
    )
    types = {"actions_onehot": torch.float32, "avail_actions": torch.int32, "filled": torch.int64}
    return {key: batch[key].to(types.get(key, batch[key].dtype)).contiguous() for key in keys}


class Agent(nn.Module):
    """Linear, ReLU, GRU cell, linear, on one time step."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_in, n_hidden)
        self.rnn = nn.GRUCell(n_hidden, n_hidden)
        self.fc2 = nn.Linear(n_hidden, n_out)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """inputs [B, A, F], hidden [B, A, H] -> ([B, A, U], [B, A, H])."""
        b, a, f = inputs.shape
        x = F.relu(self.fc1(inputs.reshape(b * a, f)))
        h = self.rnn(x, hidden.reshape(b * a, -1))
        return self.fc2(h).view(b, a, -1), h.view(b, a, -1)


class Controller:
    """Acts and is trained step by step."""

    def __init__(self, args: SimpleNamespace) -> None:
        self.args = args
        self.agent = Agent(
            args.obs_shape + args.n_actions + args.n_agents, args.rnn_hidden_dim, args.n_actions
        )

    def init_hidden(self, batch_size: int) -> None:
        """Zero hidden states [B, A, H]."""
        zero = self.agent.fc1.weight.new_zeros(1, self.args.rnn_hidden_dim)
        self.hidden = zero.unsqueeze(0).expand(batch_size, self.args.n_agents, -1)

    def forward(self, batch, t: int) -> Tensor:
        """Values of step t, [B, A, U]."""
        values, self.hidden = self.agent(self._build_inputs(batch, t), self.hidden)
        return values

    def _build_inputs(self, batch, t: int) -> Tensor:
        """[B, A, F]: observation, last action (one-hot), number of the agent (one-hot)."""
        obs = batch["obs"][:, t]
        b, a = obs.shape[:2]
        one_hot = batch["actions_onehot"]
        last = torch.zeros_like(one_hot[:, t]) if t == 0 else one_hot[:, t - 1]
        ids = torch.eye(a, device=obs.device).unsqueeze(0).expand(b, -1, -1)
        return torch.cat([part.reshape(b * a, -1) for part in (obs, last, ids)], dim=1).view(
            b, a, -1
        )


class Mixer(nn.Module):
    """QMIX's mixing network with two-layer hypernetworks, by batched matrix products."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.n_agents, self.embed = args.n_agents, args.mixing_embed_dim
        s, wide, e = args.state_shape, args.hypernet_embed, args.mixing_embed_dim
        self.hyper_w1 = nn.Sequential(
            nn.Linear(s, wide), nn.ReLU(), nn.Linear(wide, self.n_agents * e)
        )
        self.hyper_b1 = nn.Sequential(nn.Linear(s, e))
        self.hyper_w2 = nn.Sequential(nn.Linear(s, wide), nn.ReLU(), nn.Linear(wide, e))
        self.hyper_b2 = nn.Sequential(nn.Linear(s, e), nn.ReLU(), nn.Linear(e, 1))

    def forward(self, qvals: Tensor, states: Tensor) -> Tensor:
        """qvals [B, T, A], states [B, T, S] -> [B, T, 1]."""
        b, t = qvals.shape[:2]
        q = qvals.reshape(b * t, 1, self.n_agents)
        s = states.reshape(b * t, -1)
        w1 = self.hyper_w1(s).view(-1, self.n_agents, self.embed).abs()
        b1 = self.hyper_b1(s).view(-1, 1, self.embed)
        w2 = self.hyper_w2(s).view(-1, self.embed, 1).abs()
        b2 = self.hyper_b2(s).view(-1, 1, 1)
        hidden = F.elu(torch.matmul(q, w1) + b1)
        return (torch.matmul(hidden, w2) + b2).view(b, t, 1)


def td_lambda_targets(rewards, terminated, mask, target_qs, gamma: float, lam: float) -> Tensor:
    """[B, T - 1, 1] from target_qs [B, T, 1]: backwards from the last column, wherever an episode
    ends.
    """
    returns = torch.zeros_like(target_qs)
    returns[:, -1] = target_qs[:, -1] * (1 - terminated.sum(dim=1))
    for t in reversed(range(returns.shape[1] - 1)):
        one_step = rewards[:, t] + (1 - lam) * gamma * target_qs[:, t + 1] * (1 - terminated[:, t])
        returns[:, t] = lam * gamma * returns[:, t + 1] + mask[:, t] * one_step
    return returns[:, :-1]


class QMIX:
    """Online and target networks, Adam, and the update.

    Args:
        args: as a run's (`algs/qmix.yaml`).
        learner: a `QLearner` with QMIX's mixer whose online and target weights are copied.
    """

    def __init__(self, args: SimpleNamespace, learner) -> None:
        self.args = args
        self.mac, self.mixer = Controller(args), Mixer(args)
        self.mac.agent.load_state_dict(learner.mac.agent.state_dict())
        self.mixer.load_state_dict(learner.mixer.state_dict())
        self.target_mac, self.target_mixer = copy.deepcopy(self.mac), copy.deepcopy(self.mixer)
        self.target_mac.agent.load_state_dict(learner.target_mac.agent.state_dict())
        self.target_mixer.load_state_dict(learner.target_mixer.state_dict())
        device = next(learner.mixer.parameters()).device
        for network in (self.mac.agent, self.mixer, self.target_mac.agent, self.target_mixer):
            network.to(device)
        self.params = [*self.mac.agent.parameters(), *self.mixer.parameters()]
        self.optimiser = torch.optim.Adam(self.params, lr=args.lr, eps=args.adam_eps)

    @staticmethod
    def unroll(mac: Controller, batch: dict[str, Tensor]) -> Tensor:
        """[B, T, A, U]."""
        b, t_max = batch["filled"].shape[:2]
        mac.init_hidden(b)
        return torch.stack([mac.forward(batch, t) for t in range(t_max)], dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Half the mean squared TD error over all transitions."""
        args = self.args
        terminated = batch["terminated"][:, :-1].float()
        mask = batch["filled"][:, :-1].float()
        mask[:, 1:] = mask[:, 1:] * (1 - terminated[:, :-1])

        values = self.unroll(self.mac, batch)
        taken = values[:, :-1].gather(3, batch["actions"][:, :-1]).squeeze(3)
        with torch.no_grad():
            target_values = self.unroll(self.target_mac, batch)
            scores = values.detach().clone()
            scores[batch["avail_actions"] == 0] = -9999999
            greedy = scores.max(dim=3, keepdim=True)[1]
            target_max = target_values.gather(3, greedy).squeeze(3)
            target_max = self.target_mixer(target_max, batch["state"])
            targets = td_lambda_targets(
                batch["reward"][:, :-1], terminated, mask, target_max, args.gamma, args.td_lambda
            )
        error = self.mixer(taken, batch["state"][:, :-1]) - targets
        mask = mask.expand_as(error)
        return (0.5 * error.pow(2) * mask).sum() / mask.sum()

    def train(self, batch: dict[str, Tensor]) -> Tensor:
        """One update; returns the loss before it."""
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.args.grad_norm_clip)
        self.optimiser.step()
        return loss.detach()


class EpisodeBatch:
    """PyMARL's way to store a running episode: every `update` makes tensors from lists of arrays,
    key by key.

    Args:
        args: sizes.
        batch_size: B.
        max_steps: T.
    """

    def __init__(self, args: SimpleNamespace, batch_size: int, max_steps: int) -> None:
        a, u = args.n_agents, args.n_actions
        shapes = {
            "state": ((args.state_shape,), torch.float32),
            "obs": ((a, args.obs_shape), torch.float32),
            "actions": ((a, 1), torch.int64),
            "avail_actions": ((a, u), torch.int32),
            "probs": ((a, u), torch.float32),
            "reward": ((1,), torch.float32),
            "terminated": ((1,), torch.uint8),
            "actions_onehot": ((a, u), torch.float32),
            "filled": ((1,), torch.int64),
        }
        self.n_actions = u
        self.data = {
            key: torch.zeros((batch_size, max_steps, *shape), dtype=dtype)
            for key, (shape, dtype) in shapes.items()
        }

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]

    def update(self, data, t: int, bs=slice(None), mark_filled: bool = True) -> None:
        """Writes step t of the episodes `bs`."""
        where = (bs, slice(t, t + 1))
        if mark_filled:
            self.data["filled"][where] = 1
        for key, value in data.items():
            target = self.data[key]
            value = torch.tensor(value, dtype=target.dtype)
            target[where] = value.view_as(target[where])
            if key == "actions":
                one_hot = self.data["actions_onehot"]
                chosen = target[where]
                zeros = chosen.new_zeros(*chosen.shape[:-1], self.n_actions)
                one_hot[where] = (
                    zeros.scatter_(-1, chosen.long(), 1).float().view_as(one_hot[where])
                )

    def nbytes_per_step(self) -> float:
        """Stored bytes per time step of one episode."""
        return sum(value.element_size() * value[0, 0].numel() for value in self.data.values())


def select_actions(mac: Controller, batch: EpisodeBatch, t: int, epsilon: float) -> Tensor:
    """Epsilon-greedy actions [B, A] of step t."""
    avail = batch["avail_actions"][:, t]
    values = mac.forward(batch, t).clone()
    values[avail == 0] = -float("inf")
    explore = (torch.rand_like(values[:, :, 0]) < epsilon).long()
    random = torch.distributions.Categorical(avail.float()).sample().long()
    return explore * random + (1 - explore) * values.max(dim=2)[1]


@torch.no_grad()
def run_episode(env, mac: Controller, args: SimpleNamespace, epsilon: float = 0.05) -> int:
    """One episode of one environment, stored step by step; returns its length."""
    batch = EpisodeBatch(args, 1, args.episode_limit + 1)
    env.reset()
    mac.init_hidden(1)
    ended, t, episode_return = False, 0, 0.0

    def observe() -> None:
        seen = {
            "state": [env.get_state()],
            "avail_actions": [env.get_avail_actions()],
            "obs": [env.get_obs()],
        }
        batch.update(seen, t)

    while not ended:
        observe()
        actions = select_actions(mac, batch, t, epsilon)
        reward, ended, info = env.step(actions[0].numpy())
        episode_return += reward
        over = ended and not info.get("episode_limit", False)
        batch.update(
            {"actions": actions.numpy(), "reward": [(reward,)], "terminated": [(over,)]},
            t,
            mark_filled=False,
        )
        t += 1
    observe()
    actions = select_actions(mac, batch, t, epsilon)
    batch.update({"actions": actions.numpy()}, t, mark_filled=False)
    return t
