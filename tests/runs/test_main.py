"""The command line from the first word to the exit code, with a stand-in for `session`."""

import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from console_fixtures import fresh_console  # noqa: F401

import main as main_module
from doctor import read_requirements
from utils import config as config_module
from utils import observers as observers_module
from utils.errors import REQUIRED, RunFailure, UserError
from utils.logging import Logger
from utils.observers import Interrupted

SRC = Path(main_module.__file__).resolve().parent
pytestmark = pytest.mark.usefixtures("fresh_console")
COMMAND = ["--config=alg.yaml", "--env-config=env.yaml"]
RUNS = Path("results/sacred/alg/3m")


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A folder with two yaml files, and a `session` module whose `run` notes its arguments and
    does `training.act`.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alg.yaml").write_text("# An algorithm.\nlearner: my_learner\n")
    (tmp_path / "env.yaml").write_text("# An environment.\nenv: my_env\nenv_args: {map_name: 3m}\n")
    module = types.ModuleType("session")
    module.calls = []
    module.act = lambda logger: 2.5

    def run(sacred_run, config, log, run_dir, resume=None):
        module.calls.append(types.SimpleNamespace(config=config, run_dir=run_dir, resume=resume))
        logger = Logger(log)
        logger.setup_sacred(sacred_run)
        logger.setup_files(run_dir)
        try:
            return module.act(logger)
        finally:
            logger.close()

    module.run = run
    monkeypatch.setitem(sys.modules, "session", module)
    return module


def run(*words):
    return main_module.main([*COMMAND, *words])


def read(path):
    return json.loads(Path(path).read_text())


def log_one(logger):
    logger.log_stat("return_mean", 1.5, 10)
    return 2.5


def raising(exc, after_metrics=True):
    def act(logger):
        if after_metrics:
            log_one(logger)
        raise exc

    return act


def everything():
    return sorted(path.name for path in Path().iterdir())


# --- A run that goes well ---


def test_a_run_leaves_its_files(training, capsys):
    training.act = log_one
    assert run("with", "seed=7", "t_max=1e4", "label=007", "-c", "a comment") == 0
    (call,) = training.calls
    assert call.run_dir == RUNS.absolute() / "1"
    assert call.resume is None
    assert (call.config["seed"], call.config["t_max"], call.config["label"]) == (7, 10000, "007")
    assert call.config["env_args"] == {"map_name": "3m", "seed": 7}
    assert read(RUNS / "1" / "config.json") == call.config
    entry = read(RUNS / "1" / "run.json")
    assert (entry["status"], entry["result"], entry["meta"]["comment"]) == (
        "COMPLETED",
        2.5,
        "a comment",
    )
    assert entry["meta"]["command_line"] == [
        *COMMAND,
        "with",
        "seed=7",
        "t_max=1e4",
        "label=007",
        "-c",
        "a comment",
    ]
    assert "numpy" in " ".join(entry["experiment"]["dependencies"])
    assert read(RUNS / "1" / "info.json") == {"return_mean": [1.5], "return_mean_T": [10]}
    assert not list(Path("results").glob(".write_test*"))
    assert run() == 0
    assert training.calls[1].run_dir.name == "2"


def test_words_may_come_in_pymarls_order_or_any_other(training):
    argv = [
        "with",
        "seed=1",
        "env_args.map_name=8m",
        "--env-config",
        "env.yaml",
        "--config",
        "alg.yaml",
        "-l",
        "ERROR",
    ]
    assert main_module.main(argv) == 0
    assert training.calls[0].run_dir == Path("results/sacred/alg/8m/1").absolute()


def test_a_seed_is_drawn_and_recorded(training):
    assert run() == run() == 0
    seeds = [read(RUNS / number / "config.json")["seed"] for number in "12"]
    assert seeds == [call.config["seed"] for call in training.calls]
    assert seeds[0] != seeds[1]


def test_output_is_recorded_to_the_end(training, capsys):
    def act(logger):
        sys.stdout.write("printed\n")
        logger.console_logger.info("logged")
        raise RunFailure("worker 3 died\nTraceback of the worker")

    training.act = act
    assert run() == 1
    lines = (RUNS / "1" / "cout.txt").read_text().splitlines()
    assert [line.rpartition("] ")[2] for line in lines] == ["printed", "logged"]
    out, err = capsys.readouterr()
    assert out == "printed\n"
    assert err.splitlines()[-2:] == ["error: worker 3 died", "Traceback of the worker"]


def test_unobserved_keeps_nothing(training, tmp_path):
    training.act = log_one
    assert run("-u") == 0
    assert everything() == ["alg.yaml", "env.yaml"]
    assert not training.calls[0].run_dir.exists()


def test_an_id_may_be_chosen_once(training, capsys):
    assert run("-i", "40") == 0
    assert run("--id=40") == 2
    assert "error: run 40 exists already" in capsys.readouterr().err
    assert read(RUNS / "40" / "run.json")["status"] == "COMPLETED"
    assert run("--id=../x") == 2
    assert "--id must be usable as the name of a folder" in capsys.readouterr().err


def test_a_database_that_is_missing_does_not_stop_the_run_and_no_password_is_kept(
    training, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "pymongo", None)
    assert run("with", "observers.mongo.url=mongodb://me:secret@host/") == 0
    assert capsys.readouterr().err.count("observers.mongo: not used") == 1
    for path in (RUNS / "1").iterdir():
        assert "secret" not in path.read_text()
    assert training.calls[0].config["observers"] == {"mongo": {"url": "mongodb://me:secret@host/"}}


def test_print_config_writes_nothing(training, capsys):
    assert run("print_config", "with", "lr=0.125") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "lr: 0.125 # from the command line" in lines
    assert "learner: my_learner # from alg.yaml" in lines
    assert "gamma: 0.99 # from default.yaml" in lines
    assert everything() == ["alg.yaml", "env.yaml"]
    assert training.calls == []


@pytest.mark.parametrize("option", ["-p", "--print-config"])
def test_the_config_can_be_printed_before_a_run(training, capsys, option):
    assert run(option, "with", "seed=5", "observers.sql.url=sqlite://me:secret@host/x") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "seed: 5 # from the command line" in shown
    assert "map_name: 3m # from env.yaml seed: 5 # from seed" in shown
    assert "secret" not in shown
    assert len(training.calls) == 1
    assert "learner: my_learner" in (RUNS / "1" / "cout.txt").read_text()


# --- Bad input: one line, exit code 2, nothing written ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*COMMAND, "with", "batchsize=3"], "unknown key 'batchsize'; did you mean 'batch_size'?"),
        ([*COMMAND, "with", "batch_size=abc"], "batch_size must be an int, got 'abc'"),
        ([*COMMAND, "with", "batch_size=-8"], "batch_size must be at least 1, got -8"),
        ([*COMMAND, "with", "nothing.yaml"], "cannot read nothing.yaml: No such file or directory"),
        ([*COMMAND, "lr=3"], "settings stand behind the word 'with': with lr=3"),
        ([*COMMAND, "--coment=x"], "unknown option '--coment'; did you mean '--comment'?"),
        ([*COMMAND, "-x"], "unknown option '-x'; "),
        ([*COMMAND, "-F", "x"], "option -F is not supported: results are always written"),
        ([*COMMAND, "-q"], "option -q is not supported: run.sh queues runs"),
        ([*COMMAND, "docter"], "unknown command 'docter'; did you mean 'doctor'?"),
        ([*COMMAND, "a", "b"], "cannot read the command line 'a b'; --help shows its form"),
        ([*COMMAND, "-l", "LOUD"], "the run cannot be started: Unknown level: 'LOUD'"),
        (
            [*COMMAND, "-b", "often"],
            "the run cannot be started: could not convert string to float: 'often'",
        ),
        ([*COMMAND, *COMMAND], "--config is given twice"),
        ([*COMMAND, "with", "resume=auto", "-u"], "resume goes on with a recorded run"),
        (["--config=alg.yaml"], "--env-config=... is missing; --help lists the choices"),
        (
            ["--env-config=env.yaml", "--config"],
            "--config=... is missing; --help lists the choices",
        ),
        (
            ["--config=qmxi", "--env-config=env.yaml"],
            "unknown algorithm 'qmxi'; did you mean 'qmix'?",
        ),
        (["--config=alg.yaml", "--env-config=predator"], "unknown environment 'predator'; "),
        (["--config=no.yaml", "--env-config=env.yaml"], "no such file: no.yaml"),
        (
            [*COMMAND, "with", "local_results_path=alg.yaml/x"],
            "results folder alg.yaml/x: cannot write there (Not a",
        ),
        (["doctor", "now"], "doctor takes no arguments but --cluster, got 'now'"),
    ],
)
def test_bad_input(training, capsys, argv, message):
    assert main_module.main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert out == ""
    assert everything() == ["alg.yaml", "env.yaml"]
    assert training.calls == []


def test_a_broken_yaml_file_is_one_line(training, capsys):
    Path("alg.yaml").write_text("learner: x\nmixer: [1\nlr: 2\n")
    assert run() == 2
    assert capsys.readouterr().err.startswith("error: alg.yaml, line 3: ")


def test_a_full_disk_before_the_run(training, capsys, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(config_module.os, "fsync", full)
    assert run() == 2
    assert capsys.readouterr().err == (
        "error: results folder results: no space left: free some or set local_results_path=...\n"
    )
    assert everything() == ["alg.yaml", "env.yaml"]


def test_a_disk_that_fills_while_sacred_starts(training, capsys, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(observers_module.os, "replace", full)
    assert run() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no space left on the disk of ")
    assert err.count("\n") == 1
    assert everything() == ["alg.yaml", "env.yaml"]


# --- Runs that end early ---


def test_a_user_error_before_the_first_metric_leaves_nothing(training, capsys):
    training.act = raising(UserError("unknown map '3mm'; did you mean '3m'?"), after_metrics=False)
    assert run() == 2
    assert capsys.readouterr().err == "error: unknown map '3mm'; did you mean '3m'?\n"
    assert everything() == ["alg.yaml", "env.yaml"]


def test_folders_that_were_there_stay(training):
    training.act = raising(UserError("unknown map"), after_metrics=False)
    RUNS.mkdir(parents=True)
    assert run() == 2
    assert list(RUNS.iterdir()) == []


def test_a_user_error_after_metrics_keeps_the_run(training, capsys):
    training.act = raising(UserError("too late"))
    assert run() == 2
    assert capsys.readouterr().err == "error: too late\n"
    assert read(RUNS / "1" / "run.json")["status"] == "FAILED"
    assert read(RUNS / "1" / "info.json")["return_mean"] == [1.5]


def test_loglevel_debug_shows_where_an_error_comes_from(training, capsys):
    training.act = raising(UserError("too late"))
    assert run("-l", "DEBUG") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_run(training, capsys):
    training.act = raising(RunFailure("loss is NaN"))
    assert run() == 1
    assert capsys.readouterr().err == "error: loss is NaN\n"
    entry = read(RUNS / "1" / "run.json")
    assert entry["status"] == "FAILED"
    assert "RunFailure: loss is NaN" in "".join(entry["fail_trace"])
    assert read(RUNS / "1" / "info.json")["return_mean"] == [1.5]


def test_a_disk_that_fills_in_the_middle(training, capsys):
    training.act = raising(OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"))
    assert run() == 2
    run_dir = RUNS.absolute() / "1"
    assert capsys.readouterr().err == (
        f"error: no space left on the disk of {run_dir}: free some and continue with "
        f"resume={run_dir}\n"
    )
    assert (RUNS / "1" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EIO, "fails (input/output error)"),
        (errno.EROFS, "has become read-only"),
        (errno.ESTALE, "is gone (stale file handle)"),
    ],
)
def test_a_disk_that_fails_in_the_middle(training, capsys, number, said):
    training.act = raising(OSError(number, os.strerror(number), "metrics.jsonl"))
    assert run() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: the disk of {RUNS.absolute() / '1'} {said}")
    assert err.endswith(f"and continue with resume={RUNS.absolute() / '1'}\n")


def test_the_way_to_a_fault_is_recorded(training):
    training.act = raising(ZeroDivisionError("boom"))
    with pytest.raises(ZeroDivisionError):
        run()
    text = (RUNS / "1" / "cout.txt").read_text()
    assert "Traceback" in text
    assert "ZeroDivisionError: boom" in text


def test_a_fault_is_one_line_and_says_where_to_report_it(training, monkeypatch, capsys):
    def strange(words):
        raise LookupError("no such\nthing")

    monkeypatch.setattr(main_module, "_train", strange)
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=qmix"])
    assert main_module.program() == 1
    err = capsys.readouterr().err
    assert err.startswith("error: LookupError: no such thing (")
    assert err.count("\n") == 1


def test_a_program_that_exits_in_a_run_has_failed(training, capsys):
    training.act = raising(SystemExit(0))
    assert run() == 1
    assert "error: the run was ended by sys.exit(0) in " in capsys.readouterr().err
    assert read(RUNS / "1" / "run.json")["status"] == "FAILED"


def test_a_run_that_is_finished_is_told(training, monkeypatch, capsys):
    from utils import checkpoints
    from utils.errors import Finished

    def find(config):
        raise Finished(RUNS / "1")

    monkeypatch.setattr(checkpoints, "resolve_resume", find)
    assert run("with", "resume=auto", "seed=1") == 0
    assert f"finished already: {RUNS / '1'}" in capsys.readouterr().err
    assert training.calls == []


def test_other_errors_keep_their_traceback(training):
    training.act = raising(ZeroDivisionError("boom"))
    with pytest.raises(ZeroDivisionError, match="boom"):
        run()
    assert read(RUNS / "1" / "run.json")["status"] == "FAILED"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run(training, capsys, signum):
    training.act = raising(Interrupted(signum))
    assert run() == 128 + signum
    assert "Traceback" not in capsys.readouterr().err
    assert read(RUNS / "1" / "run.json")["status"] == "INTERRUPTED"
    assert read(RUNS / "1" / "info.json")["return_mean"] == [1.5]


def test_signals_that_training_does_not_handle(training):
    before = signal.getsignal(signal.SIGTERM)
    training.act = lambda logger: os.kill(os.getpid(), signal.SIGTERM)
    assert run() == 143
    assert read(RUNS / "1" / "run.json")["status"] == "INTERRUPTED"
    training.act = raising(KeyboardInterrupt())
    assert run() == 130
    assert read(RUNS / "2" / "run.json")["status"] == "INTERRUPTED"
    assert signal.getsignal(signal.SIGTERM) is before


# --- Resuming ---


@pytest.fixture
def resumable(training, monkeypatch):
    """A run with seed 11, and a `utils.checkpoints` that finds it."""
    training.act = log_one
    assert run("with", "seed=11") == 0
    module = types.ModuleType("utils.checkpoints")
    module.asked = []
    module.point = types.SimpleNamespace(
        run_dir=RUNS.absolute() / "1",
        run_id="1",
        checkpoint_dir=RUNS.absolute() / "1" / "checkpoints" / "10",
        seed=11,
    )

    def resolve_resume(config):
        module.asked.append((config["resume"], config["seed"]))
        return module.point

    module.resolve_resume = resolve_resume
    monkeypatch.setitem(sys.modules, "utils.checkpoints", module)
    return module


def test_resume_goes_on_in_the_same_folder(training, resumable):
    training.act = lambda logger: logger.log_stat("return_mean", 2.5, 20)
    assert run("with", "resume=auto", "t_max=99") == 0
    assert resumable.asked == [("auto", None)]
    call = training.calls[1]
    assert (call.run_dir, call.resume) == (RUNS.absolute() / "1", resumable.point)
    assert (call.config["seed"], call.config["env_args"]["seed"]) == (11, 11)
    assert [path.name for path in RUNS.iterdir()] == ["1"]
    assert [json.loads(line)["t"] for line in (RUNS / "1" / "metrics.jsonl").open()] == [10, 20]
    entry = read(RUNS / "1" / "run.json")
    assert (entry["status"], len(entry["resumed"])) == ("COMPLETED", 1)
    assert read(RUNS / "1" / "config.json")["t_max"] == 99


def test_resume_auto_without_a_run_starts_a_new_one(training, resumable):
    resumable.point = None
    assert run("with", "resume=auto", "seed=3") == 0
    assert resumable.asked == [("auto", 3)]
    assert training.calls[1].run_dir.name == "2"


def test_an_error_never_removes_a_resumed_run(training, resumable):
    (RUNS / "1" / "metrics.jsonl").write_text("")
    training.act = raising(UserError("unknown map"), after_metrics=False)
    assert run("with", "resume=auto") == 2
    assert (RUNS / "1" / "config.json").is_file()


# --- Other commands ---


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"], ["--config=qmix", "--help"]])
def test_help_lists_algorithms_environments_and_scenarios(argv, capsys):
    assert main_module.main(argv) == 0
    out = capsys.readouterr().out
    for kind, title in (("algs", "Algorithms:"), ("envs", "Environments:")):
        assert title in out
        for name, line in config_module.list_configs(kind).items():
            assert line
            assert any(shown.split() == [name, *line.split()] for shown in out.splitlines())
    names = out[out.index("Scenarios (scenario=NAME):") : out.index("Options (Sacred's):")].split()
    assert set(config_module.list_configs("scenarios")) <= set(names)
    assert "python src/main.py report" in out


def test_report_is_passed_on(monkeypatch, capsys):
    seen = []
    module = types.ModuleType("analysis.report")
    module.main = lambda argv: seen.append(argv) or 5
    monkeypatch.setitem(sys.modules, "analysis.report", module)
    assert main_module.main(["report", "results", "--help"]) == 5
    assert seen == [["results", "--help"]]

    def fail(argv):
        raise UserError("no runs in results")

    module.main = fail
    assert main_module.main(["report", "results"]) == 2
    assert capsys.readouterr().err == "error: no runs in results\n"


def python(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, **options
    )


def test_importing_main_is_light():
    script = (
        "import sys, main; sys.exit(', '.join({'torch', 'sacred', 'numpy', 'rich', 'yaml'} & "
        "set(sys.modules)))"
    )
    done = python("-c", script)
    assert (done.returncode, done.stderr) == (1, "\n")


def test_as_a_program(tmp_path):
    script = str(SRC / "main.py")
    done = python(
        script, "--config=qmix", "--env-config=predator_prey", "with", "lrr=1", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (2, "error: unknown key 'lrr'; did you mean 'lr'?\n")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_closes_early_is_no_error(tmp_path):
    command = f"{sys.executable} {SRC / 'main.py'} --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        ("rich", 2, "`source .venv/bin/activate` is missing"),
        ("PIL.Image", 2, "has no module 'PIL.Image'"),
        ("somebodys", 1, "ModuleNotFoundError: No module named 'somebodys'"),
    ],
)
def test_without_the_requirements(module, code, said, monkeypatch, capsys):
    """The system's Python instead of that of .venv."""

    def fails():
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(main_module, "main", fails)
    assert main_module.program() == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_all_requirements_are_known():
    """By the names of their modules."""
    modules = {
        "setuptools": "pkg_resources",
        "pyyaml": "yaml",
        "protobuf": "google",
        "pillow": "PIL",
    }
    names = [name for name, _ in read_requirements(SRC.parent / "requirements.txt")]
    assert {modules.get(name, name) for name in names} == REQUIRED
