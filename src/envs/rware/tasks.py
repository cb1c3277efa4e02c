"""What the names of rware's tasks say, and the floors of its warehouses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.errors import ConfigError

SIZES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}  # shelf rows, columns
# requests per robot; the number of requests is rounded down
DIFFICULTIES = {"easy": 2.0, None: 1.0, "hard": 0.5}
REWARDS = {"global": "global", "indiv": "individual", "twostage": "two_stage"}
EXAMPLES = "tiny-2ag, small-4ag-hard or rware-medium-6ag-easy-v2"

_NAME = re.compile(
    r"(rware:)?(rware-)?((?P<sensor>\d+)s-)?"
    r"((?P<size>[a-z]+)|(?P<rows>\d+)x(?P<columns>\d+))(-(?P<height>\d+)h)?-(?P<agents>\d+)ag"
    r"(-(?P<difficulty>easy|hard))?(-(?P<requests>\d+)req)?(-(?P<reward>global|indiv|twostage))?"
    r"(-v(?P<version>\d+))?"
)


@dataclass(frozen=True)
class Task:
    """The part of an environment's arguments that a name tells; see `RobotWarehouse`."""

    shelf_rows: int
    shelf_columns: int
    n_agents: int
    request_queue_size: int
    column_height: int = 8
    sensor_range: int = 1
    reward_type: str = "individual"


def parse_name(name: str) -> Task:
    """The task called `name`, with or without "rware:", "rware-" and "-v2".

    Raises:
        ConfigError: the name is none of rware's, or is of rules older than its version 2.
    """
    found = _NAME.fullmatch(str(name))
    if found is None or (found["size"] is not None and found["size"] not in SIZES):
        raise ConfigError(
            f"rware: unknown map_name '{name}'; names are built like {EXAMPLES} "
            "([SENSORs-]SIZE[-HEIGHTh]-AGENTSag[-easy|-hard], where SIZE is "
            f"{', '.join(SIZES)} or ROWSxCOLUMNS; "
            "[-REQUESTSreq] and [-indiv|-global|-twostage] may follow)"
        )
    if found["version"] not in (None, "2"):
        raise ConfigError(
            f"rware: map_name '{name}' asks for version {found['version']} of the rules, but "
            "there is only 2"
        )
    agents = int(found["agents"])
    size = found["size"]
    rows, columns = SIZES[size] if size else (int(found["rows"]), int(found["columns"]))
    requests = found["requests"]
    return Task(
        shelf_rows=rows,
        shelf_columns=columns,
        n_agents=agents,
        request_queue_size=(
            int(requests) if requests else int(agents * DIFFICULTIES[found["difficulty"]])
        ),
        column_height=int(found["height"] or 8),
        sensor_range=int(found["sensor"] or 1),
        reward_type=REWARDS[found["reward"] or "indiv"],
    )


class Floor(NamedTuple):
    """An empty warehouse.

    Args:
        highways: bool [H, W], where no shelf may stand; all other cells have one at the start.
        goals: int64 [G, 2], x and y; in the order in which shelves there are looked at.
    """

    highways: np.ndarray
    goals: np.ndarray


def make_floor(shelf_rows: int, shelf_columns: int, column_height: int) -> Floor:
    """Blocks of shelves two cells wide with lanes around them; in the middle of the lowest row two
    goals, and above these a lane for queues instead of shelves.
    """
    height, width = (column_height + 1) * shelf_rows + 2, 3 * shelf_columns + 1
    y, x = np.indices((height, width))
    middle = width // 2
    queue = (y > height - (column_height + 3)) & ((x == middle - 1) | (x == middle))
    highways = (x % 3 == 0) | (y % (column_height + 1) == 0) | (y == height - 1) | queue
    return Floor(highways, np.array([[middle - 1, height - 1], [middle, height - 1]]))


def read_floor(layout: str) -> Floor:
    """A floor drawn in letters, one line for each row: x shelf, . lane, g goal.

    Raises:
        ConfigError: other letters, lines of unequal length, or no goal.
    """
    lines = layout.replace(" ", "").lower().strip().split("\n")
    if len(set(map(len, lines))) > 1 or set("".join(lines)) - set("x.g"):
        raise ConfigError(
            "env_args.layout must have lines of equal length of x (shelf), . (lane) and g (goal)"
        )
    cells = np.array([list(line) for line in lines])
    y, x = np.nonzero(cells == "g")
    if len(x) == 0:
        raise ConfigError("env_args.layout must have a goal (g)")
    return Floor(cells != "x", np.stack([x, y], axis=1))
