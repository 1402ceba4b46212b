"""Uses of the optimiser kernels that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rtm_kernels.ops.adam_atan2.adam import adam_atan2
from rtm_kernels.ops.adam_atan2.reference import scalars
from rtm_kernels.ops.adam_atan2.sign_sgd import sign_sgd
from rtm_kernels.ops.launch import CompileCase


def _adam() -> None:
    tensors = [torch.empty(3072, 512, device="meta"), torch.empty(11, 512, device="meta")]
    steps, (lr, found_inf) = [torch.empty((), device="meta")] * 2, scalars("meta", 1e-4, None)
    adam_atan2(tensors, tensors, tensors, tensors, steps, lr, found_inf, 0.9, 0.95, 0.1)


def _sign() -> None:
    weights, grad = torch.empty(1000, 512, device="meta"), torch.empty(768, 512, device="meta")
    sign_sgd(weights, torch.empty(768, dtype=torch.int32, device="meta"), grad, *scalars("meta", 1e-2, None), 0.1)


def compile_cases() -> Iterator[CompileCase]:
    """Both kernels at the official sizes."""
    yield CompileCase("adam_atan2 float32", _adam)
    yield CompileCase("sign_sgd float32", _sign)
