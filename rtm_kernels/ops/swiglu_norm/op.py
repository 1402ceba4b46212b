"""The launch sequences of swiglu_norm and mixer_norm, their registration with PyTorch, and what a recursion shares.

Both are `rms_norm(h + swiglu(h))`. `mixed` is the axis that SwiGLU mixes and `normed` the one that is normalised,
each "hidden" or "sequence".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.ops.launch import first_order
from rtm_kernels.ops.shared import SharedOp
from rtm_kernels.ops.swiglu.weights import PackedWeights, pack, unpack_grads

Shape = tuple[int, ...]


def forward(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: Sequence[Tensor], mixed: str, normed: str,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y in x's shape and rstd [normalised rows] in the accumulator's dtype; the weights may be packed already."""
    from rtm_kernels.ops.swiglu import launchers

    y, rstd = _outputs(x, normed)
    if not x.numel():
        return y, rstd
    with torch.cuda.device_of(x):
        weights = pack(gate_up_weight, down_weight, x.dtype)
        if launchers.is_fused(down_weight.shape[0], x.dtype, mixed):
            terms = launchers.foldable(x, injection)
        else:
            terms = [launchers.injected(x, injection)]
        terms = [launchers.split(t, mixed) for t in terms]
        out = _as_rows(y, terms[0], mixed)
        launchers.swiglu(out, rstd if normed == mixed else None, terms, weights, eps, mixed)
        if normed != mixed:
            launchers.normalise(launchers.split(y, normed), rstd, eps, normed)
    return y, rstd


def input_grad(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, injection: Sequence[Tensor], weights: PackedWeights, mixed: str,
    normed: str, eps: float, slots: Sequence[Tensor] = (),
) -> tuple[Tensor, Sequence[Tensor]]:  # fmt: skip
    """Gradient of h in x's shape, and what `weight_grad` reads: h, dr and [dz, act], in the `slots` if given."""
    from rtm_kernels.ops.swiglu import launchers

    h = launchers.injected(x, injection, slots[0].view(x.shape) if slots else None)
    dh = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dr = slots[1].view(x.shape) if slots else torch.empty_like(dh)
    dy, y, norm_dr = (launchers.split(t, normed) for t in (dy.contiguous(), y.contiguous(), dr))
    launchers.norm_backward(norm_dr, dy, y, rstd, eps, normed)
    h = launchers.split(h, mixed)
    dr = _as_rows(dr, h, mixed)
    count = h.shape[0] * h.shape[1]
    hidden = slots[2:] or [h.new_empty(count, width) for width in launchers.hidden_widths(weights, mixed)]
    launchers.swiglu_input_grad(_as_rows(dh, h, mixed), dr, h, hidden, weights, mixed)
    return dh, (h, dr, *hidden)


def backward(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor,
    injection: Sequence[Tensor], mixed: str, normed: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of h (x's shape), gate_up_weight and down_weight from the op's inputs, its output y and rstd."""
    from rtm_kernels.ops.swiglu import launchers

    if not x.numel():
        zeros = gate_up_weight.new_zeros(gate_up_weight.shape), down_weight.new_zeros(down_weight.shape)
        return x.new_empty(x.shape), *zeros
    with torch.cuda.device_of(x):
        weights = pack(gate_up_weight, down_weight, x.dtype)
        dh, (h, dr, *hidden) = input_grad(dy, y, rstd, x, injection, weights, mixed, normed, eps)
        grads = launchers.swiglu_weight_grads(dr, h, hidden, weights, mixed)
    return dh, *unpack_grads(*grads, gate_up_weight, down_weight)


def _outputs(x: Tensor, normed: str) -> tuple[Tensor, Tensor]:
    rows = x.shape[0] * x.shape[2] if normed == "sequence" else math.prod(x.shape[:-1])
    rstd = x.new_empty(rows, dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), rstd


def _as_rows(x: Tensor, rows: Tensor, mixed: str) -> Tensor:
    """A dense x as [batch, rows, features] like `rows`."""
    return x.transpose(1, 2) if mixed == "sequence" else x.view(rows.shape)


swiglu_norm_op = torch.library.custom_op("rtm_kernels::swiglu_norm", forward, mutates_args=())
swiglu_norm_backward_op = torch.library.custom_op("rtm_kernels::swiglu_norm_backward", backward, mutates_args=())


@swiglu_norm_op.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, injection: Any, mixed: str, normed: str, eps: float) -> Any:
    return _outputs(x, normed)


@swiglu_norm_backward_op.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, *options: Any) -> Any:
    return tuple(t.new_empty(t.shape) for t in (x, gate_up, down))


@torch.library.custom_op("rtm_kernels::swiglu_norm_input_grad", mutates_args=("slots",))
def swiglu_norm_input_grad_op(
    dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, injection: Sequence[Tensor],
    mixed: str, normed: str, eps: float, slots: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """dh of one call with packed weights; fills `slots` for the weight gradients of many calls."""
    if not x.numel():
        return x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        return input_grad(dy, y, rstd, x, injection, PackedWeights(gate_up, down), mixed, normed, eps, slots)[0]


@swiglu_norm_input_grad_op.register_fake
def _(dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, *options: Any) -> Any:
    return x.new_empty(x.shape)


@torch.library.custom_op("rtm_kernels::swiglu_norm_weight_grad", mutates_args=())
def swiglu_norm_weight_grad_op(
    slots: Sequence[Tensor], gate_up: Tensor, down: Tensor, mixed: str
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients [2 F_pad, N] and [F_pad, N] of the packed weights over all rows of the slots, float32 or wider."""
    from rtm_kernels.ops.swiglu import launchers

    with torch.cuda.device_of(gate_up):
        h, dr = (launchers.split(t, mixed) for t in slots[:2])
        return launchers.swiglu_weight_grads(dr, h, slots[2:], PackedWeights(gate_up, down), mixed)


@swiglu_norm_weight_grad_op.register_fake
def _(slots: Sequence[Tensor], gate_up: Tensor, down: Tensor, mixed: str) -> Any:
    wide = torch.promote_types(down.dtype, torch.float32)
    features, inner = down.shape
    return down.new_empty(2 * inner, features, dtype=wide), down.new_empty(inner, features, dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate_up_weight, down_weight, injection, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, x, gate_up_weight, down_weight, *injection)


def _differentiate(ctx: Any, dy: Tensor, d_rstd: Tensor | None) -> tuple[Any, ...]:
    y, rstd, x, gate_up_weight, down_weight, *injection = ctx.saved_tensors
    given = y, rstd, x, gate_up_weight, down_weight, injection, *ctx.options
    grads = first_order("swiglu_norm and mixer_norm", swiglu_norm_backward_op, dy, *given)
    return *grads, [grads[0]] * len(injection), *(None,) * len(ctx.options)


swiglu_norm_op.register_autograd(_differentiate, setup_context=_save)


def _slots(x: Tensor, gate_up: Tensor, down: Tensor, mixed: str, *options: Any) -> list[Shape]:
    from rtm_kernels.ops.swiglu import launchers

    rows = x.numel() // down.shape[0]
    shape = tuple(x.shape) if mixed == "sequence" else (rows, x.shape[-1])
    with torch.cuda.device_of(x):
        widths = launchers.hidden_widths(PackedWeights(gate_up, down), mixed)
    return [shape, shape, *((rows, width) for width in widths)]


SHARED = SharedOp(
    pack, swiglu_norm_op, _slots, swiglu_norm_input_grad_op,
    lambda slots, gate_up, down, mixed, *_: swiglu_norm_weight_grad_op(slots, gate_up, down, mixed), unpack_grads,
)  # fmt: skip
"""The op under `ops.shared.shared_weights`."""


def useful(x: Shape, down: Shape) -> int:
    """Useful FLOPs of the products with gate, up and down, 2 for each element of x and inner unit of each of the three.

    The gradient of the input needs as many, and so do those of the weights; the recomputation is not counted.
    """
    return 6 * math.prod(x) * down[1]


_OPS = torch.ops.rtm_kernels
register_flop_formula(_OPS.swiglu_norm)(lambda x, gate_up, down, *_, **__: useful(x, down))
register_flop_formula(_OPS.swiglu_norm_backward)(lambda dy, y, rstd, x, gate_up, down, *_, **__: 2 * useful(x, down))
register_flop_formula(_OPS.swiglu_norm_input_grad)(lambda dy, y, rstd, x, gate_up, down, *_, **__: useful(x, down))
register_flop_formula(_OPS.swiglu_norm_weight_grad)(lambda slots, gate_up, down, *_, **__: useful(slots[0], down))
