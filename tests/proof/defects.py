"""Defects seeded in the compiled code of every kernel, one at a time: each must be found when a small case runs.

    python -m tests.proof.defects [--arch 90] [--jobs 2] [CASE ...]

A defect is found when an access, a race, a hazard or a hang is reported in one of the launches of its case, or when
results are not those of the kernel's source. Whatever is not found is shown to change nothing by a rule over all paths
of the kernel (`needless`), or is argued in `ARGUED`, where nothing stands in vain.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import argparse
import linecache
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from rtm_kernels.ops.token_loss.api import LOSSES
from rtm_kernels.program import rtm, trm
from rtm_kernels.recursion.persistent import runner
from tests.cases import name_of, small_cases
from tests.cases.attention_norm import attention
from tests.cases.case import run
from tests.cases.conv import conv
from tests.cases.halting import halting
from tests.cases.persistent import persistent
from tests.cases.queue import queue
from tests.cases.swiglu import channel, mixer
from tests.cases.token_loss import loss
from tests.compiled import threads
from tests.compiled.launching import Launch, installed
from tests.compiled.program import Program
from tests.compiled.ptx import Fault, Instruction, Kernel, Number
from tests.gates.hazards import hazards
from tests.proof.argued import ARGUED, Place

ARCHITECTURES = (90, 80)
ROOT = Path(__file__).resolve().parents[2]
REMOVED = {
    "barrier": "bar.sync",
    "wgmma wait": "wgmma.wait_group",
    "wgmma fence": "wgmma.fence",
    "cp.async wait": "cp.async.wait_group",
    "proxy fence": "fence.proxy.async",
    "launch wait": "griddepcontrol.wait",
}
"""Instructions that are removed: name -> start of the opcode."""
RELAXED = {"release": ".release.", "acquire": ".acquire.", "acq_rel": ".acq_rel."}
"""Orders that are taken from an instruction: name -> part of the opcode."""
CASES = {
    name_of(case): case for case in (
        channel((3, 350, 24), 120, 2, "plain"), channel((4, 97, 136), 168, 1, "plain", "tma"),
        mixer(3, 190, 70, 150, "hidden", 2, "plain"), attention((4, 97, 192), 3, 2, "plain", "rope qk_norm"),
        conv((2, 67, 12, 70), (3, 3), 3, "strided", 1), queue(300, 300, 330, (3, 400)),
        *(halting((3, 40, 170), c.name.split()[-2], "plain") for c in small_cases() if c.op == "halting"),
        *(loss((2, 3, 1100), "plain", 3.0, 0.3, which) for which in LOSSES),
        persistent(1, 120, 120, (70, 120), "sequence", trm(1, 1)), persistent(1, 120, 120, (70, 120), "hidden", rtm(1)),
    )
}  # fmt: skip
"""Together they run every kernel that synchronises, and every loop of it more than once."""


@dataclass
class Defect:
    """Another block `n` of a kernel, from its instruction k on. `why`: what was reported.

    `together`: the same of a barrier that is removed along with others that nobody misses.
    """

    kind: str
    line: int
    n: int
    k: int
    block: list[Instruction]
    why: str = ""
    together: str = ""


def defects(kernel: Kernel) -> Iterator[Defect]:
    """Every defect of a kernel."""
    sums: tuple[str, ...] = ()
    masks = tail_masks(kernel)
    for n, block in enumerate(kernel.blocks):
        stores = [i for i in block if i.op.startswith("st.global") and i.guard and i.guard.name in masks]
        synchronous = [i for i in block if i.op.startswith("mma.sync")]
        last = max((i.line for i in synchronous), default=0)
        for k, i in enumerate(block):
            for kind, now in altered(i):
                yield Defect(kind, i.line, n, k, [*block[:k], now, *block[k + 1 :]])
            if [i] == stores[-1:]:  # the far corner of the tile
                yield Defect("mask", i.line, n, k, [*block[:k], replace(i, guard=None), *block[k + 1 :]])
            if i.accumulates or i.line == last:
                sums = tuple(r for product in ([i] if i.accumulates else synchronous) for r in product.args[0].items)
            if sums and (i.line == last or (i.op.startswith("wgmma.wait") and not i.args[0].value)):
                rounded = [Instruction(i.line, "cvt.rn.bf16x2.f32", [r, r, Number(0)]) for r in sums]
                yield Defect("16-bit sum", i.line, n, k, [*block[: k + 1], *rounded, *block[k + 1 :]])


def altered(i: Instruction) -> Iterator[tuple[str, Instruction]]:
    nothing = Instruction(i.line, "bar.warp.sync", [])
    yield from ((kind, nothing) for kind, op in REMOVED.items() if i.op.startswith(op))
    if i.parts[0] == "bra" and i.args[0].name.startswith("waitLoop"):
        yield "mbarrier wait", nothing
    for kind, part in RELAXED.items():
        if part in i.op:
            yield kind, replace(i, op=i.op.replace(part, ".relaxed."))
    if i.op in ("or.b64", "add.s64") and any(isinstance(a, Number) and a.value >> 61 == 2 for a in i.args):
        # of a descriptor: rows of 64 bytes, not of 128
        args = [Number(a.value ^ 3 << 62) if isinstance(a, Number) else a for a in i.args]
        yield "swizzle", replace(i, args=args)


def tail_masks(kernel: Kernel) -> set[str]:
    """Predicates that compare with a size."""
    found: set[str] = set()
    for i in (i for block in kernel.blocks for i in block):
        if i.op.startswith("setp.lt.s") or (i.op.startswith("and.pred") and found.intersection(i.reads)):
            found.update(i.writes)
    return found


def around(kernel: Kernel, d: Defect, back: bool, until: str) -> list[Instruction]:
    """All that paths from a defect, forwards or back, come to before an opcode that matches `until`."""
    blocks = kernel.blocks
    onward = {n: kernel.successors(n) for n in range(len(blocks))}
    edges = {n: [m for m in onward if n in onward[m]] for n in onward} if back else onward
    todo = [(d.n, blocks[d.n][: d.k][::-1] if back else blocks[d.n][d.k + 1 :])]
    found, seen = [], set[int]()
    while todo:
        n, some = todo.pop()
        for i in some:
            if re.match(until, f"{i.op} {i.args[0].value}" if i.op.startswith("wgmma.wait") else i.op):
                break
            found.append(i)
        else:
            todo += [(m, blocks[m][::-1] if back else blocks[m]) for m in edges[n] if m not in seen]
            seen.update(edges[n])
    return found


ACCESSES = {
    "shared r": r"ld\.shared|ldmatrix|wgmma\.(mma|wait)",
    "shared w": r"st\.shared|stmatrix",
    "tile": r"cp\.async\.bulk",
    "mbarrier": r"mbarrier\.(init|arrive|inval)",
    "asked": r"mbarrier\.t",
    "global r": r"ld\.global|cp\.async\.c|atom",
    "global w": r"st\.global|atom|red\.",
}
"""Kind of access -> opcodes. A copy writes from its issue, for whoever comes before it, to its wait."""
ORDERED = [(f"{s} {a}", f"{s} {b}") for s in ("shared", "global") for a, b in ("wr", "ww", "rw")] + [
    pair[::step] for pair in (("tile", "shared r"), ("tile", "shared w"), ("mbarrier", "asked")) for step in (1, -1)
]
"""Accesses that need an order between warps; one warp starts and ends an mbarrier and issues its tiles."""


def conflict(before: Sequence[Instruction], after: Sequence[Instruction]) -> bool:
    """Whether a barrier between these instructions may order any two of them."""
    found = [
        {kind for kind, ops in ACCESSES.items() if any(re.match(ops, i.op) for i in side)}
        | ({"shared w"} if any(i.op.startswith(copies) for i in side) else set())
        for side, copies in ((before, "cp.async.wait"), (after, ("cp.async.ca", "cp.async.cg")))
    ]
    return any(a in found[0] and b in found[1] for a, b in ORDERED)


def needless(kernel: Kernel, changed: Kernel, d: Defect) -> bool:
    """Whether on no path of the kernel there is anything that a defect could change."""

    def comes_to(back: bool, ops: str, until: str) -> bool:
        return any(re.match(ops, i.op) for i in around(kernel, d, back, until))

    if d.kind == "barrier":
        return not conflict(*(around(kernel, d, back, r"bar\.sync") for back in (True, False)))
    if d.kind == "wgmma fence":
        return not hazards(changed)
    if d.kind == "wgmma wait":  # another one follows before what the products read is written
        written = r"st\.shared|stmatrix|cp\.async|bar\.sync|ret"
        return not comes_to(False, written, r"wgmma\.wait\S* 0") and not hazards(changed)
    if d.kind == "proxy fence":
        return not comes_to(True, r"st\.shared|stmatrix", r"fence\.proxy")
    if d.kind == "16-bit sum":  # it is rounded to 16 bits anyway, and nothing else is done with it
        sums = {r for i in d.block[d.k + 1 : d.k + 1 + len(d.block) - len(kernel.blocks[d.n])] for r in i.writes}
        return all(i.op.startswith("cvt.rn.bf16") for i in around(kernel, d, False, "ret") if sums & {*i.reads})
    return d.kind == "cp.async wait" and not comes_to(True, r"cp\.async\.c[ag]", r"cp\.async\.wait_group")


@dataclass(frozen=True)
class Verdict:
    """Of one defect: kernel, kind, source line, PTX line, what found it ("": nothing), whether it is `needless`,
    and which of the compiled kernels it is in. together: whether it stands in for another one."""

    kernel: str
    kind: str
    source: str
    line: int
    why: str
    needless: bool
    text: str
    together: bool

    @property
    def what(self) -> str:
        return "synchronisation" if self.kind in {*REMOVED, *RELAXED, "mbarrier wait"} else "masks, swizzles, sums"

    def argued(self, case: str) -> Place | None:
        """The key of its argument."""
        own = (self.kernel, self.kind, self.source)
        return next((key for key in ARGUED if key[0] in case and key[1:] == own), None)


@dataclass
class Seeder:
    """Runs every launch of a case again with each defect of its kernel that has not been found yet."""

    every: dict[str, list[Defect]] = field(default_factory=dict)
    kernels: dict[str, tuple[Launch, Program]] = field(default_factory=dict)

    def __call__(self, launch: Launch, code: Program) -> None:
        left, key = launch.memory.state(), code.path.name
        wanted = launch.by_source(launch.programs) or left
        self.kernels[key] = launch, code
        for d in self.every.setdefault(key, list(defects(code.kernel))):
            if not d.why:
                launch.memory.fill([])
                d.why = self.seed(launch, code.changed(d.n, d.block), wanted, d.kind.startswith(("wgmma", "launch")))
        self.together(launch, code, wanted, [d for d in self.every[key] if d.kind == "barrier" and not d.why])
        launch.memory.fill(left)

    def together(self, launch: Launch, code: Program, wanted: list[np.ndarray], barriers: Sequence[Defect]) -> None:
        """Take away one barrier after the other, until somebody misses them."""
        for d in (d for d in barriers if not d.together):
            launch.memory.fill([])
            less = code.changed(d.n, d.block)
            d.together = self.seed(launch, less, wanted, False)
            code = code if d.together else less

    def seed(self, launch: Launch, code: Program, wanted: list[np.ndarray], products: bool) -> str:
        try:
            found = [*map(str, hazards(code.kernel))] if products else []
            return next(iter(found or launch.run(code, launch.programs, stop=True) or launch.unlike(wanted)), "")
        except Fault as error:
            return str(error)

    def verdicts(self) -> Iterator[Verdict]:
        for key, (launch, code) in self.kernels.items():
            text = launch.binary.asm["ptx"].splitlines()
            for d in self.every[key]:
                nothing = not d.why and needless(code.kernel, code.changed(d.n, d.block).kernel, d)
                yield Verdict(
                    launch.name, d.kind, source_line(text, d.line), d.line, d.why, nothing, key, bool(d.together)
                )


def source_line(text: Sequence[str], line: int) -> str:
    """The line of the package that a line of PTX comes from; of a bare barrier also the one that follows."""
    paths = re.findall(r'\.file\s+\d+ ".*?(rtm_kernels/.*/(.*))"', "\n".join(text))
    files = {name: str(ROOT / path) for path, name in paths}
    for place in (p for t in reversed(text[:line]) if ".loc" in t for p in re.findall(r"(\w+\.py):(\d+):", t)):
        if place[0] in files and int(place[1]):
            found, following = (linecache.getline(files[place[0]], int(place[1]) + n).strip() for n in (0, 1))
            return f"{found} {following}" if found == "tl.debug_barrier()" else found
    return ""


def judge(job: tuple[str, str, int]) -> tuple[str, float, list[Verdict]]:
    """A case (name, dtype, architecture), what its judgement took in seconds of a processor, and the verdicts."""
    name, dtype, arch = job
    start, case, seeder = time.process_time(), CASES[name], Seeder()
    threads.MOST_STEPS = 20_000
    runner.multiprocessors = lambda device, otherwise: 3  # type: ignore[assignment]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # new memory is NaN, and the same in every run
    with installed(arch) as executor:
        executor.judge = seeder
        run(case, "triton", case.make(torch.Generator().manual_seed(0)), getattr(torch, dtype))
    assert not executor.found, executor.found
    return name, time.process_time() - start, list(seeder.verdicts())


def print_counts(judged: Sequence[tuple[Verdict, str]], key: Callable[[Verdict], str]) -> None:
    """A line per key: outcomes, and how many barriers that are not found are, where all that stand in are gone too."""
    count = Counter((key(v), column) for v, outcome in judged for column in (outcome, *["together"] * v.together))
    columns = ("found", "needless", "argued", "lost", "together")
    print(" " * 45, *(f"{column:>8}" for column in columns))
    for row in sorted({key(v) for v, _ in judged}):
        print(f"{row:45}", *(f"{count[row, column]:8}" for column in columns), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="seed defects in compiled kernels")
    parser.add_argument("filters", nargs="*", help="keep cases whose name contains one of these")
    parser.add_argument("--arch", type=int, default=90, choices=ARCHITECTURES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    wanted = {place: counts[ARCHITECTURES.index(options.arch)] for place, (counts, _) in ARGUED.items()}
    names = [name for name in CASES if not options.filters or any(f in name for f in options.filters)]
    judged, bad, seconds, reached = [], [], 0.0, set()
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, took, verdicts in pool.map(judge, [(name, options.dtype, options.arch) for name in names]):
            print(f"{name}: {len(verdicts)} defects, {took:.0f} s", flush=True)
            seconds += took
            lost, own = Counter((v.text, v.argued(name)) for v in verdicts if not v.why and not v.needless), []
            for v in verdicts:
                place = v.argued(name)
                argued = place is not None and lost[v.text, place] == wanted[place]
                own.append((v, "found" if v.why else "needless" if v.needless else "argued" if argued else "lost"))
                if own[-1][1] == "argued":
                    reached.add(place)
                if own[-1][1] == "lost":
                    bad.append(f"{v.kernel}: {v.kind} in line {v.line}, {v.source}: not found")
                    print(bad[-1], flush=True)
            print_counts(own, lambda v: v.what)
            judged += own
    print_counts(judged, lambda v: f"{v.kernel}, {v.kind}")
    if not options.filters:
        bad += [f"argued in vain: {place}" for place, count in wanted.items() if count and place not in reached]
    print(*bad, f"{len(judged)} defects, {len(bad)} lost or argued in vain, {seconds:.0f} s of processors", sep="\n")
    return 1 if bad or not judged else 0


if __name__ == "__main__":
    sys.exit(main())
