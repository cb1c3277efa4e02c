"""Yaml files and command lines of PyMARL2 and EPyMARL: what they mean here, learner by learner, and
what is said of settings that change nothing.
"""

from types import SimpleNamespace

import pytest

from assembly import build_learner, describe_env
from envs import make_vector_env
from modules.mixers.qtran import QTranBase
from utils.config import build_config, trace_config
from utils.errors import ConfigError

# PyMARL2's files in its words: what each gives of the keys that its learner reads.
SHARED = """
action_selector: "epsilon_greedy"
epsilon_start: 1.0
epsilon_finish: 0.05
epsilon_anneal_time: 100000
runner: "parallel"
batch_size_run: 8
buffer_size: 5000
batch_size: 128
target_update_interval: 200
t_max: 10050000
agent_output_type: "q"
"""
FILES = {
    "iql": 'learner: "q_learner"\ndouble_q: True\nmixer: # Mixer becomes None\noptimizer: "adam"\n',
    "qmix_of_pymarl": (
        'learner: "q_learner"\ndouble_q: True\nmixer: "qmix"\nmixing_embed_dim: 32\n'
    ),
    "qmix": (
        "optimizer: 'adam'\nmac: n_mac\nagent: n_rnn\nlearner: nq_learner\nmixer: qmix\n"
        "mixing_embed_dim: 32\nhypernet_embed: 64\nlr: 0.001\ntd_lambda: 0.6\noptimizer: 'adam'\n"
        "q_lambda: False\nuse_layer_norm: False\nuse_orthogonal: False\ngain: 0.01\n"
        "use_per: False\n"
        "per_alpha: 0.6\nper_beta: 0.4\nreturn_priority: False\n"
    ),
    "ow_qmix": (
        'learner: "max_q_learner"\ndouble_q: True\nmixer: "qmix"\nmixing_embed_dim: 32\n'
        "central_loss: 1\nqmix_loss: 1\nw: 0.1\nhysteretic_qmix: True\n"
        "central_mixing_embed_dim: 256\ncentral_action_embed: 1\ncentral_mac: basic_central_mac\n"
        "central_agent: central_rnn\ncentral_rnn_hidden_dim: 64\ncentral_mixer: ff\n"
        "td_lambda: 0.6\nlr: 0.001\n"
    ),
    "qplex": (
        'learner: "dmaq_qatten_learner"\ndouble_q: True\nmixer: "dmaq"\nmixing_embed_dim: 32\n'
        "hypernet_embed: 64\nadv_hypernet_embed: 64\ntd_lambda: 0.6\nlr: 0.001\nnum_kernel: 4\n"
        "is_minus_one: True\nweighted_head: True\nis_adv_attention: True\nis_stop_gradient: True\n"
    ),
    "qtran": (
        "learner: qtran_learner\ndouble_q: True\nmixer: qtran_base\nmixing_embed_dim: 64\n"
        "qtran_arch: qtran_paper\nopt_loss: 1\nnopt_min_loss: 0.1\nnetwork_size: small\n"
    ),
    "qatten": (
        "mac: n_mac\nagent: n_rnn\nlearner: nq_learner\nmixer: qatten\ntd_lambda: 0.6\nlr: 0.001\n"
        "optimizer: adam\nn_query_embedding_layer1: 64\nn_query_embedding_layer2: 32\n"
        "n_key_embedding_layer1: 32\nn_head_embedding_layer1: 64\nn_head_embedding_layer2: 4\n"
        "n_attention_head: 4\nn_constrant_value: 32\ntype: weighted\nagent_own_state_size: True\n"
    ),
}
# What PyMARL2's learner does with these files: optimiser, its learning rate and epsilon, lambda,
# and the layers of QMIX's hypernetworks or QPLEX's weights.
MEANS = {
    "iql": ("Adam", 0.0005, 1e-8, 0.0, {}),
    "qmix_of_pymarl": ("RMSprop", 0.0005, 1e-5, 0.0, {"hypernet_layers": 1}),
    "qmix": ("Adam", 0.001, 1e-8, 0.6, {"hypernet_layers": 2}),
    "ow_qmix": ("Adam", 0.001, 1e-8, 0.6, {"hypernet_layers": 1}),
    "qplex": ("Adam", 0.001, 1e-8, 0.6, {"adv_hypernet_layers": 1}),
    "qtran": ("Adam", 0.0005, 1e-8, 0.0, {}),
    "qatten": ("Adam", 0.001, 1e-8, 0.6, {"weighted_head": True, "agent_own_state_size": 4}),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(SHARED + text)
    return tmp_path


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_pymarl2_trains_what_it_trains_there(folder, name, caplog):
    optimiser, lr, eps, td_lambda, more = MEANS[name]
    config = build_config(
        f"{name}.yaml", "sc2sim", ["env_args.map_name=5m_vs_6m", "use_cuda=False"]
    )
    assert warnings(caplog) == []
    args = SimpleNamespace(**config, device="cpu")
    with make_vector_env("sc2sim", args.env_args, 1, 0, "native", "test_env") as env:
        describe_env(args, env.get_env_info())
    learner = build_learner(args, None)[1]
    group = learner.optimiser.param_groups[0]
    assert type(learner.optimiser).__name__ == optimiser
    assert (group["lr"], group["eps"], group["weight_decay"]) == (lr, eps, 0)
    assert (args.td_lambda, args.t_max, args.epsilon_anneal_time) == (td_lambda, 10050000, 100000)
    for key, value in more.items():
        assert getattr(args, key) == value
        assert type(getattr(args, key)) is type(value)
    if name == "qtran":
        assert isinstance(learner.mixer, QTranBase)


def test_where_an_absent_key_gets_its_value(folder):
    _, origins = trace_config("ow_qmix.yaml", "matrix_game")
    assert origins["optimizer"] == origins["hypernet_layers"] == "learners/max_q_learner.yaml"
    config, origins = trace_config("iql.yaml", "matrix_game", ["learner=qtran_learner"])
    assert (config["td_lambda"], origins["td_lambda"]) == (0.0, "learners/qtran_learner.yaml")


@pytest.mark.parametrize(
    ("given", "expected"), [("True", True), ("False", False), ("4", 4), ("0", 0), ("1", 1)]
)
def test_a_boolean_stays_one(given, expected):
    value = build_config("qatten", "sc2sim", [f"agent_own_state_size={given}"])[
        "agent_own_state_size"
    ]
    assert value == expected
    assert type(value) is type(expected)


def test_a_boolean_or_a_number():
    with pytest.raises(ConfigError, match="must be True or False or an int, got 'big'"):
        build_config("qatten", "sc2sim", ["agent_own_state_size=big"])


def test_where_the_environment_does_not_say_what_its_state_begins_with(caplog):
    caplog.set_level("INFO")
    config = build_config("qatten", "matrix_game")
    args = SimpleNamespace(**config, device="cpu")
    with make_vector_env("matrix_game", args.env_args, 1, 0, "native", "test_env") as env:
        describe_env(args, env.get_env_info())
    assert args.agent_own_state_size == 0
    assert type(args.agent_own_state_size) is int
    assert "does not say what its state begins with" in caplog.text


# -- keys ------------------------------------------------------------------------------------------

QMIX = ("qmix", "matrix_game")


@pytest.mark.parametrize(
    ("update", "key", "value"),
    [
        ("hidden_dim=128", "rnn_hidden_dim", 128),
        ("use_rnn=False", "agent", "mlp"),
        ("use_rnn=True", "agent", "n_rnn"),
        ("target_update_interval_or_tau=300", "target_update_interval", 300),
        ("test_noise=0.1", "evaluation_epsilon", 0.1),
        ("run=per_run", "use_per", True),
        ("run=default", "use_per", False),
        ("use_per=True", "use_per", True),
        ("use_layer_norm=True", "use_layer_norm", True),
        ("use_orthogonal=True", "use_orthogonal", True),
        ("evaluation_epsilon=0.2", "evaluation_epsilon", 0.2),
        ("central_mixer=ff", "central_mixer", "ff"),
        ("central_mac=basic_central_mac", "central_mac", "basic_central_mac"),
    ],
)
def test_keys_with_a_meaning(update, key, value, caplog):
    assert build_config(*QMIX, [update])[key] == value
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ("critic_lr=0.01", "critic_lr=0.01 has no effect here: lr is that of all networks"),
        ("wandb_save_model=True", "wandb_save_model=True has no effect here"),
        ("hypergroup=x", "hypergroup=x has no effect here"),
        ("is_stop_gradient=False", "advantages are always detached, as in PyMARL2"),
        ("is_adv_attention=False", "the attention is always there, as in PyMARL2"),
        ("load_step=300", "load_step=300 has no effect without checkpoint_path"),
        ("save_replay=True", "save_replay=True has no effect without evaluate"),
        ("render=True", "render=True has no effect without evaluate"),
        ("per_alpha=0.5", "per_alpha=0.5 has no effect without use_per"),
        ("gain=0.1", "gain=0.1 has no effect without use_orthogonal"),
        (
            "optim_eps=0.1",
            "optim_eps=0.1 has no effect with another optimizer than rmsprop; Adam's own is "
            "adam_eps",
        ),
        ("optim_alpha=0.9", "optim_alpha=0.9 has no effect with another optimizer than rmsprop"),
        ("norm_layers=2", "norm_layers=2 has no effect with another agent than norm_rnn"),
        ("updates_per_step=2", "updates_per_step=2 has no effect without steps_per_update"),
        ("transition_history=2", "has no effect without replay=transitions"),
    ],
)
def test_a_setting_without_effect_is_one_line(update, words, caplog):
    build_config(*QMIX, [update])
    (line,) = warnings(caplog)
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "update",
    [
        *("use_wandb=False", "hypergroup=null", "is_stop_gradient=True", "critic_lr=0.001"),
        *("load_step=0", "save_replay=False", "per_alpha=0.6", "gain=0.01"),
    ],
)
def test_what_is_so_anyway_is_not_worth_a_line(update, caplog):
    build_config(*QMIX, [update])
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("run=on_off", "run must be one of default, per_run, got 'on_off'"),
        ("central_mixer=atten", "central_mixer must be one of ff, got 'atten'"),
        ("target_update_interval_or_tau=0.01", "asks for soft updates"),
    ],
)
def test_what_nothing_here_can_do_is_refused(update, message):
    with pytest.raises(ConfigError, match=message):
        build_config(*QMIX, [update])


def test_keys_that_nothing_reads(folder, caplog):
    (folder / "mine.yaml").write_text("inherits: qmix\nentropy: 0.1\nmini_epochs: 3\nlr: 0.01\n")
    build_config("mine.yaml", "matrix_game")
    assert warnings(caplog) == ["mine.yaml: nothing here reads entropy, mini_epochs"]
    caplog.clear()
    build_config("mine.yaml", "matrix_game", ["plugins=[x.py]"])  # it may
    assert warnings(caplog) == []


def test_the_type_of_qattens_heads():
    for given, weighted in (("weighted", True), ("plain", False)):
        config = build_config("qatten", "matrix_game", [f"type={given}"])
        assert config["weighted_head"] is weighted


def test_what_a_foreign_key_means_is_said(folder, caplog):
    caplog.set_level("INFO")
    (folder / "mine.yaml").write_text("inherits: qmix\nhidden_dim: 128\n")
    config = build_config("mine.yaml", "matrix_game")
    assert (config["hidden_dim"], config["rnn_hidden_dim"]) == (128, 128)
    assert "mine.yaml: hidden_dim=128 means rnn_hidden_dim=128 here" in caplog.messages
    (folder / "mine.yaml").write_text("inherits: qmix\nhidden_dim: 128\nrnn_hidden_dim: 32\n")
    assert build_config("mine.yaml", "matrix_game")["rnn_hidden_dim"] == 32


def test_wandb_as_in_epymarl(folder):
    (folder / "mine.yaml").write_text(
        "inherits: qmix\nuse_wandb: True\nwandb_team: we\n"
        "wandb_project: marl\nwandb_mode: offline\n"
    )
    config = build_config("mine.yaml", "matrix_game")
    assert config["loggers"] == ["wandb"]
    assert config["logger_args"] == {
        "wandb": {"entity": "we", "project": "marl", "mode": "offline"}
    }
    (folder / "mine.yaml").write_text("inherits: qmix\nuse_wandb: False\nwandb_team: null\n")
    config = build_config("mine.yaml", "matrix_game")
    assert (config["loggers"], config["logger_args"]) == ([], {})


def test_one_letter_of_a_key():
    with pytest.raises(ConfigError, match="unknown key 'K'; did you mean 's2q_k'"):
        build_config("s2q", "matrix_game", ["K=2"])


# -- env_args of a fork ----------------------------------------------------------------------------


def test_an_environment_does_not_get_what_only_a_fork_reads(folder, caplog):
    (folder / "mine.yaml").write_text(
        "inherits: qmix\nenv_args: {state_last_action: False, entity_scheme: True}\n"
    )
    config = build_config("mine.yaml", "sc2sim", ["env_args.map_name=3m"])
    assert config["env_args_optional"] == ["entity_scheme"]
    assert config["env_args"]["state_last_action"] is False

    def make(optional):
        return make_vector_env(
            "sc2sim", config["env_args"], 1, 0, "native", "test_env", optional_args=optional
        )

    make(config["env_args_optional"]).close()
    assert "environment 'sc2sim' has no argument env_args.entity_scheme: it does not get it" in (
        caplog.text
    )
    with pytest.raises(ConfigError, match=r"has no argument env_args\.entity_scheme"):
        make([])


def test_a_forks_environment_file_counts_only_with_plugins(folder):
    (folder / "env.yaml").write_text("env: sc2sim\nenv_args: {map_name: 3m, entity_scheme: True}\n")
    assert build_config("qmix", "env.yaml")["env_args_optional"] == []
    config = build_config("qmix", "env.yaml", ["plugins=[fork.py]"])
    assert config["env_args_optional"] == ["map_name", "entity_scheme"]
