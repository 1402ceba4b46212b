"""AdamATan2 and sparse sign-SGD in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_atan2_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One AdamATan2 update of one tensor, in place; `step` counts from 1 and includes this update.

    `p <- p (1 - lr wd) - lr/bc1 * atan2(m, sqrt(v) / sqrt(bc2))` with `m <- b1 m + (1 - b1) g`,
    `v <- b2 v + (1 - b2) g^2` and `bc = 1 - b^step`. No epsilon, and no parameter moves by more than lr pi/(2 bc1)
    (arXiv 2407.05872, section 4; the CUDA kernel of the package adam-atan2).
    """
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = exp_avg_sq.sqrt().div_((1 - beta2**step) ** 0.5)
    param.mul_(1 - lr * weight_decay).add_(torch.atan2(exp_avg, denominator), alpha=-lr / (1 - beta1**step))


def sign_sgd_(weights: Tensor, ids: Tensor, grad: Tensor, *, lr: float, weight_decay: float) -> None:
    """Sign-SGD on the touched rows of an embedding, in place: `w <- w (1 - lr wd) - lr sign(g)`.

    weights [N, D], ids [B] integer, grad [B, D]. Gradients of a repeated id are summed first, in batch order;
    rows that no id names stay as they are (models/sparse_embedding.py of the TRM repository).
    """
    rows, inverse = ids.long().unique(return_inverse=True)
    total = grad.new_zeros(len(rows), grad.shape[1]).index_put_((inverse,), grad, accumulate=True)
    weights[rows] = weights[rows].mul_(1 - lr * weight_decay).add_(total.sign(), alpha=-lr)
