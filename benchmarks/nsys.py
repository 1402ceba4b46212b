"""What nsys has recorded: the time of every kernel, by itself and by the innermost NVTX range that launched it."""

from __future__ import annotations

import bisect
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

PUSH_POP = 59
"""NVTX_EVENTS.eventType of a range of one thread."""

NO_RANGE = "outside of any range"

Times = dict[str, list[float]]
"""Name -> [launches, microseconds] per iteration."""


def record(command: Sequence[str], folder: Path, cwd: Path) -> Path:
    """Run `command` below nsys, of which the part between the profiler's start and stop is kept; the SQLite export."""
    report, database = folder / "report", folder / "report.sqlite"
    options = ["--capture-range=cudaProfilerApi", "--cuda-graph-trace=node", "--trace=cuda,nvtx", "--sample=none"]
    for one in (
        ["nsys", "profile", *options, "-o", str(report), *command],
        ["nsys", "export", "--type=sqlite", "--force-overwrite=true", "-o", str(database), f"{report}.nsys-rep"],
    ):
        done = subprocess.run(one, cwd=cwd, capture_output=True, text=True)
        if not (database if one[1] == "export" else Path(f"{report}.nsys-rep")).exists():
            raise RuntimeError(f"{' '.join(one[:2])} failed: {(done.stdout + done.stderr).strip()[-500:]}")
    return database


def read(database: Path, repeats: int) -> tuple[Times, Times]:
    """Kernels, and the ranges of this package that launched them, both per iteration.

    A kernel belongs to the innermost range open on the thread when its launch was called; those of a replayed graph to
    the range around the replay.
    """
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        ranges = _ranges(connection)
        kernels: Times = defaultdict(lambda: [0.0, 0.0])
        ops: Times = defaultdict(lambda: [0.0, 0.0])
        query = """
            SELECT name.value, k."end" - k.start, api.start, api.globalTid
            FROM CUPTI_ACTIVITY_KIND_KERNEL AS k
            JOIN StringIds AS name ON name.id = k.shortName
            LEFT JOIN CUPTI_ACTIVITY_KIND_RUNTIME AS api ON api.correlationId = k.correlationId
        """
        for kernel, nanoseconds, called, thread in connection.execute(query):
            for found, name in ((kernels, kernel), (ops, _innermost(ranges.get(thread, []), called))):
                found[name][0] += 1 / repeats
                found[name][1] += nanoseconds / 1e3 / repeats
        return dict(kernels), dict(ops)
    finally:
        connection.close()


def _ranges(connection: sqlite3.Connection) -> dict[int, list[tuple[int, int, str]]]:
    """Thread -> its ranges (start, end, text), by start."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'NVTX_EVENTS'").fetchone():
        return {}
    found: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    query = """
        SELECT e.start, e."end", COALESCE(e.text, s.value), e.globalTid
        FROM NVTX_EVENTS AS e LEFT JOIN StringIds AS s ON s.id = e.textId
        WHERE e.eventType = ? AND e."end" IS NOT NULL ORDER BY e.start
    """
    for start, end, text, thread in connection.execute(query, (PUSH_POP,)):
        found[thread].append((start, end, text))
    return found


def _innermost(ranges: list[tuple[int, int, str]], at: int | None) -> str:
    """The text of the last range to begin before `at` that is still open then."""
    if at is None:
        return NO_RANGE
    place = bisect.bisect_right(ranges, at, key=lambda r: r[0])
    return next((text for start, end, text in reversed(ranges[:place]) if end >= at), NO_RANGE)
