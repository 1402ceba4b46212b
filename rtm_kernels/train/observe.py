"""Metrics of a training step besides its loss: ACT steps taken, halting confidence, change of the latents."""

from __future__ import annotations

import torch
from torch import Tensor

from rtm_kernels.losses import CONFIDENCE, DELTA
from rtm_kernels.model import Carry, RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change

Sums = dict[str, Tensor]
DEPTH = "depth_"
"""Metrics `depth_d`: samples that halted after d ACT steps."""


def depth_counts(steps: Tensor, halted: Tensor, deepest: int) -> Sums:
    """`depth_1` ... `depth_deepest`: how many of `halted` [B] have taken so many `steps` [B], without a sync."""
    depths = torch.arange(1, deepest + 1, device=steps.device)
    counts = ((steps[:, None] == depths) & halted[:, None]).sum(0)
    return {f"{DEPTH}{d}": counts[d - 1] for d in range(1, deepest + 1)}


@torch.no_grad()
def observe(model: RecursiveReasoner, before: Carry, after: Carry, outputs: dict[str, Tensor], deepest: int) -> Sums:
    """Sums over the batch of what `DEPTH`, `CONFIDENCE` and `DELTA` name, where the objective has them.

    `outputs` are the head's: `q_halt_logits` [B], or `steps` [B] of a head that runs all of a sample's steps at once.
    """
    if "steps" in outputs:
        steps = outputs["steps"]
        return depth_counts(steps, torch.ones_like(steps, dtype=torch.bool), deepest)
    if "q_halt_logits" not in outputs:
        return {}
    sums = depth_counts(after.steps, after.halted, deepest)
    sums[CONFIDENCE] = torch.sigmoid(outputs["q_halt_logits"]).sum()
    y = model.program.output
    if y in before.latents:
        fresh = model.initial_latents(len(before.halted))[y]
        previous = torch.where(before.halted.view(-1, 1, 1), fresh, before.latents[y])
        sums[DELTA] = relative_change(after.latents[y], previous).sum()
    return sums
