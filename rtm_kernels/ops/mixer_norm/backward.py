"""Launch sequence of mixer_norm's backward pass: the SwiGLU backward kernels over the view [B, D, L]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.ops.mixer_norm.launch import TABLE
from rtm_kernels.ops.swiglu.launchers import foldable, injected, norm_backward, swiglu_backward
from rtm_kernels.ops.swiglu.weights import pack, unpack_grads


def mixer_norm_backward(
    dy: Tensor,
    y: Tensor,
    rstd: Tensor,
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    injection: Sequence[Tensor],
    norm_axis: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h [B, L, D], gate_up_weight and down_weight from the op's inputs, its output y and rstd."""
    dh = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dh, gate_up_weight.new_zeros(gate_up_weight.shape), down_weight.new_zeros(down_weight.shape)
    dy, y, dr = dy.contiguous(), y.contiguous(), torch.empty_like(dh)
    if norm_axis == "sequence":
        norm_backward(dr.transpose(1, 2), dy.transpose(1, 2), y.transpose(1, 2), rstd, eps, TABLE)
    else:
        norm_backward(dr, dy, y, rstd, eps, TABLE)
    weights = pack(gate_up_weight, down_weight, x.dtype)
    h = injected(*foldable(x, injection), TABLE).transpose(1, 2)  # [B, D, L]
    grads = swiglu_backward(dh.transpose(1, 2), dr.transpose(1, 2), h, weights, TABLE)
    return dh, *unpack_grads(*grads, gate_up_weight, down_weight)
