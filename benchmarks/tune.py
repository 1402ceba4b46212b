"""python -m benchmarks.tune: better launch rows for this GPU, found offline and held to the error budget first.

From the row of the table the search goes uphill: warps, stages, one block size doubled or halved, another variant. A
candidate is compiled, compared with the reference, and timed against the best row so far in turns, by graph replay.
`tuned.json` beside the profiles lists everything that was tried. `--write` puts the winners into
`rtm_kernels/ops/tuned.json`, which the launch tables read: review the diff, then run both gates.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, rows
from benchmarks.harness import capture
from benchmarks.run import UNFINISHED
from benchmarks.timing import Clock, interleave, speedup
from rtm_kernels.impl import launches
from rtm_kernels.ops import launch
from rtm_kernels.ops.launch import LaunchRow
from tests.cases import OPS
from tests.cases import tuned as uses
from tests.cases.case import Tuned, as_dtype, check, gradients, upstream_of
from tests.compiled.ptx import parse
from tests.gates.hazards import hazards

SHARE = 60.0
"""Seconds that one use may take."""
MARGIN = 1.02
"""The lower end of a winner's interval must be above this ratio."""

Replay = Callable[[], object]
Timer = Callable[[Replay, Replay], tuple[float, float, float]]
"""Time of the first over time of the second, and the ends of its interval."""


@dataclass(frozen=True)
class Work:
    """A call whose launches are tuned, and why what it computes now must not be timed (None: it may)."""

    run: Callable[[], Sequence[Tensor]]
    refusal: Callable[[], str | None]


def work_of(use: Tuned, device: str = "cuda") -> Work:
    """The call of `use` on tensors that are made once; two samples of it are held to the budget of the gates."""
    case, few = use.case(use.batch), use.case(min(2, use.batch))
    made = case.make(torch.Generator().manual_seed(0))
    tensors = {name: as_dtype(t, use.dtype, device) for name, t in made.items()}
    once = case.start(tensors) if case.start else partial(case.call, "triton", tensors)

    def outputs() -> list[Tensor]:
        with torch.set_grad_enabled(use.gradient):
            found = once()
        return [found] if isinstance(found, Tensor) else list(found)

    upstream = upstream_of(outputs())

    def run() -> list[Tensor]:
        found = outputs()
        return [*found, *gradients(found, tensors, upstream).values()]

    def refusal() -> str | None:
        failures = check(few, use.dtype, device=torch.device(device)).failures
        if not failures and not all(t.isfinite().all() for t in run()):
            failures = ["values that are not finite"]
        return "; ".join(failures) or None

    return Work(run, refusal)


@dataclass(frozen=True)
class Found:
    """A candidate and what became of it; ratio is the best row's time so far over its time."""

    use: str
    op: str
    row: LaunchRow
    candidate: LaunchRow
    status: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def candidates(row: LaunchRow) -> Iterator[LaunchRow]:
    """Rows that differ from `row` in one number."""
    for warps in (4, 8):
        if warps != row.num_warps:
            yield replace(row, num_warps=warps)
    for stages in (2, 3, 4) if row.num_stages > 1 else ():
        if stages != row.num_stages:
            yield replace(row, num_stages=stages)
    for name, size in row.blocks.items():
        if name in ("FLATTEN", "OVERLAP"):
            yield replace(row, blocks={**row.blocks, name: 1 - size})
        elif name in ("GROUP", "SPLITS"):
            yield from (replace(row, blocks={**row.blocks, name: n}) for n in (size // 2, size * 2) if 1 <= n <= 64)
        elif name.startswith(("BLOCK", "MIX_", "UP_", "DOWN_", "NORM_")) and name != "BLOCK_L":
            for other in (size // 2, size * 2):
                if 1 <= other <= (8192 if name == "BLOCK" else 512):
                    yield replace(row, blocks={**row.blocks, name: other})


def variants(row: LaunchRow, table: Sequence[LaunchRow]) -> list[LaunchRow]:
    """The other rows of the table for the same shape class."""
    return [other for other in table if other.shape_class == row.shape_class and other is not row]


@contextlib.contextmanager
def hooked(hook: Callable[[LaunchRow], LaunchRow]) -> Iterator[None]:
    """Every row of a launch table that is found goes through `hook`."""
    launch.hooks.append(hook)
    try:
        yield
    finally:
        launch.hooks.remove(hook)


def substituted(old: LaunchRow, new: LaunchRow) -> contextlib.AbstractContextManager[None]:
    """Where `old`, a row of a table, would run, `new` does."""
    return hooked(lambda row: new if row is old else row)


def rows_used(run: Callable[[], object]) -> list[LaunchRow]:
    """The rows that one call launches: those without which it would launch another, or none."""
    before = launches.copy()
    notes: list[LaunchRow] = []

    def note(row: LaunchRow) -> LaunchRow:
        notes.append(row)
        return row

    with hooked(note):
        run()
    ran = {name for name, count in launches.items() if count > before[name]}
    return list({id(row): row for row in notes if row.kernel in ran}.values())


def table_of(row: LaunchRow) -> tuple[str, tuple[LaunchRow, ...]]:
    """The op whose launch table holds `row`, as `launch.tuned` names it, and the table."""
    for op in OPS.values():
        for name, table in op.tables.items():
            if any(row is other for other in table):
                return name, tuple(table)
    raise LookupError(f"no launch table holds {row}")


def climb(use: str, work: Work, row: LaunchRow, until: float, timer: Timer, replay: Any) -> Iterator[Found]:
    """Try what is near the best row so far, until nothing near it is faster or the time is up."""
    op, table = table_of(row)
    best, tried = row, {_key(row)}
    queue = [*variants(row, table), *candidates(row)]
    while queue and time.monotonic() < until:
        candidate = queue.pop(0)
        if _key(candidate) in tried:
            continue
        tried.add(_key(candidate))
        with substituted(row, best):
            now = replay(work.run)
        with substituted(row, candidate):
            reason = _refusal(work)
            after = None if reason else replay(work.run)
        if after is None:
            yield Found(use, op, row, candidate, f"refused: {reason}")
            continue
        ratio = timer(now, after)
        faster = ratio[1] > MARGIN
        yield Found(use, op, row, candidate, "faster" if faster else "not faster", *ratio)
        if faster:
            best, queue = candidate, [*queue, *candidates(candidate)]
    if best is not row and time.monotonic() < until:
        with substituted(row, best):
            after = replay(work.run)
        ratio = timer(replay(work.run), after)
        yield Found(use, op, row, best, "winner" if ratio[1] > MARGIN else "not faster", *ratio)


def _key(row: LaunchRow) -> tuple[Any, ...]:
    return (row.variant, row.num_warps, row.num_stages, *sorted(row.blocks.items()))


def _refusal(work: Work) -> str | None:
    """Why a candidate is not timed: it fails its check, or touches registers of products that still run."""
    with compiled_texts() as texts:
        try:
            reason = work.refusal()
        except Exception as error:  # a candidate that does not compile, or needs more than the GPU has
            return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    found = [str(hazard) for text in texts if "wgmma" in text for hazard in hazards(parse(text))]
    return reason or next(iter(found), None)


@contextlib.contextmanager
def compiled_texts() -> Iterator[list[str]]:
    """The PTX of every kernel that Triton compiles or loads meanwhile."""
    from triton import knobs

    texts: list[str] = []

    def note(*, metadata_group: dict[str, str], **_: object) -> None:
        texts.extend(Path(path).read_text() for name, path in metadata_group.items() if name.endswith(".ptx"))

    before, knobs.compilation.listener = knobs.compilation.listener, note
    try:
        yield texts
    finally:
        knobs.compilation.listener = before


def entry(found: Found, facts: dict[str, Any]) -> dict[str, Any]:
    """A winner as `ops/tuned.json` holds it, for the family of the GPU it was measured on."""
    row = replace(found.candidate, family=launch.family(), waiver="")
    measured = {"use": found.use, "ratio": round(found.ratio or 0, 4), "low": round(found.low or 0, 4), **facts}
    return {"op": found.op, **asdict(row), "measured": measured}


def merge(before: Sequence[Any], winners: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the file with the winners in place of what they replace, in a fixed order."""

    def key(item: Any) -> tuple[Any, ...]:
        return tuple(item[name] for name in ("op", "kernel", "family", "bits", "limit"))

    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in winners:  # of one row tuned for two uses, the one that gains more
        if item["measured"]["ratio"] > best.get(key(item), {"measured": {"ratio": 0.0}})["measured"]["ratio"]:
            best[key(item)] = item
    kept = {key(item): dict(item) for item in before} | best
    return [kept[k] for k in sorted(kept, key=str)]


def tune(
    chosen: Sequence[Tuned],
    until: float,
    timer: Timer,
    write: Callable[[str, list[Found]], None],
    replay: Any = lambda run: run,
    device: str = "cuda",
) -> list[Tuned]:
    """Climb from every row that the uses launch, `SHARE` seconds at most for each, until the monotonic time `until`.

    `write` gets the name of a use and what was found as soon as it is done. Returns the uses that are left.
    """
    seen: list[LaunchRow] = []
    for i, use in enumerate(chosen):
        if time.monotonic() > until:
            return list(chosen[i:])
        found: list[Found] = []
        end, work = min(until, time.monotonic() + SHARE), work_of(use, device)
        for row in rows_used(work.run):
            if all(row is not other for other in seen):
                seen.append(row)
                found += climb(use.name, work, row, end, timer, replay)
        write(use.name, found)
    return []


def _gpu_timer(now: Replay, after: Replay) -> tuple[float, float, float]:
    calls = {"table": lambda i: now(), "candidate": lambda i: after()}
    timed = interleave(calls, Clock("cuda", flush=True), seconds=0.3)
    return speedup(timed["table"], timed["candidate"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; writes tuned.json, the negative results included."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("filters", nargs="*", help="tune for the uses whose name contains one of these")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<gpu>)")
    parser.add_argument("--write", action="store_true", help="put the winners into rtm_kernels/ops/tuned.json")
    parser.add_argument("--list", action="store_true", help="print the uses and stop")
    args = parser.parse_args(argv)
    chosen = [use for use in uses() if not args.filters or any(part in use.name for part in args.filters)]
    if args.list:
        print("\n".join(use.name for use in chosen))
        return 0
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here")
    folder = args.folder or machine.ROOT / "profiles" / machine.slug("cuda")
    found, done = earlier(folder / "tuned.json")

    def add(use: str, new: list[Found]) -> None:
        found.extend(new)
        done.append(use)
        report(found, folder, write=False, done=done)

    left = tune([use for use in chosen if use.name not in done], time.monotonic() + args.limit, _gpu_timer, add,
                lambda run: capture(lambda _: run(), None))  # fmt: skip
    code = report(found, folder, args.write, done=done)
    print(f"{len(done)} uses done, {len(left)} left")
    return UNFINISHED if left else code


def earlier(path: Path) -> tuple[list[Found], list[str]]:
    """What an interrupted run of this very commit found, and the uses it was done with."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("commit") != machine.commit() or machine.commit().endswith("+"):
        return [], []
    made = (Found(**f | {name: LaunchRow(**f[name]) for name in ("row", "candidate")}) for f in known["found"])
    return list(made), list(known.get("done", ()))


def report(
    found: Sequence[Found], folder: Path, write: bool, path: Path = launch.TUNED, done: Sequence[str] = ()
) -> int:
    """Write what was found, and with `write` the winners to the data file of the tables; 1 if nothing was tried."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = {"gpu": machine.device_name(device), "commit": machine.commit(), "versions": machine.versions()}
    content = {**facts, "done": list(done), "found": [asdict(f) for f in found]}
    rows.replace(folder / "tuned.json", json.dumps(content, indent=1) + "\n")
    winners = [f for f in found if f.status == "winner"]
    for f in winners:
        print(f"{f.use}: {f.ratio:.3f} with {f.candidate} instead of {f.row}")
    if write:
        entries = merge(launch.entries(path), [entry(f, facts) for f in winners])
        rows.replace(path, json.dumps(entries, indent=1) + "\n")
        print(f"{len(winners)} rows written to {path}; now review the diff and run make interpret-gate compile-gate")
    print(f"{len(found)} candidates, {len(winners)} winners, written to {folder / 'tuned.json'}")
    return int(not found)


if __name__ == "__main__":
    raise SystemExit(main())
