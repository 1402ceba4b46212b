"""Launchers of the row kernels. Tensors are strided [batch, rows, features] views; outputs are given.

`view` says which axis of the latent the features lie along, and so which rows of the table run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rtm_kernels.errors import require
from rtm_kernels.ops.launch import LaunchRow, find, launch, multiprocessors, select
from rtm_kernels.ops.swiglu import backward, forward, fused_backward, tma
from rtm_kernels.ops.swiglu.launch import VIEWS
from rtm_kernels.ops.swiglu.tiles import accumulator
from rtm_kernels.ops.swiglu.weights import PackedWeights, aligned


def split(x: Tensor, view: str) -> Tensor:
    """x as [batch, rows, features], the features along the "hidden" or the "sequence" axis, without a copy.

    An x [..., D] of more than three axes is copied where its strides do not allow the view.
    """
    if view == "sequence":
        return x.transpose(1, 2)
    try:
        return x.view(1, -1, x.shape[-1])
    except RuntimeError:
        return x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])


def row_blocks(x: Tensor, block: int) -> int:
    """How many programs cover the rows of x [batch, rows, features] with `block` rows each."""
    return x.shape[0] * triton.cdiv(x.shape[1], block)


def count_rows(x: Tensor) -> int:
    """Rows of all samples of x [batch, rows, features], which choose the bucket of a launch row."""
    return x.shape[0] * x.shape[1]


def foldable(x: Tensor, injection: Sequence[Tensor]) -> list[Tensor]:
    """x and at most two injection terms in one layout, copied where they differ: the kernel rounds their sum once.

    Of more than two terms the first are summed before.
    """
    terms = list(injection)
    while len(terms) > 2:
        terms[:2] = [terms[0] + terms[1]]
    alike = all(_strides(term) == _strides(x) for term in terms)
    return [x, *terms] if alike else [t.contiguous() for t in (x, *terms)]


def _strides(x: Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def injected(x: Tensor, injection: Sequence[Tensor], h: Tensor | None = None) -> Tensor:
    """`h = x + (sum of injection)` [..., D], with the bits of the fused kernel; x itself without injection.

    `h`, when given, is dense, written, and returned in any case.
    """
    summed = foldable(x, injection)
    if len(summed) == 1:
        return summed[0] if h is None else h.copy_(summed[0])
    if h is None:
        h = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, first, second = (split(t, "hidden") for t in (*summed, x)[:3])
    out = h.view(x.shape)
    row = select(VIEWS["hidden"], "inject", x.dtype, x.shape[2], count_rows(x))
    grid = row_blocks(x, row.blocks["BLOCK_R"]) * triton.cdiv(x.shape[2], row.blocks["BLOCK_N"])
    launch(
        backward.inject_kernel, row, (grid,), out, x, first, second, *x.shape[1:], *out.stride(), *x.stride(),
        TERMS=len(summed) - 1, ACC=accumulator(x.dtype),
    )  # fmt: skip
    return h


def gemm(
    y: Tensor, a: Tensor, weight: Tensor, h: Tensor | None, view: str, rstd: Tensor | None = None, eps: float = 0.0
) -> None:
    """`y <- (h +) a weight^T`, a [batch * rows, K] and weight [at least N, K] of any strides.

    With `rstd` [batch * rows] given, y is normalised over its N features and rstd receives the scale.
    """
    row = None if rstd is None else find(VIEWS[view], "gemm_norm", y.dtype, y.shape[2], count_rows(y))
    if row is not None:
        _gemm(y, rstd, a, weight, h, eps, row)
        return
    _gemm(y, None, a, weight, h, eps, select(VIEWS[view], "gemm", y.dtype, y.shape[2], count_rows(y)))
    if rstd is not None:
        normalise(y, rstd, eps, view)


def _gemm(
    y: Tensor, rstd: Tensor | None, a: Tensor, weight: Tensor, h: Tensor | None, eps: float, row: LaunchRow
) -> None:
    residual = y if h is None else h
    strides = (*residual.stride(), *y.stride())
    options = {"RESIDUAL": h is not None, "ACC": accumulator(y.dtype)}
    tiles = row_blocks(y, row.blocks["BLOCK_R"]) * triton.cdiv(y.shape[2], row.blocks["BLOCK_N"])
    if row.variant == "tma":
        count, k_major = sharing(tiles, y), weight.stride(1) == 1
        sizes = (row.blocks["BLOCK_N"], row.blocks["BLOCK_K"])
        described = describe(weight, *sizes) if k_major else describe(weight.t(), *sizes[::-1])
        launch(
            tma.gemm_tma_kernel, row, (count,), y, a, described, residual,
            *y.shape[:2], count, y.shape[2], a.shape[1], *strides, K_MAJOR=k_major, **options,
        )  # fmt: skip
        return
    launch(
        forward.gemm_kernel, row, (tiles,), y, y if rstd is None else rstd, a, weight, residual, eps, a.shape[1],
        *y.shape[1:], a.shape[1], weight.shape[0], *weight.stride(), *strides, NORMALISE=rstd is not None, **options,
    )  # fmt: skip


def sharing(tiles: int, x: Tensor) -> int:
    """How many programs share the tiles. Errors: `InputError` for more tiles than an int32 counts."""
    require(tiles < 1 << 31, "tiles", tiles, "fewer than 2^31 by the rows of the variant 'tma': use a smaller batch")
    return min(tiles, multiprocessors(x.device, 3))


def describe(weight: Tensor, *block: int) -> TensorDescriptor:
    """A TMA descriptor of a dense packed weight, read in blocks of this size; what lies outside is read as 0."""
    return TensorDescriptor(weight, list(weight.shape), list(weight.stride()), list(block))


def normalise(y: Tensor, rstd: Tensor, eps: float, view: str) -> None:
    """`y <- rms_norm(y)` over its features, in place; rstd [batch * rows] receives `1 / sqrt(mean(y^2) + eps)`."""
    row = select(VIEWS[view], "norm", y.dtype, y.shape[2], count_rows(y))
    launch(
        forward.norm_kernel, row, (row_blocks(y, row.blocks["BLOCK_R"]),),
        y, rstd, eps, *y.shape[1:], *y.stride(), ACC=accumulator(y.dtype),
    )  # fmt: skip


def norm_backward(dr: Tensor, dy: Tensor, y: Tensor, rstd: Tensor, eps: float, view: str) -> None:
    """`dr <- rstd * (dy - y * mean(dy * y))` over the features; dr, dy and y share their strides."""
    row = select(VIEWS[view], "norm_backward", y.dtype, y.shape[2])
    launch(
        backward.norm_backward_kernel, row, (row_blocks(y, row.blocks["BLOCK_R"]),),
        dr, dy, y, rstd, eps, *y.shape[1:], *y.stride(), ACC=accumulator(y.dtype),
    )  # fmt: skip


def weight_grad(z: Tensor, h: Tensor, view: str) -> Tensor:
    """`z^T h` [P, N] in the accumulator's dtype, summed over all rows in a fixed order; z [batch * rows, P]."""
    row = select(VIEWS[view], "weight_grad", h.dtype, h.shape[2])
    splits, width, features = row.blocks["SPLITS"], z.shape[1], h.shape[2]
    partial = z.new_empty(splits, width, aligned(features), dtype=torch.promote_types(z.dtype, torch.float32))
    tiles = triton.cdiv(width, row.blocks["BLOCK_P"]) * triton.cdiv(features, row.blocks["BLOCK_N"])
    launch(
        backward.weight_grad_kernel, row, (tiles, splits),
        partial, z, h, *h.shape[:2], width, features, aligned(features), *h.stride(), ACC=accumulator(h.dtype),
    )  # fmt: skip
    return partial[..., :features].sum(0)


def is_fused(features: int, rows: int, dtype: torch.dtype, view: str) -> bool:
    """Whether one kernel computes `h + swiglu(h)` of so many rows of this size."""
    return find(VIEWS[view], "fused", dtype, features, rows) is not None


def swiglu(
    y: Tensor, rstd: Tensor | None, terms: Sequence[Tensor], weights: PackedWeights, eps: float, view: str
) -> None:
    """`y <- h + swiglu(h)` with h the sum of `terms`, of which there is one unless `is_fused`.

    With `rstd` [batch * rows] given, y is normalised over its features.
    """
    x = terms[0]
    row = find(VIEWS[view], "fused", x.dtype, x.shape[2], count_rows(x))
    if row is None:
        act = x.new_empty(x.shape[0] * x.shape[1], weights.inner)
        _gate_up(act, x, weights, select(VIEWS[view], "gate_up", x.dtype, x.shape[2], count_rows(x)))
        gemm(y, act, weights.down, x, view, rstd, eps)
        return
    launch(
        forward.fused_kernel, row, (row_blocks(x, row.blocks["BLOCK_R"]),),
        y, y if rstd is None else rstd, *(*terms, x, x)[:3], weights.gate_up, weights.down, eps,
        *x.shape[1:], weights.padded, weights.inner, *x.stride(), *y.stride(),
        TERMS=len(terms) - 1, NORMALISE=rstd is not None, ACC=accumulator(x.dtype),
    )  # fmt: skip


def _gate_up(act: Tensor, h: Tensor, weights: PackedWeights, row: LaunchRow) -> None:
    tiles = row_blocks(h, row.blocks["BLOCK_R"]) * triton.cdiv(weights.inner, row.blocks["BLOCK_F"])
    if row.variant == "tma":
        count, described = sharing(tiles, h), describe(weights.gate_up, row.blocks["BLOCK_F"], row.blocks["BLOCK_N"])
        launch(
            tma.gate_up_tma_kernel, row, (count,), act, h, described, *h.shape[:2], count, h.shape[2], weights.inner,
            *h.stride(), ACC=accumulator(h.dtype),
        )  # fmt: skip
        return
    launch(
        forward.gate_up_kernel, row, (tiles,), act, h, weights.gate_up, *h.shape[1:], weights.padded, weights.inner,
        *h.stride(), ACC=accumulator(h.dtype),
    )  # fmt: skip


def swiglu_input_grad(
    dh: Tensor, dr: Tensor, h: Tensor, hidden: Sequence[Tensor], weights: PackedWeights, view: str
) -> None:
    """`dh` from `dr`, and `hidden`, which the weight gradients read: dz [batch * rows, 2 F_pad], act [.., F_pad]."""
    sizes = (*h.shape[1:], weights.padded, weights.inner, *h.stride(), *dr.stride())
    given, acc = (*hidden, dr, h, weights.gate_up, weights.down, *sizes), accumulator(h.dtype)
    row = find(VIEWS[view], "fused_input_grad", h.dtype, h.shape[2])
    if row is not None:
        launch(
            fused_backward.fused_input_grad_kernel, row, (row_blocks(h, row.blocks["BLOCK_R"]),), dh, *given, ACC=acc
        )
        return
    row = select(VIEWS[view], "hidden_backward", h.dtype, h.shape[2])
    grid = row_blocks(h, row.blocks["BLOCK_R"]) * triton.cdiv(weights.inner, row.blocks["BLOCK_F"])
    launch(backward.hidden_backward_kernel, row, (grid,), *given, ACC=acc)
    gemm(dh, hidden[0], weights.gate_up.t(), dr, view)


def swiglu_weight_grads(dr: Tensor, h: Tensor, hidden: Sequence[Tensor], view: str) -> tuple[Tensor, Tensor]:
    """Gradients of the packed weights, [2 F_pad, N] and [F_pad, N] in the accumulator's dtype, over all rows."""
    dz, act = hidden
    return weight_grad(dz, h, view), weight_grad(act, dr, view)
