"""Launch tables: which block sizes, warps and pipeline stages a kernel runs with, as typed data.

A folder with kernels has a `launch.py` with a `TABLE` of `LaunchRow`. A row is chosen by kernel, GPU family,
element size and a size that is never the batch, so that a sample's result does not depend on its batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rtm_kernels.errors import BackendUnavailable, InputError, one_of, require
from rtm_kernels.impl import launches, resolve, triton_interpreted

FAMILIES: dict[str, int] = {
    "hopper": 227 * 1024, "blackwell": 227 * 1024, "ampere": 163 * 1024, "portable": 99 * 1024, "interpreter": 1 << 40,
}  # fmt: skip
"""GPU family -> shared memory of one program in bytes. `portable` rows run on every GPU from sm_80 on."""

FAMILY_OF = {80: "ampere", 90: "hopper", 100: "blackwell", 103: "blackwell"}
"""Compute capability -> family; every other one (86, 89, 120: 99 KiB) is `portable`."""

FALLBACKS: dict[str, tuple[str, ...]] = {
    "hopper": ("hopper", "portable"),
    "blackwell": ("blackwell", "hopper", "portable"),
    "ampere": ("ampere", "portable"),
    "portable": ("portable",),
    "interpreter": ("interpreter",),
}
"""Family -> the families whose rows run there, in the order in which they are looked up."""

VARIANTS = ("", "tma")
"""How a kernel is written: one program per tile, or programs that loop over tiles, with weights by TMA descriptors."""


@dataclass(frozen=True)
class LaunchRow:
    """How one kernel runs for one GPU family, element size and shape class.

    `bits` is the element size of the operands (0: any), `limit` the largest size of the shape class, `blocks`
    the kernel's constexpr block sizes, `variant` one of `VARIANTS`. `view` names the one view of the latents that the
    row is for ("": every view), `waiver` the reason why the compile gate lets the row spill. Of rows of one shape class
    the first runs; the others are alternatives that the tuner measures against it.
    """

    kernel: str
    family: str
    bits: int
    limit: int
    blocks: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    waiver: str = ""
    variant: str = ""
    view: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"family={self.family!r} is not one of {', '.join(FAMILIES)}")
        one_of("variant", self.variant, VARIANTS)

    @property
    def shape_class(self) -> tuple[str, str, str, int, int]:
        """What the row is chosen by: kernel, view, family, bits and limit."""
        return self.kernel, self.view, self.family, self.bits, self.limit


def family() -> str:
    """The family of the GPU that Triton would launch on now, or `interpreter`."""
    if triton_interpreted():
        return "interpreter"
    from triton.runtime import driver

    return FAMILY_OF.get(driver.active.get_current_target().arch, "portable")


def find(table: Iterable[LaunchRow], kernel: str, dtype: torch.dtype, size: int) -> LaunchRow | None:
    """The first row of `table` for this kernel, GPU, dtype and size, those of the GPU's own family first; or None."""
    bits = dtype.itemsize * 8
    fits = [row for row in table if row.kernel == kernel and row.bits in (0, bits) and size <= row.limit]
    for wanted in FALLBACKS[family()]:
        for row in fits:
            if row.family == wanted:
                for notes in _notes:
                    notes.append(row)
                return next((new for old, new in _substitutes if old is row), row)
    return None


_notes: list[list[LaunchRow]] = []


@contextlib.contextmanager
def noted() -> Iterator[list[LaunchRow]]:
    """A list that every row of a table that is found is added to, in order, whether or not it is launched."""
    notes: list[LaunchRow] = []
    _notes.append(notes)
    try:
        yield notes
    finally:
        _notes[:] = [other for other in _notes if other is not notes]


_substitutes: list[tuple[LaunchRow, LaunchRow]] = []


@contextlib.contextmanager
def substituted(old: LaunchRow, new: LaunchRow) -> Iterator[None]:
    """Where `old`, a row of a table, would be found, `new` is: for tuning and for the gates."""
    _substitutes.insert(0, (old, new))
    try:
        yield
    finally:
        _substitutes[:] = [pair for pair in _substitutes if pair[0] is not old or pair[1] is not new]


@contextlib.contextmanager
def preferring(variant: str, table: Sequence[LaunchRow]) -> Iterator[None]:
    """The rows of this variant run instead of the first ones of their shape classes."""
    first: dict[tuple[str, str, str, int, int], LaunchRow] = {}
    with contextlib.ExitStack() as stack:
        for row in table:
            default = first.setdefault(row.shape_class, row)
            if row.variant == variant and default is not row:
                stack.enter_context(substituted(default, row))
        yield


def select(table: Iterable[LaunchRow], kernel: str, dtype: torch.dtype, size: int) -> LaunchRow:
    """The first row of `table` for this kernel, GPU, dtype and size. Errors: `BackendUnavailable` without one."""
    row = find(table, kernel, dtype, size)
    if row is None:
        raise BackendUnavailable(f"no launch row of {kernel} for {family()}, {dtype} and size {size}")
    return row


@functools.cache
def programs(device: torch.device) -> int:
    """How many programs share the tiles of a launch whose programs loop: one for each multiprocessor, 3 without any."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def launch(kernel: Any, row: LaunchRow, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` on `grid` with the row's block sizes, and count it in `impl.launches`.

    Errors: `InputError` for 2^31 or more programs, which CUDA does not number.
    """
    require(grid[0] < 1 << 31, "grid", grid, "fewer than 2^31 programs in a launch: use a smaller batch")
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
