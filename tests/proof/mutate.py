"""Mutation testing: every seeded defect of `mutants` must be noticed by the small case that it names.

    python -m tests.proof.mutate [FILTER ...]

Each mutant is a copy of the package with one replacement, judged in a process of its own, forked from this one, which
has imported torch and Triton but not the package. A mutant is killed when the case's results leave the error budget, or
when the process dies or hangs. It is `invalid`, which fails like a survivor, when the text is not found exactly once,
when the code raises, or when the case fails without any mutant.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import shutil
import signal
import tempfile
from pathlib import Path

import torch
import triton  # noqa: F401  (imported once, before the forks)

from tests.interpreter import take_loop_bounds
from tests.proof.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
"""A process that takes longer hangs."""


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
    return f"killed {'; '.join(failures)}" if failures else "survived"


def verdict(mutant: Mutant | None, kill: tuple[str, str]) -> str:
    """Whether the case `kill` notices the mutant, in a process of its own: a word, and why."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pid = os.fork()
        if not pid:
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
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = folder / "verdict"
        return found.read_text() if found.exists() else f"killed the process ended with {code}"


def main(filters: list[str]) -> int:
    take_loop_bounds()
    torch.set_num_threads(1)  # a forked process has no threads of its pool
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    chosen = [m for m in mutants() if not filters or any(f in m.file or f in m.find for f in filters)]
    healthy = {kill: verdict(None, kill) for kill in dict.fromkeys(m.kill for m in chosen)}
    bad = [f"without a mutant {' '.join(kill)}: {line}" for kill, line in healthy.items() if line != "survived"]
    for m in chosen:
        line = verdict(m, m.kill)
        print(f"{m.file}: {' '.join(m.find.split())} -> {' '.join(m.replace.split())}: {line}", flush=True)
        bad += [] if line.startswith("killed ") else [f"{m.file}: {m.find!r} -> {m.replace!r}: {line}"]
    print("\n".join([*bad, f"{len(chosen)} mutants, {len(bad)} not killed"]))
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
