"""The whole state of an object as plain values, so that nothing a learner holds is forgotten in a checkpoint.

Learners and controllers do not list what has to be saved: `capture` walks over their attributes and keeps networks, optimisers,
tensors, numbers and random generators, also those of a plug-in that knows nothing of checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

# Shared with the rest of the program, not part of an object's own state.
SHARED = frozenset({"args", "logger", "scheme", "groups", "env", "envs"})
PLAIN = (bool, int, float, str, type(None))
OWN_PACKAGES_ONLY = (type, type(np), type(lambda: None))


def capture(obj: Any) -> dict[str, Any]:
    """Everything that training changes in an object and in what it refers to.

    Returns:
        Nested dicts of plain values and tensors, loadable with `torch.load(weights_only=True)`.
    """
    return _capture_attributes(obj, set())


def restore(obj: Any, state: Mapping[str, Any]) -> None:
    """Inverse of `capture`, for an object that was built in the same way.

    Raises:
        KeyError: the object lacks an attribute that the state has.
    """
    for name, value in state.items():
        if not hasattr(obj, name):
            raise KeyError(f"{type(obj).__name__} has no attribute '{name}', which the checkpoint holds")
        current = getattr(obj, name)
        new = _restore_value(current, value)
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
    if isinstance(value, nn.Module) or (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
        seen.add(id(value))
        return {"kind": "state_dict", "value": value.state_dict()}
    if isinstance(value, torch.Tensor):
        return {"kind": "tensor", "value": value.detach().clone()}
    if isinstance(value, np.ndarray):
        return {"kind": "array", "value": torch.from_numpy(value.copy())} if value.dtype != object else None
    if isinstance(value, np.random.Generator):
        return {"kind": "numpy_generator", "value": value.bit_generator.state}
    if isinstance(value, torch.Generator):
        return {"kind": "torch_generator", "value": value.get_state()}
    if isinstance(value, list | tuple):
        items = [_capture_value(item, seen) for item in value]
        if all(item is not None and item["kind"] == "plain" for item in items):
            return {"kind": "plain", "value": type(value)(value)}
        return {"kind": "list", "value": items} if any(item is not None for item in items) else None
    if isinstance(value, dict):
        items = {k: _capture_value(v, seen) for k, v in value.items() if isinstance(k, str | int)}
        if any(item is not None for item in items.values()):
            return {"kind": "dict", "value": {k: v for k, v in items.items() if v is not None}}
        return None
    if hasattr(value, "__dict__") and not isinstance(value, OWN_PACKAGES_ONLY) and not callable(value):
        return {"kind": "object", "value": _capture_attributes(value, seen)}
    return None


def _restore_value(current: Any, saved: Mapping[str, Any]) -> Any:
    kind, value = saved["kind"], saved["value"]
    if kind == "plain":
        return value
    if kind == "state_dict":
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
        new = [c if v is None else _restore_value(c, v) for c, v in zip(current, value, strict=True)]
        if any(n is not c for n, c in zip(new, current, strict=True)):
            return type(current)(new)
    elif kind == "dict":
        for key, item in value.items():
            current[key] = _restore_value(current.get(key), item)
    elif kind == "object":
        restore(current, value)
    return current
