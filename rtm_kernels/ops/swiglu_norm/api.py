"""swiglu_norm: the public function of the op, and its registration with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.errors import require
from rtm_kernels.ops.checks import check_latent, check_swiglu_weights, to_autocast_dtype
from rtm_kernels.ops.launch import choose
from rtm_kernels.ops.swiglu_norm import reference
from rtm_kernels.ranges import ranged


@ranged("swiglu_norm")
def swiglu_norm(
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    *,
    injection: tuple[Tensor, ...] = (),
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """`rms_norm(h + down(silu(gate(h)) * up(h)))` over the last axis, with `h = x + (sum of injection)`.

    x and every injection term [..., D] of one floating-point dtype, gate_up_weight [2F, D] (gate rows first),
    down_weight [D, F] of any floating-point dtype: they are computed with in x's dtype, accumulated in float32,
    and their gradients come in their own dtype. The norm has no weight. Under autocast x takes the autocast dtype.
    Returns [..., D] in x's dtype.

    Errors: `InputError` for a wrong shape, dtype or device; `BackendUnavailable` when `impl="triton"` cannot run.
    Source: the channel half of the block of TRM (arXiv 2510.04871).
    """
    require(x.dim() >= 1, "x.shape", tuple(x.shape), "[..., D]")
    check_latent(x, injection, eps)
    check_swiglu_weights(x, x.shape[-1], gate_up_weight, down_weight)
    x, injection = to_autocast_dtype(x, injection)
    if choose(impl, x.device, x.dtype) == "reference":
        return reference.swiglu_norm(x, gate_up_weight, down_weight, injection=injection, eps=eps)
    return _forward(x, gate_up_weight, down_weight, injection, eps)[0]


@torch.library.custom_op("rtm_kernels::swiglu_norm", mutates_args=())
def _forward(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    from rtm_kernels.ops.swiglu_norm.forward import swiglu_norm_forward

    with torch.cuda.device_of(x):
        return swiglu_norm_forward(x, gate_up_weight, down_weight, injection, eps)


@torch.library.custom_op("rtm_kernels::swiglu_norm_backward", mutates_args=())
def _backward(
    dy: Tensor,
    y: Tensor,
    rstd: Tensor,
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    injection: Sequence[Tensor],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_backward

    with torch.cuda.device_of(x):
        return swiglu_norm_backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, eps)


@_forward.register_fake
def _(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], eps: float) -> Any:
    rows = math.prod(x.shape[:-1])
    return x.new_empty(x.shape), x.new_empty(rows, dtype=torch.promote_types(x.dtype, torch.float32))


@_backward.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, *args: Any) -> Any:
    return x.new_empty(x.shape), gate_up.new_empty(gate_up.shape), down.new_empty(down.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate_up_weight, down_weight, injection, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, x, gate_up_weight, down_weight, *injection)


def _differentiate(ctx: Any, dy: Tensor, d_rstd: Tensor | None) -> tuple[Any, ...]:
    y, rstd, x, gate_up_weight, down_weight, *injection = ctx.saved_tensors
    dh, d_gate_up, d_down = _backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, ctx.eps)
    return dh, d_gate_up, d_down, [dh] * len(injection), None


_forward.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.rtm_kernels.swiglu_norm)
def _flops(x: tuple[int, ...], gate_up: tuple[int, ...], down: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs: the matrix products, 2 for each weight and row."""
    return 2 * math.prod(x[:-1]) * (math.prod(gate_up) + math.prod(down))


@register_flop_formula(torch.ops.rtm_kernels.swiglu_norm_backward)
def _backward_flops(dy: Any, y: Any, rstd: Any, x: Any, gate_up: Any, down: Any, *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs: input and weight gradients, twice the forward pass; the recomputation is not counted."""
    return 2 * _flops(x, gate_up, down)
