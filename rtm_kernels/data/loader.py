"""Examples of a data set as numpy arrays: endless seeded training batches, resumable, and the first N for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rtm_kernels.data.dataset import IGNORE_LABEL, Examples, PuzzleDataset
from rtm_kernels.data.task import Pair
from rtm_kernels.errors import require

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair]
"""(inputs, labels, rng) to a symmetric twin of each row, e.g. `Task.augment`."""
Arrays = dict[str, np.ndarray]
"""int32: inputs, labels [N, seq_len] (-100 where the label does not count), puzzle_identifiers [N]."""


class TrainLoader:
    """Endless training batches by the official sampling, exactly resumable.

    A pass goes over every group of one set in random order and takes one random puzzle of each, with its examples;
    what is left at the end and does not fill a batch is dropped. Sets take turns. With the same seed and one example
    per puzzle the batches are those of the official loader. `augment` replaces each row by a random twin as it is
    read, so that augmentations need no disk. Every draw depends on seed, pass and batch alone.
    """

    def __init__(
        self, dataset: PuzzleDataset, batch_size: int, *, seed: int, augment: Augment | None = None
    ) -> None:  # fmt: skip
        require(batch_size >= 1, "batch_size", batch_size, "expected at least 1")
        require(seed >= 0, "seed", seed, "expected 0 or more")
        self.dataset, self.batch_size, self.seed, self.augment = dataset, batch_size, seed, augment
        self.passed, self.batch = 0, 0
        self._planned: tuple[np.ndarray, np.ndarray, list[int]] | None = None

    def next_batch(self) -> Arrays:
        """The next batch. Errors: `InputError` where a pass does not fill one."""
        names = list(self.dataset.sets)
        name = names[self.passed % len(names)]
        examples = self.dataset.sets[name]
        if self._planned is None:
            self._planned = self._plan(examples)
        puzzles, ends, starts = self._planned
        require(bool(starts), "batch_size", self.batch_size, f"a pass gives {ends[-1] if ends.size else 0} examples")
        rows, owners = self._rows(examples, puzzles, ends, starts[self.batch])
        tokens = _read(self.dataset, name, rows)
        if self.augment is not None:
            tokens = self.augment(*tokens, self._rng(1))
        self.batch += 1
        if self.batch == len(starts):
            self.passed, self.batch, self._planned = self.passed + 1, 0, None
        return _collate(self.dataset, tokens, examples.puzzle_identifiers[owners])

    def _plan(self, examples: Examples) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """The puzzles of this pass in their order, how many examples they give up to and with each, and the index of
        the first puzzle of each full batch; a puzzle that does not fit whole gives what there is room for."""
        rng = np.random.Generator(np.random.Philox(seed=self.seed + self.passed + 1))
        groups = examples.group_indices.astype(np.int64)
        order = rng.permutation(len(groups) - 1)
        puzzles = rng.integers(groups[order], groups[order + 1])
        sizes = examples.puzzle_indices[puzzles + 1] - examples.puzzle_indices[puzzles]
        ends = np.cumsum(sizes, dtype=np.int64)
        starts, start = [], 0
        while start < len(ends):
            stop = self._stop(ends, start)
            if stop == len(ends):
                break
            starts.append(start)
            start = stop + 1
        return puzzles, ends, starts

    def _stop(self, ends: np.ndarray, start: int) -> int:
        """Index of the last puzzle of the batch that begins with puzzle `start`."""
        return int(np.searchsorted(ends, (ends[start - 1] if start else 0) + self.batch_size))

    def _rows(self, examples: Examples, puzzles: np.ndarray, ends: np.ndarray, start: int) -> Pair:
        """Example rows of a batch and the puzzle that owns each; of the last puzzle a random part."""
        chosen = puzzles[start : self._stop(ends, start) + 1]
        first = examples.puzzle_indices[chosen].astype(np.int64)
        sizes = examples.puzzle_indices[chosen + 1] - first
        owners = np.repeat(chosen, sizes)
        offset = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if sizes[-1] > 1:
            offset[-sizes[-1] :] = self._rng(0).permutation(sizes[-1])
        return (np.repeat(first, sizes) + offset)[: self.batch_size], owners[: self.batch_size]

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.passed, self.batch, purpose])

    def state_dict(self) -> dict[str, int]:
        """The position: what the next batch will be, and the settings that make it so."""
        return {"passed": self.passed, "batch": self.batch, **self._settings()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a position. Raises `InputError` when it belongs to other settings or another data set."""
        for name, value in self._settings().items():
            require(state.get(name) == value, f"state[{name!r}]", state.get(name), f"this loader has {value}")
        for name in ("passed", "batch"):
            number = state.get(name)
            counted = isinstance(number, int) and number >= 0
            require(counted, f"state[{name!r}]", number, "expected an integer of at least 0")
        self.passed, self.batch, self._planned = state["passed"], state["batch"], None

    def _settings(self) -> dict[str, int]:
        examples = sum(len(e.inputs) for e in self.dataset.sets.values())
        return {"seed": self.seed, "batch_size": self.batch_size, "examples": examples}


def read_examples(dataset: PuzzleDataset, limit: int | None = None) -> tuple[Arrays, list[str]]:
    """All examples in order, set by set, or the first `limit`; and the set of each."""
    parts, names = list[Arrays](), list[str]()
    for name, examples in dataset.sets.items():
        left = len(examples.inputs) if limit is None else limit - len(names)
        rows = np.arange(min(left, len(examples.inputs)))
        owners = np.searchsorted(examples.puzzle_indices, rows, side="right") - 1
        parts.append(_collate(dataset, _read(dataset, name, rows), examples.puzzle_identifiers[owners]))
        names += [name] * len(rows)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, names


def _read(dataset: PuzzleDataset, name: str, rows: np.ndarray) -> Pair:
    """Checked tokens of a set, read from the map in the order of the file."""
    examples = dataset.sets[name]
    sorted_rows, back = np.unique(rows, return_inverse=True)
    examples.check_tokens(dataset.metadata, f"{dataset.name}/{name}", sorted_rows)
    return examples.inputs[sorted_rows][back], examples.labels[sorted_rows][back]


def _collate(dataset: PuzzleDataset, tokens: Pair, identifiers: np.ndarray) -> Arrays:
    inputs, labels, identifiers = (np.array(array, dtype=np.int32) for array in (*tokens, identifiers))
    if dataset.metadata.ignore_label_id is not None:
        labels[labels == dataset.metadata.ignore_label_id] = IGNORE_LABEL
    return {"inputs": inputs, "labels": labels, "puzzle_identifiers": identifiers}
