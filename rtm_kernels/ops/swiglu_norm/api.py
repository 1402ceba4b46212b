"""swiglu_norm and mixer_norm: one op over two views of the latent, [B*L, D] and, by strides alone, [B, D, L]."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.config import NORM_AXES
from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.checks import check_latent, check_weight, to_autocast_dtype
from rtm_kernels.ops.launch import choose
from rtm_kernels.ops.shared import recursion
from rtm_kernels.ops.swiglu_norm import reference
from rtm_kernels.ops.swiglu_norm.op import SHARED, swiglu_norm_op
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
    x, injection = to_autocast_dtype(x, injection)
    _check(x, x.shape[-1], gate_up_weight, down_weight, injection, eps)
    if choose(impl, x.device, x.dtype) == "reference":
        return reference.swiglu_norm(x, gate_up_weight, down_weight, injection=injection, eps=eps)
    return _by_kernels(x, gate_up_weight, down_weight, injection, ("hidden", "hidden", eps))


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
    x, injection = to_autocast_dtype(x, injection)
    _check(x, x.shape[1], gate_up_weight, down_weight, injection, eps)
    if choose(impl, x.device, x.dtype) == "reference":
        return reference.mixer_norm(x, gate_up_weight, down_weight, injection=injection, norm_axis=norm_axis, eps=eps)
    return _by_kernels(x, gate_up_weight, down_weight, injection, ("sequence", norm_axis, eps))


def _by_kernels(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, injection: tuple[Tensor, ...],
    options: tuple[str, str, float],
) -> Tensor:  # fmt: skip
    if (shared := recursion()) is not None:
        return shared.call(SHARED, x, injection, (gate_up_weight, down_weight), options)
    y: Tensor = swiglu_norm_op(x, gate_up_weight, down_weight, injection, *options)[0]
    return y


def _check(
    x: Tensor, size: int, gate_up_weight: Tensor, down_weight: Tensor, injection: tuple[Tensor, ...], eps: float
) -> None:  # fmt: skip
    check_latent(x, injection, eps)
    require(down_weight.dim() == 2, "down_weight.shape", tuple(down_weight.shape), f"[{size}, F]")
    inner = down_weight.shape[1]
    check_weight(x, "gate_up_weight", gate_up_weight, (2 * inner, size), f"F={inner}")
    check_weight(x, "down_weight", down_weight, (size, inner), f"F={inner}")
