"""What the registered ops over the SwiGLU kernels have in common: fakes, autograd, useful FLOPs, shared weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rtm_kernels.ops.shared import SharedOp, Tensors
from rtm_kernels.ops.swiglu.weights import pack, unpack_grads

Shape = tuple[int, ...]


def register(name: str, forward: Any, backward: Any, input_grad: Any, weight_grad: Any) -> None:
    """Register the four ops of a half layer, `rtm_kernels::name` and its `_backward`, `_input_grad`, `_weight_grad`.

    forward(x, gate_up_weight, down_weight, injection, *options) -> y, rstd
    backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, *options) -> dh and the weights' gradients
    input_grad(dy, y, rstd, x, gate_up, down, injection, *options, slots) -> dh, of packed weights
    weight_grad(slots, gate_up, down) -> gradients of the packed weights
    """

    @backward.register_fake
    def _(dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, *options: Any) -> Any:
        return x.new_empty(x.shape), gate_up.new_empty(gate_up.shape), down.new_empty(down.shape)

    @input_grad.register_fake
    def _(dy: Tensor, y: Tensor, rstd: Tensor, x: Tensor, *options: Any) -> Any:
        return x.new_empty(x.shape)

    @weight_grad.register_fake
    def _(slots: Sequence[Tensor], gate_up: Tensor, down: Tensor) -> Any:
        wide = torch.promote_types(down.dtype, torch.float32)
        features, inner = down.shape
        return down.new_empty(2 * inner, features, dtype=wide), down.new_empty(inner, features, dtype=wide)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gate_up_weight, down_weight, injection, *ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, x, gate_up_weight, down_weight, *injection)

    def differentiate(ctx: Any, dy: Tensor, d_rstd: Tensor | None) -> tuple[Any, ...]:
        y, rstd, x, gate_up_weight, down_weight, *injection = ctx.saved_tensors
        grads = backward(dy, y, rstd, x, gate_up_weight, down_weight, injection, *ctx.options)
        return *grads, [grads[0]] * len(injection), *(None,) * len(ctx.options)

    forward.register_autograd(differentiate, setup_context=save)
    packets = [getattr(torch.ops.rtm_kernels, name + suffix) for suffix in ("", "_backward")]
    register_flop_formula(packets[0])(lambda x, gate_up, down, *_, **__: useful(x, down))
    register_flop_formula(packets[1])(lambda dy, y, rstd, x, gate_up, down, *_, **__: 2 * useful(x, down))
    packets = [getattr(torch.ops.rtm_kernels, name + suffix) for suffix in ("_input_grad", "_weight_grad")]
    register_flop_formula(packets[0])(lambda dy, y, rstd, x, gate_up, down, *_, **__: useful(x, down))
    register_flop_formula(packets[1])(lambda slots, gate_up, down, *_, **__: useful(slots[0], down))


def useful(x: Shape, down: Shape) -> int:
    """Useful FLOPs of the products with gate, up and down, 2 for each element of x and inner unit of each of the three.

    The gradient of the input needs as many, and so do those of the weights; the recomputation is not counted.
    """
    return 6 * math.prod(x) * down[1]


def shared_op(forward: Any, slots: Callable[..., Any], input_grad: Any, weight_grad: Any) -> SharedOp:
    """The registered ops as `ops.shared` calls them; `slots(x, packed, *options)` gives the shapes of the slots."""

    def packed_pair(gate_up_weight: Tensor, down_weight: Tensor, dtype: torch.dtype) -> Tensors:
        weights = pack(gate_up_weight, down_weight, dtype)
        return weights.gate_up, weights.down

    def call(x: Tensor, injection: Tensors, packed: Tensors, *options: Any) -> tuple[Tensor, Tensors]:
        y, rstd = forward(x, *packed, injection, *options)
        return y, (rstd,)

    def differentiate(
        dy: Tensor, y: Tensor, saved: Tensors, x: Tensor, injection: Tensors, packed: Tensors, rows: Sequence[Tensor],
        *options: Any,
    ) -> Tensor:  # fmt: skip
        dh: Tensor = input_grad(dy, y, *saved, x, *packed, injection, *options, rows)
        return dh

    def multiply(rows: Sequence[Tensor], packed: Tensors, *options: Any) -> Tensors:
        grads: Tensors = weight_grad(rows, *packed)
        return grads

    return SharedOp(
        packed_pair, call, slots, differentiate, multiply, lambda grads, weights: unpack_grads(*grads, *weights)
    )
