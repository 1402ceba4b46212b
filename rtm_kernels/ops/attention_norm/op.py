"""Registration of attention_norm with PyTorch: the opaque ops, their fakes, autograd and useful FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.ops.shared import SharedOp, Tensors

CosSin = tuple[Tensor, Tensor] | None


def _tables(cos: Tensor | None, sin: Tensor | None) -> CosSin:
    return None if cos is None or sin is None else (cos, sin)


@torch.library.custom_op("rtm_kernels::attention_norm", mutates_args=())
def attention_norm_op(
    x: Tensor, injection: Sequence[Tensor], qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float, use_flash: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [B, L, D], rstd [B, L], and h = x + injection [B, L, D], which is empty without an injection."""
    from rtm_kernels.ops.attention_norm import steps

    tables = _tables(cos, sin)
    with torch.cuda.device_of(x):
        return steps.forward(x, injection, qkv_weight, o_weight, tables, num_heads, causal, qk_norm, eps, use_flash)


@attention_norm_op.register_fake
def _(x, injection, qkv_weight, o_weight, cos, sin, num_heads, causal, qk_norm, eps, use_flash):  # type: ignore
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    h = torch.empty_like(y) if injection else x.new_empty(0)
    return y, x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32)), h


@torch.library.custom_op("rtm_kernels::attention_norm_backward", mutates_args=())
def attention_norm_backward_op(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dh [B, L, D], d_qkv_weight and d_o_weight."""
    from rtm_kernels.ops.attention_norm import steps

    tables = _tables(cos, sin)
    with torch.cuda.device_of(h):
        return steps.backward(dy, y, rstd, h, qkv_weight, o_weight, tables, num_heads, causal, qk_norm, eps)


@attention_norm_backward_op.register_fake
def _(dy, y, rstd, h, qkv_weight, o_weight, cos, sin, num_heads, causal, qk_norm, eps):  # type: ignore
    contiguous = torch.contiguous_format
    tensors = (h, qkv_weight, o_weight)
    return tuple(torch.empty_like(t, memory_format=contiguous) for t in tensors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, injection, qkv_weight, o_weight, cos, sin, *options, _ = inputs
    y, rstd, h = output
    ctx.save_for_backward(y, rstd, h if injection else x, qkv_weight, o_weight, cos, sin)
    ctx.options, ctx.terms = options, len(injection)
    ctx.mark_non_differentiable(rstd, h)


def _backward(ctx: Any, dy: Tensor, d_rstd: Tensor, d_h: Tensor) -> tuple[Any, ...]:
    dh, d_qkv_weight, d_o_weight = attention_norm_backward_op(dy, *ctx.saved_tensors, *ctx.options)
    return dh, [dh] * ctx.terms, d_qkv_weight, d_o_weight, *[None] * 7


torch.library.register_autograd(attention_norm_op, _backward, setup_context=_setup_context)


@torch.library.custom_op("rtm_kernels::attention_norm_input_grad", mutates_args=("slots",))
def attention_norm_input_grad_op(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float, slots: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """dh of one call with weights in the compute dtype; fills `slots` for the weight gradients of many calls."""
    from rtm_kernels.ops.attention_norm import steps

    if not h.numel():
        return torch.empty_like(h, memory_format=torch.contiguous_format)
    saved, weights, tables = (dy, y, rstd, h), (qkv_weight, o_weight), _tables(cos, sin)
    with torch.cuda.device_of(h):
        return steps.input_grad_step(*saved, *weights, tables, num_heads, causal, qk_norm, eps, slots)[0]


@attention_norm_input_grad_op.register_fake
def _(dy, y, rstd, h, *options):  # type: ignore
    return torch.empty_like(h, memory_format=torch.contiguous_format)


@torch.library.custom_op("rtm_kernels::attention_norm_weight_grad", mutates_args=())
def attention_norm_weight_grad_op(slots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """d_qkv_weight [3D, D] and d_o_weight [D, D] in float32 or wider over all rows of the slots."""
    from rtm_kernels.ops.attention_norm import steps

    wide = torch.promote_types(slots[0].dtype, torch.float32)
    with torch.cuda.device_of(slots[0]):
        return steps.weight_grad_step(slots, wide, wide)


@attention_norm_weight_grad_op.register_fake
def _(slots):  # type: ignore
    width, wide = slots[0].shape[1], torch.promote_types(slots[0].dtype, torch.float32)
    return tuple(slots[0].new_empty(rows, width, dtype=wide) for rows in (3 * width, width))


def _shared_pack(qkv_weight: Tensor, o_weight: Tensor, dtype: torch.dtype) -> Tensors:
    return tuple(weight.detach().to(dtype).contiguous() for weight in (qkv_weight, o_weight))


def _shared_forward(x: Tensor, injection: Tensors, packed: Tensors, *options: Any) -> tuple[Tensor, Tensors]:
    # options: cos, sin, num_heads, causal, qk_norm, eps, use_flash
    y, rstd, h = attention_norm_op(x, injection, *packed, *options)
    return y, (rstd, h)


def _shared_slots(x: Tensor, packed: Tensors, *options: Any) -> list[tuple[int, ...]]:
    from rtm_kernels.ops.attention_norm import steps

    return steps.slot_shapes(x)


def _shared_input_grad(
    dy: Tensor, y: Tensor, saved: Tensors, x: Tensor, injection: Tensors, packed: Tensors, slots: Sequence[Tensor],
    *options: Any,
) -> Tensor:  # fmt: skip
    rstd, h = saved
    return attention_norm_input_grad_op(dy, y, rstd, h if injection else x, *packed, *options[:-1], slots)


def _shared_weight_grad(slots: Sequence[Tensor], packed: Tensors, *options: Any) -> Tensors:
    return attention_norm_weight_grad_op(slots)


def _shared_unpack(grads: Tensors, weights: Tensors) -> Tensors:
    return tuple(grad.to(weight.dtype) for grad, weight in zip(grads, weights, strict=True))


SHARED = SharedOp(_shared_pack, _shared_forward, _shared_slots, _shared_input_grad, _shared_weight_grad, _shared_unpack)
"""The op under `ops.shared.shared_weights`."""


def _flops(batch: int, length: int, width: int) -> int:
    return 8 * batch * length * width**2 + 4 * batch * length**2 * width


@register_flop_formula(torch.ops.rtm_kernels.attention_norm)
def _forward_flops(x_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs: the two projections and full attention."""
    return _flops(*x_shape)


@register_flop_formula(torch.ops.rtm_kernels.attention_norm_backward)
def _backward_flops(dy_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs, the recomputation of q, k and v left out: twice the forward."""
    return 2 * _flops(*dy_shape)


@register_flop_formula(torch.ops.rtm_kernels.attention_norm_input_grad)
def _input_grad_flops(dy_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs of the backward without those of the weight gradients."""
    return 2 * _flops(*dy_shape) - 8 * math.prod(dy_shape) * int(dy_shape[2])


@register_flop_formula(torch.ops.rtm_kernels.attention_norm_weight_grad)
def _weight_grad_flops(slots: Any, *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs: 2 for each row and each of the 4 D^2 weights."""
    rows, width = slots[0]
    return 8 * int(rows) * int(width) ** 2
