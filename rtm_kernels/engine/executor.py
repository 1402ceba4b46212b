"""What runs one ACT step of a model for the engine, behind one small interface."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, one_of
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import native, reference
from rtm_kernels.recursion.tape import why_not_program

Latents = dict[str, Tensor]
Run = Callable[[Mapping[str, Tensor], Tensor], Latents]
"""One pass of the model's program: latents and x [B, L, D] to the new latents."""


class Executor(Protocol):
    """Runs ACT steps of one model. `batch_invariant`: a sample's bits are the same in batches of any size."""

    name: str
    batch_invariant: bool

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[Latents, Tensor, Tensor | None]:
        """One ACT step on the batch: latents and x [B, L, D] to (latents, logits [B, seq_len, V], q [B, 2] or None).

        The latents given are not modified; those returned hold at least the carried ones and the output.
        """
        ...


class ProgramExecutor:
    """An executor of programs, followed by the model's heads; with `batch_invariant` those of each sample by itself."""

    def __init__(self, name: str, model: RecursiveReasoner, run: Run, batch_invariant: bool = False) -> None:
        self.name, self.batch_invariant, self._model, self._run = name, batch_invariant, model, run

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[Latents, Tensor, Tensor | None]:
        """See `Executor.step`."""
        values = self._run(latents, x)
        output = values[self._model.program.output]
        if not self.batch_invariant or len(output) <= 1:
            return values, *self._model.heads(output)
        logits, halting = zip(*map(self._model.heads, output.split(1)), strict=True)
        return values, torch.cat(logits), None if halting[0] is None else torch.cat(halting)


class Backend(NamedTuple):
    """How to build an executor for a model, and what keeps it from running that model (None when it can)."""

    build: Callable[[RecursiveReasoner], Executor]
    why_not: Callable[[RecursiveReasoner], str | None]


def _reference(model: RecursiveReasoner) -> Executor:
    return ProgramExecutor(
        "reference", model, lambda latents, x: reference.run(model.program, latents, x, model.stacks())
    )


def _native(model: RecursiveReasoner) -> Executor:
    stacks = {
        name: native.StackWeights.from_module(model.get_submodule(name), model.cos_sin())
        for name in model.config.layers
    }
    return ProgramExecutor("native", model, native.NativeExecutor(model.program, stacks).run, batch_invariant=True)


def _why_not_native(model: RecursiveReasoner) -> str | None:
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}, and it runs on cpu"
    if model.config.forward_dtype != "float32":
        return f"the model computes in {model.config.forward_dtype}, and it in float32"
    return why_not_program(model.program) or native.why_not()


EXECUTORS: dict[str, Backend] = {
    "native": Backend(_native, _why_not_native),
    "reference": Backend(_reference, lambda model: None),
}
"""Executors by name, the one that `auto` prefers first. `native` packs the weights when it is built."""


def executor(name: str, model: RecursiveReasoner) -> Executor:
    """The executor `name` for `model`; `auto` takes the first of `EXECUTORS` that can run it.

    Where `auto` would have preferred a compiled one that is missing, it warns once and says why.

    Errors: `InputError` for an unknown name, `BackendUnavailable` for a named one that cannot run here.
    """
    one_of("executor", name, ("auto", *EXECUTORS))
    candidates = EXECUTORS if name == "auto" else {name: EXECUTORS[name]}
    reasons: list[str] = []
    for candidate, backend in candidates.items():
        reason = backend.why_not(model)
        if reason is None:
            if reasons and native.why_not() is not None and model.device.type == "cpu":
                _warn_once(f"using the slower PyTorch executor: {native.why_not()}")
            return backend.build(model)
        reasons.append(f"executor={candidate!r} cannot run: {reason}")
    raise BackendUnavailable("; ".join(reasons))


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
