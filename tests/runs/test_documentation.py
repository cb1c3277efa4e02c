"""The README keeps its limits; links lead somewhere; the commands of README and guide are valid."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from plugin_fixtures import plugins_forgotten

import main as main_module
from utils.config import build_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_COMMANDS = PAGES


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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_be_filled_in(page):
    """No paragraph is one word in capitals."""
    assert re.findall(r"^(?:[A-Z]{4,}|TODO.*|TBD.*)$", prose(page.read_text("utf-8")), re.M) == []


def test_every_picture_is_shown():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = [path.name for path in (DOCS / "img").iterdir()]
    assert [picture for picture in pictures if f"img/{picture})" not in text] == []


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
    (tmp_path / "zoo").symlink_to(ROOT / "zoo")
    monkeypatch.chdir(tmp_path)
    with plugins_forgotten(tmp_path):
        yield tmp_path


def check_training(words, capsys):
    """The settings of a run are valid; the folder of an earlier run need not be one."""
    if words[0].startswith("--c"):
        words = ["print_config", *words]
    if words[0] == "play":
        assert not words[1].startswith("zoo/") or (ROOT / words[1] / "policy.json").is_file()
        return
    if words[0] != "print_config":
        assert words[0] in {"--help", *re.findall(r"src/main\.py (\w+)", main_module.USAGE)}
        return
    words = [word for word in words if not word.startswith("resume=")]
    for word in words:
        if word.startswith("checkpoint_path="):
            Path(word.partition("=")[2]).mkdir(parents=True, exist_ok=True)
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


OTHER_PROGRAMS = {"docker", "mlflow", "npm", "omniboard", "pip", "ray", "wandb"}


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
    elif words[0] == "source":
        assert words[1:] == [".venv/bin/activate"]
    elif words[:2] == ["pip", "install"]:
        check_installation(words[2:])
    elif words[:3] != ["python", "-m", "venv"]:
        assert words[0].removeprefix("mlflow-page/bin/") in OTHER_PROGRAMS


def test_there_are_commands():
    assert len(commands()) > 30


# --- The same commands, carried out ---

SHORT = ["t_max=1", "test_nepisode=1", "use_cuda=False"]
# What an environment needs that `pip install -r requirements.txt` does not bring.
PACKAGES = {
    "gymma": "mpe2", "pursuit": "pettingzoo", "multiwalker": "Box2D", "smax": "jaxmarl",
    "vmas": "vmas", "mamujoco": "gymnasium_robotics", "overcooked": "overcooked_ai_py",
    "battle": "magent2", "gfootball": "gfootball",
    "sc2": "the game", "sc2v2": "the game", "sc2hard": "the game",
}  # fmt: skip
# Episodes of 100 steps and more, or large ones, become short.
LONG = {
    "pursuit": "time_limit", "multiwalker": "time_limit", "battle": "time_limit",
    "mamujoco": "time_limit", "overcooked": "time_limit", "vmas": "time_limit",
    "gfootball": "time_limit", "rware": "time_limit", "treasure_collection": "episode_limit",
}  # fmt: skip
QUICK = {"README", *(path.stem for path in (DOCS / "guide").glob("*.md"))}


def trainings():
    """The command lines that train or evaluate; those outside of README and guide are slow, those
    with Ray belong to the tests on clusters.
    """
    found = []
    for command in commands():
        (words,), page = command.values, command.id.partition(":")[0]
        if words[:2] == ["python", "src/main.py"] and words[2].startswith("--config="):
            marks = [] if page in QUICK else [pytest.mark.slow]
            marks = [pytest.mark.cluster] if "runner=ray" in words else marks
            found.append(pytest.param(words[2:], id=command.id, marks=marks))
    return found


def environment_of(words):
    (name,) = (word[13:] for word in words if word.startswith("--env-config="))
    return name


def runner_of(words):
    chosen = [word[7:] for word in words if word.startswith("runner=")]
    (algorithm,) = (word[9:] for word in words if word.startswith("--config="))
    return chosen[0] if chosen else build_config(algorithm, environment_of(words), [])["runner"]


def skip_without_package(words):
    for package in ["ray" if "runner=ray" in words else "", PACKAGES.get(environment_of(words))]:
        if package and (" " in package or importlib.util.find_spec(package) is None):
            pytest.skip(f"{package} is not installed")


def shortened(words):
    """The command with few steps, and at most two worker processes."""
    words = [word for word in words if not word.startswith(("t_max=", "test_nepisode="))]
    elsewhere = runner_of(words) in {"parallel", "ray"}
    short = [*SHORT, "batch_size_run=2"] if elsewhere else [*SHORT]
    if elsewhere and "--config=happo" in words:
        short.append("batch_size=2")  # it learns from the newest episodes alone
    if (limit := LONG.get(environment_of(words))) is not None:
        short.append(f"env_args.{limit}=20")
    return [*words, *([] if "with" in words else ["with"]), *short]


def earlier_run(words):
    """The command that a command with `resume=` or `checkpoint_path=` comes after, or None.

    Evaluations name their settings alone, so these are all those that begin with "env_args.".
    """
    if any(word.startswith("resume=") for word in words):
        return [word for word in words if not word.startswith("resume=")]
    of_zoo = any(word.startswith("checkpoint_path=zoo/") for word in words)
    if any(word.startswith("checkpoint_path=") for word in words) and not of_zoo:
        chosen = ("--", "runner=")
        return [*(word for word in words if word.startswith(chosen)), "with"]
    return None


@pytest.mark.parametrize("words", trainings())
def test_commands_run(words, own_files, capsys):
    """Each in a folder of its own, where the run that it continues or evaluates is made first."""
    if any(word.startswith("checkpoint_agents=") for word in words):
        pytest.skip("its checkpoint takes an hour; tests/experiments checks its settings")
    if any(word.startswith(("loggers=", "observers.")) for word in words):
        pytest.skip("it needs a server, or an account; tests/utils has tests of loggers")
    skip_without_package(words)
    if (before := earlier_run(words)) is not None:
        options = [word for word in before if word.startswith("--")]
        rest = [word for word in before if not word.startswith("--") and word != "with"]
        assert main_module.main(shortened([*options, "with", *rest])) == 0
    assert main_module.main(shortened(words)) == 0, capsys.readouterr().err
    logged = "".join(path.read_text() for path in own_files.rglob("metrics.jsonl"))
    assert "test_return_mean" in logged


def test_the_first_command_learns(own_files):
    words = [
        "--config=qmix",
        "--env-config=predator_prey",
        "with",
        "t_max=20000",
        "seed=1",
        "runner=vector",
    ]
    assert words in [command.values[0] for command in trainings()]
    short = ["t_max=200", "env_args.episode_limit=20", "batch_size=2", "learner_log_interval=1"]
    assert main_module.main([*words, *short, *SHORT[1:], "save_model=False"]) == 0
    (file,) = own_files.rglob("metrics.jsonl")
    assert '"loss_td"' in file.read_text()


def settings_files():
    """(name, content) of every yaml file of an algorithm or environment that the guide shows."""
    found = []
    for page in ("configuration", "own_algorithm", "own_environment"):
        text = (DOCS / "guide" / f"{page}.md").read_text(encoding="utf-8")
        for file, rest in re.findall(r"```yaml\n# (\w+\.yaml)(.*?)```", text, re.DOTALL):
            found.append(pytest.param(file, f"# {file}{rest}", id=f"{page}: {file}"))
    return found


@pytest.mark.parametrize(("file", "content"), settings_files())
def test_files_of_the_guide_are_valid(file, content, own_files, capsys):
    Path(file).write_text(content, encoding="utf-8")
    if re.search(r"^env:", content, re.MULTILINE):
        words = ["--config=qmix", f"--env-config={file}", "with", "plugins=[my_env.py]"]
    else:
        words = [f"--config={file}", "--env-config=predator_prey", "with"]
        words += ["plugins=[my_learner.py]"] if "my_learner" in content else []
    words = [*words, "seed=1"]
    assert main_module.main(["print_config", *words]) == 0, capsys.readouterr().err
    assert f"# from {file}" in capsys.readouterr().out


def test_the_guide_shows_files():
    assert len(settings_files()) >= 3


def test_the_guide_shows_the_documented_learner(own_files):
    learner = (own_files / "my_learner.py").read_text(encoding="utf-8")
    for page in (ROOT / "README.md", DOCS / "guide" / "own_algorithm.md"):
        assert f"```python\n{learner}```" in page.read_text(encoding="utf-8")
