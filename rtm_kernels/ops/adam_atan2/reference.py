"""AdamATan2 and sparse sign-SGD in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scalars(
    device: torch.device | str, lr: float | Tensor, found_inf: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`lr` (float64 of a number) and `found_inf` (0 where there is none) as tensors on `device`."""
    rate = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=torch.float64, device=device)
    return rate, torch.zeros((), device=device, dtype=torch.float32) if found_inf is None else found_inf


def adam_atan2_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    found_inf: Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One AdamATan2 update of every tensor, in place; `steps`, updates so far, are counted up first.

    `p <- p (1 - lr wd) - lr/bc1 * atan2(m, sqrt(v) / sqrt(bc2))` with `m <- b1 m + (1 - b1) g`,
    `v <- b2 v + (1 - b2) g^2` and `bc = 1 - b^step`. There is no epsilon, and no entry moves by more than
    lr pi / (2 bc1) beside the decay (arXiv 2407.05872, section 4; the CUDA kernel of the package adam-atan2).
    Where `found_inf` is not 0 nothing changes. `steps`, `lr` and `found_inf` hold one element each.
    """
    goes = found_inf == 0
    for p, g, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        step += goes
        rate, root = lr.double() / (1 - beta1 ** step.double()), (1 - beta2 ** step.double()).sqrt()
        mean, square = m.lerp(g, 1 - beta1), v * beta2 + (1 - beta2) * (g * g)
        moved = p * (1 - lr.double() * weight_decay) - rate * torch.atan2(mean, square.sqrt() / root)
        for kept, new in ((m, mean), (v, square), (p, moved)):
            kept.copy_(torch.where(goes, new, kept))


def sign_sgd_(
    weights: Tensor, ids: Tensor, grad: Tensor, lr: Tensor, found_inf: Tensor, weight_decay: float
) -> None:  # fmt: skip
    """Sign-SGD on the touched rows of an embedding, in place: `w <- w (1 - lr wd) - lr sign(g)`.

    weights [N, D], ids [B] integer, grad [B, D]. Gradients of a repeated id are summed first, in batch order;
    rows that no id names stay as they are (models/sparse_embedding.py of the TRM repository), and all of them where
    `found_inf` is not 0.
    """
    ordered, origin = ids.long().sort(stable=True)
    place = (ordered != ordered.roll(1)).cumsum(0)
    place = place - place[:1]  # [B], which of the different ids each is
    total = torch.zeros_like(grad).index_put_((place,), grad[origin], accumulate=True)
    before = weights[ordered]
    after = before * (1 - lr.double() * weight_decay) - lr.double() * total[place].sign()
    weights[ordered] = torch.where(found_inf == 0, after, before)
