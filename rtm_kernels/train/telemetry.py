"""What a run tells: a csv file of metrics, training speed, experiment trackers and the picture at its end."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtm_kernels.energy import energy_counter
from rtm_kernels.errors import BackendUnavailable, InputError, one_of
from rtm_kernels.flops import act_step_flops
from rtm_kernels.losses import CONFIDENCE, DELTA
from rtm_kernels.train.configure import to_dict
from rtm_kernels.train.loop import Metrics, Trainer
from rtm_kernels.train.objective import CumulativeHalting
from rtm_kernels.train.observe import Curves

MEASURED = ("test_exact_accuracy", f"test_{CONFIDENCE}", f"test_{DELTA}", "test_valid")
"""Columns of evaluations: values after the last ACT step, in the order of `Curves`."""


class Callback:
    """Called at the start of a run, after each step, and at the end, also after an error."""

    def start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        """After each step."""

    def finish(self, trainer: Trainer) -> None:
        """After the last step."""


class CsvLog(Callback):
    """One row per step in a csv file; the columns are `step`, `MEASURED` and those of the first row.

    A resumed run first drops the rows of steps that it repeats.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: list[str] = []
        self._file: io.TextIOWrapper | None = None

    def start(self, trainer: Trainer) -> None:
        """Open the file, without the rows after the step at which `trainer` stands."""
        rows = [row for row in read_csv(self.path) if row["step"] <= trainer.step_count]
        self.fields = list(rows[0]) if rows else []
        aside = self.path.with_name(self.path.name + ".partial")
        with aside.open("w", encoding="utf-8", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, self.fields)
                writer.writeheader()
                writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
        os.replace(aside, self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        assert self._file is not None
        row = {"step": float(trainer.step_count), **dict.fromkeys(MEASURED, ""), **metrics}
        fresh = not self.fields
        self.fields = self.fields or list(row)
        writer = csv.DictWriter(self._file, self.fields, extrasaction="ignore", restval="")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()

    def finish(self, trainer: Trainer) -> None:
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


def step_flops(trainer: Trainer) -> float:
    """Useful FLOPs of one optimiser step on this rank, at the depth of its stage, without heads and optimiser.

    The cumulative objective runs `halt_max_steps` ACT steps; stochastic rounds count as if none were dropped.
    """
    stage, _ = trainer.recipe.stage_at(max(0, trainer.step_count - 1))
    config = stage.model(trainer.recipe.model)
    each = act_step_flops(config, train=True)
    if isinstance(trainer.recipe.objective, CumulativeHalting):
        each *= config.halt_max_steps
    return float(each * stage.batch_size // trainer.world_size)


class Speed(Callback):
    """Adds samples_per_second, tflops and, where a counter is there, joules to the metrics.

    It comes after the `CsvLog`, whose rows are the same in every run.
    """

    def __init__(self) -> None:
        self.seconds = self.samples = self.flops = 0.0
        self.joules: float | None = None

    def start(self, trainer: Trainer) -> None:
        self._counter = energy_counter(trainer.device.type, trainer.device.index or 0)

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        stage, _ = trainer.recipe.stage_at(max(0, trainer.step_count - 1))
        seconds, flops = max(trainer.step_seconds, 1e-9), step_flops(trainer)
        own = {"seconds": seconds, "samples_per_second": stage.batch_size / seconds, "tflops": flops / seconds / 1e12}
        if self._counter is not None:
            before, self.joules = self.joules or 0.0, self._counter.joules()
            own["joules"] = self.joules - before
        self.seconds, self.samples = self.seconds + seconds, self.samples + stage.batch_size
        self.flops += flops
        metrics |= own

    @property
    def totals(self) -> dict[str, float]:
        """Means over the steps taken, and all joules; empty before the first."""
        if not self.seconds:
            return {}
        found = {"samples_per_second": self.samples / self.seconds, "tflops": self.flops / self.seconds / 1e12}
        return found | ({} if self.joules is None else {"joules": self.joules})


class Tensorboard(Callback):
    """Scalars for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        self.module, self.folder = _need("torch.utils.tensorboard", "tensorboard"), folder / "tensorboard"

    def start(self, trainer: Trainer) -> None:
        """Open its folder, which has to wait for the run's own."""
        self.writer = self.module.SummaryWriter(str(self.folder))

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, trainer.step_count)

    def finish(self, trainer: Trainer) -> None:
        self.writer.close()


class Tracker(Callback):
    """A run of `trackio` or `wandb`, which share one interface."""

    def __init__(self, name: str, folder: Path) -> None:
        self.module, self.folder = _need(name, name), folder

    def start(self, trainer: Trainer) -> None:
        """Open a run called as its folder, with the recipe as its config."""
        config: Mapping[str, Any] = to_dict(trainer.recipe)
        self.module.init(project="rtm_kernels", name=self.folder.name, config=config)

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        self.module.log(dict(metrics), step=trainer.step_count)

    def finish(self, trainer: Trainer) -> None:
        self.module.finish()


TRACKERS = ("tensorboard", "trackio", "wandb")


def tracker(name: str, folder: Path) -> Callback:
    """The callback called `name`. Errors: `InputError` for another name, `BackendUnavailable` if not installed."""
    one_of("--track", name, TRACKERS)
    return Tensorboard(folder) if name == "tensorboard" else Tracker(name, folder)


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendUnavailable(f"--track {package}: the package {package} is not installed ({error})") from None


def plot_run(rows: list[dict[str, Any]], measured: Curves, path: Path) -> None:
    """Draw rows of a `CsvLog`, and accuracy, confidence and movement after each ACT step, into `path`.

    Errors: `BackendUnavailable` when matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable("no picture: the package matplotlib is not installed")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, depth = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], lw=0.8)
    loss.set(title="training loss", xlabel="step", yscale="log")
    seen = [(row["step"], row["exact_accuracy"]) for row in rows if row["count"]]
    accuracy.plot(*zip(*smooth(seen), strict=True), lw=0.8, label="training, running mean") if seen else None
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


def smooth(points: list[tuple[float, float]], width: int = 20) -> list[tuple[float, float]]:
    """Mean of the last `width` values at each point."""
    return [
        (step, sum(v for _, v in points[max(0, i - width + 1) : i + 1]) / min(i + 1, width))
        for i, (step, _) in enumerate(points)
    ]
