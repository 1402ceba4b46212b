"""Launch sequence of mixer_norm's forward pass: the SwiGLU kernels over the view [B, D, L], by strides alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.ops.mixer_norm.launch import TABLE
from rtm_kernels.ops.swiglu.launchers import foldable, normalise, swiglu_residual
from rtm_kernels.ops.swiglu.weights import pack


def mixer_norm_forward(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], norm_axis: str, eps: float
) -> tuple[Tensor, Tensor]:
    """y [B, L, D] and rstd, [B, D] for `norm_axis="sequence"`, [B, L] for `"hidden"`, in the accumulator's dtype."""
    x, injection = foldable(x, injection)
    batch, length, features = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sequence = norm_axis == "sequence"
    wide = torch.promote_types(x.dtype, torch.float32)
    rstd = x.new_empty(batch, features if sequence else length, dtype=wide)
    if not x.numel():
        return y, rstd
    weights = pack(gate_up_weight, down_weight, x.dtype)
    channels, mixed = x.transpose(1, 2), y.transpose(1, 2)  # [B, D, L]
    terms = [term.transpose(1, 2) for term in injection]
    swiglu_residual(mixed, rstd if sequence else None, channels, terms, weights, eps, TABLE)
    if not sequence:
        normalise(y, rstd, eps, TABLE)
    return y, rstd
