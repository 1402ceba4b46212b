"""Which accesses are ordered, and which are races. The rules:

1. Within a program, accesses of one warp are in order. Others are ordered by a `bar.sync` between them: each program
   counts its barriers, and the count at an access is its epoch.
2. Two accesses to one place of which one writes must be ordered. Replicated threads store equal values to one place by
   one instruction, and may. Threads of one instruction that store different values to one place may not.
3. A copy to shared memory (cp.async, TMA) writes from its issue to the wait of its thread (cp.async: then it counts as
   a write of that warp) or to the passing of its mbarrier (TMA: then all may read). Nothing else touches the place.
4. A wgmma reads its operands in shared memory from issue to wait. Whatever it reads was written before a barrier; data
   of st.shared also before a `fence.proxy.async`. Nothing writes there before the wait. TMA copies over data of
   st.shared, and to an mbarrier just started, behind such a fence too. To start and to end an mbarrier is a write of
   its place, all else that is done with it a read.
5. Nobody reads shared memory that nobody wrote.
6. Between programs, a release publishes what its program did in earlier epochs and what it knew of others, and an
   acquire of the same address brings that to its program from the next epoch on. What another program wrote is not
   loaded by way of L1 (`ld.global` without `.cg`), though the acquire would do on a GPU that keeps to its manual.

Not followed: races between lanes of one warp, proxy fences of cp.async and after reads, cp.async.ca and its L1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.compiled.ptx import Fault, Kernel

Array = Any
NOBODY, MANY = -1, -2
MOST_PROGRAMS = 64
"""Reads of global memory are followed in launches of at most this many programs."""


class SharedShadow:
    """What is known of each cell of a batch's shared memory."""

    def __init__(self, cells: int) -> None:
        self.write_epoch, self.read_epoch = np.full(cells, -1, np.int32), np.full(cells, -1, np.int32)
        self.writer, self.reader = np.full(cells, NOBODY, np.int16), np.full(cells, NOBODY, np.int16)
        self.write_line, self.read_line = np.zeros(cells, np.int32), np.zeros(cells, np.int32)
        self.copies, self.products = np.zeros(cells, np.int16), np.zeros(cells, np.int16)
        self.copy_line, self.product_line = np.zeros(cells, np.int32), np.zeros(cells, np.int32)
        self.written, self.unfenced = np.zeros(cells, bool), np.zeros(cells, bool)


class GlobalShadow:
    """What is known of each element of a tensor: its last write, and the last read by each program."""

    def __init__(self, cells: int, programs: int) -> None:
        self.program, self.warp = np.full(cells, NOBODY, np.int32), np.full(cells, NOBODY, np.int16)
        self.epoch, self.line = np.full(cells, -1, np.int32), np.zeros(cells, np.int32)
        programs = programs if programs <= MOST_PROGRAMS else 0
        self.read_epoch = np.full((programs, cells), -1, np.int32)
        self.reader = np.full((programs, cells), NOBODY, np.int16)
        self.read_line = np.zeros(cells, np.int32)


class Watch:
    """Follows one launch; `found` has a line for each pair of instructions that race. `stop` ends it at the first."""

    def __init__(self, kernel: Kernel, programs: int, stop: bool = False) -> None:
        self.found, self.stop = dict[str, None](), stop
        self.ops = {i.line: i.op for block in kernel.blocks for i in block}
        byte_wide = any(op.split(".")[1:2] == ["shared"] and op.endswith("8") for op in self.ops.values())
        self.cell = 1 if byte_wide else 2
        self.programs, self.attached = programs, 0
        self.clock = np.full((programs, programs), -1, np.int64)
        """clock[a, b]: epochs of program b below this one are known to a."""
        self.published: dict[int, Array] = {}
        self.incoming: dict[int, Array] = {}

    def attach(self, m: Any) -> None:
        """Follow another batch of programs."""
        m.shadow = SharedShadow(m.C * m.stride // self.cell)
        m.epoch, m.first = np.zeros(m.C, np.int32), self.attached
        self.attached += m.C

    def report(self, what: str, line: int, other: Array, bad: Array) -> None:
        if np.any(bad):
            before = int(other[np.argmax(bad)]) if np.ndim(other) else int(other)
            after = f", after {self.ops[before]} in line {before}" if before else ""
            self.found[f"{what}: {self.ops.get(line, '')} in line {line}{after}"] = None
            if self.stop:
                raise Fault(next(iter(self.found)))

    def one_value(self, line: int, kept: list[Array]) -> None:
        self.report("threads of one store write different values to one place", line, 0, ~np.all(kept))

    def barrier(self, m: Any, complete: Array) -> None:
        m.epoch[complete] += 1
        for program in m.first + complete.nonzero()[0]:
            if program in self.incoming:
                np.maximum(self.clock[program], self.incoming.pop(program), out=self.clock[program])

    # shared memory

    def cells(self, m: Any, at: Array, size: int, threads: Array) -> tuple[Array, Array, Array]:
        """Cells of accesses of `size` bytes, each with the warp and the epoch of its thread."""
        n = max(size // self.cell, 1)
        cells = (at[:, None] // self.cell + np.arange(n)).ravel()
        return cells, np.repeat(m.warp_in_program[threads].astype(np.int16), n), np.repeat(m.epoch[m.of[threads]], n)

    def read_shared(self, m: Any, at: Array, size: int, threads: Array, line: int) -> None:
        s, (g, warp, epoch) = m.shadow, self.cells(m, at, size, threads)
        self.report("read of what nobody wrote", line, 0, ~s.written[g])
        self.report(
            "read without a barrier", line, s.write_line[g], (s.write_epoch[g] == epoch) & (s.writer[g] != warp)
        )
        self.report("read before the wait", line, s.copy_line[g], s.copies[g] > 0)
        again = (s.read_epoch[g] == epoch) & (s.reader[g] != warp)
        reader = np.where(again, MANY, warp)
        s.reader[g], s.read_epoch[g], s.read_line[g] = reader, epoch, line
        s.reader[g[s.reader[g] != reader]] = MANY  # several warps in this very instruction

    def write_shared(self, m: Any, at: Array, size: int, threads: Array, line: int, same: Array) -> None:
        s, (g, warp, epoch) = m.shadow, self.cells(m, at, size, threads)
        self._write_allowed(s, g, warp, epoch, line, np.repeat(same, len(g) // max(len(same), 1)))
        s.write_epoch[g], s.writer[g], s.write_line[g], s.written[g], s.unfenced[g] = epoch, warp, line, True, True

    def _write_allowed(self, s: SharedShadow, g: Array, warp: Array, epoch: Array, line: int, same: Array) -> None:
        after_write = (s.write_epoch[g] == epoch) & (s.writer[g] != warp) & ~(same & (s.write_line[g] == line))
        after_read = (s.read_epoch[g] == epoch) & (s.reader[g] != warp)
        self.report("write without a barrier since a write", line, s.write_line[g], after_write)
        self.report("write without a barrier since a read", line, s.read_line[g], after_read)
        self.report("write into an unfinished copy", line, s.copy_line[g], s.copies[g] > 0)
        self.report("write under a running product", line, s.product_line[g], s.products[g] > 0)

    def copy_begins(self, m: Any, at: Array, size: int, threads: Array, line: int) -> None:
        s, (g, warp, epoch) = m.shadow, self.cells(m, at, size, threads)
        self._write_allowed(s, g, warp, epoch, line, np.zeros(len(g), bool))
        s.copies[g] += 1
        s.copy_line[g] = line

    def copy_lands(self, m: Any, at: Array, size: int, threads: Array, line: int) -> None:
        s, (g, warp, epoch) = m.shadow, self.cells(m, at, size, threads)
        s.copies[g] -= 1
        s.write_epoch[g], s.writer[g], s.write_line[g], s.written[g], s.unfenced[g] = epoch, warp, line, True, False

    def tile_begins(self, m: Any, at: Array, barrier: int, threads: Array, line: int) -> None:
        s, (g, warp, epoch) = m.shadow, self.cells(m, at, 1, threads)
        for what, cells in (("a tile is copied over", g), ("a tile arrives at", np.array([barrier // self.cell]))):
            self.report(f"{what} what has no proxy fence behind it", line, s.write_line[cells], s.unfenced[cells])
        self._write_allowed(s, g, warp, epoch, line, np.zeros(len(g), bool))
        s.copies[g], s.copy_line[g] = 1, line

    def tile_lands(self, m: Any, at: Array, line: int) -> None:
        s, g = m.shadow, at // self.cell
        s.copies[g], s.write_epoch[g], s.write_line[g], s.written[g], s.unfenced[g] = 0, -1, line, True, False

    def fence(self, m: Any, threads: Array) -> None:
        for program in np.unique(m.of[threads]):
            m.shadow.unfenced[program * m.stride // self.cell : (program + 1) * m.stride // self.cell] = False

    def product_begins(self, m: Any, read: list[Array], thread: int, line: int) -> None:
        s, epoch = m.shadow, m.epoch[m.of[thread]]
        for at in read:
            g = at // self.cell
            self.report("wgmma reads what nobody wrote", line, 0, ~s.written[g])
            self.report("wgmma reads without a barrier", line, s.write_line[g], s.write_epoch[g] == epoch)
            self.report("wgmma reads before the wait", line, s.copy_line[g], s.copies[g] > 0)
            self.report("wgmma reads st.shared data without a proxy fence", line, s.write_line[g], s.unfenced[g])
            s.products[g] += 1
            s.product_line[g] = line

    def product_ends(self, m: Any, read: list[Array], thread: int, line: int) -> None:
        for at in read:
            g = at // self.cell
            m.shadow.products[g] -= 1
            m.shadow.read_epoch[g], m.shadow.reader[g], m.shadow.read_line[g] = m.epoch[m.of[thread]], MANY, line

    # global memory

    def elements(self, m: Any, buffer: Any, at: Array, size: int, threads: Array) -> tuple[Any, ...]:
        """Shadow and cells of accesses of `size` bytes, each with program, warp and epoch of its thread."""
        if buffer.shadow is None:
            buffer.shadow = GlobalShadow(len(buffer.as_width[1]) // buffer.cell + 1, self.programs)
        n = max(size // buffer.cell, 1)
        cells = (at[:, None] // buffer.cell + np.arange(n)).ravel()
        owners = m.first + m.of[threads], m.warp_in_program[threads].astype(np.int16), m.epoch[m.of[threads]]
        return (buffer.shadow, cells, *(np.repeat(owner, n) for owner in owners))

    def _after_write(self, s: GlobalShadow, g: Array, program: Array, warp: Array, epoch: Array) -> Array:
        """Where the last write is ordered before an access."""
        writer, then = s.program[g], s.epoch[g]
        own = (then < epoch) | (s.warp[g] == warp)
        return (writer == NOBODY) | np.where(writer == program, own, then < self.clock[program, writer])

    def read_global(
        self, m: Any, buffer: Any, at: Array, size: int, threads: Array, line: int, by_l1: bool = False
    ) -> None:
        s, g, program, warp, epoch = self.elements(m, buffer, at, size, threads)
        self.report(
            f"read of {buffer.name} not ordered", line, s.line[g], ~self._after_write(s, g, program, warp, epoch)
        )
        others = by_l1 & (s.program[g] != NOBODY) & (s.program[g] != program)
        self.report(f"read of {buffer.name} through L1 after another program's write", line, s.line[g], others)
        if len(s.reader):
            again = (s.read_epoch[program, g] == epoch) & (s.reader[program, g] != warp)
            reader = np.where(again, MANY, warp)
            s.reader[program, g], s.read_epoch[program, g], s.read_line[g] = reader, epoch, line
            split = s.reader[program, g] != reader
            s.reader[program[split], g[split]] = MANY

    def write_global(self, m: Any, buffer: Any, at: Array, size: int, threads: Array, line: int, same: Array) -> None:
        s, g, program, warp, epoch = self.elements(m, buffer, at, size, threads)
        same = np.repeat(same, len(g) // max(len(same), 1))
        bad = ~(same & (s.line[g] == line)) & ~self._after_write(s, g, program, warp, epoch)
        self.report(f"write of {buffer.name} not ordered after a write", line, s.line[g], bad)
        for other in range(len(s.reader)):
            then = s.read_epoch[other, g]
            own = (then < epoch) | (s.reader[other, g] == warp)
            ordered = (then < 0) | np.where(program == other, own, then < self.clock[program, other])
            self.report(f"write of {buffer.name} not ordered after a read", line, s.read_line[g], ~ordered)
        s.program[g], s.warp[g], s.epoch[g], s.line[g] = program, warp, epoch, line

    def release(self, m: Any, thread: int, address: int) -> None:
        program = m.first + m.of[thread]
        known = self.clock[program].copy()
        known[program] = m.epoch[m.of[thread]]
        self.published[address] = np.maximum(self.published.get(address, -1), known)

    def acquire(self, m: Any, threads: Array, addresses: Array) -> None:
        for thread, address in zip(threads, addresses.tolist(), strict=True):
            if address in self.published:
                program = m.first + m.of[thread]
                self.incoming[program] = np.maximum(self.incoming.get(program, -1), self.published[address])
