"""A sweep of thousands of runs that never ran: its folders as real runs leave them."""

import json
from pathlib import Path

from launch.folder import Sweep, plan
from launch.jobs import Job
from launch.resources import Resources
from utils.config import build_config


def fake_sweep(folder, n_runs, n_points=50):
    """Writes the sweep: most runs done, some at work, failed or not begun.

    Returns:
        Key -> the state it is given.
    """
    algorithms, n_maps, n_seeds = ("qmix", "vdn", "iql", "qplex"), 25, 100
    jobs = [
        Job(algorithm, "matrix_game", {"env_args.map_name": f"m{place}", "t_max": 1000, "seed": s})
        for algorithm in algorithms
        for place in range(n_maps)
        for s in range(n_seeds)
    ][:n_runs]
    sweep = Sweep(folder, "fake", "local", plan(jobs, folder), Resources(), {})
    sweep.save()
    base = {name: build_config(name, "matrix_game", ["use_cuda=False"]) for name in algorithms}
    given = {}
    for i, run in enumerate(sweep.runs):
        state = {97: "failed", 98: "waiting", 99: "stopped"}.get(i % 100, "done")
        given[run.key] = state
        if state == "waiting":
            continue
        run.note("start", pid=1, launcher="local")
        settings = run.job.settings
        place = run.folder / "sacred" / run.job.algorithm / settings["env_args.map_name"] / "1"
        _write_run(place, base[run.job.algorithm], settings, state, n_points)
        run.log.write_text("error: it was told to\n")
        run.note("end", code={"failed": 1, "stopped": 143}.get(state, 0))
    return given


def _write_run(place: Path, base, settings, state, n_points):
    place.mkdir(parents=True)
    env_args = {**base["env_args"], "map_name": settings["env_args.map_name"]}
    config = {**base, "seed": settings["seed"], "t_max": settings["t_max"], "env_args": env_args}
    (place / "config.json").write_text(json.dumps(config))
    status = {"failed": "FAILED", "stopped": "INTERRUPTED"}.get(state, "COMPLETED")
    (place / "run.json").write_text(json.dumps({"status": status}))
    keys = ("test_return_mean", "return_mean", "loss_td", "grad_norm", "epsilon", "q_taken_mean")
    lines = [
        json.dumps({"t": t * 20, "key": key, "value": (settings["seed"] * 7 + t) % 11 / 11})
        for t in range(n_points)
        for key in keys
    ]
    (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    timing = [
        json.dumps({"t": t * 20, "key": key, "value": t})
        for t in range(n_points)
        for key in ("seconds", "steps_per_second")
    ]
    (place / "timing.jsonl").write_text("\n".join(timing) + "\n")
