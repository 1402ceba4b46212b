"""python -m benchmarks.gpu_tests: the tests that need a GPU, each file in a process of its own, several at a time.

An illegal access ends one file and not the others. Needs pytest and no plugin, and reads no configuration. Results are
in tests.json as soon as a file has ended or the time is over; a file that succeeded at this commit on this machine is
not tested again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, rows

FIRST = ("tests/gpu/test_tiny.py", "tests/recursion/test_persistent_gpu.py", "tests/recursion/test_graph.py",
         "tests/gpu/test_block.py")  # fmt: skip
"""What is worth most when time is short; the other files follow."""

LINE = re.compile(r"^(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.M)


def files() -> list[str]:
    """Test files that hold a test marked `gpu`, the most important first."""
    texts = ((path, path.read_text()) for path in sorted((machine.ROOT / "tests").rglob("test_*.py")))
    found = [str(path.relative_to(machine.ROOT)) for path, text in texts if "mark.gpu" in text]
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def pytest_command(*arguments: str) -> list[str]:
    """pytest without plugins' help and without the project's configuration, which asks for a recent version."""
    return [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(machine.ROOT), "-p", "no:cacheprovider",
            "-W", "ignore::pytest.PytestUnknownMarkWarning", *arguments]  # fmt: skip


def read(log: str) -> dict[str, str]:
    """Test -> passed, failed, error, skipped, from what `pytest -v` wrote so far."""
    return {name: outcome.lower() for name, outcome in LINE.findall(log)}


def run_file(file: str, log: Path, until: float) -> dict[str, Any]:
    """Test one file until the monotonic time `until`: how it ended, in how many seconds, and its tests."""
    begin = time.monotonic()
    if begin >= until:
        return {"ended": "not begun", "seconds": 0.0, "tests": {}}
    command = pytest_command("-v", "--tb=short", "-rs", "-m", "gpu", file)
    with log.open("wb") as output, subprocess.Popen(command, cwd=machine.ROOT, stdout=output, stderr=output) as process:
        try:
            code = process.wait(until - begin)
            how = "ok" if code in (0, 5) else f"exit {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            how = "out of time"
    seconds = round(time.monotonic() - begin, 1)
    return {"ended": how, "seconds": seconds, "tests": read(log.read_text(errors="replace"))}


def run(chosen: Sequence[str], logs: Path, limit: float, jobs: int, write: Path) -> dict[str, dict[str, Any]]:
    """Test the files within `limit` seconds, `jobs` at a time; file -> what `run_file` says."""
    logs.mkdir(parents=True, exist_ok=True)
    ended, until = earlier(write), time.monotonic() + limit
    facts = {"machine": _machine(), "commit": machine.commit(), "versions": machine.versions()}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [file for file in chosen if file not in ended]
        running = {pool.submit(run_file, f, logs / (f.replace("/", "-") + ".log"), until): f for f in waiting}
        for one in as_completed(running):
            file, result = running[one], one.result()
            ended[file] = result
            rows.replace(write, json.dumps({**facts, "files": ended}, indent=1) + "\n")
            bad = [f"\n  {name}" for name, outcome in result["tests"].items() if outcome in ("failed", "error")]
            told = f"{file}: {result['ended']} in {result['seconds']} s: {count(result['tests'])}"
            print(told + "".join(bad), flush=True)
    return ended


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """What `path` holds of files that succeeded at this very commit on this machine."""
    if not path.exists() or machine.commit().endswith("+"):
        return {}
    known = json.loads(path.read_text())
    same = (known["machine"], known["commit"]) == (_machine(), machine.commit())
    return {file: one for file, one in known["files"].items() if same and one["ended"] == "ok"}


def _machine() -> str:
    return machine.device_name("cuda" if torch.cuda.is_available() else "cpu")


def count(tests: dict[str, str]) -> str:
    """`12 passed, 1 failed`."""
    return ", ".join(f"{n} {outcome}" for outcome, n in Counter(tests.values()).most_common()) or "no test"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when every file succeeded and some test passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tests", description=__doc__)
    parser.add_argument("files", nargs="*", help="test files (default: all that hold a test marked gpu)")
    parser.add_argument("--folder", type=Path, required=True, help="folder of tests.json")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2)))
    args = parser.parse_args(argv)
    logs = machine.ROOT / ".benchmarks" / "gpu" / "tests"
    ended = run(args.files or files(), logs, args.limit, args.jobs, args.folder / "tests.json")
    tests = {name: outcome for one in ended.values() for name, outcome in one["tests"].items()}
    wrong = [f"{file} {one['ended']}" for file, one in ended.items() if one["ended"] != "ok"]
    print(f"{count(tests)}" + ("; " + ", ".join(wrong) if wrong else ""))
    return int(bool(wrong) or "passed" not in tests.values())


if __name__ == "__main__":
    raise SystemExit(main())
