"""Launch sequences of swiglu_norm's backward pass: the SwiGLU backward kernels over the view [1, B*L, D]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.ops.swiglu.launchers import foldable, hidden_widths, injected, input_grad, norm_backward, weight_grads
from rtm_kernels.ops.swiglu.weights import PackedWeights, pack, unpack_grads
from rtm_kernels.ops.swiglu_norm.forward import rows_view
from rtm_kernels.ops.swiglu_norm.launch import TABLE


def slot_shapes(x: Tensor, weights: PackedWeights) -> list[tuple[int, ...]]:
    """Shapes of h, dr and, where the weight gradients read them, dz and act of one call; rows first."""
    rows, features = math.prod(x.shape[:-1]), x.shape[-1]
    return [(rows, width) for width in (features, features, *hidden_widths(weights, TABLE))]


def swiglu_norm_input_grad(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights, eps: float,
    slots: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:  # fmt: skip
    """Gradient of h in x's shape, and h, dr and [dz, act] as `weight_grads` reads them, in the `slots` if given."""
    dh = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, injection = foldable(x, injection)
    x, *injection = (rows_view(t) for t in (x, *injection))
    h = injected(x, injection, TABLE, slots[0].view(x.shape) if slots else None)
    dr = slots[1] if slots else torch.empty_like(dh)
    dy, y, dr = (t.contiguous().view(h.shape) for t in (dy, y, dr))
    norm_backward(dr, dy, y, rstd, eps, TABLE)
    hidden = slots[2:] if slots else [h.new_empty(rstd.numel(), width) for width in hidden_widths(weights, TABLE)]
    input_grad(dh.view(h.shape), dr, h, hidden, weights, TABLE)
    return dh, dr, h, hidden


def swiglu_norm_weight_grad(slots: Sequence[Tensor], weights: PackedWeights) -> tuple[Tensor, Tensor]:
    """Gradients of the packed weights, [2 F_pad, D] and [F_pad, D], float32 or wider, over all rows of the slots."""
    h, dr, *hidden = slots
    return weight_grads(dr.unsqueeze(0), h.unsqueeze(0), hidden, weights, TABLE)


def swiglu_norm_backward(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor,
    injection: Sequence[Tensor], eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of h (x's shape), gate_up_weight and down_weight from the op's inputs, its output y and rstd."""
    if not x.numel():
        zeros = gate_up_weight.new_zeros(gate_up_weight.shape), down_weight.new_zeros(down_weight.shape)
        return x.new_empty(x.shape), *zeros
    weights = pack(gate_up_weight, down_weight, x.dtype)
    dh, dr, h, hidden = swiglu_norm_input_grad(dy, y, rstd, x, injection, weights, eps)
    grads = weight_grads(dr, h, hidden, weights, TABLE)
    return dh, *unpack_grads(*grads, gate_up_weight, down_weight)
