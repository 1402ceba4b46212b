"""What one server accepts at most, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. A request over a bound is refused before it costs more than reading it up to there.

    `json_values` counts what commas and colons of a body part, before it is parsed: 64 puzzles and every option need
    71. `work` bounds puzzles x cells x steps of a request, which is what solving costs; `text` the characters of one
    puzzle. `queued` counts puzzles that wait for a slot. Seconds: `read` for a request's head and again for its body,
    `request` for the rest (also the largest deadline a caller may ask for, and the time of the golden puzzle at the
    start), `grace` for a worker that is past a deadline before it counts as stuck, `probe` for the golden puzzle from
    then on, `drain` from SIGTERM to the last answer, `linger` for a client that was answered before its request was
    read, of which at most `dropped` bytes more are taken.
    """

    body: int = 256 << 10
    dropped: int = 16 << 20
    headers: int = 64
    header_block: int = 16 << 10
    json_depth: int = 16
    json_values: int = 256
    puzzles: int = 64
    cells: int = 900
    text: int = 4 << 10
    steps: int = 64
    work: int = 1 << 20
    queued: int = 256
    connections: int = 32
    read: float = 10.0
    request: float = 30.0
    grace: float = 5.0
    probe: float = 5.0
    drain: float = 3.5
    linger: float = 5.0
