"""The whole state of an object as plain values, so that nothing a learner holds is forgotten in a
checkpoint.

Learners and controllers do not list what has to be saved: `capture` walks over their attributes and
keeps networks, optimisers, tensors, numbers and random generators, also those of a plug-in that
knows nothing of checkpoints.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.errors import UserError

_log = logging.getLogger(__name__)

# Shared with the rest of the program, not part of an object's own state.
SHARED = frozenset({"args", "logger", "scheme", "groups", "env", "envs"})
PLAIN = (bool, int, float, str, type(None))
OWN_PACKAGES_ONLY = (type, type(np), type(lambda: None))


def capture(obj: Any, shared: Iterable[Any] = ()) -> dict[str, Any]:
    """Everything that training changes in an object and in what it refers to.

    Objects of the standard library (processes, locks, loggers, ...) are left out.

    Args:
        shared: further objects that are not part of `obj`, under whatever name it knows them (cf.
            `SHARED`).

    Returns:
        Nested dicts of plain values and tensors, loadable with `torch.load(weights_only=True)`.
    """
    return _capture_attributes(obj, {id(other) for other in shared})


def restore(obj: Any, state: Mapping[str, Any]) -> None:
    """Inverse of `capture`, for an object that was built in the same way.

    Attributes that the object gets only in the course of training (hidden states, say) are set.

    Raises:
        UserError: a network or optimiser of the checkpoint does not exist yet in the object.
    """
    for name, value in state.items():
        current = getattr(obj, name, None)
        new = _restore_value(current, value, f"{type(obj).__name__}.{name}")
        if new is not current:
            setattr(obj, name, new)


def _capture_attributes(obj: Any, seen: set[int]) -> dict[str, Any]:
    seen.add(id(obj))
    state = {}
    for name, value in vars(obj).items():
        if name in SHARED:
            continue
        captured = _capture_value(value, seen)
        if captured is not None:
            state[name] = captured
    return state


def _capture_value(value: Any, seen: set[int]) -> dict[str, Any] | None:
    """`{"kind": ..., ...}`, or None for what is not state."""
    if isinstance(value, PLAIN):
        return {"kind": "plain", "value": value}
    if isinstance(value, np.generic):
        return {"kind": "plain", "value": value.item()}
    if id(value) in seen:
        return None
    if isinstance(value, nn.Parameter):
        return None  # belongs to a module, which is captured itself
    if isinstance(value, nn.Module) or (
        hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    ):
        seen.add(id(value))
        return {"kind": "state_dict", "value": value.state_dict()}
    if isinstance(value, torch.Tensor):
        return {"kind": "tensor", "value": value.detach().clone()}
    if isinstance(value, np.ndarray):
        return (
            {"kind": "array", "value": torch.from_numpy(value.copy())}
            if value.dtype != object
            else None
        )
    if isinstance(value, np.random.Generator):
        return {"kind": "numpy_generator", "value": value.bit_generator.state}
    if isinstance(value, torch.Generator):
        return {"kind": "torch_generator", "value": value.get_state()}
    if isinstance(value, list | tuple | deque):
        if all(isinstance(item, PLAIN) for item in value):
            return {
                "kind": "plain",
                "value": tuple(value) if isinstance(value, tuple) else list(value),
            }
        items = [_capture_value(item, seen) for item in value]
        return {"kind": "list", "value": items} if any(item is not None for item in items) else None
    if isinstance(value, dict):
        captured = {
            key: _capture_value(item, seen)
            for key, item in value.items()
            if isinstance(key, str | int)
        }
        kept = {key: item for key, item in captured.items() if item is not None}
        return {"kind": "dict", "value": kept} if kept else None
    if _is_own(value):
        return {"kind": "object", "value": _capture_attributes(value, seen)}
    return None


def _is_own(value: Any) -> bool:
    """Whether an object's attributes are state: not those of functions, types and objects of the
    standard library.
    """
    if not hasattr(value, "__dict__") or isinstance(value, OWN_PACKAGES_ONLY) or callable(value):
        return False
    package = type(value).__module__.partition(".")[0]
    return isinstance(value, SimpleNamespace) or package not in sys.stdlib_module_names


def _restore_value(current: Any, saved: Mapping[str, Any], where: str) -> Any:
    kind, value = saved["kind"], saved["value"]
    if kind == "plain":
        return _as_before(current, value) if isinstance(value, list | tuple) else value
    if kind == "state_dict":
        if current is None:
            raise UserError(
                f"cannot continue: {where} does not exist before training; it has to be made in "
                "__init__"
            )
        current.load_state_dict(value)
    elif kind == "tensor":
        return value.to(current.device) if isinstance(current, torch.Tensor) else value
    elif kind == "array":
        return value.numpy()
    elif kind == "numpy_generator":
        current.bit_generator.state = value
    elif kind == "torch_generator":
        current.set_state(value)
    elif kind == "list":
        return _restore_items(current, value, where)
    elif kind == "dict":
        current = {} if current is None else current
        for key, item in value.items():
            current[key] = _restore_value(current.get(key), item, f"{where}[{key!r}]")
    elif kind == "object":
        if current is None:
            _log.warning(
                "%s does not exist before training and starts anew: what follows may differ", where
            )
        else:
            restore(current, value)
    return current


def _restore_items(current: Any, saved: list[Mapping[str, Any] | None], where: str) -> Any:
    """A list, tuple or deque; it may have another length, or be None, before training."""
    old: Sequence[Any] = () if current is None else current
    items = []
    for i, value in enumerate(saved):
        before = old[i] if i < len(old) else None
        items.append(before if value is None else _restore_value(before, value, f"{where}[{i}]"))
    if len(items) == len(old) and all(
        new is before for new, before in zip(items, old, strict=True)
    ):
        return current
    return _as_before(current, items)


def _as_before(current: Any, items: list[Any] | tuple[Any, ...]) -> Any:
    """The items in a container of the type of `current`, where that is one."""
    if isinstance(current, deque):
        return deque(items, current.maxlen)
    if isinstance(current, tuple):
        return type(current)(*items) if hasattr(current, "_fields") else tuple(items)
    return list(items) if isinstance(current, list) else items
