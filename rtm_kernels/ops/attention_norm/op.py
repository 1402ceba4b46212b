"""Registration of attention_norm with PyTorch: the opaque ops, their fakes, autograd and useful FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

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
