"""An environment as PyMARL2 users write one: Python lists, no seed(), no random state to save, no
batching.

Relay: at each step every agent sees a colour; the team scores when all pull the lever of their
colour, and wins after enough scores. Lever 0 does nothing and is always there; a lever just pulled
rests for one step.
"""

import numpy as np

from envs.multiagentenv import MultiAgentEnv


class RelayEnv(MultiAgentEnv):
    def __init__(self, batch_size=None, **kwargs):
        self.n_agents = kwargs.get("n_agents", 2)
        self.n_colours = kwargs.get("n_colours", 2)
        self.episode_limit = kwargs.get("time_limit", 6)
        self.goal = kwargs.get("goal", 3)
        self.rng = np.random.RandomState(kwargs.get("seed"))
        self.n_actions = self.n_colours + 1
        self.battles_game = 0
        self.battles_won = 0
        self.reset()

    def reset(self):
        self.steps = 0
        self.score = 0
        self.resting = [0] * self.n_agents
        self._show()
        return self.get_obs(), self.get_state()

    def _show(self):
        self.colours = []
        for i in range(self.n_agents):
            free = [c for c in range(1, self.n_actions) if c != self.resting[i]]
            self.colours.append(int(free[self.rng.randint(len(free))]))

    def step(self, actions):
        actions = [int(a) for a in actions]
        for i, action in enumerate(actions):
            assert self.get_avail_agent_actions(i)[action] == 1, (
                f"agent {i} cannot pull lever {action}"
            )
        hits = sum(a == c for a, c in zip(actions, self.colours, strict=True))
        reward = hits / self.n_agents
        self.score += hits == self.n_agents
        self.resting = actions
        self.steps += 1
        self._show()

        terminated = False
        info = {"battle_won": False, "score": self.score}
        if self.score >= self.goal:
            terminated = True
            info["battle_won"] = True
            self.battles_won += 1
            reward += 1.0
        elif self.steps >= self.episode_limit:
            terminated = True
            info["episode_limit"] = True
        if terminated:
            self.battles_game += 1
        return reward, terminated, info

    def get_obs(self):
        return [self.get_obs_agent(i) for i in range(self.n_agents)]

    def get_obs_agent(self, agent_id):
        obs = np.zeros(self.n_colours)
        obs[self.colours[agent_id] - 1] = 1.0
        return obs

    def get_obs_size(self):
        return self.n_colours

    def get_state(self):
        return np.concatenate(
            [*self.get_obs(), [self.score / self.goal, self.steps / self.episode_limit]]
        )

    def get_state_size(self):
        return self.n_agents * self.n_colours + 2

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(i) for i in range(self.n_agents)]

    def get_avail_agent_actions(self, agent_id):
        avail = [1] * self.n_actions
        if self.resting[agent_id]:
            avail[self.resting[agent_id]] = 0
        return avail

    def get_total_actions(self):
        return self.n_actions

    def get_stats(self):
        return {
            "battles_won": self.battles_won,
            "battles_game": self.battles_game,
            "win_rate": self.battles_won / max(1, self.battles_game),
        }

    def render(self):
        pass

    def close(self):
        pass

    def seed(self):
        raise NotImplementedError

    def save_replay(self):
        pass
