"""The particle physics in plain loops, for comparison, and ways to play."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIRECTIONS = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]


@dataclass
class Body:
    """One moving body; bodies of the same `group` collide, group None collides with nothing."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: float
    mass: float = 1.0
    top_speed: float | None = None
    radius: float = 0.0
    group: int | None = None


def step_bodies(bodies, moves, explicit=False):
    """One step of all bodies, in place, straight from the description of the physics."""
    contact = []
    for a in bodies:
        total = np.zeros(2)
        for b in bodies:
            if a is b or a.group is None or a.group != b.group:
                continue
            apart = a.position - b.position
            dist = np.sqrt((apart**2).sum())
            k = 1e-3
            total += 100 * apart / dist * k * np.logaddexp(0, -(dist - a.radius - b.radius) / k)
        contact.append(total / a.mass)
    for body, move, push in zip(bodies, moves, contact, strict=True):
        before = body.velocity.copy()
        velocity = 0.75 * before + 0.1 * (
            body.acceleration * np.array(DIRECTIONS[move], dtype=float) + push
        )
        speed = np.linalg.norm(velocity)
        if body.top_speed is not None and speed > body.top_speed:
            velocity = velocity / speed * body.top_speed
        body.velocity = velocity
        body.position = body.position + 0.1 * (before if explicit else velocity)


def returns(env, n_episodes, seed=0):
    """Returns of a uniform random policy, [episodes, A]."""
    rng, found = np.random.default_rng(seed), []
    while len(found) * env.n_envs < n_episodes:
        env.reset()
        total = np.zeros((env.n_envs, env.n_agents))
        while not env.truncated.any():
            env.step(rng.integers(0, env.n_actions, (env.n_envs, env.n_agents)))
            total += env.reward
        found.append(total)
    return np.concatenate(found)


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))
