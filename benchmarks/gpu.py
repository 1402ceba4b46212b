"""python -m benchmarks.gpu: everything that only a GPU can show, in stages, a slice of four minutes per call.

The stages are ordered by worth: the headline figures of our own kernels, whether the kernels are right, the same
figures of others, which path is faster, sanitizers, and the rest. A call goes on where the last one stopped or was
killed, until every stage is ok at this commit; what failed is tried again when nothing else is left. `--stage NAME`
runs one alone: `fuzz`, `tune` and `energy` run no other way. Nothing is downloaded: what is missing is named and counts
against the stage that needs it. `--pack FILE` keeps one archive of results, state and logs up to date; unpacked over
the checkout, it lets another machine go on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import machine, rows
from benchmarks.cases import HEADLINES
from benchmarks.run import UNFINISHED
from rtm_kernels.errors import InputError, one_of

LIMIT = 235.0
"""Seconds of one call."""
LEAST, MARGIN = 20, 12
"""Seconds that a stage needs to begin, and those before its end at which its command begins nothing new."""

SECONDS = "SECONDS"
STATE = machine.ROOT / ".benchmarks" / "gpu"


@dataclass(frozen=True)
class Stage:
    """A command of this interpreter, in which `SECONDS` becomes the time it has to end in, the seconds it may take at a
    time, what it lacks (a reason, or None), and whether it runs only by its name."""

    name: str
    command: tuple[str, ...]
    seconds: int
    why_not: Callable[[], str | None]
    alone: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ok, unfinished, failed, timed out or not run; `detail` is why, or its last line."""

    stage: str
    status: str
    seconds: float
    detail: str
    commit: str


def _gpu() -> str | None:
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device here"


def _pytest() -> str | None:
    return _gpu() or (None if importlib.util.find_spec("pytest") else "the package pytest is not installed")


def _tool(name: str) -> Callable[[], str | None]:
    return lambda: _gpu() or (None if shutil.which(name) else f"{name} is not on the PATH")


def stages(folder: Path) -> tuple[Stage, ...]:
    """The stages in order; results go to `folder`."""
    to = ("--folder", str(folder))
    slices = (*to, "--limit", SECONDS)
    measured = (*slices, "--results", str(STATE / "results.json"), "--seconds", "0.5", "--who")
    headlines = [argument for name in HEADLINES for argument in ("--only", name)]

    def module(name: str, *arguments: str) -> tuple[str, ...]:
        return ("-m", f"benchmarks.{name}", *arguments)

    return (
        Stage("headlines", module("run", *measured, "own", *headlines), 150, _gpu),
        Stage("tests", module("gpu_tests", *slices), 225, _pytest),
        Stage("peers", module("run", *measured, "peers", *headlines), 225, _gpu),
        Stage("choose", module("choose", *slices, "--seconds", "0.4"), 60, _gpu),
        Stage("sanitize", module("sanitize", *slices), 225, _tool("compute-sanitizer")),
        Stage("build", module("build"), 60, _tool("nvcc")),
        Stage("bench", module("run", *measured, "own"), 225, _gpu),
        Stage("profile", module("profile", "sudoku", *to), 40, _gpu),
        Stage("fuzz", module("gpu_tests", *slices, "--fuzz"), 225, _pytest, alone=True),
        Stage("tune", module("tune", *slices), 225, _gpu, alone=True),
        Stage("energy", module("energy", *slices, "--impl", "rtm_triton_graph"), 225, _gpu, alone=True),
    )


def run(stage: Stage, left: float) -> Outcome:
    """Run one stage, its output in a log, for at most its time or what is left of all."""
    reason, seconds = stage.why_not(), min(stage.seconds, left)
    if reason is None and seconds < LEAST:
        reason = "no time is left in this call"
    if reason is not None:
        return Outcome(stage.name, "not run", 0.0, reason, machine.commit())
    log, begin = STATE / f"{stage.name}.log", time.monotonic()
    command = [sys.executable, *(f"{seconds - MARGIN:.0f}" if part == SECONDS else part for part in stage.command)]
    with log.open("a") as output:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment.pop("TRITON_INTERPRET", None)
        process = subprocess.Popen(
            command, cwd=machine.ROOT, env=environment, stdout=output, stderr=output, preexec_fn=os.setpgrp
        )
        try:
            code = process.wait(seconds)
            status = {0: "ok", UNFINISHED: "unfinished"}.get(code, "failed")
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it has started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text().strip().splitlines()
    detail = (lines[-1] if lines else "no output")[:110]
    return Outcome(stage.name, status, time.monotonic() - begin, detail, machine.commit())


def _load() -> dict[str, Outcome]:
    path = STATE / "stages.json"
    return {o["stage"]: Outcome(**o) for o in json.loads(path.read_text())} if path.exists() else {}


def pack(file: Path, folder: Path) -> None:
    """Replace `file` by an archive of the results in `folder` and of the state and logs of all stages."""
    scratch = file.with_suffix(".new")
    with tarfile.open(scratch, "w:gz") as archive:
        for path in (folder, STATE):
            if path.exists():
                archive.add(path, path.relative_to(machine.ROOT) if path.is_relative_to(machine.ROOT) else path.name)
    scratch.replace(file)


def table(chosen: Sequence[Stage], done: dict[str, Outcome]) -> str:
    """One line per stage."""
    lines = [f"{'stage':<10} {'status':<10} {'seconds':>8}  detail"]
    for stage in chosen:
        o = done.get(stage.name, Outcome(stage.name, "not run", 0.0, "", ""))
        lines.append(f"{o.stage:<10} {o.status:<10} {o.seconds:>8.1f}  {o.detail}")
    return "\n".join(lines)


def todo(chosen: Sequence[Stage], done: dict[str, Outcome]) -> list[Stage]:
    """The stages that are not ok at this commit, those that failed behind those that go on or have not begun."""
    now = machine.commit()
    status = {o.stage: o.status for o in done.values() if o.commit == now}
    left = [s for s in chosen if status.get(s.name) != "ok" or now.endswith("+")]
    return sorted(left, key=lambda stage: status.get(stage.name) in ("failed", "timed out"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 only when every chosen stage is ok."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--stage", action="append", help="run this stage alone (may be repeated)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of this call")
    parser.add_argument("--folder", type=Path, help="folder of results (default: profiles/<gpu>)")
    parser.add_argument("--pack", type=Path, help="archive of results and logs, replaced after every stage")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    name = machine.slug("cuda") if torch.cuda.is_available() else "no-gpu"
    folder = args.folder or machine.ROOT / "profiles" / name
    every = stages(folder)
    try:
        for stage in args.stage or ():
            one_of("stage", stage, [s.name for s in every])
    except InputError as error:
        parser.error(str(error))
    chosen = [s for s in every if s.name in args.stage] if args.stage else [s for s in every if not s.alone]
    STATE.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `run`, which ends what it has started
    done = _load()
    for stage in todo(chosen, done):
        left = args.limit - (time.monotonic() - begin)
        if left < LEAST:
            break
        print(f"{stage.name} ...", flush=True)
        done[stage.name] = run(stage, left)
        print(f"  {done[stage.name].status}: {done[stage.name].detail}", flush=True)
        rows.replace(STATE / "stages.json", json.dumps([asdict(o) for o in done.values()], indent=1) + "\n")
        if torch.cuda.is_available():
            rows.replace(folder / "stages.json", (STATE / "stages.json").read_text())
        if args.pack is not None:
            pack(args.pack, folder)
    print("\n" + table(chosen, done))
    missing = [stage.name for stage in todo(chosen, done)]
    if missing:
        print(f"not ok yet: {', '.join(missing)}; the same command goes on")
    return int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
