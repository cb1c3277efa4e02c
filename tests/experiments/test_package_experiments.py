"""The commands behind the results on environments of other packages: every run of them is a valid
configuration.
"""

import numpy as np
import pytest
from experiments import battle
from experiments.__main__ import main
from experiments.spec import load

from analysis.runs import Episodes, Run, Series
from utils.config import build_config, check_config
from utils.errors import UserError


def test_every_run_is_a_valid_configuration():
    seen, maps = set(), set()
    for job in (job for name in ("smax", "football") for job in load(name).jobs()):
        config = build_config(job.algorithm, job.environment, job.updates())
        check_config(config)
        assert config["env_args"]["map_name"] == job.settings["env_args.map_name"]
        maps.add(config["env_args"]["map_name"])
        seen.add((config["name"], config["env_config"]))
    assert maps == {"3m", "2s3z", "academy_3_vs_2"}
    assert seen == {("qmix", "smax"), ("vdn", "smax"), ("s2q", "gfootball"), ("qmix", "gfootball")}


def test_every_run_of_the_battles_is_a_valid_configuration(tmp_path):
    opponents, trained = tmp_path / "iql", tmp_path / "isac"
    (trained / "checkpoints").mkdir(parents=True)
    jobs = [battle.opponents_job(10), battle.transfer_job(opponents, trained, 256, 64, 3)]
    jobs += [job for n in battle.SIZES for job in battle.jobs_of(opponents, n, 4000, (1, 2))]
    configs = []
    for job in jobs:
        configs.append(
            build_config(
                job.algorithm, job.environment, [f"{k}={v}" for k, v in job.settings.items()]
            )
        )
        check_config(configs[-1])
    play, transfer, *learning = configs
    # What has learned in self-play can play any number of agents.
    assert (play["share_params"], play["obs_agent_id"], play["env_args"]["opponents"]) == (
        True,
        False,
        "self",
    )
    assert (
        transfer["evaluate"],
        transfer["checkpoint_agents"],
        transfer["env_args"]["n_agents"],
    ) == (True, 64, 256)
    assert [config["env_args"]["n_agents"] for config in learning] == [12, 12, 64, 64]
    assert {config["env_args"]["opponent_path"] for config in learning} == {str(opponents)}


def test_table_of_the_larger_battle(tmp_path):
    values = dict(zip(battle.FIGURES, (0.25, 200.0, 12.5, -3.21), strict=True))
    metrics = {
        name: Series(np.array([0, 100]), np.array([np.nan, value]))
        for name, value in values.items()
    }
    config = {
        "checkpoint_path": "results/sacred/f2a2_isac/battle/7/checkpoints",
        "env_args": {"n_agents": 256},
    }
    returns = {"test_returns": Episodes(np.array([100]), [[1.0, 2.0, 3.0, 4.0]])}
    (row,) = battle.transfer_table(
        [(64, Run(tmp_path, config, "COMPLETED", metrics, returns))]
    ).splitlines()[2:]
    assert row == "| 64 | 256 | 7 | 4 | 25 % | 200.0 | 12.5 | -3.2 |"


def test_runs_that_name_a_folder_are_not_published():
    with pytest.raises(UserError, match="battle is a program"):
        main(["publish", "battle"])
