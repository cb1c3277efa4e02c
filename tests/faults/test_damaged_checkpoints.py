"""No moment and no damage leaves a run without something to go on from, or without a word."""

import contextlib
import json
import os
import shutil
import sys

import pytest
import torch
from run_fixtures import finish, start_run

from utils.checkpoints import (
    list_checkpoints,
    newest_readable,
    read_checkpoint,
    resolve_resume,
    step_of,
    tidy_checkpoints,
    write_checkpoint,
)
from utils.config import build_config
from utils.errors import UserError
from utils.line_file import LineFile
from utils.observers import write_json


class Stop(BaseException):
    """Comes from nowhere, as a signal does."""


def models(path):
    torch.save({"w": torch.ones(2)}, f"{path}/agent.th")


def write(folder, t_env, value, keep=1):
    state = {"has_buffer": True, "value": value}
    return write_checkpoint(folder, t_env, state, {"data": torch.zeros(3)}, models, keep)


def is_system_call(function):
    owner = (
        getattr(function, "__module__", None)
        or type(getattr(function, "__self__", None)).__module__
    )
    return owner in ("posix", "_io", "io", "_posixsubprocess")


def at_system_call(number, action, work):
    """Does `action` before or after the system call `number` of `work`; how many there were."""
    count = 0

    def watch(frame, event, function):
        nonlocal count
        if event in ("c_call", "c_return") and is_system_call(function):
            count += 1
            if count == number:
                action()

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def interrupt():
    raise Stop


def kill():
    os._exit(9)


@pytest.fixture
def before(tmp_path):
    """Two checkpoints, of which the newest is written anew."""
    folder = tmp_path / "before"
    write(folder, 10, "older", keep=2)
    write(folder, 20, "old", keep=2)
    return folder


def survived(folder):
    """There is a checkpoint, and after the next one no stray of the attempt is left."""
    path = newest_readable(folder)
    assert path is not None
    assert step_of(path) == 20
    assert read_checkpoint(path)[0]["value"] in ("old", "new")
    write(folder, 20, "next")
    assert read_checkpoint(folder / "20")[0]["value"] == "next"
    assert sorted(os.listdir(folder)) == ["10", "20"]
    assert os.listdir(folder / "10") == ["agent.th"]


def test_interrupt_at_every_system_call(before, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(before, folder)
    calls = at_system_call(0, interrupt, lambda: write(folder, 20, "new"))
    assert calls > 60
    for number in range(1, calls + 1):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        with contextlib.suppress(Stop, OSError):  # rmtree closes twice if interrupted
            at_system_call(number, interrupt, lambda: write(folder, 20, "new"))
        survived(folder)


def kill_at(number, folder):
    pid = os.fork()
    if pid == 0:
        at_system_call(number, kill, lambda: write(folder, 20, "new"))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    "stride", [7, pytest.param(1, marks=pytest.mark.long)], ids=["some", "every"]
)
def test_kill_at_system_calls(before, tmp_path, stride):
    folder = tmp_path / "checkpoints"
    shutil.copytree(before, folder)
    calls = at_system_call(0, kill, lambda: write(folder, 20, "new"))
    for number in range(1, calls + 1, stride):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        assert kill_at(number, folder) == 9
        survived(folder)


def test_one_that_stands_aside_is_found_and_put_back(before):
    os.replace(before / "20", before / ".20.old")
    assert [path.name for path in list_checkpoints(before)] == [".20.old", "10"]
    assert read_checkpoint(before / ".20.old")[0]["value"] == "old"
    (before / ".30.partial").mkdir()
    (before / "10" / "state.pt").unlink()  # killed between two deletions
    tidy_checkpoints(before)
    assert sorted(os.listdir(before)) == ["10", "20"]
    assert os.listdir(before / "10") == ["agent.th"]


def test_what_is_written_stays_where_the_course_was_taken_up_earlier(tmp_path):
    write(tmp_path, 100, "given up")
    write(tmp_path, 60, "goes on")
    assert read_checkpoint(tmp_path / "60")[0]["value"] == "goes on"


@pytest.mark.parametrize("file", ["state.pt", "buffer.pt"])
def test_one_flipped_byte_is_refused(before, file):
    path = before / "20" / file
    content = path.read_bytes()
    for place in range(0, len(content), 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        for with_buffer in (True, False):
            with pytest.raises(UserError, match="damaged"):
                read_checkpoint(before / "20", with_buffer)
    path.write_bytes(content)
    assert read_checkpoint(before / "20")[0]["value"] == "old"


def test_without_checksums_the_members_are_checked(before):
    (before / "20" / "crc32.json").unlink()
    with pytest.raises(UserError, match="has no section 'training'"):
        read_checkpoint(before / "20")
    path = before / "20" / "buffer.pt"
    content = bytearray(path.read_bytes())
    content[content.find(b"data/0") + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(before / "20")


# --- Damaged files ---

SMALL = [
    "use_cuda=False",
    "t_max=200",
    "batch_size=2",
    "batch_size_run=2",
    "buffer_size=8",
    "rnn_hidden_dim=4",
    "runner=vector",
    "env_args.episode_limit=10",
    "test_nepisode=2",
    "log_interval=20",
    "runner_log_interval=20",
    "learner_log_interval=20",
    "seed=1",
    "save_model_interval=60",
]
RUN = "sacred/vdn/predator_prey/1"
FILES = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "timing.jsonl",
    "checkpoints/200/state.pt",
    "checkpoints/200/buffer.pt",
    "checkpoints/200/crc32.json",
    "checkpoints/200",
)


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one byte": lambda content: flip(content, len(content) // 2),
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda content: bytes(range(256)) * 4,
    "a list": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "deep": lambda content: b"[" * 100_000,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that ended early, with two full checkpoints."""
    results = tmp_path_factory.mktemp("whole")
    run_dir = results / RUN
    run_dir.mkdir(parents=True)
    finish(start_run("vdn", "predator_prey", run_dir, SMALL))
    write_json(run_dir / "config.json", config(results, "seed=1"))
    write_json(run_dir / "run.json", {"status": "INTERRUPTED"})
    assert next(path.name for path in list_checkpoints(run_dir / "checkpoints")) == "200"
    return results


def config(results, *settings):
    settings = [*SMALL, f"local_results_path={results}", "t_max=1000", *settings]
    made = build_config("vdn", "predator_prey", settings)
    made["env_args"]["seed"] = made["seed"]
    return made


@pytest.fixture
def run_dir(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "results")
    return tmp_path / "results" / RUN


def damage(path, kind):
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"a file")
    elif kind == "missing":
        path.unlink()
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))


def loads(point, run_dir):
    """Whether a run can be built from a point; it says what is wrong in one line if not."""
    try:
        training = start_run("vdn", "predator_prey", run_dir, [*SMALL, "t_max=220"])
    except UserError:
        return False
    try:
        training.load(point.checkpoint_dir)
        return True
    finally:
        training.close()
        training.logger.close()


@pytest.mark.parametrize("kind", [*DAMAGES, "missing", "a folder"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_never_ends_in_a_traceback(run_dir, file, kind, caplog):
    results = run_dir.parents[3]
    damage(run_dir / file, kind)
    point = resolve_resume(config(results, "resume=auto"))
    if file.startswith("checkpoints/200"):
        # Without checksums the members of the archives have theirs.
        whole = file.endswith("crc32.json") and kind == "missing"
        assert point.checkpoint_dir.name == ("200" if whole else "180")
    elif file in ("run.json", "timing.jsonl"):
        assert point.checkpoint_dir.name == "200"
    elif point is None and file == "metrics.jsonl":
        assert "does not fit the metrics" in caplog.text
    elif point is None and kind not in ("missing", "a folder"):
        # One byte may be another value: then it is another run.
        assert "config.json cannot be read" in caplog.text or kind == "one byte"
    if point is not None:
        assert loads(point, run_dir) == ((file, kind) != ("timing.jsonl", "a folder"))
        point.lock.release()
    with contextlib.suppress(UserError):
        resolve_resume(config(results, f"resume={run_dir}")).lock.release()


@pytest.mark.parametrize("name", ["²", "٣", "-5", "0x10", "latest", ".7.old", "1e3", " 8"])
def test_folders_of_other_names(run_dir, name):
    folder = run_dir / "checkpoints" / name
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"")
    point = resolve_resume(config(run_dir.parents[3], "resume=auto"))
    assert point.checkpoint_dir.name == "200"
    point.lock.release()


@pytest.mark.parametrize("section", ["training", "runner", "learner", "rng", "logger", "progress"])
def test_a_checkpoint_without_a_section(run_dir, section):
    folder = run_dir / "checkpoints" / "200"
    state, _ = read_checkpoint(folder)
    del state[section]
    torch.save(state, folder / "state.pt")
    (folder / "crc32.json").unlink()
    point = resolve_resume(config(run_dir.parents[3], "resume=auto"))
    assert point.checkpoint_dir.name == "180"
    point.lock.release()


def test_the_next_candidate_after_one_that_is_damaged(run_dir):
    other = run_dir.parent / "2"
    shutil.copytree(run_dir, other)
    for state in other.glob("checkpoints/*/state.pt"):
        state.write_bytes(b"")
        os.utime(state.parent, (2e9, 2e9))  # looked at first
    point = resolve_resume(config(run_dir.parents[3], "resume=auto"))
    assert point.run_id == "1"
    point.lock.release()


def test_metrics_of_another_run_are_not_cut(run_dir):
    metrics = run_dir / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace('"t": 40', '"t": 41', 1))
    with pytest.raises(UserError, match="no readable checkpoint"):
        resolve_resume(config(run_dir.parents[3], f"resume={run_dir}"))
    assert len(metrics.read_text()) == len(text)


def test_a_file_that_is_deleted_while_it_is_written_is_told(tmp_path):
    from utils.errors import RunFailure

    file = LineFile(tmp_path / "metrics.jsonl")
    file.append({"t": 1})
    file.sync()
    os.unlink(tmp_path / "metrics.jsonl")
    with pytest.raises(RunFailure, match="was deleted, moved or replaced"):
        file.sync()
    file.close()


@pytest.mark.parametrize("kind", [*DAMAGES, "missing", "a folder", "foreign", "another form"])
@pytest.mark.parametrize("file", ["agent.th", "opt.th"])
def test_evaluate_with_a_damaged_model(run_dir, file, kind, tmp_path):
    path = run_dir / "checkpoints" / "200" / file
    if kind == "foreign":
        torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    elif kind == "another form":
        torch.save(torch.zeros(3), path)
    elif kind == "one byte":
        content = path.read_bytes()  # within what a member holds, not in the space between two
        path.write_bytes(flip(content, content.find(b"OrderedDict") + 4))
    else:
        damage(path, kind)
    training = start_run("vdn", "predator_prey", tmp_path / "evaluated", [*SMALL, "t_max=220"])
    try:
        with pytest.raises(UserError, match="do not fit this configuration") as caught:
            training.load_models(run_dir / "checkpoints", 200)
        assert "\n" not in str(caught.value)
    finally:
        training.close()
        training.logger.close()


def test_finished_runs_are_told(run_dir):
    from utils.errors import Finished

    results = run_dir.parents[3]
    (run_dir / "run.json").write_text(json.dumps({"status": "COMPLETED"}))
    with pytest.raises(Finished, match="finished already"):
        resolve_resume(config(results, "resume=auto", "t_max=200"))
    assert resolve_resume({**config(results, "resume=auto", "t_max=200"), "seed": None}) is None
    longer = resolve_resume(config(results, "resume=auto", "t_max=5000"))
    assert longer.checkpoint_dir.name == "200"
    longer.lock.release()
