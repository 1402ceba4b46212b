"""Forward and backward kernels of stablemax and softmax cross entropy, with argmax and counts in the same pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.launch import ANY, LaunchRow, launch, select, tuned
from rtm_kernels.ops.swiglu.tiles import accumulator


def _rows(family: str, limit: int, block_l: int, block_v: int, warps: int) -> Iterator[LaunchRow]:
    for kernel in ("token_loss.forward", "token_loss.backward"):
        yield LaunchRow(kernel, family, 0, limit, {"BLOCK_L": block_l, "BLOCK_V": block_v}, warps, 1)


TABLE = tuned(
    "token_loss",
    (
        *_rows("portable", 16, 128, 16, 4),
        *_rows("portable", 128, 16, 128, 4),
        *_rows("portable", ANY, 1, 1024, 4),
        *_rows("interpreter", 16, 64, 16, 1),
        *_rows("interpreter", ANY, 64, 64, 1),
    ),
)
"""The size of a shape class is V."""


@triton.jit
def stablemax_weight(x):
    """`s(x) = x + 1` for x >= 0 and `1 / (1 - x)` below."""
    return tl.where(x < 0, 1.0 / (1.0 + tl.abs(x)), x + 1.0)


@triton.jit
def log_inverse_share(rest, own, log_own):
    """`log((rest + own) / own)` to the last bits, for shares of almost 1 and for `own` that underflows."""
    t = rest / (2.0 * own + rest)  # log(1 + r) = 2 atanh(r / (2 + r)), here at most 1/3
    z = t * t
    series = 1.0 / 15.0 + z * (1.0 / 17.0)
    series = 1.0 / 11.0 + z * (1.0 / 13.0 + z * series)
    series = 1.0 / 7.0 + z * (1.0 / 9.0 + z * series)
    series = 1.0 + z * (1.0 / 3.0 + z * (1.0 / 5.0 + z * series))
    ratio = (rest + own) / own
    large = tl.where(ratio < 1e30, tl.log(ratio), tl.log(rest + own) - log_own)
    return tl.where(rest < own, 2.0 * t * series, large)


@triton.jit
def forward_kernel(
    loss_ptr, saved_ptr, prediction_ptr, count_ptr, logits_ptr, labels_ptr,
    N, L, V, TILES, ignore_index, stride_b, stride_l, stride_v,
    STABLEMAX: tl.constexpr, ACC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Loss, argmax and (labelled, correct) counts of one tile of BLOCK_L tokens of one sample; N = B * L.

    saved [2, N] keeps for the backward the sum of the other weights and, for softmax, the largest logit.
    """
    pid = tl.program_id(0).to(tl.int64)
    batch = pid // TILES
    offs_l = (pid % TILES) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_v = tl.arange(0, BLOCK_V)
    mask_l = offs_l < L
    row = batch * L + offs_l
    label = tl.load(labels_ptr + row, mask=mask_l, other=0)
    counted = mask_l & (label != ignore_index)
    known = counted & (label >= 0) & (label < V)
    row_ptrs = logits_ptr + batch * stride_b + offs_l * stride_l
    own_logit = tl.load(row_ptrs + label * stride_v, mask=known, other=float("nan")).to(ACC)

    rest = tl.zeros((BLOCK_L,), dtype=ACC)
    best = tl.full((BLOCK_L,), float("-inf"), dtype=ACC)
    prediction = tl.zeros((BLOCK_L,), dtype=tl.int64)
    for v in range(0, V, BLOCK_V):
        mask = mask_l[:, None] & (v + offs_v < V)[None, :]
        x = tl.load(row_ptrs[:, None] + (v + offs_v).to(tl.int64)[None, :] * stride_v, mask=mask, other=float("-inf"))
        x = x.to(ACC)  # [BL, BV]
        top, index = tl.max(x, axis=1, return_indices=True)
        larger = top > best
        before, best = best, tl.where(larger, top, best)
        prediction = tl.where(larger, v + index, prediction)
        if STABLEMAX:
            weight = stablemax_weight(x)
        else:
            weight = tl.exp(x - best[:, None])
            rest *= tl.where(larger, tl.exp(before - best), 1.0)
        other = mask & ((v + offs_v)[None, :] != label[:, None])
        rest += tl.sum(tl.where(other, weight, 0.0), axis=1)

    if STABLEMAX:
        own = stablemax_weight(own_logit)
        log_own = tl.log(1.0 + tl.abs(own_logit))
        log_own = tl.where(own_logit < 0, -log_own, log_own)
    else:
        log_own = own_logit - best
        own = tl.exp(log_own)
        tl.store(saved_ptr + N + row, best, mask=mask_l)
    tl.store(saved_ptr + row, rest, mask=mask_l)
    tl.store(loss_ptr + row, tl.where(counted, log_inverse_share(rest, own, log_own), 0.0), mask=mask_l)
    tl.store(prediction_ptr + row, prediction, mask=mask_l)
    tl.store(count_ptr + pid * 2, tl.sum(counted.to(tl.int32), axis=0))
    tl.store(count_ptr + pid * 2 + 1, tl.sum((counted & (prediction == label)).to(tl.int32), axis=0))


@triton.jit
def backward_kernel(
    d_logits_ptr, d_loss_ptr, saved_ptr, logits_ptr, labels_ptr,
    N, L, V, TILES, ignore_index, stride_b, stride_l, stride_v,
    STABLEMAX: tl.constexpr, ACC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradient of one [BLOCK_L, BLOCK_V] tile of the logits of one sample."""
    pid = tl.program_id(0).to(tl.int64)
    batch = pid // TILES
    offs_l = (pid % TILES) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_v = tl.program_id(1).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_l = offs_l < L
    mask = mask_l[:, None] & (offs_v < V)[None, :]
    row = batch * L + offs_l
    label = tl.load(labels_ptr + row, mask=mask_l, other=0)
    counted = mask_l & (label != ignore_index)
    known = counted & (label >= 0) & (label < V)
    row_ptrs = logits_ptr + batch * stride_b + offs_l * stride_l
    own_logit = tl.load(row_ptrs + label * stride_v, mask=known, other=float("nan")).to(ACC)
    x = tl.load(row_ptrs[:, None] + offs_v[None, :] * stride_v, mask=mask, other=0.0).to(ACC)
    rest = tl.load(saved_ptr + row, mask=mask_l, other=1.0)
    d_loss = tl.load(d_loss_ptr + row, mask=mask_l, other=0.0).to(ACC)

    if STABLEMAX:
        weight = stablemax_weight(x)
        own = stablemax_weight(own_logit)
        slope = tl.where(x < 0, weight * weight, 1.0)
        own_slope = tl.where(own_logit < 0, own, 1.0 / own)  # s'(x) / s(x)
    else:
        best = tl.load(saved_ptr + N + row, mask=mask_l, other=0.0)
        slope = tl.exp(x - best[:, None])
        own = tl.exp(own_logit - best)
        own_slope = tl.full((BLOCK_L,), 1.0, dtype=ACC)
    scale = d_loss / (rest + own)
    is_own = offs_v[None, :] == label[:, None]
    d = tl.where(is_own, (-scale * own_slope * rest)[:, None], scale[:, None] * slope)
    d = tl.where(counted[:, None], d, 0.0)
    tl.store(d_logits_ptr + row[:, None] * V + offs_v[None, :], d.to(d_logits_ptr.dtype.element_ty), mask=mask)


def token_loss_forward(
    logits: Tensor, labels: Tensor, ignore_index: int, stablemax: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss [B, L], predictions [B, L] int64, counts [B, 2] int64 (labelled, correct) and what the backward needs."""
    batch, length, vocabulary = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty(batch, length, dtype=wide)
    saved = logits.new_empty(1 if stablemax else 2, batch * length, dtype=wide)
    predictions = torch.empty(batch, length, dtype=torch.int64, device=logits.device)
    row = select(TABLE, "token_loss.forward", logits.dtype, vocabulary)
    tiles = triton.cdiv(length, row.blocks["BLOCK_L"])
    counts = torch.zeros(batch, tiles, 2, dtype=torch.int32, device=logits.device)
    if loss.numel():
        launch(
            forward_kernel, row, (batch * tiles,), loss, saved, predictions, counts, logits, labels.contiguous(),
            batch * length, length, vocabulary, tiles, ignore_index, *logits.stride(),
            STABLEMAX=stablemax, ACC=accumulator(logits.dtype),
        )  # fmt: skip
    return loss, predictions, counts.sum(1), saved


def token_loss_backward(
    d_loss: Tensor, saved: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, stablemax: bool
) -> Tensor:
    """d_logits [B, L, V], contiguous."""
    batch, length, vocabulary = logits.shape
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    row = select(TABLE, "token_loss.backward", logits.dtype, vocabulary)
    tiles = triton.cdiv(length, row.blocks["BLOCK_L"])
    if d_loss.numel():
        launch(
            backward_kernel, row, (batch * tiles, triton.cdiv(vocabulary, row.blocks["BLOCK_V"])),
            d_logits, d_loss.contiguous(), saved, logits, labels.contiguous(),
            batch * length, length, vocabulary, tiles, ignore_index, *logits.stride(),
            STABLEMAX=stablemax, ACC=accumulator(logits.dtype),
        )  # fmt: skip
    return d_logits
