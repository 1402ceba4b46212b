"""AdamATan2 and sparse sign-SGD in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_atan2_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One AdamATan2 update of every tensor, in place; `step` counts from 1 and includes this update.

    `p <- p (1 - lr wd) - lr/bc1 * atan2(m, sqrt(v) / sqrt(bc2))` with `m <- b1 m + (1 - b1) g`,
    `v <- b2 v + (1 - b2) g^2` and `bc = 1 - b^step`. There is no epsilon, and no entry moves by more than
    lr pi / (2 bc1) beside the decay (arXiv 2407.05872, section 4; the CUDA kernel of the package adam-atan2).
    """
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, (1 - beta2**step) ** 0.5)
    angles = [torch.atan2(m, d) for m, d in zip(exp_avgs, denominators, strict=True)]
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, angles, alpha=-lr / (1 - beta1**step))


def sign_sgd_(weights: Tensor, ids: Tensor, grad: Tensor, *, lr: float, weight_decay: float) -> None:
    """Sign-SGD on the touched rows of an embedding, in place: `w <- w (1 - lr wd) - lr sign(g)`.

    weights [N, D], ids [B] integer, grad [B, D]. Gradients of a repeated id are summed first, in batch order;
    rows that no id names stay as they are (models/sparse_embedding.py of the TRM repository).
    """
    rows, inverse = ids.long().unique(return_inverse=True)
    total = grad.new_zeros(len(rows), grad.shape[1]).index_put_((inverse,), grad, accumulate=True)
    weights[rows] = weights[rows].mul_(1 - lr * weight_decay).add_(total.sign(), alpha=-lr)
