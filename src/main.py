"""Entry point: `python src/main.py --config=ALG --env-config=ENV with key=value ...`, and the
commands `doctor`, `report`, `sweep`, `search`, `dashboard`, `play`, `export`, `--help`.

Worker processes import this file again, so nothing heavy is imported up here.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import (
    ConfigError,
    Finished,
    RunFailure,
    UserError,
    fault,
    missing_requirement,
    report_error,
)
from utils.signals import ENDING, Aborted

if TYPE_CHECKING:
    from sacred import Experiment

    from recording import Recorder
    from utils.checkpoints import ResumePoint

_FILES = ("--config", "--env-config")
_COMMANDS = ("doctor", "report", "sweep", "search", "dashboard", "play", "export")
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
  python src/main.py sweep SPEC.yaml [--launcher local|slurm|ray]
                                         many runs; sweep --help
  python src/main.py search SPEC.yaml [--launcher local|slurm|ray]
                                         good settings, found with Optuna; search --help
  python src/main.py dashboard [PATH...] [--port PORT] [--host HOST]
                                         all runs on a local page, live while they train
  python src/main.py play RUN [--exploring] [--film FILE]
                                         a trained policy step by step, on a local page
  python src/main.py export RUN FOLDER   a trained policy as a small folder
  python src/main.py doctor              check the installation
  python src/main.py doctor --cluster    what every node of a Ray cluster has
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
  seed                seed of all random streams; drawn and recorded if it is not given
  runner              episode | parallel | vector | ray, with batch_size_run environments
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
2 the command or the installation must be changed, 128 + N ended by
signal N (130: Ctrl-C, 143: SIGTERM, 129: SIGHUP, 138: SIGUSR1), with a checkpoint; a second
Ctrl-C aborts, other repetitions change nothing.
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
    from recording import prepare_process

    prepare_process()
    from utils.logging import get_logger

    logger = get_logger()
    try:
        if argv[:1] == ["doctor"] and "--cluster" in argv:
            from nodes import main as nodes

            return nodes(argv[1:])
        if argv[:1] == ["doctor"]:
            from doctor import main as doctor

            return doctor(argv[1:])
        if argv[:1] == ["report"]:
            from analysis.report import main as report

            return report(argv[1:])
        if argv[:1] == ["sweep"]:
            from launch.sweep import main as sweep

            return sweep(argv[1:])
        if argv[:1] == ["search"]:
            from launch.search import main as search

            return search(argv[1:])
        if argv[:1] == ["dashboard"]:
            from analysis.dashboard import main as dashboard

            return dashboard(argv[1:])
        if argv[:1] == ["play"]:
            from playing import main as play

            return play(argv[1:])
        if argv[:1] == ["export"]:
            from policies import main as export

            return export(argv[1:])
        if not argv or argv[0] == "help" or {"-h", "--help"} & set(argv):
            sys.stdout.write(help_text())
            return 0
        return _train(argv)
    except (UserError, RunFailure) as exc:
        logger.debug("where the error comes from:", exc_info=True)
        return report_error(exc)
    except Finished as exc:
        logger.info("%s", exc)
        return 0
    except KeyboardInterrupt as exc:
        return _code(exc)


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
            if flag not in long_names and "=" in word and _is_setting(flag[2:]):
                raise ConfigError(
                    f"settings stand behind the word 'with', without dashes: with {word[2:]}"
                )
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


def _is_setting(key: str) -> bool:
    """Whether a key is one of default.yaml, or an entry of a mapping there."""
    from utils.config import CONFIG_DIR
    from utils.config_files import read_file

    return key.partition(".")[0] in read_file(CONFIG_DIR / "default.yaml")


# --- A run ---


def _train(argv: list[str]) -> int:
    from recording import Recorder, find_resume
    from utils.config import describe_config, safe_name, trace_config
    from utils.observers import mask_secrets, masked_config
    from utils.registry import nearest

    files, words = _take_files(argv)
    recorder = Recorder()
    experiment = recorder.experiment
    options = _read_options(experiment, words)
    command = None if options["COMMAND"] == experiment.default_command else options["COMMAND"]
    if command is not None and command not in experiment.commands:
        raise ConfigError(
            f"unknown command '{command}'; {nearest(command, [*_COMMANDS, *experiment.commands])}"
        )
    for name in _FILES:
        if not files.get(name):
            raise ConfigError(f"{name}=... is missing; --help lists the choices")
    config, origins = trace_config(files["--config"], files["--env-config"], options["UPDATE"])

    unobserved, run_id = options["--unobserved"], options["--id"]
    if run_id is not None and run_id != safe_name(run_id):
        raise ConfigError(f"--id must be usable as the name of a folder, got '{run_id}'")
    if config["resume"] and (unobserved or run_id is not None):
        raise ConfigError("resume goes on with a recorded run: leave out --unobserved and --id")
    any_seed = config["seed"] is None
    resume = find_resume(config)
    if any_seed and resume is not None:
        origins["seed"] = "the resumed run"
    shown = ""
    if options["--print-config"] or command == "print_config":
        shown = describe_config(masked_config(config), origins)
        options["--print-config"] = False  # Sacred's own does not know where values come from
    if command is not None:
        sys.stdout.write(shown)
        if command != "print_config":
            recorder.command(command, config, options)
        return 0
    options["UPDATE"] = mask_secrets(options["UPDATE"])
    meta_info = {"command_line": mask_secrets(argv)}
    return _run(recorder, config, resume, options, meta_info, shown)


def _run(
    recorder: Recorder,
    config: dict[str, Any],
    resume: ResumePoint | None,
    options: dict[str, Any],
    meta_info: dict[str, Any],
    shown: str,
) -> int:
    """Trains or evaluates, after printing what is to be `shown`; the exit code."""
    from utils.logging import get_logger
    from utils.observers import Interrupted

    def work(sacred_run: Any, run_dir: Path) -> float | None:
        import session

        sys.stdout.write(shown)
        return session.run(sacred_run, config, get_logger(), run_dir=run_dir, resume=resume)

    run_dir, observe = resume.run_dir if resume else None, not options["--unobserved"]
    with ExitStack() as stack:
        if not observe:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="unobserved-"))
            run_dir = Path(folder)
        try:
            recorder.record(config, work, run_dir, observe, options, meta_info)
        except Interrupted as exc:
            get_logger().warning("ended by %s", signal.Signals(exc.signum).name)
            return 128 + exc.signum
        except KeyboardInterrupt as exc:
            get_logger().warning("aborted")
            return _code(exc)
    return 0


def _code(exc: KeyboardInterrupt) -> int:
    """128 + the number of the signal that came first."""
    return 128 + (exc.signum if isinstance(exc, Aborted) else signal.SIGINT)


def program() -> int:
    """The command line as a program: what nobody has foreseen is one line, too.

    Returns:
        The exit code.
    """
    try:
        return main()
    except BrokenPipeError:  # `... --help | head`
        return 128 + signal.SIGPIPE
    except Exception as exc:
        import logging

        logging.getLogger().debug("where the error comes from:", exc_info=True)
        if isinstance(exc, ModuleNotFoundError) and (missing := missing_requirement(exc)):
            return report_error(missing)
        sys.stderr.write(f"error: {fault(exc)}\n")
        return 1


def _flush() -> None:
    """Nothing is left for Python to write at its end, where it would fail: the reader, or the
    terminal, may be gone.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    code = program()
    for signum in ENDING:  # the run has ended: nobody has to be told again
        signal.signal(signum, signal.SIG_IGN)
    _flush()
    sys.exit(code)
