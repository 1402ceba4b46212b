"""Writing puzzle data sets in the official layout, whole or not at all, with a manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rtm_kernels.data.dataset import FIELDS, Examples, Metadata
from rtm_kernels.errors import require
from rtm_kernels.files import StrPath, new_folder, sha256, write_json


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
