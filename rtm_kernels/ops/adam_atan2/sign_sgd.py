"""Kernel of sign-SGD on the touched rows of an embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.adam_atan2.launch import TABLE
from rtm_kernels.ops.launch import launch, select


@triton.jit
def sign_sgd_kernel(
    w_ptr, g_ptr, ids_ptr, origin_ptr, lr_ptr, found_inf_ptr, weight_decay, N, B, D, BLOCK_D: tl.constexpr
):
    """One block of one touched row: the first program of a run of equal ids sums its gradients in batch order.
    Nothing is written where found_inf is set.

    ids [B] ascending, origin [B] the place of each in the batch; g [B, D], w [N, D].
    """
    first = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    row = tl.load(ids_ptr + first)
    before = tl.load(ids_ptr + tl.maximum(first, 1) - 1)
    leads = ((row != before) | (first == 0)) & (row >= 0) & (row < N)
    place = tl.where(tl.load(found_inf_ptr) == 0, tl.where(leads, first, B), B)
    mask = mask_d & (offs_d * 0 + place < B)
    total = tl.zeros((BLOCK_D,), dtype=w_ptr.dtype.element_ty)
    while (place < B) & (tl.load(ids_ptr + tl.minimum(place, B - 1)) == row):
        source = tl.load(origin_ptr + place)
        total += tl.load(g_ptr + source * D + offs_d, mask=mask_d, other=0.0)
        place += 1
    lr = tl.load(lr_ptr)
    decay = 1 - lr * tl.cast(weight_decay, tl.float64)
    w = tl.load(w_ptr + row * D + offs_d, mask=mask, other=0.0)
    sign = tl.where(total > 0, 1.0, tl.where(total < 0, -1.0, 0.0))
    w = w * decay.to(w.dtype) - lr.to(w.dtype) * sign.to(w.dtype)
    tl.store(w_ptr + row * D + offs_d, w, mask=mask)


def sign_sgd(
    weights: Tensor, ids: Tensor, grad: Tensor, lr: Tensor, found_inf: Tensor, weight_decay: float
) -> None:  # fmt: skip
    """Update the rows of weights [N, D], contiguous, that ids [B] names, in place; grad [B, D]."""
    if grad.numel() == 0:
        return
    ordered, origin = torch.sort(ids.long(), stable=True)
    row = select(TABLE, "sign_sgd", weights.dtype, weights.shape[1])
    grid = (len(ids), triton.cdiv(weights.shape[1], row.blocks["BLOCK_D"]))
    launch(
        sign_sgd_kernel, row, grid, weights, grad.contiguous(), ordered, origin, lr.double(), found_inf, weight_decay,
        *(weights.shape[0], *grad.shape),
        enable_fp_fusion=False,  # rounded as eager rounds: the decayed weight, then the difference
    )  # fmt: skip
