"""Reading traces: every line of the file is checked, and errors name the first line that does not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from rtm_kernels.errors import InputError, printable, require
from rtm_kernels.trace.schema import KINDS, MAX_BYTES, MAX_LINE, SCHEMA, fault

SHOWN = 60

Record = dict[str, Any]


@dataclass
class Traced:
    """The records of one puzzle."""

    puzzle: Record
    steps: list[Record] = field(default_factory=list)
    end: Record | None = None


@dataclass
class Trace:
    """A whole trace: the header, every later record in the order of the file, and the same by puzzle."""

    header: Record
    records: list[Record]
    puzzles: list[Traced]


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace in a file, complete and consistent.

    Errors: `InputError` naming the line for a file that is too large, cut off, not JSON Lines, of another schema,
    or holds fields that are missing, unknown or out of range, steps out of order, or more than the header says.
    """
    source = Path(path)
    name = printable(os.fspath(path))[:200]
    try:
        size = source.stat().st_size
        require(size <= MAX_BYTES, name, f"{size} bytes", f"a trace has at most {MAX_BYTES}")
        with source.open("rb") as file:
            records = list(_records(name, file))
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None
    if not records:
        raise InputError(f"{name}: line 1: empty, expected the header of a trace")
    return _assemble(name, records)


def _fail(name: str, line: int, why: str) -> NoReturn:
    raise InputError(f"{name}: line {line}: {printable(why)}")


def _records(name: str, file: Any) -> Iterator[Record]:
    line, total = 0, 0
    while raw := file.readline(MAX_LINE + 1):
        line, total = line + 1, total + len(raw)
        if len(raw) > MAX_LINE or total > MAX_BYTES:
            _fail(name, line, f"longer than the {MAX_LINE} bytes of a line, or the {MAX_BYTES} of a trace")
        if not raw.endswith(b"\n"):
            _fail(name, line, "cut off, no line end")
        record = _parse(name, line, raw)
        _check(name, line, record)
        yield record


def _parse(name: str, line: int, raw: bytes) -> Record:
    try:
        record = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        _fail(name, line, "not UTF-8")
    except RecursionError:
        _fail(name, line, "nested too deeply")
    except ValueError as error:
        _fail(name, line, f"not JSON ({str(error)[:SHOWN]})")
    if not isinstance(record, dict):
        _fail(name, line, "expected a JSON object")
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a field stands twice")
    return record


def _check(name: str, line: int, record: Record) -> None:
    kind = record.get("kind")
    if (kind == "header") is not (line == 1) or not isinstance(kind, str) or kind not in KINDS:
        expected = "header" if line == 1 else "puzzle, step or end"
        _fail(name, line, f"kind={kind!r:.{SHOWN}} is not allowed: expected {expected}")
    if line == 1 and record.get("schema") != SCHEMA:
        _fail(name, line, f"schema={record.get('schema')!r:.{SHOWN}} is not allowed: this version reads {SCHEMA}")
    found = fault(kind, record)
    if found is not None:
        name_of_field, what = found
        shown = f"={record[name_of_field]!r:.{SHOWN}}" if what == "not allowed" else ""
        _fail(name, line, f"field {name_of_field[:SHOWN]}{shown} of a {kind} is {what}")


def _assemble(name: str, records: list[Record]) -> Trace:
    header, puzzles = records[0], list[Traced]()
    for line, record in enumerate(records[1:], start=2):
        kind, index = record["kind"], record["puzzle"]
        if kind == "puzzle":
            if index != len(puzzles):
                _fail(name, line, f"puzzle={index} is not allowed: expected {len(puzzles)}")
            puzzles.append(Traced(record))
            continue
        if index >= len(puzzles) or puzzles[index].end is not None:
            _fail(name, line, f"puzzle={index} is not allowed: it is not open here")
        why = _misfit(header, puzzles[index], record)
        if why:
            _fail(name, line, why)
        if kind == "step":
            puzzles[index].steps.append(record)
        else:
            puzzles[index].end = record
    unfinished = [i for i, traced in enumerate(puzzles) if traced.end is None]
    if len(puzzles) != header["puzzles"] or unfinished:
        what = f"puzzle {unfinished[0]} has no end" if unfinished else f"{len(puzzles)} of {header['puzzles']} puzzles"
        _fail(name, len(records), f"the trace is cut off after this line: {what}")
    return Trace(header, records[1:], puzzles)


def _misfit(header: Mapping[str, Any], traced: Traced, record: Record) -> str | None:
    """What of a step or end contradicts what came before it."""
    taken = len(traced.steps)
    if record["kind"] == "end":
        return None if record["steps"] == taken else f"steps={record['steps']} is not allowed: {taken} stand here"
    if record["step"] != taken + 1:
        return f"step={record['step']} is not allowed: expected {taken + 1}"
    changed, cells = record["changed"], header["seq_len"]
    if any(b <= a for a, b in pairwise(changed)) or any(cell >= cells for cell in changed[-1:]):
        return f"changed is not allowed: cells from 0 to {cells - 1} in order"
    return None
