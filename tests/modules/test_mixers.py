"""Mixers against loops over plain numbers, monotonicity, IGM, and groups against separate
mixers.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from modules.critics import REGISTRY as CRITICS
from modules.mixers import REGISTRY, register
from modules.mixers.dmaq_general import DMAQer
from modules.mixers.nmix import Mixer
from modules.mixers.qatten import QattenMixer
from modules.mixers.qmix import QMixer
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from modules.mixers.qtran import QTranBase
from modules.mixers.vdn import VDNMixer
from utils.errors import ConfigError, UserError

A, U, S, E, H = 3, 4, 5, 6, 7


def make_args(**changes):
    args = {
        "n_agents": A,
        "n_actions": U,
        "state_shape": S,
        "mixing_embed_dim": E,
        "hypernet_embed": H,
        "hypernet_layers": 2,
        "qmix_pos_func": "abs",
        "n_attention_head": 2,
        "n_query_embedding_layer1": 6,
        "n_query_embedding_layer2": 4,
        "n_key_embedding_layer1": 3,
        "n_head_embedding_layer1": 5,
        "n_constrant_value": 4,
        "weighted_head": True,
        "agent_own_state_size": 0,
        "is_minus_one": True,
        "num_kernel": 2,
        "adv_hypernet_layers": 3,
        "adv_hypernet_embed": 5,
        "central_action_embed": 2,
        "central_mixing_embed_dim": 8,
        "rnn_hidden_dim": 6,
        "network_size": "small",
        "qtran_arch": "qtran_paper",
        "use_orthogonal": False,
    }
    assert set(changes) <= set(args)
    return SimpleNamespace(**{**args, **changes})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


# -- networks as loops over plain numbers ----------------------------------------------------------


def affine(layer, x, index=None):
    """W x + b, entry by entry; `index` picks one of a stack of layers."""
    weight, bias = layer.weight, layer.bias
    if index is not None:
        weight, bias = weight[index], bias[index]
    weight = weight.tolist()
    bias = [0.0] * len(weight) if bias is None else bias.tolist()
    return [
        b + sum(w * v for w, v in zip(row, x, strict=True))
        for row, b in zip(weight, bias, strict=True)
    ]


def relu(x):
    return [max(v, 0.0) for v in x]


def two_layers(net, x):
    return affine(net[2], relu(affine(net[0], x)))


def mlp(net, x):
    for layer in net:
        x = affine(layer, x) if isinstance(layer, torch.nn.Linear) else relu(x)
    return x


def head(net, x, k):
    """Head k of a MultiHeadMLP: its rows of the first layer, then its own matrices."""
    first = affine(net.first, x)
    size = len(first) // net.heads
    x = first[k * size : (k + 1) * size]
    for layer in net.rest:
        x = affine(layer, relu(x), k)
    return x


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def check(mixed, expected):
    torch.testing.assert_close(mixed.flatten(), torch.tensor(expected), rtol=2e-5, atol=2e-6)


# -- VDN -------------------------------------------------------------------------------------------


def test_vdn_is_the_sum_over_agents():
    qs = torch.tensor([[[1.0, 2.0, 4.5], [0.0, -1.0, 0.5]]])
    for mixer in (VDNMixer(), VDNMixer(make_args()), VDNMixer(make_args(), groups=2)):
        assert mixer(qs, torch.zeros(1, 2, S)).tolist() == [[[7.5], [-0.5]]]
        assert not list(mixer.parameters())


# -- QMIX ------------------------------------------------------------------------------------------


def qmix_by_hand(mixer, q, s, layers, positive):
    make = two_layers if layers == 2 else lambda net, x: affine(net[0], x)
    w1 = [positive(w) for w in make(mixer.hyper_w1, s)]
    w2 = [positive(w) for w in make(mixer.hyper_w2, s)]
    b1, b2 = affine(mixer.hyper_b1[0], s), two_layers(mixer.hyper_b2, s)[0]
    total = b2
    for e in range(E):
        pre = b1[e] + sum(q[i] * w1[i * E + e] for i in range(A))
        total += w2[e] * (pre if pre > 0 else math.exp(pre) - 1)
    return total


@pytest.mark.parametrize(
    ("changes", "positive"),
    [
        ({"hypernet_layers": 1}, abs),
        ({"hypernet_layers": 2}, abs),
        ({"qmix_pos_func": "softplus"}, lambda w: math.log1p(math.exp(w))),
        ({"qmix_pos_func": "quadratic"}, lambda w: w * w / 2),
    ],
)
def test_qmix_equals_the_loop(changes, positive):
    args = make_args(**changes)
    mixer = Mixer(args)
    qs, states = torch.randn(9, A) * 3, torch.randn(9, S)
    expected = [
        qmix_by_hand(mixer, q, s, args.hypernet_layers, positive)
        for q, s in zip(qs.tolist(), states.tolist(), strict=True)
    ]
    check(mixer(qs, states), expected)


def test_qmix_without_abs_is_not_restricted():
    mixer = Mixer(make_args(), abs=False)
    qs, states = torch.randn(9, A) * 3, torch.randn(9, S)
    expected = [
        qmix_by_hand(mixer, q, s, 2, lambda w: w)
        for q, s in zip(qs.tolist(), states.tolist(), strict=True)
    ]
    check(mixer(qs, states), expected)
    assert gradient(mixer, qs, states).min() < 0


def test_qmix_reads_pymarl2s_files():
    shapes = {name: tuple(p.shape) for name, p in Mixer(make_args()).named_parameters()}
    assert shapes == {
        "hyper_w1.0.weight": (H, S),
        "hyper_w1.0.bias": (H,),
        "hyper_w1.2.weight": (A * E, H),
        "hyper_w1.2.bias": (A * E,),
        "hyper_b1.0.weight": (E, S),
        "hyper_b1.0.bias": (E,),
        "hyper_w2.0.weight": (H, S),
        "hyper_w2.0.bias": (H,),
        "hyper_w2.2.weight": (E, H),
        "hyper_w2.2.bias": (E,),
        "hyper_b2.0.weight": (E, S),
        "hyper_b2.0.bias": (E,),
        "hyper_b2.2.weight": (1, E),
        "hyper_b2.2.bias": (1,),
    }


@pytest.mark.parametrize("changes", [{"hypernet_layers": 3}, {"qmix_pos_func": "square"}])
def test_qmix_rejects_unknown_options(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Mixer(make_args(**changes))


# -- Qatten ----------------------------------------------------------------------------------------


def qatten_by_hand(mixer, q, s, args):
    """(Q_tot, sum over heads of the mean squared logit)."""
    heads, d, u = args.n_attention_head, args.n_query_embedding_layer2, args.agent_own_state_size
    units = [s[i * u : (i + 1) * u] for i in range(A)]
    if u == 0:
        flat, size = two_layers(mixer.agent_embedding, s), args.n_key_embedding_layer1
        units = [flat[i * size : (i + 1) * size] for i in range(A)]
    total, reg = two_layers(mixer.constant, s)[0], 0.0
    for h in range(heads):
        query = head(mixer.query, s, h)
        logits = []
        for i in range(A):
            key = affine(mixer.key, units[i])[h * d : (h + 1) * d]
            logits.append(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(d))
        weights = [math.exp(v) for v in logits]
        mixed = sum(w * v for w, v in zip(weights, q, strict=True)) / sum(weights)
        total += mixed * (abs(two_layers(mixer.head_weight, s)[h]) if args.weighted_head else 1.0)
        reg += sum(v * v for v in logits) / A
    return total, reg


@pytest.mark.parametrize("changes", [{}, {"weighted_head": False}, {"agent_own_state_size": 1}])
def test_qatten_equals_the_loop(changes):
    args = make_args(**changes)
    mixer = QattenMixer(args)
    qs, states = torch.randn(9, A) * 3, torch.randn(9, S) * 3
    rows = [
        qatten_by_hand(mixer, q, s, args) for q, s in zip(qs.tolist(), states.tolist(), strict=True)
    ]
    q_tot, reg = mixer.forward_with_reg(qs, states)
    check(q_tot, [row[0] for row in rows])
    check(mixer(qs, states), [row[0] for row in rows])
    check(reg, [sum(row[1] for row in rows) / len(rows)])


def test_qatten_reads_one_block_of_the_state_per_agent():
    mixer = QattenMixer(make_args(agent_own_state_size=1))
    states = torch.randn(4, S)
    changed = states.clone()
    changed[:, 1] += 1.0
    before, after = (
        mixer.key(s[:, :A].unflatten(-1, (A, 1))).unflatten(-1, (2, 4)) for s in (states, changed)
    )
    assert ((before != after).flatten(2).any(-1) == torch.tensor([False, True, False])).all()


def test_qatten_rejects_blocks_that_the_state_does_not_have():
    with pytest.raises(
        ConfigError, match="agent_own_state_size is 2, but the state has 5 entries for 3 agents"
    ):
        QattenMixer(make_args(agent_own_state_size=2))


# -- QPLEX -----------------------------------------------------------------------------------------


def dmaq_by_hand(mixer, q, s, onehot, max_q, args):
    """(value term, advantage term)."""
    if args.weighted_head:
        w = [abs(v) + 1e-10 for v in two_layers(mixer.hyper_w_final, s)]
        b = two_layers(mixer.V, s)
        q = [w[i] * q[i] + b[i] for i in range(A)]
        max_q = [w[i] * max_q[i] + b[i] for i in range(A)]
    net = mixer.si_weight
    joint = s + [v for row in onehot for v in row]
    advantage = 0.0
    for i in range(A):
        weight = sum(
            (abs(head(net.key, s, k)[0]) + 1e-10)
            * sigmoid(head(net.agents, s, k)[i])
            * sigmoid(head(net.action, joint, k)[i])
            for k in range(args.num_kernel)
        )
        advantage += (q[i] - max_q[i]) * (weight - 1.0 if args.is_minus_one else weight)
    return sum(q), advantage


def dmaq_inputs(n, *lead):
    utilities = torch.randn(*lead, n, A, U) * 2
    actions = torch.randint(U, (*lead, n, A, 1))
    onehot = torch.zeros_like(utilities).scatter_(-1, actions, 1.0)
    return utilities.gather(-1, actions).squeeze(-1), onehot, utilities.amax(-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adv_hypernet_layers": 1},
        {"adv_hypernet_layers": 2, "num_kernel": 1},
        {"is_minus_one": False},
        {"weighted_head": False},
    ],
)
def test_dmaq_equals_the_loop(changes):
    args = make_args(**changes)
    mixer = DMAQer(args)
    states = torch.randn(9, S)
    q, onehot, max_q = dmaq_inputs(9)
    rows = [
        dmaq_by_hand(mixer, *row, args)
        for row in zip(q.tolist(), states.tolist(), onehot.tolist(), max_q.tolist(), strict=True)
    ]
    check(mixer(q, states, is_v=True), [row[0] for row in rows])
    check(mixer(q, states, actions=onehot, max_q_i=max_q, is_v=False), [row[1] for row in rows])
    check(mixer.joint(q, states, onehot, max_q), [row[0] + row[1] for row in rows])
    integers = onehot.to(torch.uint8).flatten(-2)
    check(mixer(q, states, integers, max_q), [row[1] for row in rows])


@pytest.mark.parametrize("is_minus_one", [True, False])
def test_dmaq_has_igm(is_minus_one):
    """The best of all U^A joint actions is the tuple of the agents' best actions, where the values
    are not monotone.
    """
    not_monotone = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixer = DMAQer(make_args(is_minus_one=is_minus_one))
        with torch.no_grad():
            for p in mixer.parameters():
                p.mul_(3.0)
        utilities, state = torch.randn(A, U), torch.randn(S) * 2
        joint_actions = list(itertools.product(range(U), repeat=A))
        index = torch.tensor(joint_actions)
        q = torch.stack([utilities[i, index[:, i]] for i in range(A)], dim=-1)
        onehot = torch.nn.functional.one_hot(index, U)
        n = len(joint_actions)
        joint = mixer.joint(q, state.expand(n, S), onehot, utilities.amax(-1).expand(n, A)).squeeze(
            -1
        )
        assert joint_actions[int(joint.argmax())] == tuple(utilities.argmax(-1).tolist())
        # A better action of one agent, the others' fixed, may lower the joint value: more than QMIX
        # can represent.
        value = dict(zip(joint_actions, joint.tolist(), strict=True))
        for a, b in itertools.product(joint_actions, repeat=2):
            differs = [i for i in range(A) if a[i] != b[i]]
            if len(differs) == 1:
                (i,) = differs
                not_monotone += utilities[i, a[i]] > utilities[i, b[i]] and value[a] < value[b]
    assert not_monotone > 0


def test_dmaq_keeps_the_gradient_of_advantages_out_of_the_utilities():
    mixer = DMAQer(make_args(weighted_head=False))
    states = torch.randn(4, S)
    q, onehot, max_q = dmaq_inputs(4)
    q.requires_grad_()
    (grad,) = torch.autograd.grad(mixer.joint(q, states, onehot, max_q).sum(), q)
    assert (grad == 1.0).all()


def test_dmaq_says_what_is_missing():
    mixer = DMAQer(make_args())
    with pytest.raises(ValueError, match="needs actions and max_q_i"):
        mixer(torch.zeros(1, A), torch.zeros(1, S))
    with pytest.raises(ConfigError, match="adv_hypernet_layers must be one of 1, 2, 3, got 4"):
        DMAQer(make_args(adv_hypernet_layers=4))


# -- weighted QMIX, QTRAN --------------------------------------------------------------------------


def test_central_mixer_equals_the_loop():
    mixer = QMixerCentralFF(make_args())
    qs, states = torch.randn(3, 2, A, 2), torch.randn(3, 2, S)
    linears = [layer for layer in mixer.net if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linears] == [8, 8, 8, 1]
    rows = zip(qs.reshape(6, -1).tolist(), states.reshape(6, -1).tolist(), strict=True)
    expected = [mlp(mixer.net, q + s)[0] + mlp(mixer.V, s)[0] for q, s in rows]
    for form in (qs, qs.flatten(-2)):
        mixed = mixer(form, states)
        assert mixed.shape == (3, 2, 1)
        check(mixed, expected)
    single = QMixerCentralFF(make_args(central_action_embed=1))
    assert torch.equal(single(qs[..., 0], states), single(qs[..., :1], states))
    assert gradient(mixer, qs, states).min() < 0  # unrestricted


@pytest.mark.parametrize("arch", ["qtran_paper", "coma_critic"])
@pytest.mark.parametrize(("size", "hidden"), [("small", 2), ("big", 3)])
def test_qtran_equals_the_loop(size, hidden, arch):
    args = make_args(network_size=size, qtran_arch=arch)
    net = QTranBase(args)
    assert len([layer for layer in net.Q if isinstance(layer, torch.nn.Linear)]) == hidden + 1
    hiddens, states = torch.randn(2, 3, A, 6), torch.randn(2, 3, S)
    _, onehot, _ = dmaq_inputs(3, 2)
    q, v = net.joint(hiddens, states, onehot.to(torch.uint8))
    batch = {"state": states, "actions_onehot": onehot}
    for ours, theirs in zip((q, v), net(batch, hiddens), strict=True):  # PyMARL2's call
        assert torch.equal(ours.flatten(0, 1), theirs)
    assert q.shape == v.shape == (2, 3, 1)
    expected_q, expected_v = [], []
    rows = (x.flatten(0, 1).tolist() for x in (hiddens, states, onehot))
    for h, s, u in zip(*rows, strict=True):
        if arch == "coma_critic":
            joint = [entry for i in range(A) for entry in u[i]]
        else:
            codes = [mlp(net.action_encoding, h[i] + u[i]) for i in range(A)]
            joint = [sum(column) for column in zip(*codes, strict=True)]
        expected_q.append(mlp(net.Q, s + joint)[0])
        expected_v.append(mlp(net.V, s)[0])
    check(q, expected_q)
    check(v, expected_v)


def test_qtran_rejects_unknown_sizes():
    with pytest.raises(ConfigError, match="network_size must be one of small, big, got 'huge'"):
        QTranBase(make_args(network_size="huge"))


# -- properties of several -------------------------------------------------------------------------


def gradient(mixer, qs, states):
    qs = qs.clone().requires_grad_()
    return torch.autograd.grad(mixer(qs, states).sum(), qs)[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qmix", {"hypernet_layers": 1}),
        ("nmix", {}),
        ("nmix", {"qmix_pos_func": "softplus"}),
        ("nmix", {"qmix_pos_func": "quadratic"}),
        ("qatten", {}),
        ("qatten", {"agent_own_state_size": 1}),
        ("vdn", {}),
    ],
)
def test_monotone_in_every_utility(name, changes):
    for seed in range(10):
        torch.manual_seed(seed)
        mixer = REGISTRY[name](make_args(**changes))
        grad = gradient(mixer, torch.randn(50, A) * 5, torch.randn(50, S) * 5)
        assert (grad >= 0).all()
        assert (grad > 0).any(dim=0).all()


@pytest.mark.parametrize("lead", [(7,), (2, 5), (1, 1), (3, 2, 4), ()])
@pytest.mark.parametrize("name", ["vdn", "qmix", "qatten", "dmaq", "qmix_central_ff", "qtran_base"])
def test_any_leading_axes(name, lead):
    args = make_args(central_action_embed=1, state_shape=(S,))
    mixer = REGISTRY[name](args)
    n = math.prod(lead)
    states = torch.randn(n, S)
    q, onehot, max_q = dmaq_inputs(n)
    hidden = torch.randn(n, A, 6)

    def compute(*lead):
        s, u = states.view(*lead, S), onehot.view(*lead, A, U)
        if name == "dmaq":
            return mixer(q.view(*lead, A), s, u, max_q.view(*lead, A))
        if name == "qtran_base":
            return mixer.joint(hidden.view(*lead, A, 6), s, u)[0]
        return mixer(q.view(*lead, A), s)

    mixed = compute(*lead)
    assert mixed.shape == (*lead, 1)
    torch.testing.assert_close(mixed.reshape(n, 1), compute(n))


@pytest.mark.parametrize("name", ["qmix", "qatten", "dmaq", "qmix_central_ff", "qtran_base"])
def test_every_parameter_learns(name):
    args = make_args(central_action_embed=1)
    mixer = REGISTRY[name](args)
    states = torch.randn(40, S)
    q, onehot, max_q = dmaq_inputs(40)
    if name == "dmaq":
        loss = mixer.joint(q, states, onehot, max_q).square().mean()
    elif name == "qtran_base":
        loss = sum(x.square().mean() for x in mixer.joint(torch.randn(40, A, 6), states, onehot))
    else:
        loss = mixer(q, states).square().mean()
    loss.backward()
    for key, p in mixer.named_parameters():
        assert p.grad.abs().max() > 1e-6, key


def test_states_of_several_axes():
    mixer = Mixer(make_args(state_shape=[2, 3]))
    qs, states = torch.randn(4, A), torch.randn(4, 2, 3)
    assert torch.equal(mixer(qs, states), mixer(qs, states.flatten(1)))


@pytest.mark.parametrize("name", ["qmix", "qatten", "qmix_central_ff", "dmaq"])
def test_states_that_do_not_fit_are_an_error(name):
    mixer = REGISTRY[name](make_args(central_action_embed=1))
    keyword = {"is_v": True} if name == "dmaq" else {}
    with pytest.raises(ValueError, match=r"\(4, 5\) for 6 rows of 5 entries"):
        mixer(torch.zeros(6, A), torch.zeros(4, S), **keyword)


# -- groups ----------------------------------------------------------------------------------------

G, N = 3, 11


def grouped(cls, args):
    """A mixer of G groups and G mixers with the same weights."""
    singles = [cls(args) for _ in range(G)]
    stacked = cls(args, groups=G)
    with torch.no_grad():
        for name, p in stacked.named_parameters():
            p.copy_(torch.stack([dict(m.named_parameters())[name] for m in singles]).view_as(p))
    return stacked, singles


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("cls", "changes"),
    [(VDNMixer, {}), (Mixer, {}), (Mixer, {"hypernet_layers": 1, "qmix_pos_func": "softplus"})],
)
def test_groups_equal_separate_mixers(cls, changes, shared):
    stacked, singles = grouped(cls, make_args(**changes))
    qs, states = torch.randn(G, N, A), torch.randn(*(() if shared else (G,)), N, S)
    expected = torch.stack(
        [m(qs[g], states if shared else states[g]) for g, m in enumerate(singles)]
    )
    torch.testing.assert_close(stacked(qs, states), expected)
    # Odd leading axes behind the group's
    states = torch.randn(2, 5, S)
    qs = torch.randn(G, 2, 5, A)
    torch.testing.assert_close(
        stacked(qs, states), torch.stack([m(qs[g], states) for g, m in enumerate(singles)])
    )


@pytest.mark.parametrize("shared_states", [True, False])
@pytest.mark.parametrize("shared_actions", [True, False])
@pytest.mark.parametrize("changes", [{}, {"adv_hypernet_layers": 1, "weighted_head": False}])
def test_dmaq_groups_equal_separate_mixers(changes, shared_states, shared_actions):
    stacked, singles = grouped(DMAQer, make_args(**changes))
    states = torch.randn(*(() if shared_states else (G,)), N, S)
    q, onehot, max_q = dmaq_inputs(N, G)
    onehot = onehot[0] if shared_actions else onehot

    def one(g, x, shared):
        return x if shared else x[g]

    for method in ("joint", "forward"):
        expected = [
            getattr(m, method)(
                q[g], one(g, states, shared_states), one(g, onehot, shared_actions), max_q[g]
            )
            for g, m in enumerate(singles)
        ]
        torch.testing.assert_close(
            getattr(stacked, method)(q, states, onehot, max_q), torch.stack(expected)
        )
    expected = [m(q[g], one(g, states, shared_states), is_v=True) for g, m in enumerate(singles)]
    torch.testing.assert_close(stacked(q, states, is_v=True), torch.stack(expected))


def test_groups_have_gradients_of_their_own():
    stacked, singles = grouped(Mixer, make_args())
    qs, states = torch.randn(G, N, A), torch.randn(N, S)
    stacked(qs, states).square().sum().backward()
    for g, single in enumerate(singles):
        single(qs[g], states).square().sum().backward()
        for name, p in single.named_parameters():
            torch.testing.assert_close(stacked.get_parameter(name).grad[g].view_as(p), p.grad)


# -- registries ------------------------------------------------------------------------------------


def test_registry_names():
    assert set(REGISTRY) >= {
        "vdn",
        "qmix",
        "nmix",
        "qatten",
        "dmaq",
        "qmix_central_ff",
        "qtran_base",
    }
    assert REGISTRY["qmix"] is REGISTRY["nmix"] is QMixer is Mixer
    assert [name for name in ("vdn", "qmix", "qatten", "dmaq") if REGISTRY[name].takes_actions] == [
        "dmaq"
    ]
    with pytest.raises(UserError, match="unknown mixer 'qmx'; did you mean 'qmix'"):
        REGISTRY["qmx"]
    with pytest.raises(UserError, match="unknown critic"):
        CRITICS["none_such"]


def test_register_decorator():
    @register("a_test_mixer")
    class Other:
        pass

    try:
        assert REGISTRY["a_test_mixer"] is Other
    finally:
        del REGISTRY["a_test_mixer"]


def test_qmix_may_begin_orthogonal():
    mixer = Mixer(make_args(use_orthogonal=True))
    layers = [layer for layer in mixer.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == 7
    for layer in layers:
        wide = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        assert torch.allclose(wide @ wide.T, torch.eye(len(wide)), atol=1e-5)
        assert not layer.bias.any()


def test_own_state_size_is_a_number():
    with pytest.raises(ConfigError, match="must be a number of entries, at least 0, got True"):
        QattenMixer(make_args(agent_own_state_size=True))
    assert QattenMixer(make_args(agent_own_state_size=False)).unit_dim == 0
