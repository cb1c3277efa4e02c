"""Plug-ins from outside the tree: what they define is found by its interface and registered."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_fixtures import REGISTRIES

import envs
import learners
import plugins as plugins_module
from plugins import load_plugins, needed_by_environments
from utils.errors import ConfigError

SRC = Path(plugins_module.__file__).resolve().parent

LEARNER = """
class {name}:
    def __init__(self, mac, scheme, logger, args): pass
    def train(self, batch, t_env, episode_num): pass
    def cuda(self): pass
    def save_models(self, path): pass
    def load_models(self, path): pass
"""
ENV = """
from envs.multiagentenv import MultiAgentEnv
class {name}(MultiAgentEnv):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; registries, imported modules and the path are put back
    afterwards.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    saved = {kind: dict(registry) for kind, registry in REGISTRIES.items()}
    imported = set(sys.modules)
    yield tmp_path
    for kind, registry in REGISTRIES.items():
        registry.clear()
        registry.update(saved[kind])
    for name in set(sys.modules) - imported:
        del sys.modules[name]


def added(kind, before=frozenset()):
    return set(REGISTRIES[kind]) - before


@pytest.fixture
def new(folder):
    """Names that a kind of plug-in has got since the start of the test."""
    before = {kind: set(registry) for kind, registry in REGISTRIES.items()}
    return lambda: {
        kind: added(kind, before[kind]) for kind in REGISTRIES if added(kind, before[kind])
    }


def refusal(*names):
    with pytest.raises(ConfigError) as caught:
        load_plugins(list(names))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_is_known_by_its_interface(folder, new):
    (folder / "zoo.py").write_text(
        LEARNER.format(name="MyLearner")
        + ENV.format(name="MyEnv")
        + """
import torch
from torch import nn
from envs.vector_env import VectorEnv

class MyVectorEnv(VectorEnv):
    pass

class MyMAC:
    def select_actions(self, ep_batch, t_ep, t_env, bs=slice(None), test_mode=False): pass
    def init_hidden(self, batch_size): pass

class MySelector:
    def select_action(self, agent_inputs, avail_actions, t_env, test_mode=False): pass

class MyRunner:
    def setup(self, scheme, groups, preprocess, mac): pass
    def run(self, test_mode=False): pass
    def get_env_info(self): pass

class MyAgent(nn.Module):
    def init_hidden(self): pass
    def forward(self, inputs, hidden): pass

class MyMixer(nn.Module):
    def forward(self, qs, states): pass

class MyCritic(nn.Module):
    def forward(self, batch): pass

class JustALayer(nn.Module):
    pass

class _Private(MyEnv):
    pass

class Helper:
    def train(self): pass
"""
    )
    load_plugins(["zoo"])
    zoo = sys.modules["zoo"]
    assert new() == {
        "learner": {"MyLearner", "zoo"},
        "controller": {"MyMAC", "zoo"},
        "selector": {"MySelector", "zoo"},
        "runner": {"MyRunner", "zoo"},
        "agent": {"MyAgent", "zoo"},
        "mixer": {"MyMixer", "zoo"},
        "critic": {"MyCritic", "zoo"},
        "env": {"MyEnv", "MyVectorEnv"},  # two environments: neither has the module's name
        "vector_env": {"MyVectorEnv"},
    }
    assert learners.REGISTRY["zoo"] is zoo.MyLearner
    assert envs.VECTOR_REGISTRY["MyVectorEnv"] is zoo.MyVectorEnv


def test_a_batched_environment_has_both_interfaces(folder, new):
    (folder / "fast.py").write_text(
        "from envs.vector_env import VectorEnv\nclass Fast(VectorEnv):\n    pass\n"
    )
    load_plugins(["fast"])
    assert new() == {"vector_env": {"Fast", "fast"}, "env": {"Fast", "fast"}}


def test_the_modules_name_is_used_only_for_the_only_one(folder, new):
    package = folder / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "two.py").write_text(LEARNER.format(name="One") + LEARNER.format(name="Two"))
    (package / "one.py").write_text(LEARNER.format(name="Only") + "from pack.two import One\n")
    load_plugins(["pack.two", "pack.one"])
    assert new() == {"learner": {"One", "Two", "Only", "one"}}


def test_a_package_registers_what_it_gathers(folder, new):
    package = folder / "pack"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from pack.inner import Mine\nfrom learners import REGISTRY\n"
    )
    (package / "inner.py").write_text(LEARNER.format(name="Mine"))
    load_plugins(["pack"])
    assert new() == {"learner": {"Mine", "pack"}}


def test_files_by_path_and_the_files_beside_them(folder, new, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "my_learner.py").write_text("import beside\n" + LEARNER.format(name="Mine"))
    (elsewhere / "beside.py").write_text("x = 1\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "near_learner.py").write_text(LEARNER.format(name="Near"))
    load_plugins([str(elsewhere / "my_learner.py"), "sub/near_learner.py"])
    assert new() == {"learner": {"Mine", "my_learner", "Near", "near_learner"}}
    assert sys.modules["my_learner"].__file__ == str(elsewhere / "my_learner.py")


def test_a_mixer_may_be_known_by_its_file(folder, new):
    (folder / "weird_mixer.py").write_text(
        "from torch import nn\nclass Weird(nn.Module):\n    pass\n"
    )
    load_plugins(["weird_mixer"])
    assert new() == {"mixer": {"Weird", "weird_mixer"}}


def test_an_environment_without_our_base_class(folder, new):
    methods = "".join(f"    def {name}(self, *a): pass\n" for name in plugins_module._ENV_METHODS)
    (folder / "duck.py").write_text(f"class Duck:\n{methods}")
    load_plugins(["duck"])
    assert new() == {"env": {"Duck", "duck"}}


def test_names_that_the_plugin_chose_are_kept(folder, new):
    (folder / "q_learner.py").write_text(
        "from learners import register\n@register('my_q')\n" + LEARNER.format(name="QQ").lstrip()
    )
    ours = learners.REGISTRY["q_learner"]
    load_plugins(["q_learner"])
    assert new() == {"learner": {"my_q", "QQ"}}
    assert learners.REGISTRY["q_learner"] is ours


def test_a_name_that_is_taken_is_the_plugins_with_a_line(folder, caplog):
    (folder / "q_learner.py").write_text(LEARNER.format(name="QQ"))
    load_plugins(["q_learner"])
    assert learners.REGISTRY["q_learner"] is sys.modules["q_learner"].QQ
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [
        "plugin q_learner: learner 'q_learner' is the plug-in's now, in place of the built-in one"
    ]


def test_loading_twice_changes_nothing(folder, new, caplog):
    (folder / "mine.py").write_text(LEARNER.format(name="Mine"))
    load_plugins(["mine"])
    first = new()
    load_plugins(["mine", "./mine.py"])
    assert new() == first
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_plugin_without_anything_is_a_warning(folder, caplog):
    (folder / "empty.py").write_text("x = 1\n")
    load_plugins(["empty"])
    assert "plugin empty: no learner, controller, environment, ... found in it" in caplog.text


def test_what_is_added_is_logged(folder, caplog):
    caplog.set_level(logging.INFO)
    (folder / "mine.py").write_text(LEARNER.format(name="Mine"))
    load_plugins(["mine"])
    assert caplog.messages == ["plugin mine: learner 'Mine', learner 'mine'"]


def test_errors_are_one_line(folder):
    assert refusal("not_there").startswith(f"plugins: no module 'not_there' in {folder}")
    assert refusal("not_there.inner").startswith("plugins: no module 'not_there'")
    assert refusal("not/there.py") == f"plugins: no such file: {folder}/not/there.py"
    (folder / "needy.py").write_text("import not_installed_either\n")
    assert (
        refusal("needy")
        == "plugins: 'needy' needs a module that is not installed: 'not_installed_either'"
    )
    (folder / "broken.py").write_text("x = 1\nraise ValueError('first\\nsecond')\n")
    assert refusal("broken") == (
        f"plugins: 'broken' cannot be imported: ValueError: first ({folder}/broken.py, line 2)"
    )
    (folder / "typo.py").write_text("def f(:\n    pass\n")
    assert "cannot be imported: SyntaxError: " in refusal("typo")


def test_environment_workers_do_not_load_torch(folder):
    (folder / "worker_env.py").write_text(
        ENV.format(name="WorkerEnv") + LEARNER.format(name="AlsoALearner")
    )
    script = (
        "import sys\n"
        "from plugins import load_plugins\n"
        "load_plugins(['worker_env'])\n"
        "from envs import REGISTRY\n"
        "assert REGISTRY['worker_env'].__name__ == REGISTRY['WorkerEnv'].__name__ == 'WorkerEnv'\n"
        "sys.exit('torch' in sys.modules or 'learners' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_environment_workers_load_only_what_they_need(folder):
    (folder / "only_learner.py").write_text("import torch\n" + LEARNER.format(name="OnlyLearner"))
    (folder / "an_env.py").write_text(ENV.format(name="AnEnv"))
    (folder / "both.py").write_text(LEARNER.format(name="BothLearner") + ENV.format(name="BothEnv"))
    (folder / "side_effect.py").write_text("import gymnasium\n")
    names = ["only_learner", "an_env.py", "both", "side_effect"]
    load_plugins(names)
    assert needed_by_environments(names) == ["an_env.py", "both", "side_effect"]
