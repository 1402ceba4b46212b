"""The training loop of text models."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from rtm_kernels.errors import InputError
from rtm_kernels.text.measure import training_flops
from rtm_kernels.text.model import TextModel, symbol_loss
from rtm_kernels.train.corpus import TextStream
from rtm_kernels.train.steps import Metrics, Steps
from rtm_kernels.train.text_recipe import TextRecipe
from rtm_kernels.train.update import Update


class TextTrainer(Steps):
    """Holds all state of a run: model, moving average, optimisers, stream and step count.

    Errors: `InputError` under torch.distributed, and for a corpus that cannot be read.
    """

    unit = "bytes"
    model: TextModel
    recipe: TextRecipe

    def __init__(self, recipe: TextRecipe, device: torch.device | str = "cpu") -> None:
        super().__init__()
        if dist.is_initialized():
            raise InputError("text models train in one process; start rtm train without torchrun")
        self.recipe, self.device = recipe, torch.device(device)
        torch.manual_seed(recipe.seed)
        self.stream = TextStream(recipe)
        self.model = TextModel(recipe.model).to(self.device).train()
        self.update = Update(self.model, recipe)
        self.optimizers, self.average = self.update.optimizers, self.update.average
        self.position = self.stream.state()
        self._work = (0.0, 0.0)

    def step(self) -> Metrics:
        """One optimiser step. Returns the loss, its bits per byte, the rounds taken and the gradient's norm.

        Errors: `Diverged` when several gradients in a row are not finite; a single one skips the update.
        """
        recipe, config = self.recipe, self.recipe.model
        packed, size = self.stream.batch()
        packed = packed.to(self.device)
        rounds = config.rounds
        if not config.halts:
            rounds = 1 + int((torch.rand(rounds - 1) < recipe.keep).sum())
        logits, thought = self.model(packed, rounds)
        nats = symbol_loss(logits, packed.targets).sum()
        symbols = (packed.words >= 0).sum()
        loss, taken = nats / symbols, torch.full((), float(rounds))
        if thought.halting is not None:
            state, rise = thought.halting, self.step_count / recipe.total_steps / max(recipe.anneal, 1e-9)
            loss = loss + min(1.0, rise) * recipe.ponder * (state.steps + state.remainder).mean()
            taken = state.steps.double().mean()
        loss.backward()
        sums = {"loss": loss.detach().double(), "nats": nats.detach().double(), "rounds": taken.double()}
        self._work = (float(size), training_flops(config, packed.first.numel(), packed.symbols.numel(), rounds))
        found, norm = self._finish({k: v.to(self.device) for k, v in sums.items()}, None)
        self.step_count += 1
        self.position = self.stream.state()
        bits = found["nats"] / math.log(2) / size
        return {"loss": found["loss"], "bits_per_byte": bits, "rounds": found["rounds"], "grad_norm": norm,
                "skipped": float(self.skipped)}  # fmt: skip

    def work(self) -> tuple[float, float]:
        """Bytes and FLOPs of the last step."""
        return self._work
