"""Optimisers of a recipe over the parameters of a model."""

from __future__ import annotations

import torch
from torch import nn

from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.train.recipe import Recipe


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """One optimiser, or for `muon` two: Muon over the blocks' matrices and AdamW over everything else."""
    named = list(model.named_parameters())
    blocks = [p for name, p in named if ".layers." in name]
    rest = [p for name, p in named if ".layers." not in name]
    decay = recipe.weight_decay
    if recipe.optimizer == "muon":
        return [
            torch.optim.Muon(blocks, lr=recipe.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=recipe.aux_lr, betas=recipe.betas, weight_decay=decay),
        ]
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(blocks + rest, lr=recipe.lr, betas=recipe.betas, weight_decay=decay)]
    return [AdamATan2(blocks + rest, lr=recipe.lr, betas=recipe.betas, weight_decay=decay)]


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times the one it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("base_lr", group["lr"])
