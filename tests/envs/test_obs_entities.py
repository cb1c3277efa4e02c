"""What the StarCraft environments say about the entities of an observation, against what agents
see and can do.
"""

import numpy as np
import pytest

from envs.starcraft.env import SC2Sim
from envs.starcraft.facts import UNIT_INDEX
from envs.starcraft.v2 import SC2SimV2


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SC2Sim, {"map_name": "3m"}),
        (SC2Sim, {"map_name": "2s3z", "obs_timestep_number": True, "obs_last_action": True}),
        (SC2Sim, {"map_name": "MMM"}),
        (SC2Sim, {"map_name": "MMM", "obs_timestep_number": True, "obs_pathing_grid": True}),
        (SC2SimV2, {"map_name": "terran_5_vs_5"}),
        (SC2SimV2, {"map_name": "zerg_5_vs_5", "conic_fov": True}),
    ],
    ids=str,
)
def test_entities_are_where_the_environment_says(cls, options):
    rng = np.random.default_rng(0)
    with cls(4, 5, **options) as env:
        at = env.get_env_info()["obs_entities"]
        n, first, size = at["n_enemies"], at["first_enemy"], at["enemy_size"]
        env.reset()
        attacks = healers = allies = 0
        for _ in range(25):
            env.reset(env.terminated | env.truncated)
            chosen = np.where(env.avail_actions, rng.random(env.avail_actions.shape), -1).argmax(-1)
            env.step(chosen)
            alive = env.battle.alive
            for b, a in np.argwhere(alive[:, : env.n_agents]):
                obs, avail = env.obs[b, a], env.avail_actions[b, a]
                healer = at["healer"] is not None and obs[at["healer"]] == 1
                kind = env.battle.type[b, a]
                assert healer == (at["healer"] is not None and kind == UNIT_INDEX["Medivac"])
                if not healer:
                    # The first entry of an enemy says whether it can be attacked.
                    flags = obs[first : first + n * size : size]
                    seen = obs[first + 1 : first + n * size : size] > 0
                    targets = avail[at["first_target"] : at["first_target"] + n]
                    assert np.array_equal(flags[seen], targets[seen])
                    attacks += int(flags.sum())
                healers += healer
                # That of an ally is 1 where it is seen, and dead ones are not.
                others = [i for i in range(env.n_agents) if i != a]
                start, width = at["first_ally"], at["ally_size"]
                visible = obs[start : start + len(others) * width : width]
                assert set(visible) <= {0.0, 1.0}
                assert not visible[~alive[b, others]].any()
                allies += int(visible.sum())
        assert allies
        assert attacks
        assert bool(healers) == (at["healer"] is not None)
        assert at["first_ally"] == first + n * size
