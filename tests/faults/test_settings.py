"""Settings and files that make no sense: one line, exit code 2, nothing written."""

import json
import sys
import types

import pytest
import yaml
from console_fixtures import fresh_console  # noqa: F401

import main as main_module
from utils.config import CONFIG_DIR, RANGES, safe_name

pytestmark = pytest.mark.usefixtures("fresh_console")
DEFAULTS = yaml.safe_load((CONFIG_DIR / "default.yaml").read_text())
OF_THE_TYPE = {
    bool: ("maybe", "2", "[1]"),
    int: ("abc", "1.5", "[1]"),
    float: ("abc", "nan", "[1]"),
    dict: ("3", "abc"),
}
BELOW = {
    key: value for key, value in DEFAULTS.items() if key in RANGES and type(value) in (int, float)
}
SETTINGS = [
    *(
        f"{key}={bad}"
        for key, value in DEFAULTS.items()
        for bad in OF_THE_TYPE.get(type(value), ())
    ),
    *(f"{key}=-7" for key in BELOW),
    *(f"{'n' * 300}=1", f"resume={'r' * 300}", f"checkpoint_path={'c' * 300}"),
    *(f"resume=/{'/r' * 3000}", f"checkpoint_path=/{'/c' * 3000}", f"scenario={'s' * 300}"),
    *(f"scenario={'s' * 300}.yaml", f"{'f' * 300}.yaml", "env_args=" + "[" * 5000),
    *("label=" + "[" * 150 + "]" * 150, "t_max=" + "9" * 5000, "t_max=1e999", "seed=-1"),
    *("seed=4294967296", "observers.redis.url=x", "observers.sql=3", "=3", "a..b=3", ".=1"),
]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A folder with two yaml files; trainings would count as success."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alg.yaml").write_text("learner: my_learner\n")
    (tmp_path / "env.yaml").write_text("env: my_env\nenv_args: {map_name: 3m}\n")
    module = types.ModuleType("session")
    module.run = lambda *args, **kwargs: 1.0
    monkeypatch.setitem(sys.modules, "session", module)
    return tmp_path


def refused(capsys, *argv):
    assert main_module.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    return err


COMMAND = ("--config=alg.yaml", "--env-config=env.yaml", "with")


def test_there_are_enough():
    assert len(SETTINGS) >= 100


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[:40])
def test_a_setting(nowhere, capsys, setting):
    refused(capsys, *COMMAND, setting)
    assert sorted(path.name for path in nowhere.iterdir()) == ["alg.yaml", "env.yaml"]


def bomb(levels=9):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


FILES = {
    "an alias bomb": bomb(),
    "a list within itself": "label: &a [*a]",
    "a mapping within itself": "env_args: &a {b: *a}",
    "deep lists": "label: " + "[" * 3000 + "]" * 3000,
    "deep mappings": "{a: " * 3000 + "1" + "}" * 3000,
    "a date that is none": "label: 2001-99-99",
    "a long number": "t_max: " + "9" * 5000,
    "no mapping": "- 1\n- 2",
    "a number": "7",
    "numbers as keys": "1: 2",
    "not yaml": "a: [1",
    "a tab": "a:\n\t- 1",
    "a python object": "a: !!python/object/apply:os.system ['true']",
    "a control character": "a: \x01",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("place", ["alg.yaml", "env.yaml", "more.yaml"])
@pytest.mark.parametrize("name", FILES)
def test_a_file(nowhere, capsys, name, place):
    (nowhere / place).write_text(FILES[name])
    files = [] if place != "more.yaml" else ["more.yaml"]
    assert place in refused(capsys, *COMMAND, *files)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"t_max": ' + b"9" * 5000])
def test_a_json_file(nowhere, capsys, content):
    (nowhere / "more.json").write_bytes(content)
    assert "more.json" in refused(capsys, *COMMAND, "more.json")


@pytest.mark.parametrize("option", ["--config", "--env-config"])
@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + ".yaml", "/" * 5000 + "x.yaml", "."])
def test_a_name(nowhere, capsys, option, name):
    words = {"--config": "alg.yaml", "--env-config": "env.yaml", option: name}
    refused(capsys, *(f"{key}={value}" for key, value in words.items()))


def test_a_long_name_of_a_map_is_cut_for_its_folder(nowhere):
    assert main_module.main([*COMMAND, f"env_args.map_name={'m' * 300}", f"name={'é' * 300}"]) == 0
    (folder,) = nowhere.glob("results/sacred/*/*/1")
    assert all(len(part.encode()) <= 200 for part in folder.parts[-3:])
    assert safe_name("m" * 300) != safe_name("m" * 301)


ODD_RUNS = {
    "nothing": {},
    "a list": {"config.json": "[]", "metrics.jsonl": "[]"},
    "deep": {"config.json": "[" * 100_000, "metrics.jsonl": "[" * 100_000 + "\n"},
    "no env": {"config.json": "{}", "metrics.jsonl": '{"t": 1, "key": "a", "value": 1}\n'},
    "text": {"config.json": '{"name": "x"}', "metrics.jsonl": "hello\n"},
    "other types": {
        "config.json": '{"name": [1], "env": {}, "env_args": 3, "seed": [1]}',
        "metrics.jsonl": '{"t": "x", "key": 1, "value": {}}\n',
    },
    "huge": {
        "config.json": '{"name": "x", "env_args": {}}',
        "metrics.jsonl": '{"t": 1e99, "key": "test_return_mean", "value": 1e999}\n',
    },
    "huge step": {
        "config.json": '{"name": "x", "env": "e", "env_args": {"map_name": "m"}, "seed": 1}',
        "metrics.jsonl": f'{{"t": {2**70}, "key": "test_return_mean", "value": 1}}\n',
    },
    "odd info": {"config.json": '{"name": "x"}', "info.json": '{"a": 3, "a_T": "b", "b_T": [1]}'},
    "bytes": {"config.json": "{}", "metrics.jsonl": "\udcff\udcfe"},
}


@pytest.mark.parametrize("kind", ODD_RUNS)
def test_a_report_on_anything(nowhere, capsys, kind):
    folder = nowhere / "results" / "1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("null")
    for name, text in ODD_RUNS[kind].items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main_module.main(["report", "results"]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


ODD_CONFIGS = {
    "name a list": {"name": [1, 2]},
    "seed a list": {"seed": [1]},
    "seed a mapping": {"seed": {"a": 1}},
    "env_args a number": {"env_args": 3},
    "map a mapping": {"env_args": {"map_name": {"a": 1}}},
    "env a list": {"env": [1]},
    "keys of all kinds": {"lr": [1, {"a": None}], "": 3, "a.b": 4},
    "name with markup": {"name": "[bold]|$x_1$\n<b>"},
    "long name": {"name": "n" * 3000},
}


@pytest.mark.parametrize("kind", ODD_CONFIGS)
def test_a_report_on_odd_settings(nowhere, capsys, kind):
    good = {"name": "x", "env": "e", "env_args": {"map_name": "m"}, "seed": 1}
    for number, config in enumerate([good, {**good, "seed": 2, **ODD_CONFIGS[kind]}]):
        folder = nowhere / "results" / str(number)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        lines = [{"t": t, "key": "test_return_mean", "value": t / 7} for t in range(0, 90, 10)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert main_module.main(["report", "results", "--resamples", "20"]) == 0
    assert "Traceback" not in capsys.readouterr().err
