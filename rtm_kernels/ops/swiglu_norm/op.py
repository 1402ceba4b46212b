"""Registration of swiglu_norm with PyTorch: the opaque ops and what a recursion shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.ops.shared import Tensors
from rtm_kernels.ops.swiglu.registration import register, shared_op
from rtm_kernels.ops.swiglu.weights import PackedWeights


@torch.library.custom_op("rtm_kernels::swiglu_norm", mutates_args=())
def swiglu_norm_op(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """y and rstd [rows]; the weights may be packed already."""
    from rtm_kernels.ops.swiglu_norm.forward import swiglu_norm_forward

    with torch.cuda.device_of(x):
        return swiglu_norm_forward(x, gate_up_weight, down_weight, injection, eps)


@swiglu_norm_op.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, injection: Sequence[Tensor], eps: float) -> Any:
    rows = math.prod(x.shape[:-1])
    return x.new_empty(x.shape), x.new_empty(rows, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("rtm_kernels::swiglu_norm_backward", mutates_args=())
def swiglu_norm_backward_op(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor,
    injection: Sequence[Tensor], eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dh, d_gate_up_weight and d_down_weight of one call."""
    from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_backward

    with torch.cuda.device_of(x):
        return swiglu_norm_backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, eps)


@torch.library.custom_op("rtm_kernels::swiglu_norm_input_grad", mutates_args=("slots",))
def swiglu_norm_input_grad_op(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, injection: Sequence[Tensor],
    eps: float, slots: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """dh of one call with packed weights; fills `slots` for the weight gradients of many calls."""
    from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_input_grad

    if not x.numel():
        return x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        return swiglu_norm_input_grad(dy, y, rstd, x, injection, PackedWeights(gate_up, down), eps, slots)[0]


@torch.library.custom_op("rtm_kernels::swiglu_norm_weight_grad", mutates_args=())
def swiglu_norm_weight_grad_op(slots: Sequence[Tensor], gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients [2 F_pad, D] and [F_pad, D] of the packed weights over all rows of the slots."""
    from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_weight_grad

    with torch.cuda.device_of(gate_up):
        return swiglu_norm_weight_grad(slots, PackedWeights(gate_up, down))


def _slots(x: Tensor, packed: Tensors, *options: Any) -> list[tuple[int, ...]]:
    from rtm_kernels.ops.swiglu_norm.backward import slot_shapes

    return slot_shapes(x, PackedWeights(*packed))


register("swiglu_norm", swiglu_norm_op, swiglu_norm_backward_op, swiglu_norm_input_grad_op, swiglu_norm_weight_grad_op)
SHARED = shared_op(swiglu_norm_op, _slots, swiglu_norm_input_grad_op, swiglu_norm_weight_grad_op)
"""The op under `ops.shared.shared_weights`."""
