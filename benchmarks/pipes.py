"""What a program does to each pipe of a multiprocessor, from executed compiled code.

The first program of a launch is executed on a CPU (`tests/compiled`). Noted are the blocks that ran in their order, the
bytes that each warp asks L2 for and the bank conflicts of its accesses to shared memory; `pipes` has the rest.
PTX instructions stand for those of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.compiled import launching
from tests.compiled.products import Machine
from tests.compiled.ptx import Group, Instruction

SMS, CLOCK = 132, 1.755e9
"""Multiprocessors of an H200, and their clock under load (at most 1.98 GHz)."""
TENSOR = 790e12 / SMS / CLOCK
"""FLOPs per clock of a multiprocessor in 16 bits, of 4096 at most: what others measured on an H200 with random data."""
SHARED, LANES, INTEGERS, SPECIAL, WARPS = 128, 128, 64, 16, 4
"""Per clock of a multiprocessor: bytes of shared memory, float32, integer and special functions, and instructions of
warps that are issued."""


class Silent:
    """In the place of the search for races."""

    found: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def sectors(address: Any, size: int, lanes: Any) -> int:
    """Bytes of the sectors of 32 that the accesses of each warp touch."""
    key = np.unique((lanes // 32).astype(np.int64) << 58 | (address[lanes] >> np.uint64(5)).astype(np.int64))
    return max(32, size) * len(key)


def wavefronts(at: Any, size: int, lanes: Any) -> int:
    """Clocks of shared accesses of `size` bytes: 128 bytes at a time, words of one bank in turn."""
    together = max(1, 32 * size // 128)
    words = (at[lanes].astype(np.int64)[:, None] // 4 + np.arange(max(1, size // 4))).ravel()
    phase = np.repeat(lanes // 32 * together + lanes % 32 * together // 32, max(1, size // 4))
    places = np.unique(phase << 32 | words)
    banks = (places >> 32) * 32 + places % 32
    phases, counts = np.unique(banks, return_counts=True)
    out: dict[int, int] = {}
    for p, c in zip((phases // 32).tolist(), counts.tolist(), strict=True):
        out[p] = max(out.get(p, 0), c)
    return sum(out.values())


class Traced(Machine):
    """A machine that notes what it runs: (block, warps, costs of its accesses to memory in order)."""

    def start(self) -> None:
        super().start()
        self.trace: list[tuple[int, int, list[Any]]] = []
        self.touched: dict[tuple[int, bool], int] = {}  # start of a tensor, written or not -> its bytes
        self.inside = False

    def step(self) -> None:
        n = min(self.groups)
        mask = self.groups[n]
        warps = self.N // 32 if mask is None else int(mask.reshape(-1, 32).any(1).sum())
        self.trace.append((n, warps, []))
        super().step()

    def touch(self, address: Any, threads: Any, written: bool) -> None:
        if len(threads) and (buffer := self.memory.at(int(address[threads[0]]))):
            self.touched[buffer.low, written] = buffer.high - buffer.low

    def note(self, cost: Any, call: Callable[..., Any], *args: Any) -> Any:
        if self.inside:
            return call(*args)
        self.trace[-1][2].append(cost())
        self.inside = True
        try:
            return call(*args)
        finally:
            self.inside = False

    def load_global(self, address: Any, size: int, count: int, mask: Any, *rest: Any) -> Any:
        self.touch(address, self.chosen(mask), False)
        cost = lambda: sectors(address, size * count, self.chosen(mask))  # noqa: E731
        return self.note(cost, super().load_global, address, size, count, mask, *rest)

    def store_global(self, address: Any, size: int, values: Any, mask: Any, line: int) -> None:
        self.touch(address, self.chosen(mask), True)
        cost = lambda: sectors(address, size * len(values), self.chosen(mask))  # noqa: E731
        self.note(cost, super().store_global, address, size, values, mask, line)

    def atomic(self, address: Any, values: Any, what: str, order: str, mask: Any, line: int) -> Any:
        if order == "release":  # the arrival at a grid barrier: those who do not run arrive with it
            from rtm_kernels.recursion.persistent.device import GRID_LIMIT

            values = (np.full_like(values[0], GRID_LIMIT.value),)
        return self.note(lambda: 32, super().atomic, address, values, what, order, mask, line)

    def load_shared(self, address: Any, size: int, count: int, mask: Any, line: int) -> Any:
        cost = lambda: wavefronts(address, size * count, self.chosen(mask))  # noqa: E731
        return self.note(cost, super().load_shared, address, size, count, mask, line)

    def store_shared(self, address: Any, size: int, values: Any, mask: Any, line: int) -> None:
        cost = lambda: wavefronts(address, size * len(values), self.chosen(mask))  # noqa: E731
        self.note(cost, super().store_shared, address, size, values, mask, line)

    def load_matrix(self, address: Any, count: int, transposed: bool, mask: Any, line: int) -> Any:
        cost = lambda: wavefronts(address, 16, self.rows(count, mask))  # noqa: E731
        return self.note(cost, super().load_matrix, address, count, transposed, mask, line)

    def store_matrix(self, address: Any, values: Any, transposed: bool, mask: Any, line: int) -> None:
        cost = lambda: wavefronts(address, 16, self.rows(len(values), mask))  # noqa: E731
        self.note(cost, super().store_matrix, address, values, transposed, mask, line)

    def rows(self, count: int, mask: Any) -> Any:
        """Threads that give the addresses of `count` matrices."""
        threads = self.chosen(mask)
        return threads[threads % 32 < 8 * count]

    def copy(self, to: Any, source: Any, size: int, count: Any, mask: Any, line: int) -> None:
        threads = self.chosen(mask)
        wanted = threads if count is None else threads[count[threads] > 0]
        self.note(lambda: sectors(source, size, wanted), super().copy, to, source, size, count, mask, line)

    def copy_tile(self, to: Any, descriptor: Any, place: Any, barrier: Any, mask: Any, line: int) -> None:
        tiles = [(self.tensor_maps[int(descriptor[t])], key) for t, key in self.each(barrier, mask)]
        size = sum(m.box[0] * m.box[1] * m.matrix.element_size() for m, _ in tiles)
        self.touched.update({(m.matrix.data_ptr(), False): m.matrix.nbytes for m, _ in tiles})
        where = tiles[0][1] if tiles else None
        self.note(lambda: (size, where), super().copy_tile, to, descriptor, place, barrier, mask, line)

    def passed(self, address: Any, parity: Any, mask: Any) -> Any:
        key = next((key for _, key in self.each(address, mask)), None)
        return self.note(lambda: key, super().passed, address, parity, mask)


def pipes(i: Instruction) -> Iterator[tuple[str, float]]:
    """Clocks that an instruction of one warp takes of each pipe but those of memory."""
    first, kind = i.parts[0], i.parts[-1]
    if first in ("mov", "cvta", "bra", "ret") or i.op.startswith("ld.param"):
        return
    yield "issue", 1 / WARPS
    if i.accumulates:
        n = int(re.findall(r"n(\d+)k16", i.op)[0])
        yield "tensor", 2 * 64 * n * 16 / TENSOR / 4
        rows = n + (0 if isinstance(i.args[1], Group) else 64)  # of operands in shared memory
        yield "shared", rows * 16 * 2 / SHARED / 4
    elif first == "mma":
        yield "tensor", 2 * 16 * 8 * 16 / TENSOR
    elif first in ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos") or i.op.startswith("div.full"):
        yield "special", 32 / SPECIAL
    elif kind in ("f32", "bf16x2", "f16x2") and first in ("add", "sub", "mul", "fma", "min", "max", "neg"):
        yield "alu", 32 / LANES
    elif first not in (
        "ld",
        "st",
        "cp",
        "ldmatrix",
        "stmatrix",
        "atom",
        "bar",
        "barrier",
        "mbarrier",
        "wgmma",
        "fence",
    ):
        yield "alu", 32 / INTEGERS


@contextmanager
def tracing(after: Callable[[str, Any, Traced], None]) -> Iterator[None]:
    """Launches within, on CPU tensors, as compiled for sm_90: of each the first program is executed, and `after` sees
    the name of its function, what was compiled, and the machine with its trace."""
    kept = launching.Machine, launching.Watch
    launching.Machine, launching.Watch = Traced, lambda *args: Silent()  # type: ignore[misc, assignment]
    try:
        with launching.installed(90) as executor:
            executor.most_programs, executor.after, launch = 1, after, executor.launch

            def alone(binary: Any, function: Any, args: Any, kwargs: Any, grid: Any) -> None:
                plain = {k: v for k, v in kwargs.items() if k != "launch_cooperative_grid"}
                launch(binary, function, args, plain, grid)

            executor.launch = alone  # type: ignore[method-assign]
            yield
    finally:
        launching.Machine, launching.Watch = kept  # type: ignore[misc]
