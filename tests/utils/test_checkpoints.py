"""Checkpoint folders: complete or absent, pruned, found again."""

import json

import pytest
import torch

from utils import checkpoints
from utils.checkpoints import (
    list_checkpoints,
    newest_readable,
    read_checkpoint,
    resolve_resume,
    write_checkpoint,
)
from utils.errors import UserError

BASE = {
    "name": "qmix",
    "gamma": 0.99,
    "t_max": 100,
    "seed": 3,
    "env_args": {"map_name": "x", "seed": 3},
    "resume": "",
}


def models(path):
    torch.save({"w": torch.ones(2)}, f"{path}/agent.th")


def write(folder, t_env, keep=9):
    state = {"has_buffer": True, "value": t_env}
    return write_checkpoint(folder, t_env, state, {"data": torch.zeros(3)}, models, keep)


def make_run(root, number, t_env, **changes):
    run_dir = root / "sacred" / "qmix" / "x" / str(number)
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(
        json.dumps({**BASE, **changes, "local_results_path": str(root)})
    )
    write(run_dir / "checkpoints", t_env)
    return run_dir


def config(root, **changes):
    return {**BASE, "local_results_path": str(root), **changes}


def test_newest_first_and_old_ones_lose_all_but_their_models(tmp_path):
    for t_env in (5, 100, 20):
        write(tmp_path, t_env)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["100", "20", "5"]
    write(tmp_path, 200, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["200", "100"]
    assert sorted(path.name for path in (tmp_path / "5").iterdir()) == ["agent.th"]
    state, buffer = read_checkpoint(tmp_path / "200")
    assert state["value"] == 200
    assert torch.equal(buffer["data"], torch.zeros(3))


def test_a_write_that_fails_leaves_the_old_checkpoints_and_no_half_one(tmp_path):
    write(tmp_path, 1)

    def fails(path):
        models(path)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, 2, {"has_buffer": False}, None, fails, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert read_checkpoint(tmp_path / "1")[0]["value"] == 1


@pytest.mark.parametrize("file", ["state.pt", "buffer.pt"])
def test_torn_files_are_skipped_with_a_warning(tmp_path, file, caplog):
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    assert newest_readable(tmp_path).name == "1"
    assert "cannot be read" in caplog.text


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    path = write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99"):
        read_checkpoint(path)


def test_auto_takes_the_newest_unfinished_run_of_this_configuration(tmp_path):
    make_run(tmp_path, 1, 50)
    make_run(tmp_path, 2, 60)
    make_run(tmp_path, 3, 100)  # has reached t_max
    make_run(tmp_path, 4, 50, gamma=0.9)  # another configuration
    make_run(tmp_path, 5, 50, seed=4)
    point = resolve_resume(config(tmp_path, resume="auto"))
    assert (point.run_id, point.checkpoint_dir.name, point.seed) == ("2", "60", 3)
    any_seed = resolve_resume(config(tmp_path, resume="auto", seed=None, t_max=1000))
    assert (any_seed.run_id, any_seed.seed) == ("5", 4)
    assert resolve_resume(config(tmp_path, resume="auto", gamma=0.5)) is None


def test_a_path_may_be_a_run_or_one_of_its_checkpoints(tmp_path):
    run_dir = make_run(tmp_path, 1, 50)
    write(run_dir / "checkpoints", 70)
    assert resolve_resume(config(tmp_path, resume=str(run_dir))).checkpoint_dir.name == "70"
    chosen = resolve_resume(config(tmp_path, resume=str(run_dir / "checkpoints" / "50")))
    assert (chosen.run_dir, chosen.checkpoint_dir.name) == (run_dir, "50")
    with pytest.raises(
        UserError, match=r"other values of env_args.map_name, gamma|gamma, env_args.map_name"
    ):
        resolve_resume(config(tmp_path, resume=str(run_dir), gamma=0.5, env_args={"map_name": "y"}))
    with pytest.raises(UserError, match="no run folder"):
        resolve_resume(config(tmp_path, resume=str(tmp_path / "nowhere")))
