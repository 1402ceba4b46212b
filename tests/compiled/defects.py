"""Defects seeded in the compiled code of every kernel, one at a time: each must be found when a small case runs.

    python -m tests.compiled.defects [--arch 90] [--dtype bfloat16] [--jobs 2] [CASE ...]

A defect is found when an access, a race, a hazard or a hang is reported in one of the launches of its case, or when
values leave the error budget. What is not found is in `ARGUED`, and what is there is not found.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rtm_kernels.recursion.persistent import runner
from tests.cases import name_of, small_cases
from tests.cases.attention_norm import attention
from tests.cases.case import check
from tests.cases.queue import queue
from tests.cases.swiglu import channel, mixer
from tests.compiled import threads
from tests.compiled.launching import Launch, installed
from tests.compiled.program import Program
from tests.compiled.ptx import Fault, Instruction, Kernel, Number, registers
from tests.gates.hazards import hazards

REMOVED = {
    "barrier": "bar.sync",
    "wgmma wait": "wgmma.wait_group",
    "wgmma fence": "wgmma.fence",
    "cp.async wait": "cp.async.wait_group",
    "proxy fence": "fence.proxy.async",
}
"""Instructions that are removed: name -> start of the opcode."""
RELAXED = {"release": ".release.", "acquire": ".acquire.", "acq_rel": ".acq_rel."}
"""Orders that are taken from an instruction: name -> part of the opcode."""
ROWS_OF_128, ROWS_OF_64 = 0x4000_0000_0000_0000, 0x8000_0000_0000_0000
"""Swizzles in a matrix descriptor."""
CASES = {
    name_of(case): case for case in (
        channel((2, 97, 64), 256, 2, "plain"), channel((4, 97, 320), 300, 1, "plain", "tma"),
        mixer(3, 200, 70, 150, "hidden", 2, "plain"), attention((4, 97, 256), 4, 2, "plain", "rope qk_norm"),
        *(c for c in small_cases() if c.op in ("halting", "token_loss", "persistent")), queue(40, 40, 90, (9, 300)),
    )
}  # fmt: skip
"""Together they run every kernel that synchronises, and every loop of it more than twice."""


@dataclass
class Defect:
    """Another block `n` of a kernel. `why`: what was reported; `differs`: values are not those of the clean kernel."""

    kind: str
    line: int
    n: int
    block: list[Instruction]
    differs: bool = False
    ran: float = 0
    why: str = ""


def without(i: Instruction) -> Instruction:
    return Instruction(i.line, "bar.warp.sync", [])


def defects(kernel: Kernel) -> Iterator[Defect]:
    """Every defect of a kernel."""
    sums: tuple[str, ...] = ()
    masks = tail_masks(kernel)
    for n, block in enumerate(kernel.blocks):
        products = [i.line for i in block if i.op.startswith("mma.sync")]
        for k, i in enumerate(block):
            def changed(kind: str, *now: Instruction, n=n, k=k, i=i, block=block) -> Defect:  # noqa
                return Defect(kind, i.line, n, [*block[:k], *now, *block[k + 1 :]])

            for kind, op in REMOVED.items():
                if i.op.startswith(op):
                    yield changed(kind, without(i))
            if i.parts[0] == "bra" and i.args[0].name.startswith("waitLoop"):
                yield changed("mbarrier wait", without(i))
            for kind, part in RELAXED.items():
                if part in i.op:
                    yield changed(kind, replace(i, op=i.op.replace(part, ".relaxed.")))
            if any(isinstance(a, Number) and a.value & ~0x3FFF_FFFF == ROWS_OF_128 for a in i.args):
                args = [Number(a.value ^ ROWS_OF_128 ^ ROWS_OF_64) if isinstance(a, Number) else a for a in i.args]
                yield changed("swizzle", replace(i, args=args))
            if i.line in masks:
                yield changed("mask", replace(i, args=[*i.args[:2], Number(0x7FFF_FFFF)]))
            if i.accumulates or i.line in products:
                sums = i.args[0].items
            if sums and (i.line in products[-1:] or i.op.startswith("wgmma.wait") and not i.args[0].value):
                rounded = [Instruction(i.line, "cvt.rn.bf16x2.f32", [r, r, Number(0)]) for r in sums]
                yield changed("16-bit sum", i, *rounded)


def tail_masks(kernel: Kernel) -> set[int]:
    """Lines of comparisons that decide alone which threads store to global memory."""
    every = [i for block in kernel.blocks for i in block]
    found, wanted = set(), {i.guard.name for i in every if i.guard and i.op.startswith("st.global")}
    for i in reversed(every):
        if wanted.intersection(i.writes):
            if i.op.startswith("setp.lt"):
                found.add(i.line)
            elif i.op.startswith("and.pred"):
                wanted.update(i.reads)
    return found


@dataclass
class Seeder:
    """Runs every launch of a case again with each of its defects that has not been found yet."""

    every: dict[str, list[Defect]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)

    def __call__(self, launch: Launch, code: Program) -> None:
        key = code.path.name
        self.names[key], self.programs[key] = launch.name, code
        if key not in self.every:
            self.every[key] = list(defects(code.kernel))
        buffers = launch.memory.buffers
        after = [b.as_width[1].copy() for b in buffers]
        ran = {n: c / len(launch.programs) / (code.kernel.threads // 32) for n, c in launch.ran.items()}
        for d in self.every[key]:
            if not d.why:
                d.ran += ran.get(d.n, 0)
                launch.memory.fill([b.before for b in buffers])
                self.seed(launch, code.changed(d.n, d.block), d, after)
        launch.memory.fill(after)

    def seed(self, launch: Launch, code: Program, d: Defect, wanted: Sequence[np.ndarray]) -> None:
        try:
            if d.kind.startswith("wgmma") and (found := hazards(code.kernel)):
                raise Fault(str(found[0]))
            launch.run(code, stop=True)
            now = [b.as_width[1] for b in launch.memory.buffers]
            d.differs |= not all(map(np.array_equal, now, wanted))
        except Fault as error:
            d.why = str(error)


def judge(job: tuple[str, str, int]) -> list[tuple[str, str, str, str, int, str, bool]]:
    name, dtype, arch = job
    case = CASES[name]
    threads.MOST_STEPS = 20_000
    runner.multiprocessors = lambda device, otherwise: 3  # type: ignore[assignment]
    torch.set_num_threads(1)
    seeder = Seeder()
    start = time.process_time()
    with installed(arch) as executor:
        check(case, getattr(torch, dtype))
        assert not executor.found, executor.found
        t0 = time.process_time()
        executor.judge = seeder
        check(case, getattr(torch, dtype))
        t1 = time.process_time()
        executor.judge = None
        for key, every in seeder.every.items():
            for d in every:
                if d.differs and not d.why:
                    own = seeder.programs[key]
                    executor.found.clear()
                    executor.alter = lambda c, d=d, own=own: c.changed(d.n, d.block) if c is own else c
                    try:
                        why = [*check(case, getattr(torch, dtype)).failures, *executor.found]
                    except Fault as error:
                        why = [str(error)]
                    d.why = why[0] if why else ""
    print(f"{name}: clean {t0 - start:.1f}, seeded {t1 - t0:.1f}, values {time.process_time() - t1:.1f} s", flush=True)
    out = []
    for key, every in seeder.every.items():
        ops = {i.line: i for b in seeder.programs[key].kernel.blocks for i in b}
        out += [(name, seeder.names[key], key[:6], d.kind, d.line, d.why or f"NOT FOUND {ops[d.line].op} ran {d.ran:.2f}", d.differs, not d.why) for d in every]
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="seed defects in compiled kernels")
    parser.add_argument("filters", nargs="*", help="keep cases whose name contains one of these")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    names = [name for name in CASES if not options.filters or any(f in name for f in options.filters)]
    from collections import Counter
    seeded, lost = Counter(), Counter()
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(judge, [(name, options.dtype, options.arch) for name in names]):
            for name, kernel, key, kind, line, why, differs, missed in found:
                seeded[kernel, kind] += 1
                lost[kernel, kind] += missed
                print(name, kernel, key, kind, line, why[:100], "DIFFERS" if differs else "", flush=True)
    for k, c in sorted(seeded.items()):
        print(f"{k[0]:26} {k[1]:14} {c - lost[k]:4} of {c}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
