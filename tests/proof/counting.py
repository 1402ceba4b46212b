"""What interpreted launches do, counted: FLOPs of dots, exponentials, square roots, distinct bytes read or written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from triton.runtime import interpreter

from tests.proof.launching import Launch, every_launch


@dataclass
class Counted:
    """One launch."""

    kernel: str
    flops: int = 0
    exponentials: int = 0
    roots: int = 0
    read: list[Any] = field(default_factory=list)
    written: list[Any] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of the distinct elements that were read, and of those that were written."""
        return sum(_distinct(accesses) for accesses in (self.read, self.written))


def _distinct(accesses: list[tuple[Any, int]]) -> int:
    by_size: dict[int, list[Any]] = {}
    for addresses, size in accesses:
        by_size.setdefault(size, []).append(addresses)
    return sum(size * len(np.unique(np.concatenate(found))) for size, found in by_size.items())


@contextmanager
def counting() -> Iterator[list[Counted]]:
    """Count every launch; yields the counts so far."""
    builder, counts = interpreter.interpreter_builder, []
    names = ("create_dot", "create_exp", "create_sqrt", "create_masked_load", "create_masked_store")
    real = {name: getattr(builder, name) for name in names}

    def note(pointers: Any, mask: Any, into: str) -> None:
        size = pointers.dtype.element_ty.primitive_bitwidth // 8
        getattr(counts[-1], into).append((np.asarray(pointers.data)[np.asarray(mask.data, dtype=bool)].ravel(), size))

    def dot(a: Any, b: Any, *rest: Any) -> Any:
        counts[-1].flops += 2 * a.data.shape[-2] * a.data.shape[-1] * b.data.shape[-1]
        return real["create_dot"](a, b, *rest)

    def exp(x: Any) -> Any:
        counts[-1].exponentials += x.data.size
        return real["create_exp"](x)

    def sqrt(x: Any) -> Any:
        counts[-1].roots += x.data.size
        return real["create_sqrt"](x)

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, "read")
        return real["create_masked_load"](pointers, mask, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, "written")
        return real["create_masked_store"](pointers, value, mask, *rest)

    def run(launch: Launch) -> None:
        counts.append(Counted(launch.kernel))
        launch.run()

    for name, counted in zip(names, (dot, exp, sqrt, load, store), strict=True):
        setattr(builder, name, counted)
    try:
        with every_launch(run):
            yield counts
    finally:
        for name in names:
            delattr(builder, name)
