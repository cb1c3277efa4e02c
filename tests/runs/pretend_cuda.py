"""A CUDA device for machines without one: tensors that say they are elsewhere and keep their
numbers in memory.

Inside `pretend_cuda()` operations that a GPU would refuse for tensors of different devices, or of
the wrong one, fail here too, and everything else is computed on the CPU. It shows that code moves
its data to the right place; it says nothing about speed, memory or the kernels of a real device.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "pretend"
# What moves numbers from one device to another.
TRANSFERS = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
# These take positions from the CPU as well.
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
# Where even a single number has to be with the rest.
STRICT = {aten.index_select.default, aten.gather.default, aten.embedding.default}
# What needs the numbers in the computer's own memory, so that it waits for all that was asked of
# the device before.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten._unique2.default,
}
_waits: list[str] | None = None  # where operations waited for the device; None: nobody asks


@cache
def device() -> torch.device:
    """The device, known to torch from the first call on."""
    _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


class PretendTensor(torch.Tensor):
    """A tensor on the device that is not there; `on_cpu` has its numbers."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "PretendTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=device(),
        )
        tensor.on_cpu = on_cpu
        return tensor

    is_cuda = True

    def __repr__(self, **_: object) -> str:
        return f"PretendTensor({self.on_cpu!r})"

    def __reduce_ex__(self, protocol):
        return self.on_cpu.__reduce_ex__(protocol)  # files are read with map_location="cpu"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Whoever asks for `cuda` gets the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {key: _place(x) if key == "device" else x for key, x in (kwargs or {}).items()}
        if func is torch.Tensor.cuda:
            return args[0].to(device())
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if func is torch.Tensor.to:
            args = [_place(x) for x in args]
        if func == torch.Tensor.data.__set__ and isinstance(args[1], PretendTensor):
            # CUDA's tensors may take the place of the CPU's, torch allows ours that only by
            # exchanging them.
            return torch.utils.swap_tensors(
                args[0], torch.nn.Parameter(args[1], args[0].requires_grad)
            )
        return func(*args, **kwargs)


def _place(x: object) -> object:
    return device() if isinstance(x, str | torch.device) and torch.device(x).type == "cuda" else x


def dispatch(func, args, kwargs):
    """Computes one operation where the numbers are, after checking that they all claim to be in the
    same place.
    """
    place = kwargs.get("device")
    _note_waiting(func, args, place)
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, PretendTensor)]
    if away and func not in TRANSFERS:
        _check(func, args, tensors)
    plain_args, plain_kwargs = tree_map_only(PretendTensor, lambda x: x.on_cpu, (args, kwargs))
    if place is not None:
        plain_kwargs["device"] = torch.device("cpu")
    out = COMPUTED_HERE.get(func, func)(*plain_args, **plain_kwargs)
    if place is not None:
        stays = torch.device(place).type == "cpu"
    else:
        stays = not isinstance(args[0], PretendTensor) if func in TRANSFERS else not away
    if stays:
        return out
    out = tree_map_only(
        Tensor, lambda x: x if isinstance(x, PretendTensor) else PretendTensor(x), out
    )
    return return_and_correct_aliasing(func, args, kwargs, out)


def _note_waiting(func, args, place):
    if _waits is None or not any(isinstance(x, PretendTensor) for x in tree_flatten(args)[0]):
        return
    to_memory = func is aten._to_copy.default and (
        place is not None and torch.device(place).type == "cpu"
    )
    copied = func is aten.copy_.default and not isinstance(args[0], PretendTensor)
    masks = func in INDEXING and any(
        isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1] or ()
    )
    if func in WAITING or to_memory or copied or masks:
        frames = [f for f in traceback.extract_stack() if "/src/" in f.filename]
        if not frames:
            _waits.append(f"a backward pass: [{func}]")
            return
        last = frames[-1]
        _waits.append(f"{last.filename.rpartition('/src/')[2]}:{last.lineno}: {last.line} [{func}]")


@contextmanager
def waits_noted() -> Iterator[list[str]]:
    """The lines of `src/` that wait for the device meanwhile, in a list that fills."""
    global _waits
    before, _waits = _waits, []
    try:
        yield _waits
    finally:
        _waits = before


def _gru_cell(x, h, hx, bias_x=None, bias_h=None):
    """A GRU cell from the products with its weights, x and h [B, 3H]: one kernel on devices,
    several here.
    """
    x = x if bias_x is None else x + bias_x
    h = h if bias_h is None else h + bias_h
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (hx - n), torch.cat([r, z, n, hx, h_n], 1)


def _gru_cell_backward(grad, kept, has_bias):
    r, z, n, hx, h_n = kept.chunk(5, 1)
    d_n = grad * (1 - z) * (1 - n * n)
    d_z = grad * (hx - n) * z * (1 - z)
    d_r = d_n * h_n * r * (1 - r)
    d_x, d_h = torch.cat([d_r, d_z, d_n], 1), torch.cat([d_r, d_z, d_n * r], 1)
    return d_x, d_h, grad * z, *((d_x.sum(0), d_h.sum(0)) if has_bias else (None, None))


COMPUTED_HERE = {
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}


def _check(func, args, tensors):
    if func in INDEXING:
        tensors = [x for x in tensors if not any(x is y for y in args[1])]
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError(f"{func}: indices should be on the CPU, as the indexed tensor is")
    strays = [
        x for x in tensors if not isinstance(x, PretendTensor) and (x.dim() or func in STRICT)
    ]
    if strays:
        shapes = [tuple(x.shape) for x in strays]
        raise RuntimeError(
            f"{func}: expected all tensors on {device()}, those of shapes {shapes} are on the CPU"
        )


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """A process that finds one CUDA device."""
    device()
    # Parameters stay the objects that optimisers know, as they do with CUDA's tensors.
    torch.__future__.set_swap_module_params_on_conversion(True)
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.mem_get_info", return_value=(2**40, 2**40)),
        mock.patch("torch.cuda.get_rng_state_all", return_value=[]),
        mock.patch("torch.cuda.set_rng_state_all"),
        _Operations(),
        _Calls(),
    ):
        try:
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
