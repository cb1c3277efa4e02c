"""Controllers: inputs, whole sequences against single steps, acting on some of the episodes,
PyMARL's agents.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from learner_fixtures import LENGTHS, N_ACTIONS, N_AGENTS, OBS, make_args, make_batch, make_mac
from torch import nn

from controllers import REGISTRY as MACS
from controllers.basic_controller import BasicMAC
from controllers.n_controller import NMAC
from controllers.unroll import sequence_inputs, unroll
from modules.agents import REGISTRY as AGENTS


class PymarlAgent(nn.Module):
    """An agent as PyMARL has it: rows [B * A, F], no `step`, no `unroll`."""

    def __init__(self, input_shape, args):
        super().__init__()
        self.fc1 = nn.Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc2 = nn.Linear(args.rnn_hidden_dim, args.n_actions)

    def init_hidden(self):
        return self.fc1.weight.new(1, self.rnn.hidden_size).zero_()

    def forward(self, inputs, hidden_state):
        assert inputs.dim() == 2
        h = self.rnn(F.relu(self.fc1(inputs)), hidden_state.reshape(-1, self.rnn.hidden_size))
        return self.fc2(h), h


class Pymarl2Agent(PymarlAgent):
    """PyMARL2's form: [B, A, F] in and out."""

    def forward(self, inputs, hidden_state):
        b, a, _ = inputs.shape
        out, h = super().forward(inputs.reshape(b * a, -1), hidden_state)
        return out.view(b, a, -1), h.view(b, a, -1)


@pytest.fixture
def pymarl_agents(monkeypatch):
    monkeypatch.setitem(AGENTS, "pymarl", PymarlAgent)
    monkeypatch.setitem(AGENTS, "pymarl2", Pymarl2Agent)


def per_step(mac, batch):
    """`forward` step by step, [B, T, A, U]."""
    mac.init_hidden(batch.batch_size)
    outs = [
        mac.forward(batch, t).view(batch.batch_size, N_AGENTS, -1)
        for t in range(batch.max_seq_length)
    ]
    return torch.stack(outs, dim=1)


def seeded_mac(args):
    torch.manual_seed(0)
    return make_mac(args)


FLAGS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("last_action", "agent_id"), FLAGS)
def test_inputs(last_action, agent_id):
    args = make_args("qmix", obs_last_action=last_action, obs_agent_id=agent_id)
    mac, batch = seeded_mac(args), make_batch(args)
    steps = batch.steps()
    rows = steps.unpack(mac.sequence_inputs(batch))
    assert rows.shape[-1] == OBS + N_ACTIONS * last_action + N_AGENTS * agent_id
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            for i in range(N_AGENTS):
                expected = batch["obs"][b, t, i].tolist()
                if last_action:
                    previous = [0.0] * N_ACTIONS
                    if t > 0:
                        previous[int(batch["actions"][b, t - 1, i, 0])] = 1.0
                    expected += previous
                if agent_id:
                    expected += [float(j == i) for j in range(N_AGENTS)]
                assert rows[b, t, i].tolist() == expected
                built = mac._build_inputs(batch, t).view(len(LENGTHS), N_AGENTS, -1)
                assert built[b, i].tolist() == expected


@pytest.mark.parametrize(("last_action", "agent_id"), FLAGS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("mac", "agent"), [("basic_mac", "rnn"), ("n_mac", "n_rnn"), ("basic_mac", "mlp")]
)
def test_unroll_equals_steps(mac, agent, share, last_action, agent_id):
    args = make_args(
        "qmix",
        mac=mac,
        agent=agent,
        share_params=share,
        obs_last_action=last_action,
        obs_agent_id=agent_id,
    )
    controller, batch = seeded_mac(args), make_batch(args)
    steps = batch.steps()
    out = controller.unroll(batch)
    assert torch.allclose(out, steps.pack(per_step(controller, batch)), atol=1e-5)
    assert torch.equal(
        controller.unroll(batch, steps, controller.sequence_inputs(batch, steps)), out
    )


@pytest.mark.parametrize(("mac", "agent"), [("basic_mac", "pymarl"), ("n_mac", "pymarl2")])
def test_pymarl_agents(pymarl_agents, mac, agent):
    args = make_args("qmix", mac=mac, agent=agent)
    controller, batch = seeded_mac(args), make_batch(args)
    steps = batch.steps()
    ours = seeded_mac(make_args("qmix", mac="n_mac", agent="n_rnn"))
    ours.agent.load_state_dict(controller.agent.state_dict())
    expected = ours.unroll(batch, steps)
    out = unroll(controller, batch, steps, sequence_inputs(controller, batch, steps))
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(steps.pack(per_step(controller, batch)), expected, atol=1e-5)
    controller.init_hidden(len(LENGTHS))
    ours.init_hidden(len(LENGTHS))
    for bs in ([0, 1, 2, 3, 4], [1, 3]):
        picks = [m.select_actions(batch, 0, 0, bs=bs, test_mode=True) for m in (controller, ours)]
        assert torch.equal(*picks)
        assert torch.allclose(controller.hidden_states, ours.hidden_states, atol=1e-6)


def test_controller_without_unroll(pymarl_agents):
    """A controller that has only what PyMARL's interface asks for."""

    class Foreign:
        def __init__(self, inner):
            self.inner, self.calls = inner, 0

        def init_hidden(self, batch_size):
            self.inner.init_hidden(batch_size)

        def forward(self, ep_batch, t, test_mode=False):
            self.calls += 1
            return self.inner.forward(ep_batch, t)

    args = make_args("qmix")
    inner, batch = seeded_mac(args), make_batch(args)
    steps, foreign = batch.steps(), Foreign(inner)
    assert sequence_inputs(foreign, batch, steps) is None
    assert torch.allclose(unroll(foreign, batch, steps), inner.unroll(batch), atol=1e-5)
    assert foreign.calls == max(LENGTHS)


def test_overridden_forward_and_inputs_are_used():
    class Doubled(BasicMAC):
        def forward(self, ep_batch, t, test_mode=False):  # PyMARL's signature, no `bs`
            return 2 * super().forward(ep_batch, t, test_mode=test_mode)

    class ObsSquared(BasicMAC):
        def _build_inputs(self, batch, t):
            return super()._build_inputs(batch, t) ** 2

    args = make_args("qmix")
    batch = make_batch(args)
    steps = batch.steps()
    plain, doubled, squared = (
        cls(batch.scheme, batch.groups, args) for cls in (BasicMAC, Doubled, ObsSquared)
    )
    for mac in (doubled, squared):
        mac.load_state(plain)
    assert torch.allclose(doubled.unroll(batch), 2 * plain.unroll(batch), atol=1e-5)
    assert torch.allclose(squared.sequence_inputs(batch), plain.sequence_inputs(batch) ** 2)
    assert torch.allclose(squared.unroll(batch), steps.pack(per_step(squared, batch)), atol=1e-5)
    assert not torch.allclose(squared.unroll(batch), plain.unroll(batch), atol=1e-2)
    for mac in (plain, doubled):
        mac.init_hidden(len(LENGTHS))
    picks = [mac.select_actions(batch, 0, 0, bs=[2, 4], test_mode=True) for mac in (plain, doubled)]
    assert picks[1].shape == (2, N_AGENTS)
    assert torch.equal(*picks)


@pytest.mark.parametrize("share", [True, False])
def test_only_selected_episodes_are_computed(share):
    args = make_args("qmix", share_params=share)
    mac, batch = seeded_mac(args), make_batch(args, lengths=(3,) * 5, terminated=(False,) * 5)
    outputs = per_step(mac, batch)
    rows, step = [], mac.agent.step

    def counting(inputs, hidden):
        rows.append(len(inputs))
        return step(inputs, hidden)

    mac.agent.step = counting
    mac.init_hidden(5)
    mac.select_actions(batch, 0, t_env=0, test_mode=True)
    before = mac.hidden_states.clone()
    alive = [1, 4]
    actions = mac.select_actions(batch, 1, t_env=0, bs=alive, test_mode=True)
    assert rows == [5, 2]
    masked = outputs[alive, 1].masked_fill(batch["avail_actions"][alive, 1] == 0, -1e9)
    assert torch.equal(actions, masked.argmax(-1))
    assert torch.equal(mac.hidden_states[[0, 2, 3]], before[[0, 2, 3]])
    mac.select_actions(batch, 2, t_env=0, bs=torch.tensor(alive), test_mode=True)
    mac.select_actions(batch, 2, t_env=0, bs=slice(2, 4), test_mode=True)
    assert rows == [5, 2, 2, 2]
    # Episodes 1 and 4 are three steps on, 2 and 3 were left behind at the first and then took the
    # third.
    mac.agent.step = step
    plain = seeded_mac(args)
    plain.load_state(mac)
    per_step(plain, batch[:, :3])
    assert torch.allclose(mac.hidden_states[alive], plain.hidden_states[alive], atol=1e-6)
    assert torch.equal(mac.hidden_states[0], before[0])
    assert not torch.allclose(mac.hidden_states[2], before[2])


def test_policies():
    args = make_args("qmix", agent_output_type="pi_logits", mask_before_softmax=True)
    mac, batch = seeded_mac(args), make_batch(args)
    steps = batch.steps()
    out, avail = mac.unroll(batch), steps.pack(batch["avail_actions"])
    mac.agent_output_type = "q"
    logits = mac.unroll(batch)
    mac.agent_output_type = "pi_logits"
    assert torch.allclose(out, steps.pack(per_step(mac, batch)), atol=1e-6)
    for row in range(len(out)):
        for i in range(N_AGENTS):
            options = [u for u in range(N_ACTIONS) if avail[row, i, u]]
            if options:
                expected = torch.zeros(N_ACTIONS)
                expected[options] = (
                    logits[row, i, options].exp() / logits[row, i, options].exp().sum()
                )
                assert torch.allclose(out[row, i], expected, atol=1e-6)
    args.mask_before_softmax = False
    assert torch.allclose(mac.unroll(batch), logits.softmax(-1), atol=1e-6)


def test_hidden_states_start_at_zero():
    mac = seeded_mac(make_args("qmix"))
    mac.init_hidden(4)
    assert mac.hidden_states.shape == (4, N_AGENTS, 6)
    assert not mac.hidden_states.any()


def test_files_and_copies(tmp_path):
    args = make_args("qmix")
    mac = seeded_mac(args)
    others = [make_mac(args), make_mac(args)]
    mac.save_models(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["agent.th"]
    others[0].load_models(str(tmp_path))
    others[1].load_state(mac)
    for other in others:
        for mine, theirs in zip(mac.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine is not theirs


def test_registry_and_signature():
    assert MACS["basic_mac"] is BasicMAC
    assert MACS["n_mac"] is NMAC
    parameters = inspect.signature(BasicMAC.select_actions).parameters
    assert list(parameters) == ["self", "ep_batch", "t_ep", "t_env", "bs", "test_mode"]
    assert parameters["bs"].default == slice(None)
