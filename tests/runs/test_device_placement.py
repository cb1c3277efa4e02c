"""Learners keep all they compute with on the learner's device: shown with a device that is not
there.

See `pretend_cuda.py` for what that shows and what it does not.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from device_runs import RUNS

from learners.base import Learner
from utils.errors import Diverged

HERE = Path(__file__).parent
PATH = [str(path) for path in (HERE, HERE.parent, HERE.parents[1] / "src", HERE.parents[1])]
QUICK = ("qmix", "maac")

# Windows of the past are ragged, and how long they are is known on the device alone: F2A2's models
# of other agents, and its recurrent networks. MASIA picks the steps that have successors.
WAITS = {
    "f2a2": ("modules/f2a2/sequences.py", "utils/rl_utils.py"),
    # Moments of the rewards are kept in main memory.
    "ia2c": ("utils/rl_utils.py",),
    "masia": ("learners/auxiliary/masia.py", "a backward pass"),
}


def run(code, *arguments):
    """Python in a process of its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"import sys; sys.path[:0] = {PATH}; {code}",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_training_there_is_training_here(name, tmp_path):
    """All operands of every operation are on the device, numbers, records and checkpoints are those
    of the CPU, and an update that logs nothing waits for nothing: no `.item()`, no transfer, no
    mask as an index.
    """
    done = run("import device_runs; device_runs.main()", str(tmp_path), name)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert "error" not in result, result.get("error")
    assert result["names"]
    assert result["values"]
    assert result["records"] > 20
    assert result["largest_difference"] < 1e-3
    here, there = result["share_on_device"]
    assert here == 0.0
    assert there > 0.5  # counters may stay
    assert result["watched_updates"] > 1
    allowed = WAITS.get(name.partition("_")[0], ())
    assert [line for line in result["waiting_lines"] if not line.startswith(allowed)] == []


def test_a_line_that_waits_is_found(tmp_path):
    """The watch itself: a learner that reads a number in every update."""
    code = (
        "import device_runs; from learners.q_learner import QLearner as Q; train = Q.train\n"
        "def reading(self, batch, *rest):\n"
        "    batch['reward'].sum().item(); return train(self, batch, *rest)\n"
        "Q.train = reading; print(device_runs.waits('qmix')['waiting_lines'])"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "_local_scalar_dense" in done.stdout


def test_numbers_that_are_not_finite_are_told_later():
    learner = Learner.__new__(Learner)
    learner.args = SimpleNamespace(learner_log_interval=100)
    learner.log_stats_t, learner._finite = 0, None
    learner._note_finite(torch.tensor(True), 10)
    learner._note_finite(torch.tensor(False), 20)
    learner._note_finite(torch.tensor(True), 30)
    with pytest.raises(Diverged, match="before t_env=100 was not finite"):
        learner._note_finite(torch.tensor(True), 100)
    learner._note_finite(torch.tensor(True), 30)
    learner.raise_if_diverged(40)


REFUSED = {
    "x + y": "on the CPU",
    "x @ y": "on the CPU",
    "torch.nn.Linear(3, 3).cuda()(y)": "on the CPU",
    "x.index_select(0, i)": "on the CPU",
    "y[i.cuda()]": "indices should be on the CPU",
    "x.numpy()": "numpy",
}
ALLOWED = {
    "x + torch.tensor(1.0)": "on the device",
    "x[i]": "on the device",
    "y.cuda() + x": "on the device",
    "x.cpu() + y": "here",
    "torch.zeros(2, device=x.device)": "on the device",
    "y.copy_(x)": "here",
}


def test_the_device_refuses_what_a_gpu_refuses():
    code = f"""
import json, torch
from pretend_cuda import PretendTensor, pretend_cuda
said = {{}}
with pretend_cuda():
    y, i = torch.ones(3, 3), torch.tensor([0, 2])
    x = y.to("cuda")
    for text in {[*REFUSED, *ALLOWED]}:
        try:
            said[text] = "on the device" if isinstance(eval(text), PretendTensor) else "here"
        except Exception as error:
            said[text] = str(error)
print(json.dumps(said))
"""
    done = run(code.strip())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for text, answer in (REFUSED | ALLOWED).items():
        assert answer in said[text], (text, said[text])
