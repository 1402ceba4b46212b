"""Launch sequence of swiglu_norm's backward pass: the SwiGLU backward kernels over the view [1, B*L, D]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.ops.swiglu.launchers import foldable, injected, norm_backward, swiglu_backward
from rtm_kernels.ops.swiglu.weights import pack, unpack_grads
from rtm_kernels.ops.swiglu_norm.forward import rows_view
from rtm_kernels.ops.swiglu_norm.launch import TABLE


def swiglu_norm_backward(
    dy: Tensor,
    y: Tensor,
    rstd: Tensor,
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    injection: Sequence[Tensor],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h (x's shape), gate_up_weight and down_weight from the op's inputs, its output y and rstd."""
    dh = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dh, gate_up_weight.new_zeros(gate_up_weight.shape), down_weight.new_zeros(down_weight.shape)
    x, injection = foldable(x, injection)
    h = injected(rows_view(x), [rows_view(term) for term in injection], TABLE)
    dy, y, dr = (t.contiguous().view(h.shape) for t in (dy, y, torch.empty_like(dh)))
    norm_backward(dr, dy, y, rstd, eps, TABLE)
    weights = pack(gate_up_weight, down_weight, x.dtype)
    grads = swiglu_backward(dh.view(h.shape), dr, h, weights, TABLE)
    return dh, *unpack_grads(*grads, gate_up_weight, down_weight)
