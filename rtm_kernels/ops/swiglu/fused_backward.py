"""Backward kernels for rows that fit one tile: nothing of width F is ever written, it is recomputed twice."""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.ops.swiglu.tiles import (
    below,
    gate_up_rows,
    gate_up_unit,
    join_gate_up,
    row_block,
    silu_gate_backward,
    split_gate_up,
)


@triton.jit
def fused_input_grad_kernel(
    dh_ptr, dr_ptr, h_ptr, gate_up_ptr, down_ptr,
    R, N: tl.constexpr, N_PAD: tl.constexpr, F: tl.constexpr,
    h_stride_b, h_stride_r, h_stride_n, dr_stride_b, dr_stride_r, dr_stride_n,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`dh = dr + d_gate gate + d_up up` for one block of rows with all N <= BLOCK_N features; dh is laid out as dr."""
    batch, offs_r = row_block(tl.program_id(0), R, BLOCK_R)
    offs_n = tl.arange(0, BLOCK_N)
    offs_f = tl.arange(0, BLOCK_F)
    mask = (offs_r < R)[:, None] & below(offs_n, N, BLOCK_N)[None, :]
    wide_n = offs_n.to(tl.int64)[None, :]
    h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + wide_n * h_stride_n
    h = tl.load(h_ptr + h_offs, mask=mask, other=0.0)  # [BR, BN]
    dr_offs = batch * dr_stride_b + offs_r[:, None] * dr_stride_r + wide_n * dr_stride_n
    dr = tl.load(dr_ptr + dr_offs, mask=mask, other=0.0)

    w_ptrs = gate_up_ptr + gate_up_rows(0, F, BLOCK_F)[None, :] * N_PAD + offs_n[:, None]
    down_ptrs = down_ptr + offs_n[:, None] * F + offs_f[None, :]
    mask_n, mask_pad = below(offs_n, N, BLOCK_N)[:, None], below(offs_n, N_PAD, BLOCK_N)[:, None]
    acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
    for f in range(0, F, BLOCK_F):
        mask_w = below(gate_up_unit(f, BLOCK_F), F, BLOCK_F)[None, :] & mask_pad
        w = tl.load(w_ptrs, mask=mask_w, other=0.0)  # [BN, 2 BF]
        w_down = tl.load(down_ptrs, mask=below(f + offs_f, F, BLOCK_F)[None, :] & mask_n, other=0.0)  # [BN, BF]
        z = tl.dot(h, w, out_dtype=ACC, input_precision="ieee")
        gate, up = split_gate_up(z, BLOCK_R, BLOCK_F)
        d_act = tl.dot(dr, w_down, out_dtype=ACC, input_precision="ieee")
        _, d_gate, d_up = silu_gate_backward(d_act, gate, up)
        dz = join_gate_up(d_gate, d_up, BLOCK_R, BLOCK_F).to(h.dtype)
        acc = tl.dot(dz, tl.trans(w), acc, out_dtype=ACC, input_precision="ieee")
        w_ptrs += BLOCK_F * N_PAD
        down_ptrs += BLOCK_F

    dr = tl.load(dr_ptr + dr_offs, mask=mask, other=0.0)
    tl.store(dh_ptr + dr_offs, (acc + dr.to(ACC)).to(dh_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fused_weight_grad_kernel(
    out_ptr, dr_ptr, h_ptr, gate_up_ptr, down_ptr,
    B, R, N: tl.constexpr, N_PAD: tl.constexpr, F: tl.constexpr,
    h_stride_b, h_stride_r, h_stride_n, dr_stride_b, dr_stride_r, dr_stride_n,
    ACC: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of gate, up and down^T, out [SPLITS, 3, F, N]: one block of F over the rows of one split."""
    offs_f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    split = tl.program_id(1).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)
    wide_n = offs_n.to(tl.int64)[None, :]
    mask_f, mask_n = below(offs_f, F, BLOCK_F), below(offs_n, N, BLOCK_N)
    gate_ptrs = gate_up_ptr + offs_f[:, None] * N_PAD + offs_n[None, :]
    mask_gate = mask_f[:, None] & below(offs_n, N_PAD, BLOCK_N)[None, :]
    w_gate = tl.load(gate_ptrs, mask=mask_gate, other=0.0)  # [BF, BN]
    w_up = tl.load(gate_ptrs + F * N_PAD, mask=mask_gate, other=0.0)
    down_ptrs = down_ptr + offs_n[None, :] * F + offs_f[:, None]
    w_down = tl.load(down_ptrs, mask=mask_f[:, None] & mask_n[None, :], other=0.0)

    blocks_r = tl.cdiv(R, BLOCK_R)
    share = tl.cdiv(B * blocks_r, SPLITS)
    grad_gate = tl.zeros((BLOCK_F, BLOCK_N), dtype=ACC)
    grad_up = tl.zeros((BLOCK_F, BLOCK_N), dtype=ACC)
    grad_down = tl.zeros((BLOCK_F, BLOCK_N), dtype=ACC)
    for block in range(split * share, tl.minimum((split + 1) * share, B * blocks_r)):
        batch, offs_r = row_block(tl.cast(block, tl.int64), R, BLOCK_R)
        mask = (offs_r < R)[:, None] & mask_n[None, :]
        h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + wide_n * h_stride_n
        h = tl.load(h_ptr + h_offs, mask=mask, other=0.0)  # [BR, BN]
        dr_offs = batch * dr_stride_b + offs_r[:, None] * dr_stride_r + wide_n * dr_stride_n
        dr = tl.load(dr_ptr + dr_offs, mask=mask, other=0.0)
        gate = tl.dot(w_gate, tl.trans(h), out_dtype=ACC, input_precision="ieee")
        up = tl.dot(w_up, tl.trans(h), out_dtype=ACC, input_precision="ieee")
        d_act = tl.dot(w_down, tl.trans(dr), out_dtype=ACC, input_precision="ieee")
        act, d_gate, d_up = silu_gate_backward(d_act, gate, up)  # [BF, BR]
        grad_gate = tl.dot(d_gate.to(h.dtype), h, grad_gate, out_dtype=ACC, input_precision="ieee")
        grad_up = tl.dot(d_up.to(h.dtype), h, grad_up, out_dtype=ACC, input_precision="ieee")
        grad_down = tl.dot(act.to(h.dtype), dr, grad_down, out_dtype=ACC, input_precision="ieee")

    out_ptrs = out_ptr + split * (3 * F * N) + offs_f[:, None] * N + offs_n[None, :]
    mask_out = mask_f[:, None] & mask_n[None, :]
    tl.store(out_ptrs, grad_gate, mask=mask_out)
    tl.store(out_ptrs + F * N, grad_up, mask=mask_out)
    tl.store(out_ptrs + 2 * F * N, grad_down, mask=mask_out)
