"""The README keeps its limits; links lead somewhere; the commands of README and guide are valid."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from plugin_fixtures import plugins_forgotten

import main as main_module

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_COMMANDS = [
    ROOT / "README.md",
    *sorted((DOCS / "guide").glob("*.md")),
    *sorted((DOCS / "algorithms").glob("*.md")),
]


def name(path):
    return path.relative_to(ROOT).as_posix()


def prose(text):
    """A page without code, in blocks and in lines."""
    text = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


# --- Limits of the README ---


def limits_broken(text):
    """What is wrong with a README: its length, numerals, long lines, long cells."""
    lines = text.splitlines()
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")]
    numerals = len(re.findall(r"\d[\d.,]*", text))
    wrong = [f"{len(lines)} lines"] if len(lines) > 150 else []
    wrong += [f"{numerals} numerals"] if numerals > 120 else []
    wrong += [line for line in lines if len(line) > 120]
    return wrong + [cell for cell in cells if len(cell) > 100]


def test_the_readme_is_short():
    assert limits_broken((ROOT / "README.md").read_text()) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("line\n" * 150, 0),
        ("line\n" * 151, 1),
        ("1 " * 50 + "\n" + "1,000.5 " * 15 + "\n" + "x2 " * 40, 0),
        ("1 " * 60 + "\n" + "2 " * 60 + "\n3", 1),
        ("x" * 121, 1),
        (f"| a | {'x' * 100} |", 0),
        (f"| a | {'x' * 101} |", 1),
    ],
)
def test_what_is_too_much(text, wrong):
    assert len(limits_broken(text)) == wrong


# --- Links ---


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        file = target.partition("#")[0]
        if "://" not in target and file and not (page.parent / file).exists():
            missing.append(target)
    assert missing == []


def leaves(nav):
    """All pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [leaf for part in parts for leaf in leaves(part)]


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = leaves(yaml.safe_load(text[text.index("\nnav:") :])["nav"])
    assert len(listed) == len(set(listed)) > 25
    assert set(listed) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_every_algorithm_is_on_a_page():
    """Also the variants: their names stand in code, in a page of docs/algorithms."""
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "algorithms").glob("*.md"))
    known = {
        path.stem
        for path in (ROOT / "src" / "config" / "algs").glob("*.yaml")
        if not path.stem.startswith("_")
    }
    assert {each for each in known if f"`{each}`" not in text} == set()


# --- Commands ---


def commands():
    """(page, words) of every command line in a bash block."""
    found = []
    for page in WITH_COMMANDS:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    found.append(pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}"))
    return found


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A folder with the files that the pages tell the reader to write."""
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    for file, block in re.findall(
        r"```(?:python|yaml)\n# (\w+\.(?:py|yaml))(.*?)```", text, re.DOTALL
    ):
        (tmp_path / file).write_text(f"# {file}{block}", encoding="utf-8")
    found = tmp_path / "results" / "mine" / "best.yaml"  # by a search
    found.parent.mkdir(parents=True)
    found.write_text("inherits: qmix\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with plugins_forgotten(tmp_path):
        yield tmp_path


def check_training(words, capsys):
    """The settings of a run are valid, but for those that need the folder of an earlier run."""
    if words[0].startswith("--c"):
        words = ["print_config", *words]
    if words[0] == "play":
        assert not words[1].startswith("zoo/") or (ROOT / words[1] / "policy.json").is_file()
        return
    if words[0] != "print_config":
        assert words[0] in {"doctor", "report", "search", "export", "--help"}
        return
    words = [str(ROOT / word) if word.startswith("zoo/") else word for word in words]
    earlier = ("resume=", "evaluate=", "checkpoint_path=")
    words = [word for word in words if not word.startswith(earlier)]
    assert main_module.main(words) == 0, capsys.readouterr().err
    assert "t_max:" in capsys.readouterr().out


def check_experiment(words):
    experiments = {path.stem for path in (ROOT / "experiments").glob("[!_]*.yaml")}
    assert words[0] in {"list", "run", "report", "publish"}
    assert words[0] == "list" or words[1] in experiments


def check_installation(words):
    """`pip install` with a requirements file or extras that exist."""
    from setuptools import Distribution
    from setuptools.config.pyprojecttoml import apply_configuration

    if words[0] == "-r":
        assert (ROOT / words[1]).is_file()
        return
    assert words[0] == "-e"
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[1])
    assert extras is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        known = apply_configuration(Distribution(), ROOT / "pyproject.toml").extras_require
    assert set(filter(None, (extras[1] or "").split(","))) <= set(known)


OTHER_PROGRAMS = {"docker", "mlflow", "npm", "omniboard", "pip", "wandb"}


@pytest.mark.parametrize("words", commands())
def test_commands_are_valid(words, own_files, capsys):
    if words[:2] == ["python", "src/main.py"]:
        check_training(words[2:], capsys)
    elif words[:3] == ["python", "-m", "experiments"]:
        check_experiment(words[3:])
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["pip", "install"]:
        check_installation(words[2:])
    elif words[:3] != ["python", "-m", "venv"]:
        assert words[0].removeprefix("mlflow-page/bin/") in OTHER_PROGRAMS


def test_there_are_commands():
    assert len(commands()) > 30


@pytest.mark.parametrize(
    "line",
    [
        "--config=qmix --env-config=predator_prey with t_max=20000 seed=1 runner=vector",
        "--config=iql --env-config=predator_prey with plugins=[my_learner.py] learner=my_learner",
    ],
)
def test_the_first_commands_train(line, own_files):
    """With fewer steps; they stand in the README or the guide as they are here."""
    assert any(line in page.read_text(encoding="utf-8") for page in WITH_COMMANDS)
    words = [word for word in line.split() if not word.startswith("t_max=")]
    short = ["t_max=200", "test_nepisode=1", "use_cuda=False", "save_model=False"]
    assert main_module.main([*words, *short]) == 0
    assert list(own_files.rglob("metrics.jsonl"))


def test_the_guide_shows_the_documented_learner(own_files):
    learner = (own_files / "my_learner.py").read_text(encoding="utf-8")
    for page in (ROOT / "README.md", DOCS / "guide" / "own_algorithm.md"):
        assert f"```python\n{learner}```" in page.read_text(encoding="utf-8")
