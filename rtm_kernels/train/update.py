"""The update of a training step: clipping, the finiteness check, optimisers, puzzle rows, moving average."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.adam_atan2.api import sign_sgd_
from rtm_kernels.recursion.graph import Capture, Recorded, record
from rtm_kernels.recursion.train_graph import fill_state, state_of
from rtm_kernels.train.optim import Average, build_optimizers, set_lr
from rtm_kernels.train.schema import Recipe
from rtm_kernels.train.symmetry import Symmetry

Rows = tuple[Tensor, Tensor]
"""Puzzle embeddings of a step: their ids [R] and gradients [R, D]."""


class Update:
    """Optimisers and moving average of a recipe, and how a step uses them. Nothing in it waits for a GPU.

    With `symmetry` gradients and weights stay in its subspace.
    """

    def __init__(self, model: RecursiveReasoner, recipe: Recipe, symmetry: Symmetry | None = None) -> None:
        self.model, self.recipe, self.symmetry = model, recipe, symmetry
        self.average = Average(model, recipe.ema)
        self.optimizers = build_optimizers(model, recipe, symmetry)
        self._puzzle_rate = torch.zeros((), dtype=torch.float64, device=model.device)

    def schedule(self, step: int) -> None:
        """Set the learning rates of optimiser step `step` (from 0)."""
        factor = self.recipe.lr_factor(step)
        set_lr(self.optimizers, factor)
        self._puzzle_rate.fill_(factor * self.recipe.puzzle_lr)

    def clip(self, rows: Rows | None) -> Tensor:
        """Clip the gradients. [2] float64: their norm before, and 1 if it or a puzzle row is not finite, else 0."""
        if self.symmetry is not None:
            self.symmetry.gradients_(self.model)
        limit = math.inf if self.recipe.grad_clip is None else self.recipe.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        finite = norm.isfinite() if rows is None else norm.isfinite() & rows[1].isfinite().all()
        return torch.stack((norm.double(), (~finite).double()))

    def apply(self, rows: Rows | None, found_inf: Tensor | None = None) -> None:
        """Step the optimisers and take the new weights into the average; nothing changes where `found_inf` is 1."""
        for optimizer in self.optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            optimizer.step()
        if rows is not None:
            table, decay = self.model.puzzle_emb.weights, self.recipe.puzzle_weight_decay
            sign_sgd_(table, *rows, lr=self._puzzle_rate, weight_decay=decay, found_inf=found_inf)
        if self.symmetry is not None:
            self.symmetry.weights_(self.model)
        self.average.update(self.model, found_inf)


class CapturedUpdate:
    """`clip` and `apply` of an update as one graph, in which the device decides whether to skip the step.

    Bit for bit the same as calling both, the second only if everything is finite. There is one graph for each
    set of parameters with gradients and number of puzzle rows; the average must have started.
    """

    def __init__(self, update: Update, capture: Capture) -> None:
        self.update, self.capture = update, capture
        self._graphs: dict[Hashable, tuple[Recorded, list[Tensor]]] = {}

    def forget(self) -> None:
        """Capture anew from now on, because the optimisers hold other tensors."""
        self._graphs.clear()

    @torch.no_grad()
    def __call__(self, rows: Rows | None) -> Tensor:
        """What `Update.clip` returns; gradients are taken from `p.grad`, which is None afterwards."""
        parameters = [p for p in self.update.model.parameters() if p.grad is not None]
        given = [*(p.grad for p in parameters if p.grad is not None), *(rows or ())]
        key = (*map(id, parameters), 0 if rows is None else len(rows[0]))
        with self.capture.exclusive():
            if key not in self._graphs:
                buffers = [t.clone() for t in given]
                self._graphs[key] = self._record(parameters, buffers), buffers
            (replay, outputs), buffers = self._graphs[key]
            for buffer, value in zip(buffers, given, strict=True):
                buffer.copy_(value)
            replay()
            found = outputs["found"].clone()
        for parameter in parameters:
            parameter.grad = None
        return found

    def _record(self, parameters: list[torch.nn.Parameter], buffers: list[Tensor]) -> Recorded:
        update, count = self.update, len(parameters)
        rows = (buffers[count], buffers[count + 1]) if len(buffers) > count else None
        for optimizer in update.optimizers:
            fill_state(optimizer)
        for parameter, buffer in zip(parameters, buffers[:count], strict=True):
            parameter.grad = buffer

        def run() -> dict[str, Tensor]:
            found = update.clip(rows)
            update.apply(rows, found[1].float())
            return {"found": found}

        states = [t for optimizer in update.optimizers for t in state_of(optimizer)]
        mutates = (*update.model.state_dict().values(), *update.average.state_dict().values(), *states)
        try:
            return record(self.capture, run, mutates, "the update")
        finally:
            for optimizer in update.optimizers:
                optimizer.found_inf = None  # type: ignore[attr-defined]
