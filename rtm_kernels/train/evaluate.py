"""Exact accuracy of a model after each ACT step: the curve of accuracy against compute."""

from __future__ import annotations

import numpy as np
import torch

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.stablemax_loss.reference import IGNORE_INDEX
from rtm_kernels.train.stream import Arrays, tensors


@torch.inference_mode()
def exact_by_step(model: RecursiveReasoner, arrays: Arrays, steps: int, batch_size: int = 256) -> list[float]:
    """Share of examples whose every labelled token is right, after 1, 2, ..., `steps` ACT steps without halting.

    `arrays` as a stream's `test_arrays` gives them: inputs, labels [N, seq_len], puzzle_identifiers [N].
    """
    was_training = model.training
    model.eval()
    size = len(arrays["inputs"])
    right = np.zeros(steps)
    for start in range(0, size, batch_size):
        part = {k: v.to(model.device) for k, v in tensors(arrays).items()}
        part = {k: v[start : start + batch_size] for k, v in part.items()}
        x = model.embed(part["inputs"], part["puzzle_identifiers"])
        latents = model.initial_latents(len(x))
        for step in range(steps):
            values, logits, _ = model.act_step(latents, x)
            latents = {name: values[name] for name in model.program.carried}
            solved = (logits.argmax(-1) == part["labels"]) | (part["labels"] == IGNORE_INDEX)
            right[step] += solved.all(-1).sum().item()
    model.train(was_training)
    return [float(value) for value in right / size]
