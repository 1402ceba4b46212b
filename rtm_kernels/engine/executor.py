"""What runs one ACT step of a model for the engine, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, one_of
from rtm_kernels.model import RecursiveReasoner

Latents = dict[str, Tensor]


class Executor(Protocol):
    """Runs ACT steps of one model."""

    name: str

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[Latents, Tensor, Tensor | None]:
        """One ACT step on the batch: latents and x [B, L, D] to (latents, logits [B, seq_len, V], q [B, 2] or None).

        The latents given are not modified; those returned hold at least the carried ones and the output.
        """
        ...


class ReferenceExecutor:
    """The model's own `act_step`: the program step by step, each op by the implementation of its block."""

    name = "reference"

    def __init__(self, model: RecursiveReasoner) -> None:
        self.model = model

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[Latents, Tensor, Tensor | None]:
        """See `Executor.step`."""
        return self.model.act_step(latents, x)


def why_not_reference(device: torch.device) -> str | None:
    """The reference runs everywhere."""
    return None


EXECUTORS: dict[str, tuple[Callable[[RecursiveReasoner], Executor], Callable[[torch.device], str | None]]] = {
    "reference": (ReferenceExecutor, why_not_reference),
}
"""Name -> (constructor, what keeps it from running on a device or None), best first."""


def executor(name: str, model: RecursiveReasoner) -> Executor:
    """The executor `name` for `model`; `auto` takes the first of `EXECUTORS` that can run on the model's device.

    Errors: `InputError` for an unknown name, `BackendUnavailable` for a named one that cannot run here.
    """
    one_of("executor", name, ("auto", *EXECUTORS))
    candidates = EXECUTORS if name == "auto" else {name: EXECUTORS[name]}
    reasons = []
    for candidate, (build, why_not) in candidates.items():
        reason = why_not(model.device)
        if reason is None:
            return build(model)
        reasons.append(f"executor={candidate!r} cannot run: {reason}")
    raise BackendUnavailable("; ".join(reasons))
