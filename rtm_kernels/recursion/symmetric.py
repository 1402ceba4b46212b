"""Symmetric stacks in C++, forwards and backwards, at the cost of what their weights are made of (csrc/cpu).

A sample's result has the same bits in any batch and with any number of threads, and so have gradients. All is float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.program import Program
from rtm_kernels.recursion import native
from rtm_kernels.recursion.library import Model, address, addresses, empty
from rtm_kernels.recursion.symmetric_weights import SIDES, Sizes, layer_weights, sizes_of, why_not_symmetric
from rtm_kernels.recursion.tape import encode, why_not_program


def why_not_structure(model: Any) -> str | None:
    """What keeps a model of any weights from these kernels, or None when symmetric ones would run."""
    config, program = model.config, model.program
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}, and it runs on cpu"
    if model.dtype != torch.float32:
        return f"the model computes in {model.dtype}, and it in float32"
    if config.mixer != "mlp" or config.norm_axis != "sequence" or config.prefix_len:
        return "it runs MLP mixers that normalise over the sequence, without a prefix"
    n = math.isqrt(config.seq_len)
    if n not in SIDES or n * n != config.seq_len or config.hidden_size < n:
        return f"it runs boards of side {', '.join(map(str, SIDES))} with a channel for each digit"
    grads = [step.grad for step in program.steps]
    if grads != sorted(grads):
        return "its steps with gradient come last"
    return why_not_program(program) or native.why_not()


def why_not(model: Any) -> str | None:
    """What keeps the kernels from running a model, or None when they can."""
    reason = why_not_structure(model)
    if reason is not None:
        return reason
    sizes = sizes_of(model.config)
    for stack in model.program.stacks:
        for i, block in enumerate(model.get_submodule(stack).layers):
            name = why_not_symmetric(dict(block.named_parameters()), sizes)
            if name is not None:
                return f"{stack}.layers.{i}.{name} does not commute with the symmetries of Sudoku"
    return None


class SymmetricProgram:
    """One program over symmetric stacks. Errors: `BackendUnavailable` without the compiled library."""

    def __init__(self, program: Program, sizes: Sizes, eps: float, isa: str = "auto") -> None:
        self.isa = native.isas()[0] if isa == "auto" else isa
        self.program, self.names, self.sizes = program, program.latents, sizes
        first = self.isa.encode(), list(sizes), len(self.names), eps
        self.model = Model("symmetric", *first, tape=encode(program))
        self._board = sizes.side**2, sizes.side * sizes.channels + sizes.other_channels  # L, D
        self._state = (self.model.count("state"),)
        self.first = next((i for i, step in enumerate(program.steps) if step.grad), len(program))
        """The first step with a gradient."""

    def set_weights(self, stacks: Sequence[Sequence[Sequence[Tensor]]]) -> None:
        """The weights (`layer_weights`) of every layer of every stack, in the order of `Program.stacks`."""
        for i, layers in enumerate(stacks):
            for j, weights in enumerate(layers):
                self.model("set_layer", i, j, addresses([w.detach() for w in weights], self.sizes.shapes))

    def run(self, latents: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The whole program from `latents` with input embedding `x`, all [B, L, D]; without gradient."""
        values, x = self._inputs(latents, x)
        self._forward(values, x, 0, len(self.program))
        return self._results(values)

    def run_saving(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The same, and what `gradients` needs of the steps with gradient."""
        values, x = self._inputs(latents, x)
        self._forward(values, x, 0, self.first)
        saved = empty(len(x), self.model.count("saved", self.first, len(self.program)))
        self._forward(values, x, self.first, len(self.program), saved)
        return self._results(values), saved

    def gradients(
        self, saved: Tensor, outputs: Mapping[str, Tensor], like: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
        """Gradients of the latents before the first step with gradient, of x, and of all weights, shaped `like`."""
        shape = next(iter(outputs.values()))
        given = [self._sorted(outputs.get(name, torch.zeros_like(shape))) for name in self.names]
        x, weights = torch.zeros_like(given[0]), [empty(*w.shape) for w in like]
        layers, steps = len(weights) // 10, (self.first, len(self.program))
        states = addresses(given, [x.shape] * len(given)), address(x, x.shape)
        kept = address(saved, (len(x), self.model.count("saved", *steps)))
        into = addresses(weights, self.sizes.shapes * layers)
        self.model("backward", *states, kept, len(x), *steps, into, layers, torch.get_num_threads())
        back = {name: self._unsorted(value) for name, value in zip(self.names, given, strict=True)}
        return back, self._unsorted(x), weights

    def _inputs(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self._sorted(x)
        values = [latents.get(name) for name in self.names]
        return [torch.zeros_like(x) if v is None else self._sorted(v) for v in values], x

    def _forward(self, values: Sequence[Tensor], x: Tensor, begin: int, end: int, saved: Tensor | None = None) -> None:
        states = addresses(values, [x.shape] * len(values)), address(x, x.shape)
        kept = None if saved is None else address(saved, saved.shape)
        self.model("forward", *states, len(x), begin, end, kept, torch.get_num_threads())

    def _sorted(self, x: Tensor) -> Tensor:
        """[B, L, D] in the layout of the kernels, [B, state]."""
        return self._moved("sort", x.detach().contiguous(), self._board, self._state)

    def _unsorted(self, x: Tensor) -> Tensor:
        return self._moved("unsort", x, self._state, self._board)

    def _moved(self, function: str, x: Tensor, shape: Sequence[int], into: Sequence[int]) -> Tensor:
        out = empty(len(x), *into)
        at = address(x, (len(x), *shape)), len(x), address(out, out.shape)
        self.model(function, *at, torch.get_num_threads())
        return out

    def _results(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        written = {step.dst for step in self.program.steps}
        named = zip(self.names, values, strict=True)
        return {name: self._unsorted(value) for name, value in named if name in written}


class TrainingRun:
    """Runs the programs of one model with gradients, as `recursion.reference.run` does, its weights symmetric.

    They are read at every call, so an optimiser may change them in between.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._programs = model, dict[Program, SymmetricProgram]()

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingRun:
        """For a copy of the model, which packs its weights anew."""
        return TrainingRun(copy.deepcopy(self._model, memo))

    def __call__(self, program: Program, latents: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The latents after `program` from `latents` with input embedding `x` [B, L, D]."""
        config = self._model.config
        if program not in self._programs:
            self._programs[program] = SymmetricProgram(program, sizes_of(config), config.rms_norm_eps)
        prepared = self._programs[program]
        stacks = _weights(self._model, program)
        prepared.set_weights(stacks)
        if not torch.is_grad_enabled():
            return {**latents, **prepared.run(latents, x)}
        flat = [w for layers in stacks for weights in layers for w in weights]
        carried = list(program.carried)
        outputs = _Differentiable.apply(prepared, carried, x, *(latents[name] for name in carried), *flat)
        return {**latents, **dict(zip(_written(program), outputs, strict=True))}


def inference(model: Any) -> SymmetricProgram:
    """The program of a model with its weights as they are now."""
    prepared = SymmetricProgram(model.program, sizes_of(model.config), model.config.rms_norm_eps)
    with torch.no_grad():
        prepared.set_weights(_weights(model, model.program))
    return prepared


def _weights(model: Any, program: Program) -> list[list[list[Tensor]]]:
    sizes = sizes_of(model.config)
    return [
        [layer_weights(dict(block.named_parameters()), sizes) for block in model.get_submodule(name).layers]
        for name in program.stacks
    ]


def _written(program: Program) -> list[str]:
    return [name for name in program.latents if any(step.dst == name for step in program.steps)]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepared: SymmetricProgram, carried: list[str], x: Tensor, *rest: Tensor) -> Any:
        latents = dict(zip(carried, rest[: len(carried)], strict=True))
        values, saved = prepared.run_saving(latents, x)
        ctx.prepared, ctx.carried, ctx.weights = prepared, carried, rest[len(carried) :]
        ctx.save_for_backward(saved)
        return tuple(values[name] for name in _written(prepared.program))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        prepared: SymmetricProgram = ctx.prepared
        (saved,) = ctx.saved_tensors
        outputs = dict(zip(_written(prepared.program), grads, strict=True))
        latents, x, weights = prepared.gradients(saved, outputs, ctx.weights)
        through = [latents[name] if prepared.first == 0 else None for name in ctx.carried]
        return None, None, x, *through, *weights
