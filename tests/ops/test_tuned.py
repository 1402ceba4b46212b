"""Measured launch rows: how the file enters the tables, and what of it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.errors import InputError
from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.tuned import entries, tuned

TABLE = (
    LaunchRow("gemm", "hopper", 16, 128, {"BLOCK_M": 64}, 4, 3),
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 128}, 8, 3),
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 128, "GROUP": 8}, 8, 3, variant="tma"),
    LaunchRow("gemm", "portable", 16, 512, {"BLOCK_M": 32}),
    LaunchRow("norm", "portable", 0, 512, {"BLOCK_M": 16}),
)


def entry(row: LaunchRow, op: str = "op") -> Mapping[str, Any]:
    return {"op": op, **asdict(row), "measured": {"gpu": "none", "ratio": 1.1}}


def test_a_measured_row_takes_the_place_of_its_variant_and_runs_first() -> None:
    faster = replace(TABLE[2], num_warps=4)
    assert tuned("op", TABLE, [entry(faster)]) == (TABLE[0], faster, TABLE[1], *TABLE[3:])
    smaller = replace(TABLE[0], num_stages=4)
    assert tuned("op", TABLE, [entry(smaller)]) == (smaller, *TABLE[1:])
    assert tuned("op", TABLE, [entry(faster, op="another")]) == TABLE


def test_a_row_measured_where_a_fallback_ran_leaves_that_one_to_other_gpus() -> None:
    here = replace(TABLE[4], family="hopper", blocks={"BLOCK_M": 8})
    assert tuned("op", TABLE, [entry(here)]) == (*TABLE, here)
    newer = replace(TABLE[1], family="blackwell", num_warps=4)
    found = tuned("op", TABLE, [entry(newer)])
    assert set(map(id, TABLE)) < set(map(id, found)) and newer in found


@pytest.mark.parametrize(
    "row",
    [
        replace(TABLE[0], kernel="gone"),
        replace(TABLE[0], limit=64),
        replace(TABLE[0], blocks={"BLOCK_X": 64}),
        replace(TABLE[0], variant="tma"),
        replace(TABLE[0], family="portable"),
    ],
)
def test_a_row_that_no_table_has_is_refused(row: LaunchRow) -> None:
    with pytest.raises(InputError, match=r"of tuned\.json is not a row of op"):
        tuned("op", TABLE, [entry(row)])


@pytest.mark.parametrize("content", ["{}", '[{"op": "x"}]', "[1]"])
def test_a_file_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"tuned\.json"):
        entries(path)
    path.with_name("good.json").write_text(json.dumps([entry(TABLE[0])]))
    assert len(entries(path.with_name("good.json"))) == 1
