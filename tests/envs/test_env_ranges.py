"""Every number among the environments' arguments has a range, which is checked before anything is
built.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from envs import REGISTRY, Lazy, Single, make_vector_env
from envs.adapter import EnvRaised
from envs.ranges import AMOUNT, CHANCE, SIZE, SWITCH, number, whole
from envs.vector_env import EnvSpec, VectorEnv
from utils.config import build_config, list_configs
from utils.errors import ConfigError
from utils.ranges import Range, check_ranges

NAMES = sorted(list_configs("envs"))
WRONG = ("many", True, 1.5, -1, 0, 2, 250, float("nan"))  # one of these is out of any range


def maker(name: str) -> Any:
    """What builds the environment: a class or a function."""
    factory = REGISTRY[name]
    factory = factory.vector_env if isinstance(factory, Single) else factory
    return factory.load() if isinstance(factory, Lazy) else factory


def entries(args: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All entries that are no mappings, by dotted key."""
    for key, value in args.items():
        if isinstance(value, Mapping):
            yield from entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for key "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_range_that_holds(name):
    config = build_config("vdn", name)
    ranges = maker(config["env"]).ranges
    given = dict(entries(config["env_args"]))
    numbers = {key for key, value in given.items() if is_number(value)}
    assert numbers <= set(ranges)
    check_ranges(config["env_args"], ranges)


@pytest.mark.parametrize("name", sorted({build_config("vdn", name)["env"] for name in NAMES}))
def test_ranges_are_of_arguments_and_refuse_in_one_line(name):
    make = maker(name)
    known = set(inspect.signature(make).parameters)
    assert {key.partition(".")[0] for key in make.ranges} <= known
    needed = {"key": "nowhere"} if name == "gymma" else {}  # not looked for: refused before
    for key, wanted in make.ranges.items():
        (wrong, *_) = [value for value in WRONG if not wanted.holds(value)]
        with pytest.raises(ConfigError) as caught:
            make_vector_env(name, {**needed, **nested(key, wrong)}, 2, 1, "serial", "train_env")
        assert str(caught.value) == f"env_args.{key} must be {wanted.text}, got {wrong!r}"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "fine", "wrong"),
    [
        (SIZE, (1, 7), (0, -1, 1.0, True, "1", float("nan"))),
        (whole(2, 4), (2, 4), (1, 5)),
        (AMOUNT, (0, 0.5), (-0.1, float("inf"), "1", False)),
        (CHANCE, (0, 0.5, 1), (-0.1, 1.1, float("nan"))),
        (number(), (-3, 0.5), (float("inf"), None)),
        (SWITCH, (True, False), (0, 1, "True")),
    ],
)
def test_ranges(wanted, fine, wrong):
    assert all(wanted.holds(value) for value in fine)
    assert not any(wanted.holds(value) for value in wrong)


def test_constructors_refuse_by_themselves():
    for name in ("spread", "predator_prey", "switching_wind", "sc2sim", "treasure_collection"):
        key = "episode_limit" if name != "sc2sim" else "step_mul"
        with pytest.raises(ConfigError, match=rf"^env_args\.{key} must be a whole number .*got 0$"):
            maker(name)(n_envs=1, seed=1, **{key: 0})


def test_environments_from_elsewhere_need_no_ranges_and_may_have_some():
    class Bare:
        """Knows nothing of this project."""

        def __init__(self, seed, size=1):
            raise AssertionError("must be refused before it is built")

    class Ranged(VectorEnv):
        ranges = {"size": Range(lambda value: value == 1, "1")}

        def __init__(self, n_envs, seed, size=1):
            super().__init__(n_envs, EnvSpec(1, 1, 1, 1, 1), seed)

    REGISTRY.register("bare")(Bare)
    REGISTRY.register("ranged")(Single(Ranged))
    try:
        with pytest.raises(EnvRaised, match="before it is built"):
            make_vector_env("bare", {"size": 0}, 1, 1, "serial", "train_env")
        with pytest.raises(ConfigError, match=r"^env_args\.size must be 1, got 0$"):
            make_vector_env("ranged", {"size": 0}, 1, 1, "serial", "train_env")
    finally:
        del REGISTRY["bare"], REGISTRY["ranged"]
