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
from ctypes import POINTER, c_bool, c_char_p, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any, NoReturn

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


I64S, POINTERS, OUT = POINTER(c_int64), POINTER(c_void_p), POINTER(c_void_p)
RUN = (c_void_p, POINTERS, c_void_p)  # model, latents, x

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "native_new": (c_char_p, c_char_p, c_int64, c_int64, I64S, c_int64, OUT),
    "native_add_layer": (c_void_p, c_int64, POINTER(Layer)),
    "native_set_heads": (c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p, c_void_p),
    "native_run": (*RUN, c_int64, c_int64, c_int64, c_int64, c_int64),
    "native_act_step": (*RUN, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_int64),
    "symmetric_new": (c_char_p, I64S, c_int64, c_double, I64S, c_int64, OUT),
    "symmetric_set_layer": (c_void_p, c_int64, c_int64, POINTERS),
    "symmetric_sort": (c_void_p, c_void_p, c_int64, c_void_p, c_int64),
    "symmetric_unsort": (c_void_p, c_void_p, c_int64, c_void_p, c_int64),
    "symmetric_forward": (*RUN, c_int64, c_int64, c_int64, c_void_p, c_int64),
    "symmetric_backward": (*RUN, c_void_p, c_int64, c_int64, c_int64, POINTERS, c_int64, c_int64),
}
"""Parameters of the functions that return what is wrong, or NULL."""


@functools.cache
def loaded() -> ctypes.CDLL:
    """The library. Errors: `OSError` where it is missing or does not load."""
    library = ctypes.CDLL(str(PATH))
    for name, parameters in SIGNATURES.items():
        function = getattr(library, f"rtm_{name}")
        function.argtypes, function.restype = parameters, c_char_p
    library.rtm_sources.restype = library.rtm_isas.restype = c_char_p
    library.rtm_isas.argtypes = (c_char_p,)
    library.rtm_native_free.argtypes = library.rtm_symmetric_free.argtypes = (c_void_p,)
    library.rtm_symmetric_state.argtypes, library.rtm_symmetric_state.restype = (c_void_p,), c_int64
    library.rtm_symmetric_saved.argtypes = (c_void_p, c_int64, c_int64)
    library.rtm_symmetric_saved.restype = c_int64
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
        self._library, self._kind, self.handle = loaded(), kind, c_void_p()
        steps = [n for s in tape for n in (s.dst, s.stack, len(s.state), *s.state, len(s.inject), *s.inject)]
        self._call(f"{kind}_new", *arguments, integers(steps), len(tape), ctypes.byref(self.handle))
        weakref.finalize(self, getattr(self._library, f"rtm_{kind}_free"), self.handle).atexit = False

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model of the C++ library is not copied or pickled; build it anew from its weights")

    def __call__(self, function: str, *arguments: Any) -> None:
        """Calls a function of this kind of model. Errors: `InputError` for what the library says."""
        self._call(f"{self._kind}_{function}", self.handle, *arguments)

    def count(self, what: str, *arguments: int) -> int:
        """Floats of one sample: its `state`, or what is `saved` of steps [begin, end)."""
        return int(getattr(self._library, f"rtm_{self._kind}_{what}")(self.handle, *arguments))

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._library, f"rtm_{name}")(*arguments)
        if error is not None:
            raise InputError(f"{name}: {error.decode()}")


def integers(values: Iterable[int]) -> Any:
    """An array of int64."""
    listed = list(values)
    return (c_int64 * len(listed))(*listed)


def pointer(tensor: Tensor, shape: Sequence[int]) -> int:
    """The address of a tensor. Errors: `InputError` unless it is contiguous float32 of `shape` on the CPU."""
    fits = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
    if not fits or tuple(tensor.shape) != tuple(shape):
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}, is not allowed: "
            f"contiguous float32 of shape {tuple(shape)} on cpu"
        )
    return tensor.data_ptr()


def pointers(tensors: Sequence[Tensor], shapes: Iterable[Sequence[int]]) -> Any:
    """An array of `pointer`s."""
    return (c_void_p * len(tensors))(*(pointer(t, shape) for t, shape in zip(tensors, shapes, strict=True)))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on the CPU for the library to write."""
    return torch.empty(shape, dtype=dtype, device="cpu")
