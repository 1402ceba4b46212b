"""Least cycles of a program of each kernel on one multiprocessor of an H200, from executed compiled code.

The first program of a launch at an official size is executed on a CPU (`tests/compiled`), and the instructions of each
pipe are counted. It is arithmetic, not a measurement: no pipe ever waits here, so a real program takes longer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.cases.attention_norm import attention
from tests.cases.case import Case, run
from tests.cases.swiglu import channel, mixer
from tests.compiled.arithmetic import canonical, width
from tests.compiled.launching import installed
from tests.compiled.ptx import Group, Instruction
from tests.gates.compile_gate import read_cubin

OFFICIAL = {
    "mixer_norm": mixer(1, 97, 512, 512, "sequence", 2, "plain"),
    "swiglu_norm": channel((1, 97, 512), 1536, 0, "plain"),
    "attention_norm": attention((1, 97, 512), 8, 2, "plain", "rope"),
}
TENSOR_FLOPS, SHARED_BYTES, GLOBAL_BYTES, LANES, SPECIAL, WARPS = 4096, 128, 64, 128, 16, 4
"""Per clock of a multiprocessor: FLOPs in 16 bits, bytes of shared memory, bytes from L2, float32 and special
functions, and instructions of warps that are issued."""
REGISTERS, SHARED, THREADS = 65536, 227 * 1024, 2048
"""Of a multiprocessor."""


@dataclass(frozen=True)
class Bound:
    """A kernel of an op: least cycles of one program per pipe, what it holds, and so how many are resident."""

    op: str
    kernel: str
    cycles: dict[str, float]
    registers: int
    shared: int
    threads: int

    @property
    def limit(self) -> str:
        return max(self.cycles, key=lambda pipe: self.cycles[pipe])

    @property
    def resident(self) -> int:
        by_registers = REGISTERS // (self.threads * -(-self.registers // 8) * 8)
        return max(1, min(by_registers, SHARED // (self.shared + 1024), THREADS // self.threads, 32))


def pipes(i: Instruction) -> Iterator[tuple[str, float]]:
    """Cycles that an instruction of one warp takes of each pipe."""
    first, kind = i.parts[0], i.parts[-1]
    yield "issue", 1 / WARPS
    if i.accumulates:
        n = int(re.findall(r"n(\d+)k16", i.op)[0])
        yield "tensor", 2 * 64 * n * 16 / TENSOR_FLOPS / 4
        rows = n + (0 if isinstance(i.args[1], Group) else 64)  # of operands in shared memory
        yield "shared", rows * 16 * 2 / SHARED_BYTES / 4
    elif first == "mma":
        yield "tensor", 2 * 16 * 8 * 16 / TENSOR_FLOPS
    elif first in ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos") or i.op.startswith("div.full"):
        yield "special", 32 / SPECIAL
    elif kind in ("f32", "bf16x2", "f16x2") and first in ("add", "sub", "mul", "fma", "min", "max"):
        yield "fma", 32 / LANES
    elif first in ("ldmatrix", "stmatrix"):
        yield "shared", 128 * int(re.findall(r"\.x(\d)", i.op)[0]) / SHARED_BYTES
    elif first in ("ld", "st") and i.parts[1] != "param":
        count = next((len(a.items) for a in i.args if isinstance(a, Group)), 1)
        size = 32 * count * width(canonical(kind))
        shared = i.parts[1].startswith("shared")
        yield ("shared", size / SHARED_BYTES) if shared else ("global", size / GLOBAL_BYTES)
    elif i.op.startswith("cp.async.c") and "group" not in i.op:
        yield "global", 32 * i.args[2].value / GLOBAL_BYTES
        yield "shared", 32 * i.args[2].value / SHARED_BYTES


def bounds_of(op: str, case: Case) -> list[Bound]:
    """One bound per kernel that the case launches, forward and backward."""
    found: dict[str, Bound] = {}

    def count(name: str, binary: Any, machine: Any) -> None:
        cycles: Counter[str] = Counter()
        for n, warps in machine.ran.items():
            for i in machine.code.kernel.blocks[n]:
                for pipe, cost in pipes(i):
                    cycles[pipe] += warps * cost
        bound = Bound(op, name, dict(cycles), read_cubin(binary.asm["cubin"])["registers"], binary.metadata.shared,
                      machine.T)  # fmt: skip
        if name not in found or max(bound.cycles.values()) > max(found[name].cycles.values()):
            found[name] = bound

    with installed(90) as executor:
        executor.most_programs, executor.after = 1, count
        run(case, "triton", case.make(torch.Generator().manual_seed(0)), torch.bfloat16)
    return list(found.values())


def bounds() -> list[Bound]:
    """Every kernel of the official Sudoku layers on sm_90 in bfloat16."""
    return [bound for op, case in OFFICIAL.items() for bound in bounds_of(op, case)]


def rows(found: list[Bound], report: Callable[..., None]) -> None:
    """Report op, kernel, cycles per pipe, limiting pipe, registers, KiB of shared memory and resident programs."""
    for b in found:
        cycles = (f"{b.cycles.get(pipe, 0):.0f}" for pipe in ("tensor", "fma", "special", "shared", "global", "issue"))
        report(b.op, b.kernel, *cycles, b.limit, str(b.registers), str(b.shared // 1024), str(b.resident))
