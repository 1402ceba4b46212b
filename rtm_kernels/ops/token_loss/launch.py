"""Launch table of the token losses; the size of a shape class is V."""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import tuned

ANY = 1 << 30


def _rows(family: str, limit: int, block_l: int, block_v: int, warps: int) -> Iterator[LaunchRow]:
    for kernel in ("token_loss.forward", "token_loss.backward"):
        yield LaunchRow(kernel, family, 0, limit, {"BLOCK_L": block_l, "BLOCK_V": block_v}, warps, 1)


ROWS: tuple[LaunchRow, ...] = (
    *_rows("portable", 16, 128, 16, 4),
    *_rows("portable", 128, 16, 128, 4),
    *_rows("portable", ANY, 1, 1024, 4),
    *_rows("interpreter", 16, 64, 16, 1),
    *_rows("interpreter", ANY, 64, 64, 1),
)

TABLE = tuned("token_loss", ROWS)
