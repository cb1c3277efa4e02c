"""F2A2's joint gradients against propositions 3 to 6, written as loops over tables with exact
expectations.

Two agents, each with its own tables: two situations s, three own actions a, two actions b of the
other. All probabilities are multiples of a quarter, so a batch with every case as often as it is
probable has means that are exact expectations.
"""

import itertools

import pytest
import torch

from learners.f2a2.losses import (
    joint_weights,
    off_policy_critic_loss,
    on_policy_actor_loss,
    on_policy_critic_loss,
    pathwise_actor_loss,
    soft_actor_loss,
    truncated_ratio,
)

A1, A2, TEMPERATURE = 0.3, 0.7, 0.2
SITUATIONS = [0.25, 0.75]
N, C, S, U, B = 2, 2, 2, 3, 2
SCALE = {True: 1.0, False: 0.0}

# Of agent n in situation s: the present policy, what the replayed actions came from, and both of
# the other agent.
PRESENT = [[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]]
BEHAVIOUR = [[[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]], [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]]
OTHER = [[[0.5, 0.5], [0.25, 0.75]], [[0.75, 0.25], [0.5, 0.5]]]
OTHER_BEHAVIOUR = [[[0.25, 0.75], [0.5, 0.5]], [[0.5, 0.5], [0.75, 0.25]]]


@pytest.fixture
def tables():
    """Q [n, c, s, a, b] and targets [n, s, a, b]."""
    rng = torch.Generator().manual_seed(3)
    return (
        torch.randn(N, C, S, U, B, generator=rng, dtype=torch.float64),
        torch.randn(N, S, U, B, generator=rng, dtype=torch.float64),
    )


def cases(*distributions):
    """Every combination of outcomes, as often as it is probable: distributions[k][s] -> rows (s,
    x_0, x_1, ...).
    """
    rows = []
    for s, weight in enumerate(SITUATIONS):
        outcomes = [
            [x for x, p in enumerate(d[s]) for _ in range(round(4 * p))] for d in distributions
        ]
        rows += [(s, *xs) for xs in itertools.product(*outcomes) for _ in range(round(4 * weight))]
    return torch.tensor(rows)


def batches(*kinds):
    """`cases` of both agents: index tensors [N, M] for s and every kind."""
    per_agent = torch.stack([cases(*(kind[n] for kind in kinds)) for n in range(N)])
    return per_agent.unbind(-1)


def lookup(table, *index):
    """table [N, (C,) ...] at rows of index [N, M]: [N, (C,) M], with gradient."""
    out = []
    for n in range(N):
        rows = [i[n] for i in index]
        out.append(
            table[n][(..., *rows)] if table.dim() == len(index) + 2 else table[n][tuple(rows)]
        )
    return torch.stack(out)


def logits():
    return torch.tensor(PRESENT, dtype=torch.float64).log().requires_grad_()


def log_of(table):
    return torch.tensor(table, dtype=torch.float64).log()


def weights_of(joint):
    """alpha_1 and alpha_2 in the actors' gradient, then in the critics'."""
    return (A1, A2, A1, A2) if joint else (A1, 0.0, 0.0, A2)


def grad_log(n, s, a, u):
    """d log pi(a) / d logit u."""
    return (a == u) - PRESENT[n][s][u]


def assert_equal(mine, reference):
    reference = torch.tensor(reference, dtype=torch.float64).view_as(mine)
    assert torch.allclose(mine, reference, atol=1e-12)
    assert reference.abs().max() > 1e-3


@pytest.mark.parametrize("joint", [True, False])
def test_proposition_3(tables, joint):
    q, target = tables[0][:, :1].clone().requires_grad_(), tables[1]
    theta = logits()
    s, a, b = batches(PRESENT, OTHER)
    values = lookup(q, s, a, b)
    error = values - lookup(target, s, a, b).unsqueeze(1)
    weights = joint_weights(A1, A2, SCALE[joint])
    on_policy_critic_loss(values, error, weights).sum().backward()

    log_prob = lookup(theta.log_softmax(-1), s, a)
    all_q = torch.stack([lookup(q, s, torch.full_like(a, u), b)[:, 0] for u in range(U)], -1)
    probs = torch.stack([torch.tensor(PRESENT[n], dtype=torch.float64)[s[n]] for n in range(N)])
    baseline = (probs * all_q).sum(-1)
    on_policy_actor_loss(log_prob, values[:, 0], baseline, error[:, 0], weights).sum().backward()

    actor_1, actor_2, critic_1, critic_2 = weights_of(joint)
    of_theta = [[[0.0] * U for _ in range(S)] for _ in range(N)]
    of_q = torch.zeros(N, 1, S, U, B, dtype=torch.float64)
    for n, s, a, b in itertools.product(range(N), range(S), range(U), range(B)):
        p = SITUATIONS[s] * PRESENT[n][s][a] * OTHER[n][s][b]
        value = q[n, 0, s, a, b].item()
        delta = value - target[n, s, a, b].item()
        base = sum(PRESENT[n][s][x] * q[n, 0, s, x, b].item() for x in range(U))
        of_q[n, 0, s, a, b] = p * (critic_1 + 2 * critic_2 * delta)
        for u in range(U):
            # The proposition's alpha_1 (Q - B + alpha_2 / alpha_1 delta^2), multiplied out.
            of_theta[n][s][u] += (
                p * grad_log(n, s, a, u) * (actor_1 * (value - base) + actor_2 * delta**2)
            )
    assert_equal(q.grad, of_q.tolist())
    assert_equal(theta.grad, of_theta)


def off_policy_parts(tables, bound):
    """Everything that propositions 4 to 6 read: replayed (a, b) and resampled (x, y) actions of all
    cases.
    """
    q, target = tables[0].clone().requires_grad_(), tables[1]
    theta = logits()
    s, a, b, x, y = batches(BEHAVIOUR, OTHER_BEHAVIOUR, PRESENT, OTHER)
    log_probs, behaviour = theta.log_softmax(-1), log_of(BEHAVIOUR)
    parts = {}
    for name, own, other in (("replayed", a, b), ("resampled", x, y)):
        values = lookup(q, s, own, other)
        parts[name] = {
            "q": values,
            "error": values - lookup(target, s, own, other).unsqueeze(1),
            "log_prob": lookup(log_probs, s, own),
            "behaviour": lookup(behaviour, s, own),
            "other": other,
        }
    old, new = parts["replayed"], parts["resampled"]
    old["ratio"] = truncated_ratio(old["log_prob"], old["behaviour"], bound)
    new["ratio"] = truncated_ratio(new["behaviour"], new["log_prob"], bound)
    return q, target, theta, s, old, new


@pytest.mark.parametrize("bound", [1.0, 1.5])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("critics", [1, 2])
def test_critics_of_propositions_4_to_6(tables, critics, joint, bound):
    q, target, _, _, old, new = off_policy_parts((tables[0][:, :critics], tables[1]), bound)
    loss = off_policy_critic_loss(
        old["q"],
        old["error"],
        old["ratio"],
        new["q"],
        new["error"],
        new["ratio"],
        joint_weights(A1, A2, SCALE[joint]),
    )
    loss.sum().backward()
    _, _, alpha_1, alpha_2 = weights_of(joint)
    reference = torch.zeros_like(q)
    for n, c, s, a, b in itertools.product(range(N), range(critics), range(S), range(U), range(B)):
        delta = (q[n, c, s, a, b] - target[n, s, a, b]).item()
        pi, pi_0 = PRESENT[n][s][a], BEHAVIOUR[n][s][a]
        first = alpha_1 if c == 0 else 0.0
        replayed = (
            pi_0 * OTHER_BEHAVIOUR[n][s][b] * (first * min(bound, pi / pi_0) + 2 * alpha_2 * delta)
        )
        resampled = pi * OTHER[n][s][b] * (first + 2 * alpha_2 * delta * min(bound, pi_0 / pi))
        reference[n, c, s, a, b] = SITUATIONS[s] * (replayed + resampled)
    assert_equal(q.grad, reference.tolist())


@pytest.mark.parametrize("bound", [1.0, 1.5])
@pytest.mark.parametrize("joint", [True, False])
def test_actor_of_proposition_6(tables, joint, bound):
    q, target, theta, s, old, new = off_policy_parts(tables, bound)
    for part in (old, new):
        all_q = torch.stack(
            [lookup(q, s, torch.full_like(s, u), part["other"])[:, 0] for u in range(U)], -1
        )
        probs = torch.stack([torch.tensor(PRESENT[n], dtype=torch.float64)[s[n]] for n in range(N)])
        part["advantage"] = (
            part["q"][:, 0] + TEMPERATURE * part["log_prob"] - (probs * all_q).sum(-1)
        )
    loss = soft_actor_loss(
        *(old[key] for key in ("log_prob", "advantage", "ratio")),
        *(new[key] for key in ("log_prob", "advantage", "error", "ratio")),
        joint_weights(A1, A2, SCALE[joint]),
    )
    loss.sum().backward()
    alpha_1, alpha_2, _, _ = weights_of(joint)
    reference = [[[0.0] * U for _ in range(S)] for _ in range(N)]
    for n, s_, a, b in itertools.product(range(N), range(S), range(U), range(B)):
        pi, pi_0 = PRESENT[n][s_][a], BEHAVIOUR[n][s_][a]
        base = sum(PRESENT[n][s_][x] * q[n, 0, s_, x, b].item() for x in range(U))
        # As a cost, entropy has the sign opposite to the paper's.
        soft = (
            q[n, 0, s_, a, b].item()
            + TEMPERATURE * torch.tensor(pi, dtype=torch.float64).log().item()
            - base
        )
        errors = sum((q[n, c, s_, a, b] - target[n, s_, a, b]).item() ** 2 for c in range(C))
        replayed = pi_0 * OTHER_BEHAVIOUR[n][s_][b] * alpha_1 * min(bound, pi / pi_0) * soft
        resampled = (
            pi * OTHER[n][s_][b] * (alpha_1 * soft + alpha_2 * min(bound, pi_0 / pi) * errors)
        )
        for u in range(U):
            reference[n][s_][u] += SITUATIONS[s_] * (replayed + resampled) * grad_log(n, s_, a, u)
    assert_equal(theta.grad, reference)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("critics", [1, 2])
def test_actors_of_propositions_4_and_5(tables, critics, joint):
    """An own action that moves with the logits: the softmax of logits and noise, for three
    noises.
    """
    table, target = tables[0][:, :critics], tables[1]
    noises = torch.tensor(
        [[0.3, -0.4, 0.1], [-1.0, 0.2, 0.9], [0.0, 0.7, -0.5]], dtype=torch.float64
    )
    theta = logits()
    s, b, k = batches(OTHER, [[[0.25, 0.25, 0.5]] * S] * N)
    own = torch.stack([(theta[n][s[n]] + noises[k[n]]).softmax(-1) for n in range(N)])
    all_q = torch.stack([lookup(table, s, torch.full_like(s, u), b) for u in range(U)], -1)
    q = (all_q * own.unsqueeze(1)).sum(-1)
    chosen = own.argmax(-1)
    error = q - lookup(target, s, chosen, b).unsqueeze(1)
    ratio = truncated_ratio(
        lookup(log_of(BEHAVIOUR), s, chosen), lookup(log_of(PRESENT), s, chosen), 1.0
    )
    pathwise_actor_loss(q, error, ratio, joint_weights(A1, A2, SCALE[joint])).sum().backward()

    alpha_1, alpha_2, _, _ = weights_of(joint)
    reference = [[[0.0] * U for _ in range(S)] for _ in range(N)]
    for n, s_, b_, k_ in itertools.product(range(N), range(S), range(B), range(3)):
        p = SITUATIONS[s_] * OTHER[n][s_][b_] * (0.25, 0.25, 0.5)[k_]
        weight = [PRESENT[n][s_][u] * 2.718281828459045 ** noises[k_, u].item() for u in range(U)]
        soft = [w / sum(weight) for w in weight]
        best = soft.index(max(soft))
        inverse = min(1.0, BEHAVIOUR[n][s_][best] / PRESENT[n][s_][best])
        for c in range(critics):
            of_action = [table[n, c, s_, u, b_].item() for u in range(U)]
            value = sum(x * y for x, y in zip(soft, of_action, strict=True))
            delta = value - target[n, s_, best, b_].item()
            coefficient = (alpha_1 if c == 0 else 0.0) + 2 * alpha_2 * delta * inverse
            for u in range(U):
                # Row u of the softmax' Jacobian, soft_u (1[u = v] - soft_v), times grad_a Q.
                moved = sum(soft[u] * ((u == v) - soft[v]) * of_action[v] for v in range(U))
                reference[n][s_][u] += p * coefficient * moved
    assert_equal(theta.grad, reference)


def test_ratios_are_cut_and_carry_no_gradient():
    log_probs = torch.tensor([0.1, 0.5, 0.9]).log().requires_grad_()
    ratio = truncated_ratio(log_probs, torch.tensor([0.2, 0.25, 0.9]).log(), 1.0)
    assert not ratio.requires_grad
    assert torch.allclose(ratio, torch.tensor([0.5, 1.0, 1.0]))


def test_temperature_makes_the_policy_more_random():
    """Where the critic is indifferent, the soft actor's step raises the entropy of a policy."""
    theta = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    log_probs = theta.log_softmax(-1)
    # Every action as often as it is probable, in expectation: rows weighted by hand.
    probs = log_probs.detach().exp()
    loss = sum(
        probs[u]
        * soft_actor_loss(
            *(x.view(1, 1) for x in (log_probs[u], TEMPERATURE * log_probs[u], torch.tensor(1.0))),
            *(x.view(1, 1) for x in (log_probs[u], TEMPERATURE * log_probs[u])),
            torch.zeros(1, 2, 1),
            torch.ones(1, 1),
            joint_weights(1.0, 1.0, 1.0),
        ).sum()
        for u in range(U)
    )
    loss.backward()
    before = -(probs * probs.log()).sum()
    after = (theta - 0.1 * theta.grad).log_softmax(-1)
    assert -(after.exp() * after).sum() > before + 1e-3
