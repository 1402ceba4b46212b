"""The update of a training step: clipping, finiteness check, optimisers, puzzle rows and moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.recursion.graph import CudaGraphs, Recorded, record
from rtm_kernels.recursion.train_graph import fill_state, state_of
from rtm_kernels.text.model import TextModel
from rtm_kernels.train.schema import Recipe
from rtm_kernels.train.symmetry import SymmetricMuon, Symmetry
from rtm_kernels.train.text_recipe import TextRecipe

Rows = tuple[Tensor, Tensor]
"""Puzzle embeddings of a step: their ids [R] and gradients [R, D]."""

BASE = "base_lr"
"""Key of a group's learning rate at factor 1."""


def build_optimizers(
    model: RecursiveReasoner | TextModel, recipe: Recipe | TextRecipe, symmetry: Symmetry | None = None
) -> list[torch.optim.Optimizer]:
    """One optimiser, or for `muon` Muon for the blocks' matrices and AdamW for everything else; with `symmetry`
    the channel mixes get a `SymmetricMuon`.

    AdamATan2 and AdamW take their rates as tensors and leave out a step on the device, so that steps with and without a
    CUDA graph have the same bits; `torch.optim.Muon` computes its rate on the host.
    """
    named = list(model.named_parameters())
    blocks = [p for name, p in named if ".layers." in name]
    rest = [p for name, p in named if ".layers." not in name]
    decay, device = recipe.weight_decay, rest[0].device

    def adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.AdamW:
        groups = [{"params": parameters, "lr": torch.tensor(lr, device=device), BASE: lr}]
        return torch.optim.AdamW(groups, betas=recipe.betas, weight_decay=decay, fused=True, capturable=recipe.graph)

    if recipe.optimizer == "muon":
        apart = symmetry.channel_mixes(model) if symmetry and isinstance(model, RecursiveReasoner) else {}
        whole = [p for name, p in named if ".layers." in name and name not in apart]
        muon = torch.optim.Muon(whole, lr=recipe.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        own = [] if symmetry is None else [SymmetricMuon(apart, symmetry.values, recipe.lr, decay)]
        return [muon, *own, adamw(rest, recipe.aux_lr)]
    if recipe.optimizer == "adamw":
        return [adamw(blocks + rest, recipe.lr)]
    rate = torch.tensor(recipe.lr, dtype=torch.float64, device=device)
    groups = [{"params": blocks + rest, "lr": rate, BASE: recipe.lr}]
    return [AdamATan2(groups, betas=recipe.betas, weight_decay=decay)]


class Average(nn.Module):
    """`w_avg <- decay w_avg + (1 - decay) w` over parameters, from the weights after the first step on.

    Buffers that are saved (initial latents, puzzle embeddings) are copied, as in the official code.
    `started` stays on the CPU, so that reading it never waits for a GPU.
    """

    started: Tensor

    model: Any

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def update(self, model: nn.Module, found_inf: Tensor | None = None) -> None:
        """Take in the weights of `model` after a step. With `found_inf` a CUDA graph can capture it once it has
        started, and nothing changes where its element is not 0."""
        own: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        if found_inf is not None:
            for mine, new in zip(own, torch._foreach_lerp(own, theirs, 1 - self.decay), strict=True):
                mine.copy_(torch.where(found_inf == 0, new, mine))
        elif self.started:
            torch._foreach_lerp_(own, theirs, 1 - self.decay)
        else:
            torch._foreach_copy_(own, theirs)
            self.started.fill_(True)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        average = self.model.state_dict()
        for name, value in model.state_dict().items():
            if name not in parameters:
                average[name].copy_(value)


class Update:
    """Optimisers and moving average of a recipe, and how a step uses them. Nothing in it waits for a GPU.

    With `symmetry` gradients and weights stay in its subspace.
    """

    model: Any

    def __init__(
        self, model: RecursiveReasoner | TextModel, recipe: Recipe | TextRecipe, symmetry: Symmetry | None = None
    ) -> None:
        self.model, self.recipe, self.symmetry = model, recipe, symmetry
        self.average = Average(model, recipe.ema)
        self.optimizers = build_optimizers(model, recipe, symmetry)
        self._puzzle_rate = torch.zeros((), dtype=torch.float64, device=model.device)

    def schedule(self, step: int) -> None:
        """Set the learning rates of optimiser step `step` (from 0), in place where they are tensors."""
        factor = self.recipe.lr_factor(step)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            lr = factor * group.setdefault(BASE, group["lr"])
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._puzzle_rate.fill_(factor * self.recipe.puzzle_lr)

    def clip(self, rows: Rows | None) -> Tensor:
        """Clip the gradients. [2] float64: their norm before, and 1 if it or a puzzle row is not finite, else 0."""
        if self.symmetry is not None:
            self.symmetry.gradients_(self.model)
        limit = math.inf if self.recipe.grad_clip is None else self.recipe.grad_clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
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

    def __init__(self, update: Update, capture: CudaGraphs) -> None:
        self.update, self.capture = update, capture
        self._graphs: dict[Hashable, tuple[Recorded, list[Tensor]]] = {}

    def forget(self) -> None:
        """CudaGraphs anew from now on, because the optimisers hold other tensors."""
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

    def _record(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> Recorded:
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
