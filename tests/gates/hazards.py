"""What compiled code touches too early, from PTX text alone: registers of asynchronous products (wgmma), and memory.

Three rules of PTX, followed along every path of a kernel:

- A: an A operand in registers is not written before a `wgmma.wait_group` has waited for its product.
- accumulator: an accumulator is neither read nor written before that, but by further products.
- fence: a register that anything else has touched goes to a product only after a `wgmma.fence`.

Triton 3.6 breaks the first (https://github.com/triton-lang/triton/issues/9433). One rule more, for kernels that start
before the launch before them has ended:

- early: nothing in global memory is read or written before a `griddepcontrol.wait`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from tests.compiled.ptx import Group, Instruction, Kernel, Register

MOST_GROUPS = 32
"""Groups of products followed one by one; older ones are followed together."""

Products = frozenset[int]


@dataclass(frozen=True)
class Hazard:
    """A line that touches a register too early, and the line of the product that it belongs to."""

    rule: str
    line: int
    op: str
    product: int = 0

    def __str__(self) -> str:
        if not self.product:
            return f"{self.op} in line {self.line} does not wait for the launch before"
        return f"{self.rule} of the wgmma in line {self.product} is touched by {self.op} in line {self.line}"


@dataclass(frozen=True)
class _State:
    """What may be true where a block begins: products under way, by group, and registers touched since a fence."""

    groups: tuple[Products, ...] = (frozenset(),)
    """Oldest first; the last one is not committed yet."""
    touched: frozenset[str] = frozenset()

    def join(self, other: _State) -> _State:
        pairs = zip_longest(self.groups[::-1], other.groups[::-1], fillvalue=frozenset())
        groups = [a | b for a, b in pairs][::-1]
        oldest = frozenset().union(*groups[: -MOST_GROUPS + 1])
        return _State((oldest, *groups[-MOST_GROUPS + 1 :]), self.touched | other.touched)


def product_registers(i: Instruction) -> tuple[set[str], set[str]]:
    """Accumulators and A registers of a product."""
    a = i.args[1]
    return set(i.writes), {r.name for r in a.items if isinstance(r, Register)} if isinstance(a, Group) else set()


class _Scan:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        everything = (i for block in kernel.blocks for i in block)
        self.products = {i.line: product_registers(i) for i in everything if i.accumulates}
        self.watched = {r for pair in self.products.values() for part in pair for r in part}
        self.found: dict[Hazard, None] = {}

    def run(self) -> list[Hazard]:
        states = {0: _State(touched=frozenset(self.watched))}
        todo = [0] if self.products else []
        while todo:
            n = todo.pop()
            after = self.block(n, states[n])
            for m in self.kernel.successors(n):
                joined = states[m].join(after) if m in states else after
                if states.get(m) != joined:
                    states[m] = joined
                    todo.append(m)
        return list(self.found)

    def block(self, n: int, state: _State) -> _State:
        groups, touched = list(state.groups), set(state.touched)
        for i in self.kernel.blocks[n]:
            if i.accumulates:
                if any(r in touched for part in self.products[i.line] for r in part):
                    self.found[Hazard("fence", i.line, i.op, i.line)] = None
                groups[-1] |= {i.line}
            elif i.op.startswith("wgmma.fence"):
                touched = set()
            elif i.op.startswith("wgmma.commit"):
                groups.append(frozenset())
            elif i.op.startswith("wgmma.wait"):
                groups = groups[len(groups) - 1 - min(i.args[0].value, len(groups) - 1) :]
            else:
                now = self.watched.intersection((*i.writes, *i.reads))
                touched |= now
                for hazard in self.touches(i, frozenset().union(*groups)) if now else ():
                    self.found[hazard] = None
        return _State(tuple(groups[-MOST_GROUPS:]), frozenset(touched))

    def touches(self, i: Instruction, under_way: Products) -> Iterator[Hazard]:
        for line in sorted(under_way):
            accumulators, a = self.products[line]
            if a.intersection(i.writes):
                yield Hazard("A", i.line, i.op, line)
            if accumulators.intersection((*i.writes, *i.reads)):
                yield Hazard("accumulator", i.line, i.op, line)


def hazards(kernel: Kernel) -> list[Hazard]:
    """Every hazard of a kernel."""
    overlaps = any(i.op.startswith("griddepcontrol") for block in kernel.blocks for i in block)
    return [*_Scan(kernel).run(), *(_early(kernel) if overlaps else ())]


GLOBAL = re.compile(r"(ld|st)\..*global|cp\.async\.(c[ag]|bulk)|atom|red\.|prefetch")


def _early(kernel: Kernel) -> Iterator[Hazard]:
    """What reads or writes global memory on a path from the entry that has not waited for the launch before."""
    todo, seen = [0], {0}
    while todo:
        n = todo.pop()
        for i in kernel.blocks[n]:
            if i.op.startswith("griddepcontrol.wait"):
                break
            if GLOBAL.match(i.op):
                yield Hazard("early", i.line, i.op)
        else:
            onward = {*kernel.successors(n)} - seen
            seen |= onward
            todo += onward
