"""The yaml behind MAMT's results: what a run of it is."""

from experiments.spec import load

from utils.config import build_config, check_config

STEPS = {"pursuit": 500, "multiwalker": 500}  # of an episode, elsewhere 25
EPISODES = {"spread": 10000, "spread3_sep": 10000, "spread3_mix": 10000, "spread3_ful": 10000}


def job_of(name, task, method):
    return load(name).job(task, method, 1)


def config_of(job):
    config = build_config(job.algorithm, job.environment, job.updates())
    check_config(config)
    return config


def test_every_run_is_a_valid_configuration():
    seen = set()
    for task, groups in load("mamt").select(seeds=(1,)).cells().items():
        steps = STEPS.get(task, 25)
        for job in (job for jobs in groups.values() for job in jobs):
            config = config_of(job)
            assert config["t_max"] == EPISODES.get(task, 50000) * steps
            # the last five records of training are the last 1,000 episodes
            assert 5 * config["runner_log_interval"] == 1000 * steps
            seen.add((job.algorithm, task))
    assert ("mamt", "rover_tower") in seen
    assert ("mamd_op", "spread3_mix") in seen
    assert ("lola", "spread") in seen


def test_coefficients_among_many_agents_can_reach_the_threshold():
    assert job_of("mamt", "rover_tower", "MAMT").settings["coordination_sigma"] < 1 / 7
    settings = job_of("mamt", "rover_tower", "MAAC").settings
    assert not {"coordination_sigma", "trust_region_delta"} & set(settings)
    # MAMD differs from MAMT in the split alone.
    joint = [job_of("mamt", "rover_tower", label).settings for label in ("MAMD", "MAMT")]
    assert joint[0]["trust_region_delta"] == joint[1]["trust_region_delta"]


def test_smaller_batches_are_valid():
    for label in ("MAAC", "MAMD", "MAMT"):
        large, small = (job_of(name, "rover_tower", label) for name in ("mamt", "mamt_128"))
        own = dict(small.settings.items() - large.settings.items())
        assert own == {"batch_size": 128} | (
            {"trust_region_batch_size": 64} if label == "MAMT" else {}
        )
        config_of(small)
    for label in ("MA-PPO", "PPO"):  # their batches are episodes
        large, small = (job_of(name, "rover_tower", label) for name in ("mamt", "mamt_128"))
        assert small == large
