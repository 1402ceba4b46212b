"""Defects seeded in the PTX of every kernel, one at a time: each must be found when a small case runs.

    python -m tests.compiled.defects [--arch 90] [--jobs 2] [KERNEL ...]

A defect is found when values leave the error budget, or an access, a race, a hazard or a hang is reported.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import argparse
import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from tests.cases import name_of, small_cases
from tests.cases.case import check
from tests.compiled import threads
from tests.compiled.launching import installed
from tests.compiled.ptx import Fault

REMOVED = {
    "barrier": r"bar\.sync",
    "wgmma wait": r"wgmma\.wait_group",
    "wgmma fence": r"wgmma\.fence",
    "cp.async wait": r"cp\.async\.wait_group",
    "proxy fence": r"fence\.proxy\.async",
    "mbarrier wait": r"@!complete bra\.uni waitLoop",
}
"""Instructions that are removed: name -> pattern."""
REPLACED = {
    "release": (r"\.release\.", ".relaxed."),
    "acquire": (r"ld\.global\.gpu\.acquire\.", "ld.global."),
    "acq_rel": (r"\.acq_rel\.", ".relaxed."),
    "swizzle": (r"(or\.b64.*, )4611686\d{12};", r"\g<1>9223372041149743104;"),  # 128 bytes -> 64 bytes
}
"""Parts of an instruction that become another."""
SYNCHRONISING = (*REMOVED, "release", "acquire", "acq_rel")


@dataclass(frozen=True)
class Defect:
    kind: str
    line: int
    text: str
    """The line after the change."""


def defects(ptx: str) -> Iterator[Defect]:
    """Every defect of a kernel, the lines counted from 0."""
    for n, line in enumerate(ptx.splitlines()):
        yield from (Defect(kind, n, "") for kind, pattern in REMOVED.items() if re.search(pattern, line))
        for kind, (pattern, new) in REPLACED.items():
            if re.search(pattern, line):
                yield Defect(kind, n, re.sub(pattern, new, line))
        if found := re.search(r"\bmma_async\S* \{\s*(%r\d+)|\bmma\.sync\S*\s*\{\s*(%r\d+)", line):
            first = found[1] or found[2]
            if found[2]:  # rounded to bfloat16: the upper half of a pair
                yield Defect("accumulator", n, f"{line}\n\tcvt.rn.bf16x2.f32 {first}, {first}, 0f00000000;")


def changed(ptx: str, defect: Defect) -> str:
    lines = ptx.splitlines()
    lines[defect.line] = defect.text
    return "\n".join(lines)


def judge(job: tuple[str, str, int]) -> list[tuple[str, str, Defect, str]]:
    """Of a case (name, dtype, architecture): kernel, source line, defect, and what found it ("": nothing)."""
    name, dtype, arch = job
    case = next(c for c in small_cases() if name_of(c) == name)
    threads.MOST_STEPS = 20_000
    torch.set_num_threads(1)
    out = []
    with installed(arch) as executor:
        check(case, getattr(torch, dtype))
        assert not executor.found, executor.found
        for kernel, text in dict(executor.texts).items():
            for defect in defects(text):
                executor.found.clear()
                executor.known.clear()
                executor.edit = lambda n, t, k=kernel, d=defect: changed(t, d) if n == k else t  # type: ignore[misc]
                try:
                    why = [*check(case, getattr(torch, dtype)).failures, *executor.found]
                except Fault as error:
                    why = [str(error)]
                out.append((kernel, text.splitlines()[defect.line].strip(), defect, why[0] if why else ""))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="seed defects in compiled kernels")
    parser.add_argument("filters", nargs="*", help="keep cases whose name contains one of these")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    names = [name_of(c) for c in small_cases() if not options.filters or any(f in name_of(c) for f in options.filters)]
    seeded: Counter[tuple[str, str]] = Counter()
    caught: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(judge, [(name, options.dtype, options.arch) for name in names]):
            for kernel, line, defect, why in found:
                seeded[kernel, defect.kind] += 1
                caught[kernel, defect.kind] += bool(why)
                print(f"{kernel} line {defect.line + 1}: {line[:60]}: {why[:110] or 'NOT FOUND'}", flush=True)
    for (kernel, kind), count in sorted(seeded.items()):
        print(f"{kernel:26} {kind:14} {caught[kernel, kind]:4} of {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
