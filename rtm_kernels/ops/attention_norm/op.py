"""The launch sequences of attention_norm, their registration with PyTorch, and what a recursion shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.ops.attention_norm import attention
from rtm_kernels.ops.shared import SharedOp, Tensors
from rtm_kernels.ops.swiglu.weights import ALIGNMENT, pad_rows

CosSin = tuple[Tensor, Tensor] | None


def forward(
    x: Tensor, injection: Sequence[Tensor], qkv_weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    num_heads: int, causal: bool, qk_norm: bool, eps: float, use_flash: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [B, L, D], rstd [B, L], and h = x + injection [B, L, D], which is empty without an injection."""
    from rtm_kernels.ops.attention_norm.qkv import project_qkv
    from rtm_kernels.ops.swiglu import launchers

    batch, length, width = x.shape
    y, rstd, kept = _outputs(x, injection)
    if not x.numel():
        return y, rstd, kept
    h = launchers.injected(x.contiguous(), [term.contiguous() for term in injection], kept if injection else None)
    qkv = x.new_empty(batch, length, 3, num_heads, width // num_heads)
    project_qkv(qkv, None, h, pad_rows(qkv_weight, x.dtype), cos_sin, eps, qk_norm)
    mixed = (attention.flash if use_flash else attention.sdpa)(*attention.heads_of(qkv), causal)
    rows, o_weight = mixed.transpose(1, 2).reshape(-1, width), pad_rows(o_weight, x.dtype)
    if missing := o_weight.shape[1] - width:
        rows = functional.pad(rows, (0, missing))
    view = _view(width)
    launchers.gemm(launchers.split(y, view), rows, o_weight, launchers.split(h, view), view, rstd, eps)
    return y, rstd, kept


def input_grad(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    num_heads: int, causal: bool, qk_norm: bool, eps: float, slots: Sequence[Tensor] = (),
) -> tuple[Tensor, Sequence[Tensor]]:  # fmt: skip
    """dh, and the rows that `weight_grad` reads, which are the `slots` if given; the weights are padded.

    q, k and v are recomputed from h, the attention through SDPA.
    """
    from rtm_kernels.ops.attention_norm.qkv import project_qkv, turn_backward
    from rtm_kernels.ops.swiglu import launchers

    batch, length, width = h.shape
    h = h.contiguous() if not slots else slots[0].view(h.shape).copy_(h)
    rows = [h.view(-1, width), *(slots[1:] or (h.new_empty(shape) for shape in slot_shapes(h)[1:]))]
    _, d_qkv_rows, mixed_rows, ds = rows
    qkv = h.new_empty(batch, length, 3, num_heads, width // num_heads)
    qk_rstd = rstd.new_empty(batch, length, 2, num_heads) if qk_norm else None
    project_qkv(qkv, qk_rstd, h, qkv_weight, cos_sin, eps, qk_norm)

    view, residual = _view(width), ds.unsqueeze(0)
    dy, y = (launchers.split(t.contiguous(), view) for t in (dy, y))
    launchers.norm_backward(residual, dy, y, rstd, eps, view)
    d_mixed = torch.empty_like(h)
    launchers.gemm(launchers.split(d_mixed, view), ds, o_weight.t(), None, view)
    heads = d_mixed.view(batch, length, num_heads, -1).transpose(1, 2)
    mixed, gradients = attention.attention_grad(qkv, heads, causal)
    mixed_rows.view(batch, length, num_heads, -1).copy_(mixed.transpose(1, 2))

    d_qkv = d_qkv_rows.view(qkv.shape)
    for i in range(2):
        scale = None if qk_rstd is None else qk_rstd[:, :, i]
        turn_backward(d_qkv[:, :, i], gradients[i], qkv[:, :, i], scale, cos_sin)
    d_qkv[:, :, 2].copy_(gradients[2].transpose(1, 2))
    dh = torch.empty_like(h)
    launchers.gemm(launchers.split(dh, view), d_qkv_rows, qkv_weight.t(), residual, view)
    return dh, rows


def weight_grad(slots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """d_qkv_weight [3D, D] and d_o_weight [D, D] in float32 or wider over all rows of the slots."""
    from rtm_kernels.ops.swiglu import launchers

    h, d_qkv, mixed, ds = slots
    view = _view(h.shape[1])
    return launchers.weight_grad(d_qkv, h[None], view), launchers.weight_grad(ds, mixed[None], view)


def backward(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    num_heads: int, causal: bool, qk_norm: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dh, d_qkv_weight and d_o_weight of one call."""
    if not h.numel():
        return h.new_empty(h.shape), qkv_weight.new_zeros(qkv_weight.shape), o_weight.new_zeros(o_weight.shape)
    qkv, o = (pad_rows(weight, h.dtype) for weight in (qkv_weight, o_weight))
    dh, rows = input_grad(dy, y, rstd, h, qkv, o, cos_sin, num_heads, causal, qk_norm, eps)
    d_qkv, d_o = weight_grad(rows)
    return dh, d_qkv.to(qkv_weight.dtype), d_o.to(o_weight.dtype)


def slot_shapes(h: Tensor) -> list[tuple[int, ...]]:
    """Shapes of h, the gradient of qkv, the attention's output and the gradient of the row, of one call; rows first."""
    rows, width = h.shape[0] * h.shape[1], h.shape[2]
    return [(rows, width), (rows, 3 * width), (rows, width), (rows, width)]


def _outputs(x: Tensor, injection: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    rstd = x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape), rstd, x.new_empty(x.shape if injection else 0)


def _view(width: int) -> str:
    return "odd" if width % ALIGNMENT else "hidden"


def _tables(cos: Tensor | None, sin: Tensor | None) -> CosSin:
    return None if cos is None or sin is None else (cos, sin)


@torch.library.custom_op("rtm_kernels::attention_norm", mutates_args=())
def attention_norm_op(
    x: Tensor, injection: Sequence[Tensor], qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float, use_flash: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `forward`."""
    tables = _tables(cos, sin)
    with torch.cuda.device_of(x):
        return forward(x, injection, qkv_weight, o_weight, tables, num_heads, causal, qk_norm, eps, use_flash)


@attention_norm_op.register_fake
def _(x: Tensor, injection: Sequence[Tensor], *options: Any) -> Any:
    return _outputs(x, injection)


@torch.library.custom_op("rtm_kernels::attention_norm_backward", mutates_args=())
def attention_norm_backward_op(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `backward`."""
    tables = _tables(cos, sin)
    with torch.cuda.device_of(h):
        return backward(dy, y, rstd, h, qkv_weight, o_weight, tables, num_heads, causal, qk_norm, eps)


@attention_norm_backward_op.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, *options: Any) -> Any:
    return tuple(t.new_empty(t.shape) for t in (h, qkv_weight, o_weight))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, injection, qkv_weight, o_weight, cos, sin, *options, _ = inputs
    y, rstd, h = output
    ctx.save_for_backward(y, rstd, h if injection else x, qkv_weight, o_weight, cos, sin)
    ctx.options, ctx.terms = options, len(injection)
    ctx.mark_non_differentiable(rstd, h)


def _differentiate(ctx: Any, dy: Tensor, d_rstd: Tensor, d_h: Tensor) -> tuple[Any, ...]:
    dh, d_qkv_weight, d_o_weight = attention_norm_backward_op(dy, *ctx.saved_tensors, *ctx.options)
    return dh, [dh] * ctx.terms, d_qkv_weight, d_o_weight, *[None] * 7


attention_norm_op.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("rtm_kernels::attention_norm_input_grad", mutates_args=("slots",))
def attention_norm_input_grad_op(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float, slots: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """dh of one call with padded weights; fills `slots` for the weight gradients of many calls."""
    if not h.numel():
        return h.new_empty(h.shape)
    saved, weights, tables = (dy, y, rstd, h), (qkv_weight, o_weight), _tables(cos, sin)
    with torch.cuda.device_of(h):
        return input_grad(*saved, *weights, tables, num_heads, causal, qk_norm, eps, slots)[0]


@attention_norm_input_grad_op.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, *options: Any) -> Any:
    return h.new_empty(h.shape)


@torch.library.custom_op("rtm_kernels::attention_norm_weight_grad", mutates_args=())
def attention_norm_weight_grad_op(slots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """See `weight_grad`."""
    with torch.cuda.device_of(slots[0]):
        return weight_grad(slots)


@attention_norm_weight_grad_op.register_fake
def _(slots: Sequence[Tensor]) -> Any:
    width, wide = slots[0].shape[1], torch.promote_types(slots[0].dtype, torch.float32)
    return tuple(slots[0].new_empty(rows, width, dtype=wide) for rows in (3 * width, width))


def _shared_pack(qkv_weight: Tensor, o_weight: Tensor, dtype: torch.dtype) -> Tensors:
    return pad_rows(qkv_weight, dtype), pad_rows(o_weight, dtype)


def _shared_forward(x: Tensor, injection: Tensors, packed: Tensors, *options: Any) -> tuple[Tensor, Tensors]:
    # options: cos, sin, num_heads, causal, qk_norm, eps, use_flash
    y, rstd, h = attention_norm_op(x, injection, *packed, *options)
    return y, (rstd, h)


def _shared_slots(x: Tensor, packed: Tensors, *options: Any) -> list[tuple[int, ...]]:
    return slot_shapes(x)


def _shared_input_grad(
    dy: Tensor, y: Tensor, saved: Tensors, x: Tensor, injection: Tensors, packed: Tensors, slots: Sequence[Tensor],
    *options: Any,
) -> Tensor:  # fmt: skip
    rstd, h = saved
    dh: Tensor = attention_norm_input_grad_op(dy, y, rstd, h if injection else x, *packed, *options[:-1], slots)
    return dh


def _shared_weight_grad(slots: Sequence[Tensor], packed: Tensors, *options: Any) -> Tensors:
    grads: Tensors = attention_norm_weight_grad_op(slots)
    return grads


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
