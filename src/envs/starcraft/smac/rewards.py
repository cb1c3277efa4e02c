"""The reward of a step, and whether the battle is over (Samvelyan et al. 2019, section 4)."""

# ruff: noqa: ANN001, ANN201, ANN202 -- numba infers the types of the kernel
from __future__ import annotations

from numba import njit

from envs.compiled import kernel
from envs.starcraft.smac.rules import MEDIVAC

RUNNING, WON, LOST, DRAWN, TIMEOUT = range(5)


@njit(inline="always")
def _pay(gained, lost, rules):
    """The reward of damage and deaths on both sides, without win and defeat, unscaled."""
    if rules.reward_sparse:
        return 0.0
    if not rules.reward_only_positive:
        return gained - rules.reward_negative_scale * lost
    # SMAC takes the absolute value: what enemies regenerate is paid too
    return max(gained, 0.0) if rules.cuts_rewards else abs(gained)


@kernel
def score(
    first, end, mask, rules, units, points, counted_dead, max_reward, steps, outcome, won,
    dead_agents, dead_enemies, reward, terminated, truncated
):  # fmt: skip
    """Counts one step of battles in `mask`: writes from `steps` on [B]; `points` (health and shield
    after the last step) and `counted_dead` [B, N] are kept for the next.
    """
    n_agents = rules.n_agents
    n_units = n_agents + rules.n_enemies
    for b in range(first, end):
        if not mask[b]:
            continue
        steps[b] += 1
        agents_left = enemies_left = fighters = enemy_medivacs = 0
        hurt = dealt = agent_deaths = enemy_deaths = 0.0
        for i in range(n_units):
            agent = i < n_agents
            fell = 0.0
            death = 0.0
            if units.alive[b, i]:
                now = units.health[b, i] + units.shield[b, i]
                fell = points[b, i] - now
                points[b, i] = now
                if agent:
                    agents_left += 1
                    fighters += units.type[b, i] != MEDIVAC
                else:
                    enemies_left += 1
                    enemy_medivacs += units.type[b, i] == MEDIVAC
            elif not counted_dead[b, i]:
                counted_dead[b, i] = True
                fell = points[b, i]
                death = rules.reward_death_value
            if agent:
                hurt += fell
                agent_deaths += death
            else:
                dealt += fell
                enemy_deaths += death

        value = _pay(dealt + enemy_deaths, hurt + agent_deaths, rules)
        result = RUNNING
        if (agents_left == 0 and enemies_left > 0) or (rules.heals and fighters == 0):
            result = LOST
            value = -1.0 if rules.reward_sparse else value + rules.reward_defeat
        elif (agents_left > 0 and enemies_left == 0) or (
            rules.heals and enemies_left == 1 and enemy_medivacs == 1
        ):
            result = WON
            value = 1.0 if rules.reward_sparse else value + rules.reward_win
        elif agents_left == 0:
            result = DRAWN
        elif steps[b] >= rules.limit:
            result = TIMEOUT
        if rules.reward_scale:
            value /= max_reward[b] / rules.reward_scale_rate

        reward[b] = value
        outcome[b] = result
        won[b] = result == WON
        dead_agents[b] = n_agents - agents_left
        dead_enemies[b] = rules.n_enemies - enemies_left
        truncated[b] = rules.continuing_episode and result == TIMEOUT
        terminated[b] = result != RUNNING and not truncated[b]
