"""Entry point: `python src/main.py --config=ALG --env-config=ENV with key=value ...`, and `doctor`,
`report`, `--help`.

Worker processes import this file again, so nothing heavy is imported up here.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, RunFailure, UserError, told

if TYPE_CHECKING:
    import io

    from sacred import Experiment
    from sacred.run import Run

    from utils.checkpoints import ResumePoint

_FILES = ("--config", "--env-config")
_REFUSED = {
    "--file_storage": "results are always written: choose the folder with local_results_path=...",
    "--mongo_db": "write observers.mongo.url=... behind `with`",
    "--sql": "write observers.sql.url=... behind `with`",
    "--tiny_db": "only the observers mongo and sql exist",
    "--s3": "only the observers mongo and sql exist",
    "--capture": "all output is recorded in cout.txt",
    "--queue": "run.sh queues runs",
    "--pdb": "use python -m pdb src/main.py ...",
}

USAGE = """\
Multi-agent reinforcement learning, compatible with PyMARL2.

Usage:
  python src/main.py --config=ALG --env-config=ENV [with KEY=VALUE ...] [options]
                                         train, or evaluate
  python src/main.py print_config --config=ALG --env-config=ENV [with KEY=VALUE ...]
                                         all settings, and where each value comes from
  python src/main.py report PATH... [--by KEY] [--metric NAME]
                                         learning curves and tables
  python src/main.py doctor              check the installation
  python src/main.py --help

ALG and ENV are names from the lists below or paths of yaml files. KEY is a key of
src/config/default.yaml (explained there) or of the two files; entries of mappings are written
env_args.penalty=0.5. Instead of KEY=VALUE, a yaml or json file of settings may be given.

Examples:
  python src/main.py --config=qmix --env-config=predator_prey with t_max=100000 seed=1
  python src/main.py --config=vdn --env-config=gymma with env_args.key=mpe2.simple_spread_v3
  python src/main.py --config=qmix --env-config=predator_prey with seed=1 resume=auto
  python src/main.py --config=qmix --env-config=predator_prey with evaluate=True \\
      checkpoint_path=RUN/checkpoints

Keys worth knowing:
  t_max               length of training [environment steps]
  seed                of all random streams; drawn and recorded if not given
  runner              episode | parallel | vector, with batch_size_run environments
  use_cuda            train on the GPU
  test_interval, test_nepisode, log_interval, save_model_interval
  scenario            an algorithm's settings for one map, by a name from the list below
  local_results_path  results go to LOCAL_RESULTS_PATH/sacred/ALG/MAP/ID
  resume              auto, or the folder of a run to continue
  checkpoint_path, load_step, evaluate, save_replay, render
  plugins             modules with learners, controllers, environments, ... of your own
"""

OPTIONS = """\
Options (Sacred's):
  -l, --loglevel LEVEL      DEBUG, INFO, WARNING, ... (DEBUG shows where an error comes from)
  -n, --name NAME           name of the experiment in Sacred's records
  -c, --comment TEXT        recorded with the run
  -i, --id ID               number of the run instead of the next free one
  -u, --unobserved          keep no results
  -p, --print-config        print the configuration first, and where each value comes from
  -e, --enforce_clean       refuse to run with uncommitted changes
  -b, --beat-interval SECONDS

Exit codes: 0 done, 1 the run failed,
2 something in the command or the installation must be changed, 128 + N ended by
signal N (130: Ctrl-C), with a checkpoint.
"""


def help_text() -> str:
    """What `--help` shows."""
    from utils.config import list_configs

    parts = [USAGE]
    for title, kind in (("Algorithms", "algs"), ("Environments", "envs")):
        listed = list_configs(kind)
        width = max(map(len, listed), default=0)
        parts.append(
            "\n".join(
                [f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in listed.items()), ""]
            )
        )
    names = textwrap.fill(
        " ".join(list_configs("scenarios")), 118, initial_indent="  ", subsequent_indent="  "
    )
    return "\n".join([*parts, f"Scenarios (scenario=NAME):\n{names}\n", OPTIONS])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Returns:
        The exit code (see `OPTIONS`).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Read when torch loads. OpenMP's threads would else burn their time waiting for one another:
    # where other runs share the machine, an update takes up to a hundred times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings(
        "ignore", message="pkg_resources is deprecated", category=UserWarning
    )  # Sacred's import
    from utils.logging import get_logger

    logger = get_logger()
    try:
        if argv[:1] == ["doctor"]:
            from doctor import main as doctor

            return doctor(argv[1:])
        if argv[:1] == ["report"]:
            from analysis.report import main as report

            return report(argv[1:])
        if not argv or argv[0] == "help" or {"-h", "--help"} & set(argv):
            sys.stdout.write(help_text())
            return 0
        return _train(argv)
    except (UserError, RunFailure) as exc:
        logger.debug("where the error comes from:", exc_info=True)
        return told(exc)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


# --- The command line ---


def _take_files(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """`--config` and `--env-config` (with `=` or a space), and the other words."""
    taken: dict[str, str] = {}
    rest = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _FILES:
            rest.append(word)
            continue
        if name in taken:
            raise ConfigError(f"{name} is given twice")
        taken[name] = value if equals else next(words, "")
    return taken, rest


def _read_options(experiment: Experiment, words: list[str]) -> dict[str, Any]:
    """Sacred's options, the command and the settings (`UPDATE`), read by Sacred's own parser.

    Raises:
        ConfigError: an unknown or refused option, a setting without `with`.
    """
    from docopt import DocoptExit, docopt

    from utils.registry import nearest

    long_names = {
        flag: option.get_flags()[1]
        for option in experiment.all_cli_options
        for flag in option.get_flags()
    }
    with_value = {
        flag for option in experiment.all_cli_options if option.arg for flag in option.get_flags()
    }
    words = words[:-1] if words[-1:] == ["with"] else words
    settings = skip = False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            flag = word.partition("=")[0] if word.startswith("--") else word[:2]
            if flag not in long_names:
                raise ConfigError(
                    f"unknown option '{flag}'; {nearest(flag, [*long_names, *_FILES])}"
                )
            if long_names[flag] in _REFUSED:
                raise ConfigError(f"option {flag} is not supported: {_REFUSED[long_names[flag]]}")
            skip = flag in with_value and word == flag
        elif word == "with":
            settings = True
        elif not settings and "=" in word:
            raise ConfigError(f"settings stand behind the word 'with': with {word}")
    try:
        return dict(docopt(experiment.get_usage()[2], words, default_help=False))
    except DocoptExit as exc:
        raise ConfigError(
            f"cannot read the command line '{' '.join(words)}'; --help shows its form"
        ) from exc


# --- A run ---


class _Job:
    """What the experiment's main function is to do; filled in once everything is checked."""

    config: dict[str, Any]
    run_dir: Path | None = None
    resume: ResumePoint | None = None
    shown = ""  # the configuration, if it is to be printed
    entered = False

    def __init__(self) -> None:
        self.observer: Any = None
        self.recorder: io.StringIO | None = None

    def __call__(self, run: Run) -> Any:
        import training
        from utils.logging import get_logger

        self.entered = True
        sys.stdout.write(self.shown)
        if self.observer is not None:
            self.observer.watch(run.info)
            self.run_dir = Path(self.observer.dir)
        try:
            return training.run(
                run, self.config, get_logger(), run_dir=self.run_dir, resume=self.resume
            )
        finally:
            run.captured_out = (
                self.recorder.getvalue()
            )  # Sacred itself forgets the end of a run that fails

    def wrote_metrics(self) -> bool:
        """Whether there is anything worth keeping or continuing."""
        metrics = self.run_dir / "metrics.jsonl" if self.run_dir else None
        return metrics is not None and metrics.is_file() and metrics.stat().st_size > 0


def _experiment(job: _Job) -> Experiment:
    from sacred import SETTINGS, Experiment

    from utils.logging import get_logger

    SETTINGS.CAPTURE_MODE = "no"  # utils.logging records the output
    SETTINGS.DISCOVER_SOURCES = "none"  # the commit says it all, and git is slow file by file
    SETTINGS.DISCOVER_DEPENDENCIES = "pkg"
    base_dir = Path(__file__).resolve().parent
    try:
        experiment = Experiment("pymarl", base_dir=base_dir, save_git_info=True)
    except (
        Exception
    ) as exc:  # no git, a repository without commits, one that belongs to somebody else, ...
        get_logger().debug("no git information recorded: %s", exc)
        experiment = Experiment("pymarl", base_dir=base_dir, save_git_info=False)
    experiment.logger = get_logger()

    @experiment.main
    def train(_run: Run) -> Any:
        """Train, or evaluate."""
        return job(_run)

    return experiment


def _train(argv: list[str]) -> int:
    from utils.config import (
        check_results_folder,
        describe_config,
        safe_name,
        set_seed,
        trace_config,
    )
    from utils.observers import mask_secrets
    from utils.registry import nearest

    files, words = _take_files(argv)
    job = _Job()
    experiment = _experiment(job)
    options = _read_options(experiment, words)
    command = None if options["COMMAND"] == experiment.default_command else options["COMMAND"]
    if command is not None and command not in experiment.commands:
        raise ConfigError(
            f"unknown command '{command}'; "
            f"{nearest(command, ['doctor', 'report', *experiment.commands])}"
        )
    for name in _FILES:
        if not files.get(name):
            raise ConfigError(f"{name}=... is missing; --help lists the choices")
    config, origins = trace_config(files["--config"], files["--env-config"], options["UPDATE"])

    unobserved, run_id = options["--unobserved"], options["--id"]
    if run_id is not None and run_id != safe_name(run_id):
        raise ConfigError(f"--id must be usable as the name of a folder, got '{run_id}'")
    if config["resume"]:
        if unobserved or run_id is not None:
            raise ConfigError("resume goes on with a recorded run: leave out --unobserved and --id")
        from utils.checkpoints import resolve_resume

        job.resume = resolve_resume(config)
        if job.resume is not None and config["seed"] is None:
            config["seed"], origins["seed"] = job.resume.seed, "the resumed run"
    set_seed(config)
    job.config = config
    recorded = {**config, "observers": mask_secrets(config["observers"])}
    experiment.add_config(recorded)
    if options["--print-config"] or command == "print_config":
        job.shown = describe_config(recorded, origins)
        options["--print-config"] = False  # Sacred's own does not know where values come from
    if command is not None:
        sys.stdout.write(job.shown)
        if command != "print_config":
            experiment.run(command, options=options)
        return 0
    if not unobserved:
        check_results_folder(
            job.resume.run_dir if job.resume else Path(config["local_results_path"])
        )
    options["UPDATE"] = mask_secrets(options["UPDATE"])
    return _run(experiment, job, options, {"command_line": mask_secrets(argv)})


def _run(
    experiment: Experiment, job: _Job, options: dict[str, Any], meta_info: dict[str, Any]
) -> int:
    import training  # noqa: F401 - what cannot be imported should fail before anything is written
    from utils.config import is_disk_full, missing_folders, remove_empty, results_dir
    from utils.logging import get_logger, record_output
    from utils.observers import Interrupted, RunFolder, make_observers

    new_folders: list[Path] = []

    def discard() -> None:
        """Removes the folder that was made for this run, unless it has metrics."""
        if job.observer is not None and not job.wrote_metrics():
            if job.observer.created is not None:
                shutil.rmtree(job.observer.created, ignore_errors=True)
            remove_empty(new_folders)

    with ExitStack() as stack:
        if options["--unobserved"]:
            job.run_dir = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="unobserved-"))
            )
        else:
            basedir = (
                job.resume.run_dir.parent if job.resume else results_dir(job.config)
            ).absolute()
            new_folders = missing_folders(basedir)
            job.observer = RunFolder(basedir, job.resume.run_dir if job.resume else None)
            experiment.observers = [job.observer, *make_observers(job.config)]
            options["--id"] = job.resume.run_id if job.resume else options["--id"]
        job.recorder = stack.enter_context(record_output())
        experiment.captured_out_filter = lambda _: job.recorder.getvalue()
        previous = signal.signal(signal.SIGTERM, _interrupt)  # until training handles it itself
        stack.callback(signal.signal, signal.SIGTERM, previous)
        try:
            experiment.run(options=options, meta_info=meta_info)
        except Interrupted as exc:
            get_logger().warning("ended by %s", signal.Signals(exc.signum).name)
            return 128 + exc.signum
        except KeyboardInterrupt:
            get_logger().warning("aborted")
            return 128 + signal.SIGINT
        except UserError:
            discard()
            raise
        except Exception as exc:
            if is_disk_full(exc):
                discard()
                onwards = f" and continue with resume={job.run_dir}" if job.wrote_metrics() else ""
                where = job.run_dir or job.config["local_results_path"]
                raise UserError(
                    f"no space left on the disk of {where}: free some{onwards}"
                ) from exc
            if not job.entered and isinstance(exc, OSError | RuntimeError | ValueError | KeyError):
                discard()  # Sacred refuses an option, or cannot make the folder
                raise UserError(f"the run cannot be started: {exc}") from exc
            raise
    return 0


def _interrupt(signum: int, frame: object) -> None:
    from utils.observers import Interrupted

    raise Interrupted(signum)


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)
