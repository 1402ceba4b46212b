"""What a run of a text model measures, saves and tells besides what every run does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rtm_kernels import pretrained
from rtm_kernels.text.generate import generate
from rtm_kernels.text.measure import Measured, measure
from rtm_kernels.train.telemetry import new_figure
from rtm_kernels.train.text_loop import TextTrainer
from rtm_kernels.train.text_recipe import TextRecipe

SAMPLE_BYTES = 400


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
        written = b"".join(generate(model, "", max_bytes=SAMPLE_BYTES, temperature=0.7, seed=self.recipe.seed))
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
