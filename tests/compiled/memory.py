"""Global memory: the tensors of a launch, each far from all others. Every access is aligned and inside one of them."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from tests.compiled.ptx import Fault
from tests.compiled.threads import Array, Mask, Threads

FAR = 1 << 48
"""Between the addresses of two buffers, and above those of the process: no index that is wrong finds another tensor."""


class Buffer:
    """The memory of a tensor, at `start` for the kernel, which may touch the bytes from `low` up to `high`."""

    def __init__(self, tensor: Tensor, name: str, start: int) -> None:
        self.storage = tensor.untyped_storage()
        self.name, self.start, self.cell = name, start, tensor.element_size()
        self.moved = start - self.storage.data_ptr()
        self.dtype: torch.dtype | None = tensor.dtype
        """None: tensors of several share the memory."""
        self.low, self.high = (self.moved + at for at in extent(tensor))
        memory = (ctypes.c_uint8 * self.storage.nbytes()).from_address(self.storage.data_ptr())
        array = np.frombuffer(memory, np.uint8)
        self.as_width = {w: array[: len(array) // w * w].view(f"u{w}") for w in (1, 2, 4, 8)}
        self.before, self.shadow = array.copy(), None  # type: Array, Any


def extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor and of the first one behind it."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


class Memory:
    """The buffers of one launch."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def state(self) -> list[Array]:
        """What is in the buffers."""
        return [b.as_width[1].copy() for b in self.buffers]

    def fill(self, kept: Sequence[Array]) -> None:
        """Make the buffers what they were, for another run: the first as kept, others as before they were touched."""
        for n, buffer in enumerate(self.buffers):
            buffer.as_width[1][:], buffer.shadow = kept[n] if n < len(kept) else buffer.before, None

    def add(self, tensor: Tensor, name: str, moved: bool = True) -> int:
        """A tensor that the kernel may touch, and its address; views of one storage share a buffer."""
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            return 0
        at = storage.data_ptr()
        found = next((b for b in self.buffers if b.storage.data_ptr() == at and (b.start != at) == moved), None)
        if found is None:
            start = FAR * (len(self.buffers) + 1) + at % 4096 if moved else at
            self.buffers.append(found := Buffer(tensor, name, start))
        low, high = (found.moved + at for at in extent(tensor))
        found.low, found.high = min(found.low, low), max(found.high, high)
        found.cell = min(found.cell, tensor.element_size())
        found.dtype = found.dtype if found.dtype == tensor.dtype else None
        return tensor.data_ptr() + found.moved

    def at(self, address: int) -> Buffer | None:
        """The buffer at an address, or that of a live tensor, whose address the kernel may have read from memory."""
        if found := next((b for b in self.buffers if b.low <= address < b.high), None):
            return found
        for tensor in gc.get_objects() if address < FAR else ():
            if type(tensor) in (Tensor, Parameter) and (tensor.device.type, tensor.layout) == ("cpu", torch.strided):
                low, high = extent(tensor)
                if low <= address < high:
                    self.add(tensor, "a tensor reached by its address", moved=False)
                    return self.at(address)
        return None

    def parts(self, address: Array, size: int, line: int) -> Iterator[tuple[Buffer, Array]]:
        """Buffers, and which of the accesses of `size` bytes at these addresses go there. Errors: `Fault`."""
        if (address & np.uint64(size - 1)).any():
            raise Fault(f"line {line}: global access of {size} bytes that is not aligned")
        left = np.ones(len(address), bool)
        while left.any():
            first = int(address[left.argmax()])
            buffer = self.at(first)
            inside = left & (address >= buffer.low) & (address + np.uint64(size) <= buffer.high) if buffer else ~left
            if buffer is None or not inside[left.argmax()]:
                names = ", ".join(f"{b.name} {b.low:#x} to {b.high:#x}" for b in self.buffers)
                raise Fault(f"line {line}: global access of {size} bytes at {first:#x} is outside of {names}")
            yield buffer, inside
            left &= ~inside


class GlobalMemory(Threads):
    """Loads, stores and atomics on global memory."""

    memory: Memory

    def load_global(
        self, address: Array, size: int, count: int, mask: Mask, line: int, acquire: bool = False, by_l1: bool = False
    ) -> list[Array]:
        """`count` values of `size` bytes per thread."""
        threads = self.chosen(mask)
        out = np.zeros((count, len(threads)), f"u{size}")
        address = address[threads]
        if acquire:
            self.watch.acquire(self, threads, address)
        for buffer, inside in self.memory.parts(address, size * count, line):
            at = ((address[inside] - np.uint64(buffer.start)) // np.uint64(size)).astype(np.int64)
            if not acquire:
                self.watch.read_global(self, buffer, at * size, size * count, threads[inside], line, by_l1)
            for k in range(count):
                out[k, inside] = buffer.as_width[size][at + k]
        return [self.spread(threads, row) for row in out]

    def store_global(self, address: Array, size: int, values: tuple[Array, ...], mask: Mask, line: int) -> None:
        threads = self.chosen(mask)
        address = address[threads]
        given = [self.full(v)[threads] for v in values]
        for buffer, inside in self.memory.parts(address, size * len(values), line):
            at = ((address[inside] - np.uint64(buffer.start)) // np.uint64(size)).astype(np.int64)
            view = buffer.as_width[size]
            same = np.logical_and.reduce([view[at + k] == v[inside] for k, v in enumerate(given)])
            self.watch.write_global(self, buffer, at * size, size * len(values), threads[inside], line, same)
            for k, v in enumerate(given):
                view[at + k] = v[inside]
            self.watch.one_value(line, [view[at + k] == v[inside] for k, v in enumerate(given)])

    def atomic(self, address: Array, values: tuple[Array, ...], what: str, order: str, mask: Mask, line: int) -> Array:
        """One thread after the other: what was there before."""
        out = np.zeros(self.N, values[0].dtype)
        size = out.dtype.itemsize
        for t in self.chosen(mask):
            ((buffer, _),) = self.memory.parts(address[t : t + 1], size, line)
            view = buffer.as_width[size].view(out.dtype)
            at = (int(address[t]) - buffer.start) // size
            old, x = view[at], values[0][t]
            out[t] = old
            if what == "cas":
                view[at] = values[1][t] if old == x else old
            else:
                results = {"add": old + x, "exch": x, "max": max(old, x), "min": min(old, x)}
                view[at] = results[what]
            one = np.array([t])
            if order in ("release", "acq_rel"):
                self.watch.release(self, t, int(address[t]))
            if order in ("acquire", "acq_rel"):
                self.watch.acquire(self, one, address[one])
        return out
