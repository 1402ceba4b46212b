"""python -m benchmarks.gpu_tests: the tests that need a GPU, each file in a process of its own, several at a time.

An illegal access ends one file and not the others. A file fails where its kernels were interpreted, or none ran as
compiled (`tests/gpu/evidence.py` counts). Needs pytest and no other plugin, and reads no configuration. Results are in
tests.json as soon as a file has ended or the time is over; a test that passed at this commit on this machine is not run
again. `--fuzz` runs the random configurations, which are left out otherwise.
"""

from __future__ import annotations

import argparse
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

from benchmarks import machine, report
from benchmarks.run import UNFINISHED

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIRST = ("tests/gpu/test_tiny.py", "tests/recursion/test_persistent_gpu.py", "tests/recursion/test_graph.py",
         "tests/gpu/test_block.py")  # fmt: skip
"""What is worth most when time is short; the other files follow."""

FUZZ = "random_configurations"
"""What the names of the tests have in common that draw random configurations."""

COUNTED = re.compile(r"^launches: (\d+) compiled, (\d+) interpreted$", re.M)
LINE = re.compile(r"^(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.M)


def files(holding: str = "mark.gpu") -> list[str]:
    """Test files that hold a test marked `gpu` and this text, the most important first."""
    texts = ((path, path.read_text()) for path in sorted((machine.ROOT / "tests").rglob("test_*.py")))
    found = [str(path.relative_to(machine.ROOT)) for path, text in texts if "mark.gpu" in text and holding in text]
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def pytest_command(*arguments: str) -> list[str]:
    """pytest without plugins' help and without the project's configuration, which asks for a recent version."""
    return [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(machine.ROOT), "-p", "no:cacheprovider",
            "-W", "ignore::pytest.PytestUnknownMarkWarning", *arguments]  # fmt: skip


def read(log: str) -> dict[str, str]:
    """Test -> passed, failed, error, skipped, from what `pytest -v` wrote so far."""
    return {name: outcome.lower() for name, outcome in LINE.findall(log)}


def run_file(file: str, log: Path, until: float, known: dict[str, Any], fuzz: bool) -> dict[str, Any]:
    """Test what has not passed in one file until the monotonic time `until`: how it ended, in how many seconds,
    launches as compiled and as interpreted, its tests."""
    begin = time.monotonic()
    passed = {name: how for name, how in known.get("tests", {}).items() if how in ("passed", "skipped")}
    found = {"ended": "not begun", "seconds": 0.0, "compiled": known.get("compiled", 0), "interpreted": 0}
    if begin >= until:
        return found | {"tests": passed}
    command = pytest_command("-v", "--tb=short", "-rs", "-m", "gpu", "-k", FUZZ if fuzz else f"not {FUZZ}",
                             "-p", "tests.gpu.evidence", file)  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    log.with_suffix(".passed").write_text("\n".join(passed))
    environment |= {"RTM_GPU_TESTS_PASSED": str(log.with_suffix(".passed")), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=machine.ROOT, stdout=output, stderr=output, env=environment)
        try:
            code = process.wait(until - begin)
            how = "ok" if code in (0, 5) else f"exit {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            how = "out of time"
    text = log.read_text(errors="replace")
    tests = passed | read(text)
    for compiled, interpreted in COUNTED.findall(text):
        found |= {"compiled": found["compiled"] + int(compiled), "interpreted": int(interpreted)}
    if how == "ok" and found["interpreted"]:
        how = f"interpreted: {found['interpreted']} launches did not run on the GPU"
    elif how == "ok" and "passed" in tests.values() and not found["compiled"]:
        how = "no kernel ran as compiled"
    return found | {"ended": how, "seconds": round(time.monotonic() - begin, 1), "tests": tests}


def run(
    chosen: Sequence[str], logs: Path, limit: float, jobs: int, write: Path, fuzz: bool = False
) -> dict[str, dict[str, Any]]:
    """Test the files within `limit` seconds, `jobs` at a time; file -> what `run_file` says."""
    logs.mkdir(parents=True, exist_ok=True)
    ended, until = earlier(write), time.monotonic() + limit
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [file for file in chosen if ended.get(file, {}).get("ended") != "ok"]
        running = {
            pool.submit(run_file, f, logs / (f.replace("/", "-") + ".log"), until, ended.get(f, {}), fuzz): f
            for f in waiting
        }
        for one in as_completed(running):
            file, result = running[one], one.result()
            ended[file] = result
            report.save(write, DEVICE, files=ended)
            bad = [f"\n  {name}" for name, outcome in result["tests"].items() if outcome in ("failed", "error")]
            told = f"{file}: {result['ended']} in {result['seconds']} s: {count(result['tests'])}"
            print(told + "".join(bad), flush=True)
    return ended


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """What `path` holds of this very commit on this machine."""
    known = report.earlier(path)
    same = known is not None and known["machine"] == machine.device_name(DEVICE)
    return dict(known["files"]) if same else {}


def count(tests: dict[str, str]) -> str:
    """`12 passed, 1 failed`."""
    return ", ".join(f"{n} {outcome}" for outcome, n in Counter(tests.values()).most_common()) or "no test"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when every file succeeded and some test passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tests", description=__doc__)
    parser.add_argument("files", nargs="*", help="test files (default: all that hold a test marked gpu)")
    parser.add_argument("--folder", type=Path, required=True, help="folder of tests.json")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--fuzz", action="store_true", help="only the random configurations, into fuzz.json")
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2)))
    args = parser.parse_args(argv)
    logs = machine.ROOT / ".benchmarks" / "gpu" / "tests"
    chosen = args.files or files(FUZZ if args.fuzz else "mark.gpu")
    write = args.folder / ("fuzz.json" if args.fuzz else "tests.json")
    ended = run(chosen, logs / write.stem, args.limit, args.jobs, write, args.fuzz)
    tests = {name: outcome for one in ended.values() for name, outcome in one["tests"].items()}
    wrong = {file: one["ended"] for file, one in ended.items() if one["ended"] != "ok"}
    print(f"{count(tests)}" + ("; " + ", ".join(f"{file} {how}" for file, how in wrong.items()) if wrong else ""))
    if wrong and set(wrong.values()) <= {"out of time", "not begun"} and not {"failed", "error"} & set(tests.values()):
        return UNFINISHED
    return int(bool(wrong) or "passed" not in tests.values())


if __name__ == "__main__":
    raise SystemExit(main())
