"""What scalar instructions of PTX compute, as functions of arrays; one element per thread."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
NUMPY = {
    "u8": "u1", "s8": "i1", "u16": "u2", "s16": "i2", "u32": "u4", "s32": "i4", "u64": "u8", "s64": "i8",
    "f32": "f4", "f64": "f8", "pred": "?",
}  # fmt: skip
SHORT = ("bf16", "f16", "bf16x2", "f16x2")
"""16-bit floats and pairs of them: computed in float32, where sums and products are exact, and rounded once."""


def width(kind: str) -> int:
    """Bytes of a type."""
    return 4 if kind.endswith("x2") else 2 if kind == "bf16" else int(kind[1:]) // 8


def canonical(kind: str) -> str:
    """The unsigned integers stand for untyped bits."""
    return "u" + kind[1:] if kind[0] == "b" and kind not in SHORT else kind


def constant(bits: int, kind: str) -> Array:
    """An immediate as a value of a type, from its bits or as an integer."""
    if kind == "pred":
        return np.bool_(bits != 0)
    if kind in SHORT:
        return floats(np.array([bits & (1 << 8 * width(kind)) - 1], f"u{width(kind)}"), kind)
    size = width(kind)
    return np.array(bits & (1 << 8 * size) - 1, f"u{size}").view(NUMPY[kind])[()]


def rounded(x: Array) -> Array:
    """Upper halves of float32 values, rounded to nearest even: bfloat16 bit patterns in uint32. NaN gives 0x7fff."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(bits & np.uint32(0x7FFFFFFF) > 0x7F800000, np.uint32(0x7FFF), nearest)


def floats(bits: Array, kind: str) -> Array:
    """float32 values of 16-bit floats; of pairs [2, ..], the lower half first."""
    if kind.endswith("x2"):
        return np.stack([floats((bits >> np.uint32(s)).astype(np.uint16), kind[:-2]) for s in (0, 16)])
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def bits(x: Array, kind: str) -> Array:
    """The inverse of `floats`, rounded to nearest even."""
    if kind.endswith("x2"):
        low, high = (bits(half, kind[:-2]).astype(np.uint32) for half in x)
        return low | high << np.uint32(16)
    return rounded(x).astype(np.uint16) if kind == "bf16" else x.astype(np.float16).view(np.uint16)


def pair(high: Array, low: Array, kind: str) -> Array:
    """cvt.rn.bf16x2.f32 and cvt.rn.f16x2.f32."""
    return bits(np.broadcast_arrays(low, high), kind)


def fma(x: Array, y: Array, z: Array) -> Array:
    """x * y + z rounded once; in float32 but for the rare ties of a sum in float64."""
    if x.dtype == np.float64:
        return x * y + z
    return (x.astype(np.float64) * y + z).astype(np.float32)


def widened(x: Array) -> Array:
    """The same integer in twice the width."""
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")


def high_product(x: Array, y: Array) -> Array:
    """The upper half of a product of integers."""
    size = 8 * x.dtype.itemsize
    if size < 64:
        return (widened(x) * widened(y) >> size).astype(x.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = x.astype(np.uint64), np.broadcast_to(y, x.shape).astype(np.uint64)
    middle = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    high = (a >> half) * (b >> half) + (middle >> half) + ((a & low) * (b >> half) + (middle & low) >> half)
    if x.dtype.kind == "i":
        high -= np.where(x < 0, b, np.uint64(0)) + np.where(np.broadcast_to(y, x.shape) < 0, a, np.uint64(0))
    return high.view(x.dtype)


def divide(x: Array, y: Array) -> Array:
    """x / y; of integers towards zero. Integers divided by zero give all ones."""
    if x.dtype.kind == "f":
        return x / y
    safe = np.where(y == 0, 1, y).astype(x.dtype)
    down = x // safe
    toward_zero = (down + ((x - down * safe != 0) & ((x < 0) != (safe < 0)))).astype(x.dtype)
    return np.where(y == 0, ~np.zeros_like(x), toward_zero)


def remainder(x: Array, y: Array) -> Array:
    """The rest of `divide`."""
    return x - divide(x, y) * y


def left(x: Array, by: Array) -> Array:
    """x << by; 0 from the width on."""
    size = 8 * x.dtype.itemsize
    if np.ndim(by) == 0:
        return x << x.dtype.type(by) if by < size else np.zeros_like(x)
    return np.where(by < size, x << np.minimum(by, size - 1).astype(x.dtype), x.dtype.type(0))


def right(x: Array, by: Array) -> Array:
    """x >> by; from the width on 0, or copies of the sign."""
    size = 8 * x.dtype.itemsize
    if np.ndim(by) == 0 and by < size:
        return x >> x.dtype.type(by)
    shifted = x >> np.minimum(by, size - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(by < size, shifted, x.dtype.type(0))


def extract(x: Array, start: Array, count: Array) -> Array:
    """bfe: `count` bits from bit `start` on, with their sign if x is signed."""
    size = np.uint32(8 * x.dtype.itemsize)
    return right(left(x, size - start - count), size - count)


def permute(x: Array, y: Array, selector: Array) -> Array:
    """prmt: four bytes of the eight of y and x; the upper bit of a selector copies the sign of the byte."""
    both = x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)
    out = np.uint32(0)
    for k in range(4):
        pick = selector >> np.uint32(4 * k) & np.uint32(15)
        byte = (both >> ((pick & np.uint32(7)) * np.uint32(8)).astype(np.uint64) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        out = out | np.where(pick > 7, sign, byte) << np.uint32(8 * k)
    return out


def convert(x: Array, kind: str) -> Array:
    """cvt between integers and floats; floats become integers towards zero, within the range."""
    if x.dtype.kind != "f" or kind[0] == "f":
        return x.astype(NUMPY[kind])
    limits = np.iinfo(NUMPY[kind])
    return np.clip(np.nan_to_num(np.trunc(x.astype(np.float64))), limits.min, limits.max).astype(NUMPY[kind])
