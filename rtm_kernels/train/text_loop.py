"""The training loop of text models, and what a run of one measures, saves and tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rtm_kernels import pretrained
from rtm_kernels.errors import InputError
from rtm_kernels.text.generate import generate
from rtm_kernels.text.measure import Measured, measure, training_flops
from rtm_kernels.text.model import TextModel, symbol_loss
from rtm_kernels.train.corpus import TextStream
from rtm_kernels.train.steps import Metrics, Steps
from rtm_kernels.train.telemetry import new_figure
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


class TextRun:
    """The methods of `session.PuzzleRun`, for text."""

    columns: Sequence[str] = ("test_bits_per_byte", "test_rounds")
    sign = -1.0
    """Smaller values of the first column are better."""

    def __init__(self, recipe: TextRecipe, device: str) -> None:
        self.trainer, self.recipe = TextTrainer(recipe, device), recipe
        self.measured: Measured | None = None

    def prepare(self) -> bool:
        """Split the held-out documents that are measured."""
        corpus, split = self.trainer.stream.corpus, self.trainer.stream.split
        self.held_out = [[*split(text), b""] for text in corpus.sample(self.recipe.eval_bytes)]
        return True

    def measure(self) -> dict[str, float]:
        """The columns of the moving average on held-out text now."""
        self.measured = measure(self.trainer.average.model, self.held_out)
        return dict(zip(self.columns, (self.measured.bits_per_byte, self.measured.rounds), strict=True))

    def export(self, folder: Path) -> None:
        """Save the moving average as a model; trained on a CPU it computes in float32."""
        model = self.trainer.average.model
        config = model.config
        if self.trainer.device.type == "cpu":
            config = replace(config, backbone=replace(config.backbone, forward_dtype="float32"))
        pretrained.save(config, model.state_dict(), folder, overwrite=True)

    def summary(self, out: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What only the summary of text holds: bits per byte with 1, 2, ... rounds, and what the model writes."""
        model, corpus = self.trainer.average.model, self.trainer.stream.corpus
        self.by_rounds = [measure(model, self.held_out, n) for n in range(1, self.recipe.model.rounds + 1)]
        written = b"".join(generate(model, "", max_bytes=400, temperature=0.7, seed=self.recipe.seed))
        return {
            "documents": len(corpus.train), "held_out_documents": len(corpus.held_out),
            "files_that_are_no_text": corpus.unread, "repeated_documents": corpus.repeated,
            "bits_per_byte": self.by_rounds[-1].bits_per_byte, "by_rounds": [asdict(found) for found in self.by_rounds],
            "sample": written.decode(errors="replace"),
        }  # fmt: skip

    def plot(self, rows: list[dict[str, Any]], path: Path) -> None:
        """Draw bits per byte during training, and with 1, 2, ... rounds. Errors: `BackendUnavailable`."""
        figure, (left, right) = new_figure(2)
        steps = [row["step"] for row in rows]
        left.plot(steps, [row["bits_per_byte"] for row in rows], lw=0.8, label="training")
        seen = [(row["step"], row[self.columns[0]]) for row in rows if row[self.columns[0]] is not None]
        left.plot(*zip(*seen, strict=True), "o-", ms=4, label="held out, moving average")
        left.set(title="bits per byte", xlabel="step", ylim=(0, 8))
        left.legend()
        right.plot([m.rounds for m in self.by_rounds], [m.bits_per_byte for m in self.by_rounds], "o-", ms=4)
        right.set(title="held out, at the end", xlabel="mean rounds of a word", ylabel="bits per byte")
        figure.savefig(path, dpi=110)
