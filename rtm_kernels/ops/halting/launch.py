"""Launch table of halting; the size of a shape class is U for `update` and D for the others."""

from __future__ import annotations

from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import tuned

ANY = 1 << 30

ROWS: tuple[LaunchRow, ...] = (
    LaunchRow("halting.update", "portable", 0, 1, {"BLOCK_B": 32, "BLOCK_U": 1, "BLOCK_D": 512}, 16, 1),
    LaunchRow("halting.update", "portable", 0, ANY, {"BLOCK_B": 16, "BLOCK_U": 128, "BLOCK_D": 16}, 8, 1),
    LaunchRow("halting.head", "portable", 0, ANY, {"BLOCK_L": 16, "BLOCK_D": 256}, 4, 1),
    LaunchRow("halting.change", "portable", 0, ANY, {"BLOCK": 2048}, 4, 1),
    LaunchRow("halting.update", "interpreter", 0, 1, {"BLOCK_B": 32, "BLOCK_U": 1, "BLOCK_D": 64}),
    LaunchRow("halting.update", "interpreter", 0, ANY, {"BLOCK_B": 32, "BLOCK_U": 16, "BLOCK_D": 16}),
    LaunchRow("halting.head", "interpreter", 0, ANY, {"BLOCK_L": 16, "BLOCK_D": 64}),
    LaunchRow("halting.change", "interpreter", 0, ANY, {"BLOCK": 256}),
)

TABLE = tuned("halting", ROWS)
