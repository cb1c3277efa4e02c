"""The models of other agents against plain loops over pairs, rows and steps, and on a policy that
can be learned.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from components.episode_buffer import EpisodeBatch
from modules.f2a2 import (
    Histories,
    OtherAgentModels,
    episode_histories,
    trajectories_of,
)
from modules.f2a2.other_agents import RANGES
from modules.f2a2.sequences import SequenceEncoder, ragged
from utils.errors import ConfigError
from utils.ranges import check_ranges

A, U, H = 3, 4, 5
OBS_SIZES = (3, 2, 3)
O = max(OBS_SIZES)


def make_args(**changes):
    args = {
        "moa_common": False,
        "moa_trajectories": 6,
        "moa_trajectory_steps": 7,
        "moa_character_batch": 6,
        "moa_natural_batch": 100,
        "moa_hidden_dim": 8,
        "moa_prediction_dim": 10,
    }
    return SimpleNamespace(**{**args, **changes})


def make_models(seed=0, obs_sizes=OBS_SIZES, n_actions=U, **changes):
    torch.manual_seed(seed)
    return OtherAgentModels(obs_sizes, n_actions, make_args(**changes))


def make_obs(*lead, generator):
    seen = torch.arange(O) < torch.tensor(OBS_SIZES)[:, None]
    return torch.randn(*lead, A, O, generator=generator) * seen


def make_histories(n=9, seed=0):
    """Random steps of which the first has no past, the second one step, ..."""
    generator = torch.Generator().manual_seed(seed)
    filled = torch.arange(H) >= (H - torch.arange(n).clamp(max=H))[:, None]
    avail = torch.rand(n, A, U, generator=generator) < 0.6
    avail[..., 1] |= ~avail.any(-1)
    return Histories(
        make_obs(n, generator=generator),
        avail.byte(),
        make_obs(n, H, generator=generator) * filled[..., None, None],
        torch.randint(U, (n, H, A), generator=generator) * filled[..., None],
        filled.float(),
    )


def make_actions(histories, seed=1):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(histories.avail_actions.shape, generator=generator)
    return torch.where(histories.avail_actions > 0, scores, -1.0).argmax(-1)


def make_trajectories(n=6, length=7, seed=2):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (n,), generator=generator)
    filled = (torch.arange(length) < lengths[:, None]).float()
    return (
        make_obs(n, length, generator=generator),
        torch.randint(U, (n, length, A), generator=generator),
        filled,
    )


# -- Slow reference: one pair after the other, one window after the other, torch's own layers ------


def single_gru(encoder, g):
    """The g-th of the stacked networks as an `nn.GRU`."""
    first = encoder.layers[0].weight_ih
    gru = nn.GRU(first.shape[-1], encoder.hidden_dim, num_layers=2)
    for k, layer in enumerate(encoder.layers):
        for name, param in layer.named_parameters():
            getattr(gru, f"{name}_l{k}").data.copy_(param[g])
    return gru


def single_layer(layer, g):
    linear = nn.Linear(layer.weight.shape[-1], layer.weight.shape[1])
    linear.weight.data.copy_(layer.weight[g])
    linear.bias.data.copy_(layer.bias[g])
    return linear


class SlowModel:
    """One model of agent j."""

    def __init__(self, models, g, j):
        self.j = j
        self.character_net, self.mental_net = (
            single_gru(models.character_net, g),
            single_gru(models.mental_net, g),
        )
        for name in ("natural1", "natural2", "impromptu1", "impromptu2"):
            setattr(self, name, single_layer(getattr(models, name), g))
        self.hidden_dim = models.character.shape[1]

    def encode(self, gru, obs, actions, filled):
        """obs [L, A, O], actions [L, A], filled [L] -> [H]."""
        steps = []
        for t in range(len(filled)):
            if filled[t]:
                one_hot = torch.zeros(U)
                one_hot[actions[t, self.j]] = 1.0
                steps.append(torch.cat([obs[t, self.j], one_hot]))
        if not steps:
            return torch.zeros(self.hidden_dim)
        return gru(torch.stack(steps))[0][-1]

    def character(self, obs, actions, filled):
        return sum(
            self.encode(self.character_net, *one) for one in zip(obs, actions, filled, strict=True)
        ) / len(obs)

    def impromptu(self, obs):
        return self.impromptu2(F.leaky_relu(self.impromptu1(obs)))

    def predictions(self, histories, n, character):
        """(impromptu, natural) logits of row n: [U] each."""
        obs = histories.obs[n, self.j]
        mental = self.encode(
            self.mental_net,
            histories.past_obs[n],
            histories.past_actions[n],
            histories.past_filled[n],
        )
        natural = self.natural2(F.leaky_relu(self.natural1(torch.cat([character, mental, obs]))))
        return self.impromptu(obs), natural


def masked(logits, avail):
    return logits.masked_fill(avail == 0, torch.finfo(torch.float32).min)


def pairs(common):
    """(group, i, j) of every ordered pair."""
    found = [(i, j) for i in range(A) for j in range(A) if i != j]
    return [(j if common else g, i, j) for g, (i, j) in enumerate(found)]


# -- Windows ---------------------------------------------------------------------------------------


def test_ragged_rows_are_those_of_a_loop():
    filled = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    windows = ragged(filled)
    # Longest first: windows 3, 2, 0, 4; window 1 has no step.
    assert windows.sizes == [4, 3, 2, 1]
    assert windows.flat.tolist() == [12, 8, 2, 19, 13, 9, 3, 14, 10, 15]
    assert windows.empty.tolist() == [False, True, False, False, False]
    assert [int(windows.last[n]) for n in (0, 2, 3, 4)] == [6, 8, 9, 3]


def test_windows_without_any_step_are_encoded_as_zero():
    encoder = SequenceEncoder(2, 3, 2)
    assert torch.equal(
        encoder(torch.zeros(2, 0, 2), ragged(torch.zeros(4, 5))), torch.zeros(2, 4, 3)
    )


def test_next_histories_move_on_by_one():
    now, after = make_histories(), make_histories(seed=5)
    actions = make_actions(now)
    nxt = now.moved_on(actions, after.obs, after.avail_actions)
    for n in range(len(actions)):
        assert torch.equal(nxt.obs[n], after.obs[n])
        assert torch.equal(nxt.avail_actions[n], after.avail_actions[n])
        for k in range(H - 1):
            assert torch.equal(nxt.past_obs[n, k], now.past_obs[n, k + 1])
            assert torch.equal(nxt.past_actions[n, k], now.past_actions[n, k + 1])
            assert nxt.past_filled[n, k] == now.past_filled[n, k + 1]
        assert torch.equal(nxt.past_obs[n, -1], now.obs[n])
        assert torch.equal(nxt.past_actions[n, -1], actions[n])
        assert nxt.past_filled[n, -1] == 1


def make_episodes(lengths=(4, 9, 1), max_steps=10):
    """Episodes of so many transitions each."""
    generator = torch.Generator().manual_seed(3)
    scheme = {
        "obs": {"vshape": O, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (U,), "group": "agents", "dtype": torch.int},
    }
    batch = EpisodeBatch(scheme, {"agents": A}, len(lengths), max_steps)
    for b, length in enumerate(lengths):
        for t in range(length + 1):
            batch.update({"obs": make_obs(generator=generator)}, bs=b, ts=t)
            batch.update(
                {"avail_actions": torch.randint(2, (A, U), generator=generator)}, bs=b, ts=t
            )
            if t < length:
                batch.update({"actions": torch.randint(U, (A, 1), generator=generator)}, bs=b, ts=t)
    return batch


def test_episode_histories_are_the_steps_before():
    lengths = (4, 9, 1)
    batch = make_episodes(lengths)
    steps = batch.steps()
    obs, avail, actions = (steps.pack(batch[name]) for name in ("obs", "avail_actions", "actions"))
    histories = episode_histories(obs, avail, actions.squeeze(-1), steps, H)
    episode = steps.pack(torch.arange(3).view(3, 1).expand(3, 10))
    time = steps.pack(torch.arange(10).expand(3, 10))
    assert len(histories.obs) == sum(lengths) + 3
    for n in range(len(time)):
        b, t = int(episode[n]), int(time[n])
        assert torch.equal(histories.obs[n], batch["obs"][b, t])
        assert torch.equal(histories.avail_actions[n], batch["avail_actions"][b, t])
        for k in range(H):
            before = t - H + k
            assert histories.past_filled[n, k] == float(before >= 0)
            if before >= 0:
                assert torch.equal(histories.past_obs[n, k], batch["obs"][b, before])
                assert torch.equal(histories.past_actions[n, k], batch["actions"][b, before, :, 0])


def test_trajectories_are_the_transitions_of_episodes():
    lengths = (4, 9, 1)
    batch = make_episodes(lengths)
    obs, actions, filled = trajectories_of(batch)
    assert filled.sum(1).tolist() == list(lengths)
    for b, length in enumerate(lengths):
        assert filled[b, :length].all()
        assert torch.equal(obs[b, :length], batch["obs"][b, :length])
        assert torch.equal(actions[b, :length], batch["actions"][b, :length, :, 0])


# -- Predictions and losses ------------------------------------------------------------------------


@pytest.mark.parametrize("common", [False, True])
def test_logits_are_those_of_a_loop_over_pairs_and_rows(common):
    models, histories, trajectories = (
        make_models(moa_common=common),
        make_histories(),
        make_trajectories(),
    )
    assert len(models.subjects) == (A if common else A * (A - 1))
    models.set_trajectories(*trajectories)
    with torch.no_grad():
        logits = models.logits(histories)
        assert logits.shape == (9, A, A, U)
        for g, i, j in pairs(common):
            slow = SlowModel(models, g, j)
            character = slow.character(*trajectories)
            assert torch.allclose(models.character[g], character, atol=1e-6)
            for n in range(9):
                expected = masked(
                    sum(slow.predictions(histories, n, character)), histories.avail_actions[n, j]
                )
                assert torch.allclose(logits[n, i, j], expected, atol=1e-6)
    assert not logits[:, range(A), range(A)].any()


@pytest.mark.parametrize("common", [False, True])
def test_loss_and_gradients_are_those_of_a_loop(common):
    models, histories, trajectories = (
        make_models(moa_common=common),
        make_histories(),
        make_trajectories(),
    )
    actions = make_actions(histories)
    models.set_trajectories(*trajectories)
    result = models.loss(histories, actions)
    result.loss.sum().backward()
    for g, _, j in pairs(common):
        slow = SlowModel(models, g, j)
        character = slow.character(*trajectories)
        loss, hits = 0.0, 0
        for n in range(9):
            avail, target = histories.avail_actions[n, j], int(actions[n, j])
            impromptu, natural = slow.predictions(histories, n, character)
            both = masked(impromptu + natural, avail)
            loss = (
                loss
                - masked(impromptu, avail).log_softmax(-1)[target] / 9
                - both.log_softmax(-1)[target] / 9
            )
            hits += int(both.argmax()) == target
        assert result.loss[g].item() == pytest.approx(loss.item(), rel=1e-5)
        assert result.accuracy[g].item() == pytest.approx(hits / 9)
        most = max(actions[:, j].tolist().count(a) for a in range(U))
        assert result.best_constant[g].item() == pytest.approx(most / 9)
        loss.backward()
        for name in ("natural1", "natural2", "impromptu1", "impromptu2"):
            for part in ("weight", "bias"):
                stacked, single = (
                    getattr(getattr(models, name), part).grad[g],
                    getattr(getattr(slow, name), part).grad,
                )
                if name == "impromptu1" and part == "weight":
                    single = single * (torch.arange(O) < OBS_SIZES[j])
                assert torch.allclose(stacked, single, atol=1e-6), (name, part)
        for name in ("character_net", "mental_net"):
            for k, layer in enumerate(getattr(models, name).layers):
                for part, param in layer.named_parameters():
                    single = getattr(getattr(slow, name), f"{part}_l{k}").grad
                    assert single.abs().max() > 1e-6
                    assert torch.allclose(param.grad[g], single, atol=1e-6), (name, k, part)


def test_a_model_learns_from_its_own_loss_only():
    models, histories = make_models(), make_histories()
    models.set_trajectories(*make_trajectories())
    models.loss(histories, make_actions(histories)).loss[2].backward()
    for name, param in models.named_parameters():
        of_group = param.grad.flatten(1).abs().amax(1)
        assert of_group[2] > 0, name
        assert not of_group[[0, 1, 3, 4, 5]].any(), name


def test_impromptu_prediction_learns_from_all_rows_the_sum_from_its_own_batch():
    histories = make_histories()
    actions = make_actions(histories)
    models = make_models(moa_natural_batch=4)
    models.set_trajectories(*make_trajectories())
    torch.manual_seed(11)
    found = models.loss(histories, actions)
    torch.manual_seed(11)
    torch.randperm(6)
    rows = torch.randperm(9)[:4]
    with torch.no_grad():
        models.character.copy_(models._draw_character())
        both = models.logits(histories)
        for g, i, j in pairs(False):
            slow = SlowModel(models, g, j)
            alone = [
                masked(
                    slow.impromptu(histories.obs[n, j]), histories.avail_actions[n, j]
                ).log_softmax(-1)[actions[n, j]]
                for n in range(9)
            ]
            together = [both[n, i, j].log_softmax(-1)[actions[n, j]] for n in rows.tolist()]
            assert found.loss[g].item() == pytest.approx(
                -(sum(alone) / 9 + sum(together) / 4).item(), rel=1e-5
            )


def test_own_models_that_start_equal_stay_equal_to_common_ones():
    histories = make_histories()
    actions = make_actions(histories)
    common, own = make_models(moa_common=True), make_models(seed=1)
    for name, param in own.named_parameters():
        param.data.copy_(dict(common.named_parameters())[name].data[own.subjects])
    for models in (common, own):
        torch.manual_seed(4)
        optimiser = torch.optim.Adam(models.parameters(), lr=0.01)
        models.set_trajectories(*make_trajectories())
        for _ in range(5):
            optimiser.zero_grad()
            models.loss(histories, actions).loss.sum().backward()
            optimiser.step()
    assert torch.allclose(common.logits(histories), own.logits(histories), atol=1e-4)
    assert (
        common(histories)[:, :, 1] - make_models(moa_common=True)(histories)[:, :, 1]
    ).abs().max() > 0.01


def test_characters_are_drawn_anew_and_unbiased():
    models = make_models(moa_character_batch=2)
    models.set_trajectories(*make_trajectories())
    histories = make_histories()
    with torch.no_grad():
        obs, actions, filled = (
            models.trajectory_obs,
            models.trajectory_actions,
            models.trajectory_filled,
        )
        encodings = models._encode(models.character_net, obs, actions, filled)
        drawn = []
        for _ in range(400):
            models.loss(histories, make_actions(histories))
            drawn.append(models.character.clone())
    drawn = torch.stack(drawn)
    # A mean of two of the six encodings each time ...
    means = [(encodings[:, a] + encodings[:, b]) / 2 for a in range(6) for b in range(a)]
    assert all(min((c - m).abs().max() for m in means) < 1e-6 for c in drawn[:20])
    assert len({round(c.sum().item(), 5) for c in drawn}) > 10
    # ... whose mean is the mean of all.
    assert torch.allclose(drawn.mean(0), encodings.mean(1), atol=4 * drawn.std(0).max().item() / 20)


def test_weights_of_padding_stay_zero():
    models, histories = make_models(), make_histories()
    models.set_trajectories(*make_trajectories())
    optimiser = torch.optim.Adam(models.parameters(), lr=0.01)
    models.loss(histories, make_actions(histories)).loss.sum().backward()
    optimiser.step()
    of_smaller = [g for g, _, j in pairs(False) if j == 1]
    assert not models.impromptu1.weight[of_smaller, :, -1].any()
    assert not models.natural1.weight[of_smaller, :, -1].any()
    assert models.impromptu1.weight[:, :, :-1].all()


# -- Imagined actions ------------------------------------------------------------------------------


def test_agents_imagine_the_others_and_know_themselves():
    models, histories = make_models(), make_histories(n=2)
    models.set_trajectories(*make_trajectories())
    own = make_actions(histories)
    torch.manual_seed(0)
    repeated = histories.rows(torch.arange(2).repeat_interleave(4000))
    joint = models.imagine(repeated, own.repeat_interleave(4000, 0))
    assert joint.shape == (A, 8000, A)
    assert joint.dtype == torch.int64
    probs = models.logits(histories).softmax(-1)
    for n in range(2):
        part = joint[:, n * 4000 : (n + 1) * 4000]
        for i in range(A):
            for j in range(A):
                shares = torch.bincount(part[i, :, j], minlength=U) / 4000
                if i == j:
                    assert shares[own[n, i]] == 1
                else:
                    assert torch.allclose(shares, probs[n, i, j], atol=0.03)
                    assert not shares[histories.avail_actions[n, j] == 0].any()


def test_agents_with_common_models_draw_independently():
    models, histories = make_models(moa_common=True), make_histories()
    histories = histories._replace(avail_actions=torch.ones_like(histories.avail_actions))
    rows = histories.rows(torch.zeros(500, dtype=torch.int64))
    joint = models.imagine(rows, torch.zeros(500, A, dtype=torch.int64))
    assert (joint[0, :, 2] != joint[1, :, 2]).float().mean() > 0.4


def test_rows_where_nothing_is_available_do_not_break_the_draw():
    models, histories = make_models(), make_histories()
    histories = histories._replace(avail_actions=torch.zeros_like(histories.avail_actions))
    joint = models.imagine(histories, torch.zeros(9, A, dtype=torch.int64))
    assert ((joint >= 0) & (joint < U)).all()


# -- Trajectories, checkpoints, settings -----------------------------------------------------------


def test_trajectories_are_cut_to_their_number_and_length():
    models = make_models(moa_trajectories=4, moa_trajectory_steps=3, moa_character_batch=4)
    obs, actions, filled = make_trajectories()
    models.set_trajectories(obs, actions, filled)
    assert torch.equal(models.trajectory_obs, obs[:4, :3])
    assert torch.equal(models.trajectory_filled, filled[:4, :3])
    slow = SlowModel(models, 0, 1)
    assert torch.allclose(
        models.character[0], slow.character(obs[:4, :3], actions[:4, :3], filled[:4, :3]), atol=1e-6
    )


def test_trajectories_may_be_shorter_than_asked_for():
    models = make_models(moa_trajectory_steps=20)
    trajectories = make_trajectories()
    models.set_trajectories(*trajectories)
    assert torch.allclose(
        models.character[0], SlowModel(models, 0, 1).character(*trajectories), atol=1e-6
    )


def test_too_few_trajectories_are_an_error():
    with pytest.raises(ConfigError, match="warmup_episodes=6"):
        make_models().set_trajectories(*make_trajectories(n=5))


def test_the_state_has_trajectories_and_characters():
    models, histories = make_models(), make_histories()
    models.set_trajectories(*make_trajectories())
    other = make_models(seed=1)
    other.load_state_dict(models.state_dict())
    assert torch.equal(other(histories), models(histories))
    for one in (models, other):
        torch.manual_seed(6)
        one.loss(histories, make_actions(histories)).loss.sum().backward()
    assert torch.equal(other.character, models.character)
    for a, b in zip(models.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moa_character_batch": 0}, "moa_character_batch must be at least 1, got 0"),
        ({"moa_trajectory_steps": 0}, "moa_trajectory_steps must be at least 1, got 0"),
        ({"moa_natural_batch": 0}, "moa_natural_batch must be at least 1, got 0"),
        ({"moa_hidden_dim": 0}, "moa_hidden_dim must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_ranges(vars(make_args(**changes)), RANGES)


def test_one_agent_has_nobody_to_model():
    with pytest.raises(ConfigError, match="only one agent"):
        make_models(obs_sizes=(3,))


# -- Learning --------------------------------------------------------------------------------------


def counting_steps(n, generator):
    """Agents that add 1 (or 2 where they see something positive) to their last action, 9 times in
    10.
    """
    obs = torch.randn(n, H + 1, A, O, generator=generator)
    actions = torch.randint(U, (n, H + 1, A), generator=generator)
    for t in range(1, H + 1):
        follows = (actions[:, t - 1] + 1 + (obs[:, t, :, 0] > 0).long()) % U
        keeps = torch.rand(n, A, generator=generator) < 0.9
        actions[:, t] = torch.where(keeps, follows, actions[:, t])
    ones = torch.ones(n, A, U, dtype=torch.uint8)
    return Histories(obs[:, -1], ones, obs[:, :-1], actions[:, :-1], torch.ones(n, H)), actions[
        :, -1
    ]


def test_models_learn_a_policy_that_depends_on_the_past():
    generator = torch.Generator().manual_seed(0)
    models = make_models(
        obs_sizes=(O,) * A, moa_hidden_dim=24, moa_prediction_dim=32, moa_natural_batch=96
    )
    models.set_trajectories(*make_trajectories())
    optimiser = torch.optim.Adam(models.parameters(), lr=0.01)
    for _ in range(120):
        optimiser.zero_grad()
        models.loss(*counting_steps(128, generator)).loss.sum().backward()
        optimiser.step()
    histories, actions = counting_steps(2000, generator)
    result = models.loss(histories, actions)
    # Known: 0.9 + 0.1 / 4. A constant, or a guess from the observation alone, gets about 0.25.
    assert result.best_constant.max() < 0.35
    assert result.accuracy.min() > 0.75
    hits = models.logits(histories).argmax(-1) == actions.unsqueeze(1)
    assert hits.float().mean(0)[~torch.eye(A, dtype=torch.bool)].min() > 0.75
