"""`silu(conv(silu(gate) * up))` in one pass forward and two backward; the halo of a tile is read from the cache."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.conv_swiglu_norm.launch import TABLE
from rtm_kernels.ops.launch import launch, select


@triton.jit
def shifted(t, step_row, step_column, L, PREFIX, SIDE, GRID: tl.constexpr):
    """Positions `t` moved by so many rows and columns of the grid (columns of the sequence), and which of them exist.

    Over a grid the first PREFIX positions have no neighbours.
    """
    if GRID:
        cell = t - PREFIX
        row, column = cell // SIDE + step_row, cell % SIDE + step_column
        there = (t >= PREFIX) & (t < L) & (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
        return PREFIX + row * SIDE + column, there
    moved = t + step_column
    return moved, (t < L) & (moved >= 0) & (moved < L)


@triton.jit
def hidden(z_ptr, batch, t, f, there, L, F, ACC: tl.constexpr):
    """gate, up and silu(gate) of z [B, L, 2F] at positions t and channels f; 0 where `there` does not hold."""
    at = z_ptr + (batch * L + t)[:, None] * (2 * F) + f[None, :]
    gate = tl.load(at, mask=there, other=0.0).to(ACC)
    up = tl.load(at + F, mask=there, other=0.0).to(ACC)
    return gate, up, gate / (1.0 + tl.exp(-gate))


@triton.jit
def convolved(
    z_ptr, weight_ptr, bias_ptr, batch, t, f, L, F, PREFIX, SIDE,
    K: tl.constexpr, GRID: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The convolution of silu(gate) * up at positions t and channels f; over a grid the prefix as it is."""
    in_f = f < F
    total = tl.zeros((t.shape[0], f.shape[0]), dtype=ACC)
    total += tl.load(bias_ptr + f, mask=in_f, other=0.0).to(ACC)[None, :]
    for tap in tl.static_range(K * K if GRID else K):
        moved, there = shifted(t, tap // K - K // 2, tap % K - K // 2, L, PREFIX, SIDE, GRID)
        _, up, silu = hidden(z_ptr, batch, moved, f, there[:, None] & in_f[None, :], L, F, ACC)
        weight = tl.load(weight_ptr + f * (K * K if GRID else K) + tap, mask=in_f, other=0.0).to(ACC)
        total += weight[None, :] * silu * up
    if GRID:
        _, up, silu = hidden(z_ptr, batch, t, f, ((t < PREFIX) & (t < L))[:, None] & in_f[None, :], L, F, ACC)
        total = tl.where((t < PREFIX)[:, None], silu * up, total)
    return total


@triton.jit
def forward_kernel(
    out_ptr, z_ptr, weight_ptr, bias_ptr, L, F, PREFIX, SIDE, TILES,
    K: tl.constexpr, GRID: tl.constexpr, ACC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """out [B, L, F] of one tile of positions and channels of one sample."""
    pid = tl.program_id(0).to(tl.int64)
    batch, t = pid // TILES, pid % TILES * BLOCK_L + tl.arange(0, BLOCK_L)
    f = tl.program_id(1).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    pre = convolved(z_ptr, weight_ptr, bias_ptr, batch, t, f, L, F, PREFIX, SIDE, K, GRID, ACC)
    out = pre / (1.0 + tl.exp(-pre))
    at = out_ptr + (batch * L + t)[:, None] * F + f[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=(t < L)[:, None] & (f < F)[None, :])


@triton.jit
def backward_output_kernel(
    dpre_ptr, dout_ptr, z_ptr, weight_ptr, bias_ptr, L, F, PREFIX, SIDE, TILES,
    K: tl.constexpr, GRID: tl.constexpr, ACC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """dpre [B, L, F]: the gradient of the convolution's output, which is computed again."""
    pid = tl.program_id(0).to(tl.int64)
    batch, t = pid // TILES, pid % TILES * BLOCK_L + tl.arange(0, BLOCK_L)
    f = tl.program_id(1).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    pre = convolved(z_ptr, weight_ptr, bias_ptr, batch, t, f, L, F, PREFIX, SIDE, K, GRID, ACC)
    at, mask = (batch * L + t)[:, None] * F + f[None, :], (t < L)[:, None] & (f < F)[None, :]
    share = 1.0 / (1.0 + tl.exp(-pre))
    dout = tl.load(dout_ptr + at, mask=mask, other=0.0).to(ACC)
    tl.store(dpre_ptr + at, dout * share * (1.0 + pre * (1.0 - share)), mask=mask)


@triton.jit
def backward_input_kernel(
    dz_ptr, part_ptr, dpre_ptr, z_ptr, weight_ptr, L, F, PREFIX, SIDE, TILES,
    K: tl.constexpr, GRID: tl.constexpr, ACC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """dz [B, L, 2F] of one tile, and its parts [taps + 1, F] of the gradients of the weight and the bias."""
    pid = tl.program_id(0).to(tl.int64)
    batch, t = pid // TILES, pid % TILES * BLOCK_L + tl.arange(0, BLOCK_L)
    f = tl.program_id(1).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_f, taps = f < F, K * K if GRID else K
    mask = (t < L)[:, None] & in_f[None, :]
    gate, up, silu = hidden(z_ptr, batch, t, f, mask, L, F, ACC)
    own = tl.load(dpre_ptr + (batch * L + t)[:, None] * F + f[None, :], mask=mask, other=0.0)
    part = part_ptr + pid * (taps + 1) * F + f
    if GRID:
        dact = tl.where((t < PREFIX)[:, None], own, 0.0)
        own = tl.where((t < PREFIX)[:, None], 0.0, own)
    else:
        dact = tl.zeros_like(own)
    tl.store(part + taps * F, tl.sum(own, axis=0), mask=in_f)
    for tap in tl.static_range(K * K if GRID else K):
        # the outputs that read t with this tap
        moved, there = shifted(t, K // 2 - tap // K, K // 2 - tap % K, L, PREFIX, SIDE, GRID)
        at = dpre_ptr + (batch * L + moved)[:, None] * F + f[None, :]
        dpre = tl.load(at, mask=there[:, None] & in_f[None, :], other=0.0)
        weight = tl.load(weight_ptr + f * (K * K if GRID else K) + tap, mask=in_f, other=0.0).to(ACC)
        dact += weight[None, :] * dpre
        tl.store(part + tap * F, tl.sum(dpre * silu * up, axis=0), mask=in_f)
    share = 1.0 / (1.0 + tl.exp(-gate))
    out = dz_ptr + (batch * L + t)[:, None] * (2 * F) + f[None, :]
    d_gate = dact * up * share * (1.0 + gate * (1.0 - share))
    tl.store(out, d_gate.to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(out + F, (dact * silu).to(dz_ptr.dtype.element_ty), mask=mask)


def _options(z: Tensor, weight: Tensor, prefix: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Sizes L, F, PREFIX and SIDE, and the constants of the kernels."""
    grid, length = weight.dim() == 4, z.shape[1]
    side = max(1, math.isqrt(max(0, length - prefix)))  # of the grid
    acc = tl.float64 if z.dtype == torch.float64 else tl.float32
    return (length, z.shape[2] // 2, prefix, side), {"K": weight.shape[-1], "GRID": grid, "ACC": acc}


def conv_hidden_forward(z: Tensor, weight: Tensor, bias: Tensor, prefix: int) -> Tensor:
    """`silu(conv(silu(gate) * up))` [B, L, F] of z [B, L, 2F] (gate first), dense."""
    sizes, constants = _options(z, weight, prefix)
    out = z.new_empty(*z.shape[:2], sizes[1])
    row = select(TABLE, "conv_hidden.forward", z.dtype, sizes[1])
    tiles = triton.cdiv(sizes[0], row.blocks["BLOCK_L"])
    if out.numel():
        grid = (len(z) * tiles, triton.cdiv(sizes[1], row.blocks["BLOCK_F"]))
        launch(forward_kernel, row, grid, out, z, weight, bias, *sizes, tiles, **constants)
    return out


def conv_hidden_backward(
    dout: Tensor, z: Tensor, weight: Tensor, bias: Tensor, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, weight and bias; sums over positions are added up in one order."""
    sizes, constants = _options(z, weight, prefix)
    length, inner = sizes[:2]
    wide = torch.promote_types(z.dtype, torch.float32)
    dz, dpre = torch.empty_like(z), torch.empty_like(dout, dtype=wide, memory_format=torch.contiguous_format)
    row = select(TABLE, "conv_hidden.backward_output", z.dtype, inner)
    last = select(TABLE, "conv_hidden.backward_input", z.dtype, inner)
    tiles, taps = triton.cdiv(length, last.blocks["BLOCK_L"]), weight[0].numel()
    parts = torch.zeros(len(z) * tiles, taps + 1, inner, dtype=wide, device=z.device)
    if dout.numel():
        grid = (len(z) * triton.cdiv(length, row.blocks["BLOCK_L"]), triton.cdiv(inner, row.blocks["BLOCK_F"]))
        count = triton.cdiv(length, row.blocks["BLOCK_L"])
        launch(backward_output_kernel, row, grid, dpre, dout.contiguous(), z, weight, bias, *sizes, count, **constants)
        grid = (len(z) * tiles, triton.cdiv(inner, last.blocks["BLOCK_F"]))
        launch(backward_input_kernel, last, grid, dz, parts, dpre, z, weight, *sizes, tiles, **constants)
    total = parts.sum(0)
    own = torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(total[:taps].T.reshape(weight.shape))
    return dz, own, total[taps].to(bias.dtype, copy=True)
