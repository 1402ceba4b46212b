"""Where puzzles come from: arguments, files, standard input, the bundled examples."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import IO

from rtm_kernels.data.examples import example_names, example_puzzles
from rtm_kernels.data.task import Puzzle, Task, get_task
from rtm_kernels.data.text import decoded, named
from rtm_kernels.errors import InputError, require

MAX_PUZZLES = 100_000
"""Puzzles that one command takes without `--limit`."""
LOOKED_AT = 100
"""Mazes that may be wrong before it is no file of mazes."""
FILE_SUFFIXES = (".csv", ".txt", ".tsv", ".sdk", ".sdm", ".ss", ".json", ".gz", ".zip")


def read_all(arguments: list[str], task: Task, limit: int | None) -> list[Puzzle]:
    """The puzzles that `arguments` name, at most `limit`, those that cannot be read with `error` set.

    Each argument is a puzzle, a file or `-` for standard input; none means the bundled examples.

    Errors: `InputError` for a missing or empty file, and for more than `MAX_PUZZLES` without a limit.
    """
    require(limit is None or limit >= 1, "--limit", limit, "at least 1")
    require(arguments.count("-") <= 1, "arguments", "- twice", "standard input is read once")
    if not arguments and task.name not in example_names():
        bundled = ", ".join(example_names())
        raise InputError(f"no puzzles were given, and there are bundled examples only of {bundled}, not of {task.name}")
    read = _read(arguments, task) if arguments else _examples(task)
    found = list(islice(read, min(limit or MAX_PUZZLES + 1, sys.maxsize)))
    if limit is None and len(found) > MAX_PUZZLES:
        raise InputError(f"more than {MAX_PUZZLES} puzzles in one run; --limit N takes the first N")
    return found


def model_for(arguments: list[str], example: str | None = None) -> str:
    """The bundled model for the puzzles: that of `example`, `maze` where the reader of mazes finds one in the first
    argument, or at the beginning of standard input, else `sudoku`. A named pipe can be read only once."""
    if example is not None or not arguments:
        return example or "sudoku"
    mazes, first = get_task("maze").reader(), arguments[0]
    with suppress(InputError, EOFError):
        given = getattr(sys.stdin, "buffer", None) if first == "-" else None
        if isinstance(given, io.BufferedReader):
            found = mazes.parse(decoded(io.BytesIO(given.peek(1))), errors="report")
        else:
            found = mazes.read(first, "report") if os.path.isfile(first) else mazes.parse(first, "report")
        return "maze" if any(not puzzle.error for puzzle in islice(found, LOOKED_AT)) else "sudoku"
    return "sudoku"


def standard_input(otherwise: str) -> IO[str]:
    """The text on standard input. Errors: `InputError` where it is closed, which says what else may be given."""
    if sys.stdin is None:
        raise InputError(f"standard input is closed; give {otherwise} instead of -")
    return decoded(sys.stdin.buffer)


def _examples(task: Task) -> Iterator[Puzzle]:
    """The bundled examples that `task` reads."""
    every = task.reader() is task
    return (puzzle for puzzle in example_puzzles(task.name) if every or len(puzzle.text) == task.seq_len)


def _read(arguments: list[str], task: Task) -> Iterator[Puzzle]:
    for number, argument in enumerate(arguments, start=1):
        if argument == "-":
            yield from _named("stdin", task, standard_input("a file or a puzzle"))
        elif os.path.exists(argument) and not os.path.isdir(argument):  # pipes too
            yield from task.read(argument, errors="report")
        elif _names_a_file(argument):
            raise InputError(f"{argument}: {'is a folder' if os.path.isdir(argument) else 'no such file'}")
        else:
            yield from _named(f"argument {number}", task, argument.splitlines())


def _names_a_file(argument: str) -> bool:
    suffixed = argument.lower().endswith(FILE_SUFFIXES) or "/" in argument
    return bool(argument) and (suffixed or os.path.exists(argument))


def _named(name: str, task: Task, lines: Iterable[str]) -> Iterator[Puzzle]:
    """The puzzles of standard input or of an argument, its name in front of every error."""
    with named(name):
        for puzzle in task.parse(lines, errors="report"):
            yield replace(puzzle, error=f"{name}: {puzzle.error}") if puzzle.error else puzzle
