"""Shared memory, and the copies that run beside the threads: cp.async, tensor maps (TMA) and their barriers.

Asynchronous copies land as late as the kernel allows: when it waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.compiled.codegen import SHARED_START
from tests.compiled.layouts import swizzled
from tests.compiled.memory import GlobalMemory
from tests.compiled.ptx import Fault
from tests.compiled.threads import Array, Mask

LANE = np.arange(32)


@dataclass
class Copies:
    """One cp.async of some threads: where it writes what, and the group of each thread that it belongs to."""

    threads: Array
    group: Array
    at: Array
    data: Array
    line: int

    def part(self, chosen: Array) -> Copies:
        return Copies(self.threads[chosen], self.group[chosen], self.at[chosen], self.data[chosen], self.line)


@dataclass
class Barrier:
    """An mbarrier: the phase completes when nobody is awaited and all tiles have landed. One warp does all but ask.

    `asked`: somebody has found the present phase incomplete, so tiles land when it is asked for again.
    """

    warp: int
    count: int
    awaited: int
    bytes_due: int = 0
    phase: int = 0
    asked: bool = False
    tiles: list[Any] = field(default_factory=list)

    def settle(self) -> None:
        if not self.awaited and not self.bytes_due and not self.tiles:
            self.phase ^= 1
            self.awaited = self.count


class TensorMap:
    """A TMA descriptor: a box of a matrix, its swizzle of 32, 64 or 128 bytes as 1, 2 or 3; zeros lie outside."""

    def __init__(self, descriptor: Any, box: tuple[int, int], swizzle: int) -> None:
        tensor, strides = descriptor.base, descriptor.strides
        if tensor.data_ptr() % 16 or strides[0] * tensor.element_size() % 16 or strides[1] != 1:
            raise Fault("a tensor map of a matrix that is not aligned to 16 bytes")
        self.matrix, self.box = torch.as_strided(tensor, descriptor.shape, strides), box
        self.bits = {0: 0, 1: 1, 2: 3, 3: 7}[swizzle]

    def tile(self, x: int, y: int) -> tuple[Array, Array]:
        """Offsets in shared memory and bytes of the box whose first element is (x, y)."""
        rows, columns = self.box
        out = torch.zeros(rows, columns, dtype=self.matrix.dtype)
        inside = self.matrix[max(y, 0) : max(y + rows, 0), max(x, 0) : max(x + columns, 0)]
        out[max(-y, 0) :, max(-x, 0) :][: inside.shape[0], : inside.shape[1]] = inside
        data = out.view(torch.uint8).numpy().ravel()
        return np.arange(data.size), data


class SharedMemory(GlobalMemory):
    """Accesses to shared memory, each aligned and inside what the launch asked for."""

    tensor_maps: dict[int, TensorMap]

    def start(self) -> None:
        self.copies: list[Copies] = []
        self.committed = np.zeros(self.N, int)
        self.barriers: dict[int, Barrier] = {}  # place -> barrier

    def places(self, address: Array, size: int, threads: Array, line: int) -> Array:
        """Offsets of these threads' accesses in the shared memory of the whole batch. Errors: `Fault`."""
        at = address[threads]
        if (at & np.uint32(size - 1)).any():
            raise Fault(f"line {line}: shared access of {size} bytes that is not aligned")
        if len(at) and (int(at.max()) + size > self.shared_end or int(at.min()) < SHARED_START):
            raise Fault(f"line {line}: shared access outside of {self.shared_end - SHARED_START} bytes")
        return (at + self.base[threads]).astype(np.int64)

    def load_shared(self, address: Array, size: int, count: int, mask: Mask, line: int) -> list[Array]:
        threads = self.chosen(mask)
        at = self.places(address, size * count, threads, line)
        self.watch.read_shared(self, at, size * count, threads, line)
        view = self.shared_as[size]
        return [self.spread(threads, view[at // size + k]) for k in range(count)]

    def store_shared(self, address: Array, size: int, values: tuple[Array, ...], mask: Mask, line: int) -> None:
        threads = self.chosen(mask)
        at = self.places(address, size * len(values), threads, line)
        view, given = self.shared_as[size], [self.full(v)[threads] for v in values]
        same = np.logical_and.reduce([view[at // size + k] == v for k, v in enumerate(given)])
        self.watch.write_shared(self, at, size * len(values), threads, line, same)
        for k, v in enumerate(given):
            view[at // size + k] = v
        self.watch.one_value(line, [view[at // size + k] == v for k, v in enumerate(given)])

    def matrix_row(self, address: Array, k: int, row: Array) -> Array:
        """For every thread the address that lane `8 k + row` of its warp gives, which is where row `row` starts."""
        return address[self.warp_start + 8 * k + row[self.lane]]

    def load_matrix(self, address: Array, count: int, transposed: bool, mask: Mask, line: int) -> list[Array]:
        """ldmatrix: lane 4 g + t gets elements 2 t and 2 t + 1 of row g, or transposed of column g."""
        out = []
        for k in range(count):
            if not transposed:
                at = self.matrix_row(address, k, LANE // 4) + self.lane % np.uint32(4) * np.uint32(4)
                out.append(self.load_shared(at, 4, 1, mask, line)[0])
                continue
            rows = [self.matrix_row(address, k, LANE % 4 * 2 + e) for e in (0, 1)]
            column = self.lane // np.uint32(4) * np.uint32(2)
            low, high = (self.load_shared(r + column, 2, 1, mask, line)[0].astype(np.uint32) for r in rows)
            out.append(low | high << np.uint32(16))
        return out

    def store_matrix(self, address: Array, values: tuple[Array, ...], transposed: bool, mask: Mask, line: int) -> None:
        """stmatrix, the inverse of `load_matrix`."""
        for k, value in enumerate(values):
            if not transposed:
                at = self.matrix_row(address, k, LANE // 4) + self.lane % np.uint32(4) * np.uint32(4)
                self.store_shared(at, 4, (value,), mask, line)
                continue
            for e in (0, 1):
                at = self.matrix_row(address, k, LANE % 4 * 2 + e) + self.lane // np.uint32(4) * np.uint32(2)
                self.store_shared(at, 2, ((value >> np.uint32(16 * e)).astype(np.uint16),), mask, line)

    # cp.async

    def copy(self, to: Array, source: Array, size: int, count: Array | None, mask: Mask, line: int) -> None:
        """`count` (0 or all) of `size` bytes from global to shared memory; the rest is zeros."""
        threads = self.chosen(mask)
        at = self.places(to, size, threads, line)
        wanted = np.full(len(threads), True) if count is None else count[threads] > 0
        if count is not None and not np.isin(count[threads], (0, size)).all():
            raise Fault(f"line {line}: cp.async of a part")
        data = np.zeros((len(threads), size // 4), np.uint32)
        if wanted.any():
            chosen = np.zeros(self.N, bool)
            chosen[threads[wanted]] = True
            loaded = self.load_global(source, 4, size // 4, chosen, line)
            data[wanted] = np.stack(loaded, 1)[threads[wanted]]
            if (source[threads[wanted]] & np.uint64(size - 1)).any():
                raise Fault(f"line {line}: cp.async of {size} bytes that is not aligned")
        self.watch.copy_begins(self, at, size, threads, line)
        self.copies.append(Copies(threads, self.committed[threads], at, data, line))

    def commit_copies(self, mask: Mask) -> None:
        self.committed[self.chosen(mask)] += 1

    def wait_for_copies(self, pending: int, mask: Mask) -> None:
        """Until at most `pending` groups of each thread are under way."""
        waits = np.ones(self.N, bool) if mask is None else mask
        rest = []
        for copies in self.copies:
            lands = waits[copies.threads] & (copies.group < self.committed[copies.threads] - pending)
            if lands.any():
                now = copies.part(lands)
                for k in range(now.data.shape[1]):
                    self.shared_as[4][now.at // 4 + k] = now.data[:, k]
                self.watch.copy_lands(self, now.at, 4 * now.data.shape[1], now.threads, now.line)
            if not lands.all():
                rest.append(copies.part(~lands))
        self.copies = rest

    # tensor maps and mbarriers

    def each(self, address: Array, mask: Mask, line: int, writes: bool = False) -> Iterator[tuple[int, Any]]:
        """Threads that use an mbarrier, and its place. To start or to end one is a write of its 8 bytes."""
        threads = self.chosen(mask)
        at = self.places(address, 8, threads, line)
        if writes:
            self.watch.write_shared(self, at, 8, threads, line, np.zeros(len(at), bool))
        else:
            self.watch.read_shared(self, at, 8, threads, line)
        yield from zip(threads.tolist(), at.tolist(), strict=True)

    def start_barrier(self, address: Array, count: int, mask: Mask, line: int) -> None:
        for t, at in self.each(address, mask, line, writes=True):
            self.barriers[at] = Barrier(t // 32, count, count)

    def end_barrier(self, address: Array, mask: Mask, line: int) -> None:
        for t, at in self.each(address, mask, line, writes=True):
            self.barrier_of(t, at, line)
            del self.barriers[at]

    def barrier_at(self, at: int, line: int) -> Barrier:
        if at not in self.barriers:
            raise Fault(f"line {line}: no mbarrier has been started here")
        return self.barriers[at]

    def barrier_of(self, thread: int, at: int, line: int) -> Barrier:
        """The mbarrier that the warp of a thread has started."""
        barrier = self.barrier_at(at, line)
        if barrier.warp != thread // 32:
            raise Fault(f"line {line}: another warp has started this mbarrier")
        return barrier

    def arrive(self, address: Array, bytes_due: int, mask: Mask, line: int) -> None:
        for t, at in self.each(address, mask, line):
            barrier = self.barrier_of(t, at, line)
            barrier.bytes_due += bytes_due
            barrier.awaited -= 1
            barrier.settle()

    def copy_tile(
        self, to: Array, descriptor: Array, place: tuple[Array, Array], barrier: Array, mask: Mask, line: int
    ) -> None:
        for t, key in self.each(barrier, mask, line):
            tensor_map = self.tensor_maps[int(descriptor[t])]
            offsets, data = tensor_map.tile(*(int(c[t]) for c in place))
            at = swizzled(int(to[t]) + offsets, tensor_map.bits)
            if int(to[t]) % 128 or at.max() >= self.shared_end:
                raise Fault(f"line {line}: a tile by TMA that is not aligned or out of bounds")
            at += int(self.base[t])
            self.watch.tile_begins(self, at, key, np.full(data.size, t), line)
            self.barrier_of(t, key, line).tiles.append((at, data, line))

    def passed(self, address: Array, parity: Array, mask: Mask, line: int) -> Array:
        """Whether the phase of this parity is complete; tiles land when it is asked for again, if only they miss."""
        out, parity = np.zeros(self.N, bool), self.full(parity)
        every = [(t, self.barrier_at(at, line)) for t, at in self.each(address, mask, line)]
        for barrier in {id(b): b for t, b in every if b.phase == parity[t] and b.tiles and not b.awaited}.values():
            for at, data, start in barrier.tiles if barrier.asked else ():
                self.shared[at] = data
                self.watch.tile_lands(self, at, start)
                barrier.bytes_due -= data.size
            barrier.tiles = [] if barrier.asked else barrier.tiles
            barrier.asked = not barrier.asked
            barrier.settle()
        for t, barrier in every:
            out[t] = barrier.phase != parity[t]
        return out

    def fence_proxy(self, mask: Mask) -> None:
        self.watch.fence(self, self.chosen(mask))
