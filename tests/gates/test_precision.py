"""The scan for products and sums that are less exact than they should be, on IR as Triton prints it."""

from __future__ import annotations

import pytest

from tests.gates.precision import imprecise

DOT = "%acc_1 = tt.dot %a, %w, %acc : tensor<16x16xbf16> * tensor<16x16xbf16> -> tensor<16x16xf32> loc(#loc1)"
ROUND = "%t = arith.truncf %acc_1 : tensor<16x16xf32> to tensor<16x16xbf16> loc(#loc2)"
WIDEN = "%r = arith.extf %t : tensor<16x16xbf16> to tensor<16x16xf32> loc(#loc3)"


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ((DOT, "scf.yield %acc_1 : tensor<16x16xf32>"), []),
        ((DOT, ROUND, "tt.store %p, %t, %m : tensor<16x16x!tt.ptr<bf16>>"), []),
        ((DOT, ROUND, WIDEN, "%y = arith.addf %r, %x : tensor<16x16xf32>"), []),  # a residual of what is stored
        ((DOT.replace(" : tensor", ", inputPrecision = tf32 : tensor", 1),), ["a product that is not IEEE"]),
        ((DOT.replace("-> tensor<16x16xf32>", "-> tensor<16x16xf16>"),), ["a product summed in 16 bits"]),
        ((DOT, ROUND, WIDEN, "scf.yield %i, %r : i32, tensor<16x16xf32>"), ["%r was rounded to 16 bits"]),
        ((DOT, ROUND, WIDEN, "tt.store %p, %r : tensor<16x16x!tt.ptr<f32>>"), ["%r was rounded to 16 bits"]),
    ],
)
def test_each_rule(lines: tuple[str, ...], wanted: list[str]) -> None:
    assert [text.split(": ")[0] for text in imprecise("\n".join(f"    {line}" for line in lines))] == wanted
