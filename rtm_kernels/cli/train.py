"""`rtm train`: one command from a recipe to a saved model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtm_kernels.cli.options import Device

if TYPE_CHECKING:
    from rtm_kernels.train.loop import Metrics, Trainer
    from rtm_kernels.train.schema import Recipe
    from rtm_kernels.train.session import Outcome

INTERRUPTED, OUT_OF_TIME = 130, 75
LINES = 20
"""Progress lines that a run prints where standard error is no terminal."""


def train(
    preset: Annotated[
        str | None, typer.Argument(help="Name of a recipe; without it, the list of them.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, e.g. lr=0.002 model.hidden_size=96.", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/PRESET.", metavar="DIR")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its saved recipe.")] = False,
    device: Device = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default as the recipe says, else all.", metavar="N", min=1)
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="tensorboard, trackio or wandb, besides the csv file.", metavar="NAME")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop, saved, after M minutes; again, it goes on.", metavar="M", min=0)
    ] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between saved states.", metavar="S", min=0)] = 60.0,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe as JSON and stop.")] = False,
    json_object: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, nothing else.")] = False,
) -> None:
    """Train a recipe, and save the moving average of its weights as a model for `rtm solve` and `rtm eval`.

    Keys are fields of the recipe (--show prints them): lr, seed, data,
    model.hidden_size, stages.0.steps, stages.*.batch_size, objective.ponder.
    Ctrl-C saves a state and ends; --resume continues it bit for bit. The folder
    gets recipe.json, metrics.csv, checkpoints, model, best, summary.json, curve.png
    and the puzzles that were measured, unseen.csv.
    Under torchrun every process takes its share of each batch. With --minutes
    a run is done in slices: the same command begins it, or continues it.

    Exit code: 0 trained to the end, 2 bad input or a diverged run,
    75 the minutes are over and it goes on next time, 130 interrupted and saved.

    Examples:

      rtm train sudoku-4x4
      rtm train sudoku-4x4 stages.0.steps=800 model.hidden_size=96 --out runs/wide
      rtm train sudoku-4x4 --resume
      rtm train trm-sudoku-repo data=data/sudoku-extreme-1k --device cuda
      rtm train sudoku-full data=data/hard --minutes 9.5
      torchrun --nproc-per-node 2 -m rtm_kernels.cli.main train trm-maze-repo data=data/maze
    """
    if preset is None:
        list_presets(json_object)
        return
    import torch

    from rtm_kernels.errors import InputError, one_of
    from rtm_kernels.train.configure import override, to_dict
    from rtm_kernels.train.recipe import PRESETS
    from rtm_kernels.train.session import RECIPE, open_recipe
    from rtm_kernels.train.telemetry import tracker

    one_of("PRESET", preset, PRESETS)
    recipe = override(PRESETS[preset], overrides or [])
    if show:
        typer.echo(json.dumps(to_dict(recipe), indent=2))
        return
    if resume and overrides:
        raise InputError(f"--resume uses the saved recipe; {overrides[0]!r} cannot change it")
    place, leading = join_ranks(device)
    folder = out or Path("runs") / preset
    callbacks: list[Any] = [tracker(name, folder) for name in track or []]
    slices = minutes is not None and not resume
    resume = resume or (slices and (folder / RECIPE).is_file())
    recipe = share(open_recipe(recipe, folder, resume and not slices, slices) if leading else None)
    torch.set_num_threads(threads or recipe.threads or os.cpu_count() or 1)
    callbacks += [] if json_object else [Console(folder)]
    outcome = run_all(recipe, folder, place, resume, callbacks, save_every, minutes)
    finish(outcome, folder, preset, json_object)


def join_ranks(device: str | None) -> tuple[str, bool]:
    """The device of this process and whether it leads; under torchrun it joins the others first."""
    import torch

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return place, True
    if place == "cuda":
        place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if place.startswith("cuda") else "gloo")
    return place, torch.distributed.get_rank() == 0


def share(recipe: Recipe | None) -> Recipe:
    """The recipe of rank 0, on every rank; the others give None."""
    from torch import distributed

    from rtm_kernels.train.configure import build, to_dict
    from rtm_kernels.train.schema import Recipe

    if recipe is not None and not distributed.is_initialized():
        return recipe
    parts = [None if recipe is None else to_dict(recipe)]
    distributed.broadcast_object_list(parts)
    shared: Recipe = build(Recipe, parts[0])
    return shared


def run_all(
    recipe: Recipe, folder: Path, place: str, resume: bool, callbacks: list[Any], save_every: float,
    minutes: float | None,
) -> Outcome | None:  # fmt: skip
    """The run on this rank; None on the ranks that have nothing to report."""
    from torch import distributed

    from rtm_kernels.train.session import run

    joined = distributed.is_initialized()
    try:
        outcome = run(recipe, folder, device=place, resume=resume, callbacks=callbacks, save_every=save_every,
                      minutes=minutes)  # fmt: skip
        return outcome if not joined or distributed.get_rank() == 0 else None
    finally:
        if joined:
            distributed.destroy_process_group()


def finish(outcome: Outcome | None, folder: Path, preset: str, json_object: bool) -> None:
    """The table, or the JSON object, and the exit code."""
    if outcome is None:
        return
    if json_object:
        typer.echo(json.dumps(outcome.summary | {"interrupted": outcome.interrupted}))
    if outcome.interrupted:
        again = "the same command" if outcome.out_of_time else f"rtm train {preset} --resume --out {folder}"
        place = f"saved {outcome.summary['checkpoint']}; continue with: {again}"
        typer.echo(f"stopped after step {outcome.summary['steps']}, {place}", err=True)
        raise typer.Exit(OUT_OF_TIME if outcome.out_of_time else INTERRUPTED)
    for note in outcome.notes:
        typer.echo(f"note: {note}", err=True)
    if not json_object:
        print_summary(outcome.summary)


def print_summary(summary: dict[str, Any]) -> None:
    """What the run gave, as a table."""
    from rich.console import Console as Terminal

    from rtm_kernels.cli.report import print_table

    terminal = Terminal(highlight=False)
    curve = summary["exact_accuracy_by_step"]
    marks = [n for n in (1, 2, 4, 8, 16) if n <= len(curve)]
    unseen = "no test puzzles"
    if curve:
        unseen = f"{100 * summary['exact_accuracy']:.2f} % of {summary['unseen_puzzles']} {summary['unseen']}"
    speed = f", {summary['steps_per_second']} steps/s" if summary["steps_per_second"] else ""
    speed += f", {summary['samples_per_second']:.0f} samples/s" if "samples_per_second" in summary else ""
    speed += f", {summary['joules']:.0f} J" if "joules" in summary else ""
    best = summary["best"]
    trends = {
        name: ", ".join(f"{n}: {values[n - 1]:.3f}" for n in marks) or "-"
        for name, values in (("halt confidence", summary["halt_confidence_by_step"]),
                             ("latent delta", summary["latent_delta_by_step"])) if values
    }  # fmt: skip
    rows = {
        "exact on unseen puzzles": unseen,
        "best": f"{100 * best['exact_accuracy']:.2f} % after step {best['step']}, {best['model']}" if best else "-",
        "depths in training": ", ".join(f"{d}: {n}" for d, n in summary["depth_histogram"].items()) or "-",
        "by ACT steps": ", ".join(f"{n}: {100 * curve[n - 1]:.2f} %" for n in marks) or "-",
        **trends,
        "training loss": "-" if summary["loss"] is None else f"{summary['loss']:.4f} (mean of the last 50 steps)",
        "steps": f"{summary['steps']}, {summary['skipped_steps']} of them skipped",
        "time": f"{summary['seconds']:.0f} s{speed}",
        "model": f"{summary['model']}, {summary['parameters']:,} parameters",
        "picture": summary["picture"] or "none",
        "again": f"rtm eval {summary['unseen_data']} --model {Path(summary['model']).parent}" if curve else "-",
        "next": f"rtm solve --model {summary['model']} PUZZLES",
    }
    print_table(terminal, rows)


def list_presets(json_object: bool) -> None:
    """Names of the recipes, what each is, and its size."""
    from rtm_kernels.train.recipe import ABOUT, PRESETS

    rows = {name: f"{ABOUT.get(name, 'needs data=FOLDER')}; {recipe.total_steps} steps, {recipe.model.arch}, "
                  f"D={recipe.model.hidden_size}" for name, recipe in PRESETS.items()}  # fmt: skip
    if json_object:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console as Terminal

    from rtm_kernels.cli.report import print_table

    print_table(Terminal(highlight=False), rows)


class Console:
    """Progress on standard error: a bar on a terminal, `LINES` lines elsewhere."""

    def __init__(self, folder: Path) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.folder = folder
        self.terminal = Terminal(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]}"), TextColumn("exact {task.fields[exact]}"),
            TextColumn("unseen {task.fields[unseen]}"), TextColumn("{task.fields[speed]}"), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), console=self.terminal, disable=not self.terminal.is_terminal,
        )  # fmt: skip
        self.fields: dict[str, Any] = {"loss": "-", "exact": "-", "unseen": "-", "speed": "-"}
        self.recent: list[tuple[float, float, float]] = []
        self.started = self.first = 0.0

    def start(self, trainer: Trainer) -> None:
        """Show where the run starts."""
        import time

        self.started, self.first = time.monotonic(), trainer.step_count
        total = trainer.recipe.total_steps
        self.task = self.bar.add_task("train", total=total, completed=trainer.step_count, **self.fields)
        self.bar.start()
        size = sum(p.numel() for p in trainer.model.parameters())
        self.terminal.print(
            f"{trainer.recipe.model.arch}, {size:,} parameters, steps {trainer.step_count} to {total} on "
            f"{trainer.device}, in {self.folder}", markup=False, soft_wrap=True,
        )  # fmt: skip

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        """Update the bar."""
        import time

        self.recent.append((metrics["loss"], metrics.get("exact_accuracy", 0.0), metrics["count"]))
        del self.recent[:-50]
        seen = sum(count for *_, count in self.recent)
        self.fields["loss"] = f"{sum(loss for loss, *_ in self.recent) / len(self.recent):.4f}"
        if seen:
            self.fields["exact"] = f"{100 * sum(a * count for _, a, count in self.recent) / seen:.1f} %"
        if "test_exact_accuracy" in metrics:
            self.fields["unseen"] = f"{100 * metrics['test_exact_accuracy']:.2f} %"
        elapsed = max(1e-9, time.monotonic() - self.started)
        self.fields["speed"] = f"{(trainer.step_count - self.first) / elapsed:.2f} steps/s"
        if "samples_per_second" in metrics:
            self.fields["speed"] += f", {metrics['samples_per_second']:.0f} samples/s"
        if trainer.device.type == "cuda" and "tflops" in metrics:
            self.fields["speed"] += f", {metrics['tflops']:.1f} TFLOP/s"
        self.bar.update(self.task, completed=trainer.step_count, **self.fields)
        total = trainer.recipe.total_steps
        if not self.terminal.is_terminal and trainer.step_count % max(1, total // LINES) == 0:
            left = (total - trainer.step_count) * elapsed / (trainer.step_count - self.first)
            values = ", ".join(f"{name} {value}" for name, value in self.fields.items() if name != "speed")
            line = f"step {trainer.step_count}/{total}: {values}, {self.fields['speed']}, {left:.0f} s left"
            self.terminal.print(line, markup=False, soft_wrap=True)

    def finish(self, trainer: Trainer) -> None:
        """Leave the last state of the bar on the screen."""
        self.bar.stop()
