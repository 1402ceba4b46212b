"""Replaying: the same puzzles through the same model once more, compared bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from rtm_kernels.engine.samples import Sample
from rtm_kernels.engine.solver import Solver, find_task
from rtm_kernels.errors import InputError, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.pretrained import known_models
from rtm_kernels.trace.reader import Record, Trace
from rtm_kernels.trace.recorder import model_sha256, run, sha256, versions
from rtm_kernels.trace.schema import UNREPEATED

ABSENT = "nothing"
MAX_LATENT = 1 << 28
"""Numbers in one latent of the batch that a replay will allocate."""


class _Differs(Exception):
    """Raised where the first difference is found, so that no further step is computed."""


def replay(trace: Trace, model: RecursiveReasoner | str | None = None) -> str | None:
    """Run what `trace` recorded again; None when every record is identical, else the first difference.

    Answers, changed cells, logits, probabilities and latent changes are compared exactly, times not at all.
    `model`: the model or its name; default the name in the trace, where that is bundled or a folder.

    Errors: `InputError` when the model, its weights or an input are not the recorded ones, `BackendUnavailable`
    for an executor or device that is not here.
    """
    loaded = model if isinstance(model, RecursiveReasoner) else RecursiveReasoner.from_pretrained(_name(trace, model))
    solver = build_solver(trace, loaded)
    samples = [Sample(i, _tokens(solver, traced.puzzle)) for i, traced in enumerate(trace.puzzles)]
    known = [traced.puzzle["solution"] for traced in trace.puzzles]
    expected = iter(enumerate([trace.header, *trace.records], start=1))

    def compare(actual: Record) -> None:
        line, record = next(expected, (len(trace.records) + 2, {}))
        found = difference(record, actual)
        if found:
            raise _Differs(f"line {line}: {found}")

    try:
        with _threads(trace.header["threads"]):
            run(solver, samples, known, trace.header["model"], compare)
    except _Differs as found:
        return f"{found}{_elsewhere(trace.header['versions'])}"
    line, _ = next(expected, (None, None))
    return None if line is None else f"line {line}: the replay ended before it"


def build_solver(trace: Trace, model: RecursiveReasoner) -> Solver:
    """The solver that the header describes."""
    header = trace.header
    hashes = model_sha256(model)
    for name, here in hashes.items():
        if header[name] != here:
            raise InputError(f"{name} of the model is {here}, and the trace was recorded with {header[name]}")
    task = find_task(model, header["task"])
    size = header["batch_size"] * model.config.latent_len * model.config.hidden_size
    require(size <= MAX_LATENT, "batch_size", header["batch_size"], f"a latent of {size} numbers; at most {MAX_LATENT}")
    policy = header["policy"]
    return Solver(
        model,
        task=task,
        policy=HaltingPolicy(**policy | {"on": tuple(policy["on"])}),
        batch_size=header["batch_size"],
        device=header["device"],
        executor=header["executor"],
        batch_invariant=header["batch_invariant"],
    )


def difference(recorded: Record, actual: Record) -> str | None:
    """The first field in which two records differ, both values shown; times and versions are passed over.

    Values are compared as they print, which for floats is bit for bit, and 1 is neither 1.0 nor true.
    """
    for name in dict.fromkeys([*recorded, *actual]):
        before, now = recorded.get(name, ABSENT), actual.get(name, ABSENT)
        if name in UNREPEATED or repr(before) == repr(now):
            continue
        where = f"puzzle {actual['puzzle']}, " if "puzzle" in actual else ""
        where += f"step {actual['step']}, " if "step" in actual else ""
        return f"{where}{name}: recorded {before!r:.100}, replayed {now!r:.100}"
    return None


def _name(trace: Trace, model: str | None) -> str:
    if model is not None:
        return model
    name: str = trace.header["model"]
    if name not in known_models() and not Path(name).is_dir():
        raise InputError(f"model {name!r:.200} of the trace is neither bundled nor a folder here; name it with --model")
    return name


def _tokens(solver: Solver, puzzle: Record) -> np.ndarray:
    tokens = solver.task.encode(puzzle["input"])
    if sha256(tokens) != puzzle["sha256"]:
        raise InputError(f"puzzle {puzzle['puzzle']}: sha256 of its input is {sha256(tokens)}, not the recorded one")
    return tokens


def _elsewhere(recorded: Record) -> str:
    here = versions()
    differing = [name for name in here if recorded.get(name, here[name]) != here[name]]
    other = [f"{name} {recorded[name]} (here {here[name]})" for name in differing]
    return f"; recorded with {', '.join(other)}" if other else ""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
