"""Launch table of the convolution on hidden units; the size of a shape class is F."""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.launch import LaunchRow, tuned

ANY = 1 << 30


def _rows(family: str, limit: int, block_l: int, block_f: int, warps: int) -> Iterator[LaunchRow]:
    for kernel in ("conv_hidden.forward", "conv_hidden.backward_output", "conv_hidden.backward_input"):
        yield LaunchRow(kernel, family, 0, limit, {"BLOCK_L": block_l, "BLOCK_F": block_f}, warps, 1)


ROWS: tuple[LaunchRow, ...] = (
    *_rows("portable", 32, 32, 32, 4),
    *_rows("portable", ANY, 16, 64, 4),
    *_rows("interpreter", ANY, 64, 64, 1),
)

TABLE = tuned("conv_swiglu_norm", ROWS)
