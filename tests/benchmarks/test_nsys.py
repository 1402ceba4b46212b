"""A small recording in the layout of nsys' SQLite export, and a stand-in for the program that would make one."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import nsys, profile
from benchmarks.cases import Case

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
    shortName INTEGER NOT NULL, gridX INTEGER NOT NULL, blockX INTEGER NOT NULL, graphNodeId INTEGER
);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL
);
CREATE TABLE NVTX_EVENTS (
    start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, category INTEGER,
    color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER
);
"""
NAMES = {1: "gate_up", 2: "gemm_norm", 3: "replayed", 4: "cuLaunchKernelEx", 5: "swiglu_norm", 6: "cudaGraphLaunch"}
THREAD, OTHER = 281474976710656, 281474976710657


def kernel(start: int, end: int, correlation: int, name: int, node: int | None = None) -> tuple[Any, ...]:
    return (start, end, 0, 1, 7, correlation, 1, name, name, 132, 256, node)


def recording(path: Path) -> Path:
    """Two iterations of an eager step with two kernels in one op and one outside, and of one replay of two nodes."""
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    connection.executemany("INSERT INTO StringIds VALUES (?, ?)", NAMES.items())
    kernels, calls, ranges = [], [], []
    for i, begin in enumerate((0, 100_000)):
        ranges += [
            (begin + 1_000, begin + 30_000, 59, None, None, None, "ACT step", THREAD, None, None, 1),
            (begin + 2_000, begin + 9_000, 59, None, None, None, None, THREAD, None, 5, 1),
            (begin + 3_000, None, 34, None, None, None, "a mark", THREAD, None, None, 1),
            (begin + 1_000, begin + 90_000, 59, None, None, None, "of another thread", OTHER, None, None, 1),
        ]
        at = [(3_000, 1), (8_000, 2), (20_000, 2), (40_000, 3)]
        for k, (called, name) in enumerate(at):
            correlation = 10 * i + k
            what = 6 if name == 3 else 4
            calls.append((begin + called, begin + called + 500, 0, THREAD, correlation, what, 0))
            kernels.append(kernel(begin + called + 700, begin + called + 700 + 1_000 * (k + 1), correlation, name))
        kernels.append(kernel(begin + 60_000, begin + 66_000, 10 * i + 3, 3, node=9))
    connection.executemany(f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({', '.join('?' * 12)})", kernels)
    connection.executemany(f"INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES ({', '.join('?' * 7)})", calls)
    connection.executemany(f"INSERT INTO NVTX_EVENTS VALUES ({', '.join('?' * 11)})", ranges)
    connection.commit()
    connection.close()
    return path


def test_kernels_go_to_the_innermost_range_that_launched_them(tmp_path: Path) -> None:
    kernels, ops = nsys.read(recording(tmp_path / "r.sqlite"), repeats=2)
    assert kernels == {"gate_up": [1.0, 1.0], "gemm_norm": [2.0, 5.0], "replayed": [2.0, 10.0]}
    assert ops == {"swiglu_norm": [2.0, 3.0], "ACT step": [1.0, 3.0], nsys.NO_RANGE: [2.0, 10.0]}


def test_a_recording_without_ranges_still_has_its_kernels(tmp_path: Path) -> None:
    path = recording(tmp_path / "r.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE NVTX_EVENTS")
    connection.commit()
    connection.close()
    kernels, ops = nsys.read(path, repeats=1)
    assert sum(calls for calls, _ in kernels.values()) == 10 and list(ops) == [nsys.NO_RANGE]


def test_the_profile_runs_itself_below_nsys(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fake(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        target = Path(command[command.index("-o") + 1])
        if command[1] == "profile":
            target.with_suffix(".nsys-rep").touch()
        else:
            recording(target)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(nsys.subprocess, "run", fake)
    found = profile.by_nsys(Case("sudoku", "act_step", 1, "bfloat16", "cuda"), "rtm_triton", repeats=2)
    assert [command[:2] for command in commands] == [["nsys", "profile"], ["nsys", "export"]]
    assert "--mark" in commands[0] and "--capture-range=cudaProfilerApi" in commands[0]
    for level in ("op", "kernel"):
        assert sum(row.share for row in found if row.level == level) == pytest.approx(1.0)
    assert {row.op for row in found if row.level == "op"} == {"swiglu_norm", "ACT step", nsys.NO_RANGE}


def test_an_nsys_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no permission")
    monkeypatch.setattr(nsys.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match="nsys profile failed: no permission"):
        nsys.record(["program"], tmp_path, tmp_path)
