"""Optimisers of a recipe over the parameters of a model, and the moving average of its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.train.schema import Recipe


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


class Average(nn.Module):
    """`w_avg <- decay w_avg + (1 - decay) w` over parameters, from the weights after the first step on.

    Buffers that are saved (initial latents, puzzle embeddings) are copied, as in the official code.
    """

    started: torch.Tensor

    def __init__(self, model: RecursiveReasoner, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def update(self, model: RecursiveReasoner) -> None:
        """Take in the weights of `model` after a step."""
        own: list[torch.Tensor] = list(self.model.parameters())
        theirs: list[torch.Tensor] = list(model.parameters())
        if self.started:
            torch._foreach_lerp_(own, theirs, 1 - self.decay)
        else:
            torch._foreach_copy_(own, theirs)
            self.started.fill_(True)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        average = self.model.state_dict()
        for name, value in model.state_dict().items():
            if name not in parameters:
                average[name].copy_(value)
