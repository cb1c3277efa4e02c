"""All experiments: each is valid, listed, and what it was when it was a program."""

import json
import subprocess
import sys

import pytest
from experiments import ROOT
from experiments.__main__ import main
from experiments.spec import load, names

PROGRAMS = {
    "battle",
    "f2a2_parameters",
    "mamt_figures",
    "starcraft_calibration",
    "switching_wind",
}
# experiment, task, method -> the command line of seed 1, as the programs before had it
COMMANDS = {
    ("starcraft", "5m_vs_6m", "S2Q"): """
        s2q sc2sim runner=vector batch_size_run=8 test_interval=10000 test_nepisode=32
        log_interval=50000 use_cuda=False env_args.map_name=5m_vs_6m t_max=500000
        scenario=5m_vs_6m seed=1""",
    ("mamt", "spread", "MAAC"): """
        maac spread t_max=250000 runner_log_interval=5000 learner_log_interval=5000
        test_interval=12500 log_interval=25000 save_model_interval=50000 use_cuda=False seed=1""",
    ("mamt_128", "pursuit", "MAMT"): """
        mamt pursuit t_max=25000000 runner_log_interval=100000 learner_log_interval=100000
        test_interval=1250000 log_interval=2500000 save_model_interval=5000000 use_cuda=False
        buffer_size=2000 buffer_dtype=float16 coordination_sigma=0.02 trust_region_delta=100.0
        batch_size=128 trust_region_batch_size=64 seed=1""",
    ("f2a2", "treasure_collection", "MAAC"): """
        maac treasure_collection t_max=5000000 env_args.episode_limit=100 runner_log_interval=20000
        learner_log_interval=20000 test_interval=50000 log_interval=100000
        save_model_interval=500000 use_cuda=False steps_per_update=0 updates_per_collection=4
        target_tau=0.005 buffer_size=10000 seed=1""",
    ("f2a2_variants_128", "rover_tower", "ring + 40%"): """
        f2a2_sac rover_tower t_max=250000 env_args.episode_limit=25 runner_log_interval=5000
        learner_log_interval=5000 test_interval=12500 log_interval=25000 save_model_interval=25000
        use_cuda=False joint=True moa=True topology=ring topology_extra_edges=40.0
        consensus_interval=1.0 consensus_interval_std=0.0 consensus_start=zero batch_size=128
        recent_transitions=300
        moa_natural_batch=128 seed=1""",
    ("dac_ablations", "weight of L_KL", "beta = 0.1"): """
        dac predator_prey runner=vector batch_size_run=32 updates_per_collection=32 t_max=1000000
        epsilon_anneal_time=500000 test_interval=25000 test_nepisode=32 log_interval=250000
        use_cuda=False scenario=predator_prey dac_k=10 dac_m=10 dac_beta=0.1 env_args.penalty=0.0
        seed=1""",
    ("dac_predator_prey", "P = 1", "DAC"): """
        dac predator_prey runner=vector batch_size_run=32 updates_per_collection=32 t_max=3050000
        epsilon_anneal_time=1500000 test_interval=50000 test_nepisode=32 log_interval=250000
        use_cuda=False scenario=predator_prey_p1 env_args.penalty=1.0 seed=1""",
    ("football", "football", "S2Q"): """
        s2q gfootball runner=parallel batch_size_run=8 env_args.map_name=academy_3_vs_2 t_max=300000
        test_interval=15000 test_nepisode=32 log_interval=30000 save_model_interval=60000
        use_cuda=False scenario=academy_3_vs_2 rnn_hidden_dim=64 central_rnn_hidden_dim=64
        seed=1""",
    ("s2q_ablations_shifting", "shifting payoff", "oracle"): """
        s2q_oracle matrix_game env_args.map_name=shifting env_args.switch_step=10000 runner=vector
        batch_size_run=16 batch_size=64 lr=0.002 epsilon_anneal_time=5000 t_max=20000
        test_interval=400 test_nepisode=16 log_interval=5000 save_model_interval=10000
        use_cuda=False s2q_k=2 s2q_alpha=0.05 s2q_temperature=1.0 seed=1""",
}


@pytest.mark.parametrize("key", COMMANDS, ids=" ".join)
def test_the_command_lines_are_those_of_the_programs_before(key):
    name, task, method = key
    algorithm, environment, *updates = COMMANDS[key].split()
    job = load(name).job(task, method, 1)
    assert (job.algorithm, job.environment) == (algorithm, environment)
    assert sorted(job.updates()) == sorted(updates)


@pytest.mark.parametrize("name", names())
def test_every_run_is_a_valid_configuration(name):
    experiment = load(name)
    assert experiment.about
    assert bool(experiment.program) == (name in PROGRAMS)
    experiment.check()


def test_all_are_listed(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    (line,) = [line for line in lines if line.startswith("mamt_128 ")]
    assert "33/230 runs  MAMT and its baselines with batches of 128" in line


def test_a_small_experiment_from_end_to_end(tmp_path, capsys):
    """Two runs, each a process of its own; then nothing is left to do, and the report is drawn."""
    part = ["dac_matrix_game", "--only", "IQL", "distributed Q", "--seeds", "1", "--t-max", "40"]
    part += ["--results", str(tmp_path), "with", "test_nepisode=2"]
    command = [sys.executable, "-m", "experiments", "run", *part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 runs are there already" in done.stdout
    assert "| matrix game | IQL | 1 |" in done.stdout
    assert "| matrix game | distributed Q | 1 |" in done.stdout
    configs = [
        json.loads(file.read_text()) for file in (tmp_path / "sacred").glob("*/*/*/config.json")
    ]
    assert {config["name"] for config in configs} == {"iql_ns", "distributed_q"}
    assert {config["t_max"] for config in configs} == {40}
    table = (tmp_path / "report" / "dac_matrix_game" / "final.md").read_text()
    assert table in done.stdout
    (tmp_path / "report" / "dac_matrix_game" / "curves.png").unlink()

    main(["run", *part])
    assert "2 of 2 runs are there already" in capsys.readouterr().out
    assert (tmp_path / "report" / "dac_matrix_game" / "curves.png").stat().st_size > 1000
    main(["report", *part])
    assert table in capsys.readouterr().out


def test_a_run_that_fails_ends_the_experiment_with_exit_code_1(tmp_path):
    spec = tmp_path / "failing.yaml"
    spec.write_text(
        "methods: {IQL: iql}\ntasks: {game: {environment: matrix_game}}\nseeds: [1]\n"
        "settings: {t_max: 400, use_cuda: false, lr: 1.0e+30, test_interval: 1000}\n"
        "metrics: {test_return_mean: Return}\n"
    )
    command = [sys.executable, "-m", "experiments", "run", str(spec), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: iql matrix_game t_max=400 use_cuda=False" in done.stderr
    assert "ended with exit code 1" in done.stderr
