"""The deep-supervision loss of an ACT step: token loss plus halting loss, with its metrics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.model import Carry
from rtm_kernels.ops.stablemax_loss import reference as losses

IGNORE_LABEL_ID = losses.IGNORE_INDEX


def act_loss(carry: Carry, outputs: dict[str, Any], loss: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over samples of `mean token loss + 0.5 * (BCE(q_halt, exact) [+ BCE(q_continue, target)])`.

    Returns (loss, metrics); metrics are sums over the halted samples, `count` their number, as in the TRM code.
    """
    labels = carry.current_data["labels"]
    mask = labels != IGNORE_LABEL_ID
    counts = mask.sum(-1)
    divisor = counts.clamp_min(1).unsqueeze(-1)
    logits = outputs["logits"]
    correct = mask & (logits.argmax(-1) == labels)
    exact = correct.sum(-1) == counts
    token_loss = (getattr(losses, loss)(logits, labels) / divisor).sum()
    total, valid = token_loss, carry.halted & (counts > 0)
    metrics = {
        "count": valid.sum(),
        "accuracy": torch.where(valid, (correct.float() / divisor).sum(-1), 0).sum(),
        "exact_accuracy": (valid & exact).sum(),
        "steps": torch.where(valid, carry.steps, 0).sum(),
        "lm_loss": token_loss.detach(),
    }
    if "q_halt_logits" in outputs:
        q_halt = outputs["q_halt_logits"]
        q_halt_loss = F.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum")
        metrics["q_halt_accuracy"] = (valid & ((q_halt >= 0) == exact)).sum()
        metrics["q_halt_loss"] = q_halt_loss.detach()
        total = total + 0.5 * q_halt_loss
    if "target_q_continue" in outputs:
        q_continue_loss = F.binary_cross_entropy_with_logits(
            outputs["q_continue_logits"], outputs["target_q_continue"], reduction="sum"
        )
        metrics["q_continue_loss"] = q_continue_loss.detach()
        total = total + 0.5 * q_continue_loss
    return total, metrics
