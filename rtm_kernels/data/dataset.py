"""Puzzle data sets on disk, in the official layout: read with every size checked, written whole or not at all."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from rtm_kernels.errors import InputError, require
from rtm_kernels.files import StrPath, new_folder, open_array, read_json, sha256, write_json

IGNORE_LABEL = -100
MAX_TOKENS, MAX_COUNT = 1 << 16, (1 << 31) - 1
FIELDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")


@dataclass(frozen=True)
class Metadata:
    """`dataset.json`. Labels equal to `ignore_label_id` become -100; `sets` names the groups of arrays."""

    seq_len: int
    vocab_size: int
    pad_id: int = 0
    ignore_label_id: int | None = 0
    blank_identifier_id: int = 0
    num_puzzle_identifiers: int = 1
    total_groups: int = 0
    mean_puzzle_examples: float = 1.0
    total_puzzles: int = 0
    sets: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        limits: dict[str, tuple[int, int | str]] = {
            "seq_len": (1, MAX_TOKENS), "vocab_size": (1, MAX_TOKENS), "pad_id": (0, "vocab_size"),
            "num_puzzle_identifiers": (1, MAX_COUNT), "blank_identifier_id": (0, "num_puzzle_identifiers"),
            "total_groups": (0, MAX_COUNT), "total_puzzles": (0, MAX_COUNT),
        }  # fmt: skip
        for name, (least, limit) in limits.items():
            value, most = getattr(self, name), getattr(self, limit) - 1 if isinstance(limit, str) else limit
            fits = type(value) is int and least <= value <= most
            require(fits, name, value, f"expected an integer from {least} to {most}")
        mean, ignored = self.mean_puzzle_examples, self.ignore_label_id
        finite = type(mean) in (int, float) and math.isfinite(mean) and mean >= 0
        require(finite, "mean_puzzle_examples", mean, "expected a finite number")
        require(ignored is None or type(ignored) is int, "ignore_label_id", ignored, "expected an integer or null")
        named = [isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in self.sets]
        require(bool(named) and all(named), "sets", self.sets, "expected names of letters, digits, - and _")

    @classmethod
    def from_json(cls, content: object) -> Metadata:
        """From the parsed `dataset.json`; keys that are not ours are left out, absent counts stay 0."""
        require(isinstance(content, dict), "dataset.json", type(content).__name__, "expected a JSON object")
        assert isinstance(content, dict)
        known = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        for name in ("seq_len", "vocab_size"):
            require(name in known, name, "absent", "expected in dataset.json")
        sets = known.get("sets", ["all"])
        require(isinstance(sets, list), "sets", sets, "expected a list of names")
        return cls(**{**known, "sets": tuple(sets)})

    @classmethod
    def of(cls, examples: Examples, vocab_size: int, num_puzzle_identifiers: int = 1) -> Metadata:
        """The metadata of one set of examples called `all`."""
        puzzles = len(examples.puzzle_identifiers)
        return cls(
            seq_len=examples.inputs.shape[1], vocab_size=vocab_size, num_puzzle_identifiers=num_puzzle_identifiers,
            total_groups=len(examples.group_indices) - 1, total_puzzles=puzzles,
            mean_puzzle_examples=len(examples.inputs) / max(puzzles, 1),
        )  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """The arrays of one set: puzzle p owns the examples `puzzle_indices[p]` to `[p + 1]`, groups own puzzles likewise.

    inputs, labels: integers [N, seq_len]; puzzle_identifiers: [P]; puzzle_indices: [P + 1]; group_indices: [G + 1].
    """

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray

    @classmethod
    def of_single(cls, inputs: np.ndarray, labels: np.ndarray, puzzles_per_group: int = 1) -> Examples:
        """Every example a puzzle of its own; consecutive ones, such as augmentations, form a group."""
        count = len(inputs)
        groups = np.arange(0, count + 1, puzzles_per_group, dtype=np.int32)
        return cls(inputs, labels, np.zeros(count, np.int32), np.arange(count + 1, dtype=np.int32), groups)

    def check(self, metadata: Metadata, where: str = "examples") -> None:
        """Raise `InputError` unless shapes agree, indices are increasing and cover everything, identifiers exist."""
        for name in FIELDS:
            array, ndim = getattr(self, name), 2 if name in ("inputs", "labels") else 1
            require(array.ndim == ndim, f"{where}: {name}.shape", array.shape, f"expected {ndim} dimensions")
            require(array.dtype.kind in "iu", f"{where}: {name}.dtype", str(array.dtype), "expected integers")
        shape = (len(self.inputs), metadata.seq_len)
        require(self.inputs.shape == shape, f"{where}: inputs.shape", self.inputs.shape, f"seq_len is {shape[1]}")
        require(self.labels.shape == shape, f"{where}: labels.shape", self.labels.shape, f"inputs are {shape}")
        puzzles = len(self.puzzle_identifiers)
        for name, owned, items in (("puzzle_indices", shape[0], puzzles), ("group_indices", puzzles, None)):
            index = getattr(self, name)
            rising = len(index) >= 1 and index[0] == 0 and index[-1] == owned and bool((index[1:] > index[:-1]).all())
            rising = rising and (items is None or len(index) == items + 1)
            require(rising, f"{where}: {name}", _brief(index), f"expected increasing values from 0 to {owned}")
        identifiers, count = self.puzzle_identifiers, metadata.num_puzzle_identifiers
        known = not puzzles or (identifiers.min() >= 0 and identifiers.max() < count)
        require(bool(known), f"{where}: puzzle_identifiers", _brief(identifiers), f"expected 0 to {count - 1}")

    def check_tokens(self, metadata: Metadata, where: str = "examples", rows: np.ndarray | None = None) -> None:
        """Raise `InputError` unless inputs (and labels that are not ignored) are below the vocabulary size."""
        for name in ("inputs", "labels"):
            array = getattr(self, name) if rows is None else getattr(self, name)[rows]
            wrong = (array < 0) | (array >= metadata.vocab_size)
            if name == "labels" and metadata.ignore_label_id is not None:
                wrong &= array != metadata.ignore_label_id
            if wrong.any():
                row, cell = np.argwhere(wrong)[0]
                example = row if rows is None else rows[row]
                value = f"{where}: {name}[{example}, {cell}]={array[row, cell]}"
                raise InputError(f"{value} is not allowed: expected 0 to {metadata.vocab_size - 1}")


def _brief(array: np.ndarray) -> str:
    return np.array2string(np.asarray(array), threshold=6, edgeitems=2)


@dataclass(frozen=True)
class PuzzleDataset:
    """One split of a data set: its metadata and its sets of examples, checked."""

    metadata: Metadata
    sets: dict[str, Examples]
    name: str = "examples"

    @classmethod
    def open(cls, path: StrPath, split: str = "train") -> PuzzleDataset:
        """The split of a data set in the official layout; inputs and labels are mapped, not read.

        Sizes, indices and identifiers are checked now, tokens when they are read. Raises `InputError`.
        """
        folder = Path(path) / split
        content = read_json(folder / "dataset.json")
        try:
            metadata = Metadata.from_json(content)
        except InputError as error:
            raise InputError(f"{folder / 'dataset.json'}: {error}") from None
        sets = {}
        for name in metadata.sets:
            arrays = {field: open_array(folder / f"{name}__{field}.npy") for field in FIELDS}
            sets[name] = Examples(**{f: a if f in FIELDS[:2] else np.array(a) for f, a in arrays.items()})
            sets[name].check(metadata, str(folder / name))
        return cls(metadata, sets, str(folder))

    def check_tokens(self) -> None:
        """Check every token now; reads all arrays once."""
        for name, examples in self.sets.items():
            for start in range(0, len(examples.inputs), 65_536):
                rows = np.arange(start, min(start + 65_536, len(examples.inputs)))
                examples.check_tokens(self.metadata, f"{self.name}/{name}", rows)

    def identifiers(self) -> list[str]:
        """Names of the puzzle identifiers, from `identifiers.json` beside the split."""
        path = Path(self.name).parent / "identifiers.json"
        names = read_json(path, limit=1 << 30)
        fits = isinstance(names, list) and len(names) == self.metadata.num_puzzle_identifiers
        expected = f"expected a list of {self.metadata.num_puzzle_identifiers} names"
        require(fits and all(isinstance(n, str) for n in names), str(path), type(names).__name__, expected)
        return list(names)


def write_dataset(
    out: StrPath,
    splits: Mapping[str, Examples],
    vocab_size: int,
    *,
    made_by: Mapping[str, object] | None = None,
    identifiers: Sequence[str] = ("<blank>",),
    overwrite: bool = False,
) -> None:
    """Write splits of one set `all` each, with `manifest.json`: `made_by`, and size and sha256 of every file.

    Everything is checked and then written with `files.new_folder`, so `out` is complete or as before. Raises
    `InputError` as `check_out`.
    """
    out = check_out(out, overwrite)
    described = {split: Metadata.of(examples, vocab_size, len(identifiers)) for split, examples in splits.items()}
    for split, examples in splits.items():
        examples.check(described[split], split)
        examples.check_tokens(described[split], split)
    with new_folder(out) as folder:
        for split, examples in splits.items():
            (folder / split).mkdir()
            write_json(folder / split / "dataset.json", asdict(described[split]))
            for field in FIELDS:
                array = _compact(getattr(examples, field), field)
                np.save(folder / split / f"all__{field}.npy", array, allow_pickle=False)
        write_json(folder / "identifiers.json", list(identifiers))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        write_json(folder / "manifest.json", {"made_by": dict(made_by or {}), "files": digests})


def check_out(out: StrPath, overwrite: bool) -> Path:
    """The folder that a data set may be written to: none yet, or with `overwrite` one that holds nothing else.

    Errors: `InputError` for what exists, and for what `overwrite` would destroy that is no data set.
    """
    place = Path(os.path.realpath(out))
    if place.exists():
        require(overwrite, "out", str(out), "it exists already; pass overwrite to replace it")
        replaceable = place.is_dir() and (not any(place.iterdir()) or any(place.glob("*/dataset.json")))
        require(replaceable, "out", str(out), "overwrite replaces a data set or an empty folder, nothing else")
    return place


def _compact(array: np.ndarray, field: str) -> np.ndarray:
    """Tokens that fit into bytes as bytes, everything else as int32, as the official builders store them."""
    small = field in FIELDS[:2] and array.size and array.min() >= 0 and array.max() < 256
    return np.ascontiguousarray(array, np.uint8 if small else np.int32)
