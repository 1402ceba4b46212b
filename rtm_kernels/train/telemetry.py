"""What a run tells: metrics as csv, speed, experiment trackers, curves on test puzzles, the picture at its end."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtm_kernels.data.loader import Arrays
from rtm_kernels.data.task import Task
from rtm_kernels.energy import energy_counter
from rtm_kernels.errors import BackendUnavailable, InputError, one_of
from rtm_kernels.files import new_file
from rtm_kernels.losses import CONFIDENCE, DELTA
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.token_loss import reference
from rtm_kernels.train.configure import to_dict
from rtm_kernels.train.steps import Metrics, Steps
from rtm_kernels.train.stream import tensors

MEASURED = ("test_exact_accuracy", f"test_{CONFIDENCE}", f"test_{DELTA}", "test_valid")
"""Columns of evaluations: values after the last ACT step, in the order of `Curves`."""


TRACKERS = ("trackio", "wandb")


class Callback:
    """Called at the start of a run, after each step, and at the end, also after an error."""

    def start(self, trainer: Steps) -> None:
        """Before the first step."""

    def log(self, trainer: Steps, metrics: Metrics) -> None:
        """After each step."""

    def finish(self, trainer: Steps) -> None:
        """After the last step."""


class CsvLog(Callback):
    """One row per step in a csv file: columns `step`, those `measured` now and then, and those of the first row.

    A resumed run first drops the rows of steps that it repeats.
    """

    def __init__(self, path: Path, measured: Sequence[str] = MEASURED) -> None:
        self.path, self.measured = path, measured
        self.fields: list[str] = []
        self._file: io.TextIOWrapper | None = None

    def start(self, trainer: Steps) -> None:
        """Open the file, without the rows after the step at which `trainer` stands."""
        rows = [row for row in read_csv(self.path) if row["step"] <= trainer.step_count]
        self.fields = list(rows[0]) if rows else []
        with new_file(self.path) as file:
            if rows:
                writer = csv.DictWriter(file, self.fields)
                writer.writeheader()
                writer.writerows(rows)
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def log(self, trainer: Steps, metrics: Metrics) -> None:
        assert self._file is not None
        row = {"step": float(trainer.step_count), **dict.fromkeys(self.measured, ""), **metrics}
        fresh = not self.fields
        self.fields = self.fields or list(row)
        writer = csv.DictWriter(self._file, self.fields, extrasaction="ignore", restval="")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()

    def finish(self, trainer: Steps) -> None:
        if self._file is not None:
            self._file.close()


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows that `CsvLog` wrote as numbers, None where a column is empty; an incomplete last row is left out.

    Errors: `InputError` for a file that it did not write.
    """
    if not path.is_file():
        return []
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if None in row or None in row.values():
                    continue
                rows.append({name: float(value) if value else None for name, value in row.items()})
                float(row["step"])
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not the rows of a run: {type(error).__name__}: {error}") from None
    return rows


class Speed(Callback):
    """Adds samples_per_second (of text: bytes), tflops and, where a counter is there, joules to the metrics.

    It comes after the `CsvLog`, whose rows are the same in every run.
    """

    def __init__(self) -> None:
        self.seconds = self.samples = self.flops = 0.0
        self.joules: float | None = None

    def start(self, trainer: Steps) -> None:
        self._counter = energy_counter(trainer.device.type, trainer.device.index or 0)
        self.rate = f"{trainer.unit}_per_second"

    def log(self, trainer: Steps, metrics: Metrics) -> None:
        (count, flops), seconds = trainer.work(), max(trainer.step_seconds, 1e-9)
        own = {"seconds": seconds, self.rate: count / seconds, "tflops": flops / seconds / 1e12}
        if self._counter is not None:
            before, self.joules = self.joules or 0.0, self._counter.joules()
            own["joules"] = self.joules - before
        self.seconds, self.samples = self.seconds + seconds, self.samples + count
        self.flops += flops
        metrics |= own

    @property
    def totals(self) -> dict[str, float]:
        """Means over the steps taken, and all joules; empty before the first."""
        if not self.seconds:
            return {}
        found = {self.rate: self.samples / self.seconds, "tflops": self.flops / self.seconds / 1e12}
        return found | ({} if self.joules is None else {"joules": self.joules})


class Tracker(Callback):
    """A run of the package `trackio` or `wandb`, which share one interface.

    Errors: `InputError` for another name, `BackendUnavailable` if it is not installed.
    """

    def __init__(self, name: str, folder: Path) -> None:
        one_of("--track", name, TRACKERS)
        try:
            self.module: Any = importlib.import_module(name)
        except ImportError as error:
            raise BackendUnavailable(f"--track {name}: the package {name} is not installed ({error})") from None
        self.folder = folder

    def start(self, trainer: Steps) -> None:
        """Open a run called as its folder, with the recipe as its config."""
        self.module.init(project="rtm_kernels", name=self.folder.name, config=to_dict(trainer.recipe))

    def log(self, trainer: Steps, metrics: Metrics) -> None:
        self.module.log(dict(metrics), step=trainer.step_count)

    def finish(self, trainer: Steps) -> None:
        self.module.finish()


@dataclass(frozen=True)
class Curves:
    """Means over examples after 1, 2, ... ACT steps without halting.

    `exact`: every labelled token is right; `halt`: sigmoid(q_halt) (empty without a head); `change`: |dy| / |y| of the
    output latent (empty when the program does not carry it); `valid`: the rules of the task hold, for tasks where an
    answer that is not the label may be right (else empty).
    """

    exact: list[float]
    halt: list[float]
    change: list[float]
    valid: list[float] = field(default_factory=list)


@torch.inference_mode()
def curves(
    model: RecursiveReasoner, arrays: Arrays, steps: int, batch_size: int = 256, task: Task | None = None
) -> Curves:
    """The curves of `model` over `steps` ACT steps on examples as a stream's `test_arrays` gives them:
    inputs, labels [N, seq_len], puzzle_identifiers [N]. `task` checks answers (`valid`)."""
    was_training, model = model.training, model.resized(arrays["inputs"].shape[1])
    model.eval()
    size, output = len(arrays["inputs"]), model.program.output
    sums, checks = np.zeros((4, steps)), task is not None and not task.one_solution
    for start in range(0, size, batch_size):
        part = {k: v[start : start + batch_size].to(model.device) for k, v in tensors(arrays).items()}
        x = model.embed(part["inputs"], part["puzzle_identifiers"])
        latents = model.initial_latents(len(x))
        for step in range(steps):
            values, logits, q = model.act_step(latents, x)
            answers = logits.argmax(-1)
            sums[0, step] += reference.exact(answers, part["labels"]).sum().item()
            if checks and task is not None:
                sums[3, step] += task.verify_tokens(part["inputs"].cpu().numpy(), answers.cpu().numpy()).sum()
            if q is not None:
                sums[1, step] += torch.sigmoid(q[..., 0]).sum().item()
            if output in latents:
                sums[2, step] += relative_change(values[output], latents[output]).sum().item()
            latents = {name: values[name] for name in model.program.carried}
    model.train(was_training)
    means = (sums / size).tolist()
    kept = (True, model.config.has_q_head, output in model.program.carried, checks)
    return Curves(*(row if there else [] for row, there in zip(means, kept, strict=True)))


def new_figure(columns: int) -> tuple[Any, Any]:
    """A figure and its axes in one row. Errors: `BackendUnavailable` when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable("no picture: the package matplotlib is not installed")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def plot_run(rows: list[dict[str, Any]], measured: Curves, path: Path) -> None:
    """Draw rows of a `CsvLog`, and accuracy, confidence and movement after each ACT step, into `path`.

    Errors: `BackendUnavailable` when matplotlib is not installed.
    """
    figure, (loss, accuracy, depth) = new_figure(3)
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], lw=0.8)
    loss.set(title="training loss", xlabel="step", yscale="log")
    seen = [(row["step"], row["exact_accuracy"]) for row in rows if row["count"]]
    if seen:
        at, shares = zip(*seen, strict=True)
        means = [np.mean(shares[max(0, i - 20) : i]) for i in range(1, len(shares) + 1)]
        accuracy.plot(at, means, lw=0.8, label="training, running mean")
    unseen = [(row["step"], row["test_exact_accuracy"]) for row in rows if row["test_exact_accuracy"] is not None]
    if unseen:
        accuracy.plot(*zip(*unseen, strict=True), "o-", ms=4, label="unseen, moving average")
    accuracy.set(title="exact accuracy", xlabel="step", ylim=(-0.02, 1.02))
    if seen or unseen:
        accuracy.legend()
    for values, label in ((measured.exact, "exact"), (measured.halt, "halting probability"),
                          (measured.change, "|dy| / |y|"), (measured.valid, "valid")):  # fmt: skip
        if values:
            depth.plot(range(1, len(values) + 1), values, "o-", ms=4, label=label)
    depth.set(title="unseen, at the end", xlabel="ACT steps", ylim=(-0.02, 1.02))
    if measured.exact:
        depth.legend()
    figure.savefig(path, dpi=110)
