"""conv_swiglu_norm in plain PyTorch: the specification of every implementation of this op."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.ops.primitives import inject_sum, rms_norm


def depthwise(a: Tensor, weight: Tensor, bias: Tensor, prefix: int = 0) -> Tensor:
    """A convolution of each channel of a [B, L, F] by itself: weight [F, 1, k] or [F, 1, k, k], bias [F].

    Of width k along the sequence, position t sees t - k // 2 to t - k // 2 + k - 1. A k x k one runs over the square
    grid of the positions from `prefix` on, centred, and leaves the `prefix` first positions as they are. What lies
    outside counts as zero.
    """
    channels, k = weight.shape[0], weight.shape[-1]
    weight, bias = weight.to(a.dtype), bias.to(a.dtype)
    if a.shape[1] == prefix or not a.shape[1]:  # PyTorch convolves no empty rows
        return a + 0 * (weight.sum() + bias.sum())
    if weight.ndim == 3:
        return F.conv1d(a.transpose(1, 2), weight, bias, padding=k // 2, groups=channels)[..., : a.shape[1]].mT
    head, cells = a[:, :prefix], a[:, prefix:]
    side = math.isqrt(cells.shape[1])
    grid = cells.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
    mixed = F.conv2d(grid, weight, bias, padding=k // 2, groups=channels).permute(0, 2, 3, 1).reshape(cells.shape)
    return torch.cat((head, mixed), dim=1) if prefix else mixed


def conv_swiglu_norm(
    x: Tensor,
    gate_up_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    down_weight: Tensor,
    *,
    injection: tuple[Tensor, ...] = (),
    prefix: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """`rms_norm(h + down(silu(conv(silu(gate h) * up h))))` with `h = x + (sum of injection)`; x [B, L, D]."""
    h = inject_sum(x, injection)
    inner = down_weight.shape[1]
    gate_up = gate_up_weight.to(h.dtype)
    act = F.silu(F.linear(h, gate_up[:inner])) * F.linear(h, gate_up[inner:])  # [B, L, F]
    mixed = F.silu(depthwise(act, conv_weight, conv_bias, prefix))
    return rms_norm(h + F.linear(mixed, down_weight.to(h.dtype)), eps)
