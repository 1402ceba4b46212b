"""Backward kernel for rows that fit one tile: gate and up are recomputed once, for all gradients."""

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
    dh_ptr, dz_ptr, a_ptr, dr_ptr, h_ptr, gate_up_ptr, down_ptr,
    R, N: tl.constexpr, N_PAD: tl.constexpr, F: tl.constexpr,
    h_stride_b, h_stride_r, h_stride_n, dr_stride_b, dr_stride_r, dr_stride_n,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`dh = dr + d_gate gate + d_up up` for one block of rows with all N <= BLOCK_N features; dh is laid out as dr.

    Also writes `a` [batch * R, F] and `dz` [batch * R, 2F], as `hidden_backward_kernel` does.
    """
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
    row = (batch * R + offs_r)[:, None]
    a_ptrs, dz_ptrs = a_ptr + row * F + offs_f[None, :], dz_ptr + row * (2 * F) + offs_f[None, :]
    acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
    for f in range(0, F, BLOCK_F):
        mask_w = below(gate_up_unit(f, BLOCK_F), F, BLOCK_F)[None, :] & mask_pad
        w = tl.load(w_ptrs, mask=mask_w, other=0.0)  # [BN, 2 BF]
        mask_f = below(f + offs_f, F, BLOCK_F)[None, :]
        w_down = tl.load(down_ptrs, mask=mask_f & mask_n, other=0.0)  # [BN, BF]
        z = tl.dot(h, w, out_dtype=ACC, input_precision="ieee")
        gate, up = split_gate_up(z, BLOCK_R, BLOCK_F)
        d_act = tl.dot(dr, w_down, out_dtype=ACC, input_precision="ieee")
        act, d_gate, d_up = silu_gate_backward(d_act, gate, up)
        d_gate, d_up = d_gate.to(h.dtype), d_up.to(h.dtype)
        mask_a = (offs_r < R)[:, None] & mask_f
        tl.store(a_ptrs, act.to(h.dtype), mask=mask_a)
        tl.store(dz_ptrs, d_gate, mask=mask_a)
        tl.store(dz_ptrs + F, d_up, mask=mask_a)
        dz = join_gate_up(d_gate, d_up, BLOCK_R, BLOCK_F)
        acc = tl.dot(dz, tl.trans(w), acc, out_dtype=ACC, input_precision="ieee")
        w_ptrs += BLOCK_F * N_PAD
        down_ptrs += BLOCK_F
        a_ptrs += BLOCK_F
        dz_ptrs += BLOCK_F

    dr = tl.load(dr_ptr + dr_offs, mask=mask, other=0.0)
    tl.store(dh_ptr + dr_offs, (acc + dr.to(ACC)).to(dh_ptr.dtype.element_ty), mask=mask)
