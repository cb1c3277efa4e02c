"""Merging and checking the configuration, against values written out by hand."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from utils import config as config_module
from utils import config_files
from utils.config import (
    CONFIG_DIR,
    RANGES,
    build_config,
    check_results_folder,
    convert,
    describe_config,
    find_config,
    list_configs,
    load_file,
    read_file,
    resolve_device,
    results_dir,
    safe_name,
    set_seed,
    trace_config,
)
from utils.errors import ConfigError, UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An algorithm and an environment of our own, and the folder they are in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alg.yaml").write_text(
        "# An algorithm.\nlearner: my_learner\nmixer: qmix\nn_head: 4\nbatch_size: 16\nrates: "
        "{fast: 0.1, slow: 1e-5}\n"
        "buffer_size: 5e3\n"
    )
    (tmp_path / "env.yaml").write_text(
        "env: my_env\nbatch_size: 8\nt_max: 77\n"
        'env_args:\n  map_name: 3m\n  difficulty: "7"\n  size: 5\n  penalty: 0.0\n'
    )
    return tmp_path


def build(*updates):
    return build_config("alg.yaml", "env.yaml", updates)


def refusal(*updates):
    with pytest.raises(ConfigError) as caught:
        build(*updates)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- Order of precedence ---


def test_alg_over_env_over_default(files):
    config = build()
    assert config["batch_size"] == 16  # default 32, env 8, alg 16
    assert config["t_max"] == 77  # default 10000, env 77
    assert config["gamma"] == 0.99
    assert config["n_head"] == 4
    assert config["rates"] == {"fast": 0.1, "slow": 1e-5}
    assert config["env_args"] == {"map_name": "3m", "difficulty": "7", "size": 5, "penalty": 0.0}


def test_command_line_wins_and_nested_entries_are_merged(files):
    config = build("batch_size=4", "env_args.size=9", "rates.slow=0.5", "batch_size=3")
    assert config["batch_size"] == 3
    assert config["env_args"] == {"map_name": "3m", "difficulty": "7", "size": 9, "penalty": 0.0}
    assert config["rates"] == {"fast": 0.1, "slow": 0.5}


def test_files_of_settings_count_less_than_single_settings(files):
    (files / "more.yaml").write_text("lr: 1e-4\nenv_args: {size: 7}\n")
    (files / "more.json").write_text('{"gamma": 0.5}')
    config = build("lr=0.25", "more.yaml", "more.json")
    assert (config["lr"], config["gamma"], config["env_args"]["size"]) == (0.25, 0.5, 7)
    (files / "more.yaml").write_text("lrr: 1e-4\n")
    assert refusal("more.yaml") == "more.yaml: unknown key 'lrr'; did you mean 'lr'?"


def test_names_come_from_the_files_unless_given(files):
    config = build()
    assert (config["name"], config["env_config"]) == ("alg", "env")
    assert build("name=other")["name"] == "other"


def test_the_config_of_one_run_does_not_leak_into_the_next(files):
    build("env_args.size=9")["env_args"]["map_name"] = "changed"
    assert build()["env_args"]["map_name"] == "3m"


def test_an_env_file_may_also_be_a_name():
    config = build_config("qmix", "predator_prey", ["seed=1"])
    assert config["env"] == "predator_prey"
    assert config["name"] == "qmix"


# --- Unknown names ---


def test_unknown_keys_name_the_nearest(files):
    assert refusal("batchsize=3") == "unknown key 'batchsize'; did you mean 'batch_size'?"
    assert refusal("env_arg.size=3") == "unknown key 'env_arg'; did you mean 'env_args'?"
    assert refusal("rates.fst=3") == "unknown key 'rates.fst'; did you mean 'rates.fast'?"
    assert "src/config/default.yaml" in refusal("zzzzzzzzz=3")


def test_entries_of_env_args_are_free_but_a_likely_typo_is_a_warning(files, caplog):
    assert build("env_args.max_cycles=25")["env_args"]["max_cycles"] == 25
    assert not caplog.records
    build("env_args.map_nmae=8m")
    assert "did you mean 'env_args.map_name'" in caplog.text


def test_a_likely_typo_in_a_yaml_file_is_a_warning(files, caplog):
    (files / "alg.yaml").write_text("learner: x\nbatchsize: 3\nadv_hypernet_layers: 2\n")
    build()
    assert [record.getMessage() for record in caplog.records] == [
        "alg.yaml: key 'batchsize' is new; did you mean 'batch_size'?"
    ]


def test_unknown_algorithms_and_environments_name_the_nearest():
    with pytest.raises(ConfigError, match=r"^unknown algorithm 'qmxi'; did you mean 'qmix'\?$"):
        find_config("algs", "qmxi")
    with pytest.raises(
        ConfigError, match=r"^unknown environment 'predator_pray'; did you mean 'predator_prey'\?$"
    ):
        find_config("envs", "predator_pray")
    with pytest.raises(ConfigError, match=r"^no such file: no/such\.yaml$"):
        find_config("algs", "no/such.yaml")


@pytest.mark.parametrize("update", ["batch_size", "=3", "env_args.=3", ".x=3"])
def test_what_is_no_setting_is_refused(files, update):
    assert refusal(update).startswith("cannot read ")


# --- Types ---


@pytest.mark.parametrize(
    ("update", "key", "value"),
    [
        ("t_max=1e6", "t_max", 1_000_000),
        ("t_max=2.0", "t_max", 2),
        ("t_max=1_000", "t_max", 1000),
        ("lr=1e-5", "lr", 1e-5),
        ("lr=1", "lr", 1.0),
        ("grad_norm_clip=inf", "grad_norm_clip", float("inf")),
        ("double_q=false", "double_q", False),
        ("double_q=FALSE", "double_q", False),
        ("q_lambda=True", "q_lambda", True),
        ("label=007", "label", "007"),
        ("label=1e3", "label", "1e3"),
        ("label='quoted'", "label", "quoted"),
        ("label=a=b", "label", "a=b"),
        ("label=", "label", ""),
        ("mixer=None", "mixer", None),
        ("mixer=null", "mixer", None),
        ("mixer=vdn", "mixer", "vdn"),
        ("mixer=[1]", "mixer", "[1]"),
        ("seed=5", "seed", 5),
        ("plugins=[a,b.c]", "plugins", ["a", "b.c"]),
        ("plugins=a", "plugins", ["a"]),
        ("plugins=['a', 'b']", "plugins", ["a", "b"]),
        ("plugins=[]", "plugins", []),
    ],
)
def test_values_take_the_type_of_their_key(files, update, key, value):
    got = build(update)[key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("batch_size=abc", "batch_size must be an int, got 'abc'"),
        ("batch_size=1.5", "batch_size must be an int, got 1.5"),
        ("batch_size=True", "batch_size must be an int, got True"),
        ("batch_size=None", "batch_size must be an int, got null"),
        ("batch_size=inf", "batch_size must be an int, got 'inf'"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("lr=nan", "lr must be a number, got 'nan'"),
        ("lr=True", "lr must be a number, got True"),
        ("lr.x=1", "lr must be a number, got {'x': 1}"),
        ("double_q=1", "double_q must be True or False, got 1"),
        ("double_q=yes", "double_q must be True or False, got 'yes'"),
        ("seed=x", "seed must be an int or null, got 'x'"),
        ("env_args=3", "env_args must be a mapping, got 3"),
        ("env_args.size=big", "env_args.size must be an int, got 'big'"),
        ("plugins=3", "plugins must be a list, got 3"),
    ],
)
def test_wrong_types_are_refused(files, update, message):
    assert refusal(update) == message


def test_types_of_env_args_follow_the_environment_file(files):
    env_args = build("env_args.difficulty=3", "env_args.size=1e1", "env_args.penalty=1")["env_args"]
    assert env_args == {"map_name": "3m", "difficulty": "3", "size": 10, "penalty": 1.0}
    assert type(env_args["penalty"]) is float


def test_free_values_are_read_as_yaml_reads_them(files):
    env_args = build("env_args.a=true", "env_args.b=null", "env_args.c=[[1, 2.5]]", "env_args.d=x")[
        "env_args"
    ]
    assert [env_args[key] for key in "abcd"] == [True, None, [[1, 2.5]], "x"]


def test_types_in_files_are_checked_too(files):
    (files / "alg.yaml").write_text("learner: x\nbatch_size: many\n")
    assert refusal() == "alg.yaml: batch_size must be an int, got 'many'"
    (files / "alg.yaml").write_text("learner: x\nenv_args: 3\n")
    assert refusal() == "alg.yaml: env_args must be a mapping, got 3"


def test_convert_keeps_large_ints_exact():
    assert convert("key", 2**60 + 1, int) == 2**60 + 1


# --- Files ---


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3),
        ("a: 1\n\tb: 2\n", 2),
    ],
)
def test_broken_yaml_names_file_and_line(tmp_path, text, line):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert "\n" not in str(caught.value)


def test_of_a_key_given_twice_the_last_one_counts(tmp_path, caplog):
    path = tmp_path / "twice.yaml"
    path.write_text("optimizer: 'adam'\nlr: 1\noptimizer: adam\nc: {d: 1, d: 1}\n")
    assert read_file(path) == {"optimizer": "adam", "lr": 1, "c": {"d": 1}}
    assert not caplog.records
    path.write_text("lr: 1\nc: {d: 1, d: 2}\nlr: 3\n")
    assert read_file(path) == {"lr": 3, "c": {"d": 2}}
    assert caplog.messages == [
        f"{path}, line {line}: key '{key}' twice with different values; this one counts"
        for line, key in ((3, "lr"), (2, "d"))
    ]


def test_other_broken_files_are_one_line(tmp_path):
    for name, content, part in (
        ("a.json", b'{"a": 1,\n "b" 2}', "a.json, line 2: "),
        ("a.yaml", b"- 1\n- 2\n", "expected lines of the form 'key: value', got list"),
        ("b.yaml", b"just words\n", "got str"),
        ("c.yaml", b"\xff\xfe", "not a text file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
            load_file(tmp_path / name)
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"^cannot read .*Is a directory$"):
        load_file(tmp_path)


def test_yaml_numbers_that_pyyaml_reads_as_strings(tmp_path):
    path = tmp_path / "numbers.yaml"
    path.write_text("a: 1e-5\nb: 1e6\nc: 1.5e3\nd: -2E+2\ne: e5\nf: 1e\ng: 12\n")
    assert load_file(path) == {
        "a": 1e-5,
        "b": 1e6,
        "c": 1500.0,
        "d": -200.0,
        "e": "e5",
        "f": "1e",
        "g": 12,
    }
    assert yaml.safe_load("1e-5") == "1e-5"  # the reason for a rule of our own


def test_an_empty_file_has_no_keys_and_merge_keys_work(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_file(path) == {}
    path.write_text("base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\n")
    assert load_file(path)["other"] == {"x": 1, "y": 3}


def test_list_configs_shows_the_first_comment(tmp_path, monkeypatch):
    monkeypatch.setattr(config_files, "CONFIG_DIR", tmp_path)
    (tmp_path / "algs").mkdir()
    (tmp_path / "algs" / "b.yaml").write_text("\n# The second one.\n# More.\nx: 1\n")
    (tmp_path / "algs" / "a.yaml").write_text("x: 1\n")
    assert list_configs("algs") == {"a": "", "b": "The second one."}


# --- Ranges and dependencies ---


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("batch_size=-3", "batch_size must be at least 1, got -3"),
        ("batch_size_run=0", "batch_size_run must be at least 1, got 0"),
        ("test_interval=0", "test_interval must be at least 1, got 0"),
        ("gamma=1.01", "gamma must be between 0 and 1, got 1.01"),
        ("td_lambda=-0.1", "td_lambda must be between 0 and 1, got -0.1"),
        ("lr=0", "lr must be greater than 0 and finite, got 0.0"),
        ("optim_alpha=1", "optim_alpha must be at least 0 and less than 1, got 1.0"),
        ("weight_decay=-1", "weight_decay must be at least 0, got -1.0"),
        ("optimizer=sgd", "optimizer must be one of rmsprop, adam, radam, got 'sgd'"),
        ("buffer_dtype=float64", "buffer_dtype must be one of float32, float16, got 'float64'"),
        ("seed=-1", "seed must be between 0 and 4294967295, got -1"),
        ("local_results_path=", "local_results_path must be a name, not an empty string, got ''"),
        ("batch_size=9000", "batch_size (9000) must not be greater than buffer_size (5000)"),
        ("evaluate=True", "evaluate=True needs checkpoint_path=..., the checkpoint to evaluate"),
        ("checkpoint_agents=4", "checkpoint_agents is for evaluation only: set evaluate=True"),
        ("checkpoint_path=nowhere", "checkpoint_path: no such file or folder: nowhere"),
        ("observers.mongodb.url=x", "unknown observer 'mongodb'; did you mean 'mongo'?"),
        (
            "observers.sql=sqlite:///x",
            "observers.sql must be a mapping such as {url: ...}, got 'sqlite:///x'",
        ),
    ],
)
def test_values_out_of_range_are_refused(files, update, message):
    assert refusal(update) == message


def test_keys_that_depend_on_each_other(files):
    assert refusal("batch_size_run=2").startswith(
        "runner 'episode' steps one environment: set batch_size_run=1"
    )
    assert build("runner=vector", "batch_size_run=64")["batch_size_run"] == 64
    assert refusal("runner=vector", "batch_size_run=64", "buffer_size=32").startswith(
        "batch_size_run (64) must not"
    )
    (files / "alg.yaml").write_text("mixer: qmix\n")
    assert refusal() == "the algorithm's yaml file sets no 'learner'"
    (files / "env.yaml").write_text("t_max: 3\n")
    assert refusal() == "the environment's yaml file sets no 'env'"


def test_every_rule_holds_for_the_defaults_and_has_a_key():
    defaults = load_file(CONFIG_DIR / "default.yaml")
    for key, rule in RANGES.items():
        value = defaults
        for part in key.split("."):
            assert part in value, f"rule for {key}, which is no key"
            value = value[part]
        if value is not None:
            assert rule.holds(value), key


SHIPPED = [
    CONFIG_DIR / "default.yaml",
    *(path for kind in ("algs", "envs") for path in sorted((CONFIG_DIR / kind).glob("*.yaml"))),
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_has_a_comment(path):
    """On its line or on the line above."""
    lines = path.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        plain = line.strip()
        if plain and not plain.startswith(("#", "inherits:", "env:", "env_args:", "kwargs:")):
            assert " # " in line or re.match(r" *# (?!---)", above), line


@pytest.mark.parametrize("kind", ["algs", "envs", "scenarios"])
def test_no_file_repeats_its_own_name(kind):
    for path in (CONFIG_DIR / kind).glob("*.yaml"):
        assert "name" not in read_file(path), path


@pytest.mark.parametrize("environment", list(list_configs("envs")))
@pytest.mark.parametrize("algorithm", list(list_configs("algs")))
def test_every_pair_of_shipped_files_is_a_valid_config(algorithm, environment):
    assert build_config(algorithm, environment)["learner"]
    assert list_configs("algs")[algorithm]
    assert list_configs("envs")[environment]


# --- Inheritance ---


@pytest.fixture
def family(files, monkeypatch):
    """Algorithms parent <- child <- grandchild in a config folder of our own, by name."""
    root = files / "config"
    shutil.copytree(CONFIG_DIR, root)
    monkeypatch.setattr(config_files, "CONFIG_DIR", root)
    algs = root / "algs"
    (algs / "_base.yaml").write_text(
        "name: base\nenv_config: other\nlearner: x\nlr: 0.1\ngamma: 0.5\n"
        "rates: {fast: 0.1, slow: 0.2}\n"
    )
    (algs / "child.yaml").write_text("inherits: _base\nlr: 0.2\nrates: {slow: 0.3, new: 1}\n")
    (algs / "grandchild.yaml").write_text("# Last.\ninherits: child\nlr: 1\nname: mine\n")
    return algs


def grandchild(*updates):
    return build_config("grandchild", "env.yaml", updates)


def refused(algorithm, environment="env.yaml"):
    with pytest.raises(ConfigError) as caught:
        build_config(algorithm, environment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_childs_entries_win_and_mappings_are_merged(family):
    config = grandchild()
    assert (config["learner"], config["lr"], config["gamma"]) == ("x", 1.0, 0.5)
    assert type(config["lr"]) is float
    assert config["rates"] == {"fast": 0.1, "slow": 0.3, "new": 1}
    assert "inherits" not in config
    assert load_file(family / "grandchild.yaml") == {
        "learner": "x", "lr": 1, "gamma": 0.5, "rates": config["rates"], "name": "mine",
    }  # fmt: skip


def test_names_are_not_inherited(family):
    child = build_config("child", "env.yaml")
    assert (child["name"], child["env_config"]) == ("child", "env")
    assert grandchild()["name"] == "mine"
    (family / "great.yaml").write_text("inherits: grandchild\n")
    assert build_config("great", "env.yaml")["name"] == "great"


def test_parents_by_path_are_relative_to_the_file_that_names_them(family, files):
    (files / "mine").mkdir()
    (files / "mine" / "alg.yaml").write_text("inherits: ../base.json\nlr: 0.3\n")
    (files / "base.json").write_text('{"inherits": "child", "gamma": 0.25}')
    config = build_config("mine/alg.yaml", "env.yaml")
    assert (config["name"], config["lr"], config["gamma"]) == ("alg", 0.3, 0.25)
    (files / "mine" / "env.yaml").write_text(f"inherits: {files}/env.yaml\nenv_args: {{size: 6}}\n")
    config = build_config("child", "mine/env.yaml")
    assert config["env_args"] == {"map_name": "3m", "difficulty": "7", "size": 6, "penalty": 0.0}


def test_environments_inherit_from_environments(family, files):
    (files / "env.yaml").write_text("inherits: sc2sim\nenv_args: {map_name: 8m}\n")
    config = build_config("qmix", "env.yaml")
    assert (config["env"], config["env_config"]) == ("sc2sim", "env")
    assert config["env_args"] == build_config("qmix", "sc2sim")["env_args"] | {"map_name": "8m"}


def test_types_and_likely_typos_are_checked_in_every_file_of_a_chain(family, caplog):
    (family / "child.yaml").write_text("inherits: _base\nlr: high\n")
    assert refused("child").endswith("child.yaml: lr must be a number, got 'high'")
    (family / "child.yaml").write_text("inherits: _base\nlearnerr: y\n")
    assert not caplog.records
    assert build_config("child", "env.yaml")["learnerr"] == "y"
    assert "child.yaml: key 'learnerr' is new; did you mean 'learner'?" in caplog.text


def test_a_value_fixes_the_type_of_a_key_that_a_parent_leaves_open(family, files):
    (files / "base.yaml").write_text("env: my_env\nenv_args: {key: null}\n")
    (files / "env.yaml").write_text("inherits: base.yaml\nenv_args: {key: a}\n")
    assert build_config("child", "env.yaml", ["env_args.key=007"])["env_args"]["key"] == "007"
    assert build_config("child", "base.yaml", ["env_args.key=7"])["env_args"]["key"] == 7


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("chidl", "inherits: unknown algorithm 'chidl'; did you mean 'child'?"),
        ("_bas", "inherits: unknown algorithm '_bas'; did you mean '_base'?"),
        ("predator_prey", "inherits: unknown algorithm 'predator_prey'; "),
        ("../bse.yaml", "inherits: unknown file '../bse.yaml'; did you mean '../base.yaml'?"),
        ("nowhere/x.yaml", "inherits: unknown file 'nowhere/x.yaml'; "),
        ("3", "inherits must be a name or a path, got 3"),
        ("[a, b]", "inherits must be a name or a path, got ['a', 'b']"),
        ("", "inherits must be a name or a path, got null"),
        ("''", "inherits must be a name or a path, got ''"),
    ],
)
def test_unknown_parents_are_refused(family, parent, message):
    (family.parent / "base.yaml").write_text("learner: x\n")
    (family / "mine.yaml").write_text(f"inherits: {parent}\n")
    assert refused("mine").startswith(f"{family}/mine.yaml: {message}")


def test_cycles_are_refused(family):
    (family / "_base.yaml").write_text("inherits: grandchild\n")
    end = "a file must not inherit from itself: grandchild -> child -> _base -> grandchild"
    assert refused("grandchild") == f"{family}/grandchild.yaml: {end}"
    (family / "self.yaml").write_text("inherits: ./self.yaml\n")
    assert refused("self").endswith("must not inherit from itself: self -> self")


def test_files_with_an_underscore_are_parents_only(family):
    assert "_base" not in list_configs("algs")
    assert {"child", "grandchild"} <= set(list_configs("algs"))
    assert refused("_base").startswith("unknown algorithm '_base'; ")
    assert refused("child", "_smac").startswith("unknown environment '_smac'; ")
    assert build_config(str(family / "_base.yaml"), "env.yaml")["lr"] == 0.1


def test_inherits_is_no_setting(family, files):
    (files / "more.yaml").write_text("inherits: child\n")
    with pytest.raises(ConfigError, match=r"^more\.yaml: unknown key 'inherits'"):
        grandchild("more.yaml")


def test_a_pymarl2_yaml_works_as_it_is(files):
    (files / "qmix_large.yaml").write_text(
        'action_selector: "epsilon_greedy"\nrunner: "parallel"\nbatch_size_run: 8\n'
        'buffer_size: 5000\nagent_output_type: q\nlearner: "nq_learner"\nmixer: "qmix"\n'
        "td_lambda: 0.6\nname: qmix_env=8_adam_td_lambda\n"
    )
    config = build_config("qmix_large.yaml", "env.yaml")
    assert config["name"] == "qmix_env=8_adam_td_lambda"
    default = load_file(CONFIG_DIR / "default.yaml")
    given = load_file(files / "qmix_large.yaml")
    env = load_file(files / "env.yaml")
    assert config == default | env | given | {"env_config": "env"}


# --- Where values come from ---


def test_origins(family, files):
    (family.parent / "scenarios" / "mine.yaml").write_text("child: {double_q: False}\n")
    (files / "more.yaml").write_text("obs_agent_id: False\n")
    updates = ["scenario=mine", "more.yaml", "env_args.size=9", "batch_size=4"]
    config, origins = trace_config("grandchild", "env.yaml", updates)
    assert config == grandchild(*updates)
    wanted = {
        "t_max": "env.yaml",
        "buffer_size": "default.yaml",
        "learner": "algs/_base.yaml",
        "rates.fast": "algs/_base.yaml",
        "rates.slow": "algs/child.yaml",
        "lr": "algs/grandchild.yaml",
        "name": "algs/grandchild.yaml",
        "env_config": "the name of env.yaml",
        "double_q": "scenarios/mine.yaml, child",
        "obs_agent_id": "more.yaml",
        "env_args.size": "the command line",
        "env_args.map_name": "env.yaml",
        "batch_size": "the command line",
        "scenario": "the command line",
        "seed": "the system's random numbers",
    }
    assert {key: origins[key] for key in wanted} == wanted


def test_what_is_described_is_the_config(family, files):
    updates = ["seed=3", "label=007", "grad_norm_clip=inf", "plugins=[]", "rates.fast=1e-9"]
    config, origins = trace_config("grandchild", "env.yaml", updates)
    text = describe_config(config, origins)
    assert yaml.safe_load(text) == config
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "label: '007' # from the command line" in lines
    assert "lr: 1.0 # from algs/grandchild.yaml" in lines
    assert "rates:" in lines
    assert "slow: 0.3 # from algs/child.yaml" in lines
    keys = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert keys == list(config)
    (files / "again.yaml").write_text(text)
    assert grandchild("again.yaml") == config


# --- Seed, device, folders ---


def test_seed_is_drawn_and_passed_on(files):
    drawn = set()
    for _ in range(20):
        config = build()
        set_seed(config)
        assert 0 <= config["seed"] < 2**31
        assert config["env_args"]["seed"] == config["seed"]
        drawn.add(config["seed"])
    assert len(drawn) == 20
    config = build("seed=7")
    set_seed(config)
    assert (config["seed"], config["env_args"]["seed"]) == (7, 7)


def test_resolve_device_falls_back_with_one_warning(monkeypatch, caplog):
    import torch

    log = logging.getLogger("test")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = {"use_cuda": True}
    assert resolve_device(config, log) == "cpu"
    assert config["use_cuda"] is False
    assert len(caplog.records) == 1
    assert resolve_device(config, log) == "cpu"
    assert len(caplog.records) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(config, log) == "cpu"
    assert resolve_device({"use_cuda": True}, log) == "cuda"


def test_results_dir(files):
    assert results_dir(build()) == Path("results/sacred/alg/3m")
    (files / "env.yaml").write_text(
        "env: x\nenv_args: {map_name: null, key: 'pettingzoo.mpe:simple'}\n"
    )
    assert results_dir(build("local_results_path=/data")) == Path(
        "/data/sacred/alg/pettingzoo.mpe-simple"
    )
    (files / "env.yaml").write_text("env: x\nenv_args: {map_name: 4, key: ''}\n")
    assert results_dir(build("name=../../etc")) == Path("results/sacred/etc/env")


@pytest.mark.parametrize(
    ("name", "safe"),
    [("3m", "3m"), ("a/b c", "a-b-c"), ("../x", "x"), ("...", "unnamed"), ("x=1,y", "x=1-y")],
)
def test_safe_name(name, safe):
    assert safe_name(name) == safe


def test_check_results_folder_leaves_nothing_behind(tmp_path):
    check_results_folder(tmp_path / "new" / "results")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    check_results_folder(tmp_path / "old")
    assert list((tmp_path / "old").iterdir()) == []


def test_check_results_folder_under_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=r"^results folder .*file/results: cannot write there \(Not a directory\)[^\n]*$",
    ):
        check_results_folder(tmp_path / "file" / "results")


def test_check_results_folder_on_a_full_disk(tmp_path, monkeypatch):
    written = []

    def full(fd):
        written.append(os.fstat(fd).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(config_module.os, "fsync", full)
    with pytest.raises(
        UserError,
        match=r"^results folder [^\n]*: no space left: free some or set local_results_path",
    ):
        check_results_folder(tmp_path / "results")
    assert written == [64 * 1024]
    assert list(tmp_path.iterdir()) == []


def test_is_disk_full_looks_at_causes():
    outer = RuntimeError("while writing")
    outer.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert config_module.is_disk_full(outer)
    assert not config_module.is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not config_module.is_disk_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not config_module.is_disk_full(None)


def test_is_disk_full_knows_how_torch_says_it(tmp_path):
    import torch

    # The largest file that this process may write plays the full disk, in a process of its own.
    script = (
        "import resource, signal, sys, torch\n"
        "from utils.config import is_disk_full\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40960, 40960))\n"
        "try:\n"
        "    torch.save({'x': torch.zeros(100000)}, sys.argv[1])\n"
        "except RuntimeError as exc:\n"
        "    sys.exit(0 if is_disk_full(exc) else repr(exc))\n"
        "sys.exit('it was written')\n"
    )
    source = Path(config_module.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.pt")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(RuntimeError) as caught:
        torch.load(_torn(tmp_path), weights_only=True)
    assert not config_module.is_disk_full(caught.value)


def _torn(folder):
    import torch

    path = folder / "torn.pt"
    torch.save({"x": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    return path


def test_paths_may_start_with_a_tilde(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert build("local_results_path=~/r")["local_results_path"] == f"{files}/r"
    assert SimpleNamespace(**build()).resume == ""
