"""Checks that the public functions of the ops share; each failure is one line naming the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.errors import require

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_latent(x: Tensor, injection: Sequence[Tensor], eps: float) -> None:
    """x is a floating-point tensor, and every injection term equals it in shape, dtype and device."""
    require(x.dtype in FLOATING, "x.dtype", x.dtype, "float32, bfloat16, float16 or float64")
    for i, term in enumerate(injection):
        name = f"injection[{i}]"
        require(term.shape == x.shape, f"{name}.shape", tuple(term.shape), f"x's shape {tuple(x.shape)}")
        require(term.dtype == x.dtype, f"{name}.dtype", term.dtype, f"x's dtype {x.dtype}")
        require(term.device == x.device, f"{name}.device", term.device, f"x's device {x.device}")
    require(eps >= 0, "eps", eps, "a number that is not negative")


def check_weight(x: Tensor, name: str, weight: Tensor, shape: tuple[int, ...], given: str) -> None:
    """A weight is floating-point, on x's device, and of the `shape` that follows from `given`, such as "D=512"."""
    require(tuple(weight.shape) == shape, f"{name}.shape", tuple(weight.shape), f"{shape} for {given}")
    require(weight.dtype in FLOATING, f"{name}.dtype", weight.dtype, "a floating-point dtype")
    require(weight.device == x.device, f"{name}.device", weight.device, f"x's device {x.device}")
    require(weight.numel() < 2**31, f"{name}.shape", tuple(weight.shape), "fewer than 2^31 elements")


def to_autocast_dtype(x: Tensor, injection: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x and the injection in the autocast dtype where autocast is on for x's device, as a matrix product takes them.

    As there, float64 and integers stay as they are. A recursion mixes dtypes under autocast: latents that a layer
    gave are in the autocast dtype, the first ones and the input embedding need not be.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x, tuple(injection)
    dtype = torch.get_autocast_dtype(device)
    low = (torch.float32, torch.bfloat16, torch.float16)
    cast = [t.to(dtype) if t.dtype in low else t for t in (x, *injection)]
    return cast[0], tuple(cast[1:])
