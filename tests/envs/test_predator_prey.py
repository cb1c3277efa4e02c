"""Predator-prey against an independent simulation in plain loops, and the rules by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from envs.predator_prey import (
    AFTER_REWARD,
    BEFORE_REWARD,
    DOWN,
    LEFT,
    RIGHT,
    STOP,
    UP,
    PredatorPrey,
)
from utils.errors import ConfigError
from utils.seeding import derive_seed

STEPS = {LEFT: (-1, 0), RIGHT: (1, 0), UP: (0, -1), DOWN: (0, 1), STOP: (0, 0)}


class Slow:
    """One environment in plain loops, on (x, y) tuples.

    It shares with the fast one only the order in which random numbers are drawn: at the start of an
    episode one per body for its cell, then per step one per prey for its move and one per prey for
    its new cell; with after_reward one per predator (smaller ones move earlier) and one per prey
    (its move or its new cell).
    """

    def __init__(
        self, rng, penalty, grid_size, n_predators, n_prey, episode_limit, scaled, prey_moves
    ):
        self.prey_moves = prey_moves
        self.rng, self.penalty, self.size, self.limit = rng, penalty, grid_size, episode_limit
        self.n_predators, self.n_prey = n_predators, n_prey
        self.scale = grid_size - 1 if scaled else 1

    def free_cell(self, draw):
        cells = itertools.product(range(self.size), range(self.size))
        free = [(x, y) for y, x in cells if (x, y) not in self.bodies.values()]
        return free[int(draw * len(free))]

    def reset(self):
        n = self.n_predators + self.n_prey
        start = self.rng.random(n)
        width = 2 * self.n_prey if self.prey_moves == "before_reward" else n
        self.draws = self.rng.random((self.limit, width))
        self.bodies = {}
        for body in range(n):
            self.bodies[body] = self.free_cell(start[body])
        self.t = self.captures = self.sole_hunts = 0

    def move(self, body, action):
        (x, y), (dx, dy) = self.bodies[body], STEPS[action]
        target = (x + dx, y + dy)
        if (
            0 <= target[0] < self.size
            and 0 <= target[1] < self.size
            and target not in self.bodies.values()
        ):
            self.bodies[body] = target

    def turn(self, body):
        """One body's turn in the public order: it asks who stands in its way to go first."""
        if body in self.had_turn:
            return
        self.had_turn.add(body)
        (x, y), (dx, dy) = self.bodies[body], STEPS[self.actions[body]]
        for other in range(self.n_predators):
            if self.bodies[other] == (x + dx, y + dy):
                self.turn(other)
                break
        self.move(body, self.actions[body])

    def step(self, actions):
        draws = self.draws[self.t]
        self.t += 1
        predators, preys = (
            range(self.n_predators),
            range(self.n_predators, self.n_predators + self.n_prey),
        )
        if self.prey_moves == "before_reward":
            self.actions = actions
            self.had_turn = set()
            for predator in predators:
                self.turn(predator)
            for prey in preys:
                self.move(prey, int(draws[prey - self.n_predators] * 5))
            draws = np.concatenate([np.zeros(self.n_predators), draws[self.n_prey :]])
        else:
            for predator in sorted(predators, key=lambda i: draws[i]):
                self.move(predator, actions[predator])
        reward, caught = 0.0, []
        for prey in preys:
            x, y = self.bodies[prey]
            near = [
                p for p in predators if abs(self.bodies[p][0] - x) + abs(self.bodies[p][1] - y) == 1
            ]
            if len(near) > 1:
                reward += 1
                self.captures += 1
                caught.append(prey)
            elif near:
                reward -= self.penalty
                self.sole_hunts += 1
        for prey in preys:
            if prey in caught:
                self.bodies[prey] = self.free_cell(draws[prey])
            elif self.prey_moves == "after_reward":
                self.move(prey, int(draws[prey] * 5))
        return reward

    def state(self):
        return [c / self.scale for body in range(len(self.bodies)) for c in self.bodies[body]]

    def obs(self, agent):
        x, y = self.bodies[agent]
        relative = []
        for prey in range(self.n_predators, self.n_predators + self.n_prey):
            relative += [
                (self.bodies[prey][0] - x) / self.scale,
                (self.bodies[prey][1] - y) / self.scale,
            ]
        return [
            x / self.scale,
            y / self.scale,
            *(float(i == agent) for i in range(self.n_predators)),
            *relative,
        ]


@pytest.mark.parametrize(
    ("grid_size", "n_predators", "n_prey", "scaled"),
    [(5, 2, 1, True), (3, 2, 2, False), (3, 4, 3, True), (6, 3, 2, False)],
)
@pytest.mark.parametrize("prey_moves", [BEFORE_REWARD, AFTER_REWARD])
def test_equals_plain_loops(grid_size, n_predators, n_prey, scaled, prey_moves):
    b, limit, seed = 6, 25, 17
    sizes = {
        "grid_size": grid_size,
        "n_predators": n_predators,
        "n_prey": n_prey,
        "episode_limit": limit,
        "prey_moves": prey_moves,
    }
    env = PredatorPrey(b, seed, penalty=0.3, scale_coordinates=scaled, **sizes)
    slow = [
        Slow(np.random.default_rng(derive_seed(seed, "env", i)), 0.3, **sizes, scaled=scaled)
        for i in range(b)
    ]
    rng = np.random.default_rng(3)
    captures = 0
    for _ in range(4):
        env.reset()
        for one in slow:
            one.reset()
        for t in range(limit):
            for i, one in enumerate(slow):
                assert env.state[i] == pytest.approx(one.state(), abs=1e-6)
                for agent in range(n_predators):
                    assert env.obs[i, agent] == pytest.approx(one.obs(agent), abs=1e-6)
            # a third of the time some environments wait, so that they are at different steps
            mask = rng.random(b) < 0.6 if t % 3 == 0 else np.ones(b, dtype=bool)
            actions = rng.integers(0, 5, (b, n_predators))
            env.step(actions, mask)
            for i in np.flatnonzero(mask):
                assert env.reward[i] == pytest.approx(slow[i].step(actions[i]), abs=1e-6)
                assert env.info["captures"][i] == slow[i].captures
                assert env.info["sole_hunts"][i] == slow[i].sole_hunts
                assert env.truncated[i] == (slow[i].t == limit)
            if env.truncated.any():
                break
        captures += int(env.info["captures"].sum())
    assert captures > 0


def put(env: PredatorPrey, *bodies: tuple[int, int]) -> None:
    """Places the bodies of environment 0, predators first, at (x, y)."""
    env.reset()
    env._occupied[0] = env._walls
    for body, (x, y) in enumerate(bodies):
        cell = (y + 1) * (env.grid_size + 2) + x + 1
        env._cells[0, body] = cell
        env._occupied[0, cell] = True


def where(env: PredatorPrey) -> list[tuple[int, int]]:
    """(x, y) of all bodies of environment 0."""
    return [
        tuple(xy)
        for xy in np.round(env.state[0].reshape(-1, 2) * (env.grid_size - 1)).astype(int).tolist()
    ]


@pytest.mark.parametrize(
    ("predators", "prey", "reward"),
    [
        (((1, 2), (3, 2)), (2, 2), 1.0),  # from both sides
        (((2, 1), (3, 2)), (2, 2), 1.0),  # around a corner
        (((0, 1), (1, 0)), (0, 0), 1.0),  # in the grid's corner
        (((1, 2), (3, 3)), (2, 2), -0.5),  # one next to it, one at a diagonal
        (((2, 3), (0, 0)), (2, 2), -0.5),  # hunting alone
        (((1, 1), (3, 3)), (2, 2), 0.0),  # diagonals do not count
        (((2, 0), (2, 4)), (2, 2), 0.0),  # two cells away
        (((4, 1), (4, 2)), (0, 2), 0.0),  # the end of a row is not next to the start of the next
    ],
)
def test_reward_by_hand(predators, prey, reward):
    env = PredatorPrey(1, seed=1, penalty=0.5, prey_moves=AFTER_REWARD)
    put(env, *predators, prey)
    env.step(np.array([[STOP, STOP]]))
    assert env.reward[0] == reward
    after = where(env)
    assert after[:2] == list(predators)
    if reward == 1.0:
        assert after[2] not in (*predators, prey)
        assert env.info["captures"][0] == 1
    else:
        assert sum(abs(a - b) for a, b in zip(after[2], prey, strict=True)) <= 1
        assert env.info["sole_hunts"][0] == (reward < 0)


def test_predators_see_the_prey_where_their_next_move_is_judged():
    """Judged after their own moves, before the prey's: whoever follows the last observation is
    never surprised.
    """
    env = PredatorPrey(1, seed=5, penalty=1.0, prey_moves=AFTER_REWARD)
    for _ in range(50):
        put(env, (0, 2), (4, 2), (2, 2))
        env.step(
            np.array([[RIGHT, LEFT]])
        )  # now next to the prey from both sides, wherever it would have gone
        assert env.reward[0] == 1.0


def test_moves_off_the_grid_and_into_bodies_are_stops():
    env = PredatorPrey(1, seed=1)
    moves = {LEFT: (0, 2), RIGHT: (4, 2), UP: (2, 0), DOWN: (2, 4)}
    for action, at in moves.items():
        put(env, at, (3, 3), (1, 1))
        env.step(np.array([[action, STOP]]))
        assert where(env)[0] == at
    put(env, (2, 2), (0, 4), (3, 2))
    env.step(np.array([[RIGHT, STOP]]))  # into the prey
    assert where(env)[0] == (2, 2)


def keep_prey(env: PredatorPrey, *actions: int) -> None:
    """Lets the prey of environment 0 take these actions in the next step."""
    env._draws[0, env._time[0], : env.n_prey] = (np.array(actions) + 0.5) / 5


@pytest.mark.parametrize(
    ("bodies", "actions", "prey", "after"),
    [
        # the first wants the place of the second, which goes on: both move
        (((0, 0), (1, 0), (4, 4)), (RIGHT, RIGHT), STOP, ((1, 0), (2, 0), (4, 4))),
        # it wants the place of the prey, which goes on only after the predators
        (((0, 0), (4, 0), (1, 0)), (RIGHT, STOP), RIGHT, ((0, 0), (4, 0), (2, 0))),
        # two in a row, the second before the prey: nobody moves
        (((2, 0), (3, 0), (4, 0)), (RIGHT, RIGHT), RIGHT, ((2, 0), (3, 0), (4, 0))),
        # the prey moves into the place that a predator has left
        (((1, 1), (4, 4), (2, 1)), (UP, STOP), LEFT, ((1, 0), (4, 4), (1, 1))),
        # two that want each other's place stay
        (((1, 1), (2, 1), (4, 4)), (RIGHT, LEFT), STOP, ((1, 1), (2, 1), (4, 4))),
        # two want the same free cell: the one with the smaller number gets it
        (((1, 1), (3, 1), (4, 4)), (RIGHT, LEFT), STOP, ((2, 1), (3, 1), (4, 4))),
        # the second wants the place of the first, which has had its turn and left
        (((1, 1), (1, 2), (4, 4)), (UP, UP), STOP, ((1, 0), (1, 1), (4, 4))),
    ],
)
def test_who_stands_in_the_way_moves_first(bodies, actions, prey, after):
    env = PredatorPrey(1, seed=1)
    put(env, *bodies)
    keep_prey(env, prey)
    env.step(np.array([actions]))
    assert tuple(where(env)) == after
    free = np.flatnonzero(~env._occupied[0])
    assert len(free) == 22
    assert not set(free) & set(env._cells[0].tolist())


def test_prey_moves_before_it_is_judged():
    """A lone hunter pays although the prey was two cells away, and pays nothing once it has left;
    a capture counts where the prey has gone, and it does not reappear there.
    """
    env = PredatorPrey(1, seed=1, penalty=0.5)
    for prey, action, reward in (((2, 2), LEFT, -0.5), ((1, 2), RIGHT, 0.0)):
        put(env, (0, 2), (4, 4), prey)
        keep_prey(env, action)
        env.step(np.array([[STOP, STOP]]))
        assert env.reward[0] == reward
    for _ in range(30):
        put(env, (0, 2), (2, 2), (1, 3))
        keep_prey(env, UP)
        env.step(np.array([[STOP, STOP]]))
        assert env.reward[0] == 1.0
        assert where(env)[2] not in ((0, 2), (2, 2), (1, 2))


def test_random_play_has_the_figures_of_a_restatement():
    """Per episode at P = 0.5: a return of -10.3, 0.90 captures and 22.5 sole hunts (20,000 episodes
    of a restatement in other code).
    """
    env = PredatorPrey(2000, seed=7, penalty=0.5)
    env.reset()
    rng, total = np.random.default_rng(1), np.zeros(2000)
    while not env.truncated.any():
        env.step(rng.integers(0, 5, (2000, 2)))
        total += env.reward
    assert total.mean() == pytest.approx(-10.33, abs=0.35)
    assert env.info["captures"].mean() == pytest.approx(0.897, abs=0.1)
    assert env.info["sole_hunts"].mean() == pytest.approx(22.46, abs=0.6)


def test_after_reward_draws_the_order_of_moves_anew_each_time():
    """Predators at (0, 0) and (1, 0), both to the right: the second must go first to make room."""
    env = PredatorPrey(1, seed=1, prey_moves=AFTER_REWARD)
    outcomes = []
    for _ in range(400):
        put(env, (0, 0), (1, 0), (4, 4))
        env.step(np.array([[RIGHT, RIGHT]]))
        outcomes.append(tuple(where(env)[:2]))
    both, second = ((1, 0), (2, 0)), ((0, 0), (2, 0))
    assert set(outcomes) == {both, second}
    assert 150 < outcomes.count(both) < 250  # binomial(400, 1/2), five standard deviations


def test_starts_and_reappearances_are_uniform_over_free_cells():
    env = PredatorPrey(6000, seed=2, grid_size=3)
    env.reset()
    cells = np.round(env.state.reshape(6000, 3, 2) * 2).astype(int)
    numbers = cells[..., 1] * 3 + cells[..., 0]
    for body in range(3):
        counts = np.bincount(numbers[:, body], minlength=9)
        assert np.abs(counts - 6000 / 9).max() < 5 * np.sqrt(6000 / 9 * 8 / 9)
    assert (np.diff(np.sort(numbers, axis=1), axis=1) > 0).all()

    env = PredatorPrey(1, seed=3, grid_size=3)
    places = []
    for _ in range(1200):
        put(env, (0, 1), (1, 0), (0, 0))
        env.step(np.array([[STOP, STOP]]))
        places.append(where(env)[2])
    free = [(x, y) for x in range(3) for y in range(3) if (x, y) not in ((0, 1), (1, 0), (0, 0))]
    assert set(places) == set(free)
    assert max(abs(places.count(cell) - 200) for cell in free) < 5 * np.sqrt(200 * 5 / 6)


def test_prey_moves_uniformly_and_waits_where_its_way_is_blocked():
    env = PredatorPrey(1, seed=4)
    moves = []
    for _ in range(1000):
        put(env, (0, 0), (0, 2), (4, 2))  # at the right border
        env.step(np.array([[STOP, STOP]]))
        x, y = where(env)[2]
        moves.append((x - 4, y - 2))
    assert set(moves) == {(0, 0), (-1, 0), (0, -1), (0, 1)}
    spread = 5 * np.sqrt(1000 * 0.2 * 0.8)
    for move in ((-1, 0), (0, -1), (0, 1)):
        assert abs(moves.count(move) - 200) < spread
    assert abs(moves.count((0, 0)) - 400) < 5 * np.sqrt(
        1000 * 0.4 * 0.6
    )  # stop, and right into the border


def test_observation_by_hand():
    env = PredatorPrey(1, seed=1, scale_coordinates=True)
    put(env, (1, 0), (4, 3), (2, 4))
    env._observe(slice(None))
    assert env.state[0].tolist() == [0.25, 0.0, 1.0, 0.75, 0.5, 1.0]
    assert env.obs[0].tolist() == [[0.25, 0.0, 1, 0, 0.25, 1.0], [1.0, 0.75, 0, 1, -0.5, 0.25]]
    env = PredatorPrey(1, seed=1, scale_coordinates=False)
    put(env, (1, 0), (4, 3), (2, 4))
    env._observe(slice(None))
    assert env.state[0].tolist() == [1, 0, 4, 3, 2, 4]
    assert env.obs[0].tolist() == [[1, 0, 1, 0, 1, 4], [4, 3, 0, 1, -2, 1]]


def test_defaults_are_the_papers_task():
    env = PredatorPrey(1, seed=1)
    assert (env.n_agents, env.n_actions, env.episode_limit, env.grid_size, env.n_prey) == (
        2,
        5,
        100,
        5,
        1,
    )
    assert (env.obs_size, env.state_size) == (6, 6)


def test_pursuit_pays():
    """Predators that mostly walk towards the prey catch it far more often than those that never
    do.
    """

    def captures(policy):
        env = PredatorPrey(32, seed=6)
        rng = np.random.default_rng(0)
        env.reset()
        while not env.truncated.any():
            env.step(policy(env, rng))
        return env.info["captures"].mean()

    def chase(env, rng):
        relative = np.round(env.obs[:, :, -2:] * (env.grid_size - 1)).astype(int)
        dx, dy = relative[..., 0], relative[..., 1]
        horizontal, vertical = np.where(dx > 0, RIGHT, LEFT), np.where(dy > 0, DOWN, UP)
        move = np.where(np.abs(dx) >= np.abs(dy), horizontal, vertical)
        move = np.where(np.abs(dx) + np.abs(dy) == 1, STOP, move)
        # one may stand in the other's way: that is what the random moves are for
        return np.where(rng.random(move.shape) < 0.3, rng.integers(0, 5, move.shape), move)

    assert captures(chase) > 3 * captures(lambda env, rng: rng.integers(0, 5, (32, 2))) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": -0.3}, "penalty must be .* at least 0, got -0.3"),
        ({"penalty": float("nan")}, "penalty must be a finite .* got nan"),
        ({"grid_size": 1}, "grid_size must be a whole number of at least 2, got 1"),
        ({"n_predators": 1}, "n_predators must be a whole number of at least 2, got 1"),
        ({"n_prey": 0}, "n_prey must be .* 1, got 0"),
        ({"episode_limit": 0}, "episode_limit must be .* 1, got 0"),
        ({"grid_size": 2, "n_prey": 2}, "2 predators and 2 prey leave no free cell of the 4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PredatorPrey(1, seed=1, **arguments)
