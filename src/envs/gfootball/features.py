"""Vectors from the package's raw observations.

Positions are the package's (x from -1 to 1 towards the opponents' goal, y from -0.42 to 0.42
downwards), velocities the way of one step. The own keeper, who is never near the ball in these
scenarios, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Raw = Mapping[str, Any]

KEEPER = 0  # the package's number of this role
PLAYER, BALL = 4, 6  # entries: position and velocity in two and in three dimensions


def field_players(raw: Raw) -> np.ndarray:
    """Indices of the left team's players without the keeper, int [P]."""
    return np.flatnonzero(np.asarray(raw["left_team_roles"], dtype=np.int64) != KEEPER)


def vector_size(raw: Raw) -> int:
    """Entries of an observation, and of the state."""
    return PLAYER * (len(field_players(raw)) + len(raw["right_team"])) + BALL


def observations(raw: Raw, controlled: Sequence[int]) -> np.ndarray:
    """What each agent sees.

    Its own position and velocity; for each field player of its team and then for each opponent, in
    the package's order, position relative to itself and velocity; the ball's position relative to
    itself (its height as it is) and velocity.

    Args:
        controlled: index in the left team of each agent's player. The package may give an agent the
            keeper; a field player that nobody controls is then left out, so that the size stays.

    Returns:
        float32 [A, O].
    """
    field = field_players(raw).tolist()
    position, velocity = raw["left_team"], raw["left_team_direction"]
    rows = []
    for own in controlled:
        mates = [player for player in field if player != own]
        if own not in field:
            mates.remove(next(player for player in field if player not in controlled))
        there = position[own]
        ball = np.concatenate([raw["ball"][:2] - there, raw["ball"][2:], raw["ball_direction"]])
        rows.append(
            np.concatenate(
                [
                    there,
                    velocity[own],
                    np.hstack([position[mates] - there, velocity[mates]]).ravel(),
                    np.hstack([raw["right_team"] - there, raw["right_team_direction"]]).ravel(),
                    ball,
                ]
            )
        )
    return np.array(rows, dtype=np.float32)


def state(raw: Raw) -> np.ndarray:
    """Position and velocity of the own field players, the opponents and the ball, float32 [S]."""
    field = field_players(raw)
    parts = [
        np.hstack([raw["left_team"][field], raw["left_team_direction"][field]]).ravel(),
        np.hstack([raw["right_team"], raw["right_team_direction"]]).ravel(),
        raw["ball"],
        raw["ball_direction"],
    ]
    return np.concatenate(parts).astype(np.float32)
