"""Reading text of any size: numbered lines with a bounded length, csv headers and fields."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from rtm_kernels.errors import InputError, printable

MAX_LINE = 65_536
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "puzzle": ("puzzle", "puzzles", "quiz", "quizzes", "question"),
    "solution": ("solution", "solutions", "answer", "answers"),
    "rating": ("rating", "difficulty"),
    "origin": ("source",),
}


@contextmanager
def named(source: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of a source in front of the `InputError` of what is read from it, also where it cannot be opened."""
    name = printable(os.fspath(source))[:200]
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def numbered_lines(source: str | Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines of a text, an open file or a list, numbered from 1; of a long line only `MAX_LINE` characters are held."""
    if isinstance(source, io.TextIOBase):
        number, inside = 0, False
        while line := source.readline(MAX_LINE + 1):
            if not inside:
                number += 1
                yield number, line
            inside = not line.endswith("\n")
    else:
        yield from enumerate(source.splitlines() if isinstance(source, str) else source, start=1)


def header_columns(line: str) -> dict[str, int] | None:
    """Positions of the known columns, `puzzle` among them, if `line` is a csv header; else None."""
    names = [name.strip().strip('"').lower() for name in line.split(",")]
    found = {kind: i for kind, known in COLUMNS.items() for i, name in enumerate(names) if name in known}
    return found if "puzzle" in found else None


def csv_fields(line: str, columns: Mapping[str, int]) -> dict[str, str]:
    """The fields of one csv line by column name; absent ones are empty."""
    bare = line.rstrip("\r\n")
    fields = bare.split(",")
    if '"' in bare:
        with suppress(csv.Error):  # what is no csv after all is told as an illegal character of a field
            fields = next(csv.reader([bare]))
    return {kind: fields[columns[kind]] if columns.get(kind, len(fields)) < len(fields) else "" for kind in COLUMNS}
