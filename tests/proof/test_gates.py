"""The gates whole: every case interpreted and executed as compiled, every launch row compiled, the committed table."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from tests.cases import DIFFERENTIABLE, OPS, gate_cases, name_of
from tests.cases.case import Case, check
from tests.gates import compile_table, compiled_gate
from tests.proof.launching import process
from tests.proof.test_poison import filled

PRODUCTS = {
    "fused_kernel", "gate_up_kernel", "gemm_kernel", "fused_input_grad_kernel", "hidden_backward_kernel",
    "weight_grad_kernel", "qkv_kernel", "recursion_kernel", "gate_up_tma_kernel", "gemm_tma_kernel",
}  # fmt: skip
"""Kernels with a dot."""
SEEDED = ("token_loss", "halting", "queue", "conv", "mixer", "attention")
"""Cases of the seeded defects that run here; `python -m tests.proof.defects` runs all."""
MORE = {"90": ("swiglu_norm-[",), "80": ()}
"""The same by architecture; on sm_80 the kernels of swiglu_norm are those of mixer_norm."""
IN_BFLOAT16 = (*DIFFERENTIABLE, "persistent")
"""Ops whose tensors may be bfloat16."""


@pytest.mark.proof("error")
@pytest.mark.parametrize("case", gate_cases(), ids=name_of)
def test_interpreted(case: Case) -> None:
    """Within twice the error of eager, where new memory is NaN."""
    with filled(True):
        assert check(case).failures == []


@pytest.mark.proof("error")
@pytest.mark.parametrize("case", [case for case in gate_cases() if case.op in IN_BFLOAT16], ids=name_of)
def test_interpreted_in_bfloat16(case: Case) -> None:
    with filled(True):
        assert check(case, torch.bfloat16).failures == []


@pytest.mark.proof("compile")
def test_compiled(cells: Callable[[int], None]) -> None:
    printed = process("-m", "tests.gates.compile_gate", "--table", interpret=False)
    cells(int(re.findall(r"(\d+) kernels,", printed)[-1]))


@pytest.mark.proof("compiled")
@pytest.mark.parametrize("dtype", compiled_gate.DTYPES)
@pytest.mark.parametrize("arch", compiled_gate.ARCHITECTURES)
def test_executed_as_compiled(arch: int, dtype: str, cells: Callable[[int], None]) -> None:
    printed = process(
        "-m", "tests.gates.compiled_gate", "--arch", str(arch), "--dtype", dtype, "--jobs", "1", interpret=False
    )
    cells(int(re.findall(r"(\d+) cases,", printed)[-1]))


@pytest.mark.proof("compiled")
@pytest.mark.parametrize("arch", MORE)
def test_defects_of_compiled_code_are_found(arch: str, cells: Callable[[int], None]) -> None:
    printed = process("-m", "tests.proof.defects", "--arch", arch, *SEEDED, *MORE[arch], interpret=False)
    cells(int(re.findall(r"(\d+) defects,", printed)[-1]))


@pytest.mark.proof("compile")
@pytest.mark.parametrize("arch", compile_table.ARCHITECTURES)
def test_the_committed_table_is_of_these_sources_and_has_no_failure(arch: int, cells: Callable[[int], None]) -> None:
    """But for the persistent kernel, which spills up to 96 bytes on Blackwell."""
    table = compile_table.read(arch)
    assert table["sources"] == compile_table.fingerprint(), "refresh it: make compile-gate ARCH=all"
    assert {r["case"] for r in table["kernels"]} == {name for op in OPS.values() for name in op.launched}
    for r in (r for r in table["kernels"] if r["failures"]):
        assert arch in (100, 120) and r["kernel"] == "recursion_kernel" and r["stack"] <= 96, r
    cells(len(table["kernels"]))


@pytest.mark.proof("compile")
def test_the_official_sizes_on_hopper_spill_nothing_and_multiply_on_tensor_cores() -> None:
    every = compile_table.read(90)["kernels"]
    rows = [r for r in every if r["case"].startswith(compile_table.OFFICIAL)]
    assert {r["kernel"] for r in rows} == {r["kernel"] for r in every}
    for r in rows:
        assert r["stack"] == r["spills"] == 0, r
        half = not re.search("float32|fp32", r["case"])
        assert not half or r["kernel"] not in PRODUCTS or r["wgmma"] > 0, r
