"""python -m benchmarks.compare OLD NEW: is NEW faster, by how much, and how sure is that?

OLD and NEW are two files of `pytest --benchmark-json`, or two commits. Commits are checked out side by side, held to
their own tests (a red gate ends the comparison), and benchmarked in turns, `--rounds` times each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine, rows
from rtm_kernels.errors import InputError, RTMError

TESTS = ("tests/ops", "tests/recursion", "tests/test_golden.py", "tests/benchmarks")
"""The gate: tests that must pass on both sides before anything is timed."""


@dataclass(frozen=True)
class Change:
    """Old time over new time of one case and provider, with its 95% interval: above 1, new is faster."""

    case: str
    impl: str
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """faster, slower, or unclear when the interval holds 1."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "unclear"


def ratio_interval(old: Sequence[float], new: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """Median of old over median of new, and the 95% bootstrap interval when both are drawn anew."""
    generator = np.random.default_rng(0)

    def medians(values: Sequence[float]) -> np.ndarray:
        data = np.asarray(values, dtype=np.float64)
        return np.median(data[generator.integers(0, len(data), (draws, len(data)))], axis=1)

    low, high = np.quantile(medians(old) / medians(new), (0.025, 0.975))
    return float(np.median(old) / np.median(new)), float(low), float(high)


def compare(old: Sequence[rows.Result], new: Sequence[rows.Result]) -> list[Change]:
    """One change per case and provider that both sides measured.

    Errors: `InputError` when nothing is common, or the two sides ran on different machines.
    """
    machines = {r.facts["machine"] for r in (*old, *new)}
    if len(machines) > 1:
        raise InputError(f"the results are of different machines: {', '.join(sorted(machines))}")
    ours = {r.key: r.samples for r in old}
    found = [Change(*r.key, *ratio_interval(ours[r.key], r.samples)) for r in new if r.key in ours]
    if not found:
        raise InputError("the two sides have measured no case in common")
    return found


def table(changes: Sequence[Change]) -> str:
    """The changes as text."""
    lines = [f"{'case':<40} {'impl':<24} old/new   95% interval"]
    lines += [f"{c.case:<40} {c.impl:<24} {c.ratio:7.3f}   {c.low:.3f} to {c.high:.3f}  {c.verdict}" for c in changes]
    return "\n".join(lines)


class Checkout:
    """A commit in a folder of its own, with its native code built, and its tests and benchmarks run from there."""

    def __init__(self, commit: str, folder: Path) -> None:
        self.commit, self.folder = commit, folder
        self.samples: dict[tuple[str, str], rows.Result] = {}
        _run(["git", "worktree", "add", "--detach", str(folder), commit], machine.ROOT, f"no such commit: {commit}")
        self._python("setup.py", "--quiet", "build_ext", "--inplace", failure=f"{commit}: the native build fails")

    def _python(self, *args: str, failure: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        _run([sys.executable, *args], self.folder, failure, environment)

    def test(self, tests: Sequence[str]) -> None:
        """The gate. Errors: `InputError` when a test fails, is missing, or cannot run."""
        present = [t for t in tests if (self.folder / t).exists()]
        if not present:
            raise InputError(f"{self.commit}: none of the tests {', '.join(tests)} exists there")
        self._python("-m", "pytest", "-q", "-x", *present, failure=f"{self.commit}: its tests are red; not compared")

    def measure(self, selection: str) -> None:
        """Benchmark once more and add the samples to those of earlier rounds."""
        file = self.folder / ".benchmarks" / "compare.json"
        file.parent.mkdir(exist_ok=True)
        select = ["-k", selection] if selection else []
        command = ["-m", "pytest", "-q", "benchmarks", *select, f"--benchmark-json={file}"]
        self._python(*command, failure=f"{self.commit}: its benchmarks fail")
        for result in rows.read(file):
            before = self.samples[result.key].samples if result.key in self.samples else []
            self.samples[result.key] = rows.Result(result.facts, before + result.samples)

    def remove(self) -> None:
        """Take the folder away again."""
        subprocess.run(["git", "worktree", "remove", "--force", self.folder], cwd=machine.ROOT, check=False)


def _run(command: Sequence[str], folder: Path, failure: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise InputError(f"{failure} ({last[-400:]})")


def compare_commits(old: str, new: str, *, selection: str, rounds: int, tests: Sequence[str]) -> list[Change]:
    """Both commits tested, then benchmarked in turns."""
    with tempfile.TemporaryDirectory() as folder:
        sides: list[Checkout] = []
        try:
            for name, commit in (("old", old), ("new", new)):
                sides.append(Checkout(commit, Path(folder) / name))
            for side in sides:
                side.test(tests)
            for turn in range(rounds):
                for side in sides if turn % 2 == 0 else reversed(sides):
                    side.measure(selection)
        finally:
            for side in sides:
                side.remove()
    return compare(*(list(side.samples.values()) for side in sides))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when nothing is slower, 1 when something is, 2 when no comparison is made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", help="results.json or a commit")
    parser.add_argument("new", help="results.json or a commit")
    parser.add_argument("-k", default="", dest="selection", help="benchmarks to run, as pytest's -k")
    parser.add_argument("--rounds", type=int, default=3, help="times that each commit is benchmarked, in turns")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="the gate of a commit")
    args = parser.parse_args(argv)
    try:
        if all(Path(side).is_file() for side in (args.old, args.new)):
            changes = compare(rows.read(Path(args.old)), rows.read(Path(args.new)))
        else:
            options = {"selection": args.selection, "rounds": args.rounds, "tests": args.tests}
            changes = compare_commits(args.old, args.new, **options)
    except RTMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(changes))
    return int(any(change.verdict == "slower" for change in changes))


if __name__ == "__main__":
    raise SystemExit(main())
