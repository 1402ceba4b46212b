"""Reading text of any size: files of any encoding or compression, numbered lines with a bounded length, tables."""

from __future__ import annotations

import csv
import gzip
import io
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

from rtm_kernels.errors import InputError, printable

MAX_LINE = 65_536
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "puzzle": ("puzzle", "puzzles", "quiz", "quizzes", "question", "questions", "sudoku", "unsolved", "puzzle_string",
               "input", "inputs", "maze"),
    "solution": ("solution", "solutions", "answer", "answers", "target", "targets", "solved", "solution_string",
                 "output", "label", "labels"),
    "rating": ("rating", "difficulty", "level"),
    "origin": ("source",),
}  # fmt: skip
"""What a table holds -> names of its columns met in public."""


INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\x0c\x1a"))
FRAMES = {
    code: "|" if chr(code) in "│┃║╎╏┆┇┊┋" else "-" if chr(code) in "─━═╌╍┄┅┈┉" else "+"
    for code in range(0x2500, 0x2580)
}
"""Box drawing -> the frame in ASCII."""


@contextmanager
def named(source: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of a source in front of the `InputError` of what is read from it, also where it cannot be opened."""
    name = printable(os.fspath(source))[:200]
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def open_text(path: str | os.PathLike[str]) -> IO[str]:
    """The text of a file, a pipe or standard input, plain, gzipped or the only member of a zip file."""
    return decoded(open(path, "rb"))


def decoded(file: Any) -> IO[str]:
    """The text of a binary file in UTF-8 or UTF-16, with or without a mark; what is neither becomes U+FFFD."""
    file = file if hasattr(file, "peek") else io.BufferedReader(file)
    head = file.peek(64)
    if head.startswith(b"\x1f\x8b"):
        return decoded(io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file))))
    if head.startswith(b"PK\x03\x04"):
        archive = zipfile.ZipFile(file if file.seekable() else io.BytesIO(file.read()))
        members = archive.namelist()
        if len(members) != 1:
            raise InputError(f"a zip file of {len(members)} members; expected one")
        return decoded(io.BufferedReader(cast(Any, archive.open(members[0]))))
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    sides = (head[1::2], head[::2])  # ASCII in two bytes has a zero on one side
    low, high = (bool(head) and not any(side) for side in sides)
    encoding = "utf-16" if wide else "utf-16-le" if low else "utf-16-be" if high else "utf-8-sig"
    return io.TextIOWrapper(file, encoding=encoding, errors="replace")


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


def visible(line: str) -> str:
    """The line in the ASCII that a person would type for it: digits of full width, box drawing, no zero width."""
    if not line.isascii():
        line = unicodedata.normalize("NFKC", line.translate(FRAMES))
    return line.translate(INVISIBLE).rstrip("\r\n")


@dataclass(frozen=True)
class Table:
    """The columns of a table with a header, and how its fields are separated."""

    delimiter: str
    quote: str
    columns: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, header: str) -> Table | None:
        """The table of a header line that names a column of puzzles and another column; None for any other line."""
        header = header.strip().lstrip("\ufeff")
        quote = "'" if header.startswith("'") else '"'
        for delimiter in ",;\t|":
            names = [name.strip().lower() for name in _split(header, delimiter, quote)]
            found = {kind: tuple(i for i, n in enumerate(names) if n in known) for kind, known in COLUMNS.items()}
            if len(names) > 1 and found["puzzle"]:
                return cls(delimiter, quote, found)
        return None

    def joined(self, line: str, lines: Iterator[tuple[int, str]]) -> str:
        """A row with the lines that its quoted fields go on in."""
        while self.quote == '"' and line.count('"') % 2 and len(line) < MAX_LINE and (following := next(lines, None)):
            line += "\n" + visible(following[1])
        return line

    def fields(self, line: str) -> dict[str, list[str]]:
        """The fields of one row by what they hold, those that are not there left out."""
        row = _split(line.rstrip("\r\n"), self.delimiter, self.quote)
        return {kind: [row[i] for i in at if i < len(row)] for kind, at in self.columns.items()}


def _split(line: str, delimiter: str, quote: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter, quotechar=quote))
    except csv.Error:  # what is no csv after all is told as an illegal character of a field
        return line.split(delimiter)
    return rows[0] if rows else []
