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
from rtm_kernels.ops.launch import first_order
from rtm_kernels.ops.shared import SharedOp
from rtm_kernels.ops.swiglu.weights import ALIGNMENT, pad_rows

CosSin = tuple[Tensor, Tensor] | None
Shape = tuple[int, ...]


def forward(
    x: Tensor, qkv_weight: Tensor, o_weight: Tensor, injection: Sequence[Tensor], cos: Tensor | None,
    sin: Tensor | None, bias: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float,
    use_flash: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [B, L, D], rstd [B, L], and h = x + injection [B, L, D], which is empty without an injection."""
    from rtm_kernels.ops.attention_norm.qkv import project_qkv
    from rtm_kernels.ops.swiglu import launchers

    batch, length, width = x.shape
    y, rstd, kept = _outputs(x, injection)
    if not x.numel():
        return y, rstd, kept
    with torch.cuda.device_of(x):
        h = launchers.injected(x.contiguous(), [term.contiguous() for term in injection], kept if injection else None)
        qkv = x.new_empty(batch, length, 3, num_heads, width // num_heads)
        project_qkv(qkv, None, h, pad_rows(qkv_weight, x.dtype), _tables(cos, sin), eps, qk_norm)
        mixed = attention.flash(qkv, causal) if use_flash else attention.sdpa(qkv, causal, bias)
        rows, o_weight = mixed.reshape(-1, width), pad_rows(o_weight, x.dtype)
        if missing := o_weight.shape[1] - width:
            rows = functional.pad(rows, (0, missing))
        view = _view(width)
        launchers.gemm(launchers.split(y, view), rows, o_weight, launchers.split(h, view), view, rstd, eps)
    return y, rstd, kept


def input_grad(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    bias: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float, slots: Sequence[Tensor] = (),
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
    mixed, gradients = attention.sdpa_grad(qkv, d_mixed.view(batch, length, num_heads, -1), causal, bias)
    mixed_rows.view(mixed.shape).copy_(mixed)

    d_qkv = d_qkv_rows.view(qkv.shape)
    for i in range(2):
        scale = None if qk_rstd is None else qk_rstd[:, :, i]
        turn_backward(d_qkv[:, :, i], gradients[i].transpose(1, 2), qkv[:, :, i], scale, cos_sin)
    d_qkv[:, :, 2].copy_(gradients[2])
    dh = torch.empty_like(h)
    launchers.gemm(launchers.split(dh, view), d_qkv_rows, qkv_weight.t(), residual, view)
    return dh, rows


def weight_grad(slots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """d_qkv_weight [3D, D] and d_o_weight [D, D] in float32 or wider over all rows of the slots."""
    from rtm_kernels.ops.swiglu import launchers

    h, d_qkv, mixed, ds = slots
    view = _view(h.shape[1])
    with torch.cuda.device_of(h):
        return launchers.weight_grad(d_qkv, h[None], view), launchers.weight_grad(ds, mixed[None], view)


def backward(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos: Tensor | None,
    sin: Tensor | None, bias: Tensor | None, num_heads: int, causal: bool, qk_norm: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dh, d_qkv_weight and d_o_weight of one call."""
    if not h.numel():
        return h.new_empty(h.shape), qkv_weight.new_zeros(qkv_weight.shape), o_weight.new_zeros(o_weight.shape)
    with torch.cuda.device_of(h):
        qkv, o = (pad_rows(weight, h.dtype) for weight in (qkv_weight, o_weight))
        dh, rows = input_grad(dy, y, rstd, h, qkv, o, _tables(cos, sin), bias, num_heads, causal, qk_norm, eps)
        return dh, *_unpack(*weight_grad(rows), qkv_weight, o_weight)


def slot_shapes(h: Tensor) -> list[Shape]:
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


attention_norm_op = torch.library.custom_op("rtm_kernels::attention_norm", forward, mutates_args=())
attention_norm_backward_op = torch.library.custom_op("rtm_kernels::attention_norm_backward", backward, mutates_args=())
attention_norm_weight_grad_op = torch.library.custom_op(
    "rtm_kernels::attention_norm_weight_grad", weight_grad, mutates_args=()
)


@attention_norm_op.register_fake
def _(x: Tensor, qkv_weight: Tensor, o_weight: Tensor, injection: Sequence[Tensor], *options: Any) -> Any:
    return _outputs(x, injection)


@attention_norm_backward_op.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, *options: Any) -> Any:
    return tuple(t.new_empty(t.shape) for t in (h, qkv_weight, o_weight))


@attention_norm_weight_grad_op.register_fake
def _(slots: Sequence[Tensor]) -> Any:
    width, wide = slots[0].shape[1], torch.promote_types(slots[0].dtype, torch.float32)
    return tuple(slots[0].new_empty(rows, width, dtype=wide) for rows in (3 * width, width))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, qkv_weight, o_weight, injection, cos, sin, bias, *options, _ = inputs
    y, rstd, h = output
    ctx.save_for_backward(y, rstd, h if injection else x, qkv_weight, o_weight, cos, sin, bias)
    ctx.options, ctx.terms = options, len(injection)
    ctx.mark_non_differentiable(rstd, h)


def _differentiate(ctx: Any, dy: Tensor, d_rstd: Tensor, d_h: Tensor) -> tuple[Any, ...]:
    given = *ctx.saved_tensors, *ctx.options
    dh, d_qkv_weight, d_o_weight = first_order("attention_norm", attention_norm_backward_op, dy, *given)
    return dh, d_qkv_weight, d_o_weight, [dh] * ctx.terms, *[None] * 8


attention_norm_op.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("rtm_kernels::attention_norm_input_grad", mutates_args=("slots",))
def attention_norm_input_grad_op(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, x: Tensor, qkv_weight: Tensor, o_weight: Tensor,
    injection: Sequence[Tensor], cos: Tensor | None, sin: Tensor | None, bias: Tensor | None, num_heads: int,
    causal: bool, qk_norm: bool, eps: float, use_flash: bool, slots: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """dh of one call with padded weights; fills `slots` for the weight gradients of many calls."""
    h, weights, tables = h if injection else x, (qkv_weight, o_weight), _tables(cos, sin)
    if not h.numel():
        return h.new_empty(h.shape)
    with torch.cuda.device_of(h):
        return input_grad(dy, y, rstd, h, *weights, tables, bias, num_heads, causal, qk_norm, eps, slots)[0]


@attention_norm_input_grad_op.register_fake
def _(dy: Tensor, *options: Any) -> Any:
    return dy.new_empty(dy.shape)


def _unpack(d_qkv: Tensor, d_o: Tensor, qkv_weight: Tensor, o_weight: Tensor) -> tuple[Tensor, Tensor]:
    return d_qkv.to(qkv_weight.dtype), d_o.to(o_weight.dtype)


SHARED = SharedOp(
    lambda qkv, o, dtype: (pad_rows(qkv, dtype), pad_rows(o, dtype)), attention_norm_op, lambda x, *_: slot_shapes(x),
    attention_norm_input_grad_op, lambda slots, *_: attention_norm_weight_grad_op(slots), _unpack,
)  # fmt: skip
"""The op under `ops.shared.shared_weights`."""


def useful(shape: Shape) -> int:
    """Useful FLOPs of the forward: the two projections and full attention; twice that for all gradients."""
    batch, length, width = shape
    return 8 * batch * length * width**2 + 4 * batch * length**2 * width


_OPS = torch.ops.rtm_kernels
register_flop_formula(_OPS.attention_norm)(lambda x, *_, **__: useful(x))
register_flop_formula(_OPS.attention_norm_backward)(lambda dy, *_, **__: 2 * useful(dy))
register_flop_formula(_OPS.attention_norm_input_grad)(
    lambda dy, *_, **__: 2 * useful(dy) - 8 * math.prod(dy) * dy[2]  # all but those of the weights
)
register_flop_formula(_OPS.attention_norm_weight_grad)(lambda slots, **__: 8 * slots[0][0] * slots[0][1] ** 2)
