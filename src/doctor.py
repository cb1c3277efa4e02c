"""`python src/main.py doctor`: what is installed, what is missing, and how to mend it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from utils.config import check_results_folder
from utils.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[1]
OK, MISSING, BROKEN, NOTE = "ok", "missing", "broken", "note"
_COLOURS = {OK: "green", MISSING: "yellow", BROKEN: "red", NOTE: "cyan"}
# What has to work of distributions with several modules.
_MODULES = {
    "protobuf": "google.protobuf",
    "setuptools": "pkg_resources",
    "pysc2": "pysc2.run_configs",
    # generated code: shows a protobuf that does not fit
    "s2clientprotocol": "s2clientprotocol.sc2api_pb2",
    "gfootball": "gfootball.env",  # loads the compiled part
}
# group -> the part of its requirements file's name, where that is another
_FILES = {"starcraft": "sc2", "jaxmarl": "smax"}
# groups with packages that are compiled here, by a script of ours
_SCRIPTS = {"football": "install_gfootball.sh"}
_MIN_PYTHON = (3, 10)


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    group: str
    name: str
    state: str
    found: str
    mend: str = ""
    required: bool = False

    @property
    def fatal(self) -> bool:
        """Whether nothing can be trained before this is mended."""
        return self.required and self.state in (MISSING, BROKEN)


def main(argv: Sequence[str] = ()) -> int:
    """Prints the table; 0 if everything that is required works, else 1.

    Raises:
        ConfigError: there are arguments.
    """
    if argv:
        raise ConfigError(f"doctor takes no arguments but --cluster, got '{' '.join(argv)}'")
    checks = list(run_checks())
    show(checks)
    return 1 if any(check.fatal for check in checks) else 0


def run_checks(results: Path = Path("results")) -> Iterator[Check]:
    """All checks, the required ones first.

    Args:
        results: the folder that must be writable.
    """
    yield _python()
    requirements = ROOT / "requirements.txt"
    for name, specifier in read_requirements(requirements):
        yield check_package(
            "required", name, specifier, f"pip install -r {requirements.name}", required=True
        )
    yield _cuda()
    yield _kernels()
    yield _results(results)
    yield from _optional()


# --- Packages ---


def read_requirements(path: Path) -> list[tuple[str, str]]:
    """(distribution, version specifier) of every line of a requirements file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*([^#;]*)", line)
        if match:
            found.append((match[1], match[2].strip()))
    return found


def check_package(
    group: str,
    name: str,
    specifier: str,
    mend: str,
    required: bool = False,
    module: str | None = None,
) -> Check:
    """Whether a distribution is there, in the right version, and can be imported.

    Args:
        name: of the distribution.
        specifier: versions that will do ("" for any).
        mend: the command that installs it.
        module: what to import; None: the module that the distribution brings.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(group, name, MISSING, "not installed", mend, required)
    error = try_import(module or _module_of(name))
    if error:
        return Check(group, name, BROKEN, f"{version}: {error}", mend, required)
    if specifier and not _version_fits(version, specifier):
        return Check(group, name, BROKEN, f"{version}, needs {specifier}", mend, required)
    return Check(group, name, OK, version, "", required)


def _module_of(distribution: str) -> str:
    """The module to import: pyyaml is called yaml, pillow PIL."""
    name = distribution.lower()
    if name in _MODULES:
        return _MODULES[name]
    usual = name.replace("-", "_")
    if importlib.util.find_spec(usual) is not None:
        return usual
    found = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if name in map(str.lower, owners) and not module.startswith("_")
    ]
    return min(found, default=usual)


def try_import(module: str) -> str:
    """The import's own error in one line; empty if it works."""
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (Exception, SystemExit) as exc:  # a package may fail in any way while it is imported
        return f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    return ""


def _version_fits(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet  # Sacred needs it

    return SpecifierSet(specifier).contains(version.partition("+")[0], prereleases=True)


# --- Machine ---


def _python() -> Check:
    fits = sys.version_info >= _MIN_PYTHON
    mend = "" if fits else f"install Python {'.'.join(map(str, _MIN_PYTHON))} or newer"
    found = f"{platform.python_version()} ({sys.executable})"
    return Check("required", "python", OK if fits else BROKEN, found, mend, required=True)


def _cuda() -> Check:
    if importlib.util.find_spec("torch") is None or try_import("torch"):
        return Check("machine", "cuda", NOTE, "unknown without torch")
    import torch

    threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        names = ", ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
        return Check("machine", "cuda", OK, f"{torch.version.cuda}: {names}; {threads}")
    if shutil.which("nvidia-smi") is None:
        return Check(
            "machine", "cuda", NOTE, f"no NVIDIA GPU: training runs on the CPU ({threads})"
        )
    if torch.version.cuda is None:
        mend = (
            "pip install --force-reinstall torch from https://pytorch.org/get-started (a CUDA "
            "wheel)"
        )
        return Check(
            "machine",
            "cuda",
            BROKEN,
            f"a GPU, but torch {torch.__version__} is built without CUDA",
            mend,
        )
    mend = (
        "look at nvidia-smi: the driver must support this CUDA version; check CUDA_VISIBLE_DEVICES"
    )
    return Check(
        "machine",
        "cuda",
        BROKEN,
        f"a GPU, but torch cannot use it (CUDA {torch.version.cuda})",
        mend,
    )


def _kernels() -> Check:
    """Whether the learners' kernels for the CPU can be built; everything works without them."""
    from modules.kernels import build

    if build.compiler() is None:
        found = "no C++ compiler: on a CPU, training takes up to twice as long"
        return Check("machine", "kernels", NOTE, found, "apt-get install g++, or set CXX")
    missing = [name for name in build.names() if build.load(name) is None]
    if missing:
        found = f"{', '.join(missing)} cannot be compiled: training through torch is slower"
        return Check("machine", "kernels", NOTE, found, "set CXX to another C++ compiler")
    return Check("machine", "kernels", OK, "compiled for this processor")


def _results(folder: Path) -> Check:
    try:
        check_results_folder(folder)
    except UserError as exc:
        return Check(
            "machine",
            "results",
            BROKEN,
            str(exc),
            "choose another folder: local_results_path=...",
            True,
        )
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.exists())).free
    return Check(
        "machine",
        "results",
        OK,
        f"{folder.absolute()} is writable, {free / 2**30:.1f} GiB free",
        "",
        True,
    )


# --- Optional groups ---


def _install(group: str, packages: str) -> str:
    """How to install a group: its script or requirements file if there is one, else the
    packages.
    """
    if group in _SCRIPTS:
        return f"bash {_SCRIPTS[group]}"
    file = ROOT / f"requirements-{_FILES.get(group, group)}.txt"
    return f"pip install -r {file.name}" if file.is_file() else f"pip install {packages}"


def _optional() -> Iterator[Check]:
    for group, packages in (
        ("pettingzoo", ("pettingzoo", "mpe2")),
        (
            "sisl",
            ("box2d" if sys.version_info < (3, 14) else "box2d-py", "pygame-ce"),
        ),  # as in pettingzoo[sisl]
        ("starcraft", ("pysc2", "s2clientprotocol")),
        ("football", ("gfootball",)),
        ("magent", ("magent2",)),
        ("jaxmarl", ("jaxmarl",)),
        ("vmas", ("vmas",)),
        ("mamujoco", ("gymnasium-robotics", "mujoco")),
        ("overcooked", ("overcooked-ai",)),
        ("tensorboard", ("tensorboard",)),
        ("wandb", ("wandb",)),
        ("mlflow", ("mlflow-skinny", "sqlalchemy", "alembic")),
        ("mongo", ("pymongo",)),
        ("sql", ("sqlalchemy",)),
    ):
        for package in packages:
            yield check_package(group, package, "", _install(group, " ".join(packages)))
        if group == "starcraft":
            yield _smac()
            yield from _upstream()
            yield from check_starcraft(game_folder())


def _smac() -> Check:
    install = "pip install git+https://github.com/oxwhirl/smac.git"
    if importlib.util.find_spec("smac") is None:
        return Check("starcraft", "smac", MISSING, "not installed", install)
    error = try_import("smac.env")
    if not error:
        return Check("starcraft", "smac", OK, "oxwhirl's")
    if "No module named 'smac.env'" in error:
        found = "another package: the hyper-parameter optimiser that is called smac on PyPI"
        return Check("starcraft", "smac", BROKEN, found, f"pip uninstall smac && {install}")
    return Check("starcraft", "smac", BROKEN, error, install)


def _upstream() -> Iterator[Check]:
    """SMACv2 and SMAC-Hard, which have no release on PyPI."""
    for package, module in (
        ("smacv2", "smacv2.env.starcraft2.wrapper"),
        ("smac_hard", "smac_hard.env"),
    ):
        install = "pip install -r requirements-sc2v2.txt"
        if importlib.util.find_spec(package) is None:
            yield Check("starcraft", package, MISSING, "not installed", install)
            continue
        error = try_import(module)
        if error:
            yield Check("starcraft", package, BROKEN, error, install)
        else:
            yield Check("starcraft", package, OK, "from its repository")


def game_folder() -> Path:
    """Where StarCraft II is expected."""
    return Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()


def check_starcraft(folder: Path) -> Iterator[Check]:
    """The game and SMAC's maps.

    Args:
        folder: `SC2PATH`, or where the game is by default.
    """
    script = ROOT / "install_sc2.sh"
    mend = (
        f"bash {script.name}"
        if script.is_file()
        else "install StarCraft II 4.10 (Linux package) to ~/StarCraftII"
    )
    mend += ", or set SC2PATH"
    versions = sorted(folder.glob("Versions/Base*/SC2_x64"))
    if not versions:
        yield Check("starcraft", "SC2PATH", MISSING, f"no game in {folder}", mend)
        return
    yield Check(
        "starcraft", "SC2PATH", OK, f"{folder}, {', '.join(path.parent.name for path in versions)}"
    )
    maps = {path.stem for path in folder.glob("Maps/**/*.SC2Map")}
    if not maps:
        yield Check("starcraft", "SMAC maps", MISSING, f"no maps in {folder / 'Maps'}", mend)
    else:
        yield Check("starcraft", "SMAC maps", OK, f"{len(maps)} maps in {folder / 'Maps'}")


# --- Table ---


def show(checks: Iterable[Check]) -> None:
    """Writes the table to stdout; without rich (it may be what is missing) as plain lines."""
    checks = list(checks)
    fatal = [check.name for check in checks if check.fatal]
    verdict = f"Not ready: mend {', '.join(fatal)}." if fatal else "Ready to train."
    draw: Callable[[list[Check], str], None] = _plain
    if importlib.util.find_spec("rich") is not None:
        draw = _rich
    draw(checks, verdict)


def mends(checks: Iterable[Check]) -> dict[str, list[str]]:
    """What to do, with the names of the checks that each command mends."""
    commands: dict[str, list[str]] = {}
    for check in checks:
        if check.mend:
            commands.setdefault(check.mend, []).append(check.name)
    return commands


def _plain(checks: list[Check], verdict: str) -> None:
    for check in checks:
        sys.stdout.write(f"{check.group:<11}{check.name:<20}{check.state:<9}{check.found}\n")
    for mend, names in mends(checks).items():
        sys.stdout.write(f"{', '.join(names)}: {mend}\n")
    sys.stdout.write(f"{verdict}\n")


def _rich(checks: list[Check], verdict: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    table = Table("group", "what", "state", "found", title="Installation")
    table.columns[-1].overflow = "fold"
    previous = ""
    for check in checks:
        if previous not in ("", check.group):
            table.add_section()
        group = "" if check.group == previous else check.group
        table.add_row(
            group, check.name, Text(check.state, style=_COLOURS[check.state]), Text(check.found)
        )
        previous = check.group
    console.print(table)
    for mend, names in mends(checks).items():
        console.print(f"{', '.join(names)}: {mend}", markup=False, highlight=False, soft_wrap=True)
    console.print(verdict, style="bold", highlight=False)
