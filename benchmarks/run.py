"""python -m benchmarks.run: the benchmarks without pytest, case after case, resumable.

Results are written after every case. A case that the file holds for this commit is not measured again. `--peers` takes
the set that compares formats and peers on a CPU; its page goes to profiles/<machine>/peers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report, rows
from benchmarks.cases import Case, by_worth, cases, peer_cases
from benchmarks.harness import run_case
from benchmarks.providers import BASELINE
from benchmarks.rows import Row


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when every case was measured and nothing was refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--results", type=Path, help="file of results (default: .benchmarks/run.json, or peers.json)")
    parser.add_argument("--folder", type=Path, help="folder of the report (default: profiles/<machine>)")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which no new case begins")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of timed rounds per case")
    parser.add_argument("--only", action="append", help="cases whose name begins with this (may be repeated)")
    parser.add_argument(
        "--peers", action="store_true", help="the set of cases that compares formats and peers on a CPU"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the cases of --peers")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() and not args.peers else "cpu"
    name = "peers" if args.peers else "run"
    every = peer_cases(args.threads) if args.peers else [case for case, reason in cases(device) if reason is None]
    wanted = sorted((case for case in every if case.name.startswith(tuple(args.only or [""]))), key=by_worth)
    file = args.results or machine.ROOT / ".benchmarks" / f"{name}.json"
    folder = args.folder or report.default_folder(device) / ("peers" if args.peers else "")
    found = _earlier(file)
    left = 0
    begin = time.monotonic()
    for case in wanted:
        if any(row.case == case.name for row in found):
            continue
        if time.monotonic() - begin > args.limit:
            left += 1
            continue
        found += _measure(case, args.seconds)
        rows.write(file, found)
        # whatever ends this run, what is measured is there
        report.write_summary(found, folder)
    measured = sum(row.status == "measured" for row in found)
    refused = sum(row.status == "refused" for row in found)
    if measured:
        report.write(found, folder)
        print("\n".join(report.table(rows.summary(found))))
    print(f"{len(wanted) - left} of {len(wanted)} cases measured, {refused} providers refused")
    return int(left > 0 or refused > 0 or not measured)


def _earlier(path: Path) -> list[Row]:
    """Rows of this very commit from an interrupted run."""
    clean = path.exists() and not machine.commit().endswith("+")
    return [row for row in rows.read(path) if row.facts["commit"] == machine.commit()] if clean else []


def _measure(case: Case, seconds: float) -> list[Row]:
    found = run_case(case, seconds=seconds)
    for row in found:
        if row.status == "refused" or (row.status == "not run" and row.impl == BASELINE.name):
            print(f"{case.name} {row.impl}: {row.status}: {row.reason}", flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
