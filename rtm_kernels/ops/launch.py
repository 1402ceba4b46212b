"""How an op starts: checks of its arguments, the implementation that runs, and launches by tables of typed data.

A folder with kernels has a `TABLE` of `LaunchRow`. A row is chosen by kernel, GPU family, element size, a size that is
never the batch, and in some kernels by a bucket of the number of rows: a sample's bits do not depend on its batch
within a bucket.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError, one_of, require
from rtm_kernels.impl import launches, resolve, triton_interpreted
from rtm_kernels.ops import interpreted

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

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

ANY = 1 << 30
"""The limit of a row for every size."""

VARIANTS = ("", "tma")
"""How a kernel is written: one program per tile, or programs that loop over tiles, with weights by TMA descriptors."""


@dataclass(frozen=True)
class LaunchRow:
    """How one kernel runs for one GPU family, element size and shape class.

    `bits` is the element size of the operands (0: any), `limit` the largest size of the shape class, `blocks`
    the kernel's constexpr block sizes, `variant` one of `VARIANTS`. `view` names the one view of the latents that the
    row is for ("": every view), `least` and `rows` the fewest and the most rows of all samples that it is for: the
    bucket. `waiver` is the reason why the compile gate lets the row spill. Of rows of one shape class the first runs;
    the others are alternatives that the tuner measures against it.
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
    least: int = 0
    rows: int = ANY

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"family={self.family!r} is not one of {', '.join(FAMILIES)}")
        one_of("variant", self.variant, VARIANTS)

    @property
    def shape_class(self) -> tuple[str, str, str, int, int, int, int]:
        """What the row is chosen by: kernel, view, family, bits, limit and bucket."""
        return self.kernel, self.view, self.family, self.bits, self.limit, self.least, self.rows


TUNED = Path(__file__).with_name("tuned.json")
"""Launch rows that were measured, which `python -m benchmarks.tune --write` changes and a diff shows.

One object per row: `op` (the folder of the launch table), the row's fields, and `measured` (GPU, commit, versions,
ratio to the row of the table and the lower end of its interval). Empty until a GPU has measured something.
"""
FIELDS = tuple(field.name for field in fields(LaunchRow))


@functools.cache
def entries(path: Path = TUNED) -> tuple[Mapping[str, Any], ...]:
    """What the file holds. Errors: `InputError` for a file that is not a list of such objects."""
    found = json.loads(path.read_text())
    require(isinstance(found, list), str(path), type(found).__name__, "a list of rows")
    for entry in found:
        known = isinstance(entry, dict) and set(entry) == {"op", *FIELDS, "measured"}
        require(known, str(path), entry, f"the fields op, {', '.join(FIELDS)} and measured")
    return tuple(found)


def row_of(entry: Mapping[str, Any]) -> LaunchRow:
    """The launch row of an entry."""
    return LaunchRow(**{name: entry[name] for name in FIELDS})


def tuned(
    op: str, table: Iterable[LaunchRow], found: Sequence[Mapping[str, Any]] | None = None
) -> tuple[LaunchRow, ...]:
    """`table` with each measured row of `op` first in its shape class.

    It takes the place of the row of its class and variant; other variants stay as alternatives. A row measured where
    only the rows of a fallback family ran becomes the first of a class of its own.

    Errors: `InputError` for a measured row that matches no row of the table by kernel, view, bits, limit, bucket,
    variant and the names of its blocks.
    """
    rows = list(table)
    for entry in entries() if found is None else found:
        if entry["op"] == op:
            _insert(rows, row_of(entry), op)
    return tuple(rows)


def _insert(rows: list[LaunchRow], new: LaunchRow, op: str) -> None:
    def alike(row: LaunchRow) -> bool:
        names = ("kernel", "view", "bits", "limit", "least", "rows", "variant")
        same = all(getattr(row, name) == getattr(new, name) for name in names)
        return same and row.family in FALLBACKS[new.family] and set(row.blocks) == set(new.blocks)

    replaced = [i for i, row in enumerate(rows) if alike(row)]
    if not replaced:
        raise InputError(f"{new} of tuned.json is not a row of {op}: its shape class or its blocks are unknown")
    for i in replaced:
        if rows[i].family == new.family:
            del rows[i]
            break
    later = (
        i for i, row in enumerate(rows) if (row.kernel, row.view, row.family) == (new.kernel, new.view, new.family)
    )
    place = new.rows, new.limit  # buckets ascend, and limits in each
    rows.insert(next((i for i in later if (rows[i].rows, rows[i].limit) >= place), len(rows)), new)


def family() -> str:
    """The family of the current GPU, on which Triton would launch now, or `interpreter`: ask it where the device of the
    tensors is the current one."""
    if triton_interpreted():
        return "interpreter"
    from triton.runtime import driver

    return FAMILY_OF.get(driver.active.get_current_target().arch, "portable")


hooks: list[Callable[[LaunchRow], LaunchRow]] = []
"""What every row that `find` finds goes through: tuning and the gates note rows here, and run others in their place."""


def find(table: Iterable[LaunchRow], kernel: str, dtype: torch.dtype, size: int, rows: int = ANY) -> LaunchRow | None:
    """The first row of `table` for this kernel, GPU, dtype, size and number of rows, or None.

    Those of the GPU's own family come first.
    """
    bits, rows = dtype.itemsize * 8, min(rows, ANY)
    fits = [
        row for row in table
        if row.kernel == kernel and row.bits in (0, bits) and size <= row.limit and row.least <= rows <= row.rows
    ]  # fmt: skip
    for wanted in FALLBACKS[family()]:
        for row in fits:
            if row.family == wanted:
                return functools.reduce(lambda found, hook: hook(found), hooks, row)
    return None


def select(table: Iterable[LaunchRow], kernel: str, dtype: torch.dtype, size: int, rows: int = ANY) -> LaunchRow:
    """What `find` finds. Errors: `BackendUnavailable` without a row."""
    row = find(table, kernel, dtype, size, rows)
    if row is None:
        raise BackendUnavailable(f"no launch row of {kernel} for {family()}, {dtype} and size {size}")
    return row


@functools.cache
def multiprocessors(device: torch.device, otherwise: int) -> int:
    """Programs of a launch whose programs loop: one for each multiprocessor of a GPU, so many on other devices."""
    if device.type != "cuda":
        return otherwise
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def launch(kernel: Any, row: LaunchRow, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` on `grid` with the row's block sizes, and count it in `impl.launches`.

    A row whose block OVERLAP is 1 starts before the launch before has ended, and its kernel waits for that.

    Errors: `InputError` for 2^31 or more programs, which CUDA does not number.
    """
    require(grid[0] < 1 << 31, "grid", grid, "fewer than 2^31 programs in a launch: use a smaller batch")
    launches[row.kernel] += 1
    if row.family == "interpreter":
        interpreted.prepare()
    how = {"launch_pdl": True} if row.blocks.get("OVERLAP") else {}
    kernel[grid](*args, **constants, **row.blocks, num_warps=row.num_warps, num_stages=row.num_stages, **how)


def choose(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """`impl.resolve`, and a refusal of float64, which the kernels do not compute on a GPU: `reference` or `triton`.

    Errors: `BackendUnavailable` when `impl="triton"` is asked for float64 outside of Triton's interpreter.
    """
    chosen = resolve(impl, device)
    if chosen == "reference" or dtype != torch.float64 or triton_interpreted():
        return chosen
    if impl == "triton":
        raise BackendUnavailable(f"impl='triton' cannot run: the Triton kernels on a GPU cannot compute {dtype}")
    return "reference"


# What the registered ops of the package do, so that `impl="auto"` traces without a graph break.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_latent(x: Tensor, injection: Sequence[Tensor], eps: float) -> None:
    """x is a floating-point tensor, and every injection term equals it in shape, dtype and device."""
    require(x.dtype in FLOATING, "x.dtype", x.dtype, "float32, bfloat16, float16 or float64")
    for i, term in enumerate(injection):
        name = f"injection[{i}]"
        require(term.shape == x.shape, f"{name}.shape", tuple(term.shape), f"x's shape {tuple(x.shape)}")
        require(term.dtype == x.dtype, f"{name}.dtype", term.dtype, f"x's dtype {x.dtype}")
        require(term.device == x.device, f"{name}.device", term.device, f"x's device {x.device}")
    require(eps >= 0, "eps", eps, "a number that is not negative")


def check_weight(x: Tensor, name: str, weight: Tensor, shape: tuple[int, ...], given: str) -> None:
    """A weight is floating-point, on x's device, and of the `shape` that follows from `given`, such as "D=512"."""
    require(tuple(weight.shape) == shape, f"{name}.shape", tuple(weight.shape), f"{shape} for {given}")
    require(weight.dtype in FLOATING, f"{name}.dtype", weight.dtype, "a floating-point dtype")
    require(weight.device == x.device, f"{name}.device", weight.device, f"x's device {x.device}")
    require(weight.numel() < 2**31, f"{name}.shape", tuple(weight.shape), "fewer than 2^31 elements")


def to_autocast_dtype(x: Tensor, injection: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x and the injection in the autocast dtype where autocast is on for x's device, as a matrix product takes them.

    As there, float64 and integers stay as they are. A recursion mixes dtypes under autocast: latents that a layer
    gave are in the autocast dtype, the first ones and the input embedding need not be.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, tuple(injection)
    dtype = torch.get_autocast_dtype(device)
    low = (torch.float32, torch.bfloat16, torch.float16)
    cast = [t.to(dtype) if t.dtype in low else t for t in (x, *injection)]
    return cast[0], tuple(cast[1:])


class _FirstOrder(torch.autograd.Function):
    """Gradients as they are, which say in one line that they are not differentiable again."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"the kernels of {ctx.name} have no second derivative; impl='reference' computes it")


def first_order(name: str, op: Any, dy: Tensor, *saved: Any) -> tuple[Tensor, ...]:
    """The gradients of a backward op. Where a graph of them is made, a second derivative is refused by `name`."""
    with torch.no_grad():
        found: Any = op(dy, *saved)
    grads = (found,) if isinstance(found, Tensor) else tuple(found)
    if not torch.is_grad_enabled():
        return grads
    tensors = [t for t in (dy, *saved) if isinstance(t, Tensor)]
    return tuple(_FirstOrder.apply(name, len(grads), *grads, *tensors))
