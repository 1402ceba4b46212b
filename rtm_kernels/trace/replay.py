"""Replaying: the same puzzles through the same model once more, compared bit for bit."""

from __future__ import annotations

from pathlib import Path

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
    header, threads = trace.header, torch.get_num_threads()
    if model is None:
        model = str(header["model"])
        if model not in known_models() and not Path(model).is_dir():
            raise InputError(
                f"model {model!r:.200} of the trace is neither bundled nor a folder here; name it with --model"
            )
    solver = build_solver(header, RecursiveReasoner.from_pretrained(model) if isinstance(model, str) else model)
    samples = []
    for key, traced in enumerate(trace.puzzles):
        samples.append(Sample(key, solver.task.encode(traced.puzzle["input"])))
        digest = sha256(samples[key].tokens)
        if digest != traced.puzzle["sha256"]:
            raise InputError(f"puzzle {key}: sha256 of its input is {digest}, not the recorded one")
    known = [traced.puzzle["solution"] for traced in trace.puzzles]
    expected = iter(enumerate([header, *trace.records], start=1))

    def compare(actual: Record) -> None:
        line, record = next(expected, (len(trace.records) + 2, {}))
        found = difference(record, actual)
        if found:
            raise _Differs(f"line {line}: {found}")

    torch.set_num_threads(header["threads"])
    try:
        run(solver, samples, known, header["model"], compare)
    except _Differs as found:
        here, there = versions(), header["versions"]
        other = [
            f"{name} {there[name]} (here {here[name]})" for name in here if there.get(name, here[name]) != here[name]
        ]
        return f"{found}; recorded with {', '.join(other)}" if other else str(found)
    finally:
        torch.set_num_threads(threads)
    line, _ = next(expected, (None, None))
    return None if line is None else f"line {line}: the replay ended before it"


def build_solver(header: Record, model: RecursiveReasoner) -> Solver:
    if model.config.any_length:
        model = model.resized(header["seq_len"])
    for name, here in model_sha256(model).items():
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
