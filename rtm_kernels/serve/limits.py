"""What one server accepts at most, in one place, and the refusals that say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. A request over a bound is refused before it costs more than reading it up to there.

    `work` bounds puzzles x cells x steps of a request, which is what solving costs; `text` the characters of one
    puzzle. `queued` counts puzzles that wait for a slot. Seconds: `read` for a request's head and again for its body,
    `request` for the rest (also the largest deadline a caller may ask for), `grace` for a worker that is past a
    deadline before it counts as stuck, `probe` for the golden puzzle, `drain` from SIGTERM to the last answer.
    """

    body: int = 1 << 20
    headers: int = 64
    header_block: int = 16 << 10
    json_depth: int = 16
    puzzles: int = 64
    cells: int = 900
    text: int = 16 << 10
    steps: int = 64
    work: int = 1 << 20
    queued: int = 256
    connections: int = 32
    read: float = 10.0
    request: float = 30.0
    grace: float = 5.0
    probe: float = 5.0
    drain: float = 3.5


class Refused(Exception):
    """A request that is answered with `status` and an error of `code`, and with `retry_after` seconds where given."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def unavailable(code: str, message: str, retry_after: int = 1) -> Refused:
    """503: nothing is wrong with the request, and later it may be taken."""
    return Refused(503, code, message, retry_after)
