"""Action selectors: distributions, availability; and the schedules, transforms and helpers that go
with them.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn

from components.action_selectors import (
    REGISTRY,
    EpsilonGreedyActionSelector,
    GumbelActionSelector,
    MultinomialActionSelector,
    SoftPoliciesSelector,
    greedy_actions,
    random_actions,
    register,
    sample_actions,
)
from components.distributions import MaskedCategorical
from components.epsilon_schedules import DecayThenFlatSchedule
from components.transforms import OneHot, Transform
from modules.layers import StackedLinear
from utils.errors import ConfigError, UserError
from utils.th_utils import get_parameters_num, orthogonal_init_

N = 40_000


def make_args(**changes):
    args = {
        "epsilon_start": 1.0,
        "epsilon_finish": 0.1,
        "epsilon_anneal_time": 100,
        "test_greedy": True,
        "evaluation_epsilon": 0.0,
    }
    assert set(changes) <= set(args)
    return SimpleNamespace(**{**args, **changes})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


def assert_distribution(actions, expected):
    """Chi-squared test of independent draws [N] against probabilities; a zero must never be
    drawn.
    """
    counts = torch.bincount(actions, minlength=len(expected)).tolist()
    assert len(counts) == len(expected)
    for count, p in zip(counts, expected, strict=True):
        if p == 0:
            assert count == 0
    observed = [c for c, p in zip(counts, expected, strict=True) if p > 0]
    total = sum(observed)
    assert stats.chisquare(observed, [p * total for p in expected if p > 0]).pvalue > 1e-3


def assert_independent(a, b, n_actions):
    """The actions of two agents, drawn together, do not depend on each other."""
    table = torch.zeros(n_actions, n_actions)
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        table[x, y] += 1
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


# Two agents, four actions
Q = torch.tensor([[[0.1, 5.0, -1.0, 9.0], [3.0, 2.0, 1.0, 0.0]]])
AVAIL = torch.tensor([[[1, 1, 1, 0], [0, 1, 0, 1]]], dtype=torch.uint8)


def repeat(x):
    return x.expand(N, *x.shape[1:])


# -- epsilon-greedy --------------------------------------------------------------------------------


def test_epsilon_greedy_distribution():
    selector = EpsilonGreedyActionSelector(make_args())
    actions = selector.select_action(repeat(Q), repeat(AVAIL), t_env=50)
    assert selector.epsilon == pytest.approx(0.55)
    assert actions.shape == (N, 2)
    assert actions.dtype == torch.int64
    third = 0.55 / 3
    assert_distribution(actions[:, 0], [third, 0.45 + third, third, 0])
    assert_distribution(actions[:, 1], [0, 0.45 + 0.275, 0, 0.275])
    assert_independent(actions[:, 0], actions[:, 1], 4)


def test_epsilon_greedy_ends():
    selector = EpsilonGreedyActionSelector(make_args(epsilon_finish=0.0))
    assert selector.epsilon == 1.0
    actions = selector.select_action(repeat(Q), repeat(AVAIL), t_env=0)
    assert_distribution(actions[:, 0], [1 / 3, 1 / 3, 1 / 3, 0])
    actions = selector.select_action(repeat(Q), repeat(AVAIL), t_env=100)
    assert (actions == torch.tensor([1, 1])).all()


def test_greedy_test_mode_draws_nothing_and_leaves_epsilon():
    selector = EpsilonGreedyActionSelector(make_args())
    selector.select_action(Q, AVAIL, t_env=50)
    state = torch.get_rng_state()
    assert selector.select_action(Q, AVAIL, t_env=80, test_mode=True).tolist() == [[1, 1]]
    assert torch.equal(torch.get_rng_state(), state)
    assert selector.epsilon == pytest.approx(0.55)


def test_selection_does_not_change_its_inputs_and_is_reproducible():
    selector = EpsilonGreedyActionSelector(make_args())
    q, avail = torch.randn(50, 2, 4), repeat(AVAIL)[:50].clone()
    q_before = q.clone()
    torch.manual_seed(1)
    first = selector.select_action(q, avail, t_env=50)
    torch.manual_seed(1)
    assert torch.equal(selector.select_action(q, avail, t_env=50), first)
    assert not torch.equal(selector.select_action(q, avail, t_env=50), first)
    assert torch.equal(q, q_before)
    assert torch.equal(avail, AVAIL.expand(50, 2, 4))


@pytest.mark.parametrize("key", ["epsilon_start", "epsilon_finish"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_epsilon_is_a_probability(key, value):
    with pytest.raises(ConfigError, match=f"{key} must be between 0 and 1, got {value}"):
        EpsilonGreedyActionSelector(make_args(**{key: value}))


# -- policies --------------------------------------------------------------------------------------

POLICY = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.25, 0.0, 0.25, 0.5]]])


def test_multinomial_mixes_the_policy_with_the_uniform_one():
    selector = MultinomialActionSelector(make_args())
    actions = selector.select_action(repeat(POLICY), repeat(AVAIL), t_env=50)
    policy = [1 / 6, 2 / 6, 3 / 6, 0]  # 0.1, 0.2, 0.3 over what is available
    expected = [[0.45 * p + (0.55 / 3 if p else 0) for p in policy], [0, 0.275, 0, 0.45 + 0.275]]
    assert_distribution(actions[:, 0], expected[0])
    assert_distribution(actions[:, 1], expected[1])
    assert_independent(actions[:, 0], actions[:, 1], 4)
    torch.testing.assert_close(selector.probabilities(POLICY, AVAIL), torch.tensor([expected]))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_acting_policy_is_the_mixture_and_can_be_differentiated(epsilon):
    selector = MultinomialActionSelector(make_args(epsilon_start=epsilon, epsilon_finish=epsilon))
    # Row 1, action 2: e^-300, 0 in float32. Row 2, behind an episode's end: nothing is available.
    logits = torch.tensor(
        [[0.0, 1.0, 2.0, 5.0], [0.0, 5.0, -300.0, 1.0], [0.0] * 4], requires_grad=True
    )
    avail = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [0] * 4])
    acting = selector.acting_policy(MaskedCategorical(logits, avail), avail)
    expected = selector.probabilities(logits[:2].softmax(-1), avail[:2])
    torch.testing.assert_close(acting.probs[:2], expected)
    acting.log_probs[1, 2].backward()
    assert logits.grad.isfinite().all()
    # d log((1 - e) pi_2 + e / 3) / d l_2 = (1 - e) pi_2 (1 - pi_2) / (...): 1 without random
    # actions, else 0 here.
    assert logits.grad[1, 2].item() == pytest.approx(float(epsilon == 0), abs=1e-6)


def test_multinomial_in_tests():
    state = torch.get_rng_state()
    greedy = MultinomialActionSelector(make_args())
    assert greedy.select_action(POLICY, AVAIL, t_env=0, test_mode=True).tolist() == [[2, 3]]
    assert torch.equal(torch.get_rng_state(), state)
    sampling = MultinomialActionSelector(make_args(test_greedy=False))
    actions = sampling.select_action(repeat(POLICY), repeat(AVAIL), t_env=0, test_mode=True)
    assert_distribution(actions[:, 0], [1 / 6, 2 / 6, 3 / 6, 0])
    assert (actions[:, 1] == 3).all()


def test_soft_policies_sample_the_policy():
    selector = SoftPoliciesSelector(make_args())
    for test_mode in (False, True):
        actions = selector.select_action(
            repeat(POLICY), repeat(torch.ones_like(AVAIL)), t_env=0, test_mode=test_mode
        )
        assert_distribution(actions[:, 0], [0.1, 0.2, 0.3, 0.4])
        assert_distribution(actions[:, 1], [0.25, 0, 0.25, 0.5])


def test_gumbel_samples_the_softmax_of_logits():
    logits = torch.tensor([[[0.0, 1.0, -1.0, 9.0], [0.0, 2.0, 0.0, 1.0]]])
    selector = GumbelActionSelector(make_args())
    actions = selector.select_action(repeat(logits), repeat(AVAIL), t_env=0)
    for agent, available in enumerate([(0, 1, 2), (1, 3)]):
        weights = [math.exp(logits[0, agent, u]) if u in available else 0.0 for u in range(4)]
        assert_distribution(actions[:, agent], [w / sum(weights) for w in weights])
    assert_independent(actions[:, 0], actions[:, 1], 4)
    assert selector.select_action(logits, AVAIL, 0, test_mode=True).tolist() == [[1, 1]]
    sampling = GumbelActionSelector(make_args(test_greedy=False))
    assert (
        len(sampling.select_action(repeat(logits), repeat(AVAIL), 0, test_mode=True)[:, 0].unique())
        == 3
    )


# -- availability ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epsilon_greedy", "multinomial", "soft_policies", "gumbel"])
@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize("t_env", [0, 50, 10**9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_never_an_unavailable_action(name, test_mode, t_env, dtype):
    selector = REGISTRY[name](make_args())
    avail = torch.rand(300, 5, 6) < 0.3
    avail.scatter_(-1, torch.randint(6, (300, 5, 1)), True)
    for fill in (0.5, 0.0, 1e-45, -torch.inf, torch.inf, torch.nan, torch.finfo(torch.float32).min):
        if fill < 0 and name in ("multinomial", "soft_policies"):
            continue  # not a probability
        inputs = torch.full(avail.shape, fill)
        inputs[~avail] = 1e30  # what must not be taken looks best
        inputs[::2] = fill
        actions = selector.select_action(inputs, avail.to(dtype), t_env, test_mode=test_mode)
        assert avail.gather(-1, actions.unsqueeze(-1)).all(), fill


@pytest.mark.parametrize("name", ["epsilon_greedy", "multinomial", "soft_policies", "gumbel"])
@pytest.mark.parametrize("test_mode", [False, True])
def test_an_agent_without_actions_is_an_error(name, test_mode):
    selector = REGISTRY[name](make_args())
    avail = torch.ones(2, 3, 4, dtype=torch.uint8)
    avail[1, 2] = 0
    with pytest.raises(ValueError, match=r"no action is available at index \[1, 2\]"):
        selector.select_action(torch.rand(2, 3, 4), avail, 0, test_mode=test_mode)


def test_greedy_takes_the_first_of_equals_and_avoids_nan():
    avail = torch.tensor([1, 0, 1, 1])
    assert greedy_actions(torch.tensor([1.0, 9.0, 2.0, 2.0]), avail).item() == 2
    assert greedy_actions(torch.tensor([torch.nan, 9.0, -3.0, -torch.inf]), avail).item() == 2
    assert greedy_actions(torch.tensor([-1.0, 9.0, torch.inf, 5.0]), avail).item() == 2


def test_random_actions_are_uniform():
    actions = random_actions(repeat(AVAIL))
    assert_distribution(actions[:, 0], [1 / 3, 1 / 3, 1 / 3, 0])
    assert_distribution(actions[:, 1], [0, 1 / 2, 0, 1 / 2])


def test_weights_without_mass_are_uniform():
    weights = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [torch.nan, torch.nan, 1.0, 0.0]]])
    actions = sample_actions(repeat(weights), repeat(AVAIL))
    assert_distribution(actions[:, 0], [1 / 3, 1 / 3, 1 / 3, 0])
    assert_distribution(actions[:, 1], [0, 1 / 2, 0, 1 / 2])


def test_registry():
    assert REGISTRY["epsilon_greedy"] is EpsilonGreedyActionSelector
    with pytest.raises(
        UserError, match="unknown action selector 'epsilon_gredy'; did you mean 'epsilon_greedy'"
    ):
        REGISTRY["epsilon_gredy"]
    with pytest.raises(ValueError, match="already registered"):
        register("gumbel")(EpsilonGreedyActionSelector)


# -- schedules -------------------------------------------------------------------------------------


def test_linear_schedule():
    schedule = DecayThenFlatSchedule(1.0, 0.05, 50_000, decay="linear")
    assert [schedule.eval(t) for t in (0, 25_000, 50_000, 10**7)] == [
        1.0,
        pytest.approx(0.525),
        0.05,
        0.05,
    ]
    rising = DecayThenFlatSchedule(0.0, 2.0, 10, decay="linear")
    assert [rising.eval(t) for t in (0, 5, 20)] == [0.0, 1.0, 2.0]


def test_exponential_schedule():
    schedule = DecayThenFlatSchedule(1.0, 0.01, 100)
    assert [schedule.eval(t) for t in (0, 50, 100, 200)] == [1.0, pytest.approx(0.1), 0.01, 0.01]
    capped = DecayThenFlatSchedule(0.5, 0.01, 100, decay="exp")
    assert capped.eval(10) == 0.5  # 0.01 ** 0.1 = 0.63
    assert capped.eval(50) == pytest.approx(0.1)
    to_zero = DecayThenFlatSchedule(1.0, 0.0, 100, decay="exp")
    assert [to_zero.eval(t) for t in (0, 2, 100)] == [1.0, pytest.approx(math.exp(-2)), 0.0]


def test_schedule_of_no_length_is_flat():
    for decay in ("linear", "exp"):
        assert DecayThenFlatSchedule(1.0, 0.1, 0, decay=decay).eval(0) == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1, 10, "cosine"), "schedule's decay must be one of linear, exp, got 'cosine'"),
        ((1.0, 0.1, -1, "linear"), "time_length must be at least 0, got -1"),
        ((0.1, 1.0, 10, "exp"), "from 0.1 to 1.0"),
        ((1.0, -0.1, 10, "exp"), "from 1.0 to -0.1"),
    ],
)
def test_schedules_that_make_no_sense(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DecayThenFlatSchedule(*arguments)


# -- transforms, torch helpers ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_onehot(dtype):
    onehot = OneHot(3)
    out = onehot.transform(torch.tensor([[[2], [0]], [[1], [1]]], dtype=dtype))
    assert out.dtype == torch.float32
    assert out.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]]
    assert onehot.infer_output_info((1,), dtype) == ((3,), torch.float32)
    assert isinstance(onehot, Transform)
    with pytest.raises(RuntimeError):
        onehot.transform(torch.tensor([[3]], dtype=dtype))


def test_parameter_count():
    assert get_parameters_num(nn.Linear(10, 100).parameters()) == "1.100K"


def test_orthogonal_init():
    linear, stacked = nn.Linear(6, 4), StackedLinear(6, 4, groups=3)
    conv, norm = nn.Conv1d(2, 3, 4), nn.LayerNorm(4)
    before = [p.clone() for m in (conv, norm) for p in m.parameters()]
    for module in (linear, stacked, conv, norm, nn.ReLU()):
        orthogonal_init_(module, gain=2.0)
    for matrix in [linear.weight, *stacked.weight]:
        torch.testing.assert_close(matrix @ matrix.T, 4 * torch.eye(4), rtol=1e-5, atol=1e-5)
    assert not torch.equal(stacked.weight[0], stacked.weight[1])
    assert not linear.bias.any()
    assert not stacked.bias.any()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [p for m in (conv, norm) for p in m.parameters()], strict=True)
    )


def test_evaluation_epsilon_explores_in_evaluation():
    selector = REGISTRY["epsilon_greedy"](make_args(evaluation_epsilon=0.4))
    torch.manual_seed(0)
    values = torch.tensor([0.0, 0.0, 1.0, 2.0]).expand(2000, 1, 4)
    available = torch.tensor([1, 1, 1, 1]).expand_as(values)
    picks = selector.select_action(values, available, t_env=50, test_mode=True)
    shares = torch.bincount(picks.flatten(), minlength=4) / 2000
    assert torch.allclose(shares, torch.tensor([0.1, 0.1, 0.1, 0.7]), atol=0.03)
    assert selector.epsilon == 1.0  # that of training, as it was
