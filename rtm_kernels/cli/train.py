"""`rtm train`: one command from a recipe to a saved model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtm_kernels.cli.group import INTERRUPTED, OUT_OF_TIME
from rtm_kernels.cli.options import Device, Json
from rtm_kernels.errors import printable

if TYPE_CHECKING:
    from rtm_kernels.train.configure import AnyRecipe
    from rtm_kernels.train.session import Outcome
    from rtm_kernels.train.steps import Metrics, Steps

LINES = 20
"""Progress lines of a run where standard error is not a terminal."""


def train(
    preset: Annotated[
        str | None,
        typer.Argument(help="Name of a recipe. Default: list them.", metavar="PRESET", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes of the recipe, e.g. lr=0.002.", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/PRESET.", metavar="DIR")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its saved recipe.")] = False,
    device: Device = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: those of the recipe, else all.", metavar="N", min=1)
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log to trackio or wandb. Repeatable.", metavar="NAME")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Save and stop after M minutes; the same command continues.", metavar="M", min=0),
    ] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", metavar="S", min=0)] = 60.0,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe as JSON and stop.")] = False,
    json_object: Json = False,
) -> None:
    """Train a model by a recipe, and save it for `rtm solve` and `rtm eval`.

    KEY is a field of the recipe (--show prints them all), such as lr, seed, data,
    model.hidden_size, stages.0.steps, stages.*.batch_size. The saved model is
    the moving average of the weights. text-small trains a text model, for
    `rtm generate`.

    The folder of the run gets recipe.json, metrics.csv, checkpoints, model (the
    final one), best, summary.json, curve.png and the test puzzles, unseen.csv.

    Ctrl-C saves a checkpoint and stops; --resume continues to the same bits.
    With --minutes the same command starts the run, or continues it. Under
    torchrun every process takes its share of each batch.

    Exit code: 0 trained to the end, 2 bad input or a diverged run, 75 out of
    --minutes and saved, 130 interrupted and saved.

    Examples:

      rtm train sudoku-4x4
      rtm train sudoku-4x4 stages.0.steps=800 model.hidden_size=96 --out runs/wide
      rtm train sudoku-4x4 --resume
      rtm train trm-sudoku-repo data=data/sudoku-extreme-1k --device cuda
      rtm train sudoku-full data=data/hard --minutes 9.5
      rtm train text-small data=notes/
      torchrun --nproc-per-node 2 -m rtm_kernels.cli.main train sudoku-4x4
    """
    if preset is None:
        list_presets(json_object)
        return
    import torch

    from rtm_kernels.errors import InputError, one_of
    from rtm_kernels.train.configure import RECIPES, override, to_dict
    from rtm_kernels.train.session import RECIPE, open_recipe, run
    from rtm_kernels.train.telemetry import Tracker

    one_of("PRESET", preset, RECIPES)
    recipe = override(RECIPES[preset][0], overrides or [])
    if show:
        typer.echo(json.dumps(to_dict(recipe), indent=2))
        return
    if resume and overrides:
        raise InputError(f"--resume uses the saved recipe; {overrides[0]!r} cannot change it")
    folder = out or Path("runs") / preset
    callbacks: list[Any] = [Tracker(name, folder) for name in track or []]
    slices = minutes is not None and not resume
    resume = resume or (slices and (folder / RECIPE).is_file())
    with ranks(device) as (place, leading):
        recipe = share(open_recipe(recipe, folder, resume and not slices, slices) if leading else None)
        torch.set_num_threads(threads or recipe.threads or os.cpu_count() or 1)
        callbacks += [] if json_object else [Console(folder)]
        outcome = run(recipe, folder, device=place, resume=resume, callbacks=callbacks, save_every=save_every,
                      minutes=minutes)  # fmt: skip
    if leading:
        finish(outcome, folder, preset, json_object)


@contextmanager
def ranks(device: str | None) -> Iterator[tuple[str, bool]]:
    """The device of this process, and whether it leads; under torchrun it joins the other ranks in the meantime."""
    import torch

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield place, True
        return
    if place == "cuda":
        place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if place.startswith("cuda") else "gloo")
    try:
        yield place, torch.distributed.get_rank() == 0
    finally:
        torch.distributed.destroy_process_group()


def share(recipe: AnyRecipe | None) -> AnyRecipe:
    """The recipe of rank 0, on every rank; the others give None."""
    from torch import distributed

    parts: list[Any] = [recipe]
    if distributed.is_initialized():
        distributed.broadcast_object_list(parts)
    shared: AnyRecipe = parts[0]
    return shared


def finish(outcome: Outcome, folder: Path, preset: str, json_object: bool) -> None:
    """Print the table or the JSON object, and exit with a code of its own where the run goes on later."""
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
        from rtm_kernels.cli.report import print_result

        rows = text_rows if "bits_per_byte" in outcome.summary else puzzle_rows
        print_result(outcome.summary, rows(outcome.summary), as_json=False)


def shared_rows(summary: dict[str, Any]) -> dict[str, str]:
    units = {"steps_per_second": "steps/s", "samples_per_second": "samples/s", "bytes_per_second": "bytes/s",
             "joules": "J"}  # fmt: skip
    speed = [f"{summary[name]:.4g} {unit}" for name, unit in units.items() if summary.get(name)]
    return {
        "training loss": "-" if summary["loss"] is None else f"{summary['loss']:.4f} (mean of the last 50 steps)",
        "steps": f"{summary['steps']}, {summary['skipped_steps']} of them skipped",
        "time": ", ".join([f"{summary['seconds']:.0f} s", *speed]),
        "model": f"{summary['model']}, {summary['parameters']:,} parameters",
        "picture": summary["picture"] or "none",
    }


def text_rows(summary: dict[str, Any]) -> dict[str, str]:
    best, curve = summary["best"], summary["by_rounds"]
    return {
        "bits per byte, held out": f"{summary['bits_per_byte']:.3f} on {curve[0]['bytes']:,} bytes",
        "best": f"{best['bits_per_byte']:.3f} after step {best['step']}, {best['model']}" if best else "-",
        "by rounds of a word": ", ".join(f"{found['rounds']:.3g}: {found['bits_per_byte']:.3f}" for found in curve),
        "documents": f"{summary['documents']} to train on, {summary['held_out_documents']} held out, "
                     f"{summary['repeated_documents']} repeated; {summary['files_that_are_no_text']} files are no text",
        "it writes": "\n".join(map(printable, summary["sample"].split("\n"))),
        **shared_rows(summary),
        "next": f"rtm generate 'def ' --model {summary['model']}",
    }  # fmt: skip


def puzzle_rows(summary: dict[str, Any]) -> dict[str, str]:
    curve, best, model = summary["exact_accuracy_by_step"], summary["best"], summary["model"]
    unseen = "no test puzzles"
    if curve:
        unseen = f"{100 * summary['exact_accuracy']:.2f} % of {summary['unseen_puzzles']} {summary['unseen']}"
    by_step = [f"{n}: {100 * curve[n - 1]:.2f} %" for n in (1, 2, 4, 8, 16) if n <= len(curve)]
    return {
        "exact on unseen puzzles": unseen,
        "best": f"{100 * best['exact_accuracy']:.2f} % after step {best['step']}, {best['model']}" if best else "-",
        "by ACT steps": ", ".join(by_step) or "-",
        **shared_rows(summary),
        "again": f"rtm eval {summary['unseen_data']} --model {Path(model).parent}" if curve else "-",
        "next": f"rtm solve --model {model} PUZZLES",
    }


def list_presets(json_object: bool) -> None:
    from rtm_kernels.cli.report import print_result
    from rtm_kernels.train.configure import RECIPES

    rows = {}
    for name, (recipe, about) in RECIPES.items():
        model: Any = getattr(recipe.model, "backbone", recipe.model)
        rows[name] = f"{about}; {recipe.total_steps} steps, {model.arch}, D={model.hidden_size}"
    print_result(rows, rows, json_object)


class Console:
    """Shows the progress of a run on standard error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recent: list[Metrics] = []
        self.unseen = "-"

    def start(self, trainer: Steps) -> None:
        from rtm_kernels.cli.report import Progress

        self.started, self.first = time.monotonic(), trainer.step_count
        total = trainer.recipe.total_steps
        self.progress = Progress("step", total, lines=LINES, transient=False)
        self.progress.start()
        size = sum(p.numel() for p in trainer.model.parameters())
        arch = "text" if trainer.unit == "bytes" else trainer.recipe.model.arch
        self.progress.console.print(
            f"{arch}, {size:,} parameters, steps {trainer.step_count} to {total} on "
            f"{trainer.device}, in {self.folder}", markup=False, soft_wrap=True,
        )  # fmt: skip

    def log(self, trainer: Steps, metrics: Metrics) -> None:
        """Show the means of the last 50 steps, the last test accuracy and the speed."""
        self.recent = [*self.recent[-49:], metrics]
        if "test_exact_accuracy" in metrics:
            self.unseen = f"{100 * metrics['test_exact_accuracy']:.2f} %"
        elif "test_bits_per_byte" in metrics:
            self.unseen = f"{metrics['test_bits_per_byte']:.3f}"
        elapsed, steps = max(1e-9, time.monotonic() - self.started), trainer.step_count - self.first
        left = (trainer.recipe.total_steps - trainer.step_count) * elapsed / steps
        parts = [
            f"loss {fmean(m['loss'] for m in self.recent):.4f}", self.score(),
            f"unseen {self.unseen}", f"{steps / elapsed:.2f} steps/s",
            "" if self.progress.console.is_terminal else f"{left:.0f} s left",
        ]  # fmt: skip
        self.progress.show(trainer.step_count, ", ".join(filter(None, parts)))

    def score(self) -> str:
        """What the last 50 steps got right, or how many bits a byte took."""
        if "bits_per_byte" in self.recent[-1]:
            return f"{fmean(m['bits_per_byte'] for m in self.recent):.3f} bits per byte"
        seen = sum(m["count"] for m in self.recent)
        exact = sum(m.get("exact_accuracy", 0.0) * m["count"] for m in self.recent)
        return f"exact {100 * exact / seen:.1f} %" if seen else ""

    def finish(self, trainer: Steps) -> None:
        self.progress.stop()
