"""Kernels of the optimisers: AdamATan2 of many tensors in one launch, sign-SGD on the touched rows of an embedding."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.errors import require
from rtm_kernels.ops.launch import ANY, LaunchRow, launch, select, tuned

TABLE = tuned("adam_atan2", (
    LaunchRow("adam_atan2", "portable", 0, ANY, {"BLOCK": 1024}, 4, 1),
    LaunchRow("sign_sgd", "portable", 0, ANY, {"BLOCK_D": 256}, 4, 1),
    LaunchRow("adam_atan2", "interpreter", 0, ANY, {"BLOCK": 512}),
    LaunchRow("sign_sgd", "interpreter", 0, ANY, {"BLOCK_D": 64}),
))  # fmt: skip
"""Both kernels move each byte once and share nothing between programs, so the blocks only set the granularity. The size
of a shape class is D for `sign_sgd`, and not used for `adam_atan2`."""
MAX_TABLES = 16
_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
"""Addresses of a list of tensors -> the same on the device; gradients that stay in place need no new copy."""
_captured: list[Tensor] = []
"""Tables that captured graphs read."""


@triton.jit
def angle_of(y, x):
    """`atan2(y, x)` for x >= 0, 0 at the origin, to 2 roundings of float32."""
    size = tl.abs(y)
    large, small = tl.maximum(size, x), tl.minimum(size, x)
    ratio = tl.where(large > 0, tl.div_rn(small, tl.where(large > 0, large, 1.0)), 0.0)
    upper = ratio > 0.41421356  # tan(pi / 8): above, atan(r) = pi / 4 + atan((r - 1) / (r + 1))
    t = tl.where(upper, tl.div_rn(ratio - 1.0, ratio + 1.0), ratio)
    z = t * t
    series = 0.105938129 - z * 0.0607821941  # least largest relative error on t^2 <= tan(pi / 8)^2: 7e-10
    series = z * (-0.333333164 + z * (0.199984714 + z * (-0.142435327 + z * series)))
    angle = tl.where(upper, 0.785398163, 0.0) + (t + t * series)
    angle = tl.where(size > x, 1.57079633 - angle, angle)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def adam_atan2_kernel(table_ptr, lr_ptr, found_inf_ptr, BLOCK: tl.constexpr):
    """One block of one tensor, unless found_inf is set; see `address_table` for the table."""
    row = table_ptr + (tl.program_id(1).to(tl.int64) + 1) * 6
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < tl.where(tl.load(found_inf_ptr) == 0, tl.load(row + 5), 0)
    p_ptr = tl.load(row).to(tl.pointer_type(tl.float32)) + offs
    g_ptr = tl.load(row + 1).to(tl.pointer_type(tl.float32)) + offs
    m_ptr = tl.load(row + 2).to(tl.pointer_type(tl.float32)) + offs
    v_ptr = tl.load(row + 3).to(tl.pointer_type(tl.float32)) + offs
    lr, step = tl.load(lr_ptr), tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32))).to(tl.float64)
    beta1, log_beta1 = number(table_ptr), number(table_ptr + 1)
    beta2, log_beta2 = number(table_ptr + 2), number(table_ptr + 3)
    decay = 1 - lr * number(table_ptr + 4)
    rate = lr / (1 - tl.exp2(step * log_beta1))
    root2 = tl.sqrt(1 - tl.exp2(step * log_beta2))
    p = tl.load(p_ptr, mask=mask, other=0.0)
    g = tl.load(g_ptr, mask=mask, other=0.0)
    m = tl.load(m_ptr, mask=mask, other=0.0)
    v = tl.load(v_ptr, mask=mask, other=0.0)
    m += (1 - beta1).to(tl.float32) * (g - m)
    v = v * beta2.to(tl.float32) + (1 - beta2).to(tl.float32) * (g * g)
    angle = angle_of(m, tl.div_rn(tl.sqrt_rn(v), root2.to(tl.float32)))
    tl.store(p_ptr, p * decay.to(tl.float32) - rate.to(tl.float32) * angle, mask=mask)
    tl.store(m_ptr, m, mask=mask)
    tl.store(v_ptr, v, mask=mask)


@triton.jit
def number(ptr):
    """The float64 whose bits an int64 of the table holds."""
    return tl.load(ptr).to(tl.float64, bitcast=True)


def adam_atan2(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor], lr: Tensor, found_inf: Tensor, beta1: float, beta2: float, weight_decay: float,
) -> None:  # fmt: skip
    """Update float32 tensors of one device in place; `steps` float32 are counted up first."""
    torch._foreach_add_(list(steps), [(found_inf == 0).to(torch.float32)] * len(steps))
    rows = [tensors for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True) if tensors[0].numel()]
    if not rows:
        return
    dense = [[t.contiguous() for t in tensors] for tensors in rows]
    row = select(TABLE, "adam_atan2", torch.float32, 1)
    blocks = triton.cdiv(max(tensors[0].numel() for tensors in dense), row.blocks["BLOCK"])
    table = address_table(dense, (beta1, _log2(beta1), beta2, _log2(beta2), weight_decay, 0.0))
    launch(adam_atan2_kernel, row, (blocks, len(dense)), table, lr.double(), found_inf)
    for (param, _, *state, _), (param_copy, _, *state_copies, _) in zip(rows, dense, strict=True):
        for given, copy in zip((param, *state), (param_copy, *state_copies), strict=True):
            if copy.data_ptr() != given.data_ptr():
                given.copy_(copy)


def _log2(beta: float) -> float:
    return math.log2(beta) if beta > 0 else -math.inf


def address_table(rows: Sequence[Sequence[Tensor]], constants: Sequence[float]) -> Tensor:
    """int64 [1 + rows, 6] on the device of the rows: the bits of `constants`, then for each row the addresses of
    p, g, m, v and the step, and the number of elements. A captured graph reads it in every replay, so it stays then."""
    device = rows[0][0].device
    values = struct.unpack("6q", struct.pack("6d", *constants))
    for tensors in rows:
        values += (*(t.data_ptr() for t in tensors), tensors[0].numel())
    key = (device, *values)
    table = _tables.pop(key, None)
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if table is None:
        # a copy from the host cannot be captured
        require(not capturing, "p.grad", "a tensor that moved", "where it was in the runs before the capture")
        table = torch.tensor(values, dtype=torch.int64).to(device)
    if capturing:
        _captured.append(table)
    _tables[key] = table
    if len(_tables) > MAX_TABLES:
        _tables.popitem(last=False)
    return table


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
