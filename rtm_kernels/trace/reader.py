"""Reading traces: every line of the file is checked, and errors name the first line that does not fit."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rtm_kernels.errors import InputError, printable, require
from rtm_kernels.trace.schema import KINDS, MAX_BYTES, MAX_LINE, SCHEMA, SHOWN, check

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

    header: Record = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    puzzles: list[Traced] = field(default_factory=list)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace in a file, complete and consistent.

    Errors: `InputError` naming the line for a file that is too large, cut off, not JSON Lines, of another schema,
    or holds fields that are missing, unknown or out of range, steps out of order, or more than the header says.
    """
    name, trace, line, total = printable(os.fspath(path))[:200], Trace(), 0, 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while raw := file.readline(MAX_LINE + 1):
                line, total = line + 1, total + len(raw)
                most = max(size, total)
                require(most <= MAX_BYTES, "size", f"{most} bytes", f"a trace has at most {MAX_BYTES}")
                _add(trace, _parse(raw, line == 1))
        _check_whole(trace)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{name}: line {max(line, 1)}: {error}") from None
    return trace


def _parse(raw: bytes, first: bool) -> Record:
    if len(raw) > MAX_LINE:
        raise InputError(f"longer than {MAX_LINE} bytes")
    if not raw.endswith(b"\n"):
        raise InputError("cut off, no line end")
    try:
        record = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise InputError("not UTF-8") from None
    except RecursionError:
        raise InputError("nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not JSON ({str(error)[:SHOWN]})") from None
    if not isinstance(record, dict):
        raise InputError("expected a JSON object")
    kind, schema = record.get("kind"), record.get("schema")
    fits = isinstance(kind, str) and kind in KINDS and (kind == "header") is first
    require(fits, "kind", kind, f"expected {'header' if first else 'puzzle, step or end'}")
    require(not first or schema == SCHEMA, "schema", schema, f"this version reads {SCHEMA}")
    check(record)
    return record


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a field stands twice")
    return record


def _add(trace: Trace, record: Record) -> None:
    """Put a record where it belongs, if it goes with what came before it."""
    if record["kind"] == "header":
        trace.header = record
        return
    trace.records.append(record)
    index, known = record["puzzle"], len(trace.puzzles)
    if record["kind"] == "puzzle":
        require(index == known, "puzzle", index, f"expected {known}")
        trace.puzzles.append(Traced(record))
        return
    require(index < known and trace.puzzles[index].end is None, "puzzle", index, "it is not open here")
    traced = trace.puzzles[index]
    taken = len(traced.steps)
    if record["kind"] == "end":
        require(record["steps"] == taken, "steps", record["steps"], f"{taken} stand here")
        traced.end = record
        return
    require(record["step"] == taken + 1, "step", record["step"], f"expected {taken + 1}")
    changed, cells = record["changed"], trace.header["seq_len"]
    if any(b <= a for a, b in pairwise(changed)) or any(cell >= cells for cell in changed[-1:]):
        raise InputError(f"changed is not allowed: cells from 0 to {cells - 1} in order")
    traced.steps.append(record)


def _check_whole(trace: Trace) -> None:
    if not trace.header:
        raise InputError("empty, expected the header of a trace")
    cut = "the trace is cut off after this line"
    unfinished = [i for i, traced in enumerate(trace.puzzles) if traced.end is None]
    if unfinished:
        raise InputError(f"{cut}: puzzle {unfinished[0]} has no end")
    if len(trace.puzzles) != trace.header["puzzles"]:
        raise InputError(f"{cut}: {len(trace.puzzles)} of {trace.header['puzzles']} puzzles")
