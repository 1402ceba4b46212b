"""python -m benchmarks.gpu_tests: the tests that need a GPU, each file in a process of its own, several at a time.

An illegal access ends one file and not the others. Needs pytest and no plugin, and reads no configuration. What each
test did is in tests.json as soon as its file has ended, or when the time is over; a file that tests.json holds as ended
well at this commit on this machine is not tested again.
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
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine, rows

FIRST = ("tests/gpu/test_tiny.py", "tests/recursion/test_persistent_gpu.py", "tests/recursion/test_graph.py",
         "tests/gpu/test_block.py", "tests/recursion/test_act_graph.py", "tests/recursion/test_queue.py")  # fmt: skip
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


@dataclass
class Running:
    """One file that is being tested."""

    file: str
    log: Path
    process: subprocess.Popen[bytes]
    begin: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def start(file: str, logs: Path) -> Running:
    """Begin to test a file."""
    log = logs / (file.replace("/", "-") + ".log")
    command = pytest_command("-v", "--tb=short", "-rs", "-m", "gpu", file)
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=machine.ROOT, stdout=output, stderr=output)
    return Running(file, log, process)


def read(log: str) -> dict[str, str]:
    """Test -> passed, failed, error, skipped, from what `pytest -v` wrote so far."""
    return {name: outcome.lower() for name, outcome in LINE.findall(log)}


def run(chosen: Sequence[str], logs: Path, limit: float, jobs: int, write: Path) -> dict[str, dict[str, object]]:
    """Test the files within `limit` seconds; file -> how it ended, in how long, and its tests."""
    logs.mkdir(parents=True, exist_ok=True)
    ended = earlier(write)
    waiting, running = [file for file in chosen if file not in ended], list[Running]()
    until = time.monotonic() + limit

    def finish(one: Running, how: str) -> None:
        tests = read(one.log.read_text(errors="replace"))
        seconds = round(time.monotonic() - one.begin, 1)
        ended[one.file] = {"ended": how, "seconds": seconds, "tests": tests}
        facts = {"machine": _machine(), "commit": machine.commit(), "versions": machine.versions()}
        rows.replace(write, json.dumps({**facts, "files": ended}, indent=1) + "\n")
        bad = [name for name, outcome in tests.items() if outcome in ("failed", "error")]
        print(f"{one.file}: {how} in {seconds} s: {count(tests)}" + "".join(f"\n  {name}" for name in bad), flush=True)

    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < until:
            running.append(start(waiting.pop(0), logs))
        for one in list(running):
            if one.process.poll() is not None or time.monotonic() >= until:
                over = one.process.poll() is None
                if over:
                    one.stop()
                running.remove(one)
                code = one.process.returncode
                finish(one, "out of time" if over else "ok" if code in (0, 5) else f"exit {code}")
        if time.monotonic() >= until and not running:
            break
        time.sleep(0.05)
    for file in waiting:
        ended[file] = {"ended": "not begun", "seconds": 0.0, "tests": {}}
    return ended


def earlier(path: Path) -> dict[str, dict[str, object]]:
    """What `path` holds of files that ended well at this very commit on this machine."""
    if not path.exists() or machine.commit().endswith("+"):
        return {}
    known = json.loads(path.read_text())
    same = (known["machine"], known["commit"]) == (_machine(), machine.commit())
    return {file: one for file, one in known["files"].items() if same and one["ended"] == "ok"}


def _machine() -> str:
    import torch

    return machine.device_name("cuda" if torch.cuda.is_available() else "cpu")


def count(tests: dict[str, str]) -> str:
    """`12 passed, 1 failed`."""
    return ", ".join(f"{n} {outcome}" for outcome, n in Counter(tests.values()).most_common()) or "no test"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when every file ended well and some test passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tests", description=__doc__)
    parser.add_argument("files", nargs="*", help="test files (default: all that hold a test marked gpu)")
    parser.add_argument("--folder", type=Path, required=True, help="folder of tests.json")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2)))
    args = parser.parse_args(argv)
    logs = machine.ROOT / ".benchmarks" / "gpu" / "tests"
    ended = run(args.files or files(), logs, args.limit, args.jobs, args.folder / "tests.json")
    tests = {name: outcome for one in ended.values() for name, outcome in one["tests"].items()}  # type: ignore[attr-defined]
    wrong = [f"{file} {one['ended']}" for file, one in ended.items() if one["ended"] != "ok"]
    print(f"{count(tests)}" + ("; " + ", ".join(wrong) if wrong else ""))
    return int(bool(wrong) or "passed" not in tests.values())


if __name__ == "__main__":
    raise SystemExit(main())
