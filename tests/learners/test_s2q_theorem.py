"""S2Q, theorem 4.1: with enough suppression a_k* is the (k + 1)-th best joint action of Q*."""

import itertools

import numpy as np
import pytest
import torch
from learner_fixtures import make_args, make_learner

from assembly import new_batch
from learners.s2q.learner import identified


def joint_actions(n_agents, n_actions):
    return list(itertools.product(range(n_actions), repeat=n_agents))


def exact_minimiser(targets, joint):
    """Utilities of the IGM function that equals `targets` everywhere: any table with one maximum is
    such a function.

    An agent's utility of an action is the largest joint value with it.
    """
    n_agents, n_actions = len(joint[0]), max(max(a) for a in joint) + 1
    utilities = np.full((n_agents, n_actions), -np.inf)
    for a, value in zip(joint, targets.tolist(), strict=True):
        for i, u in enumerate(a):
            utilities[i, u] = max(utilities[i, u], value)
    return utilities.argmax(1)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("seed", range(20))
def test_exact_minimisation_finds_the_best_joint_actions_in_turn(seed, offset):
    """Random payoffs, Q* exact, every Q_k the exact minimiser of its loss (eq. 2) given the ones
    before it.

    The factor need not exceed max (Q*(a) - min Q*) / (Q*(a) + C) (eq. B.2), for payoffs that are
    positive with C.
    """
    rng = np.random.default_rng(seed)
    n_agents, n_actions, n_values = int(rng.integers(1, 4)), int(rng.integers(3, 5)), 3
    joint = joint_actions(n_agents, n_actions)
    low = 1.0 if offset == 0.0 else -20.0
    q_star = torch.from_numpy(rng.uniform(low, 20.0, len(joint)))
    factor = float(((q_star - q_star.min()) / (q_star + offset)).max()) + 1e-6
    actions = torch.tensor(joint)

    def found(lam):
        greedy = torch.full((n_values, len(joint), n_agents), -1)
        for k in range(n_values):
            suppressed = lam * (q_star + offset) * identified(actions, greedy)[k].squeeze(-1)
            greedy[k] = torch.from_numpy(exact_minimiser(q_star - suppressed, joint))
        return [tuple(g[0].tolist()) for g in greedy]

    ranked = [joint[i] for i in q_star.argsort(descending=True)[:n_values].tolist()]
    assert found(factor) == ranked
    assert found(0.0) == [ranked[0]] * n_values  # without suppression nothing is retained


def payoff_batch(args, joint, payoffs):
    """Every joint action of a one-state game once, as an episode of one step."""
    n = len(joint)
    batch = new_batch(args, n, 2)
    ones = {
        "state": torch.ones(n, 2, args.state_shape),
        "obs": torch.ones(n, 2, args.n_agents, args.obs_shape),
        "avail_actions": torch.ones(n, 2, args.n_agents, args.n_actions),
        "actions": torch.tensor(joint).view(n, 1, -1, 1).expand(n, 2, -1, 1),
    }
    batch.update(ones)
    batch.update(
        {"reward": torch.as_tensor(payoffs, dtype=torch.float32), "terminated": torch.ones(n)}, ts=0
    )
    return batch


@pytest.mark.parametrize("seed", [0, 1])
def test_training_finds_the_best_joint_actions_in_turn(seed):
    """The learner itself, monotone mixers, random games that monotone functions can represent for
    every k.

    One agent's actions have values v, if the other agent takes a certain action; everything else
    pays -4. With v and lam (v + C) large enough the suppressed payoffs are of the same form, so
    monotone in suitable orders of the actions.
    """
    rng = np.random.default_rng(seed)
    joint = joint_actions(2, 3)
    key, free = rng.permutation(2)
    right, values = rng.integers(3), rng.permutation([8.0, 6.0, 4.0])
    payoffs = [values[a[free]] if a[key] == right else -4.0 for a in joint]
    args = make_args(
        "s2q", n_agents=2, n_actions=3, obs_shape=1, state_shape=1, lr=0.02, s2q_alpha=0.9,
        s2q_lambda=1.0,
        s2q_offset=0.0, rnn_hidden_dim=16, mixing_embed_dim=16, hypernet_embed=16,
        central_rnn_hidden_dim=16,
        central_mixing_embed_dim=32, grad_norm_clip=10, learner_log_interval=10**9,
    )  # fmt: skip
    learner, _ = make_learner(args, seed)
    batch = payoff_batch(args, joint, payoffs)
    for i in range(350):
        learner.train(batch, i, i)
    with torch.no_grad():
        greedy = learner.mac.unroll_all(batch).q[:, 0].argmax(-1)
    ranked = [joint[i] for i in np.argsort(payoffs)[::-1][:3]]
    assert [tuple(g.tolist()) for g in greedy] == ranked
