"""Launch rows that were measured: `tuned.json`, which `python -m benchmarks.tune --write` changes and a diff shows.

One object per row: `op` (the folder of the launch table), the row's fields, and `measured` (GPU, commit, versions,
ratio to the row of the table and the lower end of its interval). The file is empty until a GPU has measured something.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rtm_kernels.errors import InputError, require
from rtm_kernels.ops.launch import FALLBACKS, LaunchRow

PATH = Path(__file__).with_name("tuned.json")
FIELDS = tuple(field.name for field in fields(LaunchRow))


@functools.cache
def entries(path: Path = PATH) -> tuple[Mapping[str, Any], ...]:
    """What the file holds. Errors: `InputError` for a file that is not a list of such objects."""
    found = json.loads(path.read_text())
    require(isinstance(found, list), str(path), type(found).__name__, "a list of rows")
    for entry in found:
        known = isinstance(entry, dict) and set(entry) == {"op", *FIELDS, "measured"}
        require(known, str(path), entry, f"the fields op, {', '.join(FIELDS)} and measured")
    return tuple(found)


def row_of(entry: Mapping[str, Any]) -> LaunchRow:
    """The launch row of an entry."""
    return LaunchRow(**{name: entry[name] for name in FIELDS})


def tuned(
    op: str, table: Iterable[LaunchRow], found: Sequence[Mapping[str, Any]] | None = None
) -> tuple[LaunchRow, ...]:
    """`table` with each measured row of `op` first in its shape class.

    It takes the place of the row of its class and variant; other variants stay as alternatives. A row measured where
    only the rows of a fallback family ran becomes the first of a class of its own.

    Errors: `InputError` for a measured row that matches no row of the table by kernel, view, bits, limit, variant and
    the names of its blocks.
    """
    rows = list(table)
    for entry in entries() if found is None else found:
        if entry["op"] == op:
            _insert(rows, row_of(entry), op)
    return tuple(rows)


def _insert(rows: list[LaunchRow], new: LaunchRow, op: str) -> None:
    def alike(row: LaunchRow) -> bool:
        same = all(getattr(row, name) == getattr(new, name) for name in ("kernel", "view", "bits", "limit", "variant"))
        return same and row.family in FALLBACKS[new.family] and set(row.blocks) == set(new.blocks)

    replaced = [i for i, row in enumerate(rows) if alike(row)]
    if not replaced:
        raise InputError(f"{new} of tuned.json is not a row of {op}: its shape class or its blocks are unknown")
    for i in replaced:
        if rows[i].family == new.family:
            del rows[i]
            break
    later = (
        i for i, row in enumerate(rows) if (row.kernel, row.view, row.family) == (new.kernel, new.view, new.family)
    )
    rows.insert(next((i for i in later if rows[i].limit >= new.limit), len(rows)), new)
