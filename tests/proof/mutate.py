"""Mutation testing: every seeded defect of `mutants` must be noticed by the small case that it names.

    python -m tests.proof.mutate [--jobs 2] [FILTER ...]

Each mutant is a copy of the package with one replacement. A process of its own judges it, forked from this one, which
has imported torch and Triton but not the package. A mutant is killed when the case's results leave the error budget of
the interpreter gate. It is `invalid`, which fails like a survivor, when the text is not found exactly once, when the
code raises, or when the case fails without any mutant.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import argparse
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton  # noqa: F401  (imported once, before the forks)

from tests.interpreter import take_loop_bounds
from tests.proof.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
"""A process that takes longer hangs; a hang counts as noticed."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant, or of a case without one: killed, survived or invalid, and why."""

    status: str
    detail: str
    seconds: float


def patched(folder: Path, mutant: Mutant | None) -> None:
    """Copy the package below `folder`, with the mutant's replacement."""
    skip = shutil.ignore_patterns("assets", "*.so", "__pycache__")
    shutil.copytree(ROOT / "rtm_kernels", folder / "rtm_kernels", ignore=skip)
    if mutant is not None:
        path = folder / mutant.file
        text = path.read_text()
        if text.count(mutant.find) != 1:
            raise ValueError(f"{mutant.file}: {mutant.find!r} is found {text.count(mutant.find)} times")
        path.write_text(text.replace(mutant.find, mutant.replace))


def judge(folder: Path, kill: tuple[str, str]) -> str:
    """The verdict of the case `kill` on the package below `folder`; run in a process that has not imported it."""
    sys.path.insert(0, str(folder))
    import rtm_kernels

    assert rtm_kernels.__file__.startswith(str(folder)), rtm_kernels.__file__
    from tests.cases import gate_cases, small_cases
    from tests.cases.case import check
    from tests.proof.tiles import tiles

    found = [c for c in (*small_cases(), *gate_cases()) if c.op == kill[0] and kill[1] in c.name]
    if not found:
        return f"invalid no case {kill}"
    with tiles(32):
        failures = check(found[0]).failures
    return f"killed {'; '.join(failures)}" if failures else "survived "


def start(folder: Path, mutant: Mutant | None, kill: tuple[str, str]) -> int:
    """Fork the process that judges; its verdict is a line in `folder`/verdict."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(SECONDS)
    try:
        patched(folder, mutant)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        line = judge(folder, kill)
    except BaseException as error:
        line = f"invalid {type(error).__name__}: {error}"
    (folder / "verdict").write_text(" ".join(line.split()))
    os._exit(0)


def judge_all(tasks: list[tuple[Mutant | None, tuple[str, str]]], jobs: int) -> Iterator[tuple[int, Verdict]]:
    """Verdicts by the number of the task, as they come."""
    with tempfile.TemporaryDirectory() as scratch:
        running: dict[int, tuple[int, Path, float]] = {}
        waiting = list(range(len(tasks)))[::-1]
        while waiting or running:
            while waiting and len(running) < jobs:
                index = waiting.pop()
                folder = Path(scratch, str(index))
                folder.mkdir()
                running[start(folder, *tasks[index])] = (index, folder, time.perf_counter())
            pid, status = os.wait()
            index, folder, began = running.pop(pid)
            seconds = time.perf_counter() - began
            if (folder / "verdict").exists():
                word, _, detail = (folder / "verdict").read_text().partition(" ")
            elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
                word, detail = "killed", f"still running after {SECONDS} s"
            else:
                word, detail = "killed", f"ended with {os.waitstatus_to_exitcode(status)}"
            shutil.rmtree(folder)
            yield index, Verdict(word, detail, seconds)


def run(chosen: list[Mutant], jobs: int) -> list[Verdict]:
    """The verdict of each mutant; `invalid` where its case fails without it."""
    kills = sorted({mutant.kill for mutant in chosen})
    tasks = [(None, kill) for kill in kills] + [(mutant, mutant.kill) for mutant in chosen]
    found = dict(judge_all(tasks, jobs))
    healthy = {kill: found[i] for i, kill in enumerate(kills)}
    verdicts = []
    for i, mutant in enumerate(chosen, len(kills)):
        clean = healthy[mutant.kill]
        sick = Verdict("invalid", f"the case fails without a mutant: {clean.detail}", found[i].seconds)
        verdicts.append(found[i] if clean.status == "survived" else sick)
    return verdicts


def print_table(chosen: list[Mutant], verdicts: list[Verdict]) -> None:
    """One line per mutant."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seeded defects of the kernels")
    for column in ("file", "defect", "case", "verdict", "seconds", "why"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for m, v in zip(chosen, verdicts, strict=True):
        change = f"{' '.join(m.find.split())[-48:]} → {' '.join(m.replace.split())[-48:] or '(nothing)'}"
        style = None if v.status == "killed" else "red"
        row = (m.file, change, " ".join(m.kill), v.status, f"{v.seconds:.1f}", v.detail[:60])
        table.add_row(*(text.replace("[", r"\[") for text in row), style=style)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="kill every seeded defect of the kernels")
    parser.add_argument("filters", nargs="*", help="keep mutants whose file or text contains one of these")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    take_loop_bounds()
    torch.set_num_threads(1)  # a forked process has no threads of its pool
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    chosen = [m for m in mutants() if not options.filters or any(f in m.file or f in m.find for f in options.filters)]
    began = time.perf_counter()
    verdicts = run(chosen, options.jobs)
    print_table(chosen, verdicts)
    killed = sum(v.status == "killed" for v in verdicts)
    seconds = time.perf_counter() - began
    print(f"{len(chosen)} mutants, {killed} killed, {len(chosen) - killed} not, {seconds:.0f} s")
    return 0 if chosen and killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
