"""What a sweep of many runs costs: `python benchmarks/sweeps.py [RUNS]`, 10,000 by default.

Writes the folders that so many runs leave, then measures `sweep status`, starting the sweep anew
where everything is done, and `report --html`: seconds, seconds of computing, and the most memory
that each took.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from launch.folder import Sweep, plan  # noqa: E402
from launch.jobs import Job  # noqa: E402
from launch.resources import Resources  # noqa: E402
from utils.config import build_config  # noqa: E402

ALGORITHMS, MAPS, SEEDS = ("qmix", "vdn", "iql", "qplex"), 25, 100
_FIGURES = ("test_return_mean", "return_mean", "loss_td", "grad_norm", "epsilon", "q_taken_mean")


def fake_sweep(folder, n_runs, n_points=50):
    """Writes a sweep whose runs never ran: of 100, 97 are done, the others failed, waiting and
    stopped.

    Args:
        folder: of the results.
        n_points: steps at which a run logged.

    Returns:
        Key -> state.
    """
    jobs = [
        Job(name, "matrix_game", {"env_args.map_name": f"m{place}", "t_max": 1000, "seed": seed})
        for name in ALGORITHMS
        for place in range(MAPS)
        for seed in range(SEEDS)
    ]
    sweep = Sweep(folder, "fake", "local", plan(jobs[:n_runs], folder), Resources(), {})
    sweep.save()
    base = {name: build_config(name, "matrix_game", ["use_cuda=False"]) for name in ALGORITHMS}
    states = {}
    for i, run in enumerate(sweep.runs):
        state = {97: "failed", 98: "waiting", 99: "stopped"}.get(i % 100, "done")
        states[run.key] = state
        if state != "waiting":
            _write(run, base[run.job.algorithm], state, n_points)
    return states


def _write(run, base, state, n_points):
    run.note("start", pid=1, launcher="local")
    settings = run.job.settings
    place = run.folder / "sacred" / run.job.algorithm / settings["env_args.map_name"] / "1"
    place.mkdir(parents=True)
    env_args = {**base["env_args"], "map_name": settings["env_args.map_name"]}
    config = {**base, "seed": settings["seed"], "t_max": settings["t_max"], "env_args": env_args}
    (place / "config.json").write_text(json.dumps(config))
    status = {"failed": "FAILED", "stopped": "INTERRUPTED"}.get(state, "COMPLETED")
    (place / "run.json").write_text(json.dumps({"status": status}))
    for name, keys in (("metrics", _FIGURES), ("timing", ("seconds", "steps_per_second"))):
        lines = [
            json.dumps({"t": t * 20, "key": key, "value": (settings["seed"] * 7 + t) % 11 / 11})
            for t in range(n_points)
            for key in keys
        ]
        (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    run.log.write_text("error: it was told to\n")
    run.note("end", code={"failed": 1, "stopped": 143}.get(state, 0))


def _measure(*words):
    """Seconds, seconds of computing, and megabytes of a command."""
    start, before = time.monotonic(), _computed()
    command = [sys.executable, str(ROOT / "src" / "main.py"), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Of the largest child so far: commands are measured from the smallest to the largest.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    return time.monotonic() - start, _computed() - before, peak


def _computed():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main():
    n_runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "fake"
        fake_sweep(folder, n_runs)
        for words in (
            ("sweep", "status", str(folder)),
            ("report", str(folder), "--html", "--out", str(Path(place) / "report")),
        ):
            seconds, computed, memory = _measure(*words)
            print(
                f"{words[0]} of {n_runs} runs: {seconds:.1f} s, of which {computed:.1f} s of "
                f"computing, {memory:.0f} MB"
            )


if __name__ == "__main__":
    main()
