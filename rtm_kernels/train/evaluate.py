"""Accuracy, halting confidence and latent change of a model after each ACT step on test puzzles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.token_loss import reference
from rtm_kernels.train.stream import Arrays, tensors


@dataclass(frozen=True)
class Curves:
    """Means over examples after 1, 2, ... ACT steps without halting.

    `exact`: every labelled token is right; `halt`: sigmoid(q_halt) (empty without a head); `change`: |dy| / |y| of the
    output latent (empty when the program does not carry it).
    """

    exact: list[float]
    halt: list[float]
    change: list[float]


@torch.inference_mode()
def curves(model: RecursiveReasoner, arrays: Arrays, steps: int, batch_size: int = 256) -> Curves:
    """The curves of `model` over `steps` ACT steps on examples as a stream's `test_arrays` gives them:
    inputs, labels [N, seq_len], puzzle_identifiers [N]."""
    was_training = model.training
    model.eval()
    size, output = len(arrays["inputs"]), model.program.output
    sums = np.zeros((3, steps))
    for start in range(0, size, batch_size):
        part = {k: v[start : start + batch_size].to(model.device) for k, v in tensors(arrays).items()}
        x = model.embed(part["inputs"], part["puzzle_identifiers"])
        latents = model.initial_latents(len(x))
        for step in range(steps):
            values, logits, q = model.act_step(latents, x)
            sums[0, step] += reference.exact(logits.argmax(-1), part["labels"]).sum().item()
            if q is not None:
                sums[1, step] += torch.sigmoid(q[..., 0]).sum().item()
            if output in latents:
                sums[2, step] += relative_change(values[output], latents[output]).sum().item()
            latents = {name: values[name] for name in model.program.carried}
    model.train(was_training)
    means = (sums / size).tolist()
    carried = output in model.program.carried
    return Curves(means[0], means[1] if model.config.has_q_head else [], means[2] if carried else [])
