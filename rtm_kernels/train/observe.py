"""What is measured besides the loss: depths, confidence and latent change of a step, and curves on test puzzles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.task import Task
from rtm_kernels.losses import CONFIDENCE, DELTA
from rtm_kernels.model import Carry, RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.token_loss import reference
from rtm_kernels.train.stream import Arrays, tensors

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


@dataclass(frozen=True)
class Curves:
    """Means over examples after 1, 2, ... ACT steps without halting.

    `exact`: every labelled token is right; `halt`: sigmoid(q_halt) (empty without a head); `change`: |dy| / |y| of the
    output latent (empty when the program does not carry it); `valid`: the rules of the task hold, for tasks where an
    answer that is not the label may be right (else empty).
    """

    exact: list[float]
    halt: list[float]
    change: list[float]
    valid: list[float] = field(default_factory=list)


@torch.inference_mode()
def curves(
    model: RecursiveReasoner, arrays: Arrays, steps: int, batch_size: int = 256, task: Task | None = None
) -> Curves:
    """The curves of `model` over `steps` ACT steps on examples as a stream's `test_arrays` gives them:
    inputs, labels [N, seq_len], puzzle_identifiers [N]. `task` checks answers (`valid`)."""
    was_training, model = model.training, model.resized(arrays["inputs"].shape[1])
    model.eval()
    size, output = len(arrays["inputs"]), model.program.output
    sums, checks = np.zeros((4, steps)), task is not None and not task.one_solution
    for start in range(0, size, batch_size):
        part = {k: v[start : start + batch_size].to(model.device) for k, v in tensors(arrays).items()}
        x = model.embed(part["inputs"], part["puzzle_identifiers"])
        latents = model.initial_latents(len(x))
        for step in range(steps):
            values, logits, q = model.act_step(latents, x)
            answers = logits.argmax(-1)
            sums[0, step] += reference.exact(answers, part["labels"]).sum().item()
            if checks and task is not None:
                sums[3, step] += task.verify_tokens(part["inputs"].cpu().numpy(), answers.cpu().numpy()).sum()
            if q is not None:
                sums[1, step] += torch.sigmoid(q[..., 0]).sum().item()
            if output in latents:
                sums[2, step] += relative_change(values[output], latents[output]).sum().item()
            latents = {name: values[name] for name in model.program.carried}
    model.train(was_training)
    means = (sums / size).tolist()
    carried = output in model.program.carried
    return Curves(
        means[0], means[1] if model.config.has_q_head else [], means[2] if carried else [], means[3] if checks else []
    )
