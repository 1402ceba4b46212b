"""Registration of the convolution on hidden units with PyTorch, and conv_swiglu_norm made of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.ops.launch import first_order
from rtm_kernels.ops.primitives import inject_sum, rms_norm


@torch.library.custom_op("rtm_kernels::conv_hidden", mutates_args=())
def conv_hidden_op(z: Tensor, weight: Tensor, bias: Tensor, prefix: int) -> Tensor:
    """`silu(conv(silu(gate) * up))` [B, L, F] of z [B, L, 2F]."""
    from rtm_kernels.ops.conv_swiglu_norm import kernels

    with torch.cuda.device_of(z):
        return kernels.conv_hidden_forward(z.contiguous(), weight.contiguous(), bias.contiguous(), prefix)


@conv_hidden_op.register_fake
def _(z: Tensor, weight: Tensor, bias: Tensor, prefix: int) -> Tensor:
    return z.new_empty(*z.shape[:2], z.shape[2] // 2)


@torch.library.custom_op("rtm_kernels::conv_hidden_backward", mutates_args=())
def conv_hidden_backward_op(
    dout: Tensor, z: Tensor, weight: Tensor, bias: Tensor, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, weight and bias."""
    from rtm_kernels.ops.conv_swiglu_norm import kernels

    with torch.cuda.device_of(z):
        return kernels.conv_hidden_backward(dout, z.contiguous(), weight.contiguous(), bias.contiguous(), prefix)


@conv_hidden_backward_op.register_fake
def _(dout: Tensor, z: Tensor, weight: Tensor, bias: Tensor, prefix: int) -> Any:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (z, weight, bias))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.prefix = inputs[3]


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    return *first_order("conv_swiglu_norm", conv_hidden_backward_op, dout, *ctx.saved_tensors, ctx.prefix), None


conv_hidden_op.register_autograd(_differentiate, setup_context=_save)


def conv_swiglu_norm(
    x: Tensor, gate_up_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor, down_weight: Tensor,
    injection: tuple[Tensor, ...], prefix: int, eps: float,
) -> Tensor:  # fmt: skip
    """The op with its products by PyTorch and everything between them by the kernels."""
    h = inject_sum(x, injection)
    z = F.linear(h, gate_up_weight.to(h.dtype))  # [B, L, 2F]
    mixed = conv_hidden_op(z, conv_weight, conv_bias, prefix)
    return rms_norm(h + F.linear(mixed, down_weight.to(h.dtype)), eps)


_OPS = torch.ops.rtm_kernels
register_flop_formula(_OPS.conv_hidden)(lambda z, weight, *_, **__: z[0] * z[1] * 2 * _count(weight))
register_flop_formula(_OPS.conv_hidden_backward)(lambda dout, z, weight, *_, **__: z[0] * z[1] * 4 * _count(weight))


def _count(shape: Any) -> int:
    return int(torch.Size(shape).numel())
