"""The parts of the executor against values computed by hand, and small kernels that must be reported."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rtm_kernels.ops import interpreted
from tests.compiled import arithmetic, layouts
from tests.compiled.memory import Memory
from tests.compiled.products import Machine
from tests.compiled.program import Program
from tests.compiled.ptx import Fault
from tests.compiled.races import Watch
from tests.compiled.shared import TensorMap
from tests.gates.test_hazards import entry


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -2.0, 3.4e38, np.nan], np.float32)
    assert arithmetic.bits(x, "bf16").tolist() == [0x3F80, 0x3F82, 0x3F81, 0xC000, 0x7F80, 0x7FFF]
    assert interpreted.narrow(x).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xC000, 0x7F80, 0x7FC0]
    pair = arithmetic.pair(np.float32([2.0]), np.float32([1.0]), "bf16x2")
    assert pair.tolist() == [0x40003F80] and arithmetic.floats(pair, "bf16x2").tolist() == [[1.0], [2.0]]
    assert arithmetic.bits(np.float32([65519.0, 2.0**-25]), "f16").tolist() == [0x7BFF, 0]


def test_integers_and_fma() -> None:
    def s32(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    x = np.float32([1 + 2**-12])
    assert arithmetic.fma(x, x, np.float32([-1 - 2**-11])) == 2**-24  # the rounded product would give 0
    assert arithmetic.divide(s32(-7, 7, 5), s32(2, -2, 0)).tolist() == [-3, -3, -1]
    assert arithmetic.remainder(s32(-7, 7), s32(2, -2)).tolist() == [-1, 1]
    assert arithmetic.high_product(s32(-1, 1 << 30), s32(1, 8)).tolist() == [-1, 2]
    long = np.array([-1, 1 << 62], np.int64)
    assert arithmetic.high_product(long, np.array([1, 12], np.int64)).tolist() == [-1, 3]
    assert arithmetic.left(s32(1, 1), np.uint32([31, 32])).tolist() == [-(1 << 31), 0]
    assert arithmetic.right(s32(-8, -8), np.uint32([1, 40])).tolist() == [-4, -1]
    assert arithmetic.extract(s32(0xF0), np.uint32(4), np.uint32(4)).tolist() == [-1]
    assert arithmetic.permute(np.uint32([0x33221180]), np.uint32([0x77665544]), np.uint32([0x8740])) == [0xFF774480]
    assert arithmetic.convert(np.float32([3.7, -3.7, np.nan, 1e20]), "s32").tolist() == [3, -3, 0, 2**31 - 1]


def test_fragments_of_registers() -> None:
    registers = np.zeros((4, 32), np.uint32)
    registers[1, 5], registers[2, 5] = 0x40003F80, 0x40804040  # lane 5 = 4 * 1 + 1: pairs (1, 2) and (3, 4)
    a = layouts.a_fragment(registers, "bf16")[0]
    assert (a[9, 2], a[9, 3], a[1, 10], a[1, 11]) == (1, 2, 3, 4) and np.count_nonzero(a) == 4
    b = layouts.b_fragment(registers[1:3], "bf16")[0]
    assert (b[2, 1], b[3, 1], b[10, 1], b[11, 1]) == (1, 2, 3, 4) and np.count_nonzero(b) == 4
    product = np.zeros((1, 16, 16), np.float32)
    product[0, 9, 13] = 5  # g + 8 h = 9, 8 b + 2 t + p = 13
    d = layouts.accumulators(product)
    assert np.argwhere(d).tolist() == [[4 + 2 + 1, 4 * 1 + 2]]


@pytest.mark.parametrize(
    ("mode", "transposed", "row", "k", "offset", "swizzled"),
    [
        (0, False, 9, 11, 256 + 16 + 512 + 6, 790),  # rows of 16 bytes, the next 8 elements of K at the leading offset
        (1, False, 9, 3, 256 + 128 + 6, 0x186 ^ 0x30),
        (3, False, 9, 3, 256 + 32 + 6, 0x126 ^ 0x00),
        (1, True, 70, 9, 512 + 12 + 256 + 128, 0x38C ^ 0x70),  # 64 elements of a column, then the leading offset
        (2, True, 33, 1, 512 + 2 + 64, 0x242 ^ 0x00),
    ],
)
def test_matrix_descriptors(mode: int, transposed: bool, row: int, k: int, offset: int, swizzled: int) -> None:
    descriptor = (512 >> 4) | (256 >> 4) << 16 | mode << 46  # leading offset 512, stride 256
    places, bits = layouts.offsets(descriptor, 128, transposed)
    assert places[row, k] == offset and layouts.swizzled(places, bits)[row, k] == swizzled


THREAD = (
    "mov.u32 %r1, %tid.x;", "shl.b32 %r2, %r1, 2;", "mov.b32 %r3, global_smem;", "add.s32 %r4, %r3, %r2;",
    "xor.b32 %r5, %r2, 128;", "add.s32 %r6, %r3, %r5;",  # the same lane of the other warp
    "ld.param.b64 %rd1, [k_param_0];", "cvt.u64.u32 %rd2, %r2;", "add.s64 %rd2, %rd1, %rd2;",
)  # fmt: skip
SEND, RECEIVE, OUT = "st.shared.b32 [%r4], %r1;", "ld.shared.b32 %r7, [%r6];", "st.global.b32 [%rd2], %r7;"
COPY, WAIT = "cp.async.ca.shared.global [%r4], [%rd2], 0x4;", "cp.async.wait_group 0;"
COMMIT, BARRIER = "cp.async.commit_group;", "bar.sync 0;"


def execute(*lines: str, size: int = 64, programs: int = 1, shared: int = 256) -> tuple[list[int], list[str]]:
    """A kernel of 64 threads over one tensor of integers: what it left there, and what was reported."""
    tensor = torch.arange(100, 100 + size, dtype=torch.int32)
    code = Program(entry(*THREAD, *lines).replace(".reqntid 128", ".reqntid 64"))
    watch, memory = Watch(code.kernel, programs), Memory()
    address = memory.add(tensor, "tensor")
    parameters = {"k_param_0": address, "k_param_1": 0}
    machine = Machine(code, parameters, shared, [(n, 0, 0) for n in range(programs)], (programs, 1, 1), watch)
    row = SimpleNamespace(base=tensor, shape=(1, 4), strides=(4, 1))
    machine.memory, machine.tensor_maps = memory, {address: TensorMap(row, (1, 4), 0)}
    machine.start()
    machine.run()
    return tensor.tolist(), [text.split(":")[0] for text in watch.found]


def test_warps_exchange_values() -> None:
    wanted = [*range(32, 64), *range(32)]
    assert execute(SEND, BARRIER, RECEIVE, OUT) == (wanted, [])
    assert execute(SEND, RECEIVE, OUT) == (wanted, ["read without a barrier"])
    assert execute(RECEIVE)[1] == ["read of what nobody wrote"]
    assert execute(SEND, BARRIER, RECEIVE, SEND.replace("%r1", "%r2"))[1] == ["write without a barrier since a read"]
    assert execute(SEND, BARRIER, RECEIVE, SEND)[1] == ["write without a barrier since a read"]  # of the same value too
    assert execute(SEND, "xor.b32 %r1, %r1, 32;", SEND.replace("%r4", "%r6"))[1] == [
        "write without a barrier since a write"
    ]
    assert execute(SEND.replace("[%r4], %r1", "[%r3], 5"))[1] == []  # replicated threads of one instruction


def test_copies_land_when_they_are_waited_for() -> None:
    wanted = [*range(132, 164), *range(100, 132)]
    assert execute(COPY, COMMIT, WAIT, BARRIER, RECEIVE, BARRIER, OUT) == (wanted, [])
    assert execute(COPY, COMMIT, BARRIER, RECEIVE)[1] == ["read of what nobody wrote", "read before the wait"]
    assert execute(COPY, COMMIT, WAIT, RECEIVE)[1] == ["read without a barrier"]
    assert execute(COPY, COMMIT, SEND)[1] == ["write into an unfinished copy"]


def test_tiles_land_when_their_barrier_is_asked_for_again() -> None:
    start, end = (f"@%p1 mbarrier.{what}.shared::cta.b64 [%r3+128]" for what in ("init", "inval"))
    start, arrive = f"{start}, 1;", "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r3+128], 16;"
    fence = "fence.proxy.async.shared::cta;"
    tile = "@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
    tile = f"{tile} [%r3], [%rd1, {{%r8, %r8}}], [%r3+128];"
    ask = ("$L3:", "mbarrier.try_wait.parity.shared.b64 %p2, [%r3+128], 0;", "@!%p2 bra $L3;")
    read = "ld.shared.b32 %r7, [%r3];"

    def found(*lines: str) -> list[str]:
        return execute("mov.b32 %r8, 0;", "setp.eq.u32 %p1, %r1, 0;", *lines)[1]

    head = ("mov.b32 %r8, 0;", "setp.eq.u32 %p1, %r1, 0;", start, BARRIER, arrive, fence, tile)
    assert execute(*head, *ask, read, OUT) == ([100] * 64, [])
    assert "read before the wait" in execute(*head, *ask[:2], read)[1]
    assert execute(*head, *ask, BARRIER, f"{end};")[1] == []
    assert execute(*head, *ask, f"{end};")[1] == ["write without a barrier since a read"]
    assert found(start, arrive, fence, tile, *ask) == ["read without a barrier"]
    assert found(start, BARRIER, arrive, tile) == ["a tile arrives at what has no proxy fence behind it"]
    over = "a tile is copied over what has no proxy fence behind it"
    assert found(start, fence, "@%p1 st.shared.b32 [%r3], 5;", tile) == [over]
    with pytest.raises(Fault, match="another warp has started"):
        found(start, BARRIER, "setp.eq.u32 %p1, %r1, 32;", arrive)


def test_stores_of_several_threads() -> None:
    first = "st.global.b32 [%rd1], %r1;"
    assert execute(first)[1] == ["threads of one store write different values to one place"]
    assert execute("mov.b32 %r7, 5;", "st.global.b32 [%rd1], %r7;")[1] == []
    other = ("mov.u32 %r7, %ctaid.x;", "st.global.b32 [%rd1], %r7;")
    assert "threads of one store write different values to one place" in execute(*other, programs=2)[1]


def test_what_another_program_wrote_is_not_loaded_through_l1() -> None:
    """Program 1 sees with .cg what program 0 released."""
    said = "atom.global.gpu.release.add.u32 %r8, [%rd1+128], 1;"
    heard = ("$L2:", "ld.global.gpu.acquire.b32 %r8, [%rd1+128];", "setp.eq.u32 %p2, %r8, 132;", "@%p2 bra $L2;")
    for load, wanted in (
        ("ld.global.cg", []),
        ("ld.global", ["read of tensor through L1 after another program's write"]),
    ):
        lines = ("mov.u32 %r7, %ctaid.x;", "setp.ne.u32 %p1, %r7, 0;", "@%p1 bra $L2;", "st.global.b32 [%rd1], 7;",
                 BARRIER, said, "ret;", *heard, BARRIER, f"{load}.b32 %r7, [%rd1];", "ret;")  # fmt: skip
        assert execute(*lines, programs=2)[1] == wanted


def test_no_wrong_index_finds_another_tensor() -> None:
    first, second, memory = torch.zeros(8), torch.zeros(8), Memory()
    start, _ = memory.add(first, "first"), memory.add(second, "second")
    assert memory.at(start + 28) is memory.buffers[0]
    assert memory.at(start + second.data_ptr() - first.data_ptr()) is None


def test_branches_part_threads_and_join_them() -> None:
    lines = ("setp.lt.u32 %p1, %r1, 3;", "mov.b32 %r7, 1;", "@%p1 bra $L1;", "mov.b32 %r7, 2;", "$L1:",
             "add.s32 %r7, %r7, 10;", OUT)  # fmt: skip
    assert execute(*lines)[0] == [11] * 3 + [12] * 61
    loop = ("mov.b32 %r7, 0;", "$L1:", "add.s32 %r7, %r7, 1;", "setp.lt.u32 %p1, %r7, %r1;", "@%p1 bra $L1;", OUT)
    assert execute(*loop)[0] == [max(1, n) for n in range(64)]


@pytest.mark.parametrize(
    ("lines", "size", "message"),
    [
        ((OUT,), 63, "outside of tensor"),
        (("st.global.b32 [%rd2+2], %r1;",), 64, "not aligned"),
        (("st.shared.b32 [%r4+4], %r1;",), 64, "shared access outside of 256 bytes"),
        (("setp.lt.u32 %p1, %r1, 3;", "@%p1 bra $L1;", BARRIER, "$L1:"), 64, "barrier that others never reach"),
        (("lop3.b32 %r1, %r1, %r1, %r1, 7;",), 64, "do not know lop3.b32"),
    ],
)
def test_faults(lines: tuple[str, ...], size: int, message: str) -> None:
    with pytest.raises(Fault, match=message):
        execute(*lines, size=size)
