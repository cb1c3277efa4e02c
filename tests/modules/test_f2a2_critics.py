"""The stacked copies of F2A2's critics against one agent at a time, and what they agree on."""

import pytest
import torch
import torch.nn.functional as F
from f2a2_fixtures import SIZES, copy_value, f2a2_args

from modules.f2a2.critics import COPIES, CopiedLinear, first_critics_of
from utils.errors import ConfigError

A, O, U, M, C = 3, 5, 4, 12, 2
FORMS = list(COPIES)


def make(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return COPIES[name]({"obs": {"vshape": O}}, f2a2_args(**overrides), C)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(5)
    obs = torch.randn(M, A, O, generator=rng) * (torch.arange(O) < torch.tensor(SIZES[0])[:, None])
    actions = torch.stack([torch.randint(u, (A, M), generator=rng) for u in SIZES[1]], -1)
    return obs, F.one_hot(actions, U).float()


@pytest.mark.parametrize("name", FORMS)
def test_copies_equal_a_loop_over_agents(name, batch):
    critic, (obs, joint) = make(name), batch
    out = critic(obs, joint)
    assert out.shape == (A, C, M, U)
    for i in range(A):
        for c in range(C):
            assert torch.allclose(
                out[i, c], copy_value(critic, name, i, c, obs, joint[i]), atol=1e-5
            )


@pytest.mark.parametrize("name", FORMS)
def test_gradients_of_an_agent_stay_in_its_copy(name, batch):
    critic, (obs, joint) = make(name), batch
    critic(obs, joint)[1].square().sum().backward()
    for param in critic.parameters():
        assert param.shape[:2] == (A, C)
        assert param.grad[[0, 2]].abs().max() == 0
    reference = make(name)
    sum(
        copy_value(reference, name, 1, c, obs, joint[1]).square().sum() for c in range(C)
    ).backward()
    for mine, theirs in zip(critic.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_the_own_action_and_what_others_imagine_are_not_read(name, batch):
    critic, (obs, joint) = make(name), batch
    before = critic(obs, joint)
    changed = joint.clone()
    changed[0, :, 0] = changed[0, :, 0].roll(1, -1)  # agent 0's own action
    changed[2] = changed[2].roll(1, 0)  # what agent 2 believes
    after = critic(obs, changed)
    assert torch.equal(before[:2], after[:2])
    if name != "own":
        assert not torch.allclose(before[2], after[2])


@pytest.mark.parametrize("name", FORMS)
def test_first_critics_alone(name, batch):
    critic, reference, (obs, joint) = make(name), make(name), batch
    first = critic.first_critics()
    from_all = first.values(first_critics_of(critic.observe(obs)), joint)
    assert from_all.shape == (A, 1, M, U)
    assert torch.allclose(first(obs, joint), from_all, atol=1e-6)
    from_all.square().sum().backward()
    expected = reference(obs, joint)[:, :1]
    assert torch.allclose(from_all, expected, atol=1e-6)
    expected.square().sum().backward()
    for mine, theirs in zip(critic.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)
        assert mine.grad[:, 1].abs().max() == 0  # of the twins
        assert mine.grad[:, 0].abs().max() > 0


def test_padding_has_no_weights():
    critic = make("attention")
    for i, (o, u) in enumerate(zip(*SIZES, strict=True)):
        assert critic.state_encoder.weight[i, ..., o:].abs().sum() == 0
        assert critic.encoder.weight[:, :, i, :, o:O].abs().sum() == 0
        assert critic.encoder.weight[:, :, i, :, O + u :].abs().sum() == 0
        assert critic.state_encoder.weight[i, ..., :o].abs().min() > 0


def test_what_is_agreed_on():
    critic = make("attention")
    matrices = {"query.weight", "key.weight", "value.weight", "value.bias"}
    assert set(critic.shared_parameters("paper")) == matrices
    assert set(critic.shared_parameters("encoders")) == {
        *matrices,
        "encoder.weight",
        "encoder.bias",
    }
    for name in ("central", "own"):
        critic = make(name)
        assert set(critic.shared_parameters("paper")) == {
            key for key, _ in critic.named_parameters()
        }
    critic = make("central")
    shared = critic.shared_parameters("hidden")
    assert set(shared) == {"fc2.weight", "fc2.bias"}
    assert shared["fc2.weight"] is critic.fc2.weight


def test_scope_of_another_critic_is_one_line():
    with pytest.raises(ConfigError, match="must be one of paper, encoders, got 'hidden'"):
        make("attention").shared_parameters("hidden")


def test_layer_in_parts_equals_the_whole_layer():
    torch.manual_seed(0)
    layer = CopiedLinear(5, 3, (2, 2))
    x = torch.randn(2, 2, 6, 5)
    assert torch.allclose(layer.add(layer.first(x[..., :3]), x[..., 3:], 3, 2), layer(x), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_heads": 3}, "attention_heads"),
        ({"n_agents": 1}, "only one agent"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    args = f2a2_args()
    vars(args).update(settings)
    with pytest.raises(ConfigError, match=message):
        COPIES["attention"]({"obs": {"vshape": O}}, args, C)
