"""mixer_norm: the public function of the op, and its registration with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.config import NORM_AXES
from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.checks import check_latent, check_swiglu_weights, to_autocast_dtype
from rtm_kernels.ops.launch import choose
from rtm_kernels.ops.mixer_norm import reference
from rtm_kernels.ranges import ranged


@ranged("mixer_norm")
def mixer_norm(
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    *,
    injection: tuple[Tensor, ...] = (),
    norm_axis: str = "sequence",
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """`rms_norm(h + swiglu over L of h)` with `h = x + (sum of injection)`: tokens mixed for each channel.

    x and every injection term [B, L, D] of one floating-point dtype, gate_up_weight [2F, L] (gate rows first),
    down_weight [L, F] of any floating-point dtype: they are computed with in x's dtype, accumulated in float32,
    and their gradients come in their own dtype. `norm_axis="sequence"` normalises over L for each channel,
    `"hidden"` over D for each token; the norm has no weight. No transposed copy of x is made. Under autocast x
    takes the autocast dtype. Returns [B, L, D] in x's dtype.

    Errors: `InputError` for a wrong shape, dtype, device or norm_axis; `BackendUnavailable` when `impl="triton"`
    cannot run.
    Source: the token half of the MLP-mixer block of TRM (arXiv 2510.04871); `"hidden"`: RSM (arXiv 2603.15641).
    """
    require(x.dim() == 3, "x.shape", tuple(x.shape), "[B, L, D]")
    one_of("norm_axis", norm_axis, NORM_AXES)
    check_latent(x, injection, eps)
    check_swiglu_weights(x, x.shape[1], gate_up_weight, down_weight)
    x, injection = to_autocast_dtype(x, injection)
    if choose(impl, x.device, x.dtype) == "reference":
        return reference.mixer_norm(x, gate_up_weight, down_weight, injection=injection, norm_axis=norm_axis, eps=eps)
    return _forward(x, gate_up_weight, down_weight, injection, norm_axis, eps)[0]


@torch.library.custom_op("rtm_kernels::mixer_norm", mutates_args=())
def _forward(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], norm_axis: str, eps: float
) -> tuple[Tensor, Tensor]:
    from rtm_kernels.ops.mixer_norm.forward import mixer_norm_forward

    with torch.cuda.device_of(x):
        return mixer_norm_forward(x, gate_up_weight, down_weight, injection, norm_axis, eps)


@torch.library.custom_op("rtm_kernels::mixer_norm_backward", mutates_args=())
def _backward(
    dy: Tensor,
    y: Tensor,
    rstd: Tensor,
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    injection: Sequence[Tensor],
    norm_axis: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from rtm_kernels.ops.mixer_norm.backward import mixer_norm_backward

    with torch.cuda.device_of(x):
        return mixer_norm_backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, norm_axis, eps)


@_forward.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, injection: Sequence[Tensor], norm_axis: str, eps: float) -> Any:
    batch, length, features = x.shape
    rstd = x.new_empty(
        batch, features if norm_axis == "sequence" else length, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return x.new_empty(x.shape), rstd


@_backward.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, *args: Any) -> Any:
    return x.new_empty(x.shape), gate_up.new_empty(gate_up.shape), down.new_empty(down.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate_up_weight, down_weight, injection, ctx.norm_axis, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, x, gate_up_weight, down_weight, *injection)


def _differentiate(ctx: Any, dy: Tensor, d_rstd: Tensor | None) -> tuple[Any, ...]:
    y, rstd, x, gate_up_weight, down_weight, *injection = ctx.saved_tensors
    dh, d_gate_up, d_down = _backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, ctx.norm_axis, ctx.eps)
    return dh, d_gate_up, d_down, [dh] * len(injection), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.rtm_kernels.mixer_norm)
def _flops(x: tuple[int, ...], gate_up: tuple[int, ...], down: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs: the matrix products, 2 for each weight and channel of each sample."""
    return 2 * x[0] * x[2] * (math.prod(gate_up) + math.prod(down))


@register_flop_formula(torch.ops.rtm_kernels.mixer_norm_backward)
def _backward_flops(dy: Any, y: Any, rstd: Any, x: Any, gate_up: Any, down: Any, *args: Any, **kwargs: Any) -> int:
    """Useful FLOPs: input and weight gradients, twice the forward pass; the recomputation is not counted."""
    return 2 * _flops(x, gate_up, down)
