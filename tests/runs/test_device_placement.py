"""Learners keep all they compute with on the learner's device: shown with a device that is not
there.

See `pretend_cuda.py` for what that shows and what it does not.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from device_runs import RUNS

HERE = Path(__file__).parent
PATH = [str(path) for path in (HERE, HERE.parent, HERE.parents[1] / "src", HERE.parents[1])]
QUICK = ("qmix", "maac")


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
    """All operands of every operation are on the device, and numbers, records and checkpoints are
    those of the CPU.
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
