"""Where the elements of matrices are: in the registers of a warp, and in shared memory as a wgmma descriptor says.

From the PTX ISA: fragments of mma.m16n8k16 and of wgmma, matrix descriptors, and swizzles of 32, 64 and 128 bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tests.compiled.arithmetic import floats
from tests.compiled.ptx import Fault

Array = Any


def pairs(registers: Array, kind: str) -> Array:
    """float32 [.., 2] of registers with two 16-bit floats each, the lower half first."""
    return np.moveaxis(floats(registers, kind + "x2"), 0, -1)


def a_fragment(registers: Array, kind: str) -> Array:
    """A [warps, 16, 16] of registers [4, N]: r of lane 4 g + t has row g + 8 (r % 2), columns from 2 t + 8 (r // 2)."""
    values = pairs(registers.reshape(2, 2, -1, 8, 4), kind)  # [column half, row half, warp, g, t, pair]
    return values.transpose(2, 1, 3, 0, 4, 5).reshape(-1, 16, 16)


def b_fragment(registers: Array, kind: str) -> Array:
    """B [warps, 16, 8] of two registers [2, N]: register r of lane 4 g + t has column g, rows 2 t + 8 r."""
    values = pairs(registers.reshape(2, -1, 8, 4), kind)  # [row half, warp, g, t, pair]
    return values.transpose(1, 0, 3, 4, 2).reshape(-1, 16, 8)


def accumulators(product: Array) -> Array:
    """Registers [4 blocks, N] of [warps, 16, 8 blocks]: number 4 b + 2 h + p has row g + 8 h, column 8 b + 2 t + p."""
    blocks = product.shape[2] // 8
    return product.reshape(-1, 2, 8, blocks, 4, 2).transpose(3, 1, 5, 0, 2, 4).reshape(4 * blocks, -1)


SWIZZLE = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}
"""Mode of a descriptor -> bytes of a row of its tile, and which of the address bits 7 to 9 turn bits 4 to 6."""


@cache
def offsets(descriptor: int, rows: int, transposed: bool) -> tuple[Array, int]:
    """Byte offsets [rows, 16] from the start address, not swizzled yet, and the swizzle's bits.

    `descriptor` is shifted by the 16 bits of its start address, so bits 0 to 13 are the leading offset and 16 to 29 the
    stride. Not transposed, 16 elements along K lie together; transposed, elements of a column do.
    """
    leading, stride, mode = (descriptor & 0x3FFF) << 4, (descriptor >> 16 & 0x3FFF) << 4, descriptor >> 46 & 3
    if descriptor >> 33 & 7:
        raise Fault("a matrix descriptor with a base offset")
    across, bits = SWIZZLE[mode]
    row, k = np.meshgrid(np.arange(rows), np.arange(16), indexing="ij")
    if not transposed:
        along = k // 8 * leading + k % 8 * 2 if mode == 0 else k * 2
        return row // 8 * stride + row % 8 * across + along, bits
    if mode == 0:
        return row // 8 * stride + k // 8 * leading + k % 8 * 16 + row % 8 * 2, bits
    per_tile = across // 2
    return row // per_tile * leading + row % per_tile * 2 + k // 8 * stride + k % 8 * across, bits


def swizzled(address: Array, bits: int) -> Array:
    """Bits 7 to 9 of an address turn bits 4 to 6: which 16 bytes of a row are where depends on the row."""
    return address ^ (address >> 7 & bits) << 4
