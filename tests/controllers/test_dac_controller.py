"""How DAC's agents act: on the best value over the contexts, exploring contexts and actions on
their own.
"""

import pytest
import torch
from dac_fixtures import dac_args, features_of, q_in
from learner_fixtures import LENGTHS, make_batch, make_mac

HEADS = ("normal_net", "hyper_net")


@pytest.mark.parametrize("head", HEADS)
def test_greedy_on_phi_in_evaluation(head):
    """The available action with the highest value in any context; no random number is drawn."""
    args = dac_args(dac_head=head)
    torch.manual_seed(0)
    mac, batch = make_mac(args), make_batch(args)
    mac.init_hidden(len(LENGTHS))
    features = [
        [features_of(mac, batch, b, i, 2) for i in range(args.n_agents)]
        for b in range(len(LENGTHS))
    ]
    for t in range(2):
        before = torch.get_rng_state()
        actions = mac.select_actions(batch, t_ep=t, t_env=0, test_mode=True)
        assert torch.equal(torch.get_rng_state(), before)
        for b in range(len(LENGTHS)):
            for i in range(args.n_agents):
                options = [u for u in range(args.n_actions) if batch["avail_actions"][b, t, i, u]]
                values = [
                    q_in(mac.agent, i, features[b][i][t], c).tolist() for c in torch.eye(args.dac_m)
                ]
                assert int(actions[b, i]) == max(
                    options, key=lambda u: max(row[u] for row in values)
                )


@pytest.mark.parametrize("head", HEADS)
def test_steps_and_sequences_agree(head):
    args = dac_args(dac_head=head)
    torch.manual_seed(0)
    mac, batch = make_mac(args), make_batch(args)
    rows = batch.steps().unpack(mac.unroll(batch))
    mac.init_hidden(len(LENGTHS))
    outputs = [mac.forward(batch, t) for t in range(max(LENGTHS))]
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            assert torch.allclose(outputs[t][b], rows[b, t], atol=1e-5)


def test_some_episodes_only():
    args = dac_args()
    torch.manual_seed(0)
    mac, batch = make_mac(args), make_batch(args)
    mac.init_hidden(len(LENGTHS))
    everything = [mac.forward_all(batch, t, True) for t in range(2)]
    mac.init_hidden(len(LENGTHS))
    some = torch.tensor([0, 3])
    for t in range(2):
        part = mac.forward_all(batch, t, True, some)
        assert part.shape == (2, args.n_agents, args.dac_m, args.n_actions)
        assert torch.allclose(part, everything[t][some], atol=1e-6)


def distinct_values(n, args):
    """Q(s, u, c) = 10 c + u for every row and agent: phi is what context m - 1 says."""
    table = 10.0 * torch.arange(args.dac_m)[:, None] + torch.arange(args.n_actions)
    return table.expand(n, args.n_agents, -1, -1)


def test_context_exploration():
    """Eq. 14: a uniform context with probability epsilon, else phi; every agent and every step on
    its own.
    """
    n, eps = 8000, 0.4
    args = dac_args(epsilon_start=eps, epsilon_finish=eps)
    m, a = args.dac_m, args.n_agents
    mac = make_mac(args)
    torch.manual_seed(3)
    followed = []
    for _ in range(2):
        q = mac.behaviour(distinct_values(n, args), t_env=0)
        assert q.shape == (n, a, args.n_actions)
        assert torch.equal(q - q[..., :1], torch.arange(args.n_actions).expand_as(q).float())
        followed.append((q[..., 0] / 10).long())
    expected = torch.full((m,), eps / m)
    expected[m - 1] += 1 - eps
    for draws in followed:
        for i in range(a):
            share = torch.bincount(draws[:, i], minlength=m) / n
            assert torch.allclose(share, expected, atol=0.02)
    # What two agents follow, or one agent in two steps, is independent.
    for first, second in [
        (followed[0][:, 0], followed[0][:, 1]),
        (followed[0][:, 2], followed[1][:, 2]),
    ]:
        joint = torch.bincount(first * m + second, minlength=m * m).view(m, m) / n
        assert torch.allclose(joint, torch.outer(expected, expected), atol=0.02)
    # Neighbouring episodes too.
    first, second = followed[0][0::2, 0], followed[0][1::2, 0]
    joint = torch.bincount(first * m + second, minlength=m * m).view(m, m) / (n // 2)
    assert torch.allclose(joint, torch.outer(expected, expected), atol=0.03)


def test_exploration_follows_the_schedule():
    args = dac_args(epsilon_start=1.0, epsilon_finish=0.0, epsilon_anneal_time=100)
    mac, values = make_mac(args), distinct_values(4000, args)
    phi = values.amax(2)
    for t_env, expected in ((0, 1.0), (50, 0.5), (100, 0.0), (1000, 0.0)):
        differs = (mac.behaviour(values, t_env) != phi).any(-1).float().mean()
        assert float(differs) == pytest.approx(expected * (1 - 1 / args.dac_m), abs=0.02)


def test_actions_are_explored_on_top(monkeypatch):
    """epsilon-greedy on what eq. 14 gives: the greedy action of context c with the rest uniform
    over the available.
    """
    n, eps = 6000, 0.5
    args = dac_args(epsilon_start=eps, epsilon_finish=eps, dac_m=2)
    mac, batch = make_mac(args), make_batch(args, lengths=(2,) * n, terminated=(False,) * n)
    batch.data.transition_data["avail_actions"][:] = torch.tensor([1, 1, 1, 0], dtype=torch.int)
    values = torch.zeros(n, args.n_agents, 2, 4)
    values[:, :, 0, 0] = (
        1.0  # phi prefers action 1, context 0 action 0, context 1 action 1; action 3 is unavailable
    )
    values[:, :, 1, 1] = 2.0
    values[..., 3] = 9.0
    monkeypatch.setattr(mac, "forward_all", lambda *_, **__: values)
    torch.manual_seed(5)
    actions = mac.select_actions(batch, t_ep=0, t_env=0)
    in_context_0 = eps / 2
    expected = [
        (1 - eps) * in_context_0 + eps / 3,
        (1 - eps) * (1 - in_context_0) + eps / 3,
        eps / 3,
        0.0,
    ]
    for i in range(args.n_agents):
        share = torch.bincount(actions[:, i], minlength=4) / n
        assert share.tolist() == pytest.approx(expected, abs=0.025)
    assert (mac.select_actions(batch, t_ep=0, t_env=0, test_mode=True) == 1).all()


def test_ablation_phi():
    """Without context exploration phi is followed always, and nothing is drawn for it."""
    args = dac_args(epsilon_start=1.0, epsilon_finish=1.0, dac_context_exploration=False)
    mac, values = make_mac(args), distinct_values(50, args)
    before = torch.get_rng_state()
    assert torch.equal(mac.behaviour(values, 0), values.amax(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_model_file(tmp_path):
    args = dac_args()
    mac, other = make_mac(args), make_mac(args)
    mac.save_models(str(tmp_path))
    other.load_models(str(tmp_path))
    batch = make_batch(args)
    assert torch.equal(mac.unroll(batch), other.unroll(batch))
