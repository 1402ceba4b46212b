"""What one server accepts at most, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Bytes: `body` and `header_block` of a request; `dropped` is what a client may still send after a refusal.
    A request: `puzzles`, characters of a puzzle (`text`), ACT `steps`, and the product `work` = puzzles x cells x
    steps. A model: `cells` of a puzzle. At a time: `queued` puzzles that wait, `requests` at work, `connections`.
    Seconds: `read` for a body, `request` to solve it (also the largest deadline), `probe` for the golden puzzle,
    `drain` from SIGTERM to the last answer, `keep_alive` of an idle connection.
    """

    body: int = 256 << 10
    header_block: int = 16 << 10
    dropped: int = 16 << 20
    puzzles: int = 64
    text: int = 4 << 10
    steps: int = 64
    work: int = 1 << 20
    cells: int = 900
    queued: int = 256
    requests: int = 32
    connections: int = 512
    read: float = 10.0
    request: float = 30.0
    probe: float = 5.0
    drain: float = 3.5
    keep_alive: int = 5
