"""Launch table of the queue's kernels; both are bound by latency, and the size of a shape class is not used."""

from __future__ import annotations

from rtm_kernels.ops.launch import LaunchRow

ANY = 1 << 30

TABLE = (
    LaunchRow("queue.plan", "portable", 0, ANY, {"BLOCK": 256}, 4, 1),
    LaunchRow("queue.move", "portable", 0, ANY, {"BLOCK": 1024}, 4, 1),
    LaunchRow("queue.plan", "interpreter", 0, ANY, {"BLOCK": 4}),
    LaunchRow("queue.move", "interpreter", 0, ANY, {"BLOCK": 512}),
)
