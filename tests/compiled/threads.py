"""The threads of some programs of a launch, run together: who they are, where they wait, what warps exchange."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.compiled.codegen import END, SHARED_START
from tests.compiled.program import Program
from tests.compiled.ptx import Fault
from tests.compiled.races import Watch

Array = Any
Mask = Any
"""A boolean array [N], or None for all threads."""
MOST_STEPS = 1_000_000
"""Blocks of a launch; one with more hangs."""


class Threads:
    """C programs of T threads: N = C T, warps of 32, warpgroups of 128.

    `ran` counts the warps that have run each block. `groups` maps the block that threads are about to run to their
    mask; the lowest block runs first, so that threads that a branch has parted meet again. `waiting` holds those at a
    barrier.
    """

    def __init__(
        self, code: Program, parameters: Mapping[str, int], shared: int, programs: Sequence[tuple[int, ...]],
        grid: tuple[int, ...], watch: Watch,
    ) -> None:  # fmt: skip
        self.code, self.parameters, self.watch = code, parameters, watch
        self.C, self.T = len(programs), code.kernel.threads
        self.N = self.C * self.T
        thread = np.arange(self.N)
        self.of = thread // self.T
        self.tid = (thread % self.T).astype(np.uint32)
        self.lane, self.warp_in_program = self.tid % np.uint32(32), self.tid // np.uint32(32)
        self.warp_start = thread // 32 * 32
        self.zero = np.zeros(self.N, np.uint32)
        self.program = [np.array([p[d] for p in programs], np.uint32)[self.of] for d in range(3)]
        self.programs = [np.full(self.N, grid[d], np.uint32) for d in range(3)]
        self.shared_end = SHARED_START + shared
        self.stride = -(-self.shared_end // 1024) * 1024
        rng = np.random.default_rng(0)
        self.shared = rng.integers(0, 256, self.C * self.stride, np.uint8)  # what nobody has written is not zero
        self.shared_as = {w: self.shared.view(f"u{w}") for w in (1, 2, 4, 8)}
        self.base = (self.of * self.stride).astype(np.uint32)
        self.registers = [self.garbage(code.kernel.type_of(name), rng) for name in code.slots]
        self.groups: dict[int, Mask] = {0: None}
        self.ran: Counter[int] = Counter()
        self.waiting: list[tuple[int, Array]] = []
        watch.attach(self)

    def garbage(self, kind: str, rng: np.random.Generator) -> Array:
        if kind == "pred":
            return rng.integers(0, 2, self.N).astype(bool)
        size = int(kind[1:]) // 8
        return rng.integers(0, 256, self.N * size, np.uint8).view(f"u{size}")

    # scheduling

    @property
    def finished(self) -> bool:
        return not self.groups and not self.waiting

    def run(self) -> None:
        for _ in range(MOST_STEPS):
            if self.finished:
                return
            self.step()
        raise Fault(f"{self.code.kernel.name}: threads run for ever")

    def step(self) -> None:
        """One block of the threads that are furthest behind."""
        if not self.groups:
            raise Fault(f"{self.code.kernel.name}: threads wait at a barrier that others never reach")
        n = min(self.groups)
        mask = self.groups.pop(n)
        self.ran[n] += self.N // 32 if mask is None else int(mask.reshape(-1, 32).any(1).sum())
        function = self.code.function(n, mask is not None)
        after = function(self, self.registers) if mask is None else function(self, self.registers, mask)
        if self.code.kernel.blocks[n][-1].synchronises:
            self.waiting.append((after, np.ones(self.N, bool) if mask is None else mask))
            self.release()
        elif isinstance(after, tuple):
            self.enter(after[1], after[0])
            self.enter(after[3], after[2])
        elif after != END:
            self.enter(after, mask)

    def enter(self, n: int, mask: Mask) -> None:
        if n in self.groups and mask is not None and self.groups[n] is not None:
            mask = self.groups[n] | mask
        self.groups[n] = None if mask is None or mask.all() else mask

    def release(self) -> None:
        """Let the programs go on whose threads all wait."""
        arrived = np.logical_or.reduce([mask for _, mask in self.waiting])
        complete = arrived.reshape(self.C, self.T).all(1)
        if not complete.any():
            return
        self.watch.barrier(self, complete)
        free = np.repeat(complete, self.T)
        for n, mask in self.waiting:
            if (mask & free).any():
                self.enter(n, mask & free)
        self.waiting = [(n, mask & ~free) for n, mask in self.waiting if (mask & ~free).any()]

    # values

    def full(self, x: Any) -> Array:
        return x if np.ndim(x) else np.full(self.N, x)

    def parameter(self, name: str, kind: str) -> Array:
        size = np.dtype(kind).itemsize
        return np.full(self.N, np.array(self.parameters[name] & (1 << 8 * size) - 1, f"u{size}").view(kind))

    def chosen(self, mask: Mask) -> Array:
        """Numbers of the threads of a mask."""
        return np.arange(self.N) if mask is None else mask.nonzero()[0]

    def spread(self, threads: Array, values: Array) -> Array:
        """Values of some threads as an array over all."""
        if len(threads) == self.N:
            return values
        out = np.zeros(self.N, values.dtype)
        out[threads] = values
        return out

    # warps

    def shuffle(self, x: Array, by: Array, clamp: Array, how: str) -> Array:
        """shfl.sync: of the lane `lane ^ by`, `by`, or `lane +- by` of the segment that `clamp` says; else the own."""
        lane, by, clamp = (np.broadcast_to(v, (self.N,)).astype(int) for v in (self.lane, by, clamp))
        segment = clamp >> 8 & 31
        bound = lane & segment | clamp & ~segment & 31
        other = {"bfly": lane ^ by, "idx": lane & segment | by & ~segment & 31, "down": lane + by, "up": lane - by}[how]
        inside = other >= bound if how == "up" else other <= bound
        return x[self.warp_start + np.where(inside, other, lane)]

    def reduce(self, x: Array, how: str) -> Array:
        """redux.sync over a whole warp."""
        named = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
        operation = named[how]
        return np.repeat(operation.reduce(x.reshape(-1, 32), axis=1).astype(x.dtype), 32)
