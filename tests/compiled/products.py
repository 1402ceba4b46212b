"""Matrix products: mma.sync in registers, and wgmma, which runs beside the threads from issue to wait.

Exact products are summed in float32 by numpy; how tensor cores round sums of 16 products is not modelled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.compiled.codegen import SHARED_START
from tests.compiled.layouts import a_fragment, accumulators, b_fragment, offsets, swizzled
from tests.compiled.ptx import Fault
from tests.compiled.shared import SharedMemory
from tests.compiled.threads import Array, Mask

GROUP = 128
"""Threads of a warpgroup."""


class Machine(SharedMemory):
    """Some programs of a launch with all that they can do."""

    def start(self) -> None:
        super().start()
        self.places_of: dict[Any, tuple[Array, Array]] = {}  # descriptor -> elements in shared memory
        self.products: list[list[list[Any]]] = [[[]] for _ in range(max(self.N // GROUP, 1))]
        """Of each warpgroup the groups of products under way, the last of them not committed yet."""

    def product(self, a: Array, b: Array, c: Array, kind: str) -> Array:
        """mma.sync: c + a b, with fragments as in `layouts`."""
        return accumulators(a_fragment(a, kind) @ b_fragment(b, kind)) + c

    def warpgroups(self, mask: Mask) -> Any:
        return range(len(self.products)) if mask is None else np.unique(mask.nonzero()[0] // GROUP)

    def matrix(self, descriptor: int, rows: int, transposed: bool, program: int, line: int) -> tuple[Array, Array]:
        """Elements [rows, 16] in the batch's shared memory that a descriptor names, in order, and their set."""
        key = descriptor, rows, transposed, program
        if key not in self.places_of:
            plain, bits = offsets(descriptor >> 16, rows, transposed)
            at = swizzled(((descriptor & 0x3FFF) << 4) + plain, bits)
            if at.min() < SHARED_START or at.max() + 2 > self.shared_end:
                raise Fault(f"line {line}: wgmma reads outside of shared memory")
            at = at + program * self.stride
            self.places_of[key] = at // 2, np.unique(at)
        return self.places_of[key]

    def product_async(
        self, d: Array, a: Array, b: Array, added: Any, n: int, transposed: list[bool], kind: str, mask: Mask, line: int
    ) -> Array:
        """wgmma: (d +) a b of every warpgroup, a [64, 16] in registers or shared memory, b [16, n] in shared memory."""
        groups = list(self.warpgroups(mask))
        read: dict[int, list[Array]] = {g: [] for g in groups}

        def values(descriptors: Array, rows: int, turned: bool) -> Array:
            out = np.zeros((len(self.products), rows, 16), np.float32)
            for g in groups:
                own = descriptors[g * GROUP : (g + 1) * GROUP]
                if (own != own[0]).any():
                    raise Fault(f"line {line}: a descriptor differs within a warpgroup")
                at, cells = self.matrix(int(own[0]), rows, turned, int(self.of[g * GROUP]), line)
                read[g].append(cells)
                raw = self.shared_as[2][at]
                wide = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
                out[g] = wide if kind == "bf16" else raw.view(np.float16).astype(np.float32)
            return out

        in_registers = np.ndim(a) == 2
        rows = a_fragment(a, kind).reshape(-1, 64, 16) if in_registers else values(a, 64, transposed[0])
        columns = values(b, n, transposed[1])
        product = accumulators((rows @ columns.transpose(0, 2, 1)).reshape(-1, 16, n))
        for g in groups:
            self.watch.product_begins(self, read[g], g * GROUP, line)
            self.products[g][-1] += [(read[g], line)]
        return np.where(added, product + d, product)

    def commit_products(self, mask: Mask) -> None:
        for g in self.warpgroups(mask):
            self.products[g].append([])

    def wait_for_products(self, pending: int, mask: Mask) -> None:
        for g in self.warpgroups(mask):
            while len(self.products[g]) > pending + 1:
                for cells, line in self.products[g].pop(0):
                    self.watch.product_ends(self, cells, g * GROUP, line)
