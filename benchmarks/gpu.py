"""python -m benchmarks.gpu: everything that only a GPU can show, in stages, within ten minutes; one table last.

The stages are ordered by worth: correctness, which path is faster, how fast, where the time goes, and then the rest;
their times add up to at most `LIMIT`. A stage that cannot run, fails or times out says so in the table and makes
the exit status 1. `--stage NAME` runs one alone. Stages that succeeded at this commit are not repeated, and one that
timed out continues where it stopped, unless `--fresh` is given. Nothing is downloaded: what is missing is named
and counts against the stage that needs it. `--pack FILE` keeps one archive of results and logs up to date.
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
from rtm_kernels.errors import InputError, one_of

LIMIT = 590.0
"""Seconds for everything."""

STATE = machine.ROOT / ".benchmarks" / "gpu"


@dataclass(frozen=True)
class Stage:
    """A command of this interpreter, the seconds it may take, what it lacks (a reason, or None), and the file that it
    continues from."""

    name: str
    command: tuple[str, ...]
    seconds: int
    why_not: Callable[[], str | None]
    partial: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ok, failed, timed out or not run; `detail` is why, or its last line."""

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
    to, results = ("--folder", str(folder)), STATE / "results.json"
    measured = (*to, "--results", str(results))

    def module(name: str, *arguments: str) -> tuple[str, ...]:
        return ("-m", f"benchmarks.{name}", *arguments)

    return (
        Stage("build", module("build"), 45, _tool("nvcc")),
        Stage("tests", module("gpu_tests", *to, "--limit", "115"), 120, _pytest, folder / "tests.json"),
        Stage("choose", module("choose", *to, "--limit", "40", "--seconds", "0.4"), 55, _gpu, folder / "choice.json"),
        Stage("bench", module("run", *measured, "--seconds", "0.6", "--limit", "75"), 105, _gpu, results),
        Stage("train", module("run", *measured, "--seconds", "2", "--only", "sudoku-train_step-"), 60, _gpu, results),
        Stage("profile", module("profile", "sudoku", *to), 25, _gpu),
        Stage("sanitize", module("sanitize", *to, "--seconds", "38"), 45, _tool("compute-sanitizer")),
        Stage("tune", module("tune", *to, "--limit", "20"), 30, _gpu),
        Stage("energy", module("energy", *to, "--impl", "rtm_triton_graph"), 100, _gpu),
    )


def run(stage: Stage, left: float) -> Outcome:
    """Run one stage, its output in a log, for at most its time or what is left of all."""
    reason = stage.why_not()
    if reason is None and left < 5:
        reason = "no time is left"
    if reason is not None:
        return Outcome(stage.name, "not run", 0.0, reason, machine.commit())
    log, begin = STATE / f"{stage.name}.log", time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, *stage.command]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, cwd=machine.ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = "ok" if process.wait(min(stage.seconds, left)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
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
    """Replace `file` by an archive of the results in `folder` and the logs of all stages."""
    scratch = file.with_suffix(".new")
    with tarfile.open(scratch, "w:gz") as archive:
        for path, name in ((folder, "results"), (STATE, "logs")):
            if path.exists():
                archive.add(path, name)
    scratch.replace(file)


def table(chosen: Sequence[Stage], done: dict[str, Outcome]) -> str:
    """One line per stage."""
    lines = [f"{'stage':<10} {'status':<10} {'seconds':>8}  detail"]
    for stage in chosen:
        o = done.get(stage.name, Outcome(stage.name, "not run", 0.0, "", ""))
        lines.append(f"{o.stage:<10} {o.status:<10} {o.seconds:>8.1f}  {o.detail}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 only when every chosen stage is ok."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--stage", action="append", help="run this stage alone (may be repeated)")
    parser.add_argument("--fresh", action="store_true", help="repeat what succeeded at this commit")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for everything")
    parser.add_argument("--folder", type=Path, help="folder of results (default: profiles/<gpu>)")
    parser.add_argument("--pack", type=Path, help="archive of results and logs, replaced after every stage")
    args = parser.parse_args(argv)
    name = machine.slug("cuda") if torch.cuda.is_available() else "no-gpu"
    folder = args.folder or machine.ROOT / "profiles" / name
    every = stages(folder)
    try:
        for stage in args.stage or ():
            one_of("stage", stage, [s.name for s in every])
    except InputError as error:
        parser.error(str(error))
    chosen = [s for s in every if not args.stage or s.name in args.stage]
    STATE.mkdir(parents=True, exist_ok=True)
    done, begin, current = _load(), time.monotonic(), machine.commit()
    for stage in chosen:
        known = done.get(stage.name)
        repeat = args.fresh or args.stage or current.endswith("+")
        if not repeat and known is not None and (known.status, known.commit) == ("ok", current):
            continue
        print(f"{stage.name} ...", flush=True)
        if args.fresh and stage.partial is not None:
            stage.partial.unlink(missing_ok=True)
        done[stage.name] = run(stage, args.limit - (time.monotonic() - begin))
        print(f"  {done[stage.name].status}: {done[stage.name].detail}", flush=True)
        rows.replace(STATE / "stages.json", json.dumps([asdict(o) for o in done.values()], indent=1) + "\n")
        if torch.cuda.is_available():
            rows.replace(folder / "stages.json", (STATE / "stages.json").read_text())
        if args.pack is not None:
            pack(args.pack, folder)
    print("\n" + table(chosen, done))
    return int(any(done[s.name].status != "ok" for s in chosen))


if __name__ == "__main__":
    raise SystemExit(main())
