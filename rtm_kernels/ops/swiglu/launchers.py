"""Launchers of the SwiGLU kernels. Every tensor is a strided [batch, rows, features] view; outputs are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from rtm_kernels.ops.launch import LaunchRow, find, launch, select
from rtm_kernels.ops.swiglu import backward, forward, fused_backward, tma
from rtm_kernels.ops.swiglu.tiles import accumulator
from rtm_kernels.ops.swiglu.weights import PackedWeights

Table = Sequence[LaunchRow]


def foldable(x: Tensor, injection: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """x and at most two injection terms in x's own layout; other injections are summed before the kernel."""
    if not injection:
        return x, []
    terms = list(injection)
    while len(terms) > 2:
        terms[:2] = [terms[0] + terms[1]]
    if all(term.stride() == x.stride() for term in terms):
        return x, terms
    return x + sum(terms[1:], start=terms[0]), []


def terms_of(x: Tensor, injection: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The pointer arguments x, first, second; absent terms repeat x and are not read."""
    first, second = (*injection, x, x)[:2]
    return x, first, second


def row_blocks(x: Tensor, block: int) -> int:
    """How many programs cover the rows of x [batch, rows, features] with `block` rows each."""
    return x.shape[0] * triton.cdiv(x.shape[1], block)


def swiglu_residual(
    y: Tensor, rstd: Tensor | None, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights, eps: float,
    table: Table,
) -> None:  # fmt: skip
    """`y <- h + swiglu(h)`; with `rstd` [batch, rows] given, y is normalised over its features."""
    row = find(table, "fused", x.dtype, x.shape[2])
    if row is not None:
        _fused(y, rstd, x, injection, weights, eps, row)
        return
    act = x.new_empty(x.shape[0] * x.shape[1], weights.inner)
    _gate_up(act, x, injection, weights, table)
    _down(y, rstd, act, x, injection, weights, eps, table)


def _fused(
    y: Tensor, rstd: Tensor | None, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights, eps: float,
    row: LaunchRow,
) -> None:  # fmt: skip
    launch(
        forward.fused_kernel, row, (row_blocks(x, row.blocks["BLOCK_R"]),),
        y, y if rstd is None else rstd, *terms_of(x, injection), weights.gate_up, weights.down, eps,
        x.shape[1], x.shape[2], weights.padded, weights.inner, *x.stride(), *y.stride(),
        TERMS=len(injection), NORMALISE=rstd is not None, ACC=accumulator(x.dtype),
    )  # fmt: skip


def _gate_up(act: Tensor, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights, table: Table) -> None:
    row = select(table, "gate_up", x.dtype, x.shape[2])
    if row.variant == "tma":
        tma.gate_up(act, terms_of(x, injection), len(injection), weights.gate_up, row)
        return
    grid = row_blocks(x, row.blocks["BLOCK_R"]) * triton.cdiv(weights.inner, row.blocks["BLOCK_F"])
    launch(
        forward.gate_up_kernel, row, (grid,),
        act, *terms_of(x, injection), weights.gate_up, x.shape[1], x.shape[2], weights.padded, weights.inner,
        *x.stride(),
        TERMS=len(injection), ACC=accumulator(x.dtype),
    )  # fmt: skip


def _down(
    y: Tensor, rstd: Tensor | None, act: Tensor, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights,
    eps: float, table: Table,
) -> None:  # fmt: skip
    # with injection terms the full row does not fit the registers
    row = find(table, "down_norm", x.dtype, x.shape[2]) if rstd is not None and not injection else None
    inside = row is not None
    row = row or select(table, "residual_gemm", x.dtype, x.shape[2])
    residual_gemm(y, rstd if inside else None, act, weights.down, x, injection, eps, row)
    if rstd is not None and not inside:
        normalise(y, rstd, eps, table)


def residual_gemm(
    y: Tensor, rstd: Tensor | None, a: Tensor, weight: Tensor, x: Tensor, injection: Sequence[Tensor], eps: float,
    row: LaunchRow,
) -> None:  # fmt: skip
    """`y <- h + a weight^T` with a [batch * rows, K] and weight [at least N, K] of any strides."""
    if row.variant == "tma":
        tma.residual_gemm(y, rstd, a, weight, terms_of(x, injection), len(injection), eps, row)
        return
    grid = row_blocks(x, row.blocks["BLOCK_R"]) * triton.cdiv(x.shape[2], row.blocks["BLOCK_N"])
    launch(
        forward.residual_gemm_kernel, row, (grid,),
        y, y if rstd is None else rstd, a, weight, *terms_of(x, injection), eps,
        x.shape[1], x.shape[2], a.shape[1], weight.shape[0], *weight.stride(), *x.stride(), *y.stride(),
        TERMS=len(injection), NORMALISE=rstd is not None, ACC=accumulator(x.dtype),
    )  # fmt: skip


def normalise(y: Tensor, rstd: Tensor, eps: float, table: Table) -> None:
    """`y <- rms_norm(y)` over its features, in place; rstd [batch, rows] receives `rsqrt(mean(y^2) + eps)`."""
    row = select(table, "norm", y.dtype, y.shape[2])
    launch(
        forward.norm_kernel, row, (row_blocks(y, row.blocks["BLOCK_R"]),),
        y, rstd, eps, y.shape[1], y.shape[2], *y.stride(), ACC=accumulator(y.dtype),
    )  # fmt: skip


def norm_backward(dr: Tensor, dy: Tensor, y: Tensor, rstd: Tensor, eps: float, table: Table) -> None:
    """`dr <- rstd * (dy - y * mean(dy * y))` over the features; dr, dy and y share their strides."""
    row = select(table, "norm_backward", y.dtype, y.shape[2])
    launch(
        backward.norm_backward_kernel, row, (row_blocks(y, row.blocks["BLOCK_R"]),),
        dr, dy, y, rstd, eps, y.shape[1], y.shape[2], *y.stride(), ACC=accumulator(y.dtype),
    )  # fmt: skip


def hidden_widths(weights: PackedWeights, table: Table) -> tuple[int, ...]:
    """Widths of what `input_grad` writes for `weight_grads` beside dh: of dz and act, or nothing."""
    fused = find(table, "fused_input_grad", weights.down.dtype, weights.down.shape[0]) is not None
    return () if fused else (2 * weights.inner, weights.inner)


def input_grad(
    dh: Tensor, dr: Tensor, h: Tensor, hidden: Sequence[Tensor], weights: PackedWeights, table: Table
) -> None:
    """`dh` from `dr`; `hidden` are dz [batch * rows, 2 F_pad] and act [batch * rows, F_pad], written, or empty."""
    if not hidden:
        row = select(table, "fused_input_grad", h.dtype, h.shape[2])
        launch(
            fused_backward.fused_input_grad_kernel, row, (row_blocks(h, row.blocks["BLOCK_R"]),),
            dh, dr, h, weights.gate_up, weights.down, *_backward_sizes(dr, h, weights), ACC=accumulator(h.dtype),
        )  # fmt: skip
        return
    dz, act = hidden
    row = select(table, "hidden_backward", h.dtype, h.shape[2])
    grid = row_blocks(h, row.blocks["BLOCK_R"]) * triton.cdiv(weights.inner, row.blocks["BLOCK_F"])
    launch(
        backward.hidden_backward_kernel, row, (grid,),
        dz, act, dr, h, weights.gate_up, weights.down, *_backward_sizes(dr, h, weights), ACC=accumulator(h.dtype),
    )  # fmt: skip
    row = select(table, "residual_gemm", h.dtype, h.shape[2])
    residual_gemm(dh, None, dz, weights.gate_up.t(), dr, (), 0.0, row)


def weight_grads(
    dr: Tensor, h: Tensor, hidden: Sequence[Tensor], weights: PackedWeights, table: Table
) -> tuple[Tensor, Tensor]:
    """Gradients of the packed weights, [2 F_pad, N] and [F_pad, N] in the accumulator's dtype, over all rows."""
    if hidden:
        dz, act = hidden
        return weight_grad(dz, h, table), weight_grad(act, dr, table)
    features, inner = h.shape[2], weights.inner
    row = select(table, "fused_weight_grad", h.dtype, features)
    splits = row.blocks["SPLITS"]
    wide = torch.promote_types(h.dtype, torch.float32)
    partial = torch.empty(splits, 3, inner, features, dtype=wide, device=h.device)
    launch(
        fused_backward.fused_weight_grad_kernel, row, (triton.cdiv(inner, row.blocks["BLOCK_F"]), splits),
        partial, dr, h, weights.gate_up, weights.down, h.shape[0], *_backward_sizes(dr, h, weights),
        ACC=accumulator(h.dtype),
    )  # fmt: skip
    return partial[:, :2].sum(0).flatten(0, 1), partial[:, 2].sum(0)


def _backward_sizes(dr: Tensor, h: Tensor, weights: PackedWeights) -> tuple[int, ...]:
    return (*h.shape[1:], weights.padded, weights.inner, *h.stride(), *dr.stride())


def weight_grad(z: Tensor, h: Tensor, table: Table) -> Tensor:
    """`z^T h` [P, N] in the accumulator's dtype, summed over all rows in a fixed order; z [batch * rows, P]."""
    row = select(table, "weight_grad", h.dtype, h.shape[2])
    splits, width, features = row.blocks["SPLITS"], z.shape[1], h.shape[2]
    partial = z.new_empty(splits, width, features, dtype=torch.promote_types(z.dtype, torch.float32))
    tiles = triton.cdiv(width, row.blocks["BLOCK_P"]) * triton.cdiv(features, row.blocks["BLOCK_N"])
    launch(
        backward.weight_grad_kernel, row, (tiles, splits),
        partial, z, h, h.shape[0], h.shape[1], width, features, *h.stride(), ACC=accumulator(h.dtype),
    )  # fmt: skip
    return partial.sum(0)


def injected(x: Tensor, injection: Sequence[Tensor], table: Table, h: Tensor | None = None) -> Tensor:
    """`h = x + (sum of injection)` of a `foldable` pair, with the forward kernels' bits; x itself without injection.

    `h`, when given, is written and returned in any case.
    """
    if not injection:
        return x if h is None else h.copy_(x)
    if h is None:
        h = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    row = select(table, "inject", x.dtype, x.shape[2])
    grid = row_blocks(x, row.blocks["BLOCK_R"]) * triton.cdiv(x.shape[2], row.blocks["BLOCK_N"])
    launch(
        backward.inject_kernel, row, (grid,),
        h, *terms_of(x, injection), x.shape[1], x.shape[2], *h.stride(), *x.stride(),
        TERMS=len(injection), ACC=accumulator(x.dtype),
    )  # fmt: skip
    return h
