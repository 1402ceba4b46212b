"""swiglu_norm: the public function of the op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.impl import resolve
from rtm_kernels.ops.swiglu_norm import reference


def swiglu_norm(
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    *,
    injection: tuple[Tensor, ...] = (),
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """`rms_norm(h + swiglu(h))` over the last axis with `h = x + (sum of injection)`."""
    resolve(impl, x.device)
    return reference.swiglu_norm(x, gate_up_weight, down_weight, injection=injection, eps=eps)
