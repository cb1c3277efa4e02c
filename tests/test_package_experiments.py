"""The command behind the results on environments of other packages: every run of it is a valid configuration."""

from experiments import packages

from utils.config import build_config, check_config


def test_every_run_is_a_valid_configuration():
    seen = set()
    for task in packages.TASKS.values():
        for label in task.methods:
            for job in packages.jobs_of(task, label, task.steps, (1, 2)):
                settings = [f"{key}={value}" for key, value in job.settings.items()]
                config = build_config(job.algorithm, job.environment, settings)
                check_config(config)
                assert config["env_args"]["map_name"] == task.map_name
                seen.add((config["name"], config["env_config"]))
    assert seen == {("qmix", "smax"), ("vdn", "smax"), ("s2q", "gfootball"), ("qmix", "gfootball")}
