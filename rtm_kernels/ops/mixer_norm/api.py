"""mixer_norm: the public function of the op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.impl import resolve
from rtm_kernels.ops.mixer_norm import reference


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
    """`rms_norm(h + swiglu over L of h)` with `h = x + (sum of injection)`; x [B, L, D]."""
    resolve(impl, x.device)
    return reference.mixer_norm(x, gate_up_weight, down_weight, injection=injection, norm_axis=norm_axis, eps=eps)
