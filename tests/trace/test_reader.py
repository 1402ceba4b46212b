"""Hostile traces: one clear error that names the line, whatever the file holds."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.errors import InputError
from rtm_kernels.trace import read_trace, reader, schema
from tests.trace.support import edited, lines, written

STEP = 4  # index of the first step: a header and three puzzles stand before it


def changed(number: int, **fields: Any) -> Callable[[list[str]], list[str]]:
    return lambda text: edited(text, number, **fields)


BROKEN: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "empty": (lambda text: [], "line 1: empty"),
    "no header": (lambda text: text[1:], "line 1: kind='puzzle' is not allowed"),
    "two headers": (lambda text: [text[0], *text], "line 2: kind='header' is not allowed"),
    "other schema": (changed(0, schema=2), "line 1: schema=2 is not allowed: this version reads 1"),
    "garbage": (lambda text: [*text[:5], "hello\n"], "line 6: not JSON"),
    "a list": (lambda text: [*text[:5], "[1]\n"], "line 6: expected a JSON object"),
    "nested": (lambda text: [text[0], "[" * 200_000 + "\n"], "line 2: (nested too deeply|not JSON)"),
    "a field twice": (lambda text: [text[0], '{"kind": "end", "kind": "end"}\n'], "line 2: not JSON"),
    "a number without end": (
        lambda text: [*text[:STEP], re.sub(r'"seconds": [^,}]*', '"seconds": 1e309', text[STEP]), *text[STEP + 1 :]],
        "line 5: field seconds=inf",
    ),
    "long line": (lambda text: [text[0], "x" * (1 << 20) + "\n"], "line 2: longer than"),
    "cut in a line": (lambda text: [*text[:8], text[8][:20]], "line 9: cut off"),
    "cut between lines": (lambda text: text[:8], "line 8: the trace is cut off after this line"),
    "unknown kind": (changed(STEP, kind="x\x1b[31m"), "line 5: kind="),
    "field of another type": (changed(STEP, answer=3), "line 5: field answer=3 of a step is not allowed"),
    "true for a number": (changed(STEP, active=True), "line 5: field active=True of a step is not allowed"),
    "unknown field": (changed(STEP, extra=1), "line 5: field extra of a step is unknown"),
    "probability above 1": (changed(STEP, p_halt=1.5), "line 5: field p_halt=1.5"),
    "a number beyond all floats": (changed(STEP, accumulated_p=10**400), "line 5: field accumulated_p=1000"),
    "huge batch": (changed(0, batch_size=1 << 40), "line 1: field batch_size=1099511627776"),
    "unknown policy": (changed(0, policy={"on": ["x"]}), "line 1: field policy="),
    "cell outside": (changed(STEP, changed=[16]), "line 5: changed is not allowed: cells from 0 to 15"),
    "cells out of order": (changed(STEP, changed=[3, 2]), "line 5: changed is not allowed"),
    "step out of order": (changed(STEP, step=2), "line 5: step=2 is not allowed: expected 1"),
    "puzzle twice": (changed(2, puzzle=0), "line 3: puzzle=0 is not allowed: expected 1"),
    "steps after the end": (lambda text: [*text, text[-2]], "puzzle=2 is not allowed: it is not open here"),
    "wrong count": (changed(-1, steps=1), "steps=1 is not allowed: 5 stand here"),
    "more puzzles promised": (changed(0, puzzles=4), "cut off after this line: 3 of 4 puzzles"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_trace_is_one_clear_error(recorded: Path, tmp_path: Path, name: str) -> None:
    change, message = BROKEN[name]
    path = written(tmp_path, change(lines(recorded)))
    with pytest.raises(InputError, match=message) as caught:
        read_trace(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_field_removed_is_named(recorded: Path, tmp_path: Path) -> None:
    text = lines(recorded)
    for number in (0, 1, STEP, len(text) - 1):
        record = json.loads(text[number])
        for name in set(record) - {"kind", "schema", "puzzle"}:
            rest = json.dumps({key: value for key, value in record.items() if key != name}) + "\n"
            with pytest.raises(InputError, match=rf"line {number + 1}: field {name} of a .* is missing"):
                read_trace(written(tmp_path, [*text[:number], rest, *text[number + 1 :]]))


def test_files_that_are_no_traces(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines(recorded)[0].encode() + b"\xff\xfe\n")
    for place, message in ((path, "line 2: not UTF-8"), (tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=message):
            read_trace(place)
    monkeypatch.setattr(reader, "MAX_BYTES", recorded.stat().st_size - 1)
    with pytest.raises(InputError, match="a trace has at most"):
        read_trace(recorded)


def test_a_flood_of_faults_costs_no_memory() -> None:
    step: dict[str, Any] = dict.fromkeys(schema.Step.model_fields) | {"kind": "step"}
    many = {"changed": ["x"] * 200_000, "delta": {str(i): "x" for i in range(80_000)}}
    tracemalloc.start()
    with pytest.raises(InputError, match="field puzzle=None of a step is not allowed"):
        schema.check(step | many)
    with pytest.raises(InputError, match="field 0 of a step is unknown"):
        schema.check({str(i): 1 for i in range(80_000)} | step)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_every_record_has_exactly_the_fields_of_its_kind(recorded: Path) -> None:
    for line in lines(recorded):
        record = json.loads(line)
        fields = schema.KINDS[record["kind"]].model_fields
        assert list(record) == [field.alias or name for name, field in fields.items()]
