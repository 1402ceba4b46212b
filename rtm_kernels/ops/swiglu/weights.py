"""Weights as the SwiGLU kernels read them: in the compute dtype, contiguous, rows a multiple of 16 elements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 16
"""Elements; Triton vectorises and pipelines loads only from strides and masks divisible by 16."""


@dataclass(frozen=True)
class PackedWeights:
    """gate_up [2, F_pad, N_pad] and down [N, F_pad], zero in the padding; without padding no copy is made."""

    gate_up: Tensor
    down: Tensor


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of 16."""
    return -(size // -ALIGNMENT) * ALIGNMENT


def pack(gate_up_weight: Tensor, down_weight: Tensor, dtype: torch.dtype) -> PackedWeights:
    """Pack gate_up_weight [2F, N] and down_weight [N, F] in `dtype`."""
    features, inner = down_weight.shape
    gate_up = gate_up_weight.detach().reshape(2, inner, features)
    down = down_weight.detach()
    if (aligned(inner), aligned(features)) == (inner, features):
        return PackedWeights(gate_up.to(dtype).contiguous(), down.to(dtype).contiguous())
    padded_gate_up = gate_up.new_zeros(2, aligned(inner), aligned(features), dtype=dtype)
    padded_gate_up[:, :inner, :features] = gate_up
    padded_down = down.new_zeros(features, aligned(inner), dtype=dtype)
    padded_down[:, :inner] = down
    return PackedWeights(padded_gate_up, padded_down)


def unpack_grads(
    d_gate_up: Tensor, d_down_t: Tensor, gate_up_weight: Tensor, down_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the packed weights, [2, F_pad, N] and [F_pad, N], in the shapes and dtypes of the weights."""
    inner = down_weight.shape[1]
    d_gate_up = d_gate_up[:, :inner].reshape(gate_up_weight.shape).to(gate_up_weight.dtype)
    return d_gate_up, d_down_t[:inner].t().to(down_weight.dtype).contiguous()
