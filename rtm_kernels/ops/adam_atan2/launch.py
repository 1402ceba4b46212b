"""Launch table of the optimisers; the size of a shape class is not used by `adam_atan2` and D for `sign_sgd`."""

from __future__ import annotations

from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import tuned

ANY = 1 << 30

ROWS: tuple[LaunchRow, ...] = (
    LaunchRow("adam_atan2", "portable", 0, ANY, {"BLOCK": 1024}, 4, 1),
    LaunchRow("sign_sgd", "portable", 0, ANY, {"BLOCK_D": 256}, 4, 1),
    LaunchRow("adam_atan2", "interpreter", 0, ANY, {"BLOCK": 512}),
    LaunchRow("sign_sgd", "interpreter", 0, ANY, {"BLOCK_D": 64}),
)

TABLE = tuned("adam_atan2", ROWS)
"""Both kernels move each byte once and share nothing between programs, so the blocks only set the granularity."""
