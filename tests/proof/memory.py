"""Memory with properties that torch does not give: fenced by pages that must not be touched, or vast and empty."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
_PRIVATE, _NORESERVE, _READ_WRITE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x4000, mmap.PROT_READ | mmap.PROT_WRITE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@contextmanager
def mapped() -> Iterator[Mapping]:
    """A `Mapping`; its memory goes back at the end."""
    mapping = Mapping()
    try:
        yield mapping
    finally:
        for address, size in mapping.regions:
            _libc.munmap(address, size)


class Mapping:
    """Hands out tensors on pages of their own."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int]] = []

    def _pages(self, size: int) -> int:
        address = _libc.mmap(None, size, _READ_WRITE, _PRIVATE | _NORESERVE, -1, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"mmap of {size} bytes")
        self.regions.append((address, size))
        return address

    def vast(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros that takes memory only where it is touched, however large it is."""
        size = span(shape, stride) * dtype.itemsize
        pages = max(1, -(size // -PAGE)) * PAGE
        return _storage(self._pages(pages), size, dtype).as_strided(shape, stride)

    def fenced(self, tensors: dict[str, Tensor], at_end: bool) -> dict[str, Tensor]:
        """Copies whose last byte (or first, unless `at_end`) lies beside a page that must not be touched.

        Tensors that share memory share it again; the fence is then beside the outermost of them.
        """
        extents: dict[int, tuple[int, int]] = {}
        for t in tensors.values():
            start = t.storage_offset() * t.itemsize
            end = start + span(t.shape, t.stride()) * t.itemsize
            low, high = extents.get(t.untyped_storage().data_ptr(), (start, end))
            extents[t.untyped_storage().data_ptr()] = min(start, low), max(end, high)
        copies: dict[int, int] = {}
        for address, (low, high) in extents.items():
            inner = max(1, -((high - low) // -PAGE)) * PAGE
            region = self._pages(inner + 2 * PAGE)
            for fence in (region, region + PAGE + inner):
                assert _libc.mprotect(fence, PAGE, 0) == 0  # PROT_NONE
            copies[address] = region + PAGE + (inner - (high - low) if at_end else 0)
            ctypes.memmove(copies[address], address + low, high - low)
        fenced = {}
        for name, t in tensors.items():
            key = t.untyped_storage().data_ptr()
            first = copies[key] + t.storage_offset() * t.itemsize - extents[key][0]
            size = span(t.shape, t.stride()) * t.itemsize
            fenced[name] = _storage(first, size, t.dtype).as_strided(t.shape, t.stride())
        return fenced


def span(shape: torch.Size, stride: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor."""
    return sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 if 0 not in shape else 0


def _storage(address: int, size: int, dtype: torch.dtype) -> Tensor:
    if not size:
        return torch.empty(0, dtype=dtype)
    array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return torch.from_numpy(array).view(dtype)
