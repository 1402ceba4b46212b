"""Kernel of one AdamATan2 update of many tensors in one launch."""

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
from rtm_kernels.ops.adam_atan2.launch import TABLE
from rtm_kernels.ops.launch import launch, select

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
