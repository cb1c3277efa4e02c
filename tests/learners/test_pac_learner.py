"""PAC against plain loops over episodes, steps, agents and joint actions."""

import copy
import itertools
import math

import pytest
import torch
from comm_fixtures import same_noise, slow_episode
from learner_fixtures import (
    LENGTHS,
    N_ACTIONS,
    N_AGENTS,
    assert_same_gradients,
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    make_mac,
    step_outputs,
    taken_actions,
    td_lambda_returns,
    weights_of,
)

from learners.pac_learner import Temperature
from learners.replayed import ReplayedSteps
from utils.errors import ConfigError

# Weights of the codes' losses so large that no error hides.
CODES = {
    "ndq_message_dim": 2,
    "ndq_hidden_dim": 7,
    "ndq_weight": 0.9,
    "ndq_beta": 0.6,
    "ndq_entropy_weight": 0.4,
}


def pac_args(**settings):
    return make_args("pac", **{**CODES, "w": 0.3, "pac_alpha": 0.6, **settings})


def learner_and_batch(monkeypatch, lengths=LENGTHS, **settings):
    learner, log = make_learner(pac_args(**settings))
    with torch.no_grad():  # so that policies differ, and some logits are cut
        for param in [*learner.mac.parameters(), *learner.critic.parameters()]:
            param.mul_(3.0)
    same_noise(monkeypatch)
    ended = (True, False, False, True, False)[: len(lengths)]
    return learner, log, make_batch(learner.args, lengths, ended)


def slow_policy(learner, episode, n_steps):
    """Probabilities [A, U] of every step, logits cut and unavailable actions left out by hand."""
    agent, low, high = learner.mac.agent, learner.args.logit_min, learner.args.logit_max
    h = [torch.zeros(learner.args.rnn_hidden_dim) for _ in range(N_AGENTS)]
    steps, cut = [], 0
    for t in range(n_steps):
        inputs = learner.mac._build_inputs(episode, t).view(N_AGENTS, -1)
        rows = []
        for i in range(N_AGENTS):
            x = agent.fc1(inputs[i]).clamp(min=0)
            weights = (agent.rnn.weight_ih, agent.rnn.weight_hh)
            biases = (agent.rnn.bias_ih, agent.rnn.bias_hh)
            h[i] = torch.gru_cell(x.unsqueeze(0), h[i].unsqueeze(0), *weights, *biases)[0]
            logits = agent.fc2(h[i])
            cut += int(((logits < low) | (logits > high)).sum())
            powers = logits.clamp(low, high).exp() * episode["avail_actions"][0, t, i]
            rows.append(powers / powers.sum() if powers.sum() > 0 else powers)
        steps.append(torch.stack(rows))
    return steps, cut


def central_value(mixer, outputs, joint, state):
    values = torch.stack([outputs[i, u] for i, u in enumerate(joint)])
    return mixer(values.unsqueeze(0), state.unsqueeze(0)).view(())


def best_deviation(value, greedy, avail):
    """By brute force: all joint actions, of which those count that differ from the greedy one in at
    most one place, by an available action.
    """
    best, highest = None, -math.inf
    for joint in itertools.product(range(N_ACTIONS), repeat=N_AGENTS):
        different = [i for i in range(N_AGENTS) if joint[i] != greedy[i]]
        if len(different) > 1 or any(not avail[i, joint[i]] for i in different):
            continue
        if value(joint) > highest:
            best, highest = list(joint), value(joint)
    return best


def reference(learner, batch, per_weight=None):
    """All losses, means over transitions, by name; and what was seen on the way."""
    args, names = learner.args, ("td", "central", "policy", "expressive", "compact", "entropy")
    sums, seen = dict.fromkeys(names, 0.0), {"weights": [], "best": [], "greedy": [], "cut": 0}
    seen["log_pi"] = []
    alpha = min(args.pac_alpha, args.pac_alpha_max)
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        length = int(episode["filled"].sum())
        scale = 1.0 if per_weight is None else float(per_weight[b])
        policy, cut = slow_policy(learner, episode, length)
        seen["cut"] += cut
        critic, _, said = slow_episode(learner.critic, episode, length)
        central = step_outputs(learner.q_star.mac, episode)
        avail, state = episode["avail_actions"][0], episode["state"][0]
        greedy = [greedy_action(policy[t], avail[t]) for t in range(length)]
        with torch.no_grad():
            target = step_outputs(learner.q_star.target_mac, episode)

            def value(t, joint, target=target, state=state):
                return central_value(learner.q_star.target_mixer, target[t], joint, state[t])

            values = [value(t, greedy[t]) for t in range(length)]
            rewards = list(episode["reward"][0, : length - 1, 0])
            ended = bool(episode["terminated"][0, : length - 1].any())
            returns = td_lambda_returns(rewards, values, ended, args.gamma, args.td_lambda)
        for t in range(length - 1):
            taken = taken_actions(episode, t)
            chosen = torch.stack([critic[t][i, u] for i, u in enumerate(taken)])
            q_tot = learner.mixer(chosen.unsqueeze(0), state[t].unsqueeze(0)).view(())
            q_star = central_value(learner.q_star.mixer, central[t], taken, state[t])
            weight = 1.0 if q_tot.item() < returns[t].item() else args.w
            seen["weights"].append(weight)
            sums["td"] += scale * weight * (q_tot - returns[t]) ** 2
            sums["central"] += scale * 0.5 * (q_star - returns[t]) ** 2

            best = best_deviation(lambda joint, t=t: value(t, joint), greedy[t], avail[t])
            seen["best"].append(best)
            seen["greedy"].append(greedy[t])
            costs = []
            for i in range(N_AGENTS):
                powers = learner.codes.inference(said[t]["read"][i]).exp()
                sums["expressive"] -= scale * (powers[best[i]] / powers.sum()).log()
                for j in range(N_AGENTS):
                    sums["compact"] += scale * (said[t]["mean"][i, j] ** 2 / 2).sum()
                    code = said[t]["code"][i, j]
                    sums["entropy"] += scale * (code**2 / 2 + 0.5 * math.log(2 * math.pi)).sum()
                cost, expected = 0.0, 0.0
                for u in range(N_ACTIONS):
                    p = policy[t][i, u]
                    if avail[t, i, u]:
                        cost = cost + p * (alpha * p.log() - critic[t][i, u].detach())
                        expected += float(p * p.log())
                costs.append(cost)
                seen["log_pi"].append(expected)
            mixed = learner.mixer(torch.stack(costs).unsqueeze(0), state[t].unsqueeze(0))
            sums["policy"] += scale * mixed.view(())
    n = len(seen["weights"])
    return {name: total / n for name, total in sums.items()}, seen


@pytest.mark.parametrize("settings", [{}, {"mixer": "vdn"}, {"td_lambda": 0.0}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_and_gradients(settings, weighted, monkeypatch):
    learner, log, batch = learner_and_batch(monkeypatch, **settings)
    per_weight = torch.tensor([0.5, 1.0, 0.2, 0.9, 0.7]) if weighted else None
    slow, args = copy.deepcopy(learner), learner.args
    losses, seen = reference(slow, batch, per_weight)
    # The critic first: what the policies' loss leaves at the mixer is no gradient of the mixer's.
    actor = torch.autograd.grad(losses["policy"], list(slow.mac.parameters()))
    codes = losses["expressive"] + args.ndq_beta * losses["compact"]
    codes = args.ndq_weight * (codes + args.ndq_entropy_weight * losses["entropy"])
    (losses["td"] + losses["central"] + codes).backward()
    for param, grad in zip(slow.mac.parameters(), actor, strict=True):
        param.grad = grad
    target_entropy = args.pac_target_entropy * N_ACTIONS
    expected = sum(seen["log_pi"]) / len(seen["log_pi"])
    slow.temperature.log_alpha.grad = torch.tensor(-(expected + target_entropy))

    learner.train(batch, t_env=0, episode_num=1, per_weight=per_weight)
    assert_same_gradients(learner, slow)
    logged = {
        "loss_td": losses["td"],
        "central_loss": losses["central"],
        "policy_loss": losses["policy"],
        "expressiveness_loss": args.ndq_weight * losses["expressive"],
        "compactness_loss": args.ndq_weight * args.ndq_beta * losses["compact"],
        "entropy_loss": args.ndq_weight * args.ndq_entropy_weight * losses["entropy"],
        "w_to_use": sum(seen["weights"]) / len(seen["weights"]),
        "policy_entropy": -expected,
        "alpha": 0.6,
    }
    for name, value in logged.items():
        assert log.stats[name][0][0] == pytest.approx(float(value), rel=1e-4), name
    # The batch tells apart what could be mistaken for one another.
    assert set(seen["weights"]) == {1.0, args.w}
    assert seen["cut"] > 0
    better = [a != b for a, b in zip(seen["best"], seen["greedy"], strict=True)]
    assert any(better)
    assert not all(better)


def test_best_deviations_by_hand(monkeypatch):
    """One row, A = 3. Q* is a table of joint actions: the greedy (0, 0, 0) has 1, a deviation of
    two agents 9, which does not count, and of one agent 5, 4 and 7, of which the last is
    unavailable.
    """
    learner, _, batch = learner_and_batch(monkeypatch, lengths=(2,))
    table = {(0, 0, 0): 1.0, (1, 1, 0): 9.0, (0, 2, 0): 5.0, (3, 0, 0): 4.0, (0, 0, 1): 7.0}
    rows = ReplayedSteps.of(batch, learner.mac)
    rows.avail[:] = 1
    rows.avail[:, 2, 1] = 0

    def values(outputs, joint, state, avail):
        found = [[table.get(tuple(row.tolist()), 0.0) for row in each] for each in joint]
        return torch.tensor(found).unsqueeze(-1)

    monkeypatch.setattr(learner.q_star, "target_values", values)
    greedy = torch.zeros(2, 3, dtype=torch.int64)
    assert learner.best_deviations(rows, None, greedy).tolist() == [[0, 2, 0]] * 2
    rows.avail[1, 2, 1] = 1
    assert learner.best_deviations(rows, None, greedy).tolist() == [[0, 2, 0], [0, 0, 1]]
    table[0, 0, 0] = 8.0
    assert learner.best_deviations(rows, None, greedy).tolist() == [[0, 0, 0]] * 2


def test_temperature():
    temperature = Temperature(initial=0.5, largest=0.9)
    assert float(temperature()) == pytest.approx(0.5)
    loss = temperature.loss(torch.tensor([[-1.0, -2.0]]), target_entropy=0.4)
    assert float(loss) == pytest.approx(math.log(0.5) * 1.1)  # -log(0.5) (-1.5 + 0.4)
    loss.backward()
    assert float(temperature.log_alpha.grad) == pytest.approx(1.1)  # alpha falls
    assert float(Temperature(initial=0.95, largest=0.9)()) == pytest.approx(0.9)


def test_every_network_is_trained_by_its_optimiser(monkeypatch):
    learner, _, batch = learner_and_batch(monkeypatch)
    before = weights_of(learner)
    learner.train(batch, t_env=0, episode_num=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights_of(learner), strict=True))
    ids = [
        {id(param) for group in optimiser.param_groups for param in group["params"]}
        for optimiser in learner.optimisers().values()
    ]
    assert ids[1] == {id(param) for param in learner.mac.parameters()}
    assert not ids[0] & ids[1]
    trained = {id(param) for network in learner.modules.values() for param in network.parameters()}
    assert ids[0] | ids[2] == trained
    assert [online for online, _ in learner.targets] == [learner.q_star.mac, learner.q_star.mixer]


def test_nothing_passes_between_agents_that_act(monkeypatch):
    """Policies read their own observations: what another agent sees changes no probability."""
    learner, _, batch = learner_and_batch(monkeypatch)
    other = make_batch(learner.args)
    other.stored("obs")[:, :, 1] += 1.0
    other.changed("obs")
    with torch.no_grad():
        before, after = learner.mac.unroll(batch), learner.mac.unroll(other)
        critic = [learner.critic.unroll(each) for each in (batch, other)]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])
    assert not torch.allclose(critic[0][:, [0, 2]], critic[1][:, [0, 2]])  # in training they do


def test_acting_is_greedy_without_random_numbers():
    learner, _ = make_learner(pac_args())
    batch = make_batch(learner.args)
    learner.mac.init_hidden(batch.batch_size)
    before = torch.get_rng_state()
    with torch.no_grad():
        actions = learner.mac.select_actions(batch, 0, t_env=0, test_mode=True)
        policy = [slow_policy(learner, batch[b : b + 1], 1)[0][0] for b in range(batch.batch_size)]
    assert torch.equal(torch.get_rng_state(), before)
    for b, row in enumerate(policy):
        assert actions[b].tolist() == greedy_action(row, batch["avail_actions"][b, 0])


def test_wrong_settings():
    for settings, text in (
        ({"mixer": "qatten"}, "needs mixer=qmix or mixer=nmix or mixer=vdn"),
        ({"agent_output_type": "q"}, "needs agent_output_type=pi_logits"),
        ({"share_params": False}, "needs share_params=True"),
        ({"agent": "rnn"}, "needs agent=bounded_rnn"),
        ({"auxiliary_loss": "ndq"}, "has losses of its own"),
        ({"pac_alpha": 0.0}, "pac_alpha must be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=text):
            make_learner(pac_args(**settings))
    with pytest.raises(ConfigError, match="logit_min must be less than logit_max"):
        make_mac(pac_args(logit_min=3.0))
