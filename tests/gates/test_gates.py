"""A quick look at both gates: a case of each op interpreted, a use of each compiled. `make proof` runs all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import name_of, small_cases
from tests.cases.case import Case, check

pytest.importorskip("triton")
FIRST = {case.op: case for case in reversed(small_cases())}
USES = ("D=64 F=256", "L=16 D=128", "attention_norm D=100 h=4 terms=2 rope=0 qk_norm=0 bfloat16", "halting q first",
        "token_loss V=11 stablemax bfloat16", "adam_atan2 float32", "sign_sgd float32", "queue bfloat16")  # fmt: skip


@pytest.mark.parametrize("case", FIRST.values(), ids=name_of)
def test_an_op_is_within_twice_the_error_of_eager(case: Case) -> None:
    assert check(case).failures == []


def test_a_use_of_each_op_compiles_for_hopper() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gates.compile_gate", "--jobs", "1", *USES]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
