"""A case: one op at one size and layout, and how its results are held to the float64 reference."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rtm_kernels.impl import launches
from rtm_kernels.ops.launch import LaunchRow

FLOOR = 4
"""Allowed on top of twice the baseline's error: epsilons of the result's dtype, times the truth's size."""
TRUTH = 1e-15
"""Rounding of the truth itself, where terms of about 1 cancel: the gradient of a loss over one class is 0."""
SIZES = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 97, 127, 128, 129, 131)
MOST = 6000
"""Elements of a latent that is drawn at random."""
HALVES = (torch.float32, torch.float16)

Tensors = Mapping[str, Tensor]
Strides = tuple[int, ...] | None


@dataclass(frozen=True)
class Case:
    """One op at one size and layout.

    `make(generator)` returns the tensors by name in float32; those that require grad are differentiated. `call(impl,
    tensors)` runs the op. `scope` is entered around the case, backward included. `start(tensors)` returns the function
    that the tuner times, for an op whose call prepares something first.
    """

    op: str
    name: str
    make: Callable[[torch.Generator], dict[str, Tensor]]
    call: Callable[[str, Tensors], Tensor | tuple[Tensor, ...]]
    scope: Callable[[], AbstractContextManager[object]] = nullcontext
    start: Callable[[Tensors], Callable[[], object]] | None = None


@dataclass(frozen=True)
class Tuned:
    """A call at an official size whose launch rows are tuned; `case(B)` makes it for a batch of B samples."""

    name: str
    case: Callable[[int], Case]
    batch: int
    dtype: torch.dtype = torch.bfloat16
    gradient: bool = False


@dataclass(frozen=True)
class Op:
    """All cases of one op, or of two views of the same kernels.

    gate: the interpreter gate, twelve or more of each public function: official, odd, tiny and empty sizes.
    small: a few that together launch every kernel of the op, for the proofs that run each case many times.
    drawn: random configurations, with the dtype to run in.
    launched: uses of the launchers on meta tensors that reach every row of `tables`, by name.
    by_batch: the launchers at official sizes on meta tensors, as functions of the batch size alone.
    """

    gate: Sequence[Case]
    small: Sequence[Case]
    drawn: Sequence[Callable[[random.Random], tuple[Case, torch.dtype]]]
    launched: Mapping[str, Callable[[], object]]
    by_batch: Mapping[str, Callable[[int], object]]
    tuned: Sequence[Tuned]
    tables: Mapping[str, Sequence[LaunchRow]]


@dataclass
class Outcome:
    """What one case gave: the worst `error / budget` over outputs and over gradients, and what failed."""

    case: Case
    forward: float = 0.0
    backward: float = 0.0
    failures: list[str] = field(default_factory=list)


def meta(*shape: int, dtype: torch.dtype = torch.float32, strides: Strides = None) -> Tensor:
    """A tensor without memory."""
    if strides is None:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def latent_shape(rng: random.Random, most: int = MOST) -> tuple[int, int, int]:
    """B, L and D of a small latent."""
    while True:
        found = (rng.choice((1, 1, 2, 3, 5)), rng.choice(SIZES), rng.choice(SIZES))
        if found[0] * found[1] * found[2] <= most:
            return found


def as_dtype(tensor: Tensor, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    """A leaf with the values, layout and offset of `tensor` in another dtype, and on another device if one is given."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 if tensor.numel() else 0
    offset = tensor.storage_offset()
    storage = torch.zeros(offset + span, dtype=dtype, device=device or tensor.device)
    storage[offset:] = tensor.detach().as_strided((span,), (1,), offset)
    return storage.as_strided(tensor.shape, tensor.stride(), offset).requires_grad_(tensor.requires_grad)


def run(
    case: Case, impl: str, tensors: Tensors, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients by name under fixed random upstream gradients."""
    with case.scope():
        leaves = {name: as_dtype(tensor, dtype, device) for name, tensor in tensors.items()}
        result = case.call(impl, leaves)
        outputs = [result] if isinstance(result, Tensor) else list(result)
        return outputs, gradients(outputs, leaves, upstream_of(outputs))


def upstream_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Fixed random upstream gradients of the outputs that are differentiable."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in outputs if t.requires_grad]


def gradients(outputs: Sequence[Tensor], leaves: Tensors, upstream: Sequence[Tensor]) -> dict[str, Tensor]:
    """The gradients of the leaves that require one, by name."""
    smooth = [out for out in outputs if out.requires_grad]
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not smooth or not wanted:
        return {}
    return dict(zip(wanted, torch.autograd.grad(smooth, list(wanted.values()), upstream), strict=True))


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
        worst = max(worst, (error / (2 * base + floor + TRUTH)).nan_to_num(float("inf")).item())
    return worst


def check(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device | None = None) -> Outcome:
    """Run a case three times: the reference in float64 and in `dtype`, and the kernels in `dtype`.

    It passes when every output and gradient has `error <= 2 * baseline error + floor`, both against float64 and in the
    maximum and the Frobenius norm, and when kernels were launched.
    """
    outcome = Outcome(case)
    made = case.make(torch.Generator().manual_seed(seed))
    tensors = {name: as_dtype(as_dtype(t, dtype), torch.float32) for name, t in made.items()}
    truth, truth_grads = run(case, "reference", tensors, torch.float64, device)
    base, base_grads = run(case, "reference", tensors, dtype, device)
    launches.clear()
    outputs, grads = run(case, "triton", tensors, dtype, device)
    launched = launches.total()
    for i, (out, b, t) in enumerate(zip(outputs, base, truth, strict=True)):
        outcome.forward = max(outcome.forward, value := ratio(out, b, t))
        if value > 1:
            outcome.failures.append(f"output {i}: {value:.3g} x budget")
    for name, t in truth_grads.items():
        outcome.backward = max(outcome.backward, value := ratio(grads[name], base_grads[name], t))
        if value > 1:
            outcome.failures.append(f"d_{name}: {value:.3g} x budget")
    if not launched and all(t.numel() for t in tensors.values()):
        outcome.failures.append("no kernel was launched")
    return outcome
