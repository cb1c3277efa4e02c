"""The losses of agents that talk, against plain loops over episodes, steps and agents; whom their
gradients reach.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from comm_fixtures import (
    comm_args,
    dempster,
    make_comm_batch,
    opinion,
    same_noise,
    slow_episode,
    slow_message,
    two_layers,
)
from learner_fixtures import (
    LENGTHS,
    N_AGENTS,
    STATE,
    greedy_action,
    make_batch,
    make_learner,
    taken_actions,
    weights_of,
)

from learners.auxiliary import REGISTRY, AuxiliaryLoss
from learners.replayed import ReplayedSteps
from utils.errors import ConfigError

# algorithm -> the loss's weights for the tests, so large that no error hides
WEIGHTS = {
    "qmix_comm": {},
    "maic": {"maic_mi_weight": 0.7, "maic_entropy_weight": 1.3},
    "ndq": {"ndq_weight": 0.9, "ndq_beta": 0.6, "ndq_entropy_weight": 0.4},
    "masia": {
        "masia_weight": 0.9,
        "masia_prediction_weight": 0.7,
        "masia_reward_weight": 1.2,
    },
    "t2mac": {"t2mac_selector_weight": 1.4, "t2mac_least_gain": 0.15},
    "cama": {
        "cama_inverse_weight": 0.8,
        "cama_information_weight": 0.7,
        "cama_beta": 0.3,
        "cama_entropy_weight": 0.9,
    },
}
algorithms = pytest.mark.parametrize("alg", WEIGHTS)


def learner_and_batch(alg, seed=0, **settings):
    args = comm_args(alg, **{**WEIGHTS[alg], **settings})
    learner, log = make_learner(args, seed)
    with torch.no_grad():
        for param in learner.mac.parameters():
            param.mul_(2.0)
    return learner, log, make_comm_batch(args)


def fast_losses(learner, batch, per_weight=None):
    rows = ReplayedSteps.of(batch, learner.mac, per_weight)
    online = rows.talk(learner.mac)
    with torch.no_grad():
        target = rows.talk(learner.target_mac)
    return learner.auxiliary.losses(rows, online, target)


class Means:
    """Weighted sums over their numbers, by name."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, name, value, weight=1.0):
        self.sums[name] = self.sums.get(name, 0.0) + weight * value
        self.counts[name] = self.counts.get(name, 0) + 1

    def __getitem__(self, name):
        return self.sums[name] / self.counts[name]


def slow_losses(learner, batch, per_weight=None):
    means = Means()
    if learner.args.auxiliary_loss == "cama":
        return cama(learner, batch, per_weight)
    kind = {"state": state, "maic": maic, "ndq": ndq, "masia": masia, "t2mac": t2mac}
    alg = learner.args.auxiliary_loss
    for b, length in enumerate(LENGTHS):
        episode = batch[b : b + 1]
        weight = 1.0 if per_weight is None else float(per_weight[b])
        online = slow_episode(learner.mac, episode, length)
        target = slow_episode(learner.target_mac, episode, length)
        kind[alg](learner, episode, online, target, means, weight)
    args = learner.args
    if alg == "masia":
        horizon = range(args.masia_horizon + 1)
        return {
            "state_loss": args.masia_weight * means["state"],
            "prediction_loss": args.masia_weight
            * args.masia_prediction_weight
            * sum(means["prediction", k] for k in horizon),
            "reward_loss": args.masia_weight
            * args.masia_reward_weight
            * sum(means["reward", k] for k in horizon),
        }
    return {name: means[name] for name in means.sums}


def squares(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def state(learner, episode, online, target, means, weight):
    q, _, seen = online
    decoder = learner.auxiliary.decoder
    for t in range(len(q) - 1):
        made = decoder.state(decoder.hidden(seen[t]["z"]).clamp(min=0))
        means.add("state_loss", squares(made, episode["state"][0, t]) / STATE, weight)


def maic(learner, episode, online, target, means, weight):
    q, _, seen = online
    args, loss = learner.args, learner.auxiliary
    d = args.maic_latent_dim
    for t in range(len(q) - 1):
        greedy = greedy_action(q[t], episode["avail_actions"][0, t])
        divergence, entropy = 0.0, 0.0
        for i in range(N_AGENTS):
            for j in range(N_AGENTS):
                if i == j:
                    continue
                one_hot = F.one_hot(torch.tensor(greedy[j]), args.n_actions).float()
                inferred = loss.posterior(torch.cat([seen[t]["hidden"][i], one_hot]))
                for k in range(d):
                    m, v = seen[t]["mean"][i, j][k], seen[t]["variance"][i, j][k]
                    floor = torch.tensor(args.maic_least_variance)
                    m2, v2 = inferred[k], torch.maximum(inferred[d + k].exp(), floor)
                    divergence += 0.5 * ((v2 / v).log() + (v + (m - m2) ** 2) / v2 - 1)
                w = seen[t]["weights"][i, j]
                entropy -= w * math.log2(w)
        pairs = N_AGENTS * (N_AGENTS - 1)
        means.add("mi_loss", args.maic_mi_weight * divergence / pairs, weight)
        means.add("entropy_loss", args.maic_entropy_weight * entropy / N_AGENTS, weight)


def ndq(learner, episode, online, target, means, weight):
    q, _, seen = online
    args, loss = learner.args, learner.auxiliary
    for t in range(len(q) - 1):
        greedy = greedy_action(target[0][t], episode["avail_actions"][0, t])
        surprise, compact, entropy = 0.0, 0.0, 0.0
        for j in range(N_AGENTS):
            powers = loss.inference(seen[t]["read"][j]).exp()
            surprise -= (powers[greedy[j]] / powers.sum()).log()
            for i in range(N_AGENTS):
                for mu, m in zip(seen[t]["mean"][i, j], seen[t]["code"][i, j], strict=True):
                    compact += mu**2 / 2
                    entropy -= math.log(math.exp(-(float(m) ** 2) / 2) / math.sqrt(2 * math.pi))
        means.add("expressiveness_loss", args.ndq_weight * surprise, weight)
        means.add("compactness_loss", args.ndq_weight * args.ndq_beta * compact, weight)
        means.add("entropy_loss", args.ndq_weight * args.ndq_entropy_weight * entropy, weight)


def masia(learner, episode, online, target, means, weight):
    q, _, seen = online
    args, loss = learner.args, learner.auxiliary
    n = len(q)
    for t in range(n):
        z = seen[t]["z"]
        means.add("state", squares(loss.decoder(z), episode["state"][0, t]) / STATE, weight)
        for k in range(args.masia_horizon + 1):
            if t + k >= n:
                break
            if k > 0:
                model, taken = loss.model, taken_actions(episode, t + k - 1)
                actions = [
                    model.action.weight[:, u] + model.action.bias for u in taken
                ]  # of one-hot vectors
                by_action = two_layers(model.of_actions, torch.cat(actions).clamp(min=0))
                both = torch.cat([two_layers(model.of_latent, z), by_action])
                z = z + two_layers(model.of_both, both)
            made = two_layers(loss.predictor, two_layers(loss.projection, z))
            wanted = two_layers(loss.target_projection, target[2][t + k]["z"])
            means.add(("prediction", k), squares(made, wanted), weight)
            if t + k < n - 1:
                reward = episode["reward"][0, t + k, 0]
                means.add(("reward", k), (two_layers(loss.reward, z)[0] - reward) ** 2, weight)


def t2mac(learner, episode, online, target, means, weight):
    q, _, seen = online
    args = learner.args
    for t in range(len(q) - 1):
        total, own = 0.0, seen[t]["own"]
        for i in range(N_AGENTS):
            for j in range(N_AGENTS):
                if i == j:
                    continue
                belief, doubt = opinion(own[j])
                _, less = dempster(belief, doubt, *opinion(seen[t]["told"][i, j]))
                probability = 1 / (1 + math.exp(-float(seen[t]["logits"][i, j])))
                worth = doubt - less > args.t2mac_least_gain
                total -= math.log(probability if worth else 1 - probability)
                WORTH.append(worth)
        pairs = N_AGENTS * (N_AGENTS - 1)
        means.add("selector_loss", args.t2mac_selector_weight * total / pairs, weight)


def slow_log_density(z, mean, log_variance):
    total = 0.0
    for x, m, v in zip(z.tolist(), mean.tolist(), log_variance.tolist(), strict=True):
        density = math.exp(-((x - m) ** 2) / (2 * math.exp(v))) / math.sqrt(2 * math.pi)
        total += math.log(density / math.exp(v / 2))
    return total


def cama(learner, batch, per_weight):
    """The messages of all episodes, and of each step those of all that reach the next one."""
    args, loss, means, choices = learner.args, learner.auxiliary, Means(), 0
    weights = [1.0] * len(LENGTHS) if per_weight is None else per_weight.tolist()
    seen = [slow_episode(learner.mac, batch[b : b + 1], n)[2] for b, n in enumerate(LENGTHS)]
    inverse = 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length - 1):
            taken = taken_actions(batch[b : b + 1], t)
            for i in range(N_AGENTS):
                now, after = seen[b][t], seen[b][t + 1]
                powers = two_layers(loss.inverse, torch.cat([now["f"][i], after["f"][i]])).exp()
                if batch["avail_actions"][b, t, i].sum() > 1:
                    choices += 1
                    inverse -= weights[b] * math.log(powers[taken[i]] / powers.sum())
                entropy = sum(
                    0.5 * math.log(2 * math.pi * math.e * math.exp(v))
                    for v in now["log_variance"][i].tolist()
                )
                means.add("entropy", -entropy, weights[b])
    assert 0 < choices < means.counts["entropy"]
    # The rows in the order in which they are computed: by step, then by length.
    order = sorted(range(len(LENGTHS)), key=lambda b: -LENGTHS[b])
    rows = [
        (b, t, i)
        for t in range(max(LENGTHS))
        for b in order
        if t < LENGTHS[b] - 1
        for i in range(N_AGENTS)
    ]
    at = {row: seen[row[0]][row[1]] for row in rows}
    for number, (b, t, i) in enumerate(rows):
        other = rows[len(rows) - 1 - number]  # the shuffle of the test: all in reverse
        f, g = at[other]["f"][other[2]], at[b, t, i]["g"][i]
        mean, log_variance = (at[b, t, i][key][i] for key in ("mean", "log_variance"))
        m2, v2 = slow_message(learner.mac.agent, f, g)
        divergence = 0.0
        for k in range(args.cama_message_dim):
            v, w2 = math.exp(log_variance[k]), math.exp(v2[k])
            divergence += 0.5 * (math.log(w2 / v) + (v + (mean[k] - m2[k]) ** 2) / w2 - 1)
        means.add("redundancy", divergence, weights[b])
    bounds = []
    for t in range(max(LENGTHS) - 1):
        here = [row for row in rows if row[1] == t]
        total = 0.0
        for b, _, i in here:
            under = [
                math.exp(
                    slow_log_density(
                        at[b, t, i]["z"][i],
                        at[row]["mean"][row[2]],
                        at[row]["log_variance"][row[2]],
                    )
                )
                for row in here
            ]
            own = under[here.index((b, t, i))]
            total += weights[b] * math.log(len(here) * own / sum(under))
        bounds.append(total / len(here))
    w = args.cama_information_weight
    return {
        "inverse_loss": args.cama_inverse_weight * inverse / choices,
        "redundancy_loss": w * means["redundancy"],
        "distinction_loss": -w * (1 - args.cama_beta) * sum(bounds) / len(bounds),
        "message_entropy_loss": args.cama_entropy_weight * means["entropy"],
    }


WORTH = []  # what the labels were


@algorithms
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(alg, weighted, monkeypatch):
    learner, _, batch = learner_and_batch(alg)
    same_noise(monkeypatch)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n).flip(0))
    per_weight = torch.tensor([0.5, 1.0, 0.2, 0.9, 0.7]) if weighted else None
    with torch.no_grad():
        fast = fast_losses(learner, batch, per_weight)
        slow = slow_losses(learner, batch, per_weight)
    assert fast.keys() == slow.keys()
    for name, value in slow.items():
        assert float(fast[name]) == pytest.approx(float(value), rel=2e-4), name
        assert abs(float(value)) > 1e-2, name
    if alg == "t2mac":
        assert 0.1 < sum(WORTH) / len(WORTH) < 0.9


# loss -> the networks that its gradient reaches; of a controller's agent by the parameters' names
HEARD = {"fc1", "rnn", "fc2"}
ENCODER = {"query", "key", "value", "encoder_rnn", "latent"}
REACHED = {
    "qmix_comm": {"state_loss": {"encoder", "decoder"}},
    "maic": {"mi_loss": {"fc1", "rnn", "model", "posterior"}, "entropy_loss": {"query", "key"}},
    "ndq": {
        "expressiveness_loss": {"encoder", "inference"},
        "compactness_loss": {"encoder"},
        "entropy_loss": {"encoder"},
    },
    "masia": {
        "state_loss": {*ENCODER, "decoder"},
        "prediction_loss": {*ENCODER, "projection", "predictor", "latent_model"},
        "reward_loss": {*ENCODER, "reward", "latent_model"},
    },
    "t2mac": {"selector_loss": {"selector"}},
    "cama": {
        "inverse_loss": {"embedding", "attention", "inverse"},
        "redundancy_loss": {"embedding", "attention", "mean", "log_variance"},
        "distinction_loss": {"embedding", "attention", "mean", "log_variance"},
        "message_entropy_loss": {"embedding", "attention", "log_variance"},
    },
}


@algorithms
def test_whom_gradients_reach(alg):
    learner, _, batch = learner_and_batch(alg)
    for name, loss in fast_losses(learner, batch).items():
        learner.optimiser.zero_grad()
        loss.backward(retain_graph=True)
        reached = set()
        own = [(key.split(".")[0], param) for key, param in learner.mac.agent.named_parameters()]
        others = [
            (key, param)
            for key, network in {**learner.modules, "mixer": learner.mixer}.items()
            for param in network.parameters()
        ]
        for key, param in [*own, *others]:
            if param.grad is not None and param.grad.abs().max() > 0:
                assert torch.isfinite(param.grad).all()
                reached.add(key)
        assert reached == REACHED[alg][name], name
        for _, target in learner.targets:
            assert all(param.grad is None for param in target.parameters())


@algorithms
def test_what_is_minimised(alg, monkeypatch):
    """The TD loss and the auxiliary ones; all of the controller and of the losses' networks is
    trained.
    """
    learner, log, batch = learner_and_batch(alg)
    same_noise(monkeypatch)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n).flip(0))
    with torch.no_grad():
        losses = learner.losses_of(batch, None)
        extra = fast_losses(learner, batch)
        auxiliary, learner.auxiliary = learner.auxiliary, None
        td = learner.losses_of(batch, None)
        learner.auxiliary = auxiliary
    assert float(losses.loss) == pytest.approx(float(td.loss + sum(extra.values())), rel=1e-5)
    before = weights_of(learner)
    learner.train(batch, t_env=0, episode_num=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights_of(learner), strict=True))
    assert log.stats["loss_td"][0][0] == pytest.approx(float(td.loss), rel=1e-5)
    for name, value in extra.items():
        assert log.stats[name][0][0] == pytest.approx(float(value), rel=1e-5)


def test_targets_are_copied_together():
    learner, _, _ = learner_and_batch("masia")
    loss = learner.auxiliary
    assert not torch.equal(loss.target_projection[0].weight, loss.projection[0].weight)
    learner.update_targets()
    assert torch.equal(loss.target_projection[0].weight, loss.projection[0].weight)
    assert not any(param.requires_grad for param in loss.target_projection.parameters())


def test_who_shares_an_update_among_threads():
    """Not where numbers are drawn, nor where the loss is no mean over transitions."""
    shared = {}
    for alg in ("qmix", "fullcomm", *WEIGHTS):
        learner, _ = make_learner(comm_args(alg, learner_threads=4))
        shared[alg] = learner.shares_updates
        assert learner.threads == (4 if learner.shares_updates else 1)
    assert shared == {
        "qmix": True,
        "fullcomm": True,
        "qmix_comm": True,
        "maic": False,
        "ndq": False,
        "masia": False,
        "t2mac": True,
        "cama": False,
    }


def test_the_last_steps_of_short_episodes_have_nothing_to_predict():
    args = comm_args("masia")
    learner, _ = make_learner(args)
    losses = fast_losses(learner, make_batch(args, (2, 2), (True, False)))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_loss_that_does_not_fit():
    with pytest.raises(ConfigError, match="needs agent=ndq_rnn, got agent=maic_rnn"):
        make_learner(comm_args("maic", auxiliary_loss="ndq"))
    with pytest.raises(ConfigError, match="needs mac=comm_mac, got mac=n_mac"):
        make_learner(comm_args("ndq", mac="n_mac"))
    for alg in ("ow_qmix", "i2q"):
        with pytest.raises(ConfigError, match="has losses of its own: set auxiliary_loss=null"):
            make_learner(comm_args(alg, auxiliary_loss="state"))


class Small(AuxiliaryLoss):
    """A loss of one's own: the size of all messages."""

    def losses(self, rows, online, target):
        sizes = online.said.messages[rows.steps.cur].pow(2)
        return {"size_loss": 0.1 * rows.mean(sizes.flatten(1))}


def test_a_loss_of_ones_own(monkeypatch):
    monkeypatch.setitem(REGISTRY, "small", Small)
    args = comm_args("maic", auxiliary_loss="small")
    learner, log = make_learner(args)
    learner.train(make_batch(args), t_env=0, episode_num=1)
    assert log.stats["size_loss"][0][0] > 0
