"""Plug-ins written for PyMARL2 (tests/plugins/): they run unmodified, alone and together, and give
the same numbers.
"""

import importlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections import deque, namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import learner_fixtures as fixtures
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plugin_fixtures import REGISTRIES, plugins_forgotten
from torch import nn

import main as main_module
from components.action_selectors import REGISTRY as SELECTORS
from components.episode_buffer import EpisodeBatch
from controllers import REGISTRY as MACS
from controllers.agent_forms import takes_rows
from controllers.basic_controller import BasicMAC
from controllers.unroll import unroll
from envs import make_vector_env
from learners import REGISTRY as LEARNERS
from learners.replayed import ReplayedSteps
from modules.agents import REGISTRY as AGENTS
from plugins import load_plugins
from runners import REGISTRY as RUNNERS
from utils.errors import UserError
from utils.seeding import derive_seed
from utils.state import capture, restore

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "tests" / "plugins"
N_AGENTS, N_ACTIONS, OBS = fixtures.N_AGENTS, fixtures.N_ACTIONS, fixtures.OBS
# Episodes as PyMARL's mask gets them right: as long as the batch where they are truncated, any
# length where not.
FULL = {"lengths": (7, 4, 7, 6), "terminated": (False, True, True, True)}


def paths(*names):
    return [str(PLUGINS / f"pymarl_{name}.py") for name in names]


@pytest.fixture(autouse=True, scope="module")
def plugged(tmp_path_factory):
    """All plug-ins are loaded; registries, imported modules and the path are put back
    afterwards.
    """
    with plugins_forgotten(PLUGINS, tmp_path_factory.getbasetemp()):
        load_plugins(paths("learner", "mac", "agent", "mixer", "env", "selector", "runner"))
        yield


# -- the surface -----------------------------------------------------------------------------------

SURFACE = {
    "components.action_selectors": ["REGISTRY"],
    "components.episode_buffer": ["EpisodeBatch", "ReplayBuffer"],
    "components.epsilon_schedules": ["DecayThenFlatSchedule"],
    "components.transforms": ["OneHot"],
    "controllers": ["REGISTRY"],
    "controllers.basic_controller": ["BasicMAC"],
    "controllers.n_controller": ["NMAC"],
    "envs": ["REGISTRY"],
    "envs.multiagentenv": ["MultiAgentEnv"],
    "learners": ["REGISTRY"],
    "modules.agents": ["REGISTRY"],
    "modules.agents.n_rnn_agent": ["NRNNAgent"],
    "modules.agents.rnn_agent": ["RNNAgent"],
    "modules.critics": ["REGISTRY"],
    "modules.mixers.dmaq_general": ["DMAQer"],
    "modules.mixers.nmix": ["Mixer"],
    "modules.mixers.qatten": ["QattenMixer"],
    "modules.mixers.qmix": ["QMixer"],
    "modules.mixers.qmix_central_no_hyper": ["QMixerCentralFF"],
    "modules.mixers.vdn": ["VDNMixer"],
    "runners": ["REGISTRY"],
    "utils.logging": ["get_logger", "Logger"],
    "utils.rl_utils": [
        "RunningMeanStd", "build_gae_targets", "build_q_lambda_targets", "build_td_lambda_targets",
    ],
    "utils.th_utils": ["get_parameters_num", "orthogonal_init_"],
    "utils.value_norm": ["ValueNorm"],
}  # fmt: skip

# Positional parameters in PyMARL's order; ours may have more behind them.
CALLS = {
    "components.episode_buffer.EpisodeBatch":
        "scheme groups batch_size max_seq_length data preprocess device",
    "components.episode_buffer.EpisodeBatch.update": "self data bs ts mark_filled",
    "components.episode_buffer.ReplayBuffer": (
        "scheme groups buffer_size max_seq_length preprocess device"
    ),
    "components.episode_buffer.ReplayBuffer.insert_episode_batch": "self ep_batch",
    "components.epsilon_schedules.DecayThenFlatSchedule": "start finish time_length decay",
    "controllers.basic_controller.BasicMAC": "scheme groups args",
    "controllers.basic_controller.BasicMAC.select_actions": "self ep_batch t_ep t_env bs test_mode",
    "controllers.basic_controller.BasicMAC.forward": "self ep_batch t test_mode",
    "controllers.basic_controller.BasicMAC.init_hidden": "self batch_size",
    "controllers.basic_controller.BasicMAC._build_inputs": "self batch t",
    "modules.mixers.nmix.Mixer": "args abs",
    "utils.logging.Logger.log_stat": "self key value t to_sacred",
    "utils.logging.Logger.print_recent_stats": "self",
    "utils.rl_utils.build_gae_targets": "rewards masks values gamma lambd",
    "utils.rl_utils.build_q_lambda_targets": (
        "rewards terminated mask exp_qvals qvals gamma td_lambda"
    ),
    "utils.rl_utils.build_td_lambda_targets": (
        "rewards terminated mask target_qs n_agents gamma td_lambda"
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", SURFACE)
def test_pymarls_names_are_there(module):
    assert [
        name for name in SURFACE[module] if not hasattr(importlib.import_module(module), name)
    ] == []


@pytest.mark.parametrize("name", CALLS)
def test_calls_take_pymarls_arguments(name):
    parts = name.split(".")
    target = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        target = getattr(target, part)
    wanted = CALLS[name].split()
    assert list(inspect.signature(target).parameters)[: len(wanted)] == wanted


# -- learners --------------------------------------------------------------------------------------


def both_learners(args):
    """Our Q-learner and the plug-in with the same weights, and their logs."""
    scheme, logs = fixtures.make_scheme(args)[0], (fixtures.Log(), fixtures.Log())
    for log in logs:
        log.console_logger = logging.getLogger("test")
    torch.manual_seed(0)
    ours = LEARNERS["q_learner"](fixtures.make_mac(args), scheme, logs[0], args)
    for _, target in ours.targets:
        for param in target.parameters():
            param.add_(0.1 * torch.randn_like(param))
    theirs = LEARNERS["pymarl_learner"](fixtures.make_mac(args), scheme, logs[1], args)
    theirs.mac.load_state(ours.mac)
    theirs.target_mac.load_state(ours.target_mac)
    theirs.modules = {}
    if args.mixer is not None:
        theirs.mixer.load_state_dict(ours.mixer.state_dict())
        theirs.target_mixer.load_state_dict(ours.target_mixer.state_dict())
        theirs.modules = {"mixer": theirs.mixer}
    return ours, theirs, logs


CONTROLLERS = [
    ("basic_mac", "rnn"),
    ("n_mac", "n_rnn"),
    ("ScratchMAC", "rnn"),
    ("ScratchMAC", "PluginBlockAgent"),
    ("ReversedInputMAC", "n_rnn"),
    ("CentredMAC", "rnn"),
    ("CentredMAC", "n_rnn"),
    ("basic_mac", "PluginAgent"),
    ("n_mac", "PluginAgent"),
    ("basic_mac", "PluginBlockAgent"),
    ("basic_mac", "PluginSkipAgent"),
]


@pytest.mark.parametrize(
    ("mac", "agent", "mixer", "double_q"),
    [
        *((mac, agent, "qmix", True) for mac, agent in CONTROLLERS),
        ("basic_mac", "rnn", "vdn", True),
        ("basic_mac", "rnn", "nmix", False),
        ("ScratchMAC", "PluginBlockAgent", None, True),
    ],
)
def test_plugin_learner_has_our_numbers(mac, agent, mixer, double_q):
    """The plug-in's loop over time and PyMARL's masks against rows of filled steps."""
    args = fixtures.make_args(
        "qmix", mac=mac, agent=agent, mixer=mixer, double_q=double_q, grad_norm_clip=1.0
    )
    ours, theirs, logs = both_learners(args)
    batch, weights = fixtures.make_batch(args, **FULL), torch.tensor([0.5, 2.0, 1.0, 1.5])
    batch = batch[:, : batch.max_t_filled()]  # as PyMARL's main loop does
    for learner in (ours, theirs):
        learner.train(batch, t_env=0, episode_num=0, per_weight=weights)
    fixtures.assert_same_gradients(theirs, ours)
    for mine, other in (
        ("loss_td", "loss"),
        ("grad_norm", "grad_norm"),
        ("td_error_abs", "td_error_abs"),
    ):
        (value, _), (expected, _) = logs[1].stats[other][0], logs[0].stats[mine][0]
        assert float(value) == pytest.approx(float(expected), rel=1e-4), mine
    assert logs[1].stats["onehot_error"][0][0] < 1e-6


@pytest.mark.parametrize("mixer", ["qmix", "vdn", None])
def test_td_lambda_pymarl_is_pymarls_update_for_truncated_episodes(mixer, monkeypatch):
    """Lengths and ends as they come: PyMARL's mask counts one transition more where an episode was
    truncated before the end of the batch.
    """
    args = fixtures.make_args(
        "qmix", mac="basic_mac", agent="rnn", mixer=mixer, td_lambda_pymarl=True,
        obs_last_action=False,
    )  # fmt: skip
    ours, theirs, logs = both_learners(args)
    module = sys.modules[type(theirs).__module__]  # its own returns would be the corrected ones
    pymarls = partial(module.build_td_lambda_targets, pymarl=True)
    monkeypatch.setattr(module, "build_td_lambda_targets", pymarls)
    batch = fixtures.make_batch(args)
    for b, length in enumerate(fixtures.LENGTHS):  # PyMARL's padding
        for key in ("obs", "state", "reward", "avail_actions"):
            batch.stored(key)[b, length:] = 0
        batch.stored("reward")[b, length - 1 :] = 0
    batch.changed("obs", "state", "reward", "avail_actions")
    for learner in (ours, theirs):
        learner.train(batch, t_env=0, episode_num=0)
    fixtures.assert_same_gradients(theirs, ours)
    for mine, other in (("loss_td", "loss"), ("target_mean", "target_mean")):
        (value, _), (expected, _) = logs[0].stats[mine][0], logs[1].stats[other][0]
        assert float(value) == pytest.approx(float(expected), rel=1e-4), mine


def test_td_lambda_pymarl_sees_no_last_action_in_padding():
    args = fixtures.make_args("qmix", td_lambda_pymarl=True)
    batch = fixtures.make_batch(args)
    rows = ReplayedSteps.of(batch, fixtures.make_mac(args), pymarl=True)
    last = rows.steps.unpack(rows.inputs)[..., OBS : OBS + N_ACTIONS]
    for b, length in enumerate(fixtures.LENGTHS):
        for t in range(batch.max_seq_length):
            done = batch["actions"][b, t - 1, :, 0] if 0 < t <= length else None
            for i in range(N_AGENTS):
                expected = [0.0 if done is None else float(u == done[i]) for u in range(N_ACTIONS)]
                assert last[b, t, i].tolist() == expected


def test_plugin_mixer_mixes_as_it_says():
    args = fixtures.make_args("qmix", mac="basic_mac", agent="rnn", mixer="PluginMixer")
    learner, log = fixtures.make_learner(args)
    batch, net = fixtures.make_batch(args), learner.mixer
    steps, total = batch.steps(), []
    with torch.no_grad():
        q = steps.unpack(unroll(learner.mac, batch, steps)).gather(-1, batch["actions"]).squeeze(-1)
        for b, t in rows_of(batch):
            weights = F.softplus(net.weights(batch["state"][b, t]))
            if t < fixtures.LENGTHS[b] - 1:
                total.append(float((weights * q[b, t]).sum() + net.bias(batch["state"][b, t])))
    learner.train(batch, t_env=0, episode_num=0)
    assert log.stats["q_taken_mean"][0][0] == pytest.approx(np.mean(total), rel=1e-4)
    assert net.weights.weight.grad.abs().max() > 0


def test_files_of_a_plugin_learner_are_pymarls(tmp_path):
    args = fixtures.make_args("qmix")
    ours, theirs, _ = both_learners(args)
    theirs.save_models(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"agent.th", "mixer.th", "opt.th"}
    for param in [*ours.mac.parameters(), *ours.mixer.parameters()]:
        param.data.zero_()
    ours.load_models(str(tmp_path))
    for mine, other in zip(fixtures.weights_of(ours), fixtures.weights_of(theirs), strict=True):
        assert torch.equal(mine, other)
    fresh = both_learners(args)[1]
    fresh.load_models(str(tmp_path))
    for mine, other in zip(fixtures.weights_of(fresh), fixtures.weights_of(theirs), strict=True):
        assert torch.equal(mine, other)


# -- controllers and agents ------------------------------------------------------------------------


def make_mac(name, args, like=None):
    torch.manual_seed(1)
    batch = fixtures.make_batch(args)
    mac = MACS[name](batch.scheme, batch.groups, args)
    if like is not None:
        mac.load_state(like)
    return mac


def stepwise(mac, batch):
    """`forward` called as PyMARL's learners do: [B, T, A, U]."""
    mac.init_hidden(batch.batch_size)
    return torch.stack([mac.forward(batch, t=t) for t in range(batch.max_seq_length)], dim=1)


@pytest.mark.parametrize("agent", ["rnn", "n_rnn", "PluginBlockAgent"])
def test_a_controller_of_ones_own_acts_as_ours(agent):
    args = fixtures.make_args(
        "qmix", agent=agent, mac="basic_mac", epsilon_start=0.3, epsilon_finish=0.3
    )
    batch = fixtures.make_batch(args, **FULL)
    ours = make_mac("basic_mac", args)
    scratch = make_mac("ScratchMAC", args, like=ours)
    assert torch.allclose(stepwise(scratch, batch), stepwise(ours, batch), atol=1e-6)
    for bs in (slice(None), [0, 2], torch.tensor([1, 3])):
        picks = []
        for mac in (ours, scratch):
            mac.init_hidden(batch.batch_size)
            picks.append([mac.select_actions(batch, 0, 0, bs=bs, test_mode=True)])
            torch.manual_seed(7)
            picks[-1].append(mac.select_actions(batch, t_ep=1, t_env=0, bs=bs))
        for mine, theirs in zip(*picks, strict=True):
            assert torch.equal(mine, theirs)


def test_overridden_inputs():
    """The same network with the columns of its first layer in the plug-in's order."""
    args = fixtures.make_args("qmix", mac="basic_mac", agent="rnn")
    batch, ours, other = (
        fixtures.make_batch(args),
        make_mac("basic_mac", args),
        make_mac("ReversedInputMAC", args),
    )
    state = ours.agent.state_dict()
    obs, last, ids = state["fc1.weight"].split([OBS, N_ACTIONS, N_AGENTS], dim=1)
    other.agent.load_state_dict(
        {**state, "fc1.weight": torch.cat([ids, torch.zeros(len(ids), 1), last, obs], dim=1)}
    )
    steps = batch.steps()
    assert torch.allclose(steps.pack(stepwise(other, batch)), ours.unroll(batch), atol=1e-5)
    assert torch.allclose(unroll(other, batch, steps), ours.unroll(batch), atol=1e-5)
    # The column of the time left counts too.
    other.agent.fc1.weight.data[:, N_AGENTS] = 1.0
    assert not torch.allclose(unroll(other, batch, steps), ours.unroll(batch), atol=1e-2)


@pytest.mark.parametrize("agent", ["rnn", "n_rnn", "PluginBlockAgent"])
def test_overridden_forward(agent):
    args = fixtures.make_args("qmix", mac="basic_mac", agent=agent)
    batch = fixtures.make_batch(args)
    ours = make_mac("basic_mac", args)
    other, steps = make_mac("CentredMAC", args, like=ours), batch.steps()
    plain, avail = stepwise(ours, batch), batch["avail_actions"]
    out = unroll(other, batch, steps)
    for row, (b, t) in enumerate(rows_of(batch)):
        for i in range(N_AGENTS):
            options = [u for u in range(N_ACTIONS) if avail[b, t, i, u]]
            mean = sum(plain[b, t, i, u] for u in options) / max(len(options), 1)
            assert torch.allclose(out[row, i], plain[b, t, i] - mean, atol=1e-5)


def rows_of(batch):
    """(episode, step) of every row of `batch.steps()`."""
    index = torch.stack(
        torch.meshgrid(*map(torch.arange, (batch.batch_size, batch.max_seq_length)), indexing="ij"),
        -1,
    )
    return batch.steps().pack(index).tolist()


@pytest.mark.parametrize("mac", ["basic_mac", "n_mac"])
@pytest.mark.parametrize("agent", ["PluginAgent", "PluginBlockAgent", "PluginSkipAgent"])
def test_agents_of_every_form(agent, mac):
    """Every agent through the controller, episode by episode and agent by agent, against its own
    layers.
    """
    args = fixtures.make_args("qmix", mac=mac, agent=agent)
    batch, controller = fixtures.make_batch(args), make_mac(mac, args)
    net = controller.agent
    cell = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
    cell.load_state_dict(
        {k.removeprefix("rnn."): v for k, v in net.state_dict().items() if k.startswith("rnn.")}
    )
    heads = {
        "PluginAgent": lambda h, x: net.fc2(h),
        "PluginBlockAgent": lambda h, x: net.fc2(torch.tanh(h)),
        "PluginSkipAgent": lambda h, x: net.fc2(h + x),
    }
    out = dict(
        zip(map(tuple, rows_of(batch)), unroll(controller, batch, batch.steps()), strict=True)
    )
    for b, length in enumerate(fixtures.LENGTHS):
        for i in range(N_AGENTS):
            h = torch.zeros(1, args.rnn_hidden_dim)
            for t in range(length):
                last = torch.zeros(N_ACTIONS)
                if t > 0:
                    last[batch["actions"][b, t - 1, i, 0]] = 1.0
                x = F.relu(
                    net.fc1(
                        torch.cat([batch["obs"][b, t, i], last, torch.eye(N_AGENTS)[i]])
                    ).unsqueeze(0)
                )
                h = cell(x, h)
                assert torch.allclose(out[b, t][i], heads[agent](h, x)[0], atol=1e-5)


@pytest.mark.parametrize(("agent", "rows"), [("PluginAgent", True), ("PluginBlockAgent", False)])
def test_finding_the_form_leaves_no_trace(agent, rows):
    class Counting(AGENTS[agent]):
        calls = 0

        def forward(self, inputs, hidden_state):
            self.calls += 1
            return super().forward(F.dropout(inputs, 0.5), hidden_state)

    net = Counting(OBS, fixtures.make_args("qmix"))
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    assert (
        takes_rows(
            net,
            torch.randn(2, N_AGENTS, OBS, generator=torch.Generator()),
            torch.zeros(2, N_AGENTS, 6),
        )
        == rows
    )
    assert torch.equal(torch.rand(3), expected)
    assert net.calls == 0


def test_an_agent_that_is_wrong_in_every_form_says_why(monkeypatch):
    class Wrong(AGENTS["PluginBlockAgent"]):
        def forward(self, inputs, hidden_state):
            _, a, _ = inputs.size()
            raise RuntimeError(f"a mistake of its own with {a} agents")

    monkeypatch.setitem(AGENTS, "wrong", Wrong)
    args = fixtures.make_args("qmix", agent="wrong")
    with pytest.raises(RuntimeError, match=f"a mistake of its own with {N_AGENTS} agents"):
        stepwise(make_mac("basic_mac", args), fixtures.make_batch(args))


def test_a_first_hidden_state_of_ones_own_is_used():
    class Started(BasicMAC):
        def init_hidden(self, batch_size):
            self.hidden_states = torch.full(
                (batch_size * self.n_agents, self.args.rnn_hidden_dim), 0.5
            )

    args = fixtures.make_args("qmix")
    batch = fixtures.make_batch(args)
    mac, steps = Started(batch.scheme, batch.groups, args), batch.steps()
    out = mac.unroll(batch)
    inputs = mac._build_inputs(batch, 0)
    expected = mac.agent.step(
        inputs, torch.full((batch.batch_size, N_AGENTS, args.rnn_hidden_dim), 0.5)
    )[0]
    assert torch.allclose(steps.unpack(out)[:, 0], expected, atol=1e-6)
    assert torch.allclose(out, steps.pack(stepwise(mac, batch)), atol=1e-6)


def test_evaluation_mode():
    """PyMARL's controllers put the agent into evaluation mode while testing, and out of it
    again.
    """

    class Dropping(AGENTS["PluginBlockAgent"]):
        def forward(self, inputs, hidden_state):
            return super().forward(F.dropout(inputs, 0.5, self.training), hidden_state)

    args = fixtures.make_args("qmix")
    batch, mac = fixtures.make_batch(args), make_mac("basic_mac", args)
    mac.agent = Dropping(OBS + N_ACTIONS + N_AGENTS, args)

    def twice(test_mode):
        outs = []
        for _ in range(2):
            mac.init_hidden(batch.batch_size)
            outs.append(mac.forward(batch, 0, test_mode=test_mode))
        return torch.equal(*outs)

    assert [twice(mode) for mode in (False, True, False)] == [False, True, False]


# -- environments, runners, batches ----------------------------------------------------------------


def test_plugin_environment_steps_as_it_says():
    """What the backend reports of the plug-in against the plug-in itself, stepped by hand."""
    env_args = {"n_agents": 3, "n_colours": 2, "time_limit": 5, "goal": 2}
    env = make_vector_env("pymarl_env", env_args, 2, seed=4, backend="native", role="train_env")
    by_hand = [
        REGISTRIES["env"]["RelayEnv"](**env_args, seed=derive_seed(4, "train_env", b))
        for b in range(2)
    ]
    rng, endings = np.random.default_rng(0), set()
    for _ in range(6):
        env.reset()
        running = np.array([True, True])
        for single in by_hand:
            single.reset()
        while running.any():
            for b in np.flatnonzero(running):
                assert env.obs[b].tolist() == np.array(by_hand[b].get_obs()).tolist()
                assert env.state[b] == pytest.approx(by_hand[b].get_state())
                assert env.avail_actions[b].tolist() == by_hand[b].get_avail_actions()
            # Good players, so that some episodes are won.
            colours = env.obs.argmax(-1) + 1
            actions = np.where(rng.random((2, 3)) < 0.9, colours, 0)
            env.step(actions, running)
            for b in np.flatnonzero(running):
                reward, ended, info = by_hand[b].step(actions[b])
                assert env.reward[b] == pytest.approx(reward)
                assert env.terminated[b] == (ended and not info.get("episode_limit", False))
                assert env.truncated[b] == info.get("episode_limit", False)
                assert env.info["battle_won"][b] == info["battle_won"]
                endings |= {(bool(env.terminated[b]), bool(env.truncated[b]))} if ended else set()
                running[b] = not ended
    assert endings == {(True, False), (False, True)}
    # Its seed() is PyMARL's: it is built anew to start the stream again, and there is no random
    # state to save.
    assert env.get_rng_state() is None
    env.reset()
    before = env.obs.copy()
    env.seed(4)
    env.reset()
    first = make_vector_env("pymarl_env", env_args, 2, seed=4, backend="native", role="train_env")
    first.reset()
    assert np.array_equal(env.obs, first.obs)
    assert before.shape == env.obs.shape
    env.close()
    first.close()


def runner_args(**overrides):
    args = fixtures.make_args(
        "vdn", mac="basic_mac", agent="rnn", batch_size_run=1, epsilon_start=0.0, epsilon_finish=0.0
    )
    env_args = {"n_agents": 2, "n_colours": 2, "time_limit": 6, "goal": 2}
    vars(args).update(
        {
            "env": "pymarl_env",
            "env_args": env_args,
            "seed": 3,
            "runner_log_interval": 12,
            **overrides,
        }
    )
    return args


def collect(runner_name, args, n_episodes):
    log = fixtures.Log()
    runner = RUNNERS[runner_name](args=args, logger=log)
    info = runner.get_env_info()
    args.n_agents, args.n_actions, args.obs_shape = (
        info["n_agents"],
        info["n_actions"],
        info["obs_shape"],
    )
    args.state_shape, args.episode_limit = info["state_shape"], info["episode_limit"]
    scheme, groups, preprocess = fixtures.make_scheme(args)
    scheme["truncated"] = {"vshape": (1,), "dtype": torch.uint8}
    torch.manual_seed(5)
    runner.setup(scheme, groups, preprocess, fixtures.make_mac(args))
    with torch.no_grad():
        batches = [runner.run(test_mode=False) for _ in range(n_episodes)]
    runner.close_env()
    return batches, log.stats, runner


def test_plugin_runner_collects_what_ours_does():
    args, plugin_args = runner_args(), runner_args()
    plugin_args.env_args["seed"] = derive_seed(
        3, "train_env", 0
    )  # the seed that ours gives its first environment
    ours, our_log, our_runner = collect("episode", args, 8)
    theirs, their_log, their_runner = collect("pymarl_runner", plugin_args, 8)
    assert our_runner.t_env == their_runner.t_env > 8
    for mine, other in zip(ours, theirs, strict=True):
        length = int(mine.max_t_filled())
        for key in ("obs", "state", "avail_actions", "reward", "terminated", "filled"):
            assert torch.equal(mine[key], other[key]), key
        assert torch.equal(mine["actions"][:, : length - 1], other["actions"][:, : length - 1])
        assert torch.equal(
            mine["actions_onehot"][:, : length - 1], other["actions_onehot"][:, : length - 1]
        )
    for key in their_log.keys() - {"hidden_mean"}:
        assert our_log[key] == pytest.approx(np.array(their_log[key])), key
    assert 2 <= len(our_log["return_mean"]) <= 4  # several episodes to a record
    assert any(
        0 < value < 1 for value, _ in our_log["episode_limit_mean"]
    )  # which not every episode reports


def test_plugin_runner_on_a_batched_environment():
    args = runner_args(env="matrix_game", env_args={"seed": 1}, runner_log_interval=1)
    batches, log, runner = collect("pymarl_runner", args, 3)
    assert runner.t_env == 3
    assert [float(batch["reward"].sum()) for batch in batches] == [
        value for value, _ in log["return_mean"]
    ]


def test_batches_are_cut_as_in_pymarl():
    """The idioms of PyMARL's main loop and learners."""
    batch = fixtures.make_batch(fixtures.make_args("qmix"))
    longest = batch.max_t_filled()
    cut = batch[:, :longest]
    assert cut.max_seq_length == max(fixtures.LENGTHS)
    assert torch.equal(cut["actions_onehot"].argmax(-1, keepdim=True), cut["actions"])
    assert cut["actions"].dtype == torch.int64
    assert torch.equal(batch[[0, 3], 1:3]["obs"], batch["obs"][[0, 3], 1:3])
    one = EpisodeBatch(batch.scheme, batch.groups, 2, 4, preprocess=batch.preprocess, device="cpu")
    lists = [[[1, 0, 1, 1]] * N_AGENTS, [[1, 1, 0, 1]] * N_AGENTS]
    one.update(
        {"avail_actions": lists, "reward": [(1.5,), (2.5,)]}, bs=[0, 1], ts=2, mark_filled=False
    )
    assert one["avail_actions"][:, 2].tolist() == lists
    assert one["reward"][:, 2].tolist() == [[1.5], [2.5]]
    assert int(one["filled"].sum()) == 0


# -- checkpoints of plug-ins that know nothing of them ---------------------------------------------

Point = namedtuple("Point", "x y")


class Stateful:
    """Attributes of all kinds that plug-ins hold."""

    def __init__(self, args):
        self.cfg = args  # PyMARL's args under another name
        self.console = logging.getLogger("plugin")
        self.lock = threading.Lock()
        self.worker = threading.Thread(target=print)
        self.recent = deque([1.0, 2.0], maxlen=3)
        self.nets = [nn.Linear(2, 2), nn.Linear(2, 1)]
        self.optimisers = {
            0: torch.optim.Adam(self.nets[0].parameters()),
            1: torch.optim.Adam(self.nets[1].parameters()),
        }
        self.point = Point(1, 2)
        self.hidden = None
        self.best = None
        self.counts = {"steps": 0}
        self.rng = np.random.default_rng(0)
        self.steps = 0

    def change(self):
        self.recent.extend([3.0, 4.0])
        for i, net in enumerate(self.nets):
            self.optimisers[i].zero_grad()
            net(torch.ones(2)).sum().backward()
            self.optimisers[i].step()
        self.point = Point(3, 4)
        self.hidden = (torch.ones(2), [torch.zeros(1), 5])
        self.best = {"return": 1.5, "weights": torch.ones(3)}
        self.counts["steps"] += 7
        self.late = torch.arange(3)
        self.rng.random(5)
        self.steps = np.int64(9)
        self.cfg.lr = 0.5


def test_state_of_any_plugin_is_saved(tmp_path):
    args = SimpleNamespace(lr=0.1)
    old = Stateful(args)
    old.change()
    torch.save(capture(old, shared=(args,)), tmp_path / "state.pt")
    new = Stateful(SimpleNamespace(lr=0.2))
    restore(new, torch.load(tmp_path / "state.pt", weights_only=True))
    assert new.recent == old.recent
    assert new.recent.maxlen == 3
    assert new.point == Point(3, 4)
    assert new.counts == {"steps": 7}
    assert new.steps == 9
    assert new.rng.random() == old.rng.random()
    assert torch.equal(new.late, old.late)
    assert torch.equal(new.hidden[0], torch.ones(2))
    assert new.hidden[1][1] == 5
    assert new.best["return"] == 1.5
    assert torch.equal(new.best["weights"], torch.ones(3))
    for i in range(2):
        assert torch.equal(new.nets[i].weight, old.nets[i].weight)
        states = [learner.optimisers[i].state_dict()["state"][0] for learner in (old, new)]
        assert torch.equal(states[0]["exp_avg"], states[1]["exp_avg"])
    assert new.cfg.lr == 0.2  # belongs to the new run
    assert new.worker.name != old.worker.name
    assert not new.lock.locked()


def test_state_that_cannot_be_restored(tmp_path, caplog):
    class Late:
        def __init__(self):
            self.net = None

    old, new = Late(), Late()
    old.kept = Stateful(SimpleNamespace(lr=0.1))
    restore(new, capture(old))
    assert "Late.kept does not exist before training" in caplog.text
    assert not hasattr(new, "kept")
    old.net = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"Late\.net does not exist before training"):
        restore(new, capture(old))


# -- whole runs ------------------------------------------------------------------------------------

TINY = [
    *(
        "seed=1",
        "test_nepisode=4",
        "log_interval=60",
        "runner_log_interval=20",
        "learner_log_interval=20",
    ),
    *("rnn_hidden_dim=8", "batch_size=4", "buffer_size=20", "target_update_interval=5"),
]


def start(folder, config, env, plugins, *settings):
    words = [
        f"--config={config}",
        f"--env-config={env}",
        "with",
        f"plugins=[{','.join(plugins)}]",
        *TINY,
        *settings,
    ]
    command = [
        sys.executable,
        str(ROOT / "src" / "main.py"),
        *words,
        f"local_results_path={folder / 'results'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def only_run(folder):
    (run,) = (folder / "results" / "sacred").glob("*/*/1")
    return run


def points(run, key):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["t"], line["value"]) for line in lines if line["key"] == key]


def assert_learned_something(run, learner_key):
    assert points(run, "test_return_mean")[0][0] == 0
    assert len(points(run, "test_return_mean")) >= 2
    assert len(points(run, learner_key)) >= 2
    assert all(np.isfinite(value) for _, value in points(run, learner_key))
    assert json.loads((run / "run.json").read_text())["status"] == "COMPLETED"


LEARNER_RUN = (
    PLUGINS / "pymarl_vdn.yaml",
    "predator_prey",
    paths("learner", "mac", "agent", "selector", "runner"),
    *(
        "mac=ScratchMAC",
        "agent=PluginBlockAgent",
        "action_selector=pymarl_selector",
        "env_args.episode_limit=10",
    ),
    *("test_interval=60", "t_max=120", "save_model_interval=60"),
)


@pytest.fixture(scope="module")
def learner_run(tmp_path_factory):
    """A run of the plug-in learner, controller, agent and selector on an environment of ours."""
    folder = tmp_path_factory.mktemp("learner")
    return folder, start(folder, *LEARNER_RUN)


def test_plugin_learner_runs(learner_run):
    folder, output = learner_run
    run = only_run(folder)
    assert_learned_something(run, "loss")
    assert max(value for _, value in points(run, "onehot_error")) < 1e-5
    assert "Mixer size" in output
    config = json.loads((run / "config.json").read_text())
    assert config["report_scale"] == 10.0  # a key of the plug-in's own
    assert {path.name for path in (run / "checkpoints" / "120").iterdir()} >= {
        "agent.th",
        "mixer.th",
        "opt.th",
    }


def test_plugin_learner_resumes_bit_for_bit(learner_run):
    folder, _ = learner_run
    run = only_run(folder)
    whole = (run / "metrics.jsonl").read_bytes()
    state = torch.load(run / "checkpoints" / "120" / "state.pt", weights_only=True)["learner"]
    start(folder, *LEARNER_RUN, f"resume={run / 'checkpoints' / '60'}")
    assert (run / "metrics.jsonl").read_bytes() == whole
    again = torch.load(run / "checkpoints" / "120" / "state.pt", weights_only=True)["learner"]
    assert (
        again.keys()
        == state.keys()
        >= {"mac", "target_mac", "optimiser", "train_t", "target_scale"}
    )
    assert torch.equal(again["target_scale"]["value"], state["target_scale"]["value"])
    assert again["train_t"] == state["train_t"]


def test_plugin_runner_evaluates_models_of_a_plugin_learner(learner_run, tmp_path):
    folder, _ = learner_run
    models = only_run(folder) / "checkpoints"
    output = start(
        tmp_path, *LEARNER_RUN, "runner=pymarl_runner", "evaluate=True", f"checkpoint_path={models}"
    )
    assert "loaded models of step 120" in output
    assert [t for t, _ in points(only_run(tmp_path), "test_return_mean")] == [120]


def test_our_learner_with_plugin_environment_controller_and_selector(tmp_path):
    """Two worker processes; one plug-in registers itself by name, as a module in the current
    folder.
    """
    (tmp_path / "outside.py").write_text(
        "import pymarl_selector\n"
        "from components.action_selectors import register\n"
        "@register('soft')\n"
        "class Mine(pymarl_selector.SoftExploreSelector):\n"
        "    pass\n"
    )
    plugins = [*paths("mac", "env", "selector"), "outside"]
    settings = [
        "mac=ReversedInputMAC",
        "action_selector=soft",
        "runner=parallel",
        "batch_size_run=2",
    ]
    output = start(
        tmp_path,
        "qmix",
        PLUGINS / "relay.yaml",
        plugins,
        *settings,
        "t_max=150",
        "test_interval=70",
    )
    run = only_run(tmp_path)
    assert_learned_something(run, "loss_td")
    assert len(points(run, "test_battle_won_mean")) >= 2
    assert "cannot restore its random state" not in output


def test_our_learner_with_plugin_agent_and_overridden_forward(tmp_path):
    settings = ["mac=CentredMAC", "agent=PluginSkipAgent", "runner=episode", "batch_size_run=1"]
    plugins = paths("mac", "env", "agent")
    start(
        tmp_path,
        "qmix",
        PLUGINS / "relay.yaml",
        plugins,
        *settings,
        "t_max=100",
        "test_interval=50",
    )
    assert_learned_something(only_run(tmp_path), "loss_td")


def test_everything_from_plugins(tmp_path):
    settings = [
        "runner=pymarl_runner",
        "agent=PluginAgent",
        "mixer=nmix",
        "t_max=100",
        "test_interval=50",
    ]
    plugins = paths("learner", "env", "agent", "runner")
    start(tmp_path, PLUGINS / "pymarl_vdn.yaml", PLUGINS / "relay.yaml", plugins, *settings)
    run = only_run(tmp_path)
    assert_learned_something(run, "loss")
    assert len(points(run, "test_battle_won_mean")) >= 2


# -- errors of the user ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "from learners import register\n@register('q_learner')\nclass Mine: pass\n",
            "already registered",
        ),
        (
            "import no_such_module_at_all\n",
            "needs a module that is not installed: 'no_such_module_at_all'",
        ),
        ("from learners.q_learner import NoSuchLearner\n", "cannot import name 'NoSuchLearner'"),
        ("class Broken(\n", "SyntaxError"),
        (None, "no such file"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    name = f"bad_plugin_{abs(hash((text, message)))}"
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    words = [
        "--config=qmix",
        "--env-config=matrix_game",
        "with",
        f"plugins=[{tmp_path / name}.py]",
        "seed=1",
    ]
    assert main_module.main([*words, "local_results_path=results", "use_cuda=False"]) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("error: plugins: ")
    assert message in last
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_plugin_names_are_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "--config=qmix",
        f"--env-config={PLUGINS / 'relay.yaml'}",
        "with",
        f"plugins=[{paths('mac', 'env')[0]}]",
    ]
    assert (
        main_module.main(
            [*words, "mac=ScratchMac", "use_cuda=False", "runner=episode", "batch_size_run=1"]
        )
        == 2
    )
    assert "unknown controller 'ScratchMac'; did you mean 'ScratchMAC'?" in capsys.readouterr().err
    assert SELECTORS["pymarl_selector"].__name__ == "SoftExploreSelector"


# -- the documentation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The examples of docs/plugins.md, as files named by their first line."""
    folder = tmp_path_factory.mktemp("documented")
    text = (ROOT / "docs" / "plugins.md").read_text()
    for name, block in re.findall(
        r"```(?:python|yaml)\n# (\w+\.(?:py|yaml))(.*?)```", text, re.DOTALL
    ):
        (folder / name).write_text(f"# {name}{block}")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "named.py",
        "my_learner.yaml",
        "my_learner.py",
        "my_parts.py",
        "my_env.py",
        "my_env.yaml",
        "my_experiment.yaml",
    }
    assert len(re.findall(r"^```\w", text, re.MULTILINE)) == 1 + len(names)
    return folder


def test_the_readme_shows_the_documented_learner(documented):
    assert (
        f"```python\n{(documented / 'my_learner.py').read_text()}```"
        in (ROOT / "README.md").read_text()
    )


def test_documented_learner_has_thirty_lines_and_the_right_loss(documented):
    load_plugins([str(documented / "my_learner.py")])
    source = (documented / "my_learner.py").read_text().splitlines()
    assert (
        len(
            [line for line in source if line.strip() and not line.lstrip().startswith(("#", '"""'))]
        )
        <= 30
    )
    args = fixtures.make_args("iql", learner="my_learner", td_lambda=0.0, gamma=0.9)
    learner, log = fixtures.make_learner(args)
    batch = fixtures.make_batch(args)
    errors = []
    for b, (length, ended) in enumerate(zip(fixtures.LENGTHS, fixtures.TERMINATED, strict=True)):
        episode = batch[[b], :length]
        with torch.no_grad():
            q, target_q = (
                fixtures.step_outputs(mac, episode) for mac in (learner.mac, learner.target_mac)
            )
        for t in range(length - 1):
            for i in range(N_AGENTS):
                options = [u for u in range(N_ACTIONS) if episode["avail_actions"][0, t + 1, i, u]]
                last = t == length - 2
                following = (
                    0.0 if last and ended else max(float(target_q[t + 1][i, u]) for u in options)
                )
                target = float(episode["reward"][0, t, 0]) + 0.9 * following
                errors.append(float(q[t][i, episode["actions"][0, t, i, 0]]) - target)
    learner.train(batch, t_env=0, episode_num=0)
    assert log.stats["loss"][0][0] == pytest.approx(0.5 * np.mean(np.square(errors)), rel=1e-4)


def test_documented_parts(documented):
    load_plugins([str(documented / "my_parts.py")])
    args = fixtures.make_args("qmix", mac="TimeMAC", agent="TwoLayerAgent", mixer="WeightedMixer")
    args.action_selector = "LateSelector"
    learner, log = fixtures.make_learner(args)
    batch = fixtures.make_batch(args)
    steps = batch.steps()
    inputs = steps.unpack(learner.mac.sequence_inputs(batch))
    assert inputs[1, :7, 0, -1].tolist() == pytest.approx(
        [t / args.episode_limit for t in range(7)]
    )
    q = steps.unpack(unroll(learner.mac, batch, steps))
    by_hand = learner.mac.agent.fc2(F.relu(learner.mac.agent.fc1(inputs[1, 3])))
    assert torch.allclose(q[1, 3], by_hand, atol=1e-6)
    learner.train(batch, t_env=0, episode_num=0)
    assert np.isfinite(log.stats["loss_td"][0][0])
    assert learner.mixer.weights.weight.grad.abs().max() > 0
    learner.mac.init_hidden(batch.batch_size)
    actions = learner.mac.select_actions(batch, 0, t_env=10)
    assert torch.equal(
        actions,
        torch.tensor(
            [
                fixtures.greedy_action(*pair)
                for pair in zip(q[:, 0], batch["avail_actions"][:, 0], strict=True)
            ]
        ),
    )


def test_documented_run(documented):
    plugins = [str(documented / name) for name in ("my_learner.py", "my_env.py", "named.py")]
    settings = ["action_selector=eager", "t_max=100", "test_interval=50"]
    start(
        documented, documented / "my_learner.yaml", documented / "my_env.yaml", plugins, *settings
    )
    run = only_run(documented)
    assert_learned_something(run, "loss")
    assert json.loads((run / "config.json").read_text())["my_key"] == 0.5
