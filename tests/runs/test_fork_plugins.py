"""Files of forks of PyMARL2 as plug-ins: they import relatively, bear the names of built-in parts,
bring modules of their own, and train as they are.
"""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from plugin_fixtures import REGISTRIES, plugins_forgotten
from run_fixtures import finish, start_run

import controllers
import learners
import modules.agents
import modules.mixers
from controllers.basic_controller import BasicMAC
from isolation import undisturbed
from modules.agents.rnn_agent import RNNAgent
from plugins import load_plugins
from utils.errors import ConfigError, UserError

SMALL = [
    *("use_cuda=False", "t_max=60", "batch_size=4", "buffer_size=8", "seed=2", "test_nepisode=2"),
    *("test_interval=30", "rnn_hidden_dim=8", "epsilon_anneal_time=40", "learner_log_interval=1"),
    *("runner=vector", "batch_size_run=2", "env_args.episode_limit=5"),
]

# Each as a fork of PyMARL2 would have it: [B, A, F] agents, loops over time, relative imports.
FORK = {
    "controllers/__init__.py": "raise RuntimeError('the fork is not to be started')\n",
    "controllers/n_controller.py": """
from modules.agents import REGISTRY as agent_REGISTRY
from components.action_selectors import REGISTRY as action_REGISTRY
from .basic_controller import BasicMAC


class NMAC(BasicMAC):
    def select_actions(self, ep_batch, t_ep, t_env, bs=slice(None), test_mode=False):
        avail = ep_batch["avail_actions"][:, t_ep]
        q = self.forward(ep_batch, t_ep, test_mode=test_mode)
        return self.action_selector.select_action(q[bs], avail[bs], t_env, test_mode=test_mode)

    def forward(self, ep_batch, t, test_mode=False):
        inputs = self._build_inputs(ep_batch, t)
        outs, self.hidden_states = self.agent(inputs, self.hidden_states)
        return outs
""",
    "controllers/maic_controller.py": """
from .basic_controller import BasicMAC


class MAICMAC(BasicMAC):
    pass
""",
    "modules/layer/__init__.py": "",
    "modules/layer/scale.py": """
import torch.nn as nn
import torch as th


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(th.ones(1))

    def forward(self, x):
        return x * self.factor
""",
    "modules/agents/n_rnn_agent.py": """
import torch.nn as nn
import torch.nn.functional as F

from modules.layer.scale import Scale
from utils.th_utils import orthogonal_init_


class NRNNAgent(nn.Module):
    def __init__(self, input_shape, args):
        super().__init__()
        self.args = args
        self.fc1 = nn.Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.scale = Scale()
        self.fc2 = nn.Linear(args.rnn_hidden_dim, args.n_actions)

    def init_hidden(self):
        return self.fc1.weight.new(1, self.args.rnn_hidden_dim).zero_()

    def forward(self, inputs, hidden_state):
        b, a, e = inputs.size()
        x = F.relu(self.fc1(inputs.view(-1, e)), inplace=True)
        h = self.rnn(x, hidden_state.reshape(-1, self.args.rnn_hidden_dim))
        return self.fc2(self.scale(h)).view(b, a, -1), h.view(b, a, -1)
""",
    "modules/mixers/nmix.py": """
import torch as th
import torch.nn as nn


class Mixer(nn.Module):
    def __init__(self, args, abs=True):
        super().__init__()
        self.weights = nn.Linear(args.state_shape, args.n_agents)

    def forward(self, qvals, states):
        b, t, _ = qvals.size()
        return (self.weights(states).abs() * qvals).sum(-1, keepdim=True).view(b, t, 1)
""",
    "modules/mixers/vdn.py": """
import torch as th
import torch.nn as nn


class VDNMixer(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, agent_qs, batch):
        return th.sum(agent_qs, dim=2, keepdim=True)
""",
    "modules/mixers/dmaq_general.py": """
import torch as th
import torch.nn as nn

from .dmaq_si_weight import DMAQ_SI_Weight


class DMAQer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.n_agents = args.n_agents
        self.si_weight = DMAQ_SI_Weight(args)

    def forward(self, agent_qs, states, actions=None, max_q_i=None, is_v=False):
        bs = agent_qs.size(0)
        q = agent_qs.view(-1, self.n_agents)
        if is_v:
            return q.sum(-1).view(bs, -1, 1)
        states, actions = states.reshape(len(q), -1), actions.reshape(len(q), -1)
        w = self.si_weight(states, actions)
        return ((q - max_q_i.view(-1, self.n_agents)).detach() * (w - 1)).sum(-1).view(bs, -1, 1)
""",
    "components/action_selectors.py": """
import torch as th
from torch.distributions import Categorical
from .epsilon_schedules import DecayThenFlatSchedule

REGISTRY = {}


class Greedy():
    def __init__(self, args):
        self.args = args
        self.schedule = DecayThenFlatSchedule(args.epsilon_start, args.epsilon_finish,
                                              args.epsilon_anneal_time, decay="linear")
        self.epsilon = self.schedule.eval(0)

    def select_action(self, agent_inputs, avail_actions, t_env, test_mode=False):
        self.epsilon = 0.0 if test_mode else self.schedule.eval(t_env)
        q = agent_inputs.clone()
        q[avail_actions == 0] = -float("inf")
        explore = (th.rand_like(agent_inputs[:, :, 0]) < self.epsilon).long()
        drawn = Categorical(avail_actions.float()).sample().long()
        return explore * drawn + (1 - explore) * q.max(dim=2)[1]


REGISTRY["epsilon_greedy"] = Greedy


class Other(Greedy):
    pass


REGISTRY["other"] = Other
""",
    "learners/nq_learner.py": """
import copy
from components.episode_buffer import EpisodeBatch
from modules.mixers.nmix import Mixer
from modules.mixers.vdn import VDNMixer
from envs.matrix_game import print_matrix_status
from utils.rl_utils import build_td_lambda_targets, build_q_lambda_targets
import torch as th
from torch.optim import RMSprop, Adam
from utils.th_utils import get_parameters_num


class NQLearner:
    def __init__(self, mac, scheme, logger, args):
        self.args, self.mac, self.logger = args, mac, logger
        self.last_target_update_episode = 0
        self.device = th.device('cuda' if args.use_cuda else 'cpu')
        self.params = list(mac.parameters())
        if args.mixer == "qmix":
            self.mixer = Mixer(args)
        else:
            self.mixer = VDNMixer()
        self.target_mixer = copy.deepcopy(self.mixer)
        self.params += list(self.mixer.parameters())
        self.optimiser = Adam(params=self.params, lr=args.lr)
        self.target_mac = copy.deepcopy(mac)
        self.log_stats_t = -self.args.learner_log_interval - 1

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight=None):
        rewards = batch["reward"][:, :-1]
        actions = batch["actions"][:, :-1]
        terminated = batch["terminated"][:, :-1].float()
        mask = batch["filled"][:, :-1].float()
        mask[:, 1:] = mask[:, 1:] * (1 - terminated[:, :-1])
        avail_actions = batch["avail_actions"]
        self.mac.agent.train()
        mac_out = self.unroll(self.mac, batch)
        chosen = th.gather(mac_out[:, :-1], dim=3, index=actions).squeeze(3)
        with th.no_grad():
            target_out = self.unroll(self.target_mac, batch)
            online = mac_out.clone().detach()
            online[avail_actions == 0] = -9999999
            best = online.max(dim=3, keepdim=True)[1]
            target_max = th.gather(target_out, 3, best).squeeze(3)
            target_max = self.target_mixer(target_max, batch["state"])
            targets = build_td_lambda_targets(rewards, terminated, mask, target_max,
                                              self.args.n_agents, self.args.gamma,
                                              self.args.td_lambda)
        chosen = self.mixer(chosen, batch["state"][:, :-1])
        td_error = chosen - targets.detach()
        errors = 0.5 * td_error.pow(2) * mask.expand_as(td_error)
        if per_weight is not None:
            per_weight = th.from_numpy(per_weight).unsqueeze(-1).to(device=self.device)
            errors = errors.sum(1) * per_weight
        loss = errors.sum() / mask.sum()
        self.optimiser.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(self.params, self.args.grad_norm_clip)
        self.optimiser.step()
        if t_env - self.log_stats_t >= self.args.learner_log_interval:
            self.logger.log_stat("loss_td", loss.item(), t_env)
            print_matrix_status(batch, self.mixer, mac_out)
            self.log_stats_t = t_env
        return {"td_errors_abs": ((td_error.abs() * mask).sum(1)
                                  / th.sqrt(mask.sum(1))).detach().to('cpu')}

    def unroll(self, mac, batch):
        mac.init_hidden(batch.batch_size)
        return th.stack([mac.forward(batch, t=t) for t in range(batch.max_seq_length)], dim=1)

    def cuda(self):
        self.mac.cuda()

    def save_models(self, path):
        self.mac.save_models(path)

    def load_models(self, path):
        self.mac.load_models(path)
""",
    "learners/max_q_learner.py": """
from controllers import REGISTRY as mac_REGISTRY
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from .nq_learner import NQLearner


class MAXQLearner(NQLearner):
    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        assert args.central_mac == "basic_central_mac"
        self.central_mac = mac_REGISTRY[args.central_mac](scheme, args)
        self.central_mixer = QMixerCentralFF(args)

    def train(self, batch, t_env, episode_num, per_weight=None):
        self.central_mac.init_hidden(batch.batch_size)
        values = self.central_mac.forward(batch, t=0)
        assert values.shape == (batch.batch_size, self.args.n_agents, self.args.n_actions, 1)
        self.logger.log_stat("central", self.central_mixer(values[:, None, :, 0], batch["state"][
            :, :1]).mean().item(), t_env)
        return super().train(batch, t_env, episode_num, per_weight)
""",
}


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """The files of a fork; registries, modules and the path are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "fork" / "src"
    for name, text in FORK.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with plugins_forgotten(tmp_path):
        yield root


def train(folder, algorithm, *settings):
    training = start_run(algorithm, "matrix_game", folder, [*SMALL, *settings])
    finish(training)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return training, {line["key"]: line["value"] for line in lines}


def names(fork, *files):
    return [str(fork / file) for file in files]


def in_place(caplog):
    said = " is the plug-in's now, in place of the built-in one"
    lines = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    return {line.split(": ", 1)[1].removesuffix(said) for line in lines if said in line}


def test_the_whole_fork_trains(fork, tmp_path, caplog):
    files = [
        "modules/mixers/nmix.py", "modules/mixers/vdn.py", "modules/agents/n_rnn_agent.py",
        "components/action_selectors.py", "controllers/n_controller.py", "learners/nq_learner.py",
    ]  # fmt: skip
    load_plugins(names(fork, *files))
    assert in_place(caplog) == {
        "mixer 'nmix'", "mixer 'qmix'", "mixer 'vdn'", "agent 'n_rnn'", "controller 'n_mac'",
        "action selector 'epsilon_greedy'", "learner 'nq_learner'",
    }  # fmt: skip
    training, metrics = train(tmp_path / "run", "qmix", "learner=nq_learner")
    learner, mac = training.learner, training.mac
    parts = learner, learner.mixer, mac, mac.agent, mac.action_selector
    for part in parts:
        assert Path(sys.modules[type(part).__module__].__file__).is_relative_to(fork), part
    assert isinstance(mac, BasicMAC)
    assert not isinstance(mac.agent, RNNAgent)
    assert type(mac.agent.scale).__module__ == "modules.layer.scale"
    assert metrics["loss_td"] > 0


def test_what_is_not_named_is_this_laboratorys_with_a_line(fork, caplog):
    caplog.set_level("INFO")
    load_plugins(names(fork, "learners/nq_learner.py"))
    mixer = sys.modules[learners.REGISTRY["nq_learner"].__module__].Mixer
    assert mixer is modules.mixers.Mixer
    (line,) = (m for m in caplog.messages if " imports " in m)
    assert "imports modules.mixers.nmix, modules.mixers.vdn: this laboratory's" in line


def test_ours_is_ours_again_behind_the_plugins(fork):
    load_plugins(names(fork, "modules/mixers/nmix.py", "learners/nq_learner.py"))
    from modules.mixers.nmix import Mixer

    assert Mixer is modules.mixers.Mixer
    theirs = sys.modules[learners.REGISTRY["nq_learner"].__module__].Mixer
    assert theirs is modules.mixers.REGISTRY["qmix"] is not Mixer


@pytest.mark.parametrize(
    ("file", "algorithm", "settings"),
    [
        ("modules/mixers/nmix.py", "qmix", []),
        ("modules/mixers/vdn.py", "vdn", []),
        ("modules/mixers/dmaq_general.py", "qplex", []),
        ("modules/agents/n_rnn_agent.py", "qmix", []),
        ("components/action_selectors.py", "qmix", []),
        ("controllers/n_controller.py", "qmix", []),
        ("learners/nq_learner.py", "qmix", ["learner=nq_learner"]),
        ("learners/nq_learner.py", "qmix", ["learner=nq_learner", "use_per=True"]),
    ],
)
def test_every_file_trains_alone(fork, tmp_path, file, algorithm, settings, caplog):
    load_plugins(names(fork, file))
    assert in_place(caplog)
    training, metrics = train(tmp_path / "run", algorithm, *settings)
    assert metrics["loss_td"] > 0
    assert ("use_per=True" in settings) == hasattr(training.buffer, "priorities")


def test_qplex_of_pymarl2_has_our_numbers(fork, tmp_path):
    """The same networks, called term by term and at once."""
    settings = ["weighted_head=False", "is_minus_one=True"]
    _, ours = train(tmp_path / "ours", "qplex", *settings)
    load_plugins(names(fork, "modules/mixers/dmaq_general.py"))
    _, theirs = train(tmp_path / "theirs", "qplex", *settings)
    assert theirs["loss_td"] == pytest.approx(ours["loss_td"], rel=1e-4)


def test_a_learner_on_top_of_a_neighbour(fork, tmp_path):
    load_plugins(names(fork, "learners/max_q_learner.py"))
    _, metrics = train(tmp_path / "run", "ow_qmix")
    assert {"loss_td", "central"} <= metrics.keys()


def test_files_of_a_fork_in_one_folder(fork, tmp_path):
    """Without the folders that tell where they belong, what they import tells it."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in ("controllers/n_controller.py", "modules/mixers/dmaq_general.py"):
        (flat / Path(file).name).write_text(FORK[file])
    load_plugins([str(flat / "n_controller.py"), str(flat / "dmaq_general.py")])
    mac, mixer = controllers.REGISTRY["n_mac"], modules.mixers.REGISTRY["dmaq"]
    assert mac.__module__.startswith("controllers.n_controller_")
    assert issubclass(mac, BasicMAC)
    assert mixer.__module__.startswith("modules.mixers.dmaq_general_")


def test_neighbours_may_be_imported_relatively(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-paper").mkdir()
    (tmp_path / "my-paper" / "parts.py").write_text("SIZE = 3\n")
    (tmp_path / "my-paper" / "deep").mkdir()
    (tmp_path / "my-paper" / "deep" / "more.py").write_text("from ..parts import SIZE\n")
    (tmp_path / "my-paper" / "sum_mixer.py").write_text(
        "from torch import nn\nfrom .parts import SIZE\nfrom .deep.more import SIZE as AGAIN\n"
        "class SumMixer(nn.Module):\n    size = SIZE + AGAIN\n    def forward(self, q, s): pass\n"
    )
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("from torch import nn\nclass Base(nn.Module): pass\n")
    (package / "own_mixer.py").write_text("from .base import Base\nclass OwnMixer(Base): pass\n")
    with plugins_forgotten(tmp_path):
        load_plugins(["my-paper/sum_mixer.py", "my_package/own_mixer.py"])
        assert modules.mixers.REGISTRY["sum_mixer"].size == 6
        assert modules.mixers.REGISTRY["own_mixer"].__module__ == "my_package.own_mixer"


def test_the_hint_for_an_unknown_name_lists_what_plugins_have_brought(fork):
    load_plugins(names(fork, "controllers/maic_controller.py"))
    with pytest.raises(UserError) as caught:
        controllers.REGISTRY["maic_mac"]
    assert str(caught.value).endswith("plug-ins have brought 'MAICMAC', 'maic_controller'")


def test_a_registration_file_chooses_names(fork, tmp_path):
    (tmp_path / "names.py").write_text(
        "from controllers import REGISTRY\nfrom controllers.maic_controller import MAICMAC\n"
        'REGISTRY["maic_mac"] = MAICMAC\n'
    )
    load_plugins([*names(fork, "controllers/maic_controller.py"), "names.py"])
    training, _ = train(tmp_path / "run", "qmix", "mac=maic_mac")
    assert type(training.mac).__name__ == "MAICMAC"


def test_files_of_one_name_do_not_hide_each_other(fork, tmp_path, caplog):
    for folder, size in (("first", 1), ("second", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(
            f"from torch import nn\nclass MyMixer(nn.Module):\n    size = {size}\n"
        )
    load_plugins(["first/json.py", "second/json.py"])
    assert modules.mixers.REGISTRY["json"].size == 2
    assert "mixer 'MyMixer' is the plug-in's now, in place of another plug-in's" in caplog.text
    assert json.loads("[1]") == [1]


def test_a_relative_import_of_nothing_is_one_line(fork, tmp_path):
    (tmp_path / "lost.py").write_text("from .nowhere_at_all import x\n")
    with pytest.raises(ConfigError, match=r"plugins: '.*lost.py'") as caught:
        load_plugins([str(tmp_path / "lost.py")])
    assert "\n" not in str(caught.value)


def test_runs_in_one_process_do_not_share_replaced_parts(fork):
    ours = modules.agents.REGISTRY["n_rnn"]
    before = {kind: dict(registry) for kind, registry in REGISTRIES.items()}
    for _ in range(2):
        with undisturbed(names(fork, "modules/agents/n_rnn_agent.py")):
            assert modules.agents.REGISTRY["n_rnn"] is not ours
        assert {kind: dict(registry) for kind, registry in REGISTRIES.items()} == before


# -- import paths ----------------------------------------------------------------------------------


def test_self_attention_equals_the_loop():
    from modules.layer.self_atten import SelfAttention

    torch.manual_seed(0)
    net, x = SelfAttention(5, 2, 3), torch.randn(4, 6, 5)
    out = net(x)
    for b in range(4):
        for h in range(2):
            part = slice(3 * h, 3 * h + 3)
            q, k, v = (
                x[b] @ getattr(net, name).weight[part].T
                for name in ("toqueries", "tokeys", "tovalues")
            )
            for i in range(6):
                scores = torch.stack([q[i] @ k[j] for j in range(6)]) / 3**0.5
                weights = scores.exp() / scores.exp().sum()
                expected = sum(weights[j] * v[j] for j in range(6))
                assert torch.allclose(out[b, i, part], expected, atol=1e-6)


def test_noisy_layer():
    from utils.noisy_liner import NoisyLinear

    torch.manual_seed(0)
    layer, x = NoisyLinear(3, 4), torch.randn(2, 3)
    layer.eval()
    assert torch.equal(layer(x), x @ layer.u_w.T + layer.u_b)
    layer.train()
    outs = torch.stack([layer(x) for _ in range(4000)])
    variance = 0.017**2 * (x.square().sum(-1, keepdim=True) + 1).expand(-1, 4)
    assert torch.allclose(outs.mean(0), x @ layer.u_w.T + layer.u_b, atol=3e-3)
    assert torch.allclose(outs.var(0), variance, rtol=0.1)
    with pytest.raises(ValueError, match="has a bias"):
        NoisyLinear(3, 4, bias=False)


def test_entropies():
    from components.action_selectors import categorical_entropy, multinomial_entropy

    logits = torch.randn(3, 2, 5)
    probs = logits.softmax(-1)
    expected = -(probs * probs.log()).sum(-1)
    assert torch.allclose(categorical_entropy(probs), expected)
    assert torch.allclose(multinomial_entropy(logits), expected)


def test_the_matrix_status_shows_every_joint_action(caplog):
    from envs.matrix_game import print_matrix_status

    caplog.set_level("INFO")
    mac_out = torch.tensor([[1.0, 2.0], [10.0, 20.0]]).expand(3, 1, 2, 2)
    print_matrix_status({"state": torch.ones(3, 1, 1)}, lambda q, s: q.sum(-1), mac_out)
    assert "[[11. 21.]\n [12. 22.]]" in caplog.text


def test_pymarls_critics_read_the_batch():
    from learner_fixtures import N_ACTIONS, N_AGENTS, OBS, STATE, make_args, make_batch

    from modules.critics.centralv import CentralVCritic
    from modules.critics.coma import COMACritic
    from modules.critics.fmac_critic import FMACCritic
    from modules.critics.lica import LICACritic
    from modules.critics.offpg import OffPGCritic

    args = make_args("qmix")
    args.critic_hidden_dim, args.lica_mixing_embed_dim, args.hypernet_embed_dim = 4, 3, 5
    batch = make_batch(args)
    scheme, (b, t) = batch.scheme, (batch.batch_size, batch.max_seq_length)
    seen = []
    coma = COMACritic(scheme, args)
    coma.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert coma(batch).shape == (b, t, N_AGENTS, N_ACTIONS)
    assert torch.equal(coma(batch, t=2), coma(batch)[:, 2:3])
    x = seen[0]
    for e, step, i in ((0, 0, 1), (1, 3, 2)):
        onehot = batch["actions_onehot"]
        others = [onehot[e, step, j] * (j != i) for j in range(N_AGENTS)]
        last = [onehot[e, step - 1, j] * (step > 0) for j in range(N_AGENTS)]
        number = torch.eye(N_AGENTS)[i]
        expected = [batch["state"][e, step], batch["obs"][e, step, i], *others, *last, number]
        assert torch.equal(x[e, step, i], torch.cat(expected))
    assert CentralVCritic(scheme, args)(batch, t=1).shape == (b, 1, 1)
    probs = torch.rand(b, t, N_AGENTS, N_ACTIONS)
    q, hidden = FMACCritic(scheme, args)(batch, probs)
    assert (q.shape, hidden) == ((b, t, N_AGENTS, 1), None)
    lica = LICACritic(scheme, args)
    q = lica(probs, batch["state"])
    s, joint = batch["state"][1, 2], probs[1, 2].flatten()
    h = torch.relu(joint @ lica.hyper_w_1(s).view(-1, 3) + lica.hyper_b_1(s))
    assert torch.allclose(q[1, 2], h @ lica.hyper_w_final(s) + lica.hyper_b_2(s), atol=1e-5)
    offpg = OffPGCritic(scheme, args)
    inputs = offpg._build_inputs(batch, b, t)
    assert inputs.shape == (b, t, N_AGENTS, STATE + OBS + N_AGENTS)
    assert offpg(inputs).shape == (b, t, N_AGENTS, N_ACTIONS)
