"""Launch table of the persistent kernel. `limit` is the sequence length L; one program runs per multiprocessor.

Block sizes: the token mix works on tiles of `MIX_D` channels, all L rows and `MIX_I` inner columns at a time; the
gate-up phase on `UP_M` rows x `UP_I` inner columns x `UP_K`; the down phase on `DOWN_M` rows x `DOWN_D` channels x
`DOWN_K`; the norm and the halting phase on `NORM_R` rows.
"""

from __future__ import annotations

from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import tuned

KERNEL = "persistent_recursion"


def _blocks(
    length: int, mix: tuple[int, int], up: tuple[int, int, int], down: tuple[int, int, int], norm_rows: int = 8
) -> dict[str, int]:
    names = ("BLOCK_L", "MIX_D", "MIX_I", "UP_M", "UP_I", "UP_K", "DOWN_M", "DOWN_D", "DOWN_K", "NORM_R")
    return dict(zip(names, (length, *mix, *up, *down, norm_rows), strict=True))


ROWS = (
    LaunchRow(KERNEL, "hopper", 16, 128, _blocks(128, (16, 64), (64, 32, 64), (64, 16, 128)), 8, 3),
    LaunchRow(KERNEL, "hopper", 16, 256, _blocks(256, (16, 32), (64, 32, 64), (64, 16, 128)), 8, 3),
    LaunchRow(KERNEL, "hopper", 32, 128, _blocks(128, (16, 16), (64, 32, 32), (64, 16, 32)), 8, 1),
    LaunchRow(KERNEL, "portable", 16, 128, _blocks(128, (16, 32), (64, 32, 64), (64, 16, 64)), 8, 2),
    LaunchRow(KERNEL, "portable", 16, 256, _blocks(256, (16, 32), (64, 32, 64), (64, 16, 64)), 8, 2,
              waiver="sm_89 with Triton 3.6 keeps 16 bytes on the stack; sm_80 and Triton 3.9 none"),
    LaunchRow(KERNEL, "portable", 32, 128, _blocks(128, (16, 16), (32, 32, 32), (32, 16, 32)), 8, 1),
    LaunchRow(KERNEL, "interpreter", 0, 16, _blocks(16, (32, 64), (32, 64, 32), (32, 32, 64)), 4, 1),
    LaunchRow(KERNEL, "interpreter", 0, 128, _blocks(128, (64, 64), (128, 128, 64), (128, 64, 128), 64), 4, 1),
)  # fmt: skip

TABLE = tuned("persistent", ROWS)
"""Rows of the persistent kernel; the longest `limit` of a family is the longest sequence that it runs there."""
