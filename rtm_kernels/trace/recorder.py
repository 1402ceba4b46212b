"""Recording: a solver runs puzzles, and every ACT step becomes one line of JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

import rtm_kernels
from rtm_kernels.data.task import Puzzle, Task, Verdict
from rtm_kernels.engine.samples import Sample, Solution, Step
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import InputError, require
from rtm_kernels.files import new_file
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import library
from rtm_kernels.trace.schema import MAX_BATCH, MAX_BYTES, MAX_PUZZLES, SCHEMA, End

Record = dict[str, Any]
Emit = Callable[[Record], None]
PRIVATE, PRIVATE_SIZE = 0xE000, 6400
"""Unicode's private use area, whose characters no task uses: the first, and how many."""


def record(
    solver: Solver, puzzles: Sequence[Puzzle | str], path: str | os.PathLike[str], *, model_name: str
) -> list[Solution]:
    """Solve `puzzles` and write the trace to `path`, which appears complete or not at all.

    Returns their solutions in order; a puzzle that cannot be read is not in the trace, and its solution says why.

    Errors: `InputError` for rollouts, for a batch of more than 256, when no puzzle can be read, and for a trace
    larger than 128 MiB.
    """
    encoded = [solver.encode(index, puzzle) for index, puzzle in enumerate(puzzles)]
    samples = [sample for sample in encoded if isinstance(sample, Sample)]
    if not samples:
        first = [solution.error for solution in encoded[:1] if isinstance(solution, Solution)]
        why = f"the first: {first[0]}" if first else "the list is empty"
        raise InputError(f"none of {len(encoded)} puzzles can be read; {why}")
    known = [p.solution if isinstance(p, Puzzle) else None for p in puzzles]
    with new_file(Path(path)) as file:
        written = 0

        def emit(values: Record) -> None:
            nonlocal written
            written += file.write(json.dumps(values, allow_nan=False) + "\n")
            require(written <= MAX_BYTES, "trace", "larger", f"at most {MAX_BYTES} bytes; take fewer puzzles or steps")

        numbered = [Sample(i, sample.tokens) for i, sample in enumerate(samples)]
        solved = iter(run(solver, numbered, [known[s.key] for s in samples], model_name, emit))
    return [next(solved) if isinstance(found, Sample) else found for found in encoded]


def run(
    solver: Solver, samples: Sequence[Sample], known: Sequence[str | None], model_name: str, emit: Emit
) -> list[Solution]:
    """Solve `samples`, keyed by their position, and emit the records; `known` are the solutions that came with them."""
    require(solver.rollouts.count == 1, "rollouts", solver.rollouts.count, "1 in a trace")
    require(solver.batch_size <= MAX_BATCH, "batch_size", solver.batch_size, f"at most {MAX_BATCH} in a trace")
    require(len(samples) <= MAX_PUZZLES, "puzzles", len(samples), f"at most {MAX_PUZZLES} in a trace")
    task, texts = solver.task, [solver.task.decode(sample.tokens) for sample in samples]
    emit(header(solver, samples, model_name))
    for sample, text, given in zip(samples, texts, known, strict=True):
        emit({"kind": "puzzle", "puzzle": sample.key, "input": text, "sha256": sha256(sample.tokens),
              "solution": given})  # fmt: skip
    before = [sample.tokens.astype(np.int32) for sample in samples]
    verdicts: dict[int, tuple[str, Verdict]] = {}

    def write(step: Step) -> None:
        key = step.key
        changed = np.flatnonzero(step.answer != before[key]).tolist()
        if changed or key not in verdicts:
            answer = task.decode(step.answer)
            verdicts[key] = answer, task.verify(texts[key], answer)
            before[key] = step.answer.copy()
        answer, verdict = verdicts[key]
        emit(
            {
                "kind": "step",
                "puzzle": key,
                "step": step.number,
                "answer": answer,
                "changed": changed,
                "p_halt": plain(step.halt_probability),
                "accumulated_p": plain(step.accumulated),
                "q": None if step.q is None else [plain(value) for value in step.q],
                "delta": {name: plain(value) for name, value in step.change.items()},
                "active": step.active,
                "finite": step.finite,
                "verified": verdict.verified and step.finite,
                "fault": verdict.reason,
                "seconds": step.seconds,
            }
        )

    solutions: dict[int, Solution] = {}
    for done in solver.run(samples, write):
        solution = solutions[done.key] = solver.solution(texts[done.key], done)
        values = {name: plain(getattr(solution, name)) for name in End.model_fields if name not in ("kind", "puzzle")}
        emit({"kind": "end", "puzzle": done.key, **values})
    return [solutions[sample.key] for sample in samples]


def header(solver: Solver, samples: Sequence[Sample], model_name: str) -> Record:
    """The model, solver and inputs, which a replay needs to be the same."""
    config = solver.model.config
    return {
        "kind": "header",
        "schema": SCHEMA,
        "versions": versions(),
        "model": model_name,
        **model_sha256(solver.model),
        "task": solver.task.name,
        "seq_len": solver.task.seq_len,
        "layout": find_layout(solver.task),
        "policy": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(solver.policy).items()},
        "executor": solver.executor.name,
        "device": str(solver.model.device),
        "threads": torch.get_num_threads(),
        "batch_size": solver.batch_size,
        "batch_invariant": solver.batch_invariant,
        "output": config.program.output,
        "puzzles": len(samples),
        "inputs_sha256": hashlib.sha256("".join(sha256(s.tokens) for s in samples).encode()).hexdigest(),
    }


def find_layout(task: Task) -> dict[str, Any] | None:
    """The grid that `task.render` draws (`schema.Layout`), or None when it is not a rectangle of several rows.

    `row_rules` and `column_rules` are the rows and columns with a ruler before them, as between the boxes of a Sudoku.
    An answer with a different character in every cell is rendered, and where they stand is the grid.
    """
    cells = "".join(map(chr, range(PRIVATE, PRIVATE + min(task.seq_len, PRIVATE_SIZE))))
    try:
        lines = task.render(" " * len(cells), cells).splitlines()
    except (InputError, ValueError, IndexError):
        return None
    places = [[column for column, character in enumerate(line) if character in cells] for line in lines]
    rows = [columns for columns in places if columns]
    found = "".join(line[column] for line, columns in zip(lines, places, strict=True) for column in columns)
    if len(rows) < 2 or found != cells or any(columns != rows[0] for columns in rows):
        return None
    filled = [bool(columns) for columns in places]
    numbers = [i for i, has_cells in enumerate(filled) if has_cells]
    row_rules = [row for row, line in enumerate(numbers) if row and not filled[line - 1]]
    first = lines[numbers[0]]
    gaps = [first[a + 1 : b].strip() for a, b in zip(rows[0], rows[0][1:], strict=False)]
    column_rules = [column for column, gap in enumerate(gaps, start=1) if gap]
    return {"rows": len(rows), "columns": len(rows[0]), "row_rules": row_rules, "column_rules": column_rules}


def versions() -> dict[str, str]:
    """What may change rounding: packages, interpreter, processor, the build of the C++ library."""
    built = library.PATH.read_bytes() if library.PATH.exists() else None
    return {
        "rtm_kernels": rtm_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_extension": "none" if built is None else hashlib.sha256(built).hexdigest()[:16],
    }


def model_sha256(model: RecursiveReasoner) -> dict[str, str]:
    """sha256 of the config and of the weights, as `save_pretrained` writes them."""
    state = model.state_dict()
    weights = save({name: state[name].detach().cpu().contiguous() for name in RecursiveReasoner.specs(model.config)})
    return {
        "config_sha256": hashlib.sha256(model.config.to_json().encode()).hexdigest(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def sha256(tokens: np.ndarray) -> str:
    """sha256 of the tokens as little-endian int32."""
    return hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()


def plain(value: Any) -> Any:
    """`value`, with numbers that JSON lacks as `nan`, `inf` and `-inf`."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
