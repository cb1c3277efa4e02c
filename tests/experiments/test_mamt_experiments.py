"""The commands behind MAMT's results: every run of them is a valid configuration."""

from experiments import mamt

from utils.config import build_config, check_config


def test_every_run_is_a_valid_configuration():
    seen = set()
    for name, task in mamt.TASKS.items():
        others = {label: alg for group in mamt.OTHERS.values() for label, alg in group.items()}
        for algorithm in (
            task.methods | (others if name in ("spread", "pursuit") else {})
        ).values():
            for job in mamt.jobs_of(task, algorithm, task.episodes, {}, (1, 2)):
                config = build_config(
                    job.algorithm,
                    job.environment,
                    [f"{key}={value}" for key, value in job.settings.items()],
                )
                check_config(config)
                assert config["t_max"] == task.episodes * task.steps
                # the last five records of training are the last 1,000 episodes
                assert 5 * config["runner_log_interval"] == 1000 * task.steps
                seen.add((algorithm, name))
    assert ("mamt", "rover_tower") in seen
    assert ("mamd_op", "spread3_mix") in seen
    assert ("lola", "spread") in seen


def test_coefficients_among_many_agents_can_reach_the_threshold():
    (job,) = mamt.jobs_of(mamt.TASKS["rover_tower"], "mamt", 10, {}, (1,))
    assert job.settings["coordination_sigma"] < 1 / 7
    (job,) = mamt.jobs_of(mamt.TASKS["rover_tower"], "maac", 10, {}, (1,))
    assert not {"coordination_sigma", "trust_region_delta"} & set(job.settings)
    # MAMD differs from MAMT in the split alone.
    joint = [
        mamt.jobs_of(mamt.TASKS["rover_tower"], name, 10, {}, (1,))[0].settings
        for name in ("mamd", "mamt")
    ]
    assert joint[0]["trust_region_delta"] == joint[1]["trust_region_delta"]


def test_smaller_batches_are_valid():
    for algorithm in ("maac", "mamd", "mamt"):
        own = mamt.smaller(algorithm, 128)
        assert own == {"batch_size": 128} | (
            {"trust_region_batch_size": 64} if algorithm == "mamt" else {}
        )
        (job,) = mamt.jobs_of(mamt.TASKS["rover_tower"], algorithm, 10, own, (1,))
        check_config(
            build_config(
                algorithm, "rover_tower", [f"{key}={value}" for key, value in job.settings.items()]
            )
        )
    assert mamt.smaller("mamt", None) == {}
    assert (
        mamt.smaller("ma_ppo", 128) == mamt.smaller("mamt_ppo", 128) == {}
    )  # their batches are episodes
