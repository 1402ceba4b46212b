"""Reading text of any size: files of any encoding or compression, lines of bounded length, tables, JSON, XML."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any, NamedTuple, cast

from rtm_kernels.errors import InputError, printable

MAX_LINE = 65_536
MAX_JSON = 1 << 26
MAX_SIDE = 64
"""Rows of the largest puzzle in a list of JSON."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "puzzle": ("puzzle", "puzzles", "quiz", "quizzes", "question", "questions", "sudoku", "unsolved", "puzzle_string",
               "input", "inputs", "maze", "board", "initial_board", "grid", "problem", "clues", "givens", "value"),
    "solution": ("solution", "solutions", "answer", "answers", "target", "targets", "solved", "solution_string",
                 "output", "label", "labels"),
    "rating": ("rating", "difficulty", "level"),
    "origin": ("source",),
}  # fmt: skip
"""What a table holds -> names of its columns met in public."""

COMMENT = ("#", "%", ";", "//")
SIZES = r"\s*\d+[\sx,]+\d+\s*"
TITLE = re.compile(
    rf"{SIZES}|(```|~~~)\w*|(grid|puzzle|sudoku|maze|question|no\.?|nr\.?)s?[\s:#]*\d*:?|sep=.|"
    rf"{'|'.join(COLUMNS['puzzle'])}|[\w\s]+(\[\d*\])*\s*=\s*[\[\](){{}},;]*|[\[\](){{}},;]+",
    re.IGNORECASE,
)
"""What stands between puzzles and says nothing of them: titles, fences, a header of one column, brackets of code."""
SECTION = re.compile(r"\[([A-Za-z]+)\]")
XML = ("<?xml", "<opensudoku", "<sudoku")
XML_PUZZLE = re.compile(r"""\b(?:data|givens)\s*=\s*["']([^"']*)["']""")

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\x0c\x1a"))
PLAIN = {
    **dict.fromkeys(range(0x2500, 0x2580), "-"),
    **dict.fromkeys(map(ord, "│┃║╎╏┆┇┊┋"), "|"),
    **dict.fromkeys(map(ord, "·•∙⋅◦○□"), "."),
}
"""Box drawing -> the frame in ASCII, and other marks of blanks."""


class Found(NamedTuple):
    """What stands on a line: `text`, None for a title; with `fields`, by what they hold, of a table or of JSON."""

    number: int
    text: str | None = None
    fields: dict[str, list[str]] | None = None
    fault: str = ""


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


def decoded(file: Any) -> IO[str]:
    """The text of a file or pipe in UTF-8, 16 or 32, plain, gzipped or alone in a zip; what is none becomes U+FFFD."""
    file = file if hasattr(file, "peek") else io.BufferedReader(file)
    head = file.peek(64)
    if head.startswith(b"\x1f\x8b"):
        return decoded(gzip.GzipFile(fileobj=file))
    if head.startswith(b"PK\x03\x04"):
        archive = zipfile.ZipFile(file if file.seekable() else io.BytesIO(file.read()))
        members = archive.namelist()
        if len(members) != 1:
            raise InputError(f"a zip file of {len(members)} members; expected one")
        return decoded(io.BufferedReader(cast(Any, archive.open(members[0]))))
    return io.TextIOWrapper(file, encoding=json.detect_encoding(head), errors="replace")


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
        line = unicodedata.normalize("NFKC", line.translate(PLAIN))
    return line.translate(INVISIBLE).rstrip("\r\n")


def records(source: str | Iterable[str], is_cells: Callable[[str], bool]) -> Iterator[Found]:
    """The lines of a source, or the rows of the table, the JSON or the XML that it begins with.

    Comments are left out, and `>` before a quoted line. Nothing of this is looked for in a line that `is_cells`.
    """
    lines = ((number, visible(raw)) for number, raw in numbered_lines(source))
    started = False
    for number, line in lines:
        bare = line.strip()
        if len(line) > MAX_LINE:
            yield Found(number, fault=f"longer than {MAX_LINE} characters")
        elif not bare or is_cells(line):
            started = started or bool(bare)
            yield Found(number, line)
        elif not bare.startswith(COMMENT):
            rest = chain([(number, line)], lines)
            if not started and bare.lower().startswith(XML):
                texts = ((at, text) for at, line in rest for text in XML_PUZZLE.findall(line))
                yield from (Found(at, text, _by_kind([("puzzle", text)])) for at, text in texts)
            elif not started and bare.startswith(("[", "{")) and not SECTION.fullmatch(bare):
                yield from _values(rest)
            elif not started and (table := _header(bare)):
                yield from _rows(number + 1, *table, lines)
            else:
                title = TITLE.fullmatch(bare) is not None
                started = started or not title
                yield Found(number, None if title else line.removeprefix("> "))


def _header(line: str) -> tuple[str, str, dict[str, list[int]]] | None:
    """Delimiter, quote and columns of a table whose header names a column of puzzles and another column."""
    quote = "'" if line.startswith("'") else '"'
    for delimiter in ",;\t|":
        names = next(csv.reader([line], delimiter=delimiter, quotechar=quote))
        columns = _by_kind((name.strip(), at) for at, name in enumerate(names))
        if len(names) > 1 and columns["puzzle"]:
            return delimiter, quote, columns
    return None


def _by_kind(named: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    """Named values by what they hold."""
    values = [(name.lower(), value) for name, value in named]
    return {kind: [value for name, value in values if name in names] for kind, names in COLUMNS.items()}


def _rows(
    first: int, delimiter: str, quote: str, columns: dict[str, list[int]], lines: Iterator[tuple[int, str]]
) -> Iterator[Found]:
    taken: list[str] = []
    texts = (taken.append(text) or f"{text}\n" for _, text in lines)  # type: ignore[func-returns-value]
    reader = csv.reader(texts, delimiter=delimiter, quotechar=quote, strict=True)
    while True:
        number = first + reader.line_num
        taken.clear()
        try:
            if row := next(reader):
                fields = {kind: [row[at] for at in places if at < len(row)] for kind, places in columns.items()}
                yield Found(number, "\n".join(taken), fields)
        except StopIteration:
            return
        except csv.Error as error:
            yield Found(number, fault=f"no row of a table: {error}")


def _values(lines: Iterator[tuple[int, str]]) -> Iterator[Found]:
    """JSON values, one per line, or one over all lines."""
    first, text = next(lines)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        parts, size = [text], len(text)
        while size <= MAX_JSON and (more := next(lines, None)):
            parts.append(more[1])
            size += len(more[1])
        text = "\n".join(parts)
    for number, value in chain([(first, text)], lines):
        try:
            yield from _puzzles(number, json.loads(value) if value.strip() else [])
        except (ValueError, RecursionError) as error:
            inside = not isinstance(error, json.JSONDecodeError) or error.pos < len(value.rstrip())
            yield Found(number, fault=f"not JSON: {error}" if inside else "the JSON value has no end")


def _puzzles(number: int, value: Any) -> Iterator[Found]:
    """The puzzles in a JSON value: objects with the columns of a table, texts, lists of rows, and lists of those."""
    named = value if isinstance(value, dict) else {"puzzle": value}
    fields = _by_kind((key, _rows_in(found)) for key, found in named.items() if found not in (None, ""))
    rows: list[str] = next(filter(None, fields["puzzle"]), [])
    if rows and (len(rows) == 1 or len(rows) == len(rows[0]) <= MAX_SIDE):
        texts = {kind: ["\n".join(found) for found in each if found] for kind, each in fields.items()}
        yield Found(number, texts["puzzle"][0], texts)
    elif isinstance(value, list | dict):
        within = [found for key, found in named.items() if key.lower() not in COLUMNS["solution"]]
        within = value if isinstance(value, list) else within
        within = [found for found in within if isinstance(found, list | dict)] or within
        yield from (puzzle for found in within for puzzle in _puzzles(number, found))


def _rows_in(value: Any) -> list[str]:
    """The texts in a value, single cells in a list as one of them; null and an empty text are blank cells."""
    if isinstance(value, list):
        rows = [row for found in value for row in _rows_in(found)]
        return ["".join(rows)] if rows and all(len(row) == 1 for row in rows) else rows
    return [] if isinstance(value, dict) else ["." if value in (None, "") else str(value)]
