"""Scenario presets: what they set, for whom, and what counts more than they do."""

import pytest

from utils import config as config_module
from utils.config import CONFIG_DIR, build_config, list_configs, load_file
from utils.errors import ConfigError

# S2Q, appendix F.2: alpha of every scenario; K, T and lam are the same in all of them.
ALPHA = {
    **dict.fromkeys(("5m_vs_6m", "MMM2", "27m_vs_30m", "6h_vs_8z"), 0.9),
    **dict.fromkeys(("1o_2r_vs_4r", "1o_10b_vs_1r", "5z_vs_1ul", "bane_vs_hM"), 0.9),
    **dict.fromkeys(("5m_vs_6m_Hard", "2s3z_Hard", "3s_vs_5z_Hard"), 0.9),
    **dict.fromkeys(("corridor", "3s5z_vs_3s6z", "academy_3_vs_2", "academy_4_vs_3"), 0.75),
    **dict.fromkeys(("terran_5_vs_5", "zerg_5_vs_5", "protoss_5_vs_5"), 0.75),
}
# DAC, Table 4: k, m, the steps over which epsilon is annealed and those of training; beta is 0.001
# everywhere.
DAC = {
    "dac_matrix_game": (1, 4, 50000, 50000),
    "predator_prey": (10, 10, 1500000, 3050000),
    "predator_prey_p1": (5, 10, 1500000, 3050000),
    "2s_vs_1sc": (10, 10, 50000, 2050000),
    "3s5z": (10, 5, 50000, 2050000),
    "3s_vs_4z": (15, 20, 50000, 2050000),
    "3s_vs_5z": (15, 20, 50000, 2050000),
    "5m_vs_6m": (15, 20, 50000, 2050000),
    "8m_vs_9m": (5, 10, 50000, 2050000),
    "10m_vs_11m": (15, 10, 50000, 2050000),
}
S2Q = [name for name in list_configs("algs") if name.startswith("s2q")]


def build(*updates, algorithm="s2q"):
    return build_config(algorithm, "matrix_game", updates)


def test_every_scenario_belongs_to_a_paper():
    assert set(list_configs("scenarios")) == set(ALPHA) | set(DAC) | {"f2a2_starcraft"}


@pytest.mark.parametrize("algorithm", ["dac", "dac_phi"])
@pytest.mark.parametrize("scenario", DAC)
def test_the_table_of_dac(scenario, algorithm):
    """Didactic tasks have hypernetworks, StarCraft maps a linear head; the rest is as in
    `dac.yaml`.
    """
    plain, config = build(algorithm=algorithm), build(f"scenario={scenario}", algorithm=algorithm)
    keys = ("dac_k", "dac_m", "epsilon_anneal_time", "t_max", "dac_beta")
    assert tuple(config[key] for key in keys) == (*DAC[scenario], 0.001)
    assert config["dac_head"] == (
        "hyper_net" if scenario.startswith(("dac", "predator")) else "normal_net"
    )
    changed = {key for key, value in config.items() if plain[key] != value}
    assert changed <= {
        "scenario",
        "dac_k",
        "dac_m",
        "epsilon_anneal_time",
        "t_max",
        "dac_head",
        "env_args",
    }
    assert (config["env_args"]["map_name"] == "climbing") == (scenario == "dac_matrix_game")
    shared = (
        "optimizer",
        "optim_alpha",
        "optim_eps",
        "lr",
        "gamma",
        "buffer_size",
        "batch_size",
        "epsilon_finish",
    )
    assert [config[key] for key in shared] == ["rmsprop", 0.99, 1e-5, 0.0005, 0.99, 5000, 32, 0.05]


def test_the_table_of_s2q():
    for name, alpha in ALPHA.items():
        config = build(f"scenario={name}", "s2q_k=7", "s2q_k=2")
        assert config["scenario"] == name
        assert [config[f"s2q_{key}"] for key in ("k", "temperature", "lambda", "alpha")] == [
            2,
            0.1,
            1.0,
            alpha,
        ], name
        assert config["epsilon_anneal_time"] == (500000 if name == "6h_vs_8z" else 100000)
        assert config["rnn_hidden_dim"] == (256 if name.startswith("academy") else 64)
        assert config["central_rnn_hidden_dim"] == config["rnn_hidden_dim"]
        assert list_configs("scenarios")[name]


@pytest.mark.parametrize("algorithm", S2Q)
@pytest.mark.parametrize("scenario", ["6h_vs_8z", "academy_3_vs_2"])
def test_every_variant_of_s2q_takes_them(algorithm, scenario):
    plain, config = build(algorithm=algorithm), build(f"scenario={scenario}", algorithm=algorithm)
    changed = {key for key, value in config.items() if plain[key] != value}
    if scenario == "6h_vs_8z":
        assert changed == {"scenario", "epsilon_anneal_time"}
    else:
        assert changed - {"central_rnn_hidden_dim"} == {"scenario", "s2q_alpha", "rnn_hidden_dim"}
        assert ("central_rnn_hidden_dim" in changed) == ("central_rnn_hidden_dim" in plain)


def test_the_command_line_counts_more(tmp_path):
    (tmp_path / "more.yaml").write_text("s2q_alpha: 0.5\nscenario: 6h_vs_8z\n")
    config = build("epsilon_anneal_time=7", str(tmp_path / "more.yaml"))
    assert (config["scenario"], config["s2q_alpha"], config["epsilon_anneal_time"]) == (
        "6h_vs_8z",
        0.5,
        7,
    )
    assert build("s2q_alpha=0.3", "scenario=corridor")["s2q_alpha"] == 0.3


def test_no_scenario_changes_nothing():
    assert build()["scenario"] == ""
    assert build("scenario=") == build()


def test_a_section_applies_to_all_that_inherit_from_it(tmp_path):
    """The learner's section, then those of the files from the root to the algorithm itself."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "s2q_oracle: {lr: 0.4}\ns2q: {lr: 0.3, gamma: 0.3, td_lambda: 0.3}\n"
        "_s2q: {lr: 0.2, gamma: 0.2, optim_eps: 0.2}\n"
        "s2q_learner: {lr: 0.1, gamma: 0.1, optim_eps: 0.1, weight_decay: 0.1}\n"
    )

    def values(algorithm):
        config = build(f"scenario={file}", algorithm=algorithm)
        return [config[key] for key in ("lr", "gamma", "td_lambda", "optim_eps", "weight_decay")]

    assert values("s2q_oracle") == [0.4, 0.3, 0.3, 0.2, 0.1]
    assert values("s2q_random") == values("s2q") == [0.3, 0.3, 0.3, 0.2, 0.1]
    assert values("s2q_vdn") == [0.2, 0.2, 0.6, 0.2, 0.1]
    own = tmp_path / "own.yaml"
    own.write_text(f"inherits: {CONFIG_DIR}/algs/s2q_oracle.yaml\n")
    assert values(str(own)) == values("s2q_oracle")


def test_scenarios_inherit(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "s2q_learner: {lr: 0.1, gamma: 0.1, env_args: {map_name: climbing}}\n"
        "s2q: {td_lambda: 0.1}\n"
    )
    file = tmp_path / "mine.yaml"
    file.write_text(
        "inherits: base.yaml\ns2q_learner: {lr: 0.2, td_lambda: 0.2}\nqmix: {lr: 0.5}\n"
    )
    config = build(f"scenario={file}")
    assert [config[key] for key in ("lr", "gamma", "td_lambda")] == [0.2, 0.1, 0.1]
    assert config["env_args"]["map_name"] == "climbing"
    assert build(f"scenario={file}", algorithm="qmix")["lr"] == 0.5
    with pytest.raises(ConfigError, match=r"for 'dac', only for s2q_learner, s2q, qmix$"):
        build(f"scenario={file}", algorithm="dac")
    file.write_text("inherits: corridr\n")
    with pytest.raises(ConfigError, match="unknown scenario 'corridr'; did you mean 'corridor'"):
        build(f"scenario={file}")
    with pytest.raises(ConfigError, match="unknown scenario '_s2q'"):
        build("scenario=_s2q")


def test_own_files_and_sections(tmp_path):
    """The learner's section first, then that of the algorithm itself."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "s2q_learner: {lr: 0.1, gamma: 0.5}\ns2q_comm: {lr: 0.2}\nqmix: {lr: 0.3, env_args: "
        "{map_name: climbing}}\n"
    )
    assert [build(f"scenario={file}")[key] for key in ("lr", "gamma")] == [0.1, 0.5]
    assert [build(f"scenario={file}", algorithm="s2q_comm")[key] for key in ("lr", "gamma")] == [
        0.2,
        0.5,
    ]
    config = build(f"scenario={file}", algorithm="qmix")
    assert (config["lr"], config["env_args"]["map_name"]) == (0.3, "climbing")


@pytest.mark.parametrize(
    ("content", "algorithm", "message"),
    [
        ("s2q_learner: {lr: 0.1}\n", "qmix", "has no settings for 'qmix', only for s2q_learner"),
        ("s2q_learner: {lrr: 0.1}\n", "s2q", "mine.yaml: unknown key 'lrr'; did you mean 'lr'?"),
        ("s2q_learner: {lr: high}\n", "s2q", "mine.yaml: lr must be a number, got 'high'"),
        ("s2q_learner: 3\n", "s2q", "mine.yaml: s2q_learner must be a mapping, got 3"),
        ("s2q_learner: {gamma: 3.0}\n", "s2q", "gamma must be between 0 and 1, got 3.0"),
    ],
)
def test_refusals(tmp_path, content, algorithm, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        build(f"scenario={tmp_path / 'mine.yaml'}", algorithm=algorithm)
    assert str(caught.value).endswith(message)


def test_unknown_scenario():
    with pytest.raises(ConfigError, match="unknown scenario '6h_vs_9z'; did you mean '6h_vs_8z'"):
        build("scenario=6h_vs_9z")
    assert config_module.KINDS["scenarios"] == "scenario"


def test_an_ablation_changes_one_key():
    """The files of S2Q's ablations and S2Q-Comm are `s2q.yaml` but for one key."""
    changes = {
        "s2q_oracle": {"s2q_select": "oracle"},
        "s2q_random": {"s2q_select": "uniform"},
        "s2q_no_soft": {"s2q_select": "zero"},
        "s2q_independent": {"s2q_synchronised": False},
        "s2q_no_wtd": {"s2q_weighted_td": False},
        "s2q_comm": {"s2q_comm": True},
    }
    plain = load_file(CONFIG_DIR / "algs" / "s2q.yaml")
    for name, change in changes.items():
        assert load_file(CONFIG_DIR / "algs" / f"{name}.yaml") == plain | change
        assert change.items() - plain.items() == change.items()
    networks = {"qmix_pos_func", "weighted_head", "num_kernel", "is_minus_one"}
    for backbone in ("vdn", "qplex"):
        other = load_file(CONFIG_DIR / "algs" / f"s2q_{backbone}.yaml")
        kept = {
            key: value
            for key, value in plain.items()
            if not key.startswith("central_") and key not in networks
        }
        assert {key: value for key, value in other.items() if key in kept} == kept | {
            "s2q_backbone": backbone,
        }
