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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from rtm_kernels.recursion.persistent import runner
from tests.cases import name_of, small_cases
from tests.cases.attention_norm import attention
from tests.cases.case import check
from tests.cases.queue import queue
from tests.cases.swiglu import channel, mixer
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
CASES = {
    name_of(case): case for case in (
        channel((2, 97, 64), 256, 2, "plain"), channel((4, 97, 320), 300, 1, "plain", "tma"),
        mixer(3, 200, 70, 150, "hidden", 2, "plain"), attention((4, 97, 256), 4, 2, "plain", "rope qk_norm"),
        *(c for c in small_cases() if c.op in ("halting", "token_loss", "persistent")), queue(40, 40, 90, (9, 300)),
    )
}  # fmt: skip
"""Together they run every kernel that synchronises, and every loop of it more than twice."""
LEAST = {**dict.fromkeys((*REMOVED, *REPLACED), 0.95), "barrier": 0.8, "cp.async wait": 0.5, "16-bit sum": 0.0}
"""Share of each kind that must be found. Triton places barriers by allocation, not by access: some part accesses of
one warp. The wait after a loop may find nothing left to wait for. A sum that is rounded once is within the budget."""


@dataclass(frozen=True)
class Defect:
    kind: str
    line: int
    text: str  # after the change


def defects(ptx: str) -> Iterator[Defect]:
    """Every defect of a kernel, the lines counted from 0."""
    product = None
    for n, line in enumerate(ptx.splitlines()):
        yield from (Defect(kind, n, "") for kind, pattern in REMOVED.items() if re.search(pattern, line))
        for kind, (pattern, new) in REPLACED.items():
            if re.search(pattern, line):
                yield Defect(kind, n, re.sub(pattern, new, line))
        product = re.search(r"mma(?:_async|\.sync)\S*\s*\{\s*(%r\d+)", line) or product
        if product and re.search(r"\bmma\.sync|wgmma\.wait_group\S* 0", line):  # as the upper half of a pair
            r = product[1]
            yield Defect("16-bit sum", n, f"{line}\n\tcvt.rn.bf16x2.f32 {r}, {r}, 0f00000000;")


ACCESS = r"^\s*(@\S+ )?(ld|st|atom|red|ldmatrix|stmatrix|cp|mbarrier|wgmma|mma|shfl|fence)\b(?!\.param)"
END_OF_PATH = r"^\s*(@\S+ )?(bra|ret)\b|^(?!\$L__tmp)\S+:"


def redundant(ptx: str, defect: Defect) -> bool:
    """Whether the text alone shows that what is removed changes nothing: see `WHY`."""
    lines = [line.split("//")[0] for line in ptx.splitlines()]
    products = {r for line in lines if "mma_async" in line for r in re.findall(r"%r\d+", line.split("%rd")[0])}

    def walk(step: int, same: str, touches: Callable[[str], bool]) -> bool:
        for line in lines[defect.line + step :: step]:
            if re.search(same, line):
                return True
            if re.search(END_OF_PATH, line) or touches(line):
                return False
        return False

    def touched(line: str) -> bool:
        return "wgmma" not in line and not products.isdisjoint(re.findall(r"%r\d+", line))

    if defect.kind == "barrier":
        return any(walk(step, r"bar\.sync", lambda line: bool(re.search(ACCESS, line))) for step in (1, -1))
    if defect.kind == "wgmma wait":
        written = r"\bst(matrix)?\b|cp\.async|bar\.sync"
        return walk(1, r"wgmma\.wait_group\S* 0", lambda line: touched(line) or bool(re.search(written, line)))
    if defect.kind == "wgmma fence":
        return walk(-1, r"wgmma\.fence", touched)
    if defect.kind == "proxy fence":
        return walk(-1, r"fence\.proxy\.async", lambda line: bool(re.search(r"\bst(matrix)?\b.*(shared|b16)", line)))
    return False


WHY = """barrier: between it and the next or last one nothing reads or writes memory.
wgmma wait: another wait for all products follows, and nothing touches their registers or writes memory before it.
wgmma fence: nothing but products touched their registers since the last one.
proxy fence: nothing was stored in shared memory since the last one."""


def changed(ptx: str, defect: Defect) -> str:
    lines = ptx.splitlines()
    lines[defect.line] = defect.text
    return "\n".join(lines)


def judge(job: tuple[str, str, int]) -> list[tuple[str, str, Defect, str]]:
    """Of a case (name, dtype, architecture): kernel, source line, defect, and what found it ("": nothing)."""
    name, dtype, arch = job
    case = CASES[name]
    threads.MOST_STEPS = 20_000
    runner.multiprocessors = lambda device: 3  # type: ignore[assignment]
    torch.set_num_threads(1)
    out = []
    with installed(arch) as executor:
        check(case, getattr(torch, dtype))
        assert not executor.found, executor.found
        for kernel, text in dict(executor.texts).items():
            for defect in defects(text):
                executor.found.clear()
                known = dict(executor.known)
                executor.edit = lambda n, t, own=text, d=defect: changed(t, d) if t == own else t  # type: ignore[misc]
                try:
                    why = [*check(case, getattr(torch, dtype)).failures, *executor.found]
                except Fault as error:
                    why = [str(error)]
                executor.known = known
                if not why and redundant(text, defect):
                    continue
                out.append((kernel, text.splitlines()[defect.line].strip(), defect, why[0] if why else ""))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="seed defects in compiled kernels")
    parser.add_argument("filters", nargs="*", help="keep cases whose name contains one of these")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    names = [name for name in CASES if not options.filters or any(f in name for f in options.filters)]
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
    lost = [" ".join(key) for key, count in seeded.items() if caught[key] < LEAST[key[1]] * count]
    print(f"{seeded.total()} defects, too few found: {lost}")
    return 1 if lost or not seeded else 0


if __name__ == "__main__":
    sys.exit(main())
