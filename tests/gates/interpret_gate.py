"""Interpreter gate: every kernel, forward and backward, interpreted on CPU and held to the float64 reference.

    python -m tests.gates.interpret_gate [FILTER ...]

Protocol. A file `tests/gates/interpret_<op>.py` has one function:

    def interpret_cases() -> Iterator[OpCase]

`OpCase(op, shape, make, call)`: `make(generator)` returns the op's tensors by name in float32 (those that require
grad are differentiated; layouts such as strides and offsets are kept), `call(impl, tensors)` runs the op on them
and returns a tensor or a tuple of tensors.

Each case runs three times: the reference in float64 (the truth), the reference in float32 (the baseline) and
`impl="triton"` in float32, with the same random upstream gradients. It passes when every output and gradient has
`error <= 2 * baseline error + floor`, in the maximum and in the Frobenius norm, both against float64, and when
kernels were launched. New tensors are filled with NaN, so an output that is not written is seen.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import argparse
import importlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rtm_kernels.impl import launches
from tests.interpreter import take_loop_bounds

FLOOR = 4
"""Allowed on top of twice the baseline's error: epsilons of the result's dtype, times the truth's size."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class OpCase:
    """One op at one shape and layout; see the protocol above."""

    op: str
    shape: str
    make: Callable[[torch.Generator], dict[str, Tensor]]
    call: Callable[[str, Tensors], Tensor | tuple[Tensor, ...]]
    scope: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered around the case, backward included: `preferring` rows, for one."""


@dataclass
class Outcome:
    """What one case gave: the worst `error / budget` over outputs and over gradients, and what failed."""

    case: OpCase
    forward: float = 0.0
    backward: float = 0.0
    launches: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def as_dtype(tensor: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A leaf with the values, layout and offset of `tensor` in another dtype, and on another device if one is given."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 if tensor.numel() else 0
    offset = tensor.storage_offset()
    storage = torch.zeros(offset + span, dtype=dtype, device=device or tensor.device)
    storage[offset:] = tensor.detach().as_strided((span,), (1,), offset)
    return storage.as_strided(tensor.shape, tensor.stride(), offset).requires_grad_(tensor.requires_grad)


def run(
    case: OpCase, impl: str, tensors: Tensors, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients by name under fixed random upstream gradients."""
    with case.scope():
        return _run(case, impl, tensors, dtype, device)


def _run(
    case: OpCase, impl: str, tensors: Tensors, dtype: torch.dtype, device: torch.device | None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    leaves = {name: as_dtype(tensor, dtype, device) for name, tensor in tensors.items()}
    result = case.call(impl, leaves)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    smooth = [out for out in outputs if out.requires_grad]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in smooth]
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not smooth or not wanted:
        return outputs, {}
    return outputs, dict(zip(wanted, torch.autograd.grad(smooth, list(wanted.values()), upstream), strict=True))


def ratio(result: Tensor, baseline: Tensor, truth: Tensor) -> float:
    """`error / (2 * baseline error + floor)`, the worse of maximum and Frobenius norm; at most 1 passes."""
    if result.shape != truth.shape:
        return float("inf")
    if not truth.numel():
        return 0.0
    truth = truth.double()
    worst = 0.0
    for size in (lambda t: t.abs().max(), torch.linalg.vector_norm):
        error, base, scale = size(result.double() - truth), size(baseline.double() - truth), size(truth)
        floor = FLOOR * (torch.finfo(result.dtype).eps if result.is_floating_point() else 0.0) * scale
        worst = max(worst, (error / (2 * base + floor + 1e-30)).nan_to_num(float("inf")).item())
    return worst


def rounded(case: OpCase, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a case in float32, with values that `dtype` holds."""
    tensors = case.make(torch.Generator().manual_seed(seed))
    return {name: as_dtype(as_dtype(t, dtype), torch.float32) for name, t in tensors.items()}


def check(
    case: OpCase, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device | None = None
) -> Outcome:
    """Run one case in `dtype` against its reference in the same dtype and in float64, all on one device."""
    outcome = Outcome(case)
    tensors = rounded(case, dtype, seed)
    truth, truth_grads = run(case, "reference", tensors, torch.float64, device)
    base, base_grads = run(case, "reference", tensors, dtype, device)
    launches.clear()
    start = time.perf_counter()
    outputs, grads = run(case, "triton", tensors, dtype, device)
    outcome.seconds, outcome.launches = time.perf_counter() - start, launches.total()
    for i, (out, b, t) in enumerate(zip(outputs, base, truth, strict=True)):
        outcome.forward = max(outcome.forward, value := ratio(out, b, t))
        if value > 1:
            outcome.failures.append(f"output {i}: {value:.3g} x budget")
    for name, t in truth_grads.items():
        outcome.backward = max(outcome.backward, value := ratio(grads[name], base_grads[name], t))
        if value > 1:
            outcome.failures.append(f"d_{name}: {value:.3g} x budget")
    if not outcome.launches and any(t.numel() == 0 for t in tensors.values()) is False:
        outcome.failures.append("no kernel was launched")
    return outcome


def all_cases() -> Iterator[OpCase]:
    """The cases of every `interpret_<op>.py` beside this file."""
    for path in sorted(Path(__file__).parent.glob("interpret_*.py")):
        if path.name != "interpret_gate.py":
            yield from importlib.import_module(f"tests.gates.{path.stem}").interpret_cases()


def print_table(outcomes: list[Outcome]) -> None:
    """One line per case; `error / budget` of outputs and gradients, failures last."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="interpreter gate, float32; error / budget, at most 1")
    for column in ("op", "shape", "outputs", "gradients", "launches", "seconds", "result"):
        table.add_column(column, justify="left" if column in ("op", "shape", "result") else "right")
    for o in outcomes:
        figures = (f"{o.forward:.2f}", f"{o.backward:.2f}", str(o.launches), f"{o.seconds:.1f}")
        table.add_row(o.case.op, o.case.shape, *figures, "[red]" + "; ".join(o.failures) if o.failures else "ok")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="interpret every kernel and hold it to the float64 reference")
    parser.add_argument("filters", nargs="*", help="keep cases whose op or shape contains one of these")
    options = parser.parse_args(argv)
    take_loop_bounds()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    outcomes = []
    for case in all_cases():
        if options.filters and not any(f in case.op or f in case.shape for f in options.filters):
            continue
        try:
            outcomes.append(check(case))
        except Exception:
            outcomes.append(Outcome(case, failures=[traceback.format_exc().strip().splitlines()[-1]]))
    print_table(outcomes)
    failed = sum(bool(o.failures) for o in outcomes)
    print(f"{len(outcomes)} cases, {failed} failed, {sum(o.seconds for o in outcomes):.0f} s interpreting")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
