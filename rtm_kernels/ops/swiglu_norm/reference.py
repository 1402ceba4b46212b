"""swiglu_norm and mixer_norm in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.ops.primitives import inject_sum, rms_norm, swiglu


def swiglu_norm(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, *, injection: tuple[Tensor, ...] = (), eps: float = 1e-5
) -> Tensor:
    """`rms_norm(h + swiglu(h))` with `h = x + (sum of injection)`; x [..., D], weights [2F, D] and [D, F]."""
    h = inject_sum(x, injection)
    return rms_norm(h + swiglu(h, gate_up_weight, down_weight), eps)


def mixer_norm(
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    *,
    injection: tuple[Tensor, ...] = (),
    norm_axis: str = "sequence",
    eps: float = 1e-5,
) -> Tensor:
    """`rms_norm(h + swiglu over L of h)`, `h = x + (sum of injection)`; x [B, L, D], weights [2F, L] and [L, F].

    `norm_axis="sequence"` normalises over L for each channel, as the official block does because its tensor
    stays transposed; `"hidden"` transposes back first and normalises over D (RSM).
    """
    h = inject_sum(x, injection)
    if norm_axis == "hidden":
        mixed = swiglu(h.transpose(1, 2), gate_up_weight, down_weight)  # [B, D, L]
        return rms_norm(h + mixed.transpose(1, 2), eps)
    h = h.transpose(1, 2)  # [B, D, L]
    return rms_norm(h + swiglu(h, gate_up_weight, down_weight), eps).transpose(1, 2)
