"""Puzzles with solutions for `rtm eval`: files of puzzles, and data sets in the official layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtm_kernels.cli.source import read_all
from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.data.loader import read_examples
from rtm_kernels.data.task import Task
from rtm_kernels.errors import InputError, require
from rtm_kernels.train.configure import override
from rtm_kernels.train.schema import Source
from rtm_kernels.train.stream import load_pool, task_of_sources

MAX_ORIGINS = 40
"""Values of a csv file's source column that are still reported one by one."""


@dataclass(frozen=True)
class Labelled:
    """Tokens inputs, labels [N, seq_len] (label -100 does not count) and identifiers [N] of puzzles, and where each is
    from. `names` of the identifiers, where a data set has several."""

    inputs: np.ndarray
    labels: np.ndarray
    identifiers: np.ndarray
    sources: list[str]
    names: list[str] | None = None


def read_labelled(paths: Sequence[Path], task: Task, limit: int | None) -> Labelled:
    """The puzzles of every path, at most `limit` of each: a file of puzzles with solutions, a data set folder in the
    official layout (its split `test`), or one of its splits.

    Errors: `InputError` for data that cannot be read or is of another task, for a puzzle without a solution, and for
    several data sets with puzzle identifiers of their own.
    """
    require(limit is None or limit >= 1, "--limit", limit, "at least 1")
    parts = [_folder(path, task, limit) if path.is_dir() else _file(path, task, limit) for path in paths]
    if len(parts) == 1:
        return parts[0]
    named = [str(path) for path, part in zip(paths, parts, strict=True) if part.names is not None]
    require(not named, "DATA", ", ".join(named), "a data set with puzzle identifiers is measured by itself")
    stems = [path.stem for path, part in zip(paths, parts, strict=True) for _ in part.sources]
    inputs, labels, identifiers = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "labels", "identifiers")
    )
    return Labelled(inputs, labels, identifiers, stems)


def generated(assignments: Sequence[str], task: Task) -> Labelled:
    """Puzzles of a source of training, whose fields are given as key=value.

    Errors: `InputError` for what no source has, or one of another task than `task`.
    """
    source = override(Source(), assignments)
    own = task_of_sources([source])
    require(own.name == task.name, "--generate", own.name, f"puzzles of the model's task {task.name}")
    inputs, labels = load_pool(source)
    identifiers = np.zeros(len(inputs), dtype=np.int32)
    return Labelled(inputs, labels.astype(np.int32), identifiers, ["generated"] * len(inputs))


def _file(path: Path, task: Task, limit: int | None) -> Labelled:
    puzzles = read_all([str(path)], task, limit)
    for puzzle in puzzles:
        if puzzle.error is not None or puzzle.solution is None:
            raise InputError(puzzle.error or f"{path}: line {puzzle.line}: no solution to compare with")
    inputs = np.stack([task.encode(puzzle.text) for puzzle in puzzles])
    labels = np.stack([task.encode(str(puzzle.solution)) for puzzle in puzzles])
    origins = [puzzle.origin or path.stem for puzzle in puzzles]
    if len(set(origins)) > MAX_ORIGINS:
        origins = [path.stem] * len(puzzles)
    return Labelled(inputs, labels.astype(np.int32), np.zeros(len(puzzles), dtype=np.int32), origins)


def _folder(path: Path, task: Task, limit: int | None) -> Labelled:
    split = (path, "test") if not (path / "dataset.json").exists() else (path.parent, path.name)
    dataset = PuzzleDataset.open(*split)
    sizes = (dataset.metadata.seq_len, dataset.metadata.vocab_size)
    own = (task.seq_len, task.vocab_size)
    require(sizes == own, f"{path}: (seq_len, vocab_size)", sizes, f"the model's task {task.name} has {own}")
    arrays, sources = read_examples(dataset, limit)
    names = dataset.identifiers() if dataset.metadata.num_puzzle_identifiers > 1 else None
    return Labelled(arrays["inputs"], arrays["labels"], arrays["puzzle_identifiers"], sources, names)
