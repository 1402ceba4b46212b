"""Token losses in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100


def stablemax_weight(x: Tensor) -> Tensor:
    """`s(x) = x + 1` for x >= 0 and `1 / (1 - x + 1e-30)` below (arXiv 2501.04697, eq. 4; 1e-30 as the TRM code)."""
    return torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """`-log(s(logits[label]) / sum s(logits))` per token, 0 at ignored labels; computed in float64 as the TRM code.

    logits [..., V] of any float dtype, labels [...] integer; returns [...] in float64.
    """
    weights = stablemax_weight(logits.to(torch.float64))
    log_probs = torch.log(weights / weights.sum(-1, keepdim=True))
    counted = labels != ignore_index
    index = torch.where(counted, labels, 0).long().unsqueeze(-1)
    return -torch.where(counted, log_probs.gather(-1, index).squeeze(-1), 0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """`logsumexp(logits) - logits[label]` per token, 0 at ignored labels; float64 logits stay so, others in float32.

    logits [..., V], labels [...] integer; returns [...].
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(
        wide.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=ignore_index, reduction="none"
    )
    return loss.view(labels.shape)


def token_counts(predictions: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The (labelled, correct) token counts [B, 2] int64 of each sample; predictions and labels [B, L]."""
    counted = labels != ignore_index
    correct = counted & (predictions == labels)
    return torch.stack((counted.sum(-1), correct.sum(-1)), dim=-1)


def exact(answers: Any, labels: Any, ignore_index: int = IGNORE_INDEX) -> Any:
    """Whether every labelled token of an answer is right: answers and labels [..., L] to [...] bool, torch or numpy."""
    return ((answers == labels) | (labels == ignore_index)).all(-1)
