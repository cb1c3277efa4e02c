"""`runner: ray` against `runner: parallel` on this machine: `python benchmarks/remote_envs.py`.

Eight environments that take 5 ms a step, in the shapes of SMAC's map 6h_vs_8z, collected by both
runners in turn: environment steps/s. `--pause MS`, `--envs N`, `--actors N` change that. The
environment waits, as one does that plays a game in another process; `--busy` lets it compute.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from benchmarks.common import NoLog, make_args  # noqa: E402
from benchmarks.dummy_envs import SingleDummy  # noqa: E402

from assembly import build_mac, scheme_of  # noqa: E402
from envs import REGISTRY, register  # noqa: E402
from runners import REGISTRY as RUNNERS  # noqa: E402

SLOW = "benchmark_slow"


class SlowDummy(SingleDummy):
    """Takes its time in every step.

    Args:
        pause: [s].
        busy: computes meanwhile, instead of waiting.
    """

    def __init__(self, seed, pause=0.005, busy=False):
        super().__init__(seed)
        self.pause, self.busy = pause, busy

    def step(self, actions):
        if self.busy:
            end = time.thread_time() + self.pause
            while time.thread_time() < end:
                pass
        else:
            time.sleep(self.pause)
        return super().step(actions)


if SLOW not in REGISTRY:
    register(SLOW)(SlowDummy)


def make_runner(name, options):
    """A runner with QMIX's controller acting."""
    args = make_args(runner=name, batch_size_run=options.envs, env=SLOW, test_nepisode=options.envs)
    args.env_args = {"pause": options.pause / 1000, "busy": options.busy}
    args.plugins = ["benchmarks.remote_envs"]
    args.ray = {**args.ray, "envs_per_actor": -(-options.envs // options.actors)}
    runner = RUNNERS[name](args, NoLog())
    runner.setup(*scheme_of(args), build_mac(args))
    runner.run()
    return runner


def steps_per_second(runner):
    """Of one collection."""
    before, start = runner.t_env, time.perf_counter()
    runner.run()
    return (runner.t_env - before) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pause", type=float, default=5.0, help="of a step [ms]")
    parser.add_argument("--busy", action="store_true", help="steps compute instead of waiting")
    parser.add_argument("--envs", type=int, default=8, help="environments")
    parser.add_argument("--actors", type=int, default=1, help="actors that share them")
    parser.add_argument("--rounds", type=int, default=11, help="collections with each runner")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runners = {name: make_runner(name, options) for name in ("parallel", "ray")}
    rates = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, runner in runners.items():
            rates[name].append(steps_per_second(runner))
    for name, runner in runners.items():
        runner.close_env()
        low, middle, high = statistics.quantiles(rates[name], n=4)
        print(f"{name}: {middle:,.0f} steps/s (quartiles {low:,.0f} - {high:,.0f})")
    ratios = [ours / theirs for ours, theirs in zip(rates["ray"], rates["parallel"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ray / parallel: {middle:.2f} (quartiles {low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
