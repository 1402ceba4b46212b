"""Launch tables: which row is chosen, how measured rows enter them, what is refused, and rows with TMA."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops import launch
from rtm_kernels.ops.launch import LaunchRow, entries, find, select, tuned
from rtm_kernels.ops.shared import shared_weights
from rtm_kernels.ops.swiglu import launchers
from rtm_kernels.ops.swiglu.launch import TABLE as SWIGLU
from tests.cases import small_cases
from tests.cases.case import run
from tests.ops.support import half_layer, preferring
from tests.proof.launching import every_launch

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


BUCKETS = (
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 16}, num_warps=1, rows=128),
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 32}, num_warps=2, rows=1024),
    LaunchRow("gemm", "hopper", 16, 128, {"BLOCK_M": 64}, num_warps=3),
    LaunchRow("gemm", "hopper", 16, 512, {"BLOCK_M": 64}, num_warps=4),
)


@pytest.mark.parametrize(("size", "rows", "warps"), [(64, 1, 1), (512, 128, 1), (64, 129, 2), (64, 1025, 3),
                                                     (512, 1 << 40, 4)])  # fmt: skip
def test_the_first_bucket_that_holds_the_rows(
    monkeypatch: pytest.MonkeyPatch, size: int, rows: int, warps: int
) -> None:
    monkeypatch.setattr(launch, "family", lambda: "hopper")
    assert select(BUCKETS, "gemm", torch.bfloat16, size, rows).num_warps == warps


@pytest.mark.parametrize("place", range(4))
def test_a_measured_row_stays_in_its_bucket(place: int) -> None:
    faster = replace(BUCKETS[place], num_stages=5)
    assert tuned("op", BUCKETS, [entry(faster)]) == (*BUCKETS[:place], faster, *BUCKETS[place + 1 :])


def test_the_family_is_that_of_the_tensors_device_wherever_the_current_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are looked up where the tensors' device is the current one: forward, backward, for shared weights."""
    inside, asked = list[torch.device](), list[bool]()

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        inside.append(tensor.device)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(launch, "family", lambda: (asked.append(bool(inside)), "interpreter")[1])
    with every_launch(lambda launch: None) as ran:
        for case in (c for c in small_cases() if c.op != "queue"):  # its case calls what the queue runs in its guard
            tensors = case.make(torch.Generator().manual_seed(0))
            run(case, "triton", tensors)
            with shared_weights():
                run(case, "triton", tensors)
    assert asked and all(asked) and len(set(ran)) > 12
    assert {name for name in ("recursion_kernel", "halting_kernel", "adam_atan2_kernel")} <= set(ran)


def test_what_has_no_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "family", lambda: "interpreter")
    with pytest.raises(BackendUnavailable, match=r"no launch row of gemm for interpreter, torch.float32 and size 65"):
        select(TABLE, "gemm", torch.float32, 65)
    with pytest.raises(InputError, match="family='volta'"):
        LaunchRow("gemm", "volta", 16, 1)


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


@pytest.mark.parametrize("programs", [1, 5, 1000])
def test_bits_depend_neither_on_the_batch_nor_on_how_many_programs_share_the_tiles(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, (x, *weights) = half_layer("channel", (5, 23, 100), inner=40)
    with torch.no_grad(), preferring("tma", SWIGLU):
        whole = call(x, *weights)
        monkeypatch.setattr(launchers, "multiprocessors", lambda device, otherwise: programs)
        assert torch.equal(call(x, *weights), whole)
        assert torch.equal(call(x[1:2], *weights), whole[1:2])


def test_a_weight_that_starts_off_the_grid_is_copied() -> None:
    call, (x, gate_up, down) = half_layer("channel", (2, 9, 80), inner=48)
    off = torch.cat([gate_up.detach().new_zeros(1), gate_up.detach().flatten()])[1:].view(gate_up.shape)
    assert off.data_ptr() % 16 != 0
    with torch.no_grad(), preferring("tma", SWIGLU):
        launches.clear()
        assert torch.equal(call(x, off, down), call(x, gate_up, down))
        assert launches["gate_up"] == 2
