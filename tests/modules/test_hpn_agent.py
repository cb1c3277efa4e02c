"""The hyper-policy network against loops over entities, and its symmetries."""

import pytest
import torch
from learner_fixtures import LENGTHS, make_args, make_batch, make_learner
from transition_fixtures import assert_continues

from components.steps import Steps
from modules.agents import REGISTRY as AGENTS
from modules.agents.hpn_agent import EntityLayout
from utils.errors import ConfigError

# Three agents that see four enemies of three entries and two allies of four: two entries of their
# own before them, three behind; the first of these tells who heals.
N_AGENTS, N_ENEMIES, MOVE, ENEMY, ALLY, OWN = 3, 4, 2, 3, 4, 3
FIRST_ALLY = MOVE + N_ENEMIES * ENEMY
HEALER = FIRST_ALLY + (N_AGENTS - 1) * ALLY
OBS = HEALER + OWN
FIRST_TARGET = 5
LAYOUT = {
    "n_enemies": N_ENEMIES,
    "first_enemy": MOVE,
    "enemy_size": ENEMY,
    "n_allies": N_AGENTS - 1,
    "first_ally": FIRST_ALLY,
    "ally_size": ALLY,
    "first_target": FIRST_TARGET,
    "healer": None,
}


def hpn_args(healer=None, **overrides):
    sizes = {"n_actions": FIRST_TARGET + N_ENEMIES, "obs_shape": OBS, "hpn_hyper_dim": 6}
    args = make_args("hpn_qmix", **{**sizes, **overrides})
    args.env, args.env_info = "some_env", {"obs_entities": {**LAYOUT, "healer": healer}}
    return args


def make_agent(healer=None, heads=1, seed=0):
    torch.manual_seed(seed)
    agent = AGENTS["hpn_rnn"](OBS + N_AGENTS, hpn_args(healer, hpn_heads=heads))
    for param in agent.parameters():  # also the weights of heads, which begin equal
        torch.nn.init.normal_(param, std=0.4)
    return agent


def make_inputs(n=6, seed=1):
    """Inputs [n, A, F], the last agent a healer."""
    torch.manual_seed(seed)
    x = torch.randn(n, N_AGENTS, OBS + N_AGENTS)
    x[..., HEALER] = torch.tensor([0.0, 0.0, 1.0])
    return x


def swapped(x, order, first, size):
    """Inputs with the entities from entry `first` on in another order."""
    out = x.clone()
    for new, old in enumerate(order):
        out[..., first + new * size : first + (new + 1) * size] = x[
            ..., first + old * size : first + (old + 1) * size
        ]
    return out


def mean_over_heads(merger, parts):
    """parts: a list of [n], one per head."""
    if merger.weight is None:
        return parts[0]
    weights = merger.weight.exp() / merger.weight.exp().sum(0)
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def by_entity(network, entity):
    """What a hypernetwork of two layers makes of an entity."""
    first, second = network
    hidden = (first.weight @ entity + first.bias).clamp(min=0)
    return second.weight @ hidden + second.bias


def slow_step(agent, row, h):
    """One agent's outputs [U] and hidden state [H], entity by entity."""
    width, heads = agent.hidden_dim, agent.heads
    enemies = [row[MOVE + k * ENEMY : MOVE + (k + 1) * ENEMY] for k in range(N_ENEMIES)]
    allies = [row[FIRST_ALLY + k * ALLY : FIRST_ALLY + (k + 1) * ALLY] for k in range(N_AGENTS - 1)]
    own = torch.cat([row[:MOVE], row[HEALER:]])
    x = agent.fc_own.weight @ own + agent.fc_own.bias
    total = 0.0
    for entities, network in ((enemies, agent.enemy_input), (allies, agent.ally_input)):
        for entity in entities:
            weights = by_entity((network.first, network.second), entity)
            total = total + entity @ weights.view(len(entity), heads * width)
    x = (x + mean_over_heads(agent.merge_input, list(total.view(heads, width)))).clamp(min=0)
    rnn = agent.rnn
    weights = rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh
    h = torch.gru_cell(x.unsqueeze(0), h.unsqueeze(0), *weights)[0]

    def aimed(network, merger, entities):
        values = []
        for entity in entities:
            weights = by_entity((network.first, network.second), entity).view(width, heads)
            biases = by_entity((network.first_bias, network.second_bias), entity)
            parts = [(h @ weights[:, k] + biases[k]).view(1) for k in range(heads)]
            values.append(mean_over_heads(merger, parts)[0])
        return values

    q = list(agent.fc_others.weight @ h + agent.fc_others.bias)
    if agent.ally_output is not None and row[HEALER] == 1:
        others = aimed(agent.ally_output, agent.merge_ally_output, allies)
        number = int(row[OBS:].argmax())
        return q, [*others[:number], torch.zeros(()), *others[number:], torch.zeros(())], h
    return q, aimed(agent.enemy_output, agent.merge_output, enemies), h


@pytest.mark.parametrize("healer", [None, HEALER])
@pytest.mark.parametrize("heads", [1, 2])
def test_one_step_entity_by_entity(heads, healer):
    agent, x = make_agent(healer, heads), make_inputs()
    x[..., OBS:] = torch.eye(N_AGENTS)
    h = torch.randn(len(x), N_AGENTS, agent.hidden_dim)
    out, new = agent.step(x, h)
    for b in range(len(x)):
        for i in range(N_AGENTS):
            others, targets, memory = slow_step(agent, x[b, i], h[b, i])
            assert out[b, i].tolist() == pytest.approx(
                [float(q) for q in [*others, *targets]], rel=1e-3, abs=1e-4
            )
            assert torch.allclose(new[b, i], memory, atol=1e-5)


@pytest.mark.parametrize("healer", [None, HEALER])
def test_unroll_equals_steps(healer):
    agent, steps = make_agent(healer, heads=2), Steps(torch.tensor(LENGTHS), max(LENGTHS))
    x = make_inputs(len(LENGTHS) * max(LENGTHS)).unflatten(0, (len(LENGTHS), -1))
    hidden, outputs = agent.init_hidden().expand(len(LENGTHS), N_AGENTS, -1), []
    for t in range(max(LENGTHS)):
        out, hidden = agent(x[:, t].flatten(0, 1), hidden)
        hidden = hidden.view(len(LENGTHS), N_AGENTS, -1)
        outputs.append(out.view(len(LENGTHS), N_AGENTS, -1))
    expected = steps.pack(torch.stack(outputs, dim=1))
    assert torch.allclose(agent.unroll(steps.pack(x), steps), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("heads", [1, 2])
def test_order_of_enemies(heads, seed):
    """Invariant where no action is aimed at them, equivariant where one is; a healer's actions are
    aimed at nobody of them.
    """
    agent, x = make_agent(HEALER, heads, seed), make_inputs(seed=seed)
    order = torch.randperm(N_ENEMIES).tolist()
    h = torch.randn(len(x), N_AGENTS, agent.hidden_dim)
    out, memory = agent.step(x, h)
    other, other_memory = agent.step(swapped(x, order, MOVE, ENEMY), h)
    assert torch.allclose(memory, other_memory, atol=1e-5)
    assert torch.allclose(out[..., :FIRST_TARGET], other[..., :FIRST_TARGET], atol=1e-5)
    targets, other_targets = out[..., FIRST_TARGET:], other[..., FIRST_TARGET:]
    assert torch.allclose(targets[:, :2][..., order], other_targets[:, :2], atol=1e-5)
    assert torch.allclose(targets[:, 2], other_targets[:, 2], atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_allies(seed):
    """Only the healer's actions aimed at them change places."""
    agent, x = make_agent(HEALER, 2, seed), make_inputs(seed=seed)
    h = torch.randn(len(x), N_AGENTS, agent.hidden_dim)
    out, memory = agent.step(x, h)
    other, other_memory = agent.step(swapped(x, [1, 0], FIRST_ALLY, ALLY), h)
    assert torch.allclose(memory, other_memory, atol=1e-5)
    assert torch.allclose(out[:, :2], other[:, :2], atol=1e-5)
    healing = [0, 1], [1, 0]
    for one, two in zip(*healing, strict=True):
        mine, theirs = out[:, 2, FIRST_TARGET + one], other[:, 2, FIRST_TARGET + two]
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_plain_network_has_no_such_symmetry():
    """The comparison above is not blind."""
    args = hpn_args()
    agent, x = AGENTS["rnn"](OBS + N_AGENTS, args), make_inputs()
    h = torch.zeros(len(x), N_AGENTS, args.rnn_hidden_dim)
    one, two = (agent.step(y, h)[1] for y in (x, swapped(x, [1, 0, 2, 3], MOVE, ENEMY)))
    assert not torch.allclose(one, two, atol=1e-3)


def test_agents_act_on_their_own_rows():
    agent, x = make_agent(HEALER), make_inputs()
    h = torch.zeros(len(x), N_AGENTS, agent.hidden_dim)
    before = agent.step(x, h)[0]
    x[:, 1] = -2 * x[:, 1] + 1
    after = agent.step(x, h)[0]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_two_sizes_of_teams_have_the_same_networks_for_entities():
    """What an entity becomes does not depend on how many there are."""
    few, many = make_agent().enemy_input, make_agent().enemy_input
    x = torch.randn(5, N_ENEMIES, ENEMY)
    x[:, 2:] = 0.0
    assert torch.allclose(few(x[:, :2]), many(x), atol=1e-6)


def test_every_weight_learns_and_a_restored_learner_continues_bit_for_bit():
    args = hpn_args(HEALER, hpn_heads=2)
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    batch = make_batch(args)
    batch.stored("obs")[..., HEALER] = torch.tensor([0.0, 0.0, 1.0])
    batch.changed("obs")
    learner.train(batch, 0, 0)
    for name, param in learner.mac.agent.named_parameters():
        assert param.grad.abs().max() > 0, name
    assert_continues(learner, other, batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share_params": False}, "share_params must be one of True, got False"),
        ({"hpn_heads": 0}, "hpn_heads must be at least 1, got 0"),
        ({"hpn_hyper_dim": 0}, "hpn_hyper_dim must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(hpn_args(**options))


def test_an_environment_without_entities():
    args = hpn_args()
    args.env, args.env_info = "lbf", {}
    with pytest.raises(ConfigError, match="environment 'lbf' does not say") as caught:
        EntityLayout.of(args)
    assert "\n" not in str(caught.value)
