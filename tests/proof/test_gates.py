"""Both gates, each in a process of its own (one compiles, the other interprets), and the table that was committed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from tests.cases import DIFFERENTIABLE, OPS, gate_cases
from tests.gates import compile_table
from tests.proof.launching import ROOT

GATES = {"compile": ["compile_gate", "--table"], "error": ["interpret_gate"]}
PRODUCTS = {
    "fused_kernel", "gate_up_kernel", "gemm_kernel", "fused_input_grad_kernel", "fused_weight_grad_kernel",
    "hidden_backward_kernel", "weight_grad_kernel", "qkv_kernel", "recursion_kernel", "gate_up_tma_kernel",
    "gemm_tma_kernel",
}  # fmt: skip
"""Kernels with a dot."""


@pytest.mark.parametrize("row", [pytest.param(name, marks=pytest.mark.proof(name)) for name in GATES])
def test_gate(row: str, cells: Callable[[int], None]) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.gates.{GATES[row][0]}", *GATES[row][1:]]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    cells(int(re.findall(r"(\d+) (?:kernels|cases),", result.stdout)[-1]))


@pytest.mark.proof("error")
def test_every_op_has_twelve_shapes_in_the_interpreter_gate(cells: Callable[[int], None]) -> None:
    found = Counter(case.op for case in gate_cases())
    assert set(found) >= {*DIFFERENTIABLE, "halting", "adam_atan2", "sign_sgd", "persistent", "queue"}
    assert all(count >= 12 for count in found.values()), found
    cells(sum(found.values()))


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
