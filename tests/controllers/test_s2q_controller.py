"""S2Q's controller: stacked networks against single ones, the draw of k, evaluation with Q_0 alone,
messages.
"""

import copy

import pytest
import torch
from learner_fixtures import (
    LENGTHS,
    N_ACTIONS,
    N_AGENTS,
    make_args,
    make_batch,
    make_learner,
    make_mac,
)
from s2q_fixtures import sub_values

from modules.agents.rnn_agent import RNNAgent
from utils.errors import ConfigError


@pytest.fixture(autouse=True)
def _acting():
    """The runner acts without gradients."""
    with torch.no_grad():
        yield


NETWORKS = [
    {"s2q_k": 0},
    {"s2q_k": 1},
    {"s2q_k": 2},
    {"s2q_k": 4},
    {"share_params": False},
    {"s2q_k": 0, "share_params": False},
    {"encoder_type": "rnn"},
    {"s2q_comm": True},
    {"s2q_comm": True, "s2q_k": 0},
    {"s2q_comm": True, "s2q_comm_merge": "add"},
    {"s2q_comm": True, "s2q_comm_merge": "add", "share_params": False, "encoder_type": "rnn"},
    {"s2q_comm": True, "share_params": False},
]


def seeded_mac(seed=0, alg="s2q", **overrides):
    torch.manual_seed(seed)
    args = make_args(alg, **overrides)
    return make_mac(args), make_batch(args)


def close(a, b):
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("settings", NETWORKS, ids=str)
def test_stacked_networks_are_the_single_ones(settings):
    """Whole sequences and single steps both equal one network after the other."""
    mac, batch = seeded_mac(**settings)
    steps = batch.steps()
    rows_q, rows_z = mac.unroll_all(batch)
    q = torch.stack([steps.unpack(rows_q[k]) for k in range(mac.args.s2q_k + 1)])
    z = steps.unpack(rows_z)
    mac.init_hidden(batch.batch_size)
    stepped = [mac.forward_all(batch, t) for t in range(max(LENGTHS))]
    assert close(mac.unroll(batch), rows_q[0])
    for b, length in enumerate(LENGTHS):
        slow_q, slow_z = sub_values(mac, batch[b : b + 1], length)
        for t in range(length):
            assert close(q[:, b, t], torch.stack(slow_q[t]))
            assert close(z[b, t], slow_z[t])
            assert close(stepped[t].q[:, b], torch.stack(slow_q[t]))
            assert close(stepped[t].z[b], slow_z[t])


@pytest.mark.parametrize("settings", NETWORKS, ids=str)
def test_evaluation_computes_q_0(settings):
    mac, batch = seeded_mac(**settings)
    assert_evaluates_q_0(mac, batch)
    for param in mac.parameters():  # also after the weights have changed
        param.add_(0.1 * torch.randn_like(param))
    assert_evaluates_q_0(mac, batch)
    assert_evaluates_q_0(copy.deepcopy(mac), batch)
    other, _ = seeded_mac(seed=1, **settings)
    other.load_state(mac)
    assert_evaluates_q_0(other, batch)
    for mine, theirs in zip(other.parameters(), mac.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def assert_evaluates_q_0(mac, batch):
    rows = [0, 1, 3]
    mac.init_hidden(batch.batch_size)
    outputs = [
        mac.forward(batch, t, test_mode=True, bs=slice(None) if t < 2 else torch.tensor(rows))
        for t in range(4)
    ]
    mac.init_hidden(batch.batch_size)
    assert mac.forward(batch, 0).shape == (len(LENGTHS), N_AGENTS, N_ACTIONS)
    for b in rows:
        slow, _ = sub_values(mac, batch[b : b + 1], 4)
        for t in range(4):
            assert close(outputs[t][b if t < 2 else rows.index(b)], slow[t][0])


def run_episode(mac, batch, t_env=0, test_mode=False):
    mac.init_hidden(batch.batch_size)
    return [mac.select_actions(batch, t, t_env, test_mode=test_mode) for t in range(3)]


@pytest.mark.parametrize(
    "alg", ["s2q", "s2q_oracle", "s2q_independent", "s2q_no_soft", "s2q_random", "s2q_vdn"]
)
def test_evaluation_is_greedy_and_reads_no_encoder(alg):
    mac, batch = seeded_mac(alg=alg)
    for b in range(batch.batch_size):  # every action available at once, and every agent has one
        batch.stored("avail_actions")[b, :3, :, 0] = 1
    before = torch.get_rng_state()
    actions = run_episode(mac, batch, test_mode=True)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn
    bare = copy.deepcopy(mac)
    del bare.encoder, bare.decoder
    assert all(
        torch.equal(a, b)
        for a, b in zip(actions, run_episode(bare, batch, test_mode=True), strict=True)
    )
    mac.init_hidden(batch.batch_size)
    for t, chosen in enumerate(actions):
        q = (
            mac.forward_all(batch, t)
            .q[0]
            .masked_fill(batch["avail_actions"][:, t] == 0, -torch.inf)
        )
        assert torch.equal(chosen, q.argmax(-1))


def test_messages_are_read_in_evaluation():
    mac, batch = seeded_mac(alg="s2q_comm")
    mac.init_hidden(batch.batch_size)
    first = mac.forward(batch, 0, test_mode=True)
    mac.encoder.net[-1].bias.add_(1.0)
    mac.init_hidden(batch.batch_size)
    assert not close(mac.forward(batch, 0, test_mode=True), first)
    del mac.encoder
    with pytest.raises(AttributeError, match="encoder"):
        run_episode(mac, batch, test_mode=True)


# -- the draw of k ---------------------------------------------------------------------------------


def wide_batch(args, n, steps=4):
    """n identical environments in which every action is available."""
    batch = make_batch(args, (steps,) * n, (False,) * n)
    batch.stored("avail_actions")[:] = 1
    for key in ("obs", "state"):
        batch.stored(key)[:] = batch.stored(key)[:1].clone()
    batch.stored("actions")[:] = batch.stored("actions")[:1].clone()
    batch.changed("avail_actions", "actions", "obs", "state")
    return batch


def set_choice(mac, probabilities):
    """The decoder's estimate of P_t, whatever the latent."""
    mac.decoder.choice.weight.zero_()
    mac.decoder.choice.bias.copy_(torch.tensor(probabilities).log())


def greedy_of_each(mac, batch, t):
    """a_k*, [K + 1, B, A], of the present step, from hidden states of their own."""
    q = copy.deepcopy(mac).unroll_all(batch).q
    steps = batch.steps()
    return torch.stack([steps.unpack(q_k)[:, t].argmax(-1) for q_k in q])


PROBABILITIES = [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("alg", "expected"),
    [("s2q", PROBABILITIES), ("s2q_random", [1 / 3] * 3), ("s2q_no_soft", [1.0, 0.0, 0.0])],
)
def test_one_k_for_all_agents_drawn_at_every_step(alg, expected):
    """Without fixed environments: frequencies follow the distribution, and the next step is drawn
    anew.
    """
    args = make_args(alg, s2q_fixed_prob=0.0, epsilon_start=0.0, epsilon_finish=0.0)
    torch.manual_seed(0)
    mac, n = make_mac(args), 3000
    set_choice(mac, PROBABILITIES)
    batch = wide_batch(args, n)
    mac.init_hidden(n)
    drawn = []
    for t in range(3):
        actions = mac.select_actions(batch, t, t_env=0)
        k = mac.chosen
        assert k.shape == (n, N_AGENTS)
        assert torch.equal(k, k[:, :1].expand_as(k))
        greedy = greedy_of_each(mac, batch, t)
        assert torch.equal(actions, greedy.gather(0, k.unsqueeze(0))[0])
        drawn.append(k[:, 0])
    for k in drawn:
        frequencies = torch.bincount(k, minlength=3) / n
        assert torch.allclose(frequencies, torch.tensor(expected), atol=0.04)
    if alg == "s2q":  # independent of the step before: sum over k of P(k)^2 = 0.38
        assert (drawn[0] == drawn[1]).float().mean() == pytest.approx(0.38, abs=0.04)


def test_fixed_environments():
    """Each environment for itself is fixed at k = 0 with probability 1/2, for a whole episode and
    no longer.
    """
    args = make_args("s2q", s2q_fixed_prob=0.5, epsilon_start=0.0, epsilon_finish=0.0)
    torch.manual_seed(0)
    mac, n = make_mac(args), 2000
    set_choice(mac, [1e-9, 0.5, 0.5])  # what is not fixed never follows Q_0
    batch = wide_batch(args, n)
    fixed = []
    for _ in range(2):
        mac.init_hidden(n)
        per_step = []
        for t in range(3):
            mac.select_actions(batch, t, t_env=0)
            per_step.append((mac.chosen == 0).all(-1))
            assert torch.equal((mac.chosen == 0).any(-1), per_step[-1])
        assert torch.equal(per_step[0], per_step[1])
        assert torch.equal(per_step[0], per_step[2])
        fixed.append(per_step[0])
    for share in (fixed[0], fixed[1]):
        assert share.float().mean() == pytest.approx(0.5, abs=0.04)
    assert (fixed[0] & fixed[1]).float().mean() == pytest.approx(0.25, abs=0.04)


def test_fixed_environments_stay_the_same_when_others_end():
    args = make_args("s2q", epsilon_start=0.0, epsilon_finish=0.0)
    torch.manual_seed(0)
    mac, n = make_mac(args), 200
    set_choice(mac, [1e-9, 0.5, 0.5])
    batch = wide_batch(args, n)
    mac.init_hidden(n)
    mac.select_actions(batch, 0, t_env=0)
    first = mac.chosen[:, 0] == 0
    rows = torch.arange(0, n, 3)
    mac.select_actions(batch, 1, t_env=0, bs=rows)
    assert torch.equal(mac.chosen[:, 0] == 0, first[rows])


def test_independent_agents_draw_their_own_k():
    args = make_args("s2q_independent", s2q_fixed_prob=0.0, epsilon_start=0.0, epsilon_finish=0.0)
    torch.manual_seed(0)
    mac, n = make_mac(args), 3000
    set_choice(mac, PROBABILITIES)
    batch = wide_batch(args, n)
    mac.init_hidden(n)
    actions = mac.select_actions(batch, 0, t_env=0)
    k = mac.chosen
    assert (k[:, 0] == k[:, 1]).float().mean() == pytest.approx(0.38, abs=0.04)
    for i in range(N_AGENTS):
        assert torch.allclose(
            torch.bincount(k[:, i], minlength=3) / n, torch.tensor(PROBABILITIES), atol=0.04
        )
    greedy = greedy_of_each(mac, batch, 0)
    assert torch.equal(actions, greedy.gather(0, k.unsqueeze(0))[0])


def test_epsilon_greedy_around_the_chosen_joint_action():
    """Epsilon 0.3: an agent deviates from its part of a_k* with probability 0.3 (1 - 1/4), each for
    itself.
    """
    args = make_args("s2q", epsilon_start=0.3, epsilon_finish=0.3)
    torch.manual_seed(0)
    mac, n = make_mac(args), 4000
    set_choice(mac, PROBABILITIES)
    batch = wide_batch(args, n)
    mac.init_hidden(n)
    actions = mac.select_actions(batch, 0, t_env=0)
    follows = actions == greedy_of_each(mac, batch, 0).gather(0, mac.chosen.unsqueeze(0))[0]
    share = 1 - 0.3 * (1 - 1 / N_ACTIONS)
    assert follows.float().mean() == pytest.approx(share, abs=0.02)
    assert (follows[:, 0] & follows[:, 1]).float().mean() == pytest.approx(share**2, abs=0.03)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_unavailable_actions_are_never_taken(epsilon):
    args = make_args("s2q", epsilon_start=epsilon, epsilon_finish=epsilon)
    torch.manual_seed(0)
    mac, batch = make_mac(args), make_batch(make_args("s2q"), (4,) * 300, (False,) * 300)
    mac.init_hidden(300)
    for t in range(3):
        actions = mac.select_actions(batch, t, t_env=0)
        assert bool((batch["avail_actions"][:, t].gather(-1, actions.unsqueeze(-1)) == 1).all())


@pytest.mark.parametrize("settings", NETWORKS, ids=str)
def test_acting_on_some_of_the_episodes(settings):
    """Hidden states of episodes that are left out stay; those of the others are as if all had been
    computed.
    """
    mac, batch = seeded_mac(**settings)
    whole, part = copy.deepcopy(mac), copy.deepcopy(mac)
    for each in (whole, part):
        each.init_hidden(batch.batch_size)
        each.forward_all(batch, 0)
    rows = torch.tensor([1, 3])
    for t in (1, 2, 3):
        values = whole.forward_all(batch, t)
        some = part.forward_all(batch, t, bs=rows)
        assert close(some.q, values.q[:, rows])
        assert close(some.z, values.z[rows])
    again = copy.deepcopy(mac)
    again.init_hidden(batch.batch_size)
    again.forward_all(batch, 0)
    expected = again.forward_all(batch, 1)
    late = part.forward_all(batch, 1, bs=torch.tensor([0, 2, 4]))
    assert close(late.q, expected.q[:, [0, 2, 4]])


@pytest.mark.parametrize("backbone", ["wqmix", "vdn", "qplex"])
@pytest.mark.parametrize("comm", [False, True])
def test_oracle_draws_from_the_true_distribution(backbone, comm, monkeypatch):
    """Its P_t, computed while acting, is the one that the learner trains the decoder towards."""
    alg = {"wqmix": "s2q_oracle", "vdn": "s2q_vdn", "qplex": "s2q_qplex"}[backbone]
    args = make_args(
        alg, s2q_select="oracle", s2q_comm=comm, s2q_fixed_prob=0.0, s2q_temperature=0.3
    )
    learner, _ = make_learner(args)
    batch = make_batch(args)
    steps = batch.steps()
    seen = []
    monkeypatch.setattr(
        learner, "choice", lambda best: seen.append(type(learner).choice(learner, best)) or seen[-1]
    )
    learner.mac.init_hidden(batch.batch_size)
    rows = [[b for b, length in enumerate(LENGTHS) if length > t + 1] for t in range(4)]
    for t in range(4):
        learner.mac.select_actions(batch, t, t_env=0, bs=torch.tensor(rows[t]))
    acting, seen[:] = list(seen), []
    with torch.enable_grad():
        learner.train(batch, 0, 1)
    trained = steps.unpack(torch.zeros(steps.n_rows, 3).index_copy(0, steps.rows_cur, seen[0]))
    for t in range(4):
        assert acting[t].shape == (len(rows[t]), 3)
        assert close(acting[t], trained[rows[t], t])
    assert (acting[0] - 1 / 3).abs().max() > 1e-3


def test_k_0_is_the_usual_agent():
    """One sub-value function: the weights of the recurrent agent load, and its values come out."""
    args = make_args("s2q", s2q_k=0)
    torch.manual_seed(0)
    mac, batch = make_mac(args), make_batch(args)
    usual = RNNAgent(mac.agent.fc1.in_features, args)
    mac.agent.load_state_dict(usual.state_dict())
    assert close(mac.unroll(batch), usual.unroll(mac.sequence_inputs(batch), batch.steps()))
    mac.init_hidden(batch.batch_size)
    mac.select_actions(batch, 0, t_env=0)
    assert bool((mac.chosen == 0).all())


def test_wrong_agent():
    with pytest.raises(ConfigError, match="agent=s2q_rnn"):
        make_mac(make_args("s2q", agent="mlp"))
