"""Registration of the optimiser updates with PyTorch: ops that change their tensors in place, and their fakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("rtm_kernels::adam_atan2_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps"))
def adam_atan2_op(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor], lr: Tensor, found_inf: Tensor, beta1: float, beta2: float, weight_decay: float,
) -> None:  # fmt: skip
    """`reference.adam_atan2_` in one launch."""
    from rtm_kernels.ops.adam_atan2.adam import adam_atan2

    with torch.cuda.device_of(params[0]):
        adam_atan2(params, grads, exp_avgs, exp_avg_sqs, steps, lr, found_inf, beta1, beta2, weight_decay)


@torch.library.custom_op("rtm_kernels::sign_sgd_", mutates_args=("weights",))
def sign_sgd_op(
    weights: Tensor, ids: Tensor, grad: Tensor, lr: Tensor, found_inf: Tensor, weight_decay: float
) -> None:  # fmt: skip
    """`reference.sign_sgd_` in one launch after a sort of the ids."""
    from rtm_kernels.ops.adam_atan2.sign_sgd import sign_sgd

    with torch.cuda.device_of(weights):
        sign_sgd(weights, ids, grad, lr, found_inf, weight_decay)


@adam_atan2_op.register_fake
def _(*arguments: Any) -> None:
    return None


@sign_sgd_op.register_fake
def _(*arguments: Any) -> None:
    return None
