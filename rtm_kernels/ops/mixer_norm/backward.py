"""Launch sequences of mixer_norm's backward pass: the SwiGLU backward kernels over the view [B, D, L]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtm_kernels.ops.mixer_norm.launch import TABLE
from rtm_kernels.ops.swiglu.launchers import foldable, hidden_widths, injected, input_grad, norm_backward, weight_grads
from rtm_kernels.ops.swiglu.weights import PackedWeights, pack, unpack_grads


def slot_shapes(x: Tensor, weights: PackedWeights) -> list[tuple[int, ...]]:
    """Shapes of h, dr and, where the weight gradients read them, dz and act of one call; samples or rows first."""
    batch, length, features = x.shape
    hidden = ((batch * features, width) for width in hidden_widths(weights, TABLE))
    return [(batch, length, features), (batch, length, features), *hidden]


def mixer_norm_input_grad(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights,
    norm_axis: str, eps: float, slots: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:  # fmt: skip
    """Gradient of h [B, L, D], and dr, h and [dz, act] as `weight_grads` reads them, in the `slots` if given."""
    dh = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dy, y, dr = dy.contiguous(), y.contiguous(), slots[1] if slots else torch.empty_like(dh)
    if norm_axis == "sequence":
        norm_backward(dr.transpose(1, 2), dy.transpose(1, 2), y.transpose(1, 2), rstd, eps, TABLE)
    else:
        norm_backward(dr, dy, y, rstd, eps, TABLE)
    h = injected(*foldable(x, injection), TABLE, slots[0] if slots else None).transpose(1, 2)  # [B, D, L]
    rows = h.shape[0] * h.shape[1]
    hidden = slots[2:] if slots else [h.new_empty(rows, width) for width in hidden_widths(weights, TABLE)]
    input_grad(dh.transpose(1, 2), dr.transpose(1, 2), h, hidden, weights, TABLE)
    return dh, dr.transpose(1, 2), h, hidden


def mixer_norm_weight_grad(slots: Sequence[Tensor], weights: PackedWeights) -> tuple[Tensor, Tensor]:
    """Gradients of the packed weights, [2 F_pad, L] and [F_pad, L], float32 or wider, over all rows of the slots."""
    h, dr, *hidden = slots
    return weight_grads(dr.transpose(1, 2), h.transpose(1, 2), hidden, weights, TABLE)


def mixer_norm_backward(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor,
    injection: Sequence[Tensor], norm_axis: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of h [B, L, D], gate_up_weight and down_weight from the op's inputs, its output y and rstd."""
    if not x.numel():
        zeros = gate_up_weight.new_zeros(gate_up_weight.shape), down_weight.new_zeros(down_weight.shape)
        return x.new_empty(x.shape), *zeros
    weights = pack(gate_up_weight, down_weight, x.dtype)
    dh, dr, h, hidden = mixer_norm_input_grad(dy, y, rstd, x, injection, weights, norm_axis, eps)
    grads = weight_grads(dr, h, hidden, weights, TABLE)
    return dh, *unpack_grads(*grads, gate_up_weight, down_weight)
