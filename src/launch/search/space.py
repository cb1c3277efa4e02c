"""The space of a search: which settings are tried, and which values they may take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import product
from typing import Any

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from analysis.runs import is_setting
from launch.spec import checked
from utils.config import convert
from utils.errors import ConfigError

_KINDS = ("choice", "int", "float")
_KEYS = {"choice": list, "int": list, "float": list, "log": bool, "step": float, "when": dict}
_SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched.

    Attributes:
        key: as on the command line (`env_args.penalty`).
        when: setting that stands before it in the space -> values with which this one counts.
    """

    key: str
    values: BaseDistribution
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def counts(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it has a value beside those chosen before."""
        return all(key in chosen and chosen[key] in allowed for key, allowed in self.when.items())

    def suggest(self, trial: Trial) -> Any:
        """The value that the sampler chooses for this trial."""
        values = self.values
        if isinstance(values, CategoricalDistribution):
            return trial.suggest_categorical(self.key, values.choices)
        if isinstance(values, IntDistribution):
            return trial.suggest_int(
                self.key, values.low, values.high, step=values.step, log=values.log
            )
        assert isinstance(values, FloatDistribution)  # there is no other kind
        return self.written(
            trial.suggest_float(self.key, values.low, values.high, step=values.step, log=values.log)
        )

    def written(self, value: Any) -> Any:
        """A value as a person would write it: 0.1 + 2 * 0.1 is 0.3."""
        if not isinstance(self.values, FloatDistribution) or self.values.step is None:
            return value
        return round(value, _places(self.values.step, self.values.low))

    @property
    def ends(self) -> tuple[Any, ...]:
        """The choices, or lowest and highest value."""
        if isinstance(self.values, CategoricalDistribution):
            return self.values.choices
        assert isinstance(self.values, IntDistribution | FloatDistribution)
        return (self.values.low, self.values.high)

    @property
    def points(self) -> tuple[Any, ...] | None:
        """All values, in their order; None: there is no end of them."""
        values = self.values
        if isinstance(values, CategoricalDistribution):
            return values.choices
        if isinstance(values, IntDistribution):
            return tuple(range(values.low, values.high + 1, values.step))
        assert isinstance(values, FloatDistribution)
        if values.step is None:
            return None
        n_steps = round((values.high - values.low) / values.step)
        return tuple(self.written(values.low + i * values.step) for i in range(n_steps + 1))

    def __str__(self) -> str:
        values = self.values
        if isinstance(values, CategoricalDistribution):
            text = ", ".join(map(str, values.choices))
        else:
            low, high = self.ends
            text = f"{low:g} to {high:g}"
            step = values.step if isinstance(values, FloatDistribution | IntDistribution) else None
            text += f" in steps of {step:g}" if step and (step != 1 or self._is_float) else ""
            text += " (logarithmic)" if getattr(values, "log", False) else ""
        for key, allowed in self.when.items():
            text += f", when {key} is {' or '.join(map(str, allowed))}"
        return text

    @property
    def _is_float(self) -> bool:
        return isinstance(self.values, FloatDistribution)


Space = Sequence[Parameter]


def suggest(space: Space, trial: Trial) -> dict[str, Any]:
    """Key -> value, of one trial."""
    chosen: dict[str, Any] = {}
    for parameter in space:
        if parameter.counts(chosen):
            chosen[parameter.key] = parameter.suggest(trial)
    return chosen


def written(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial, from the parameters that Optuna has of it."""
    by_key = {parameter.key: parameter for parameter in space}
    return {key: by_key[key].written(value) for key, value in params.items()}


def all_points(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of the values, each once, the last key changing fastest.

    Raises:
        ConfigError: a key has no end of values.
    """
    axes = []
    for parameter in space:
        if parameter.points is None:
            raise ConfigError(
                f"space.{parameter.key}: the sampler 'grid' needs a step or a list of values"
            )
        axes.append(parameter.points)
    seen = set()
    for values in product(*axes):
        chosen: dict[str, Any] = {}
        for parameter, value in zip(space, values, strict=True):
            if parameter.counts(chosen):
                chosen[parameter.key] = value
        if (point := tuple(chosen.items())) not in seen:
            seen.add(point)
            yield chosen


def corner(space: Space, parameter: Parameter, value: Any, high: bool) -> dict[str, Any]:
    """A value of one parameter, with the lowest (or highest) values of all others."""
    chosen: dict[str, Any] = {}
    for other in space:
        if not other.counts(chosen):
            continue
        if other is parameter:
            chosen[other.key] = value
        elif other.key in parameter.when:
            chosen[other.key] = parameter.when[other.key][0]
        else:
            chosen[other.key] = other.ends[-1 if high else 0]
    return chosen


# --- Reading ---


def read_space(content: Mapping[str, Any], where: str) -> tuple[Parameter, ...]:
    """Reads a file's `space`.

    Raises:
        ConfigError: something in it is unknown, of the wrong type or impossible.
    """
    if not content:
        raise ConfigError(f"{where.removesuffix('.')} must not be empty")
    space: list[Parameter] = []
    for key, entry in content.items():
        space.append(_parameter(key, entry, space, f"{where}{key}"))
    return tuple(space)


def _parameter(key: str, entry: Any, before: Sequence[Parameter], where: str) -> Parameter:
    if not is_setting(key):
        raise ConfigError(f"{where}: {key} makes no difference that could be searched")
    if isinstance(entry, list):
        entry = {"choice": entry}
    entry = checked(convert(where, entry, dict), _KEYS, f"{where}.")
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        raise ConfigError(f"{where} needs a list of values, or one of {', '.join(_KINDS)}")
    when = _when(entry.pop("when", {}), before, f"{where}.when.")
    if kinds == ["choice"]:
        return Parameter(key, _choice(entry, where), when)
    return Parameter(key, _range(entry, kinds[0], where), when)


def _choice(entry: Mapping[str, Any], where: str) -> CategoricalDistribution:
    for word in ("log", "step"):
        if word in entry:
            raise ConfigError(f"{where}.{word} goes with int and float only")
    choices = entry["choice"]
    if not choices or not all(isinstance(one, _SCALARS) for one in choices):
        raise ConfigError(f"{where} must be a list of numbers, words, True, False or null")
    if len({(type(one), one) for one in choices}) < len(choices):
        raise ConfigError(f"{where} has a value twice")
    return CategoricalDistribution(choices)


def _range(entry: Mapping[str, Any], kind: str, where: str) -> IntDistribution | FloatDistribution:
    if len(entry[kind]) != 2:
        raise ConfigError(f"{where}.{kind} must be [lowest, highest], got {entry[kind]}")
    of_type = int if kind == "int" else float
    low, high = (convert(f"{where}.{kind}", value, of_type) for value in entry[kind])
    log, step = entry.get("log", False), entry.get("step")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{where}.{kind}: {low:g} must be less than {high:g}, and both finite")
    if log and low <= 0:
        raise ConfigError(f"{where}: a logarithmic range begins above 0, got {low:g}")
    if log and step is not None:
        raise ConfigError(f"{where}: log and step exclude each other")
    if step is not None:
        step = convert(f"{where}.step", step, of_type)
        n_steps = (high - low) / step if 0 < step < math.inf else 0.0
        if n_steps < 1 - 1e-9 or abs(n_steps - round(n_steps)) > 1e-6:
            raise ConfigError(
                f"{where}: from {low:g} to {high:g} there must be whole steps, got {step:g}"
            )
    if kind == "int":
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(low, high, log=log, step=step)


def _when(
    content: Mapping[str, Any], before: Sequence[Parameter], where: str
) -> dict[str, tuple[Any, ...]]:
    known = {parameter.key: parameter for parameter in before}
    when = {}
    for key, allowed in content.items():
        choices = known[key].values if key in known else None
        if not isinstance(choices, CategoricalDistribution):
            raise ConfigError(
                f"{where}{key}: it must stand before this one in the space, with a list of values"
            )
        allowed = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for one in allowed:
            if one not in choices.choices:
                raise ConfigError(f"{where}{key}: {one!r} is none of its values")
        when[key] = allowed
    return when


def _places(*numbers: float) -> int:
    """Decimal places that all of these need."""
    exponents = (Decimal(repr(number)).as_tuple().exponent for number in numbers)
    return max(0, *(-place for place in exponents if isinstance(place, int)))
