"""Launch sequence of swiglu_norm's forward pass: the SwiGLU kernels over the view [1, B*L, D]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.ops.swiglu.launchers import foldable, swiglu_residual
from rtm_kernels.ops.swiglu.weights import pack
from rtm_kernels.ops.swiglu_norm.launch import TABLE


def rows_view(x: Tensor) -> Tensor:
    """x [..., D] as [batch, rows, D] without a copy where its strides allow it."""
    try:
        return x.view(1, -1, x.shape[-1])
    except RuntimeError:
        return x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])


def swiglu_norm_forward(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """y with x's shape and rstd [rows] in the accumulator's dtype."""
    x, injection = foldable(x, injection)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = rows_view(x)
    rstd = x.new_empty(rows.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    if x.numel():
        weights = pack(gate_up_weight, down_weight, x.dtype)
        terms = [rows_view(term) for term in injection]
        swiglu_residual(y.view(rows.shape), rstd, rows, terms, weights, eps, TABLE)
    return y, rstd.flatten()
