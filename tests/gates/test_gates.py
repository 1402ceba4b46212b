"""A quick look at both gates: a case of each op interpreted, a use of each compiled. `make proof` runs all of them."""

from __future__ import annotations

import pytest

from tests.cases import name_of, small_cases
from tests.cases.case import Case, check

pytest.importorskip("triton")
FIRST = {case.op: case for case in reversed(small_cases())}
USES = ("D=64 F=256", "L=16 D=128", "attention_norm D=100 h=4 terms=2 rope=0 qk_norm=0 bfloat16", "halting q first",
        "conv_swiglu_norm F=96 3x3 bfloat16",
        "token_loss V=11 stablemax bfloat16", "adam_atan2 float32", "sign_sgd float32", "queue bfloat16")  # fmt: skip


@pytest.mark.parametrize("case", FIRST.values(), ids=name_of)
def test_an_op_is_within_twice_the_error_of_eager(case: Case) -> None:
    assert check(case).failures == []


def test_a_use_of_each_op_compiles_for_hopper() -> None:
    from tests.proof.launching import process

    assert "0 failed" in process("-m", "tests.gates.compile_gate", "--jobs", "1", *USES, interpret=False)
