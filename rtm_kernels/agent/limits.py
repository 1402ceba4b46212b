"""What one tool call may ask for."""

from __future__ import annotations

from rtm_kernels.errors import require

MAX_TEXT = 1 << 16
"""Characters of a puzzle."""
MAX_STEPS = 64
"""ACT steps of a puzzle."""
MAX_CANDIDATES = 8
MAX_AUGMENTATIONS = 32
MAX_PAIRS = 16
"""Demonstrations of an ARC task."""
MAX_WORK = 1 << 22
"""Cells x ACT steps x runs (rollouts or augmentations) of one call: the product that a call costs."""
DEADLINE = 30.0
"""Seconds until a call answers with what it has."""
MAX_QUEUED = 256
MAX_BODY = 1 << 20
"""Bytes of an HTTP request."""
MAX_CONNECTIONS = 32
MAX_SESSIONS = 256
STREAM = 3600.0
"""Seconds after which the stream to a client is cut; it opens another one."""
MAX_HEADERS = 1 << 14
"""Bytes of the headers of an HTTP request."""


def check_work(cells: int, steps: int, runs: int) -> None:
    """Refuse a call whose product is too large, whatever its factors are. Raises `InputError`."""
    fits = cells * steps * runs <= MAX_WORK
    require(fits, "cells x steps x runs", f"{cells} x {steps} x {runs}", f"at most {MAX_WORK} in one call")
