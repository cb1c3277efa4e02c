"""What the names of lbforaging's tasks say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.errors import ConfigError

NAMED_PENALTY = 0.1  # what "-pen" stands for
EXAMPLES = "8x8-2p-2f-coop, 2s-10x10-3p-3f or Foraging-15x15-4p-5f-v3"

_NAME = re.compile(
    r"(lbforaging:)?(Foraging-)?(?P<grid>grid-)?((?P<sight>\d+)s-)?(?P<rows>\d+)x(?P<cols>\d+)"
    r"-(?P<players>\d+)p-(?P<foods>\d+)f(?P<coop>-coop)?(?P<ind>-ind)?(?P<pen>-pen)?"
    r"(-v(?P<version>\d+))?"
)


@dataclass(frozen=True)
class Task:
    """The part of an environment's arguments that a name tells; see `LevelBasedForaging`.

    Args:
        sight: None: the whole field is seen.
        max_food_level: None: the sum of the three lowest levels among the players.
    """

    field_size: tuple[int, int]
    players: int
    max_num_food: int
    sight: int | None = None
    force_coop: bool = False
    max_food_level: int | None = None
    penalty: float = 0.0
    grid_observation: bool = False


def parse_name(name: str) -> Task:
    """The task called `name`, with or without "lbforaging:", "Foraging-" and "-v3".

    Raises:
        ConfigError: the name is none of lbforaging's, or is of rules older than its version 3.
    """
    found = _NAME.fullmatch(str(name))
    if found is None:
        raise ConfigError(
            f"lbf: unknown map_name '{name}'; names are built like {EXAMPLES} "
            "([grid-][SIGHTs-]ROWSxCOLS-PLAYERSp-FOODSf[-coop][-ind][-pen])"
        )
    if found["version"] not in (None, "3"):
        raise ConfigError(
            f"lbf: map_name '{name}' asks for version {found['version']} of the rules, but there "
            "is only 3"
        )
    return Task(
        field_size=(int(found["rows"]), int(found["cols"])),
        players=int(found["players"]),
        max_num_food=int(found["foods"]),
        sight=int(found["sight"]) if found["sight"] else None,
        force_coop=found["coop"] is not None,
        max_food_level=1 if found["ind"] else None,
        penalty=NAMED_PENALTY if found["pen"] else 0.0,
        grid_observation=found["grid"] is not None,
    )
