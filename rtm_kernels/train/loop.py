"""The training loop: ACT carry, loss, optimiser step, moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rtm_kernels.interop import official_loss_head
from rtm_kernels.model import Carry, RecursiveReasoner
from rtm_kernels.train.optim import build_optimizers, set_lr
from rtm_kernels.train.recipe import Recipe
from rtm_kernels.train.stream import SudokuStream

Metrics = dict[str, float]


class Trainer:
    """Holds all state of a run: model, moving average, optimisers, stream, carry and step count."""

    def __init__(self, recipe: Recipe, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, torch.device(device)
        self.model = RecursiveReasoner(recipe.model).to(self.device).train()
        self.head = official_loss_head(self.model, recipe.loss)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)).eval()
        self.optimizers = build_optimizers(self.model, recipe)
        self.stream = SudokuStream(recipe.sources, recipe.seed)
        self.carry: Carry | None = None
        self.step_count = 0
        if recipe.compile:
            for name in recipe.model.layers:
                self.model.get_submodule(name).compile(dynamic=False)

    def step(self) -> Metrics:
        """One ACT step and one optimiser step. Returns means over the samples that halted, and the loss."""
        recipe = self.recipe
        stage, _ = recipe.stage_at(self.step_count)
        batch = {k: v.to(self.device) for k, v in self.stream.batch(stage.batch_size, stage.mix).items()}
        if self.carry is None or len(self.carry.halted) != stage.batch_size:
            self.carry = self.model.initial_carry(batch)
        self.model.config = dataclasses.replace(self.model.config, halt_max_steps=stage.halt_max_steps)
        self.carry, loss, metrics, _, _ = self.head((), carry=self.carry, batch=batch)
        (loss / stage.batch_size).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.grad_clip)
        set_lr(self.optimizers, recipe.lr_factor(self.step_count))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.model)
        self.step_count += 1
        return {"loss": loss.item() / stage.batch_size, "grad_norm": norm.item(), **_means(metrics, stage.batch_size)}

    def fit(self, on_step: Callable[[Trainer, Metrics], None]) -> None:
        """Train to the end of the recipe, calling `on_step(trainer, metrics)` after each step."""
        while self.step_count < self.recipe.total_steps:
            on_step(self, self.step())

    @property
    def averaged(self) -> RecursiveReasoner:
        """The model with the moving average of the weights."""
        module = self.ema.module
        assert isinstance(module, RecursiveReasoner)
        return module


def _means(metrics: dict[str, Tensor], batch_size: int) -> Metrics:
    count = max(1, int(metrics["count"]))
    return {
        name: value.item() / (batch_size if name.endswith("loss") else count)
        for name, value in metrics.items()
        if name != "count"
    } | {"count": float(metrics["count"])}
