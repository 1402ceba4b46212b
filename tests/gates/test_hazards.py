"""The parser and the scan for registers of running products, on PTX written by hand."""

from __future__ import annotations

import pytest

from tests.compiled.ptx import Address, Group, Name, Number, Register, parse
from tests.gates.hazards import hazards

PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1,%r2,%r3,%r4}, {%r5,%r6,%r7,%r8}, %rd1, 1, 1, 1, 0;"
FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
WAIT_0, WAIT_1 = "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"
WRITE_A, READ_ACCUMULATOR = "mov.b32 %r6, 0;", "add.f32 %r9, %r3, %r3;"
LAUNCH_WAIT, NEXT = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"
LOAD = "ld.relaxed.gpu.global.b32 %r9, [%rd1];"


def entry(*lines: str) -> str:
    head = (
        ".version 8.7\n.visible .entry k(\n\t.param .u64 .ptr .global .align 1 k_param_0,\n\t.param .u32 k_param_1\n)"
    )
    body = [".reg .pred %p<3>;", ".reg .b32 %r<10>;", ".reg .b64 %rd<3>;", *lines, "ret;"]
    return "\n".join([head, ".reqntid 128", "{", *(f"\t{line}" for line in body), "}", ""])


def rules(*lines: str) -> list[str]:
    return sorted({hazard.rule for hazard in hazards(parse(entry(*lines)))})


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ((FENCE, PRODUCT, COMMIT, WAIT_0, WRITE_A), []),
        ((FENCE, PRODUCT, COMMIT, WRITE_A, WAIT_0), ["A"]),
        ((FENCE, PRODUCT, WRITE_A, COMMIT, WAIT_0), ["A"]),
        ((FENCE, PRODUCT, COMMIT, "add.s32 %r9, %r6, %r6;", WAIT_0), []),  # reading A is allowed
        ((FENCE, PRODUCT, COMMIT, READ_ACCUMULATOR, WAIT_0), ["accumulator"]),
        ((FENCE, PRODUCT, COMMIT, WAIT_1, READ_ACCUMULATOR), ["accumulator"]),
        ((FENCE, PRODUCT, COMMIT, PRODUCT, COMMIT, WAIT_0, READ_ACCUMULATOR), []),  # products in order
        ((PRODUCT, COMMIT, WAIT_0), ["fence"]),
        ((FENCE, WRITE_A, PRODUCT, COMMIT, WAIT_0), ["fence"]),
        ((FENCE, PRODUCT, COMMIT, WAIT_0, READ_ACCUMULATOR, PRODUCT, COMMIT, WAIT_0), ["fence"]),
        ((LAUNCH_WAIT, LOAD, NEXT), []),
        ((LOAD, LAUNCH_WAIT, NEXT), ["early"]),
        (("@%p1 bra $L1;", LAUNCH_WAIT, "$L1:", LOAD, NEXT), ["early"]),
    ],
)
def test_each_rule(lines: tuple[str, ...], wanted: list[str]) -> None:
    assert rules(*lines) == wanted


@pytest.mark.parametrize(("wait", "wanted"), [(WAIT_0, []), (WAIT_1, ["A"])])
def test_a_loop_overwrites_what_the_turn_before_reads(wait: str, wanted: list[str]) -> None:
    """triton-lang/triton issue 9433, as Triton 3.6 compiles it: the loop waits for all groups but the newest."""
    loop = ("$L1:", WRITE_A, FENCE, PRODUCT, COMMIT, wait, "setp.lt.s32 %p1, %r9, 3;", "@%p1 bra $L1;", WAIT_0)
    assert rules(*loop) == wanted


def test_of_two_paths_the_one_without_a_wait_counts() -> None:
    lines = ("setp.lt.s32 %p1, %r9, 3;", FENCE, PRODUCT, COMMIT, "@%p1 bra $L1;", WAIT_0, "$L1:", WRITE_A)
    (found,) = hazards(parse(entry(*lines)))
    text = entry(*lines).splitlines()
    assert (found.rule, text[found.line - 1], text[found.product - 1]) == ("A", f"\t{WRITE_A}", f"\t{PRODUCT}")


def test_the_parser() -> None:
    kernel = parse(entry(
        "ld.param.b64 %rd1, [k_param_0];", ".loc 1 2 3", "@!%p1 st.global.v2.b32 [%rd1+8], {%r1, -2};",
        "{", ".reg .pred done;", "again:", "setp.eq.s32 done, %r1, 0x10;", "@done bra.uni again;", "}",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier [%r1], [%rd2, {%r2, %r3}], [%r4];", "bar.sync \t0;",
        "mov.f32 %r2, 0f3F800000;",
    ))  # fmt: skip
    assert (kernel.name, kernel.params, kernel.threads) == ("k", {"k_param_0": "u64", "k_param_1": "u32"}, 128)
    (load, store), (compare, jump), (copy, barrier), (move, _) = kernel.blocks
    assert (load.writes, load.args[1]) == (("%rd1",), Address(Name("k_param_0"), 0))
    assert (store.guard, store.negated, store.writes) == (Register("%p1"), True, ())
    assert store.args == [Address(Register("%rd1"), 8), Group((Register("%r1"), Number(-2)))]
    assert set(store.reads) == {"%rd1", "%r1", "%p1"}
    assert (compare.writes, compare.args[2], kernel.type_of("done#2")) == (("done#2",), Number(16), "pred")
    assert jump.guard == Register("done#2") and kernel.successors(1) == (1, 2)
    assert copy.args[1].coordinates == (Register("%r2"), Register("%r3"))
    assert barrier.synchronises and kernel.successors(2) == (3,) and kernel.successors(3) == ()
    assert move.args[1] == Number(0x3F800000) and kernel.type_of("%r2") == "u32"
