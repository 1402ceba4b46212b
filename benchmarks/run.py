"""python -m benchmarks.run: the benchmarks without pytest, case after case, resumable.

Results are written after every case; a case that the file holds for this commit is not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report, rows
from benchmarks.cases import Case, by_worth, cases
from benchmarks.harness import run_case
from benchmarks.providers import BASELINE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when every case was measured and nothing was refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--results", type=Path, default=machine.ROOT / ".benchmarks" / "latest.json")
    parser.add_argument("--folder", type=Path, help="folder of the report (default: profiles/<machine>)")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which no new case begins")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of timed rounds per case")
    parser.add_argument("--energy", type=float, default=0.0, help="seconds of each energy window (at least 30 to cite)")
    parser.add_argument("--only", action="append", help="cases whose name begins with this (may be repeated)")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = [
        case for case, reason in cases(device) if reason is None and case.name.startswith(tuple(args.only or [""]))
    ]
    wanted.sort(key=by_worth)
    results = _earlier(args.results)
    folder = args.folder or report.PROFILES / machine.slug(device)
    left = refused = 0
    begin = time.monotonic()
    for case in wanted:
        if any(r.facts["case"] == case.name for r in results):
            continue
        if time.monotonic() - begin > args.limit:
            left += 1
            continue
        found, wrong = _measure(case, args.seconds, args.energy)
        refused += wrong
        results += found
        rows.write(args.results, results)
        # whatever ends this run, what is measured is there
        report.update_summary(folder, rows.summary(results), rows.METRICS)
    if results:
        report.write(results, folder)
        print("\n".join(report.table(rows.summary(results))))
    print(f"{len(wanted) - left} of {len(wanted)} cases measured, {refused} providers refused")
    return int(left > 0 or refused > 0 or not results)


def _earlier(path: Path) -> list[rows.Result]:
    """Results of this very commit from an interrupted run."""
    clean = path.exists() and not machine.commit().endswith("+")
    return [r for r in rows.read(path) if r.facts["commit"] == machine.commit()] if clean else []


def _measure(case: Case, seconds: float, energy: float) -> tuple[list[rows.Result], int]:
    found = run_case(case, seconds=seconds, energy_seconds=energy)
    for row in found:
        if row.status == "refused" or (row.status == "not run" and row.impl == BASELINE.name):
            print(f"{case.name} {row.impl}: {row.status}: {row.reason}", flush=True)
    measured = [rows.Result(row.as_dict(), row.samples) for row in found if row.status == "measured"]
    return measured, sum(row.status == "refused" for row in found)


if __name__ == "__main__":
    raise SystemExit(main())
