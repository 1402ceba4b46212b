"""python -m benchmarks.run: the benchmarks without pytest, case after case, resumable.

Results are written as soon as they are measured. What the file holds for this commit is not measured again. `--who own`
measures one of our own providers after the other, the captured ones first; `--who peers` measures every other one in
turns with the best of ours. `--peers` takes the set that compares formats and peers on a CPU; its page goes to
profiles/<machine>/peers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import machine, report, rows
from benchmarks.cases import Case, by_worth, cases, peer_cases
from benchmarks.harness import run_case
from benchmarks.problem import Problem, make
from benchmarks.providers import BASELINE, BEST, PROVIDERS, REFERENCE, Provider
from benchmarks.rows import Row

UNFINISHED = 3
"""Exit status of a command whose time was over, and that goes on where it stopped when it is given again."""


def groups(who: str) -> list[list[Provider]]:
    """What is timed in turns, in order; of a group that begins with `BEST` the peer's row counts."""
    own = [p for p in PROVIDERS if p.name.startswith("rtm_")]
    if who == "own":
        return [[p] for p in sorted(own, key=lambda p: (not p.graph, p.name == REFERENCE.name))]
    return [[BEST, p] for p in PROVIDERS if p not in own] if who == "peers" else [list(PROVIDERS)]


class Cuts:
    """How often a run ended within a group, in a file beside the results: such a one comes last, and twice at most."""

    def __init__(self, path: Path) -> None:
        self.path, self.counts = path, dict[str, int]()
        if path.exists():
            self.counts = json.loads(path.read_text()).get(machine.commit(), {})

    def of(self, case: Case, group: Sequence[Provider]) -> int:
        return self.counts.get(f"{case.name} {group[-1].name}", 0)

    @contextmanager
    def noted(self, case: Case, group: Sequence[Provider]) -> Iterator[None]:
        """Count one until the block has ended."""
        key = f"{case.name} {group[-1].name}"
        before = self.counts.pop(key, 0)
        self._write(self.counts | {key: before + 1})
        yield
        self._write(self.counts)

    def _write(self, counts: dict[str, int]) -> None:
        rows.replace(self.path, json.dumps({machine.commit(): counts}))


def lost() -> bool:
    """Whether an error has left the GPU unusable for this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


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
    parser.add_argument(
        "--who", choices=("all", "own", "peers"), default="all", help="providers (default: all in turns)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the cases of --peers")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() and not args.peers else "cpu"
    name = "peers" if args.peers else "run"
    every = peer_cases(args.threads) if args.peers else [case for case, reason in cases(device) if reason is None]
    wanted = sorted((case for case in every if case.name.startswith(tuple(args.only or [""]))), key=by_worth)
    file = args.results or machine.ROOT / ".benchmarks" / f"{name}.json"
    folder = args.folder or report.default_folder(device) / ("peers" if args.peers else "")
    problem: Problem | None = None
    found, cuts = _earlier(file), Cuts(file.with_suffix(".cut"))
    left, begin = 0, time.monotonic()
    work = [(case, group) for case in wanted for group in groups(args.who)]
    for case, group in sorted(work, key=lambda one: cuts.of(*one)):
        known = {row.impl for row in found if row.case == case.name}
        if known.issuperset(p.name for p in group) or (args.who != "all" and group[-1].name in known):
            continue
        if time.monotonic() - begin > args.limit:
            left += 1
            continue
        problem = problem if problem and problem.case == case else make(case)
        reason = "the run was cut off in it twice" if cuts.of(case, group) > 1 else None
        if args.who != "all":
            reason = reason or group[-1].why_not(problem)
        if reason is None:
            with cuts.noted(case, group):
                new = _measure(problem, group, args.seconds)
        else:
            new = [Row(case.name, group[-1].name, "not run", reason, facts={"commit": machine.commit()})]
        found += [row for row in new if row.impl not in known]
        rows.write(file, found)
        # whatever ends this run, what is measured is there
        report.write_summary(found, folder)
        if device == "cuda" and lost():
            print(f"the GPU failed in {case.name} {group[-1].name}; the others need a new process")
            return UNFINISHED
    asked = {(case.name, group[-1].name if args.who != "all" else p.name) for case, group in work for p in group}
    mine = [row for row in found if (row.case, row.impl) in asked]
    measured, refused = (sum(row.status == status for row in mine) for status in ("measured", "refused"))
    if measured:
        report.write(found, folder)
        print("\n".join(report.table(rows.summary(found))))
    print(f"{measured} figures of {len(wanted)} cases, {left} left, {refused} providers refused")
    return UNFINISHED if left else int(refused > 0 or not measured)


def _earlier(path: Path) -> list[Row]:
    """Rows of this very commit from an interrupted run."""
    clean = path.exists() and not machine.commit().endswith("+")
    return [row for row in rows.read(path) if row.facts["commit"] == machine.commit()] if clean else []


def _measure(problem: Problem, providers: Sequence[Provider], seconds: float) -> list[Row]:
    found = run_case(problem.case, providers, seconds=seconds, problem=problem)
    for row in found:
        if row.seconds is not None:
            print(f"{row.case} {row.impl}: {1e3 * row.seconds:.4f} ms", flush=True)
        elif row.status == "refused" or row.impl == BASELINE.name:
            print(f"{row.case} {row.impl}: {row.status}: {row.reason}", flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
