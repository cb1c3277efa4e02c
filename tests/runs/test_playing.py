"""Playing a policy: what is recorded is what a run of the policy in a plain loop does, sees and
computes; films; the command line.
"""

import importlib.util
import io
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from console_fixtures import fresh_console  # noqa: F401
from PIL import Image
from policy_fixtures import write_policy

from analysis.episode import Array, plain
from assembly import new_batch
from envs import make_vector_env
from main import main
from playing import Player
from policies import find_policy
from utils.errors import UserError
from utils.seeding import derive_seed, isolated_global_rng

PREY = ("predator_prey", "env_args.episode_limit=9", "env_args.n_predators=3")
SPREAD = ("spread", "env_args.episode_limit=6", "env_args.n_agents=3")
POLICIES = {
    "qmix": ("qmix", *PREY, "mixing_embed_dim=4"),
    "s2q": ("s2q", *PREY, "encoder_hidden_dim=8"),
    "iql": (
        "iql",
        "lbf",
        "env_args.time_limit=7",
        "env_args.map_name=5x5-2p-2f",
        "common_reward=True",
    ),
    "dac": ("dac", *PREY, "dac_k=3", "dac_m=4", "dac_hidden_dim=8"),
    "mappo": ("mappo", *PREY, "critic_hidden_dim=8"),
    "mamt": ("mamt", *SPREAD, "critic_hidden_dim=8", "policy_hidden_dim=8"),
    "f2a2": ("f2a2_sac", *SPREAD, "critic_hidden_dim=8", "policy_hidden_dim=8"),
}


@pytest.fixture
def made(tmp_path):
    """name -> (folder, learner) of a policy."""

    def make(name, *settings):
        folder = tmp_path / name
        return folder, write_policy(folder, *POLICIES[name], *settings)

    return make


class Direct:
    """A greedy episode in a plain loop: no collector, no player."""

    def __init__(self, learner, number, seed=3, step=700):
        args, mac = learner.args, learner.mac
        env = make_vector_env(args.env, args.env_args, 1, seed, "native", "test_env")
        env.seed(derive_seed(seed, "evaluation", step))
        for _ in range(number + 1):
            self.batch = new_batch(args, n_steps=args.episode_limit + 1, mac=mac)
            self.obs, self.actions, self.rewards, self.outputs, self.frames = [], [], [], [], []
            mac.init_hidden(1)
            env.reset()
            for t in range(args.episode_limit + 1):
                self.obs.append(env.obs[0].copy())
                self.frames.append(env.render())
                seen = {key: getattr(env, key) for key in ("obs", "state", "avail_actions")}
                self.batch.update(seen, ts=t)
                if env.terminated[0] or env.truncated[0]:
                    break
                with torch.no_grad():
                    outputs = mac.forward(self.batch, t, test_mode=True)[0]
                self.outputs.append(outputs)
                available = torch.from_numpy(env.avail_actions[0].copy()) != 0
                actions = outputs.masked_fill(~available, -torch.inf).argmax(-1)
                self.batch.update({"actions": actions[None, :, None]}, ts=t)
                env.step(actions.numpy()[None])
                self.actions.append(actions.numpy())
                self.rewards.append(env.reward[0].copy())


@pytest.mark.parametrize("name", POLICIES)
def test_an_episode_is_that_of_a_direct_run(made, name):
    folder, learner = made(name)
    with Player(find_policy(folder)) as player:
        episodes = [player.record(number) for number in (0, 1)]
    assert not np.array_equal(episodes[0].obs, episodes[1].obs)
    for number, episode in enumerate(episodes):
        direct = Direct(learner, number)
        assert len(episode.obs) == len(direct.obs) == len(direct.actions) + 1
        np.testing.assert_array_equal(episode.obs, np.stack(direct.obs))
        np.testing.assert_array_equal(episode.taken, np.stack(direct.actions))
        rewards = np.stack(direct.rewards)
        if learner.args.common_reward and rewards.ndim == 2:
            rewards = rewards.sum(1)
        np.testing.assert_allclose(episode.rewards, rewards, rtol=1e-6)
        assert float(episode.facts["Return"]) == pytest.approx(
            rewards.sum(0).mean(), rel=1e-3, abs=1e-6
        )
        for picture, frame in zip(episode.pictures, direct.frames, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), frame)
        inner = episode.inner
        if "probabilities" in inner:
            shown = inner["probabilities"].values[:-1]
            outputs = torch.stack(direct.outputs).softmax(-1)  # logits, all actions available
        else:
            shown, outputs = inner["action values"].values[:-1], torch.stack(direct.outputs)
            shown = shown[:, 0] if name == "s2q" else shown  # Q_0
        np.testing.assert_allclose(shown, outputs.numpy(), atol=1e-5)


def batch_of(player):
    batch, _ = player.watch()
    return batch, player.learner, player.explain(batch)


def test_the_value_of_a_mixer(made):
    folder, _ = made("qmix")
    with Player(find_policy(folder)) as player, torch.no_grad():
        batch, learner, shown = batch_of(player)
        best = shown["action values"].values.amax(-1)  # all actions are available
        value = learner.mixer(best.unsqueeze(0), batch["state"])
    np.testing.assert_allclose(shown["value"].values, value.flatten(), atol=1e-5)


def test_s2q_shows_its_joint_actions_and_both_choices(made):
    folder, _ = made("s2q")
    with Player(find_policy(folder)) as player, torch.no_grad():
        batch, learner, shown = batch_of(player)
        mac, n = player.mac, batch.steps().n_rows
        values = shown["action values"].values
        assert values.shape[:2] == (n, 3)  # Q_0, Q_1, Q_2
        greedy = shown["best joint action a_k*"].values
        mac.init_hidden(1)
        for t in range(n):
            stepped = mac.forward_all(batch, t)
            torch.testing.assert_close(values[t], stepped.q[:, 0], atol=1e-5, rtol=1e-5)
            assert torch.equal(greedy[t], values[t].argmax(-1))
            estimate = mac.decoder.choice_logits(stepped.z).softmax(-1)[0]
            found = shown["P_t, as the decoder estimates it"].values[t]
            torch.testing.assert_close(found, estimate, atol=1e-5, rtol=1e-5)
            true = learner.choice_at(batch, t, slice(None), greedy[t].unsqueeze(1))[0]
            torch.testing.assert_close(shown["P_t, from Q*"].values[t], true, atol=1e-4, rtol=1e-4)
    q_star = shown["Q* of a_k*"].values
    torch.testing.assert_close(
        (q_star / learner.args.s2q_temperature).softmax(-1), shown["P_t, from Q*"].values
    )
    assert "k that is followed" not in shown


def test_s2q_exploring_follows_the_k_that_is_shown(made):
    settings = (
        "epsilon_start=0.0",
        "epsilon_finish=0.0",
        "s2q_fixed_prob=0.0",
        "s2q_select=uniform",
    )
    folder, _ = made("s2q", *settings)
    with Player(find_policy(folder), exploring=True) as player:
        episode = player.record(0)
    followed = episode.inner["k that is followed"].values
    greedy = episode.inner["best joint action a_k*"].values
    assert (followed[-1] == -1).all()
    seen = set()
    for t, taken in enumerate(episode.taken):
        assert len(set(followed[t].tolist())) == 1
        seen.add(int(followed[t, 0]))
        np.testing.assert_array_equal(taken, greedy[t, followed[t, 0]])
    assert len(seen) > 1
    with Player(find_policy(folder), exploring=True) as player:
        again = player.record(0)
    np.testing.assert_array_equal(again.taken, episode.taken)


def test_dac_shows_contexts(made):
    folder, _ = made("dac")
    with Player(find_policy(folder)) as player, torch.no_grad():
        batch, learner, shown = batch_of(player)
        steps = batch.steps()
        by_context = shown["values by context"].values
        torch.testing.assert_close(shown["action values"].values, by_context.amax(2))
        value, best = shown["value"].values, shown["context of the best action"].values
        obs, actions = steps.pack(batch["obs"]), steps.pack(batch["actions"]).squeeze(-1)
        rewards = steps.pack(batch["reward"])
        encoder, n_agents = learner.encoder, 3
        for t in range(steps.n_rows):
            for a in range(n_agents):
                k = int(best[t, a])
                assert by_context[t, a, k].max() == value[t, a] == by_context[t, a].max()
                found = shown["context of the last transitions"].values[t, a]
                if t == 0:
                    assert found.isnan().all()
                    continue
                window = []  # of the three transitions before step t, zeros before the first
                for one in range(t - 3, t):
                    if one < 0:
                        window.append(torch.zeros(2 * obs.shape[-1] + 6))
                    else:
                        action = F.one_hot(actions[one, a], 5).float()
                        window.append(
                            torch.cat([obs[one, a], action, rewards[one], obs[one + 1, a]])
                        )
                hidden = encoder.fc1.weight[a] @ torch.cat(window) + encoder.fc1.bias[a]
                logits = encoder.fc2.weight[a] @ hidden.relu() + encoder.fc2.bias[a]
                torch.testing.assert_close(found, logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_dac_exploring_shows_the_context_that_is_followed(made):
    folder, _ = made("dac", "epsilon_start=0.5", "epsilon_finish=0.5")
    with Player(find_policy(folder), exploring=True) as player:
        followed = np.concatenate(
            [player.record(n).inner["context that is explored"].values[:-1] for n in range(4)]
        )
    assert set(np.unique(followed)) == {-1, 0, 1, 2, 3}
    assert 0.3 < (followed >= 0).mean() < 0.7


def test_mappo_s_value_is_the_critic_s(made):
    folder, _ = made("mappo")
    with Player(find_policy(folder)) as player, torch.no_grad():
        batch, learner, shown = batch_of(player)
        learner.value_norm.update(torch.tensor([[3.0], [9.0]]))
        shown = player.explain(batch)
        x = learner.critic(batch["state"][0], None, batch.steps())
        value = learner.value_norm.denormalize(x).squeeze(-1)
    torch.testing.assert_close(shown["value"].values, value[: len(shown["value"].values)])
    torch.testing.assert_close(
        shown["probabilities"].values.sum(-1), torch.ones(batch.steps().n_rows, 3)
    )


def test_mamt_s_coefficients_are_the_influence_of_the_others(made):
    folder, _ = made("mamt", "coordination_sigma=0.5")
    with Player(find_policy(folder)) as player, torch.no_grad():
        batch, learner, shown = batch_of(player)
        critic, obs = learner.critic, batch["obs"][0]
        probs = shown["probabilities"].values
        actions = batch["actions"][0].squeeze(-1).clone()
        actions[-1] = probs[-1].argmax(-1)  # nobody acts in the last step
        q = critic(obs, actions).all_q
        torch.testing.assert_close(shown["value"].values, (probs * q).sum(-1))
        attention = shown["attention"].values
        torch.testing.assert_close(attention.sum(-1), torch.ones(len(obs), 3))
        assert (attention.diagonal(dim1=1, dim2=2) == 0).all()
        effects = torch.zeros(len(obs), 3, 3)
        for j in range(3):
            mean = torch.zeros(len(obs), 3)
            for u in range(5):
                other = actions.clone()
                other[:, j] = u
                values = critic.taken(critic(obs, other).all_q, other)
                mean += probs[:, j, u, None] * values
            effects[:, :, j] = (mean - critic.taken(q, actions)).abs()
        for i in range(3):
            others = [j for j in range(3) if j != i]
            shares = effects[:, i, others].softmax(-1)
            found = shown["influence of the others, before the threshold"].values[:, i, others]
            torch.testing.assert_close(found, shares, atol=1e-5, rtol=1e-4)
            kept = shown["coordination coefficients"].values[:, i, others]
            torch.testing.assert_close(kept, found * (found >= 0.5))
    assert shown["local trust region"].values[0].tolist() == pytest.approx([10 / 3] * 3)


def test_without_the_learner_s_networks_the_controller_still_speaks(made):
    folder, _ = made("qmix")
    (folder / "checkpoints" / "700" / "mixer.th").unlink()
    with Player(find_policy(folder)) as player:
        episode = player.record(0)
    assert "value" not in episode.inner
    assert "action values" in episode.inner
    assert episode.notes == ["The networks mixer are not there: values of the learner are missing."]


def test_an_environment_without_pictures(made, monkeypatch):
    from envs.predator_prey import PredatorPrey

    folder, _ = made("qmix")
    monkeypatch.delattr(PredatorPrey, "render")
    with Player(find_policy(folder)) as player:
        episode = player.record(0)
        assert len(episode.pictures) == 0
        assert len(episode.obs) == 10
        with pytest.raises(UserError, match="gives no pictures"):
            player.film(folder / "film.gif")


def test_numbers_on_their_way_to_the_page():
    values = np.array([[1.23456, np.nan], [np.inf, -2e-7]])
    assert plain(values) == [[1.235, None], [None, -2e-07]]
    assert plain(np.array([[1, 0]], dtype=np.uint8)) == [[1, 0]]
    assert Array(values, ("agent",), "value").kind == "value"


def test_the_page_gets_json(made):
    folder, _ = made("dac")
    with Player(find_policy(folder)) as player:
        page = json.loads(json.dumps(player.record(0).for_page(), allow_nan=False))
    assert page["title"] == "dac on predator_prey"
    assert page["agents"] == ["predator 0", "predator 1", "predator 2"]
    assert page["pictures"] == len(page["obs"]) == len(page["taken"]) + 1 == 10


def test_the_checkpoint_that_is_nearest(tmp_path):
    write_policy(tmp_path / "run", *POLICIES["qmix"], step=700)
    write_policy(tmp_path / "other", *POLICIES["qmix"], step=90, seed=5)
    (tmp_path / "other" / "checkpoints" / "90").rename(tmp_path / "run" / "checkpoints" / "90")
    run = tmp_path / "run"
    assert find_policy(run).step == 700
    assert find_policy(run, 100).step == find_policy(run / "checkpoints" / "90").step == 90
    assert find_policy(run / "checkpoints").step == 700
    assert find_policy(run / "checkpoints" / "90").run == run


def test_keys_that_came_later_have_their_defaults(made):
    folder, _ = made("qmix")
    config = json.loads((folder / "config.json").read_text())
    del config["film_format"], config["checkpoint_agents"]
    (folder / "config.json").write_text(json.dumps(config))
    assert find_policy(folder).config["film_format"] == "gif"


def said(capsys, *argv):
    code = main(list(map(str, argv)))
    return code, capsys.readouterr().err


@pytest.mark.usefixtures("fresh_console")
def test_mistakes_are_one_line(made, tmp_path, capsys, monkeypatch):
    folder, _ = made("qmix")
    for argv, message in (
        (["play"], "play: the following arguments are required: RUN"),
        (["play", tmp_path / "nowhere"], f"no checkpoint in '{tmp_path}/nowhere'"),
        (["play", folder, "--film", "x.avi"], "a film is a .gif or .mp4 file, not '.avi'"),
        (["play", folder, "--step", "-1"], "--step is at least 0"),
        (["export", folder], "required: FOLDER"),
        (["export", folder, folder], "is there already"),
    ):
        code, line = said(capsys, *argv)
        assert code == 2
        assert message in line
        assert line.startswith("error: ")
        assert line.count("\n") == 1
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, line = said(capsys, "play", folder, "--film", tmp_path / "x.mp4")
    assert (code, line.count("\n")) == (2, 1)
    assert "pip install -r requirements-film.txt" in line
    monkeypatch.setitem(sys.modules, "dash", None)
    code, line = said(capsys, "play", folder)
    assert (code, line.count("\n")) == (2, 1)
    assert "the player needs the package dash: pip install -r requirements-dashboard.txt" in line


@pytest.mark.usefixtures("fresh_console")
def test_films_of_both_kinds(made, tmp_path):
    folder, _ = made("qmix")
    assert main(["play", str(folder), "--film", str(tmp_path / "films" / "a.gif")]) == 0
    film = Image.open(tmp_path / "films" / "a.gif")
    with Player(find_policy(folder)) as player:
        first = Image.open(io.BytesIO(player.record(0).pictures[0]))
    assert film.size == first.size
    assert film.n_frames <= 10  # equal neighbours are one frame
    times = []
    for frame in range(film.n_frames):
        film.seek(frame)
        times.append(film.info["duration"])
    assert sum(times) == 9 * 200 + 1500
    pytest.importorskip("imageio_ffmpeg")
    assert main(["play", str(folder), "--film", str(tmp_path / "a.mp4")]) == 0
    assert (tmp_path / "a.mp4").stat().st_size > 1000


# --- Export ---


@pytest.mark.usefixtures("fresh_console")
def test_an_exported_policy_is_small_and_plays_and_evaluates(made, tmp_path, capsys):
    folder, _ = made("s2q", "runner=vector", "batch_size_run=2", f"local_results_path={tmp_path}")
    small = tmp_path / "zoo" / "small"
    assert main(["export", str(folder), str(small), "--episodes", "6"]) == 0
    assert str(small) in capsys.readouterr().out
    files = {file.name for file in (small / "checkpoints" / "700").iterdir()}
    networks = ("agent", "encoder", "decoder", "central_agent", "central_mixer")
    assert files == {f"{name}.th" for name in networks}
    assert sorted(file.name for file in small.parent.iterdir()) == ["small"]
    weights = torch.load(small / "checkpoints/700/agent.th", weights_only=True)
    before = torch.load(folder / "checkpoints/700/agent.th", weights_only=True)
    for name, value in weights.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value.float(), before[name], atol=1e-3, rtol=1e-3)
    card = json.loads((small / "policy.json").read_text())
    assert (card["algorithm"], card["environment"]) == ("s2q", "predator_prey")
    assert (card["steps"], card["seed"], card["episodes"]) == (700, 3, 6)
    config = json.loads((small / "config.json").read_text())
    assert not {"local_results_path", "checkpoint_path", "resume"} & set(config)

    with Player(find_policy(small)) as player:
        episode = player.record(0)
        assert next(player.mac.parameters()).dtype == torch.float32
    assert episode.notes == []
    assert f"{card['test_return_mean']:.4g}" == episode.facts["Return in 6 episodes"]

    # PyMARL's form finds the figure of the card.
    words = ["--config=s2q", "--env-config=predator_prey", "with", str(small / "config.json")]
    words += ["evaluate=True", f"checkpoint_path={small / 'checkpoints'}"]
    kind = "mp4" if importlib.util.find_spec("imageio_ffmpeg") else "gif"
    words += ["render=True", f"film_format={kind}"]
    assert main([*words, f"local_results_path={tmp_path / 'results'}"]) == 0
    (metrics,) = (tmp_path / "results").rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = {line["key"]: line["value"] for line in lines}
    assert found["test_return_mean"] == pytest.approx(card["test_return_mean"], abs=1e-4)
    assert len(found["test_returns"]) == 6
    assert metrics.with_name(f"evaluation.{kind}").stat().st_size > 1000


def test_weights_beyond_half_precision_are_refused(made, tmp_path):
    folder, _ = made("iql")
    path = folder / "checkpoints" / "700" / "agent.th"
    weights = torch.load(path, weights_only=True)
    next(iter(weights.values())).flatten()[0] = 1e6
    torch.save(weights, path)
    from policies import export

    with pytest.raises(UserError, match="beyond half precision"):
        export(find_policy(folder), tmp_path / "small", 2)
    assert not (tmp_path / "small").exists()


def test_damaged_models_are_one_line(made):
    folder, _ = made("qmix")
    (folder / "checkpoints" / "700" / "agent.th").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        Player(find_policy(folder))


def test_acting_by_chance_does_not_touch_the_process(made):
    """Recording leaves torch's generator where it was."""
    folder, _ = made("mamt")
    with isolated_global_rng(5), Player(find_policy(folder), exploring=True) as player:
        before = torch.get_rng_state()
        player.record(0)
        assert torch.equal(torch.get_rng_state(), before)
