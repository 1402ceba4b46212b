"""Optimisers of a recipe over the parameters of a model, and the moving average of its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.train.schema import Recipe
from rtm_kernels.train.symmetric_muon import SymmetricMuon
from rtm_kernels.train.symmetry import Symmetry

BASE = "base_lr"
"""Key of a group's learning rate at factor 1."""


def build_optimizers(
    model: RecursiveReasoner, recipe: Recipe, symmetry: Symmetry | None = None
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
        apart = {} if symmetry is None else symmetry.channel_mixes(model)
        whole = [p for name, p in named if ".layers." in name and name not in apart]
        muon = torch.optim.Muon(whole, lr=recipe.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        own = [] if symmetry is None else [SymmetricMuon(apart, symmetry.values, recipe.lr, decay)]
        return [muon, *own, adamw(rest, recipe.aux_lr)]
    if recipe.optimizer == "adamw":
        return [adamw(blocks + rest, recipe.lr)]
    rate = torch.tensor(recipe.lr, dtype=torch.float64, device=device)
    groups = [{"params": blocks + rest, "lr": rate, BASE: recipe.lr}]
    return [AdamATan2(groups, betas=recipe.betas, weight_decay=decay)]


def why_not_captured(recipe: Recipe) -> str | None:
    """What keeps the optimiser's step of a recipe out of CUDA graphs, or None."""
    return "torch.optim.Muon computes its learning rate on the host" if recipe.optimizer == "muon" else None


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times the one it was built with, in place where it is a tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr = factor * group.setdefault(BASE, group["lr"])
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


class Average(nn.Module):
    """`w_avg <- decay w_avg + (1 - decay) w` over parameters, from the weights after the first step on.

    Buffers that are saved (initial latents, puzzle embeddings) are copied, as in the official code.
    `started` stays on the CPU, so that reading it never waits for a GPU.
    """

    started: Tensor

    def __init__(self, model: RecursiveReasoner, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def update(self, model: RecursiveReasoner, found_inf: Tensor | None = None) -> None:
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
