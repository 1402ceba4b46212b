"""Launch table of halting; the size of a shape class is the number of positions of a latent."""

from __future__ import annotations

from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import tuned

ANY = 1 << 30

ROWS: tuple[LaunchRow, ...] = (
    LaunchRow("halting.step", "portable", 0, ANY, {"BLOCK_L": 16, "BLOCK_D": 64}, 4, 1),
    LaunchRow("halting.step", "interpreter", 0, ANY, {"BLOCK_L": 16, "BLOCK_D": 64}),
)

TABLE = tuned("halting", ROWS)
