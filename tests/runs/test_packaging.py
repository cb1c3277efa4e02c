"""pyproject.toml, the requirements files, the licence and the version agree."""

import re
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

ROOT = Path(__file__).resolve().parents[2]
FILES = {"football": "requirements-gfootball.txt"}  # extra -> its file, where the name differs
# smacv2 and smac_hard are on no package index, and one of them has no name that pip would accept.
WITHOUT_EXTRA = {"requirements-sc2v2.txt"}
WITHOUT_FILE = {"all"}  # only there for `pip install -e ".[all]"`


def requirements(path):
    """All requirements that `pip install -r` would read, with the files named by `-r`."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found |= requirements(path.parent / line.removeprefix("-r ").strip())
        elif line:
            found.add(line.replace(" ", ""))
    return found


@pytest.fixture(scope="module")
def project():
    """What setuptools itself reads from pyproject.toml."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return apply_configuration(Distribution(), ROOT / "pyproject.toml")


def plain(listed):
    return {str(each).replace(" ", "") for each in listed}


def normal(listed):
    """Specifiers in a fixed order: setuptools sorts `>=0.10,<0.11`."""
    return {
        ",".join([re.split("[<>=!]", each)[0], *sorted(re.findall(r"[<>=!]+[^,<>=!]+", each))])
        for each in plain(listed)
    }


def test_dependencies_are_those_of_requirements_txt(project):
    assert normal(project.install_requires) == normal(requirements(ROOT / "requirements.txt"))
    assert "torch==2.13.0" in plain(project.install_requires)


def test_every_extra_is_what_its_requirements_file_installs(project):
    base = requirements(ROOT / "requirements.txt")
    assert {"pettingzoo", "sisl", "magent", "smax", "sc2", "docs", "dev"} <= set(
        project.extras_require
    )
    for extra, listed in project.extras_require.items():
        if extra in WITHOUT_FILE:
            continue
        path = ROOT / FILES.get(extra, f"requirements-{extra}.txt")
        assert normal(listed) - normal(base) == normal(requirements(path) - base), path.name


def test_every_requirements_file_has_an_extra(project):
    files = {path.name for path in ROOT.glob("requirements-*.txt")} - WITHOUT_EXTRA
    assert len(files) >= 8
    extras = {FILES.get(extra, f"requirements-{extra}.txt") for extra in project.extras_require}
    assert files <= extras, "add the file to [tool.setuptools.dynamic.optional-dependencies]"


def test_all_has_every_environment_that_is_a_wheel(project):
    parts = ("pettingzoo", "sisl", "magent", "smax", "vmas", "mamujoco", "overcooked", "sc2")
    whole = set().union(*(plain(project.extras_require[part]) for part in parts))
    assert plain(project.extras_require["all"]) == whole


def test_nothing_is_packaged(project):
    """The code runs from its checkout, where plug-ins find `learners`, `envs` and `utils`."""
    assert not project.packages
    assert not project.py_modules


def test_licence_and_version_agree(project):
    version = project.metadata.version
    assert project.metadata.license_expression == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation
    changes = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changes[0] == version


def test_hooks_and_workflow_run_what_the_makefile_runs():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "bash .ci/run" in workflow
    for target in re.findall(r"run: make (\S+)", workflow):
        assert f"\n{target}:" in makefile
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"-m {tool}" in hooks
        assert f"-m {tool}" in makefile
