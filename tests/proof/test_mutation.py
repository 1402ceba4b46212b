"""Mutation testing: every seeded defect of `mutants` must be noticed by the small case that it names.

    TRITON_INTERPRET=1 python -m tests.proof.test_mutation [FILTER ...]    # interpreted
    python -m tests.proof.test_mutation [FILTER ...]                       # those that run as compiled

Each mutant is a copy of the package with one replacement, judged in a process of its own, forked from this one, which
has imported torch and Triton but not the package. A mutant is killed when the case's results leave the error budget,
when compiled code or its IR shows a fault, when the compile gate refuses a kernel, or when the process dies or hangs.
It is `invalid`, which fails like a survivor, when the text is not found exactly once, when the code raises, or when the
case fails without any mutant.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import triton

from tests.proof.launching import ROOT, process
from tests.proof.mutants import FOLDERS, Mutant, mutants

if TYPE_CHECKING:
    from tests.cases.case import Case

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


def judge(folder: Path, kill: tuple[str, str], how: str) -> str:
    """The verdict of the case `kill` on the package below `folder`; run in a process that has not imported it."""
    sys.path.insert(0, str(folder))
    import rtm_kernels

    assert rtm_kernels.__file__.startswith(str(folder)), rtm_kernels.__file__
    if how == "refused":
        from tests.gates.compile_gate import compile_case

        failures = [f"{row.kernel}: {text}" for row in compile_case((*kill, 90)) for text in row.failures]
        return f"killed {'; '.join(failures)}" if failures else "survived"
    from tests.cases import gate_cases, small_cases

    found = [c for c in (*small_cases(), *gate_cases()) if c.op == kill[0] and kill[1] in c.name]
    if not found:
        return f"invalid no case {kill}"
    failures = as_compiled(found[0]) if how == "compiled" else interpreted(found[0], getattr(torch, how))
    return f"killed {'; '.join(failures)}" if failures else "survived"


def interpreted(case: Case, dtype: torch.dtype) -> list[str]:
    from tests.cases.case import check
    from tests.interpreter import prepare
    from tests.proof.tiles import tiles

    prepare()
    with tiles(32):
        return check(case, dtype).failures


def as_compiled(case: Case) -> list[str]:
    from rtm_kernels.recursion.persistent import runner
    from tests.cases.case import check
    from tests.compiled.launching import installed
    from tests.compiled.ptx import Fault

    runner.multiprocessors = lambda device, otherwise: 3  # type: ignore[assignment]
    with installed(90) as executor:
        try:
            failures = check(case, torch.bfloat16).failures
        except Fault as error:
            failures = [str(error)]
    return [*executor.found, *failures]


def verdict(mutant: Mutant | None, kill: tuple[str, str], how: str) -> str:
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
                line = judge(folder, kill, how)
            except BaseException as error:
                line = f"invalid {type(error).__name__}: {error}"
            (folder / "verdict").write_text(" ".join(line.split()))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = folder / "verdict"
        return found.read_text() if found.exists() else f"killed the process ended with {code}"


def main(filters: list[str]) -> int:
    torch.set_num_threads(1)  # a forked process has no threads of its pool
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    compiled = "TRITON_INTERPRET" not in os.environ
    chosen = [
        m for m in mutants()
        if (m.how in ("compiled", "refused")) == compiled
        and (not filters or any(f in m.file or f in m.find for f in filters))
    ]  # fmt: skip
    healthy = {(m.kill, m.how): verdict(None, m.kill, m.how) for m in {(m.kill, m.how): m for m in chosen}.values()}
    bad = [f"without a mutant {' '.join(kill)}: {line}" for (kill, _), line in healthy.items() if line != "survived"]
    for m in chosen:
        line = verdict(m, m.kill, m.how)
        print(f"{m.file}: {' '.join(m.find.split())} -> {' '.join(m.replace.split())}: {line}", flush=True)
        bad += [] if line.startswith("killed ") else [f"{m.file}: {m.find!r} -> {m.replace!r}: {line}"]
    print("\n".join([*bad, f"{len(chosen)} mutants, {len(bad)} not killed"]))
    return 1 if bad or not chosen else 0


@pytest.mark.proof("mutation")
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_mutant_is_killed(folder: str, cells: Callable[[int], None]) -> None:
    printed = process("-m", "tests.proof.test_mutation", f"{folder}/")
    cells(int(re.search(r"(\d+) mutants", printed)[1]))  # type: ignore[index]


@pytest.mark.proof("mutation")
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_every_mutant_is_killed_as_compiled(cells: Callable[[int], None]) -> None:
    printed = process("-m", "tests.proof.test_mutation", interpret=False)
    if triton.__version__ == "3.6.0":  # later versions do not write these registers too early
        assert re.search(r"row_scale.*: killed recursion_kernel: \d+ accesses are too early", printed)
    cells(int(re.search(r"(\d+) mutants", printed)[1]))  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
