"""Agents that talk, against plain loops; and that nothing passes between them but messages."""

import pytest
import torch
from comm_fixtures import (
    FORMS,
    comm_args,
    form_id,
    make_comm_batch,
    same_noise,
    slow_episode,
)
from learner_fixtures import LENGTHS, N_ACTIONS, N_AGENTS, OBS, make_batch, make_mac

from modules.comm.t2mac import fuse, uncertainty
from utils.errors import ConfigError

forms = pytest.mark.parametrize(("alg", "settings"), FORMS, ids=form_id)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def seeded_mac(alg, settings):
    args = comm_args(alg, **settings)
    torch.manual_seed(0)
    mac = make_mac(args)
    for param in mac.parameters():  # large enough for every path to matter
        param.mul_(2.0)
    return mac, make_comm_batch(args)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@forms
def test_whole_episodes_and_single_steps_are_those_of_each_agent_alone(alg, settings, monkeypatch):
    mac, batch = seeded_mac(alg, settings)
    same_noise(monkeypatch)
    steps = batch.steps()
    unrolled = steps.unpack(mac.unroll(batch))
    mac.init_hidden(batch.batch_size)
    stepped = [mac.forward(batch, t) for t in range(max(LENGTHS))]
    mac.init_hidden(batch.batch_size)
    tested = [mac.forward(batch, t, test_mode=True) for t in range(max(LENGTHS))]
    for b, length in enumerate(LENGTHS):
        slow, _, _ = slow_episode(mac, batch[b : b + 1], length)
        slow_test, _, _ = slow_episode(mac, batch[b : b + 1], length, test=True)
        for t in range(length):
            assert close(unrolled[b, t], slow[t])
            assert close(stepped[t][b], slow[t])
            assert close(tested[t][b], slow_test[t])


@forms
def test_agents_know_of_others_what_they_are_told(alg, settings, monkeypatch):
    """An agent sees something else: with the messages of before, the values of all others are those
    of before; with its own messages they change.
    """
    mac, batch = seeded_mac(alg, settings)
    same_noise(monkeypatch)
    other = make_comm_batch(mac.args)
    for key in ("obs", "actions"):
        seen = other.stored(key)
        seen[:, :, 1] = torch.flip(seen[:, :, 1], dims=(0,))
    other.stored("obs")[:, :, 1] += 1.0
    other.changed("obs", "actions")
    before, after = mac.talk(batch), mac.talk(other)
    rest = [0, 2]
    assert not close(after.q[:, rest], before.q[:, rest])

    monkeypatch.setattr(mac.agent, "say", lambda own: before.said)
    told_the_same = mac.talk(other)
    assert torch.equal(told_the_same.q[:, rest], before.q[:, rest])
    if alg not in ("fullcomm", "cama"):  # which reads its own observation among those of all
        assert not close(told_the_same.q[:, 1], before.q[:, 1])


@forms
def test_what_an_agent_says_comes_from_its_own_row(alg, settings, monkeypatch):
    mac, _ = seeded_mac(alg, settings)
    same_noise(monkeypatch)
    talks_of_memory = alg in ("qmix_comm", "maic", "t2mac")
    own = torch.randn(4, N_AGENTS, mac.args.rnn_hidden_dim if talks_of_memory else mac._n_inputs)
    before = mac.agent.say(own).messages
    changed = own.clone()
    changed[:, 1] += 1.0
    after = mac.agent.say(changed).messages
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(after[:, 1], before[:, 1])


SIZES = {
    ("fullcomm", ""): OBS,
    ("qmix_comm", ""): 6,
    ("maic", ""): N_ACTIONS,
    ("maic", "maic_speaker=receiver"): 1 + 3,
    ("ndq", ""): 2,
    ("masia", ""): OBS,
}
# The coach, one of 3 agents, hears 2 and answers 2.
COACHED = {
    ("cama", ""): OBS + N_ACTIONS + 3,
    ("cama", "cama_keep=0.5,obs_last_action=False"): OBS + 3,
}


@forms
@pytest.mark.parametrize("test", [False, True])
def test_numbers_are_counted(alg, settings, test, monkeypatch):
    mac, batch = seeded_mac(alg, settings)
    same_noise(monkeypatch)
    mac.init_hidden(batch.batch_size)
    for t in range(3):
        mac.select_actions(batch, t, t_env=0, bs=torch.tensor([0, 1, 3]), test_mode=test)
    counted = mac.episode_figures()["numbers_sent"]
    for b in (0, 1, 3):
        _, sent, _ = slow_episode(mac, batch[b : b + 1], 3, test)
        assert float(counted[b]) == pytest.approx(sum(sent) / 3)
        size = SIZES.get((alg, form_id(settings)))
        if size is not None and not (alg == "maic" and test):
            assert sent == [6 * size] * 3  # 3 agents, to 2 others each
        if (alg, form_id(settings)) in COACHED:
            assert sent == [2 * COACHED[alg, form_id(settings)]] * 3
    assert counted[[2, 4]].tolist() == [0.0, 0.0]
    mac.init_hidden(2)
    assert mac.episode_figures()["numbers_sent"].tolist() == [0.0, 0.0]


def test_links_of_small_weight_are_silent_in_tests():
    """MAIC: 3 agents; weights of 0.1 and 0.9 against a gate of 0.4 / 3."""
    mac, _ = seeded_mac("maic", {"maic_gate": 0.4})
    agent = mac.agent
    weights = torch.tensor([[0.0, 0.1, 0.9], [0.5, 0.0, 0.5], [0.14, 0.86, 0.0]]).unsqueeze(0)
    agent.weights = lambda hidden, z: weights
    own = torch.randn(1, N_AGENTS, mac.args.rnn_hidden_dim)
    agent.eval()
    said = agent.say(own)
    expected = weights.clone()
    expected[0, 0, 1] = 0.0
    assert torch.equal(said.seen["weights"], expected)
    assert said.messages[0, 0, 1].tolist() == [0.0] * N_ACTIONS
    assert agent.numbers(said).tolist() == [5 * N_ACTIONS]
    agent.train()
    said = agent.say(own)
    assert torch.equal(said.seen["weights"], weights)
    assert agent.numbers(said).tolist() == [6 * N_ACTIONS]


def test_fusion_by_hand():
    """Two actions. Evidence (2, 0): beliefs (1/2, 0), uncertainty 1/2. Evidence (0, 6): beliefs
    (0, 3/4), uncertainty 1/4. Conflict 3/8; fused beliefs (1/8, 3/8) / (5/8), uncertainty 1/5.
    """
    one, other = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 6.0])
    assert float(uncertainty(one)) == 0.5
    assert float(uncertainty(other)) == 0.25
    fused = fuse(torch.stack([one, other]), dim=0)
    assert fused.tolist() == pytest.approx([2.0, 6.0])  # 2 beliefs / uncertainty
    assert float(uncertainty(fused)) == pytest.approx(0.2)


def test_fusion_knows_no_order():
    """The order and the grouping of sources do not matter, no evidence changes nothing, and more of
    it makes more certain.
    """
    torch.manual_seed(0)
    a, b, c = 5 * torch.rand(3, 20, 4)
    together = fuse(torch.stack([a, b, c]), dim=0)
    assert close(fuse(torch.stack([c, a, b]), dim=0), together)
    assert close(fuse(torch.stack([fuse(torch.stack([a, b]), dim=0), c]), dim=0), together)
    assert close(fuse(torch.stack([a, torch.zeros_like(a)]), dim=0), a)
    assert (uncertainty(together) <= torch.minimum(uncertainty(a), uncertainty(b))).all()


def test_without_messages_an_agent_has_its_own_evidence():
    mac, batch = seeded_mac("t2mac", {"t2mac_send_probability": 1.0, "t2mac_fusion_weight": 1.0})
    talk = mac.talk(batch)
    assert close(talk.q, talk.said.seen["evidence"])
    assert not mac.agent.numbers(talk.said).any()


def test_codes_are_addressed():
    """NDQ: what agent j reads after its own input is m_1j, m_2j, m_3j."""
    mac, _ = seeded_mac("ndq", {})
    agent = mac.agent
    codes = torch.arange(18.0).view(1, 3, 3, 2)  # sender, receiver, entry
    agent.encoder.forward = lambda own: codes.flatten(2)
    agent.eval()
    inputs = torch.zeros(1, N_AGENTS, agent.n_inputs)
    heard = agent.hear(inputs, agent.say(inputs), None)
    assert heard[0, 1, agent.n_inputs :].tolist() == [2.0, 3.0, 8.0, 9.0, 14.0, 15.0]


def test_what_is_not_attended_to_is_told():
    """CAMA, 3 agents with 3 entities each: agent 0 attends to half of those that it sees, 1 of 1, 2
    of 3 or 1 of 2; an entity that is there is attended to or in the complement, never in both.
    """
    mac, batch = seeded_mac("cama", {"cama_keep": 0.5})
    agent, n = mac.agent, mac.agent.n_sent
    inputs = mac.sequence_inputs(batch)
    entities, there = agent.entities(inputs[..., :n], inputs[..., n:])
    attended, _ = agent.choose(entities, there)
    assert (attended[..., -1] | there[:, None, :, -1]).all()  # an agent is there for itself
    assert not (attended & ~there.unsqueeze(1)).any()
    assert (attended.sum(-1) == (there.sum(-1, keepdim=True).transpose(1, 2) / 2).ceil()).all()
    assert {1, 2} == set(attended.sum(-1).flatten().tolist())
    masks = []
    agent.attention.attend = lambda scores, mask, among: masks.append(mask) or among[:, :1]
    agent.complement(inputs[..., :n], inputs[..., n:])
    rest = masks[0].unflatten(-1, (N_AGENTS, 3))
    for i in range(N_AGENTS):
        assert torch.equal(rest[:, :, i, i], there[:, None, i] & ~attended[:, :, i])
        for j in set(range(N_AGENTS)) - {i}:
            assert torch.equal(rest[:, :, i, j], there[:, None, j].expand(-1, 2, -1))


def test_agents_that_see_nothing_attend_to_themselves():
    mac, batch = seeded_mac("cama", {})
    batch.stored("obs").zero_()
    batch.changed("obs")
    assert torch.isfinite(mac.unroll(batch)).all()
    talk = mac.talk(batch)
    assert close(talk.said.seen["g"], mac.agent.attention.out.bias.expand_as(talk.said.seen["g"]))
    assert not close(talk.said.seen["f"], talk.said.seen["g"])


def test_random_messages_differ_in_training_only():
    for alg in ("maic", "ndq", "cama"):
        mac, batch = seeded_mac(alg, {})
        assert not torch.equal(mac.unroll(batch), mac.unroll(batch))
        outputs = []
        for _ in range(2):
            mac.init_hidden(batch.batch_size)
            before = torch.get_rng_state()
            outputs.append(mac.forward(batch, 0, test_mode=True))
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*outputs)


@forms
def test_one_agent_alone(alg, settings):
    args = comm_args(alg, **settings)
    args.n_agents = 1  # nobody to talk to
    torch.manual_seed(0)
    mac, batch = make_mac(args), make_batch(args)
    assert torch.isfinite(mac.unroll(batch)).all()
    mac.init_hidden(batch.batch_size)
    mac.select_actions(batch, 0, t_env=0)
    assert not mac.episode_figures()["numbers_sent"].any()


def test_wrong_settings():
    with pytest.raises(ConfigError, match="needs an agent network that sends messages, got agent"):
        make_mac(comm_args("qmix", mac="comm_mac", agent="rnn"))
    with pytest.raises(ConfigError, match="share_params must be one of True, got False"):
        make_mac(comm_args("maic", share_params=False))
    with pytest.raises(ConfigError, match="cama_parts must add up to the 5 entries of an obs"):
        make_mac(comm_args("cama", cama_parts=[2, 2]))
    with pytest.raises(ConfigError, match=r"cama_heads must divide cama_embed_dim \(6\), got 4"):
        make_mac(comm_args("cama", cama_heads=4))
    with pytest.raises(ConfigError, match="needs agent_output_type=q, got agent_output_type=pi_"):
        make_mac(comm_args("maic", agent_output_type="pi_logits"))
