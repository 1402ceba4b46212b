"""The C++ library `rtm_kernels/_cpu` (csrc/cpu), through its C interface: one file for every Python and PyTorch.

`csrc/cpu/interface.h` documents the functions. Calls release the GIL, and use the threads of PyTorch's own OpenMP
runtime, as many as `torch.set_num_threads` allows.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from collections.abc import Iterable, Sequence
from ctypes import c_bool, c_char_p, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.errors import InputError
from rtm_kernels.impl import warn_once
from rtm_kernels.recursion.tape import TapeStep

PATH = Path(__file__).resolve().parents[1] / {"win32": "_cpu.dll", "darwin": "_cpu.dylib"}.get(sys.platform, "_cpu.so")
"""The library, of the same name for every Python."""


class Layer(ctypes.Structure):
    """`rtm_layer`."""

    _fields_ = (
        *((name, c_void_p) for name in ("gate_up", "down", "mixer_gate_up", "mixer_down", "qkv", "out")),
        *((name, c_void_p) for name in ("cos", "sin", "conv", "conv_bias")),
        *((name, c_int64) for name in ("F", "mixer_F", "L", "heads", "conv_width", "prefix")),
        ("eps", c_double),
        *((name, c_bool) for name in ("causal", "qk_norm", "conv_grid", "norm_hidden", "reduced")),
    )


@functools.cache
def loaded() -> ctypes.CDLL:
    """The library. Errors: `OSError` where it is missing or does not load."""
    library = ctypes.CDLL(str(PATH))
    library.rtm_sources.restype = library.rtm_isas.restype = c_char_p
    team = _team()
    if team is not None:
        library.rtm_set_team(team)
    elif sys.platform == "linux":
        warn_once("the native executor uses one thread: this PyTorch has no OpenMP runtime")
    return library


def _team() -> Any | None:
    """GOMP_parallel of the OpenMP runtime whose threads PyTorch uses: as for PyTorch, a preloaded one comes first."""
    for path in () if sys.platform == "win32" else (None, torch._C.__file__):
        team = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if team is not None:
            return team
    return None


class Model:
    """A model that the library holds, freed with this object; `kind` is native or symmetric."""

    def __init__(self, kind: str, *arguments: Any, tape: Sequence[TapeStep]) -> None:
        self._library, self._kind, self._handle = loaded(), kind, c_void_p()
        steps = [n for s in tape for n in (s.dst, s.stack, len(s.state), *s.state, len(s.inject), *s.inject)]
        self._call("new", *arguments, steps, len(tape), ctypes.byref(self._handle))
        weakref.finalize(self, getattr(self._library, f"rtm_{kind}_free"), self._handle).atexit = False

    def __call__(self, function: str, *arguments: Any) -> None:
        """Calls a function of this kind of model. Errors: `InputError` for what the library says."""
        self._call(function, self._handle, *arguments)

    def count(self, what: str, *steps: int) -> int:
        """Floats of one sample: its `state`, or what is `saved` of steps [begin, end)."""
        function = getattr(self._library, f"rtm_{self._kind}_{what}")
        function.restype = c_int64
        return int(function(self._handle, *map(c_int64, steps)))

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, f"rtm_{self._kind}_{name}")
        function.restype = c_char_p
        error = function(*map(_argument, arguments))
        if error is not None:
            raise InputError(f"{self._kind}_{name}: {error.decode()}")


def _argument(value: Any) -> Any:
    """int64, double, or an array of int64; bytes, addresses, structures and None are passed as they are."""
    if isinstance(value, list):
        return (c_int64 * len(value))(*value)
    return c_int64(value) if isinstance(value, int) else c_double(value) if isinstance(value, float) else value


def address(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> c_void_p:
    """Where the elements of a tensor lie. Errors: `InputError` unless it is contiguous, of `shape`, on the CPU."""
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.shape != shape:
        found = f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        raise InputError(f"a tensor {found} is not allowed: contiguous {tuple(shape)}, {dtype} on cpu")
    return c_void_p(tensor.data_ptr())


def addresses(tensors: Sequence[Tensor], shapes: Iterable[Sequence[int]]) -> Any:
    """An array of `address`es."""
    return (c_void_p * len(tensors))(*(address(t, shape) for t, shape in zip(tensors, shapes, strict=True)))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on the CPU for the library to write."""
    return torch.empty(shape, dtype=dtype, device="cpu")
