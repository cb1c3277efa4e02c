"""An action selector as PyMARL2 has them: epsilon-greedy whose exploration prefers better actions
(a soft rank).
"""

import torch as th
from torch.distributions import Categorical

from components.epsilon_schedules import DecayThenFlatSchedule


class SoftExploreSelector:
    def __init__(self, args):
        self.args = args
        self.schedule = DecayThenFlatSchedule(
            args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time, decay="linear"
        )
        self.epsilon = self.schedule.eval(0)
        self.temperature = getattr(args, "explore_temperature", 1.0)

    def select_action(self, agent_inputs, avail_actions, t_env, test_mode=False):
        self.epsilon = self.schedule.eval(t_env)
        if test_mode:
            self.epsilon = 0.0
        masked_q_values = agent_inputs.clone()
        masked_q_values[avail_actions == 0] = -float("inf")
        random_numbers = th.rand_like(agent_inputs[:, :, 0])
        pick_random = (random_numbers < self.epsilon).long()
        random_actions = Categorical(logits=masked_q_values / self.temperature).sample().long()
        return pick_random * random_actions + (1 - pick_random) * masked_q_values.max(dim=2)[1]
