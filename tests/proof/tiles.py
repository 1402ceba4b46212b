"""Other tile sizes for the interpreter's launch rows, so that small shapes have many programs and many edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rtm_kernels.ops.launch import LaunchRow
from tests.cases import OPS

HOLDS_ALL = {"fused": {"BLOCK_N"}, "fused_input_grad": {"BLOCK_N"}, "gemm_norm": {"BLOCK_N"},
             "persistent_recursion": {"BLOCK_L"}}  # fmt: skip
"""Kernel -> block sizes that must hold a whole axis."""
FIXED = {"BLOCK_E", "BLOCK_H", "SPLITS", "BLOCK_U", "NORM_R", "BLOCK"}


def shrinkable(row: LaunchRow, name: str) -> bool:
    """Whether a smaller block of this name leaves the kernel what it is."""
    return name not in FIXED and name not in HOLDS_ALL.get(row.kernel, ())


@contextmanager
def tiles(size: int) -> Iterator[None]:
    """No block larger than `size`, where a kernel does not need a whole axis in one."""
    tables = [table for op in OPS.values() for table in op.tables.values()]
    rows = [row for table in tables for row in table if row.family == "interpreter"]
    before = [dict(row.blocks) for row in rows]
    for row in rows:
        for name, block in list(row.blocks.items()):
            if shrinkable(row, name):
                row.blocks[name] = min(block, size)  # type: ignore[index]
    try:
        yield
    finally:
        for row, blocks in zip(rows, before, strict=True):
            row.blocks.clear()  # type: ignore[attr-defined]
            row.blocks.update(blocks)  # type: ignore[attr-defined]
