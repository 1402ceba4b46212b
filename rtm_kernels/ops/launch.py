"""Launch tables: which block sizes, warps and pipeline stages a kernel runs with, as typed data.

Every op folder has a `launch.py` with a `TABLE` of `LaunchRow`. A row is chosen by kernel, GPU family,
element size and a size that is never the batch, so that a sample's result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches, resolve, triton_interpreted

FAMILIES: dict[str, int] = {"hopper": 227 * 1024, "portable": 99 * 1024, "interpreter": 1 << 40}
"""GPU family -> shared memory of one program in bytes. `portable` rows run on every GPU from sm_80 on."""

BIG_SHARED_MEMORY = (90, 100, 103)
"""Compute capabilities with 227 KiB of shared memory per program; they take the `hopper` rows."""


@dataclass(frozen=True)
class LaunchRow:
    """How one kernel runs for one GPU family, element size and shape class.

    `bits` is the element size of the operands (0: any), `limit` the largest size of the shape class, `blocks`
    the kernel's constexpr block sizes. `waiver` is the written reason why the compile gate lets a row spill.
    """

    kernel: str
    family: str
    bits: int
    limit: int
    blocks: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    waiver: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"family={self.family!r} is not one of {', '.join(FAMILIES)}")


@dataclass(frozen=True)
class CompileCase:
    """A named use of an op's launchers with meta tensors, which compiles what it would launch."""

    name: str
    run: Callable[[], object]


def family() -> str:
    """The family of the GPU that Triton would launch on now, or `interpreter`."""
    if triton_interpreted():
        return "interpreter"
    from triton.runtime import driver

    return "hopper" if driver.active.get_current_target().arch in BIG_SHARED_MEMORY else "portable"


def find(table: Iterable[LaunchRow], kernel: str, dtype: torch.dtype, size: int) -> LaunchRow | None:
    """The first row of `table` for this kernel, GPU, dtype and size, `portable` rows last; or None."""
    here, bits = family(), dtype.itemsize * 8
    fits = [row for row in table if row.kernel == kernel and row.bits in (0, bits) and size <= row.limit]
    for wanted in (here,) if here == "interpreter" else (here, "portable"):
        for row in fits:
            if row.family == wanted:
                return row
    return None


def select(table: Iterable[LaunchRow], kernel: str, dtype: torch.dtype, size: int) -> LaunchRow:
    """The first row of `table` for this kernel, GPU, dtype and size. Errors: `BackendUnavailable` without one."""
    row = find(table, kernel, dtype, size)
    if row is None:
        raise BackendUnavailable(f"no launch row of {kernel} for {family()}, {dtype} and size {size}")
    return row


def launch(kernel: Any, row: LaunchRow, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` on `grid` with the row's block sizes, and count it in `impl.launches`."""
    launches[row.kernel] += 1
    kernel[grid](*args, **constants, **row.blocks, num_warps=row.num_warps, num_stages=row.num_stages)


def choose(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """`impl.resolve`, and a refusal of dtypes that Triton would get wrong there: `reference` or `triton`.

    Errors: `BackendUnavailable` when `impl="triton"` names a dtype that the kernels do not compute. float64 runs
    in the interpreter only; Triton's interpreter multiplies bfloat16 bit patterns, so bfloat16 does not run there.
    """
    chosen = resolve(impl, device)
    if chosen == "reference":
        return chosen
    refused = torch.bfloat16 if triton_interpreted() else torch.float64
    if dtype != refused:
        return chosen
    if impl == "triton":
        where = "Triton's interpreter" if triton_interpreted() else "the Triton kernels on a GPU"
        raise BackendUnavailable(f"impl='triton' cannot run: {where} cannot compute {dtype}")
    return "reference"


# What the registered ops of the package do, so that `impl="auto"` traces without a graph break.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]
