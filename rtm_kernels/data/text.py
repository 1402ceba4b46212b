"""Reading text of any size: numbered lines with a bounded length, csv headers and fields."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from rtm_kernels.errors import InputError, printable

MAX_LINE = 65_536
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "puzzle": ("puzzle", "puzzles", "quiz", "quizzes", "question"),
    "solution": ("solution", "solutions", "answer", "answers"),
    "rating": ("rating", "difficulty"),
    "origin": ("source",),
}

Source = str | os.PathLike[str] | Iterable[str]
"""A file by its path, or lines: an open file, stdin, a list."""


def source_prefix(source: Source) -> str:
    """What comes before an error about a source: its path, when it has one."""
    return f"{printable(os.fspath(source))[:200]}: " if isinstance(source, (str, os.PathLike)) else ""


def numbered_lines(source: Source) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; of a line longer than `MAX_LINE` only so many characters are ever held."""
    if isinstance(source, (str, os.PathLike)):
        try:
            with open(source, encoding="utf-8-sig", errors="replace") as file:
                yield from numbered_lines(file)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{source_prefix(source)}cannot be read: {reason}") from None
    elif isinstance(source, io.TextIOBase):
        number, inside = 0, False
        while line := source.readline(MAX_LINE + 1):
            if not inside:
                number += 1
                yield number, line
            inside = not line.endswith("\n")
    else:
        yield from enumerate(source, start=1)


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
