"""mixer_norm: the public function of the op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.config import NORM_AXES
from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.checks import check_latent, check_swiglu_weights, to_autocast_dtype
from rtm_kernels.ops.launch import choose
from rtm_kernels.ops.mixer_norm import reference
from rtm_kernels.ops.mixer_norm.op import SHARED, mixer_norm_op
from rtm_kernels.ops.shared import recursion
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
    x, injection = to_autocast_dtype(x, injection)
    check_latent(x, injection, eps)
    check_swiglu_weights(x, x.shape[1], gate_up_weight, down_weight)
    if choose(impl, x.device, x.dtype) == "reference":
        return reference.mixer_norm(x, gate_up_weight, down_weight, injection=injection, norm_axis=norm_axis, eps=eps)
    if (shared := recursion()) is not None:
        return shared.call(SHARED, x, injection, (gate_up_weight, down_weight), (norm_axis, eps))
    return mixer_norm_op(x, gate_up_weight, down_weight, injection, norm_axis, eps)[0]
