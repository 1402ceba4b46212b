"""swiglu_norm in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.ops.primitives import inject_sum, rms_norm, swiglu


def swiglu_norm(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, *, injection: tuple[Tensor, ...] = (), eps: float = 1e-5
) -> Tensor:
    """`rms_norm(h + swiglu(h))` with `h = x + (sum of injection)`; x [..., D], weights [2F, D] and [D, F]."""
    h = inject_sum(x, injection)
    return rms_norm(h + swiglu(h, gate_up_weight, down_weight), eps)
