"""swiglu_norm: the public function of the op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.errors import require
from rtm_kernels.ops.checks import check_latent, check_swiglu_weights, to_autocast_dtype
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
    check_latent(x, injection, eps)
    check_swiglu_weights(x, x.shape[-1], gate_up_weight, down_weight)
    if choose(impl, x.device, x.dtype) == "reference":
        return reference.swiglu_norm(x, gate_up_weight, down_weight, injection=injection, eps=eps)
    if (shared := recursion()) is not None:
        return shared.call(SHARED, x, injection, (gate_up_weight, down_weight), (eps,))
    return swiglu_norm_op(x, gate_up_weight, down_weight, injection, eps)[0]
