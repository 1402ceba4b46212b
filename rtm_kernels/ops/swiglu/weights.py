"""Weights as the kernels read them: in the compute dtype, contiguous, rows a multiple of 16 elements."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ALIGNMENT = 16
"""Elements, and bytes at the start: what Triton vectorises loads from, and what TMA descriptors ask for."""


class PackedWeights(NamedTuple):
    """gate_up [2 F_pad, N_pad] and down [N, F_pad], zero in the padding; without padding no copy is made."""

    gate_up: Tensor
    down: Tensor

    @property
    def inner(self) -> int:
        """F_pad."""
        return self.down.shape[1]

    @property
    def padded(self) -> int:
        """N_pad."""
        return self.gate_up.shape[1]


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of 16."""
    return -(size // -ALIGNMENT) * ALIGNMENT


def pack(gate_up_weight: Tensor, down_weight: Tensor, dtype: torch.dtype) -> PackedWeights:
    """Pack gate_up_weight [2F, N] and down_weight [N, F] in `dtype`; packed weights are returned as they are."""
    inner = down_weight.shape[1]
    gate_up = gate_up_weight.detach()
    if missing := aligned(inner) - inner:
        gate_up = functional.pad(gate_up.reshape(2, inner, -1), (0, 0, 0, missing)).flatten(0, 1)
    return PackedWeights(pad_rows(gate_up, dtype), pad_rows(down_weight, dtype))


def pad_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight [N, K] in `dtype`, [N, K_pad] with zeros in the padding; the weight itself where nothing changes."""
    weight = weight.detach().to(dtype)
    missing = aligned(weight.shape[1]) - weight.shape[1]
    weight = functional.pad(weight, (0, missing)) if missing else weight.contiguous()
    return weight.clone() if weight.data_ptr() % ALIGNMENT else weight


def unpack_grads(
    d_gate_up: Tensor, d_down_t: Tensor, gate_up_weight: Tensor, down_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the packed weights, [2 F_pad, N] and [F_pad, N], in the shapes and dtypes of the weights."""
    features, inner = down_weight.shape
    d_gate_up = d_gate_up.view(2, -1, features)[:, :inner].reshape(gate_up_weight.shape)
    return d_gate_up.to(gate_up_weight.dtype), d_down_t[:inner].t().to(down_weight.dtype).contiguous()
