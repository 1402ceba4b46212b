"""Batches of a data set as numpy arrays: seeded, resumable training passes, and one pass over everything for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from rtm_kernels.data.dataset import IGNORE_LABEL, Examples, PuzzleDataset
from rtm_kernels.data.task import Pair
from rtm_kernels.errors import require

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair]
"""(inputs, labels, rng) to a symmetric twin of each row, e.g. `Task.augment`."""


class Batch(NamedTuple):
    """Arrays int32: inputs, labels [b, seq_len], puzzle_identifiers [b]; `size`: true examples over all ranks."""

    set_name: str
    arrays: dict[str, np.ndarray]
    size: int


class _Loader:
    """This rank's share of global batches."""

    def __init__(self, dataset: PuzzleDataset, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "expected at least 1")
        require(0 <= rank < world_size, "rank", rank, f"expected 0 to world_size - 1 = {world_size - 1}")
        divides = batch_size % world_size == 0
        require(divides, "batch_size", batch_size, f"expected a multiple of world_size={world_size}")
        self.dataset, self.batch_size = dataset, batch_size
        self.rank, self.local = rank, batch_size // world_size

    def _share(self, rows: np.ndarray) -> np.ndarray:
        return rows[self.rank * self.local : (self.rank + 1) * self.local]

    def _collate(self, tokens: Pair, identifiers: np.ndarray) -> dict[str, np.ndarray]:
        """int32 arrays of the local batch size, ignored labels and padded rows marked."""
        metadata, short = self.dataset.metadata, self.local - len(identifiers)
        inputs, labels, identifiers = (np.array(array, dtype=np.int32) for array in (*tokens, identifiers))
        if metadata.ignore_label_id is not None:
            labels[labels == metadata.ignore_label_id] = IGNORE_LABEL
        rows = ((0, short), (0, 0))
        return {
            "inputs": np.pad(inputs, rows, constant_values=metadata.pad_id),
            "labels": np.pad(labels, rows, constant_values=IGNORE_LABEL),
            "puzzle_identifiers": np.pad(identifiers, (0, short), constant_values=metadata.blank_identifier_id),
        }

    def _read(self, name: str, rows: np.ndarray) -> Pair:
        """Checked tokens of a set, read from the map in the order of the file."""
        examples = self.dataset.sets[name]
        sorted_rows, back = np.unique(rows, return_inverse=True)
        examples.check_tokens(self.dataset.metadata, f"{self.dataset.name}/{name}", sorted_rows)
        return examples.inputs[sorted_rows][back], examples.labels[sorted_rows][back]


class TrainLoader(_Loader):
    """Endless training batches by the official sampling, exactly resumable.

    A pass goes over every group of one set `epochs_per_pass` times in random order and takes one random puzzle of
    each, with its examples; what is left at the end and does not fill a batch is dropped. Sets take turns. With the
    same seed and one example per puzzle the batches are those of the official loader. `augment` replaces each row by
    a random twin as it is read, so that augmentations need no disk. Every draw depends on seed, pass and batch alone.

    Iterating ends after one pass; the next iteration continues with the next. `state_dict` is the position.
    """

    def __init__(
        self,
        dataset: PuzzleDataset,
        batch_size: int,
        *,
        seed: int,
        epochs_per_pass: int = 1,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(dataset, batch_size, rank=rank, world_size=world_size)
        require(seed >= 0, "seed", seed, "expected 0 or more")
        require(epochs_per_pass >= 1, "epochs_per_pass", epochs_per_pass, "expected at least 1")
        self.seed, self.epochs_per_pass, self.augment = seed, epochs_per_pass, augment
        self.passed, self.batch = 0, 0

    def __iter__(self) -> Iterator[Batch]:
        names = list(self.dataset.sets)
        name = names[self.passed % len(names)]
        examples = self.dataset.sets[name]
        puzzles, ends = self._plan(examples)
        starts = self._batch_starts(ends)
        require(bool(starts), "batch_size", self.batch_size, f"a pass gives {ends[-1] if ends.size else 0} examples")
        for start in starts[self.batch :]:
            rows, owners = self._rows(examples, puzzles, ends, start)
            identifiers = examples.puzzle_identifiers[self._share(owners)]
            tokens = self._read(name, self._share(rows))
            if self.augment is not None:
                tokens = self.augment(*tokens, self._rng(1 + self.rank))
            last = start == starts[-1]
            self.passed, self.batch = (self.passed + 1, 0) if last else (self.passed, self.batch + 1)
            yield Batch(name, self._collate(tokens, identifiers), self.batch_size)

    def _plan(self, examples: Examples) -> Pair:
        """The puzzles of this pass in their order, and how many examples they give up to and with each."""
        rng = np.random.Generator(np.random.Philox(seed=self.seed + self.passed + 1))
        groups = examples.group_indices.astype(np.int64)
        order = np.concatenate([rng.permutation(len(groups) - 1) for _ in range(self.epochs_per_pass)])
        puzzles = rng.integers(groups[order], groups[order + 1])
        sizes = examples.puzzle_indices[puzzles + 1] - examples.puzzle_indices[puzzles]
        return puzzles, np.cumsum(sizes, dtype=np.int64)

    def _batch_starts(self, ends: np.ndarray) -> list[int]:
        """Index of the first puzzle of each full batch; one that does not fit whole gives what there is room for."""
        starts, start = [], 0
        while start < len(ends):
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + self.batch_size))
            if stop == len(ends):
                break
            starts.append(start)
            start = stop + 1
        return starts

    def _rows(self, examples: Examples, puzzles: np.ndarray, ends: np.ndarray, start: int) -> Pair:
        """Example rows of a global batch and the puzzle that owns each; of the last puzzle a random part."""
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + self.batch_size)) + 1
        chosen = puzzles[start:stop]
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
        self.passed, self.batch = state["passed"], state["batch"]

    def _settings(self) -> dict[str, int]:
        examples = sum(len(e.inputs) for e in self.dataset.sets.values())
        return {"seed": self.seed, "batch_size": self.batch_size, "epochs_per_pass": self.epochs_per_pass,
                "examples": examples}  # fmt: skip


class TestLoader(_Loader):
    """Every example once, set by set, in order; the last batch of a set is padded. `size` counts true examples."""

    __test__ = False

    def __iter__(self) -> Iterator[Batch]:
        for name, examples in self.dataset.sets.items():
            for start in range(0, len(examples.inputs), self.batch_size):
                every = np.arange(start, min(start + self.batch_size, len(examples.inputs)))
                rows = self._share(every)
                owners = np.searchsorted(examples.puzzle_indices, rows, side="right") - 1
                arrays = self._collate(self._read(name, rows), examples.puzzle_identifiers[owners])
                yield Batch(name, arrays, len(every))
