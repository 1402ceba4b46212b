"""What a trace file holds: JSON Lines of four kinds of objects, each with exactly these fields.

A `header`, then a `puzzle` for each puzzle, a `step` for each puzzle and ACT step in the order in which the engine
took them, and an `end` for each puzzle, after its last step.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rtm_kernels.engine.solution import STATUSES
from rtm_kernels.ops.halting.policy import MAX_STEPS, SIGNALS

SCHEMA = 1
MAX_BYTES = 1 << 27
MAX_LINE = 1 << 20
MAX_TEXT = 1 << 16
MAX_PUZZLES = 100_000
MAX_BATCH = 256

NON_FINITE = ("nan", "inf", "-inf")
"""How numbers that JSON lacks are written."""

Check = Callable[[Any], bool]


def text(limit: int = MAX_TEXT) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= limit


def whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def number(value: Any) -> bool:
    return value in NON_FINITE or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def probability(value: Any) -> bool:
    return value == "nan" or (type(value) in (int, float) and 0 <= value <= 1)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def many(check: Check, limit: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= limit and all(map(check, value))


def table(check: Check, limit: int = 64) -> Check:
    return lambda value: isinstance(value, dict) and len(value) <= limit and all(map(check, value.values()))


def fields_of(checks: Mapping[str, Check]) -> Check:
    return lambda value: isinstance(value, dict) and faulty_field(value, checks) is None


def faulty_field(record: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    """The first field that is missing, not allowed, or unknown."""
    for name, check in checks.items():
        if name not in record or not check(record[name]):
            return name
    return next((name for name in record if name not in checks), None)


SIDE = whole(1, MAX_TEXT)
LAYOUT = {
    "rows": SIDE,
    "columns": SIDE,
    "row_rules": many(whole(1, MAX_TEXT), MAX_TEXT),
    "column_rules": many(whole(1, MAX_TEXT), MAX_TEXT),
}
POLICY: dict[str, Check] = {
    "on": many(lambda value: value in SIGNALS, len(SIGNALS)),
    "min_steps": whole(1, MAX_STEPS),
    "max_steps": whole(1, MAX_STEPS),
    "q_threshold": probability,
    "settle_steps": whole(1, MAX_STEPS),
    "settle_tolerance": probability,
}
HEADER: dict[str, Check] = {
    "kind": lambda value: value == "header",
    "schema": lambda value: value == SCHEMA,
    "versions": table(text(100)),
    "model": text(1000),
    "config_sha256": digest,
    "weights_sha256": digest,
    "task": text(100),
    "seq_len": SIDE,
    "layout": optional(fields_of(LAYOUT)),
    "policy": fields_of(POLICY),
    "executor": text(100),
    "device": text(100),
    "threads": whole(1, 1024),
    "batch_size": whole(1, MAX_BATCH),
    "batch_invariant": flag,
    "output": text(100),
    "puzzles": whole(1, MAX_PUZZLES),
    "inputs_sha256": digest,
}
PUZZLE: dict[str, Check] = {
    "kind": lambda value: value == "puzzle",
    "puzzle": whole(0, MAX_PUZZLES - 1),
    "input": text(),
    "sha256": digest,
    "solution": optional(text()),
}
STEP: dict[str, Check] = {
    "kind": lambda value: value == "step",
    "puzzle": whole(0, MAX_PUZZLES - 1),
    "step": whole(1, MAX_STEPS),
    "answer": text(),
    "changed": many(whole(0, MAX_TEXT), MAX_TEXT),
    "p_halt": optional(probability),
    "accumulated_p": number,
    "q": optional(many(number, 2)),
    "delta": table(number),
    "active": whole(1, MAX_BATCH),
    "finite": flag,
    "verified": flag,
    "fault": text(),
    "seconds": number,
}
END: dict[str, Check] = {
    "kind": lambda value: value == "end",
    "puzzle": whole(0, MAX_PUZZLES - 1),
    "answer": optional(text()),
    "status": lambda value: value in STATUSES,
    "reason": text(100),
    "steps": whole(0, MAX_STEPS),
    "answer_step": whole(0, MAX_STEPS),
    "halt_probability": optional(probability),
    "residual": optional(number),
    "seconds": number,
}
KINDS = {"header": HEADER, "puzzle": PUZZLE, "step": STEP, "end": END}
UNREPEATED = {"seconds", "versions"}
"""Fields that may be others in a replay."""
