"""docs/architecture.md, followed as a newcomer would: its table "Where do I change X?" names the
sections with a learner, a controller, an environment and an experiment to copy; each trains.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from experiments import spec
from experiments.__main__ import main as experiments

import main as main_module
from api import Run
from isolation import undisturbed

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
CONTRACTS = ROOT / "docs" / "reference" / "contracts.md"
SHORT = {
    "t_max": 200,
    "seed": 1,
    "use_cuda": False,
    "runner": "episode",
    "batch_size_run": 1,
    "test_interval": 100,
    "test_nepisode": 2,
    "learner_log_interval": 20,
    "batch_size": 2,
    "rnn_hidden_dim": 8,
    "save_model": False,
}


# -- The pages -------------------------------------------------------------------------------------


def table():
    """What one wants to change -> the other two columns, in Markdown."""
    section = section_of(PAGE, "where-do-i-change-x")
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {what.strip(): " | ".join(rest) for what, *rest in rows[2:]}


def anchor(heading):
    """As GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def section_of(path, name):
    """The section of a page with this anchor."""
    sections = re.split(
        r"^##+ (.*)\n", re.sub(r"\A", "## \n", path.read_text()), flags=re.MULTILINE
    )
    (found,) = [
        text
        for heading, text in zip(sections[1::2], sections[2::2], strict=True)
        if anchor(heading) == name
    ]
    return found


def links(text, page=PAGE):
    """(file, anchor) of the links to other pages and to this one; the anchor may be empty."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose)
    return [(page.parent / file if file else page, name) for file, name in found]


def linked_files(row):
    """Name -> content of the files in the sections that a row of the table links to."""
    files = {}
    for page, name in links(table()[row]):
        blocks = re.findall(
            r"```(?:python|yaml)\n# (\w+\.(?:py|yaml))(.*?)```", section_of(page, name), re.DOTALL
        )
        assert blocks, f"{page}#{name} shows no file"
        files |= {file: f"# {file}{rest}" for file, rest in blocks}
    return files


@pytest.mark.parametrize(
    "page", [PAGE, CONTRACTS, PAGE.parent / "plugins.md"], ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    found = links(page.read_text(), page)
    assert found
    for file, name in found:
        assert file.is_file(), file
        assert not name or section_of(file, name)


def test_what_the_contracts_name_is_there():
    """Modules, by path below src/ or below the folder that their section is about."""
    found = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", CONTRACTS.read_text())
    of_runs = ("results/", "checkpoints/", "tb/", "wandb/")
    paths = [path for path in found if not path.startswith(of_runs)]
    folders = [ROOT / "src", ROOT / "src" / "config", ROOT / "src" / "envs" / "starcraft", ROOT]
    assert len(paths) > 50
    assert [path for path in paths if not any((top / path).exists() for top in folders)] == []


def test_what_the_page_names_is_there():
    """Files and folders, and the functions and attributes that the table tells to change."""
    page = PAGE.read_text()
    paths = re.findall(r"`((?:src|tests|experiments|benchmarks)/[\w/.]*)`", page)
    parts = re.findall(r"^\| `([^|]*)` \|", page, re.MULTILINE)
    paths += [f"src/{name}" for row in parts for name in row.split("`, `") if len(name) > 1]
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for name in ("_draw", "_updates_due", "_collect", "scheme_of", "log_means", "_build_inputs"):
        assert f"`{name}" in page or f".{name}" in page
        assert f"def {name}(" in code


def test_the_parts_are_those_in_src():
    parts = re.findall(r"^\| `(.*?)` \|", section_of(PAGE, "the-parts"), re.MULTILINE)
    named = {name.strip("/") for row in parts for name in row.split("`, `")}
    there = {path.name for path in (ROOT / "src").iterdir() if not path.name.startswith(("_", "."))}
    assert named == {name for name in there if not name.endswith(".egg-info")}


def test_the_table_has_ten_changes():
    rows = table()
    assert len(rows) >= 10
    assert all(place.strip() and len(place) > 20 for place in rows.values())


# -- The four changes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the user's files; modules and the path are put back afterwards."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "experiments").mkdir()
    for row in ("a learner", "a controller", "an environment"):
        for name, content in linked_files(row).items():
            (folder / name).write_text(content)
    for name, content in linked_files("an experiment").items():
        (folder / "experiments" / name).write_text(content)
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if folder in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


def series(folder, key):
    """The values of a figure in the one run below a folder."""
    (file,) = folder.rglob("metrics.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return [line["value"] for line in lines if line["key"] == key]


def test_a_learner(project, monkeypatch):
    """With the first command of the linked page, for a short time."""
    (page, _), *_ = links(table()["a learner"])
    _, program, *words = shlex.split(
        re.search(r"```bash\n(python src/main\.py .*?)\n```", page.read_text()).group(1)
    )
    assert program == "src/main.py"
    assert "plugins=[my_learner.py]" in words
    monkeypatch.chdir(project)
    short = [f"{key}={value}" for key, value in SHORT.items()]
    with undisturbed():
        code = main_module.main(
            [*words, *short, "env_args.episode_limit=20", "local_results_path=learner"]
        )
    assert code == 0
    losses = series(project / "learner", "loss")
    assert len(losses) >= 2
    assert len(set(losses)) == len(losses)
    assert len(series(project / "learner", "grad_norm")) == len(losses)
    assert not series(project / "learner", "loss_td")  # of the built-in Q-learner
    assert len(series(project / "learner", "test_return_mean")) >= 2


def test_a_controller(project):
    plugins = [str(project / "my_parts.py")]
    settings = {**SHORT, "env_args": {"episode_limit": 20}, "mac": "TimeMAC"}
    run = Run("qmix", "predator_prey", plugins=plugins, observe=False, **settings)
    run.train()
    assert type(run.mac).__name__ == "TimeMAC"
    args = run.mac.args
    without_time = args.obs_shape + args.n_actions + args.n_agents
    assert run.mac.agent.fc1.in_features == without_time + 1
    assert len(run.metrics("loss_td").values) >= 2
    # The agents learn from the time: its column of the first layer has had a gradient.
    assert run.mac.agent.fc1.weight.grad[:, -1].abs().max() > 0
    run.close()


def test_an_environment(project):
    """Its returns are counts of guessed numbers: whole, and at most one per step."""
    plugins = [str(project / "my_env.py")]
    run = Run("iql", str(project / "my_env.yaml"), plugins=plugins, observe=False, **SHORT)
    run.train()
    assert run.config["name"] == "iql"
    assert run.config["env_config"] == "my_env"
    assert (run.metrics("test_ep_length_mean").values == 5).all()
    returns = run.metrics("test_return_mean").values
    assert len(returns) >= 2
    assert ((returns >= 0) & (returns <= 5) & (2 * returns % 1 == 0)).all()
    assert len(run.metrics("loss_td").values) >= 2
    run.close()


def test_an_experiment(project, monkeypatch, capsys):
    """The user's file lies in `experiments/`, and the command is given beside the other files."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(spec, "ROOT", project)
    monkeypatch.setattr(spec, "FOLDER", project / "experiments")
    experiments(["list"])
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"my_experiment +0/12 runs  .*beside IQL", line)
    short = [f"{key}={value}" for key, value in SHORT.items() if key not in ("t_max", "seed")]
    part = ["my_experiment", "--only", "mine", "--tasks", "three agents", "--seeds", "1"]
    experiments(["run", *part, "--t-max", "200", "with", *short])
    assert "| three agents | mine | 1 |" in capsys.readouterr().out
    results = project / "results" / "my_experiment"
    assert len(series(results, "loss")) >= 2
    (config,) = (json.loads(file.read_text()) for file in results.rglob("config.json"))
    assert (config["learner"], config["env_args"]["n_agents"]) == ("my_learner", 3)
    assert (results / "report" / "my_experiment" / "curves.png").stat().st_size > 1000
