"""Launch table of attention_norm.

The size of a shape class is half a head (rounded up) for `qkv` and `turn_backward`, and D or the number of
output features for the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import tuned

ANY = 1 << 30
Rows = Iterator[LaunchRow]
HALVES = (16, 32, 64, 128)
"""Padded sizes of half a head; heads above 256 have no row."""
FEW_HALVES = (32, 128)
MAX_SPLITS, ROWS_PER_SPLIT = 16, 8192
FLASH_KEYS = {64: 256, 128: 128, 256: 64}
"""Largest head -> longest sequence that flash_attn reads as one block of keys. A longer one it may split, by a rule
that counts the batch, so that a sample's bits would depend on its batch: `attention="auto"` then stays with SDPA."""
"""The sizes that odd widths and float32 are padded to."""


def splits_of(rows: int) -> tuple[int, int]:
    """Rows of a split, and how many splits sum the rows of a weight gradient."""
    split_rows = max(ROWS_PER_SPLIT, -(rows // -MAX_SPLITS))
    return min(split_rows, max(rows, 1)), max(1, -(rows // -split_rows))


def named(kernel: str, width: int) -> str:
    """Name of the kernel's rows for this D. Rows of memory that are no multiple of 16 elements load without vectors,
    which takes more registers, so they have rows of their own with smaller tiles."""
    return kernel if width % 16 == 0 else f"{kernel}_odd"


def _qkv(kernel: str, family: str, bits: int, rows: int, lanes: int, k: int, warps: int, stages: int) -> Rows:
    """One row per size of half a head, with as many heads as fill `lanes` columns."""
    for half in HALVES if kernel == "qkv" and bits == 16 else FEW_HALVES:
        blocks = {
            "BLOCK_M": rows // 2 if half == 128 and kernel == "qkv" and bits == 16 else rows,
            "BLOCK_H": max(1, lanes // (2 * half)),
            "BLOCK_E": half,
            "BLOCK_K": k,
        }
        wide = 2 * half > lanes
        yield LaunchRow(f"attention_norm.{kernel}", family, bits, half, blocks, 8 if wide else warps, stages)


def _gemms(suffix: str, family: str, bits: int, m: int, n: int, k: int, warps: int, stages: int) -> Rows:
    """The plain GEMM tiles, used by the backward pass and by output rows too wide for one tile."""
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    yield LaunchRow(f"attention_norm.output{suffix}", family, bits, ANY, blocks, warps, stages)
    yield LaunchRow(f"attention_norm.input_grad{suffix}", family, bits, ANY, blocks, warps, stages)
    blocks = {"BLOCK_M": k, "BLOCK_N": m, "BLOCK_K": n}
    yield LaunchRow(f"attention_norm.weight_grad{suffix}", family, bits, ANY, blocks, warps, stages)


def _elementwise(family: str, rows: int) -> Rows:
    """The kernels that read and write each element once."""
    for half in HALVES:
        blocks = {"BLOCK_R": max(8, rows * 32 // half), "BLOCK_E": half}
        yield LaunchRow("attention_norm.turn_backward", family, 0, half, blocks, 4, 1)
    for kernel in ("normalise", "norm_backward"):
        yield LaunchRow(f"attention_norm.{kernel}", family, 0, ANY, {"BLOCK_M": rows // 4, "BLOCK_N": 256}, 4, 1)


def _full_row(family: str, width: int, m: int, k: int, warps: int, stages: int) -> LaunchRow:
    """An output tile that holds a whole row, so that the norm is applied in registers."""
    blocks = {"BLOCK_M": m, "BLOCK_N": width, "BLOCK_K": k}
    bits = 0 if family == "interpreter" else 16
    return LaunchRow("attention_norm.output", family, bits, width, blocks, warps, stages)


def _common(family: str) -> Rows:
    """Rows that are alike on every GPU: odd widths, float32, and the elementwise kernels."""
    yield from _qkv("qkv_odd", family, 16, 64, 64, 16, 4, 2)
    yield from _gemms("_odd", family, 16, 64, 64, 32, 4, 2)
    yield from _qkv("qkv_odd", family, 32, 32, 64, 32, 8, 1)
    yield from _gemms("_odd", family, 32, 64, 64, 16, 8, 2)
    yield from _qkv("qkv", family, 32, 32, 64, 32, 4, 2)
    yield from _gemms("", family, 32, 64, 64, 16, 8, 2)
    yield from _elementwise(family, 32)


ROWS: tuple[LaunchRow, ...] = (
    *_qkv("qkv", "hopper", 16, 128, 128, 64, 8, 3),
    _full_row("hopper", 128, 64, 64, 4, 3),
    _full_row("hopper", 256, 64, 64, 8, 3),
    _full_row("hopper", 512, 64, 32, 8, 4),
    *_gemms("", "hopper", 16, 128, 128, 64, 8, 3),
    *_qkv("qkv", "portable", 16, 64, 64, 32, 8, 3),
    _full_row("portable", 128, 64, 32, 4, 3),
    *_gemms("", "portable", 16, 128, 64, 32, 8, 3),
    *_common("portable"),
    *_qkv("qkv", "interpreter", 0, 128, 256, 128, 1, 1),
    *_qkv("qkv_odd", "interpreter", 0, 128, 256, 128, 1, 1),
    _full_row("interpreter", 128, 128, 128, 1, 1),
    *_gemms("", "interpreter", 0, 128, 256, 128, 1, 1),
    *_gemms("_odd", "interpreter", 0, 128, 256, 128, 1, 1),
    *_elementwise("interpreter", 1024),
)

TABLE = tuned("attention_norm", ROWS)
