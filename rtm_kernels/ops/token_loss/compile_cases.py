"""Uses of the token losses that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.launch import CompileCase
from rtm_kernels.ops.token_loss.kernels import token_loss_backward, token_loss_forward


def _run(vocabulary: int, stablemax: bool, dtype: torch.dtype) -> None:
    logits = torch.empty(4, 97, vocabulary, dtype=dtype, device="meta")
    labels = torch.empty(4, 97, dtype=torch.int32, device="meta")
    loss, _, _, saved = token_loss_forward(logits, labels, -100, stablemax)
    token_loss_backward(loss, saved, logits, labels, -100, stablemax)


def compile_cases() -> Iterator[CompileCase]:
    """Both losses over a puzzle's vocabulary, a middle one and a language model's."""
    for vocabulary, dtype in ((11, torch.bfloat16), (11, torch.float32), (100, torch.bfloat16), (32000, torch.float32)):
        for stablemax in (True, False):
            name = f"token_loss V={vocabulary} {'stablemax' if stablemax else 'softmax'} {str(dtype)[6:]}"
            yield CompileCase(name, partial(_run, vocabulary, stablemax, dtype))
