"""Callbacks of a run: a csv file of metrics, and experiment trackers where they are installed."""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rtm_kernels.errors import BackendUnavailable, InputError, one_of
from rtm_kernels.losses import CONFIDENCE, DELTA
from rtm_kernels.train.configure import to_dict
from rtm_kernels.train.loop import Metrics, Trainer

MEASURED = ("test_exact_accuracy", f"test_{CONFIDENCE}", f"test_{DELTA}")
"""Columns of evaluations: values after the last ACT step, in the order of `Curves`."""


class Callback(Protocol):
    """Called at the start of a run, after each step, and at the end, also after an error."""

    def start(self, trainer: Trainer) -> None: ...
    def log(self, trainer: Trainer, metrics: Metrics) -> None: ...
    def finish(self, trainer: Trainer) -> None: ...


class CsvLog:
    """One row per step in a csv file; the columns are those of the first row, `step`, and those of evaluations.

    A resumed run first drops the rows of steps that it repeats.
    """

    def __init__(self, path: Path, extra: tuple[str, ...] = MEASURED) -> None:
        self.path, self.extra = path, dict.fromkeys(extra, "")
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
        """Append a row."""
        assert self._file is not None
        row = {"step": float(trainer.step_count), **self.extra, **metrics}
        fresh = not self.fields
        self.fields = self.fields or list(row)
        writer = csv.DictWriter(self._file, self.fields, extrasaction="ignore", restval="")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()

    def finish(self, trainer: Trainer) -> None:
        """Close the file."""
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


class Tensorboard:
    """Scalars for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        self.module, self.folder = _need("torch.utils.tensorboard", "tensorboard"), folder / "tensorboard"

    def start(self, trainer: Trainer) -> None:
        """Open its folder, which has to wait for the run's own."""
        self.writer = self.module.SummaryWriter(str(self.folder))

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        """Write every metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, trainer.step_count)

    def finish(self, trainer: Trainer) -> None:
        """Flush and close."""
        self.writer.close()


class Tracker:
    """A run of `trackio` or `wandb`, which share one interface."""

    def __init__(self, name: str, folder: Path) -> None:
        self.module, self.folder = _need(name, name), folder

    def start(self, trainer: Trainer) -> None:
        """Open a run called as its folder, with the recipe as its config."""
        config: Mapping[str, Any] = to_dict(trainer.recipe)
        self.module.init(project="rtm_kernels", name=self.folder.name, config=config)

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        """Send every metric."""
        self.module.log(dict(metrics), step=trainer.step_count)

    def finish(self, trainer: Trainer) -> None:
        """Close the run."""
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
