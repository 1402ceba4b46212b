"""Launch table of the kernels that attention_norm has of its own; the size of a shape class is half a head, rounded up.

Its products and norms run by the rows of `ops.swiglu`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.launch import LaunchRow, tuned

HALVES = (16, 32, 64, 128)
"""Padded sizes of half a head; heads above 256 have no row."""
FEW_HALVES = (32, 128)
"""The sizes that float32 is padded to."""
FLASH_KEYS = {64: 256, 128: 128, 256: 64}
"""Largest head -> longest sequence that flash_attn reads as one block of keys. A longer one it may split, by a rule
that counts the batch, so that a sample's bits would depend on its batch: `attention="auto"` then takes PyTorch's."""


def _qkv(family: str, bits: int, rows: int, lanes: int, k: int, warps: int, stages: int) -> Iterator[LaunchRow]:
    """One row per size of half a head, with as many heads as fill `lanes` columns."""
    for half in FEW_HALVES if bits == 32 else HALVES:
        blocks = {
            "BLOCK_M": rows // 2 if half == 128 and bits == 16 else rows,
            "BLOCK_H": max(1, lanes // (2 * half)),
            "BLOCK_E": half,
            "BLOCK_K": k,
        }
        yield LaunchRow("qkv", family, bits, half, blocks, 8 if 2 * half > lanes else warps, stages)


def _turn_backward(family: str, rows: int) -> Iterator[LaunchRow]:
    for half in HALVES:
        blocks = {"BLOCK_R": max(8, rows * 32 // half), "BLOCK_E": half}
        yield LaunchRow("turn_backward", family, 0, half, blocks, 4, 1)


ROWS: tuple[LaunchRow, ...] = (
    *_qkv("hopper", 16, 128, 128, 64, 8, 3),
    *_qkv("portable", 16, 64, 64, 32, 8, 3),
    *_qkv("portable", 32, 32, 64, 32, 4, 2),
    *_turn_backward("portable", 32),
    *_qkv("interpreter", 0, 128, 256, 128, 1, 1),
    *_turn_backward("interpreter", 1024),
)

TABLE = tuned("attention_norm", ROWS)
