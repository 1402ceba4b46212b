"""One training run in one folder: recipe, metrics, states, evaluation, picture and the model at the end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from rtm_kernels import pretrained
from rtm_kernels.data.loader import Arrays
from rtm_kernels.errors import BackendUnavailable, InputError, require
from rtm_kernels.files import replace_text
from rtm_kernels.train.checkpoint import clean, load_checkpoint, save_checkpoint, states
from rtm_kernels.train.configure import AnyRecipe, fit_to_data, load_recipe, save_recipe
from rtm_kernels.train.gradients import DEPTH
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import Recipe
from rtm_kernels.train.steps import Metrics, Steps
from rtm_kernels.train.stream import DatasetStream, PoolStream
from rtm_kernels.train.telemetry import MEASURED, Callback, CsvLog, Curves, Speed, curves, plot_run, read_csv
from rtm_kernels.train.text_loop import TextRun

RECIPE, METRICS, STATES, MODEL, BEST, PICTURE, SUMMARY, UNSEEN = (
    "recipe.json", "metrics.csv", "checkpoints", "model", "best", "curve.png", "summary.json", "unseen.csv",
)  # fmt: skip

STOPPING = b"stopping after this step, which is saved; once more to stop at once, without it\n"
"""Printed on standard error at the first signal, because a first step may build data or compile for minutes."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `summary` is what `summary.json` holds; `interrupted` when it can be resumed, `out_of_time`
    when its minutes were over."""

    interrupted: bool
    summary: dict[str, Any]
    notes: tuple[str, ...]
    out_of_time: bool = False


def open_recipe(recipe: AnyRecipe, out: Path, resume: bool, slices: bool = False) -> AnyRecipe:
    """The recipe of the run in `out`: the saved one when it resumes, else `recipe` fitted to its data.

    With `slices` an existing run of the same recipe is resumed; without one a new run begins.

    Errors: `InputError` when there is nothing to resume, or something that a new run would overwrite.
    """
    saved = out / RECIPE
    if slices and saved.is_file():
        found = load_recipe(saved)
        same = found == fit_to_data(recipe)
        allowed = "a new name: the run in it has another recipe, and --resume continues it with that"
        require(same, "--out", str(out), allowed)
        return found
    if resume:
        if not saved.is_file():
            raise InputError(f"--resume: {out} holds no run ({RECIPE} is missing)")
        return load_recipe(saved)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists already; --resume continues the run in it, another name starts a new one")
    return fit_to_data(recipe)


class PuzzleRun:
    """What a run of puzzles measures, saves and tells besides what every run does; `TextRun` has the same methods."""

    columns: Sequence[str] = MEASURED
    sign = 1.0
    """Larger values of the first column are better."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.trainer, self.recipe = Trainer(recipe, device), recipe
        self.measured: Curves | None = None

    def prepare(self) -> bool:
        """Draw the test puzzles, after a state has been loaded; returns whether there are any."""
        self.test = self.trainer.stream.test_arrays(self.recipe.eval_limit)
        self.task = self.trainer.stream.task if isinstance(self.trainer.stream, PoolStream) else None
        return self.test is not None

    def measure(self) -> dict[str, float]:
        """The columns of the moving average on test puzzles now."""
        assert self.test is not None
        self.measured = curves(self.trainer.average.model, self.test, self.recipe.eval_steps, task=self.task)
        return {name: row[-1] for name, row in zip(MEASURED, astuple(self.measured), strict=True) if row}

    def export(self, folder: Path) -> None:
        """Save the moving average as a model; trained on a CPU it computes in float32."""
        config = self.trainer.average.model.config
        config = replace(config, forward_dtype="float32") if self.trainer.device.type == "cpu" else config
        pretrained.save(config, self.trainer.average.model.tensors(), folder, overwrite=True)

    def summary(self, out: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What only the summary of puzzles holds."""
        measured = self.measured or Curves([], [], [])
        return {
            "unseen_puzzles": 0 if self.test is None else len(self.test["inputs"]),
            "unseen_data": write_unseen(out, self.trainer, self.test),
            "unseen": self.trainer.stream.unseen,
            "exact_accuracy": measured.exact[-1] if measured.exact else None,
            "exact_accuracy_by_step": measured.exact,
            "valid_by_step": measured.valid,
            "halt_confidence_by_step": measured.halt,
            "latent_delta_by_step": measured.change,
            "depth_histogram": depths(rows[-50:]),
        }

    def plot(self, rows: list[dict[str, Any]], path: Path) -> None:
        """Draw the picture of the run. Errors: `BackendUnavailable`."""
        plot_run(rows, self.measured or Curves([], [], []), path)


def run(
    recipe: AnyRecipe, out: Path, *, device: str, resume: bool, callbacks: Sequence[Callback], save_every: float = 60.0,
    minutes: float | None = None,
) -> Outcome:  # fmt: skip
    """Train `recipe`, which `open_recipe` returned, in `out` to its end, or until SIGINT or SIGTERM arrives, or
    `minutes` have passed since the call.

    A state is saved every `save_every` seconds, at each evaluation, and when the run stops. Under torch.distributed
    rank 0 writes, and what stops one rank stops all after the same step. A recipe that is refused leaves no files.
    """
    began = time.monotonic()
    kind = PuzzleRun(recipe, device) if isinstance(recipe, Recipe) else TextRun(recipe, device)
    trainer: Steps = kind.trainer
    if resume and states(out / STATES):
        load_checkpoint(trainer, out / STATES)
    leading, tested = trainer.rank == 0, kind.prepare()
    if leading:
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            save_recipe(recipe, out / RECIPE)
        clean(out / STATES)
    speed = Speed()
    watchers: list[Callback] = [CsvLog(out / METRICS, kind.columns), speed, *callbacks] if leading else []
    started, last_save, done = time.monotonic(), time.monotonic(), trainer.step_count

    def after(trainer: Steps, metrics: Metrics) -> None:
        nonlocal last_save
        final = trainer.step_count == recipe.total_steps
        due = recipe.eval_every > 0 and trainer.step_count % recipe.eval_every == 0
        if tested and (due or final):
            metrics |= kind.measure()
            best = best_evaluation(read_csv(out / METRICS), kind)[1]
            if leading and (best is None or kind.sign * metrics[kind.columns[0]] > kind.sign * best):
                kind.export(out / BEST)
        for watcher in watchers:
            watcher.log(trainer, metrics)
        if due or final or any_rank(time.monotonic() - last_save > save_every, trainer):
            save_checkpoint(trainer, out / STATES)
            last_save = time.monotonic()

    limit = None if minutes is None else began + 60 * minutes
    for watcher in watchers:
        watcher.start(trainer)
    try:
        with stop_requested() as requested:
            interrupted = _fit(trainer, after, lambda: requested() or (limit is not None and time.monotonic() > limit))
        if interrupted:
            save_checkpoint(trainer, out / STATES)
    finally:
        for watcher in watchers:
            watcher.finish(trainer)
    seconds = time.monotonic() - started
    if not leading or interrupted:
        over = limit is not None and time.monotonic() > limit
        return Outcome(interrupted, {"steps": trainer.step_count, "checkpoint": trainer.last_good}, (), over)
    if tested and kind.measured is None:
        kind.measure()
    return _finish(kind, out, seconds, done, speed)


def best_evaluation(rows: list[dict[str, Any]], kind: PuzzleRun | TextRun) -> tuple[int, float | None]:
    """Step and first column of the best evaluation in rows of the metrics, the first of equals; (0, None) without."""
    name = kind.columns[0]
    found = ((int(row["step"]), row[name]) for row in rows if row.get(name) is not None)
    return max(found, key=lambda pair: kind.sign * pair[1], default=(0, None))


def _fit(trainer: Steps, after: Callable[[Steps, Metrics], None], requested: Callable[[], bool]) -> bool:
    """Train to the end, or until a stop is requested; returns whether one was."""
    while trainer.step_count < trainer.recipe.total_steps:
        start = time.perf_counter()
        metrics = trainer.step()
        trainer.step_seconds = time.perf_counter() - start
        after(trainer, metrics)
        if any_rank(requested(), trainer) and trainer.step_count < trainer.recipe.total_steps:
            return True
    return False


def any_rank(condition: bool, trainer: Steps) -> bool:
    """Whether `condition` holds on any rank; every rank must call this."""
    if trainer.world_size == 1:
        return condition
    held = torch.tensor(float(condition), device=trainer.device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return bool(held.item())


def _finish(kind: PuzzleRun | TextRun, out: Path, seconds: float, done: int, speed: Speed) -> Outcome:
    """Export the moving average, write summary and picture."""
    notes: list[str] = []
    trainer: Steps = kind.trainer
    kind.export(out / MODEL)
    rows = read_csv(out / METRICS)
    step, best = best_evaluation(rows, kind)
    measure = kind.columns[0].removeprefix("test_")
    taken = trainer.step_count - done
    tail = [row["loss"] for row in rows[-50:]]
    summary = {
        "model": str(out / MODEL),
        "best": {"model": str(out / BEST), "step": step, measure: best} if step else None,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step_count,
        "seconds": round(seconds, 2),
        "steps_per_second": round(taken / seconds, 3) if taken else None,
        **speed.totals,
        "skipped_steps": trainer.skipped,
        "loss": sum(tail) / len(tail) if tail else None,
        **kind.summary(out, rows),
        "picture": str(out / PICTURE),
    }
    try:
        kind.plot(rows, out / PICTURE)
    except BackendUnavailable as error:
        summary["picture"] = None
        notes.append(str(error))
    replace_text(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return Outcome(False, summary, tuple(notes))


def depths(rows: list[dict[str, Any]]) -> dict[int, int]:
    """ACT steps -> training samples that halted after so many, over rows of the metrics."""
    names = [name for name in (rows[-1] if rows else {}) if name.startswith(DEPTH)]
    counts = {int(name.removeprefix(DEPTH)): int(sum(row[name] or 0 for row in rows)) for name in names}
    return {depth: count for depth, count in counts.items() if count}


def write_unseen(out: Path, trainer: Trainer, test: Arrays | None) -> str | None:
    """What `rtm eval` measures the model on: the data set, or the unseen puzzles as a csv file; None without any."""
    if test is None or isinstance(trainer.stream, DatasetStream):
        return trainer.recipe.data if test is not None else None
    text = trainer.stream.task.decode
    pairs = (
        f"{text(puzzle)},{text(solution)}" for puzzle, solution in zip(test["inputs"], test["labels"], strict=True)
    )
    replace_text(out / UNSEEN, "puzzle,solution\n" + "\n".join(pairs) + "\n")
    return str(out / UNSEEN)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM prints `STOPPING` and sets a flag, which the yielded function reads; a second
    one interrupts at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        os.write(2, STOPPING)

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not the main thread, which alone receives signals
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
