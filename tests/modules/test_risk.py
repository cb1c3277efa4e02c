"""Risk measures against integrals by hand, and agents that act on them."""

import math

import pytest
import torch
from learner_fixtures import make_args

from modules.agents.quantile_agent import QuantileAgent
from modules.risk import MEASURES, risk_weights
from utils.errors import ConfigError

CASES = [
    ("neutral", 0.0),
    ("wang", 0.75),
    ("wang", -0.5),
    ("cvar", 0.4),
    ("cvar", 1.0),
    ("cvar", -0.3),
    ("var", 0.0),
    ("var", 0.55),
    ("cpw", 0.71),
]


def normal(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def slope(name, parameter, tau):
    """g' at one tau, from the formulas of the measures."""
    if name == "neutral":
        return 1.0
    if name == "wang":  # density at the shifted place by density at the place
        low, high = -9.0, 9.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if normal(middle) < tau else (low, middle)
        x = (low + high) / 2
        return math.exp((x**2 - (x + parameter) ** 2) / 2)
    if name == "cvar":
        worst = tau < parameter if parameter > 0 else tau > 1 + parameter
        return worst / abs(parameter)
    h = 1e-6
    up, down = (
        MEASURES[name].g(torch.tensor(tau + s, dtype=torch.double), parameter) for s in (h, -h)
    )
    return float(up - down) / (2 * h)


@pytest.mark.parametrize(("name", "parameter"), [case for case in CASES if case[0] != "var"])
@pytest.mark.parametrize("n", [1, 5, 32])
def test_weights_are_the_integral_of_the_slope(name, parameter, n):
    weights = risk_weights(name, parameter, n)
    parts = 400
    # the slope of cpw is infinite at both ends
    for k in range(1, n - 1) if name == "cpw" else range(n):
        taus = [(k + (j + 0.5) / parts) / n for j in range(parts)]
        integral = sum(slope(name, parameter, tau) for tau in taus) / (parts * n)
        assert weights[k].item() == pytest.approx(integral, abs=3e-3 / n + 2e-3 * (n == 1))
    assert weights.sum().item() == pytest.approx(1.0)


def test_cumulative_prospect_by_hand():
    # g(1/2) = 2^-p / (2 2^-p)^(1/p) with p = 1/2: (1/2)^(1/2) / (2 (1/2)^(1/2))^2
    half = math.sqrt(0.5) / (2 * math.sqrt(0.5)) ** 2
    assert risk_weights("cpw", 0.5, 2).tolist() == pytest.approx([half, 1 - half])


def test_value_at_risk_is_one_quantile():
    assert risk_weights("var", 0.0, 4).tolist() == [1, 0, 0, 0]
    assert risk_weights("var", 0.49, 4).tolist() == [0, 1, 0, 0]
    assert risk_weights("var", 0.5, 4).tolist() == [0, 0, 1, 0]
    assert risk_weights("var", 0.99, 4).tolist() == [0, 0, 0, 1]


def test_conditional_value_at_risk_is_the_mean_of_the_worst():
    values = torch.tensor([-3.0, 0.0, 1.0, 8.0])
    assert (risk_weights("cvar", 0.5, 4) @ values).item() == -1.5
    assert (risk_weights("cvar", -0.5, 4) @ values).item() == 4.5
    # a quarter at -3 and an eighth at 0
    assert (risk_weights("cvar", 0.375, 4) @ values).item() == pytest.approx(-2.0)


def test_who_dislikes_risk_prefers_what_is_certain():
    safe, risky = torch.full((32,), 4.0), torch.linspace(0, 10, 32)
    for name, parameter, averse in (
        ("neutral", 0.0, False), ("wang", 0.75, True), ("wang", -0.75, False),
        ("cvar", 0.3, True), ("cvar", -0.3, False),
    ):  # fmt: skip
        weights = risk_weights(name, parameter, 32)
        assert (weights @ safe > weights @ risky) == averse, (name, parameter)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("cvar", 0.0), ("cvar", 1.5), ("var", 1.0), ("var", -0.1), ("cpw", 0.0), ("cpw", 1.5)],
)
def test_parameters_out_of_range(name, parameter):
    with pytest.raises(ConfigError, match=f"risk_parameter must be .* with risk_measure={name}"):
        risk_weights(name, parameter, 4)


def test_unknown_measure():
    with pytest.raises(ConfigError, match="risk_measure must be one of neutral, wang"):
        risk_weights("greed", 0.0, 4)


@pytest.mark.parametrize("share_params", [True, False])
def test_agent_shows_what_its_quantiles_are_worth(share_params):
    args = make_args("riskq", n_quantiles=5, share_params=share_params)
    agent = QuantileAgent(9, args)
    x, h = torch.randn(4, 3, 9), torch.randn(4, 3, 6)
    raw = []

    def keep(_, __, out):
        raw.append(out)

    agent.fc2.register_forward_hook(keep)
    outputs, hidden = agent.step(x, h)
    rows = raw[0].view(4, 3, -1) if share_params else raw[0].transpose(0, 1)
    for b in range(4):
        for i in range(3):
            for u in range(4):
                quantiles = sorted(rows[b, i, 5 * u : 5 * u + 5].tolist())
                worth = sum(w * z for w, z in zip(agent.weights.tolist(), quantiles, strict=True))
                assert outputs[b, i, u].item() == pytest.approx(worth, abs=1e-6)
    assert hidden.shape == h.shape
