"""S2Q's losses, targets, weights and gradients against plain loops over episodes, steps, agents and
k.
"""

import copy
import math

import pytest
import torch
from learner_fixtures import (
    greedy_action,
    make_args,
    make_batch,
    make_learner,
    make_mac,
    q_lambda_returns,
    step_outputs,
    taken_actions,
    td_lambda_returns,
)
from s2q_fixtures import sub_values, weights

from learners.s2q.learner import BACKBONES, S2QLearner, identified
from modules.mixers import REGISTRY as MIXERS
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from utils.errors import ConfigError, Diverged
from utils.state import capture, restore

# Small enough that the joint actions taken are often among the identified ones.
TINY = {
    "n_agents": 2,
    "n_actions": 2,
    "s2q_alpha": 0.3,
    "s2q_temperature": 0.5,
    "encoder_hidden_dim": 7,
    "latent_dim": 3,
}
LENGTHS = (4, 9, 2, 7, 4, 8)
TERMINATED = (True, False, False, True, False, True)


def tiny(alg, **overrides):
    return make_args(alg, **(TINY | overrides))


def tiny_learner(args, seed=0):
    learner, log = make_learner(args, seed)
    for param in (
        learner.target_mixer.parameters()
    ):  # where it is not among learner.targets: no copy of the online one
        param.data.add_(0.1 * torch.randn_like(param))
    return learner, log


def single_mixers(learner):
    """The K + 1 mixers one by one: functions of (chosen [A], state [S], one-hot actions [A, U],
    best [A]).
    """
    args, stack = learner.args, learner.mixer
    n = args.s2q_k + 1
    singles = []
    for k in range(n):
        single = MIXERS[BACKBONES[args.s2q_backbone]](args)
        names = [name for name, _ in single.named_parameters()]
        mine = {}
        for name, param in stack.named_parameters():
            # Layers of several heads are stacked once more: the groups come first there, too.
            mine[name] = param.reshape(n, *dict(single.named_parameters())[name].shape)[k]
        assert set(names) == set(mine)
        singles.append((single, mine))
    return singles


def mixed(mixer, mine, values, actions, avail, state):
    """values [A, U], a list of actions, avail [A, U], state [S] -> scalar, gradients into `mine`
    and `values`.
    """
    chosen = torch.stack([values[i, u] for i, u in enumerate(actions)]).unsqueeze(0)
    state = state.unsqueeze(0)

    def call(*args, **kwargs):
        return torch.func.functional_call(mixer, mine, args, kwargs).view(())

    if not mixer.takes_actions:
        return call(chosen, state)
    options = [
        [values[i, u].detach() for u in range(len(values[i])) if avail[i, u]]
        for i in range(len(values))
    ]
    best = torch.stack([max(o) if o else torch.tensor(-1e10) for o in options]).unsqueeze(0)
    onehot = torch.zeros(1, *values.shape)
    for i, u in enumerate(actions):
        onehot[0, i, u] = 1
    return call(chosen, state, is_v=True) + call(
        chosen, state, actions=onehot, max_q_i=best, is_v=False
    )


def central_value(mixer, outputs, actions, state, embed):
    values = [outputs[i, u * embed + e] for i, u in enumerate(actions) for e in range(embed)]
    return mixer(torch.stack(values).unsqueeze(0), state.unsqueeze(0)).view(())


class Seen:
    """What the reference met, so that a test that could not tell right from wrong fails."""

    def __init__(self):
        self.members, self.weights = set(), set()


def reference(learner, batch, per_weight=None):
    """All loss terms, by name, and what was met on the way."""
    args, n_values = learner.args, learner.args.s2q_k + 1
    central, embed = args.s2q_backbone == "wqmix", vars(learner.args).get("central_action_embed", 1)
    mixers = single_mixers(learner)
    sums, count, seen = {"td": 0.0, "central": 0.0, "state": 0.0, "choice": 0.0}, 0, Seen()
    for b in range(batch.batch_size):
        episode = batch[b : b + 1]
        n = int(episode["filled"].sum()) - 1
        avail, state = episode["avail_actions"][0], episode["state"][0]
        q, z = sub_values(learner.mac, episode, n + 1)
        greedy = [[greedy_action(q[t][k], avail[t]) for k in range(n_values)] for t in range(n + 1)]
        if central:
            online = step_outputs(learner.q_star.mac, episode)
            target = step_outputs(learner.target_mac, episode)

            def target_value(t, actions, target=target, state=state):
                return central_value(
                    learner.target_mixer, target[t], actions, state[t], embed
                ).detach()
        else:
            target, _ = sub_values(learner.target_mac, episode, n + 1)
            own = dict(learner.target_mixer.named_parameters())

            def target_value(t, actions, target=target, state=state, avail=avail, own=own):
                return mixed(
                    learner.target_mixer, own, target[t][0], actions, avail[t], state[t]
                ).detach()

        firsts = [target_value(t, greedy[t][0]).view(1) for t in range(n + 1)]
        rewards = list(episode["reward"][0, :n])
        ended = bool(episode["terminated"][0, :n].any())
        if args.q_lambda:
            taken = [target_value(t, taken_actions(episode, t)).view(1) for t in range(n + 1)]
            returns = q_lambda_returns(rewards, firsts, taken, ended, args.gamma, args.td_lambda)
        else:
            returns = td_lambda_returns(rewards, firsts, ended, args.gamma, args.td_lambda)
        for t in range(n):
            count += 1
            scale = 1.0 if per_weight is None else per_weight[b]
            actions, y = taken_actions(episode, t), returns[t][0]
            values = [
                mixed(*mixers[k], q[t][k], actions, avail[t], state[t]) for k in range(n_values)
            ]
            if central:
                q_star = central_value(learner.q_star.mixer, online[t], actions, state[t], embed)
                sums["central"] = sums["central"] + scale * (q_star - y) ** 2
            else:
                q_star = values[0]
            best = [target_value(t, greedy[t][k]).item() for k in range(n_values)]
            for k in range(n_values):
                member = any(actions == greedy[t][j] for j in range(k))
                seen.members.add((k, member))
                suppressed = (
                    args.s2q_lambda * (q_star.detach() + args.s2q_offset) if member else 0.0
                )
                delta = values[k] - (y - suppressed)
                full = q_star.item() >= max(best) if k == 0 else delta.item() < 0
                weight = 1.0 if full or not args.s2q_weighted_td else args.s2q_alpha
                seen.weights.add((k, weight))
                sums["td"] = sums["td"] + scale * weight * delta**2
            top = max(best)
            exps = [math.exp((v - top) / args.s2q_temperature) for v in best]
            p = [e / sum(exps) for e in exps]
            decoded, logits = learner.mac.decoder(z[t])
            sums["state"] = sums["state"] + sum(
                (decoded[s] - state[t, s]) ** 2 for s in range(len(decoded))
            ) / len(decoded)
            log_norm = logits.exp().sum().log()
            sums["choice"] = sums["choice"] - sum(
                p[k] * (logits[k] - log_norm) for k in range(n_values)
            )
    return {name: value / count for name, value in sums.items()}, seen


SETTINGS = [
    ("s2q", {}),
    ("s2q", {"s2q_k": 0}),
    ("s2q", {"s2q_k": 1}),
    ("s2q", {"s2q_k": 4}),
    ("s2q", {"s2q_lambda": 2.5, "s2q_offset": 0.7}),
    ("s2q", {"s2q_lambda": 0.2, "s2q_temperature": 0.05}),
    ("s2q", {"share_params": False}),
    ("s2q", {"share_params": False, "s2q_k": 0}),
    ("s2q", {"encoder_type": "rnn"}),
    ("s2q", {"central_action_embed": 3}),
    ("s2q", {"q_lambda": True}),
    ("s2q", {"td_lambda": 0.0, "gamma": 0.8}),
    ("s2q_no_wtd", {}),
    ("s2q_comm", {}),
    ("s2q_comm", {"s2q_comm_merge": "add", "encoder_type": "rnn"}),
    ("s2q_comm", {"share_params": False, "s2q_k": 1}),
    ("s2q_comm", {"share_params": False, "s2q_k": 1, "s2q_comm_merge": "add"}),
    ("s2q_comm", {"s2q_k": 0}),
    ("s2q_vdn", {}),
    ("s2q_vdn", {"s2q_k": 0}),
    ("s2q_vdn", {"q_lambda": True, "share_params": False}),
    ("s2q_vdn", {"s2q_comm": True, "encoder_type": "rnn"}),
    ("s2q_qplex", {}),
    ("s2q_qplex", {"s2q_k": 0}),
    ("s2q_qplex", {"s2q_k": 4, "q_lambda": True}),
    ("s2q_qplex", {"s2q_comm": True}),
]


def assert_same_gradients_everywhere(learner, slow):
    networks = [copy_of.mac.networks() | copy_of.modules for copy_of in (learner, slow)]
    for name, network in networks[0].items():
        for (key, mine), theirs in zip(
            network.named_parameters(), networks[1][name].parameters(), strict=True
        ):
            if theirs.grad is None or not theirs.grad.any():
                assert mine.grad is None or mine.grad.abs().max() < 1e-6, f"{name}.{key}"
                continue
            size = max(float(theirs.grad.abs().max()), 1e-3)
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=2e-5 * size), (
                f"{name}.{key}"
            )


def check(args, per_weight=None, lengths=LENGTHS, terminated=TERMINATED, seed=0):
    learner, log = tiny_learner(args, seed)
    batch = make_batch(args, lengths, terminated)
    slow = copy.deepcopy(learner)
    losses, seen = reference(slow, batch, per_weight)
    sum(losses.values()).backward()
    learner.train(batch, t_env=10, episode_num=1, per_weight=per_weight)
    logged = {name: values[0][0] for name, values in log.stats.items()}
    assert logged["loss_td"] == pytest.approx(losses["td"].item(), rel=1e-4)
    assert logged["state_loss"] == pytest.approx(losses["state"].item(), rel=1e-4)
    assert logged["choice_loss"] == pytest.approx(losses["choice"].item(), rel=1e-4, abs=1e-6)
    if args.s2q_backbone == "wqmix":
        assert logged["central_loss"] == pytest.approx(losses["central"].item(), rel=1e-4)
    assert_same_gradients_everywhere(learner, slow)
    return seen


@pytest.mark.parametrize(("alg", "settings"), SETTINGS, ids=str)
def test_losses_and_gradients(alg, settings):
    args = tiny(alg, **settings)
    n_values = args.s2q_k + 1
    both = (1.0, args.s2q_alpha if args.s2q_weighted_td else 1.0)
    members = {(0, False)} | {(k, m) for k in range(1, n_values) for m in (False, True)}
    met = Seen()
    for seed in range(10):  # until everything was met that the formulas tell apart
        seen = check(args, seed=seed)
        met.members |= seen.members
        met.weights |= seen.weights
        if met.members == members and met.weights == {
            (k, w) for k in range(n_values) for w in both
        }:
            return
    raise AssertionError(f"never met all cases: {met.members}, {met.weights}")


@pytest.mark.parametrize("alg", ["s2q", "s2q_qplex"])
def test_equal_lengths(alg):
    check(tiny(alg), lengths=(6, 6, 6), terminated=(True, False, True))


def test_importance_weights():
    """They scale the TD losses of an episode; the latent's losses stay as they are."""
    check(tiny("s2q"), per_weight=torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7, 0.0]))


@pytest.mark.parametrize("limit", [1, 7, 12, 27])
@pytest.mark.parametrize("alg", ["s2q_comm", "s2q_qplex"])
def test_update_in_chunks(alg, limit):
    """Chunks of few transitions give the same update and figures as the whole batch (28
    transitions).
    """
    per_weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7, 0.5])
    results = []
    for chunk in (0, limit):
        args = tiny(alg, s2q_chunk_steps=chunk, grad_norm_clip=1.0)
        learner, log = tiny_learner(args)
        sizes = []
        compute = learner.losses_of

        def counted(batch, w, sizes=sizes, compute=compute):
            sizes.append(batch.steps().n_transitions)
            return compute(batch, w)

        learner.losses_of = counted
        td = learner.train(make_batch(args, LENGTHS, TERMINATED), 0, 1, per_weight)["td_error_abs"]
        results.append(
            (learner, {name: values[0][0] for name, values in log.stats.items()}, td, sizes)
        )
    (whole, figures, td, sizes), (chunked, their_figures, their_td, their_sizes) = results
    assert sizes == [28]
    assert sum(their_sizes) == 28
    assert len(their_sizes) == min(len(LENGTHS), math.ceil(28 / limit))
    assert their_figures == pytest.approx(figures, rel=1e-4, abs=1e-6)
    assert torch.allclose(td, their_td, atol=1e-6)
    assert_same_gradients_everywhere(chunked, whole)
    before = tiny_learner(tiny(alg))[0].params
    for mine, theirs, old in zip(chunked.params, whole.params, before, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-4)
        assert not torch.equal(mine, old)


def test_what_lies_behind_an_episode_is_not_read():
    args = tiny("s2q_comm")
    losses = []
    for garbage in (0.0, 7.0):
        learner, log = tiny_learner(args)
        batch = make_batch(args, LENGTHS, TERMINATED)
        for b, length in enumerate(LENGTHS):
            for key in ("obs", "state"):
                batch.stored(key)[b, length:] = garbage
            batch.stored("reward")[b, length - 1 :] = garbage
        learner.train(batch, 0, 1)
        losses.append({name: values[0][0] for name, values in log.stats.items()})
    assert losses[0] == losses[1]


# -- single formulas, by hand ----------------------------------------------------------------------


def test_identified_by_hand():
    """One row per case; a_0* = (0, 0), a_1* = (1, 0), a_2* = (0, 0) again."""
    greedy = torch.tensor([[[0, 0]] * 4, [[1, 0]] * 4, [[0, 0]] * 4])
    actions = torch.tensor(
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    )  # only the whole joint action counts, not an agent's part
    found = identified(actions, greedy).squeeze(-1).tolist()
    assert found == [
        [False, False, False, False],  # A_-1 is empty
        [True, False, False, False],  # A_0 = {a_0*}
        [True, True, False, False],  # A_1 = {a_0*, a_1*}
    ]


def test_figures_of_the_mechanism_by_hand():
    """Three transitions of two agents with K = 2, T = 0.5."""
    learner, _ = tiny_learner(tiny("s2q", s2q_k=2, s2q_temperature=0.5))
    greedy = torch.tensor(
        [[[0, 0], [1, 1], [2, 0]], [[0, 1], [1, 1], [0, 1]], [[1, 1], [1, 0], [2, 0]]]
    )
    actions = torch.tensor([[0, 1], [1, 1], [2, 1]])
    best = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.0, 3.0]]).unsqueeze(-1)
    figures = learner.mechanism(greedy, identified(actions, greedy), best)
    assert figures["choice_spread"].flatten().tolist() == [6.0, 2.0, 6.0]
    assert figures["differs_1"].tolist() == [1.0, 0.0, 1.0]
    assert figures["differs_2"].tolist() == [1.0, 1.0, 0.0]
    assert figures["agents_differ_1"].tolist() == [1.0, 0.0, 2.0]
    assert figures["agents_differ_2"].tolist() == [2.0, 1.0, 0.0]
    assert figures["suppressed_1"].flatten().tolist() == [0.0, 1.0, 0.0]
    assert figures["suppressed_2"].flatten().tolist() == [1.0, 1.0, 0.0]


def test_weights_and_choice_by_hand():
    learner, _ = tiny_learner(tiny("s2q", s2q_alpha=0.9, s2q_temperature=0.1, s2q_k=1))
    best = torch.tensor([[[1.0], [1.0], [1.0]], [[2.0], [0.5], [1.0]]])
    q_star = torch.tensor([[1.5], [1.5], [1.0]])
    delta = torch.tensor([[[-5.0], [5.0], [5.0]], [[-0.1], [0.0], [0.1]]])
    found = learner.weights(delta, q_star, best).squeeze(-1)
    # Row 1: 1.5 is above 1 but below the 2 of a_1*. w_0 never looks at delta_0; delta_1 = 0 is not
    # too low.
    assert found.tolist() == [pytest.approx([0.9, 1.0, 1.0]), pytest.approx([1.0, 0.9, 0.9])]
    close = torch.tensor([[[1.0]], [[1.0 + 0.1 * math.log(3)]]])
    assert learner.choice(close)[0].tolist() == pytest.approx([0.25, 0.75])
    assert learner.choice(torch.tensor([[[3e4]], [[0.0]]]))[0].tolist() == [1.0, 0.0]  # no overflow


def test_central_values_of_several_joint_actions():
    args = make_args("s2q", central_action_embed=3)
    mixer = QMixerCentralFF(args)
    chosen, state = torch.randn(4, 5, args.n_agents * 3), torch.randn(5, args.state_shape)
    expected = torch.stack([mixer(chosen[j], state) for j in range(4)])
    assert torch.allclose(mixer.of_several(chosen, state), expected, atol=1e-6)


# -- who learns from what --------------------------------------------------------------------------


@pytest.mark.parametrize("encoder_type", ["mlp", "rnn"])
def test_plain_s2q_detaches_the_encoder_and_comm_does_not(encoder_type):
    """The TD losses alone: without a message they leave encoder and decoder alone, with one they
    reach the encoder.
    """
    for alg, reached in (("s2q", False), ("s2q_comm", True)):
        args = tiny(alg, encoder_type=encoder_type)
        learner, _ = tiny_learner(args)
        batch = make_batch(args, LENGTHS, TERMINATED)
        q, _ = learner.mac.unroll_all(batch)
        q.pow(2).sum().backward()
        grads = [param.grad for param in learner.mac.encoder.parameters()]
        assert all((grad is not None and bool(grad.any())) == reached for grad in grads)
        assert all(param.grad is None for param in learner.mac.decoder.parameters())


@pytest.mark.parametrize("alg", ["s2q", "s2q_comm"])
def test_latent_losses_leave_the_agents_alone(alg):
    learner, _ = tiny_learner(tiny(alg))
    batch = make_batch(learner.args, LENGTHS, TERMINATED)
    _, z = learner.mac.unroll_all(batch)
    decoded, logits = learner.mac.decoder(z)
    (decoded.pow(2).sum() + logits.pow(2).sum()).backward()
    assert all(param.grad is None for param in learner.mac.agent.parameters())
    assert all(param.grad.any() for param in learner.mac.encoder.parameters())


def test_sub_values_do_not_move_q_star_or_each_other():
    """K more sub-value functions change nothing for Q_0 and Q*, apart from w_0, which looks at all
    of them.
    """
    plain = {"s2q_weighted_td": False}
    many, _ = tiny_learner(tiny("s2q", s2q_k=2, **plain))
    one, _ = tiny_learner(tiny("s2q", s2q_k=0, **plain))
    one.mac.load_state(many.mac)
    for single, stacked in zip(one.mixer.parameters(), many.mixer.parameters(), strict=True):
        single.data.copy_(weights(stacked, 0, 3))
    for mine, theirs in (
        (one.q_star.mac.agent, many.q_star.mac.agent),
        (one.q_star.mixer, many.q_star.mixer),
        (one.target_mac.agent, many.target_mac.agent),
        (one.target_mixer, many.target_mixer),
    ):
        mine.load_state_dict(theirs.state_dict())
    batch = make_batch(one.args, LENGTHS, TERMINATED)
    for learner in (one, many):
        learner.train(batch, 0, 1)
    for single, stacked in zip(
        one.mac.agent.parameters(), many.mac.agent.parameters(), strict=True
    ):
        assert torch.allclose(single.grad, stacked.grad[0], rtol=1e-4, atol=1e-6)
    for single, stacked in zip(one.mixer.parameters(), many.mixer.parameters(), strict=True):
        assert torch.allclose(single.grad, stacked.grad[0], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(
        one.q_star.mixer.parameters(), many.q_star.mixer.parameters(), strict=True
    ):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_one_optimiser_for_everything():
    for alg in ("s2q", "s2q_comm", "s2q_vdn", "s2q_qplex"):
        learner, _ = tiny_learner(tiny(alg))
        trained = [*learner.mac.networks().values(), *learner.modules.values()]
        assert {id(p) for p in learner.params} == {
            id(p) for network in trained for p in network.parameters()
        }
        assert {id(p) for group in learner.optimiser.param_groups for p in group["params"]} == {
            id(p) for p in learner.params
        }
        assert all(p.requires_grad for p in learner.params)
        targets = [*learner.target_mac.parameters(), *learner.target_mixer.parameters()]
        assert not any(p.requires_grad for p in targets)
        assert not {id(p) for p in targets} & {id(p) for p in learner.params}


@pytest.mark.parametrize(
    ("alg", "k"), [("s2q", 2), ("s2q_vdn", 2), ("s2q_qplex", 2), ("s2q_qplex", 0), ("s2q_vdn", 0)]
)
def test_target_networks_follow(alg, k):
    """After `update_targets` the targets equal the online networks: of Q*, or of the first
    sub-value function.
    """
    learner, _ = tiny_learner(tiny(alg, s2q_k=k, s2q_comm=True, target_update_interval=10))
    batch = make_batch(learner.args, LENGTHS, TERMINATED)
    online = (
        (learner.q_star.mac.agent, learner.q_star.mixer)
        if alg == "s2q"
        else (learner.mac.agent, learner.mixer)
    )
    groups = 1 if alg == "s2q" else k + 1

    def equal():
        pairs = []
        for mine, theirs in zip(
            online, (learner.target_mac.agent, learner.target_mixer), strict=True
        ):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                pairs.append(torch.equal(a.reshape(groups, *b.shape)[0], b))
        if alg != "s2q":
            encoders = zip(
                learner.mac.encoder.parameters(),
                learner.target_mac.encoder.parameters(),
                strict=True,
            )
            pairs += [torch.equal(a, b) for a, b in encoders]
        return all(pairs)

    learner.train(batch, 0, episode_num=9)
    assert not equal()
    learner.train(batch, 0, episode_num=10)
    assert equal()
    learner.train(batch, 0, episode_num=11)
    assert not equal()


# -- checkpoints -----------------------------------------------------------------------------------


def all_weights(learner):
    networks = [*learner.mac.networks().values(), *learner.modules.values(), learner.target_mixer]
    networks += [learner.target_mac.agent]
    return [param.detach().clone() for network in networks for param in network.parameters()]


ALGORITHMS = ("s2q", "s2q_comm", "s2q_vdn", "s2q_qplex", "s2q_oracle")


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_restored_learner_continues_with_the_same_numbers(alg, tmp_path):
    args = tiny(alg, target_update_interval=3)
    one, _ = tiny_learner(args, seed=0)
    batch = make_batch(args, LENGTHS, TERMINATED)
    for episode in (2, 4):
        one.train(batch, episode, episode)
    torch.save(capture(one), tmp_path / "state.pt")
    two, _ = tiny_learner(args, seed=1)
    two.train(batch, 1, 1)  # whatever it did before is gone
    with torch.no_grad():
        two.mac.init_hidden(batch.batch_size)
        two.mac.select_actions(batch, 0, 0, test_mode=True)
    restore(two, torch.load(tmp_path / "state.pt", weights_only=True))
    actions = []
    for learner in (one, two):
        for episode in (5, 8, 12):
            learner.train(batch, episode, episode)
        torch.manual_seed(3)
        learner.mac.init_hidden(batch.batch_size)
        with torch.no_grad():
            actions.append([learner.mac.select_actions(batch, t, 60000) for t in range(2)])
    for mine, theirs in zip(all_weights(one), all_weights(two), strict=True):
        assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(*actions, strict=True))


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_model_files(alg, tmp_path):
    args = tiny(alg)
    one, _ = tiny_learner(args, seed=1)
    batch = make_batch(args, LENGTHS, TERMINATED)
    one.train(batch, 0, 1)
    one.save_models(str(tmp_path))
    names = {"agent", "encoder", "decoder", "mixer", "opt"}
    assert {path.stem for path in tmp_path.iterdir()} == names | (
        {"central_agent", "central_mixer"} if args.s2q_backbone == "wqmix" else set()
    )
    two, _ = tiny_learner(args, seed=2)
    two.load_models(str(tmp_path))
    one.update_targets()  # loading makes the targets copies of the online networks
    for learner in (one, two):
        learner.train(batch, 0, 2)
    for mine, theirs in zip(all_weights(one), all_weights(two), strict=True):
        assert torch.equal(mine, theirs)


def test_k_0_has_the_files_of_ow_qmix(tmp_path):
    """K = 0 is OW-QMIX's structure: every network of OW-QMIX loads the other's file."""
    learner, _ = tiny_learner(tiny("s2q", s2q_k=0))
    learner.save_models(str(tmp_path))
    other, _ = make_learner(make_args("ow_qmix", n_agents=2, n_actions=2))
    networks = {"agent": other.mac.agent, **other.modules}
    for name, network in networks.items():
        network.load_state_dict(torch.load(tmp_path / f"{name}.th", weights_only=True))


# -- misuse ----------------------------------------------------------------------------------------


def test_divergence_is_reported():
    learner, _ = tiny_learner(tiny("s2q"))
    batch = make_batch(learner.args, LENGTHS, TERMINATED)
    batch.stored("reward")[1, 2] = float("nan")
    before = all_weights(learner)
    with pytest.raises(Diverged, match="not finite in rewards, targets"):
        learner.train(batch, 7, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, all_weights(learner), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s2q_backbone": "qmix"}, "s2q_backbone must be one of wqmix, vdn, qplex, got 'qmix'"),
        ({"mixer": "vdn"}, "mixer=null .s2q_backbone chooses its mixers., got mixer=vdn"),
        ({"common_reward": False}, "common_reward=True"),
        ({"double_q": False}, "double_q=True"),
        ({"s2q_alpha": 1.5}, "s2q_alpha must be between 0 and 1, got 1.5"),
        ({"s2q_temperature": 0.0}, "s2q_temperature must be greater than 0, got 0.0"),
        ({"s2q_lambda": -1.0}, "s2q_lambda must be at least 0, got -1.0"),
        ({"s2q_offset": -1.0}, "s2q_offset must be at least 0, got -1.0"),
        ({"s2q_chunk_steps": -1}, "s2q_chunk_steps must be at least 0, got -1"),
        ({"s2q_k": -1}, "s2q_k must be at least 0, got -1"),
        (
            {"s2q_select": "soft"},
            "s2q_select must be one of learned, oracle, uniform, zero, got 'soft'",
        ),
        ({"s2q_fixed_prob": 2.0}, "s2q_fixed_prob must be between 0 and 1, got 2.0"),
        (
            {"s2q_comm": True, "s2q_comm_merge": "sum"},
            "s2q_comm_merge must be one of concat, add, got 'sum'",
        ),
        ({"encoder_type": "gru"}, "encoder_type must be one of mlp, rnn, got 'gru'"),
        ({"agent": "rnn"}, "agent=s2q_rnn"),
        ({"mac": "n_mac", "agent": "n_rnn"}, "mac=s2q_mac"),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(tiny("s2q", **settings))


def test_learner_is_registered():
    args = tiny("s2q")
    learner, _ = make_learner(args)
    assert type(learner) is S2QLearner
    assert type(make_mac(args)) is type(learner.mac)
