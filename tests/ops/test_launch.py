"""Launch tables: which row is chosen, how measured rows enter them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops import launch
from rtm_kernels.ops.attention_norm import op as attention_norm
from rtm_kernels.ops.attention_norm import qkv
from rtm_kernels.ops.launch import LaunchRow, entries, find, select, tuned
from rtm_kernels.ops.swiglu import launchers
from rtm_kernels.ops.swiglu_norm import op as swiglu_norm

TABLE = (
    LaunchRow("gemm", "hopper", 16, 128, num_warps=1),
    LaunchRow("gemm", "portable", 16, 512, num_warps=2),
    LaunchRow("gemm", "portable", 32, 512, num_warps=3),
    LaunchRow("gemm", "interpreter", 0, 64, num_warps=4),
)


@pytest.mark.parametrize(
    ("family", "dtype", "size", "warps"),
    [
        ("hopper", torch.bfloat16, 128, 1),
        ("hopper", torch.bfloat16, 129, 2),
        ("hopper", torch.float32, 1, 3),
        ("portable", torch.float16, 1, 2),
        ("portable", torch.float16, 513, None),
        ("interpreter", torch.float64, 64, 4),
        ("interpreter", torch.float32, 65, None),
    ],
)
def test_first_row_that_fits(
    monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype, size: int, warps: int | None
) -> None:
    monkeypatch.setattr(launch, "family", lambda: family)
    row = find(TABLE, "gemm", dtype, size)
    assert (row.num_warps if row else None) == warps


def test_what_has_no_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "family", lambda: "interpreter")
    with pytest.raises(BackendUnavailable, match=r"no launch row of gemm for interpreter, torch.float32 and size 65"):
        select(TABLE, "gemm", torch.float32, 65)
    with pytest.raises(InputError, match="family='volta'"):
        LaunchRow("gemm", "volta", 16, 1)


def _half_layer(mixed: str, batch: int) -> None:
    size, inner = (512, 1536) if mixed == "hidden" else (97, 512)
    x, *weights = (torch.empty(shape, device="meta") for shape in ((batch, 97, 512), (2 * inner, size), (size, inner)))
    y, rstd = swiglu_norm.forward(x, *weights, [x], mixed, mixed, 1e-5)
    swiglu_norm.backward(y, y, rstd, x, *weights, [x], mixed, mixed, 1e-5)


def _attention(batch: int) -> None:
    x, *weights = (torch.empty(shape, device="meta") for shape in ((batch, 97, 64), (192, 64), (64, 64)))
    y, rstd, h = attention_norm.forward(x, *weights, [x], None, None, 2, False, True, 1e-5, False)
    attention_norm.backward(y, y, rstd, h, *weights, None, None, 2, False, True, 1e-5)


@pytest.mark.parametrize("op", [partial(_half_layer, "sequence"), partial(_half_layer, "hidden"), _attention])
def test_nothing_but_the_grid_depends_on_the_batch(op: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[Any, ...]] = []

    def record(kernel: Any, row: LaunchRow, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        kinds = kernel.fn.__annotations__
        constexprs = {name: value for name, value in zip(kernel.arg_names, args, strict=False) if name in kinds}
        chosen.append((kernel.fn.__name__, row, constexprs, constants))

    for module in (launchers, qkv):
        monkeypatch.setattr(module, "launch", record)
    by_batch = []
    for batch in (1, 2, 7, 64, 65, 300):
        chosen.clear()
        op(batch)
        by_batch.append(list(chosen))
    assert len(by_batch[0]) >= 4
    assert all(rows == by_batch[0] for rows in by_batch)


MEASURED = (
    LaunchRow("gemm", "hopper", 16, 128, {"BLOCK_M": 64}, 4, 3),
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 128}, 8, 3),
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 128, "GROUP": 8}, 8, 3, variant="tma"),
    LaunchRow("gemm", "portable", 16, 512, {"BLOCK_M": 32}),
    LaunchRow("norm", "portable", 0, 512, {"BLOCK_M": 16}),
)


def entry(row: LaunchRow, op: str = "op") -> Mapping[str, Any]:
    return {"op": op, **asdict(row), "measured": {"gpu": "none", "ratio": 1.1}}


def test_a_measured_row_takes_the_place_of_its_variant_and_runs_first() -> None:
    faster = replace(MEASURED[2], num_warps=4)
    assert tuned("op", MEASURED, [entry(faster)]) == (MEASURED[0], faster, MEASURED[1], *MEASURED[3:])
    smaller = replace(MEASURED[0], num_stages=4)
    assert tuned("op", MEASURED, [entry(smaller)]) == (smaller, *MEASURED[1:])
    assert tuned("op", MEASURED, [entry(faster, op="another")]) == MEASURED


def test_a_row_measured_where_a_fallback_ran_leaves_that_one_to_other_gpus() -> None:
    here = replace(MEASURED[4], family="hopper", blocks={"BLOCK_M": 8})
    assert tuned("op", MEASURED, [entry(here)]) == (*MEASURED, here)
    newer = replace(MEASURED[1], family="blackwell", num_warps=4)
    found = tuned("op", MEASURED, [entry(newer)])
    assert set(map(id, MEASURED)) < set(map(id, found)) and newer in found


@pytest.mark.parametrize(
    "row",
    [
        replace(MEASURED[0], kernel="gone"),
        replace(MEASURED[0], limit=64),
        replace(MEASURED[0], blocks={"BLOCK_X": 64}),
        replace(MEASURED[0], variant="tma"),
        replace(MEASURED[0], family="portable"),
    ],
)
def test_a_row_that_no_table_has_is_refused(row: LaunchRow) -> None:
    with pytest.raises(InputError, match=r"of tuned\.json is not a row of op"):
        tuned("op", MEASURED, [entry(row)])


@pytest.mark.parametrize("content", ["{}", '[{"op": "x"}]', "[1]"])
def test_a_file_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"tuned\.json"):
        entries(path)
    path.with_name("good.json").write_text(json.dumps([entry(MEASURED[0])]))
    assert len(entries(path.with_name("good.json"))) == 1
