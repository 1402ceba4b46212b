"""Launch table of attention_norm.

The size of a shape class is half a head (rounded up) for `qkv` and `turn_backward`, and D or the number of
output features for the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.launch import LaunchRow

ANY = 1 << 30
HALVES = (16, 32, 64, 128)
"""Padded sizes of half a head; heads above 256 have no row."""


def _qkv(family: str, bits: int, rows: int, lanes: int, block_k: int, warps: int, stages: int) -> Iterator[LaunchRow]:
    """One row per size of half a head, with as many heads as fill `lanes` columns."""
    for half in HALVES:
        blocks = {"BLOCK_M": rows, "BLOCK_H": max(1, lanes // half), "BLOCK_E": half, "BLOCK_K": block_k}
        yield LaunchRow("attention_norm.qkv", family, bits, half, blocks, warps, stages)


def _gemms(family: str, bits: int, m: int, n: int, k: int, warps: int, stages: int) -> Iterator[LaunchRow]:
    """The plain GEMM tiles, used by the backward pass and by output rows too wide for one tile."""
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    yield LaunchRow("attention_norm.output", family, bits, ANY, blocks, warps, stages)
    yield LaunchRow("attention_norm.input_grad", family, bits, ANY, blocks, warps, stages)
    yield LaunchRow(
        "attention_norm.weight_grad", family, bits, ANY, {"BLOCK_M": k, "BLOCK_N": m, "BLOCK_K": n}, warps, stages
    )


def _elementwise(family: str, rows: int) -> Iterator[LaunchRow]:
    """The kernels that read and write each element once."""
    for half in HALVES:
        blocks = {"BLOCK_R": max(8, rows * 32 // half), "BLOCK_E": half}
        yield LaunchRow("attention_norm.turn_backward", family, 0, half, blocks, 4, 1)
    for kernel in ("normalise", "norm_backward"):
        yield LaunchRow(f"attention_norm.{kernel}", family, 0, ANY, {"BLOCK_M": rows // 4, "BLOCK_N": 256}, 4, 1)


def _full_row(family: str, width: int, m: int, k: int, warps: int, stages: int) -> LaunchRow:
    """An output tile that holds a whole row, so that the norm is applied in registers."""
    blocks = {"BLOCK_M": m, "BLOCK_N": width, "BLOCK_K": k}
    return LaunchRow("attention_norm.output", family, 16, width, blocks, warps, stages)


TABLE: tuple[LaunchRow, ...] = (
    *_qkv("hopper", 16, 128, 128, 64, 8, 3),
    _full_row("hopper", 128, 128, 64, 8, 3),
    _full_row("hopper", 256, 64, 64, 8, 3),
    _full_row("hopper", 512, 64, 64, 8, 3),
    *_gemms("hopper", 16, 128, 128, 64, 8, 3),
    *_qkv("hopper", 32, 64, 32, 32, 4, 2),
    *_gemms("hopper", 32, 64, 64, 32, 4, 2),
    *_elementwise("hopper", 32),
    *_qkv("portable", 16, 64, 64, 32, 4, 3),
    _full_row("portable", 128, 64, 32, 4, 3),
    *_gemms("portable", 16, 128, 64, 32, 4, 3),
    *_qkv("portable", 32, 64, 32, 32, 4, 2),
    *_gemms("portable", 32, 64, 64, 32, 4, 2),
    *_elementwise("portable", 32),
    *_qkv("interpreter", 0, 64, 64, 64, 1, 1),
    LaunchRow("attention_norm.output", "interpreter", 0, 128, {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, 1, 1),
    *_gemms("interpreter", 0, 64, 128, 64, 1, 1),
    *_elementwise("interpreter", 256),
)
