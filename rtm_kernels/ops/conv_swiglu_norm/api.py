"""conv_swiglu_norm: the channel half of a block, with a depthwise convolution on the hidden units of the SwiGLU."""

from __future__ import annotations

import math

from torch import Tensor

from rtm_kernels.errors import require
from rtm_kernels.ops.conv_swiglu_norm import op, reference
from rtm_kernels.ops.launch import check_latent, check_weight, choose, to_autocast_dtype
from rtm_kernels.ranges import ranged


@ranged("conv_swiglu_norm")
def conv_swiglu_norm(
    x: Tensor,
    gate_up_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    down_weight: Tensor,
    *,
    injection: tuple[Tensor, ...] = (),
    prefix: int = 0,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """`rms_norm(h + down(silu(conv(silu(gate h) * up h))))` with `h = x + (sum of injection)`; [B, L, D] to [B, L, D].

    x and every injection term are of one floating-point dtype; gate_up_weight [2F, D] (gate rows first), down_weight
    [D, F] and conv_bias [F] are computed with in that dtype. The convolution works on each of the F hidden units by
    itself. conv_weight [F, 1, k]: along the sequence; position t sees t - k // 2 to t - k // 2 + k - 1.
    conv_weight [F, 1, k, k], k odd: over the square grid of the positions from `prefix` on, centred; the first
    `prefix` positions are not convolved. What lies outside counts as zero. The norm has no weight.

    Errors: `InputError` for a wrong shape, dtype or device; `BackendUnavailable` when
    `impl="triton"` cannot run.
    Source: URM (arXiv 2512.14693), k = 2 along the sequence.
    """
    require(x.dim() == 3, "x.shape", tuple(x.shape), "[B, L, D]")
    x, injection = to_autocast_dtype(x, injection)
    check_latent(x, injection, eps)
    require(down_weight.dim() == 2, "down_weight.shape", tuple(down_weight.shape), f"[{x.shape[2]}, F]")
    width, inner, k = x.shape[2], down_weight.shape[1], conv_weight.shape[-1]
    check_weight(x, "gate_up_weight", gate_up_weight, (2 * inner, width), f"F={inner}")
    check_weight(x, "down_weight", down_weight, (width, inner), f"F={inner}")
    check_weight(x, "conv_bias", conv_bias, (inner,), f"F={inner}")
    grid = conv_weight.dim() == 4
    check_weight(x, "conv_weight", conv_weight, (inner, 1, k, k) if grid else (inner, 1, k), f"F={inner}")
    if grid:
        cells = x.shape[1] - prefix
        require(k % 2 == 1, "conv_weight.shape", tuple(conv_weight.shape), "an odd width over a grid")
        square = cells >= 0 and math.isqrt(cells) ** 2 == cells
        require(square, "x.shape", tuple(x.shape), f"[B, {prefix} + side * side, D]")
    if choose(impl, x.device, x.dtype) == "triton":
        return op.conv_swiglu_norm(
            x, gate_up_weight, conv_weight, conv_bias, down_weight, tuple(injection), prefix, eps
        )
    return reference.conv_swiglu_norm(
        x, gate_up_weight, conv_weight, conv_bias, down_weight, injection=injection, prefix=prefix, eps=eps
    )
