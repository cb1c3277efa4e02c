"""Do short runs still write the same figures? One run per learner family and runner, compared byte
for byte.

python tests/digests.py record FILE [--jobs 2] [--only NAME ...] python tests/digests.py compare
FILE [--jobs 2] [--only NAME ...]

`record` writes the SHA-256 of every run's `metrics.jsonl`; `compare` makes the runs again and lists
those whose digest differs. Digests hold for one machine and one version of torch (products are
summed in another order elsewhere), so they are not committed: record them before a change that must
not alter any number, compare after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INTERVALS = "log_interval=200 learner_log_interval=100 runner_log_interval=200"
COMMON = (
    "use_cuda=False seed=7 test_interval=400 test_nepisode=4 save_model=False "
    f"learner_threads=1 {INTERVALS}"
)
EPISODES = "batch_size=4 buffer_size=32"
BATTLE = "scenario=3m batch_size=4"
TRANSITIONS = (
    "batch_size=64 steps_per_update=50 updates_per_step=1 t_max=1500 batch_size_run=4 "
    "buffer_size=200"
)
MODELS = (
    "moa_trajectories=20 moa_character_batch=8 warmup_episodes=20 "
    "moa_natural_batch=64 recent_transitions=64"
)
SIM = "runner=vector batch_size_run=4 t_max=900 batch_size=8 buffer_size=64"
GREEDY = f"{SIM} epsilon_anneal_time=300"
Q = f"{EPISODES} t_max=1500"

# name -> algorithm, environment, settings
CASES: dict[str, tuple[str, str, str]] = {
    "iql_predator_episode": (
        "iql",
        "predator_prey",
        f"{Q} runner=episode batch_size_run=1 t_max=800",
    ),
    "iql_ns_predator": ("iql_ns", "predator_prey", Q),
    "vdn_matrix_parallel": (
        "vdn",
        "matrix_game",
        f"{Q} t_max=400 runner=parallel batch_size_run=2",
    ),
    "qmix_predator_parallel": ("qmix", "predator_prey", f"{Q} runner=parallel batch_size_run=2"),
    "qmix_predator_vector": ("qmix", "predator_prey", f"{Q} runner=vector batch_size_run=2"),
    "qmix_3m": ("qmix", "sc2sim", SIM),
    "qmix_v2": ("qmix", "sc2sim_v2", SIM),
    "qmix_two_step": ("qmix", "matrix_game", f"{Q} t_max=400 env_args.map_name=two_step"),
    "qmix_gymma": ("qmix", "gymma", f"{Q} runner=parallel batch_size_run=2"),
    "qatten": ("qatten", "sc2sim", SIM),
    "qplex": ("qplex", "sc2sim", SIM),
    "qtran": ("qtran", "sc2sim", SIM),
    "ow_qmix": ("ow_qmix", "sc2sim", SIM),
    "cw_qmix": ("cw_qmix", "predator_prey", Q),
    "pac": ("pac", "sc2sim", SIM),
    "marr": ("marr", "sc2sim", f"{SIM} updates_per_collection=3 reset_interval=8"),
    "cama": ("cama", "sc2sim", SIM),
    "hysteretic": ("hysteretic", "predator_prey", Q),
    "distributed_q": ("distributed_q", "matrix_game", f"{Q} t_max=400"),
    "i2q": ("i2q", "predator_prey", Q),
    "dac_wind": ("dac", "switching_wind", f"{Q} t_max=1500"),
    "dac_predator": ("dac", "predator_prey", Q),
    "dac_phi": ("dac_phi", "predator_prey", Q),
    "lola": ("lola", "spread", TRANSITIONS),
    "s2q_3m": ("s2q", "sc2sim", GREEDY),
    "s2q_comm": ("s2q_comm", "sc2sim", GREEDY),
    "s2q_vdn": ("s2q_vdn", "sc2sim", GREEDY),
    "s2q_qplex": ("s2q_qplex", "sc2sim", GREEDY),
    "s2q_independent": ("s2q_independent", "sc2sim", GREEDY),
    "s2q_no_soft": ("s2q_no_soft", "sc2sim", GREEDY),
    "s2q_no_wtd": ("s2q_no_wtd", "sc2sim", GREEDY),
    "s2q_oracle": ("s2q_oracle", "sc2sim", f"{GREEDY} s2q_temperature=0.001"),
    "s2q_random": ("s2q_random", "sc2sim", GREEDY),
    "maddpg": ("maddpg", "spread", TRANSITIONS),
    "ippo": ("ippo", "sc2sim", f"{SIM} batch_size=4"),
    "mappo": ("mappo", "sc2sim", f"{SIM} batch_size=4"),
    "happo": ("happo", "sc2sim", f"{SIM} batch_size=4"),
    "hasac": ("hasac", "spread", TRANSITIONS),
    "hatrpo": ("hatrpo", "sc2sim", f"{SIM} batch_size=4"),
    "mat": ("mat", "sc2sim", f"{SIM} batch_size=4 ppo_epochs=5"),
    "ma_ppo": (
        "ma_ppo",
        "spread",
        "batch_size=8 batch_size_run=8 buffer_size=8 accumulated_episodes=8 t_max=1500",
    ),
    "maac": ("maac", "spread", TRANSITIONS),
    "maac_3m": ("maac", "sc2sim", f"{TRANSITIONS} common_reward=True"),
    "mamd": ("mamd", "spread", TRANSITIONS),
    "mamd_op": ("mamd_op", "spread3_sep", TRANSITIONS),
    "mamt": ("mamt", "spread", f"{TRANSITIONS} env_args.n_agents=3"),
    "mamt_fixed": ("mamt_fixed", "spread", f"{TRANSITIONS} env_args.n_agents=3"),
    "mamt_random": ("mamt_random", "spread", f"{TRANSITIONS} env_args.n_agents=3"),
    "mamt_ws": ("mamt_ws", "spread", f"{TRANSITIONS} env_args.n_agents=3"),
    "mamt_ppo": (
        "mamt_ppo",
        "spread",
        "batch_size=8 batch_size_run=8 buffer_size=8 accumulated_episodes=8 t_max=1500",
    ),
    "coma": ("coma", "rover_tower", "t_max=1500"),
    "ma_ac": ("ma_ac", "rover_tower", "t_max=1500"),
    "f2a2_sac": ("f2a2_sac", "rover_tower", f"{TRANSITIONS} {MODELS}"),
    "f2a2_sac_ring": (
        "f2a2_sac",
        "rover_tower",
        f"{TRANSITIONS} {MODELS} topology=ring moa_common=False",
    ),
    "f2a2_ddpg": ("f2a2_ddpg", "rover_tower", f"{TRANSITIONS} {MODELS}"),
    "f2a2_td3": ("f2a2_td3", "rover_tower", f"{TRANSITIONS} {MODELS}"),
    "f2a2_coma": ("f2a2_coma", "rover_tower", f"t_max=1500 {MODELS}"),
    "f2a2_isac": ("f2a2_isac", "battle", f"{TRANSITIONS} t_max=2500 runner=vector"),
}


def digest(name: str) -> str:
    """SHA-256 of the run's metrics, or the last line of its output if it fails."""
    algorithm, environment, settings = CASES[name]
    with tempfile.TemporaryDirectory(prefix=f"digest-{name}-") as folder:
        command = [
            sys.executable,
            "src/main.py",
            f"--config={algorithm}",
            f"--env-config={environment}",
            "with",
        ]
        command += [*COMMON.split(), *settings.split(), f"local_results_path={folder}"]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600
        )
        metrics = list(Path(folder).rglob("metrics.jsonl"))
        if done.returncode or len(metrics) != 1:
            return f"failed: {(done.stdout + done.stderr).strip().splitlines()[-1:]}"
        text = metrics[0].read_bytes()
        keys = {json.loads(line)["key"] for line in text.splitlines()}
        learned = sum(
            not key.startswith(("test_", "return", "ep_length", "epsilon", "episode"))
            for key in keys
        )
        lines = len(text.splitlines())
        return f"{hashlib.sha256(text).hexdigest()} lines {lines} learner keys {learned}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(args.only, pool.map(digest, args.only), strict=True))
    if args.what == "record":
        known = json.loads(args.file.read_text()) if args.file.exists() else {}
        args.file.write_text(json.dumps(known | found, indent=1) + "\n")
        wrong = [f"{name}: {value}" for name, value in found.items() if value.startswith("failed")]
    else:
        known = json.loads(args.file.read_text())
        wrong = [
            f"{name}: {known.get(name)} -> {value}"
            for name, value in found.items()
            if known.get(name) != value
        ]
    sys.stdout.write(
        "".join(f"{line}\n" for line in wrong)
        + f"{len(found) - len(wrong)} of {len(found)} as wanted\n"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
