"""What a trace file holds: JSON Lines of four kinds of objects, each with exactly these fields.

A `header`, then a `puzzle` for each puzzle, a `step` for each puzzle and ACT step in the order in which the engine
took them, and an `end` for each puzzle, after its last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, StringConstraints, ValidationError

from rtm_kernels.engine.samples import STATUSES
from rtm_kernels.errors import InputError
from rtm_kernels.ops.halting.policy import MAX_STEPS, SIGNALS

SCHEMA = 1
MAX_BYTES = 1 << 27
MAX_LINE = 1 << 20
MAX_TEXT = 1 << 16
MAX_PUZZLES = 100_000
MAX_BATCH = 256
MAX_FIELDS = 64
SHOWN = 60
"""Characters of a value that a message repeats."""

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Name = Annotated[str, StringConstraints(max_length=100)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=MAX_TEXT)]
Puzzles = Annotated[int, Field(ge=0, lt=MAX_PUZZLES)]
Steps = Annotated[int, Field(ge=0, le=MAX_STEPS)]
StepNumber = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Batch = Annotated[int, Field(ge=1, le=MAX_BATCH)]
Number = float | Literal["nan", "inf", "-inf"]
"""Numbers that JSON lacks are written as text."""
Probability = Annotated[float, Field(ge=0, le=1)] | Literal["nan"]
Cells = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TEXT)]], Field(max_length=MAX_TEXT), FailFast()]
Signal = Annotated[str, StringConstraints(pattern=f"^({'|'.join(SIGNALS)})$")]
Status = Annotated[str, StringConstraints(pattern=f"^({'|'.join(STATUSES)})$")]


def _few(value: Any) -> Any:
    """Refuses an object of many fields before they are looked at, for each would become an error message."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError("too many fields")
    return value


Few = BeforeValidator(_few)


class Fields(BaseModel):
    """Checked as they stand: no conversions, and no fields but these."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Layout(Fields):
    rows: Size
    columns: Size
    row_rules: Cells
    column_rules: Cells


class Policy(Fields):
    on: Annotated[list[Signal], Field(max_length=len(SIGNALS)), FailFast()]
    min_steps: StepNumber
    max_steps: StepNumber
    q_threshold: Probability
    settle_steps: StepNumber
    settle_tolerance: Probability


class Header(Fields):
    kind: Literal["header"]
    schema_: Annotated[Literal[1], Field(alias="schema")]
    versions: Annotated[dict[str, Name], Few]
    model: Annotated[str, StringConstraints(max_length=1000)]
    config_sha256: Digest
    weights_sha256: Digest
    task: Name
    seq_len: Size
    layout: Layout | None
    policy: Policy
    executor: Name
    device: Name
    threads: Annotated[int, Field(ge=1, le=1024)]
    batch_size: Batch
    batch_invariant: bool
    output: Name
    puzzles: Annotated[int, Field(ge=1, le=MAX_PUZZLES)]
    inputs_sha256: Digest


class Puzzle(Fields):
    kind: Literal["puzzle"]
    puzzle: Puzzles
    input: Text
    sha256: Digest
    solution: Text | None


class Step(Fields):
    kind: Literal["step"]
    puzzle: Puzzles
    step: StepNumber
    answer: Text
    changed: Cells
    p_halt: Probability | None
    accumulated_p: Number
    q: Annotated[list[Number], Field(max_length=2)] | None
    delta: Annotated[dict[str, Number], Few]
    active: Batch
    finite: bool
    verified: bool
    fault: Text
    seconds: Number


class End(Fields):
    kind: Literal["end"]
    puzzle: Puzzles
    answer: Text | None
    status: Status
    reason: Name
    steps: Steps
    answer_step: Steps
    halt_probability: Probability | None
    residual: Number | None
    seconds: Number


KINDS: dict[str, type[Fields]] = {"header": Header, "puzzle": Puzzle, "step": Step, "end": End}
UNREPEATED = {"seconds", "versions"}
"""Fields that may be others in a replay."""


def check(record: Mapping[str, Any]) -> None:
    """Raise `InputError` for the first field of a record that is unknown, missing or out of range."""
    kind, model = record["kind"], KINDS[record["kind"]]
    known = {field.alias or name for name, field in model.model_fields.items()}
    unknown = next((name for name in record if name not in known), None)
    if unknown is not None:
        raise InputError(f"field {unknown[:SHOWN]} of a {kind} is unknown")
    try:
        model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0])
        if name not in record:
            raise InputError(f"field {name} of a {kind} is missing") from None
        raise InputError(f"field {name}={record[name]!r:.{SHOWN}} of a {kind} is not allowed") from None
