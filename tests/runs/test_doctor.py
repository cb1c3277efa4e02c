"""The installation check: what it finds, what it advises, its exit code."""

import importlib
import sys
import types
from pathlib import Path

import pytest
from console_fixtures import fresh_console  # noqa: F401

import doctor
import main as main_module
from doctor import (
    BROKEN,
    MISSING,
    NOTE,
    OK,
    Check,
    check_package,
    check_starcraft,
    read_requirements,
    run_checks,
)
from modules.kernels import build


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes an importable distribution of our own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, version="1.5.0", code=""):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, module, raising=False)
        return name

    yield make
    for name in list(sys.modules):
        if name.startswith("doctor_case"):
            del sys.modules[name]


@pytest.mark.usefixtures("fresh_console")
def test_this_installation_is_ready(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_module.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (
        "python",
        "torch",
        "sacred",
        "protobuf",
        "cuda",
        "kernels",
        "results",
        "SC2PATH",
        "Ready to train.",
    ):
        assert word in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("compiler", "library", "state", "part"),
    [
        ("c++", object(), OK, "compiled for this processor"),
        ("c++", None, NOTE, "gru, linear cannot be compiled"),
        (None, None, NOTE, "no C++ compiler"),
    ],
)
def test_kernels(monkeypatch, compiler, library, state, part):
    monkeypatch.setattr(build, "compiler", lambda: compiler)
    monkeypatch.setattr(build, "load", lambda name: library)
    check = doctor._kernels()
    assert check.state == state
    assert part in check.found
    assert bool(check.mend) == (state == NOTE)


def test_every_requirement_is_checked_and_fine(tmp_path):
    checks = {
        check.name: check for check in run_checks(tmp_path / "results") if check.group == "required"
    }
    lines = (doctor.ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert len(checks) == len(listed) + 1  # and python
    assert all(check.state == OK and check.required for check in checks.values())
    assert checks["torch"].found.startswith("2.13.0")


def test_read_requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text(
        "# comment\n-r other.txt\ntorch==2.13.0\n\nnumpy>=1.26,<3  # why\nrich[jupyter] >= 13 ; "
        "x\nscipy\n"
    )
    assert read_requirements(path) == [
        ("torch", "==2.13.0"),
        ("numpy", ">=1.26,<3"),
        ("rich", ">= 13"),
        ("scipy", ""),
    ]


def test_packages_that_are_fine_missing_old_or_broken(package):
    assert check_package("g", package("doctor-case-a"), ">=1.0", "pip") == Check(
        "g", "doctor-case-a", OK, "1.5.0"
    )
    assert check_package("g", "doctor-case-none", "", "pip install it", required=True) == Check(
        "g", "doctor-case-none", MISSING, "not installed", "pip install it", True
    )
    old = check_package("g", package("doctor-case-b", "1.5.0+cpu"), "<1.5", "pip install it")
    assert (old.state, old.found, old.mend) == (BROKEN, "1.5.0+cpu, needs <1.5", "pip install it")
    broken = check_package(
        "g", package("doctor-case-c", code="import doctor_case_needs\n"), "", "pip"
    )
    assert (broken.state, broken.found) == (
        BROKEN,
        "1.5.0: ModuleNotFoundError: No module named 'doctor_case_needs'",
    )
    stops = check_package(
        "g", package("doctor-case-d", code="raise SystemExit('no\\ndisplay')\n"), "", "pip"
    )
    assert stops.found == "1.5.0: SystemExit: no display"


@pytest.mark.parametrize(
    ("distribution", "module"),
    [
        ("PyYAML", "yaml"),
        ("pillow", "PIL"),
        ("numpy", "numpy"),
        ("tensorboard-data-server", "tensorboard_data_server"),
    ],
)
def test_modules_that_are_called_otherwise(distribution, module):
    assert doctor._module_of(distribution) == module


def test_a_local_version_fits_its_public_one():
    assert doctor._version_fits("2.13.0+cpu", "==2.13.0")
    assert not doctor._version_fits("81.0", "<81")
    assert doctor._version_fits("80.10.2", "<81")


@pytest.mark.parametrize("state", [MISSING, BROKEN])
def test_exit_code_when_something_required_is_not_fine(monkeypatch, capsys, state):
    monkeypatch.setattr(
        doctor, "run_checks", lambda: [Check("required", "torch", state, "?", "pip it", True)]
    )
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "torch: pip it" in out
    assert "Not ready: mend torch." in out


def test_exit_code_when_only_options_are_missing(monkeypatch, capsys):
    checks = [
        Check("mongo", "pymongo", MISSING, "not installed", "pip it"),
        Check("machine", "cuda", NOTE, "none"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda: checks)
    assert doctor.main() == 0
    assert "pymongo: pip it" in capsys.readouterr().out


def test_the_table_without_rich(monkeypatch, capsys):
    find_spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "rich" else find_spec(name)
    )
    doctor.show(
        [
            Check("a", "one", OK, "1.0"),
            Check("b", "two", MISSING, "not", "pip"),
            Check("b", "x", BROKEN, "", "pip"),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "a          one                 ok       1.0",
        "b          two                 missing  not",
        "b          x                   broken   ",
        "two, x: pip",
        "Ready to train.",
    ]


def test_a_results_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check = doctor._results(tmp_path / "file" / "results")
    assert (check.state, check.required, check.fatal) == (BROKEN, True, True)
    assert "cannot write there" in check.found
    assert doctor._results(tmp_path / "results").state == OK
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_starcraft(tmp_path):
    (missing,) = check_starcraft(tmp_path / "StarCraftII")
    assert (missing.name, missing.state) == ("SC2PATH", MISSING)
    assert "SC2PATH" in missing.mend
    (tmp_path / "Versions" / "Base75689").mkdir(parents=True)
    (tmp_path / "Versions" / "Base75689" / "SC2_x64").write_text("")
    game, maps = check_starcraft(tmp_path)
    assert (game.state, maps.state) == (OK, MISSING)
    assert "Base75689" in game.found
    (tmp_path / "Maps" / "SMAC_Maps").mkdir(parents=True)
    for name in ("3m", "8m"):
        (tmp_path / "Maps" / "SMAC_Maps" / f"{name}.SC2Map").write_text("")
    assert list(check_starcraft(tmp_path))[1] == Check(
        "starcraft", "SMAC maps", OK, f"2 maps in {tmp_path / 'Maps'}"
    )


def test_the_other_package_called_smac_is_recognised(package):
    assert doctor._smac().state == MISSING
    package("smac")
    check = doctor._smac()
    del sys.modules["smac"]
    assert check.state == BROKEN
    assert "hyper-parameter" in check.found
    assert check.mend.startswith("pip uninstall smac")


def test_the_right_smac_is_fine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "smac" / "env").mkdir(parents=True)
    for folder in (tmp_path / "smac", tmp_path / "smac" / "env"):
        (folder / "__init__.py").write_text("")
    assert doctor._smac().state == OK
    (tmp_path / "smac" / "env" / "__init__.py").write_text("import pysc2_is_missing\n")
    for name in ("smac", "smac.env"):
        del sys.modules[name]
    check = doctor._smac()
    sys.modules.pop("smac")
    assert (check.state, check.found) == (
        BROKEN,
        "ModuleNotFoundError: No module named 'pysc2_is_missing'",
    )


def fake_torch(available, built_with):
    torch = types.ModuleType("torch")
    torch.__version__ = "2.13.0"
    torch.version = types.SimpleNamespace(cuda=built_with)
    torch.get_num_threads = lambda: 4
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: available,
        device_count=lambda: 2,
        get_device_name=lambda index: f"GPU{index}",
    )
    return torch


@pytest.mark.parametrize(
    ("available", "built_with", "driver", "state", "part"),
    [
        (True, "12.6", True, OK, "12.6: GPU0, GPU1; 4 threads"),
        (False, None, False, NOTE, "no NVIDIA GPU"),
        (False, None, True, BROKEN, "built without CUDA"),
        (False, "12.6", True, BROKEN, "torch cannot use it (CUDA 12.6)"),
    ],
)
def test_cuda(monkeypatch, available, built_with, driver, state, part):
    torch = fake_torch(available, built_with)
    torch.__spec__ = sys.modules["importlib.machinery"].ModuleSpec("torch", None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None
    )
    check = doctor._cuda()
    assert check.state == state
    assert part in check.found
    assert bool(check.mend) == (state == BROKEN)
    assert not check.fatal


def test_groups_with_a_requirements_file_are_installed_from_it():
    assert doctor._install("pettingzoo", "x") == "pip install -r requirements-pettingzoo.txt"
    assert doctor._install("nothing", "x y") == "pip install x y"
    assert Path(doctor.ROOT, "requirements-pettingzoo.txt").is_file()
