"""What a kernel launch computes and moves: the one place where the ops' FLOP, byte and special-function models meet."""

from __future__ import annotations

from dataclasses import dataclass

from rtm_kernels.errors import InputError
from rtm_kernels.ops.launch import LaunchRow


@dataclass(frozen=True)
class KernelCost:
    """One launch. `flops` are those of the matrix products as executed, with the rows and columns that tiles add."""

    kernel: str
    flops: int
    """Executed floating-point operations of the matrix products, a multiply-add being two."""
    useful: int
    """The same without padding."""
    bytes: int
    """Bytes that must move between memory and the chip: every element read or written, once."""
    special: int
    """Exponentials, reciprocals and square roots."""


@dataclass(frozen=True)
class Limits:
    """What a GPU can do per second at most: matrix FLOPs, bytes, special functions."""

    flops: float
    bytes: float
    special: float

    def seconds(self, cost: KernelCost) -> float:
        """The least time of a launch whose products, traffic and special functions overlap perfectly."""
        return max(cost.flops / self.flops, cost.bytes / self.bytes, cost.special / self.special)


def up(n: int, block: int) -> int:
    """`n` rounded up to whole blocks."""
    return -(n // -block) * block


def row_for(table: tuple[LaunchRow, ...], kernel: str, bits: int, size: int, families: tuple[str, ...]) -> LaunchRow:
    """The first row of `table` that `launch.select` takes on a GPU of these families, in their order.

    Errors: `InputError` when there is none.
    """
    for family in families:
        for row in table:
            if row.kernel == kernel and row.family == family and row.bits in (0, bits) and size <= row.limit:
                return row
    raise InputError(f"kernel={kernel!r} has no launch row for {bits} bits and size {size} in {families}")
