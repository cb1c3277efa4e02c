"""Weighted QMIX against plain loops over episodes, steps and agents."""

import copy

import pytest
import torch
from learner_fixtures import (
    assert_same_gradients,
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    q_lambda_returns,
    step_outputs,
    taken_actions,
    td_lambda_returns,
)

from controllers import REGISTRY as MACS
from controllers.n_controller import NMAC
from utils.errors import ConfigError

SETTINGS = (
    {"td_lambda": 0.6},
    {"td_lambda": 0.0},
    {"td_lambda": 0.6, "central_action_embed": 3},
    {"td_lambda": 0.6, "q_lambda": True},
    {"share_params": False},
    {"agent": "mlp"},
    {"mixer": "vdn"},
    {"qmix_loss": 0.5, "central_loss": 3.0},
)


def central_value(mixer, outputs, actions, state, embed):
    """Outputs [A, U * E] of the central network, a list of actions, state [S] -> [1]."""
    values = [outputs[i, u * embed + e] for i, u in enumerate(actions) for e in range(embed)]
    return mixer(torch.stack(values).unsqueeze(0), state.unsqueeze(0)).view(1)


def reference(learner, batch, per_weight=None):
    """Both losses, and the weights of all transitions."""
    args, embed = learner.args, learner.args.central_action_embed
    loss_td, loss_central, weights = 0.0, 0.0, []
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        online, central = (
            step_outputs(learner.mac, episode),
            step_outputs(learner.central_mac, episode),
        )
        avail, state = episode["avail_actions"][0], episode["state"][0]
        n = len(online) - 1
        ended = bool(episode["terminated"][0, :n].any())
        greedy = [greedy_action(online[t], avail[t]) for t in range(n + 1)]
        with torch.no_grad():
            target = step_outputs(learner.target_central_mac, episode)

            def target_value(t, actions, target=target, state=state):
                return central_value(
                    learner.target_central_mixer, target[t], actions, state[t], embed
                )

            best = [target_value(t, greedy[t]) for t in range(n + 1)]
            rewards = list(episode["reward"][0, :n])
            if args.q_lambda:
                taken = [target_value(t, taken_actions(episode, t)) for t in range(n + 1)]
                returns = q_lambda_returns(rewards, best, taken, ended, args.gamma, args.td_lambda)
            else:
                returns = td_lambda_returns(rewards, best, ended, args.gamma, args.td_lambda)
        for t in range(n):
            actions = taken_actions(episode, t)
            chosen = torch.stack([online[t][i, u] for i, u in enumerate(actions)])
            q_tot = learner.mixer(chosen.unsqueeze(0), state[t].unsqueeze(0)).view(1)
            q_star = central_value(learner.central_mixer, central[t], actions, state[t], embed)
            if args.hysteretic_qmix:
                full = q_tot.item() < returns[t].item()
            else:
                full = actions == greedy[t] or returns[t].item() > best[t].item()
            weights.append(1.0 if full else args.w)
            scale = 1.0 if per_weight is None else per_weight[b]
            loss_td = loss_td + scale * weights[-1] * (q_tot - returns[t]) ** 2
            loss_central = loss_central + scale * 0.5 * (q_star - returns[t]) ** 2
    return loss_td / len(weights), loss_central / len(weights), weights


def check(args, per_weight=None):
    learner, log = make_learner(args)
    batch = make_batch(args)
    slow = copy.deepcopy(learner)
    loss_td, loss_central, weights = reference(slow, batch, per_weight)
    args = learner.args
    (args.qmix_loss * loss_td + args.central_loss * loss_central).backward()
    learner.train(batch, t_env=10, episode_num=1, per_weight=per_weight)
    assert log.stats["loss_td"][0][0] == pytest.approx(loss_td.item(), rel=1e-5)
    assert log.stats["central_loss"][0][0] == pytest.approx(loss_central.item(), rel=1e-5)
    assert log.stats["w_to_use"][0][0] == pytest.approx(sum(weights) / len(weights), rel=1e-6)
    assert set(weights) == {1.0, args.w}  # else the batch would not tell the weightings apart
    assert_same_gradients(learner, slow)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("alg", ["ow_qmix", "cw_qmix"])
def test_losses_and_gradients(alg, settings):
    check(make_args(alg, w=0.3, **settings))


@pytest.mark.parametrize("alg", ["ow_qmix", "cw_qmix"])
def test_importance_weights(alg):
    check(make_args(alg), per_weight=torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7]))


def test_weights_by_hand():
    q_tot, targets = (
        torch.tensor([[1.0], [3.0], [1.0], [3.0]]),
        torch.tensor([[2.0], [2.0], [2.0], [2.0]]),
    )
    greedy_values = torch.tensor([[5.0], [5.0], [1.5], [5.0]])
    is_greedy = torch.tensor([[False], [False], [False], [True]])
    optimistic = make_learner(make_args("ow_qmix", w=0.1))[0].weights(
        q_tot, targets, greedy_values, is_greedy
    )
    assert optimistic.flatten().tolist() == pytest.approx([1.0, 0.1, 1.0, 0.1])
    central = make_learner(make_args("cw_qmix", w=0.1))[0].weights(
        q_tot, targets, greedy_values, is_greedy
    )
    assert central.flatten().tolist() == pytest.approx([0.1, 0.1, 1.0, 1.0])


def test_only_q_star_has_targets():
    """Q_tot's own target network would never be used: there is none, and the others are trained or
    copied.
    """
    learner, _ = make_learner(make_args("ow_qmix"))
    assert [online for online, _ in learner.targets] == [learner.central_mac, learner.central_mixer]
    parts = (learner.mac.agent, learner.mixer, learner.central_mac.agent, learner.central_mixer)
    assert {id(p) for p in learner.params} == {id(p) for part in parts for p in part.parameters()}
    learner.update_targets()
    pairs = zip(
        learner.central_mac.parameters(), learner.target_central_mac.parameters(), strict=True
    )
    assert all(torch.equal(p, q) for p, q in pairs)


def test_controller_with_other_inputs(monkeypatch):
    """Q* keeps the standard inputs when the acting controller builds its own."""

    class ObsOnly(NMAC):
        def _get_input_shape(self, scheme):
            return scheme["obs"]["vshape"]

        def _build_inputs(self, batch, t):
            return batch["obs"][:, t].flatten(0, 1)

    monkeypatch.setitem(MACS, "obs_only", ObsOnly)
    args = make_args("ow_qmix", mac="obs_only")
    assert (
        make_learner(args)[0].central_mac.agent.fc1.in_features
        > make_learner(args)[0].mac.agent.fc1.in_features
    )
    check(args)


def test_bad_settings():
    with pytest.raises(ConfigError, match="needs a mixer"):
        make_learner(make_args("ow_qmix", mixer=None))
    with pytest.raises(ConfigError, match="double_q=True"):
        make_learner(make_args("cw_qmix", double_q=False))
