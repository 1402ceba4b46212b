"""`rtm data`: data sets in the official layout."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rtm_kernels.cli.group import group_of
from rtm_kernels.cli.options import Json, Overwrite

data = group_of("Build data sets in the official layout: sudoku, maze, arc.")

Out = Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")]
Test = Annotated[str, typer.Option(help="Number of test puzzles to hold out, or a file of them.", metavar="N|FILE")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", metavar="SEED")]
Source = Annotated[
    list[Path] | None,
    typer.Option(help="csv or list of puzzles, repeatable. Default: puzzles are generated.", metavar="FILE"),
]
Count = Annotated[int, typer.Option(help="Puzzles to generate.", metavar="N", min=1)]


@data.command()
def sudoku(
    out: Out,
    source: Source = None,
    test: Test = "1000",
    count: Count = 10_000,
    difficulty: Annotated[str, typer.Option(help="singles, locked, subsets, fish or search.")] = "singles",
    clues: Annotated[tuple[int, int] | None, typer.Option(help="Fewest and most givens.", metavar="LOW HIGH")] = None,
    size: Annotated[int, typer.Option(help="Side: 4, 9, 16 or 25.", metavar="SIZE")] = 9,
    subsample: Annotated[int | None, typer.Option(help="Training puzzles to keep.", metavar="N")] = None,
    augmentations: Annotated[
        int, typer.Option(help="Random symmetric copies of each on disk.", metavar="N", min=0)
    ] = 0,
    min_rating: Annotated[float | None, typer.Option(help="Lowest rating of a csv row.", metavar="R")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Build a Sudoku data set from lists, the Sudoku-Extreme csv, or a generator.

    No test puzzle is symmetric to a training puzzle (sizes 4 and 9). Training
    with augment=true makes symmetric copies itself and needs none on disk.

    Examples:

      rtm data sudoku data/1k --source train.csv --test test.csv --subsample 1000
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
    source: Source = None,
    test: Test = "1000",
    count: Count = 2_000,
    side: Annotated[int, typer.Option(help="Cells on a side.", metavar="N")] = 30,
    path_cells: Annotated[
        int | None, typer.Option(help="Fewest cells on the shortest path; default 110 at side 30.", metavar="N")
    ] = None,
    augmented: Annotated[bool, typer.Option("--augmented", help="Write all eight symmetries of each.")] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Build a maze data set from the official csv, or generate it as published.

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
        Path,
        typer.Option(
            help="Folder or JSON of training puzzles. X_solutions.json beside X_challenges.json is read too.",
            metavar="PATH",
        ),
    ],
    test: Annotated[Path, typer.Option(help="Folder or JSON of puzzles to test on.", metavar="PATH")],
    augmentations: Annotated[int, typer.Option(help="Augmented copies of each puzzle.", metavar="N", min=0)] = 1000,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Build an ARC data set from the published JSON files, augmented as published.

    Examples:

      rtm data arc data/arc1 --train arc/training --test arc/evaluation
      rtm data arc data/arc2 --train a_challenges.json --test b_challenges.json
    """
    from rtm_kernels.data.arc import read_arc
    from rtm_kernels.data.build import build_arc

    def build() -> dict[str, int]:
        return build_arc(
            out, read_arc(train), read_arc(test), augmentations=augmentations, seed=seed, overwrite=overwrite
        )

    report(out, overwrite, build, json_object, "trm-arc-repo")


def held_out(text: str) -> int | str:
    """A number of puzzles, or a file."""
    return int(text) if text.isdigit() else text


def report(out: Path, overwrite: bool, build: Callable[[], dict[str, int]], json_object: bool, recipe: str) -> None:
    """Run `build`, with a spinner on a terminal, and print its counts; `recipe` is the one to train next.

    `out` is checked before anything is built.
    """
    from rich.console import Console

    from rtm_kernels.cli.report import print_result
    from rtm_kernels.data.dataset import check_out

    check_out(out, overwrite)
    start = time.perf_counter()
    with Console(stderr=True).status(f"building {out}"):  # shown on a terminal only
        counts = build()
    seconds = time.perf_counter() - start
    rows = {name.replace("_", " "): f"{value:,}" for name, value in counts.items()}
    rows |= {"time": f"{seconds:.1f} s", "next": f"rtm train {recipe} data={out}"}
    print_result({"data": str(out), **counts, "seconds": round(seconds, 3)}, {"data": str(out), **rows}, json_object)
