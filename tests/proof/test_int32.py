"""No offset is computed in 32 bits where it may pass 2^31: every launch at sizes and strides beyond, interpreted with
overflow checks on memory that exists only where it is touched; the first, middle and last programs of each grid."""

from __future__ import annotations

import ast
import builtins
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from rtm_kernels.errors import InputError
from rtm_kernels.ops.adam_atan2.kernels import adam_atan2, sign_sgd
from rtm_kernels.ops.adam_atan2.reference import scalars
from rtm_kernels.recursion.persistent.device import GRID_LIMIT
from rtm_kernels.recursion.queue import kernels as queue
from rtm_kernels.recursion.queue.schedule import Moved, Schedule
from rtm_kernels.recursion.tape import layer_rows, numbers
from tests.cases.attention_norm import launch_attention
from tests.cases.case import meta
from tests.cases.conv import launch_conv
from tests.cases.halting import launch_halting
from tests.cases.persistent import launch_persistent
from tests.cases.swiglu import launch_channel, launch_mixer
from tests.cases.token_loss import launch_loss
from tests.proof.launching import ROOT, Launch, every_launch, jit_functions, kernel_files, kernel_names
from tests.proof.memory import mapped, span

pytestmark = pytest.mark.proof("int32")

HALF = (1 << 30) + 1
"""A stride that fits 32 bits and whose double does not."""
ALMOST = 2_100_000_000
"""Elements of a tensor with one element per row: the number of rows is still a 32-bit argument, a tile more is not."""
SMALL = {
    "gate_up_ptr", "down_ptr", "w_ptr", "weight_ptr", "bias_ptr", "cos_ptr", "sin_ptr", "weights_ptr", "head_ptr",
    "tape_ptr", "written_ptr", "table_ptr", "barrier_ptr", "failed_ptr", "count_ptr", "out_ptr", "partial_ptr",
    "ids_ptr", "origin_ptr",
}  # fmt: skip
"""Arguments that do not grow with the batch, or address by 64-bit values that they hold."""
PER_SAMPLE = {"min_steps_ptr", "alive_ptr", "order_ptr"}
"""One element per sample: beyond 2^31 only with 2^31 samples, whose index is an int64 there or a bare offset."""


def few(n: int) -> list[int]:
    """All of a short range, and the ends and the middle of a long one."""
    return list(builtins.range(n)) if n <= 8 else sorted({0, 1, n // 2, n - 2, n - 1})


def short_range(*bounds: Any) -> Iterator[int]:
    """`range`, with the ends and the middle of a long one: a loop over millions of rows in five turns."""
    whole = builtins.range(*(int(b.handle.data.item()) if hasattr(b, "handle") else int(b) for b in bounds))
    return (whole[i] for i in few(len(whole)))


@contextmanager
def sanitized(given: dict[str, Tensor]) -> Iterator[list[str]]:
    """Run few programs of every launch on vast memory, 32-bit overflows being errors.

    `given` are arguments whose values matter. Yields the names of the kernels launched so far.
    """
    builder = interpreter.interpreter_builder
    atomic, options = builder.create_atomic_rmw, builder.options

    def opened(operation: Any, pointer: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        """A barrier that opens at once: arrivals find 0, and everybody then reads the flipped bit. At a counter of
        arrivals, which acquires as it releases, every program finds that it is the last."""
        now = GRID_LIMIT.value if "ACQUIRE" in str(sem) else 0
        if "RELEASE" in str(sem) and "ACQUIRE" in str(sem):
            now = math.prod(builder.grid_dim) - 1
        return interpreter.TensorHandle(value.data * 0 + now, value.dtype.scalar)

    def run(launch: Launch) -> None:
        with mapped() as mapping:
            tensors = {n: t for n, t in launch.tensors.items() if t.is_meta}
            vast = {n: mapping.vast(t.shape, t.stride(), t.dtype) for n, t in tensors.items()}
            described = {n: v for n, v in launch.arguments.items() if isinstance(v, TensorDescriptor)}
            vast |= {
                n: replace(v, base=mapping.vast(v.base.shape, v.base.stride(), v.base.dtype))
                for n, v in described.items()
            }
            launch.function.__globals__["range"] = short_range
            if described:  # their programs loop over tiles with tl.range, which the interpreter turns into this
                interpreter.range = short_range
            try:
                programs = list(itertools.product(*map(few, launch.grid)))
                if launch.kernel == "recursion_kernel":  # each program takes many tiles
                    programs = programs[-1:]
                launch.given({**vast, **{n: t for n, t in given.items() if n in vast}}).run(programs)
            finally:
                del launch.function.__globals__["range"]
                interpreter.__dict__.pop("range", None)

    builder.options, builder.create_atomic_rmw = replace(options, debug=True), opened
    try:
        with every_launch(run) as seen:
            yield seen
    finally:
        builder.options, builder.create_atomic_rmw = options, atomic


SCENARIOS: dict[str, Callable[[], None]] = {
    "swiglu_norm, wide, tma": lambda: launch_channel(300_000, 97, 136, 136, 1, variant="tma"),
    "swiglu_norm, the down product normalises, tma":
        lambda: launch_channel(300_000, 97, 100, 100, 0, variant="tma"),
    "swiglu_norm, wide, 2^31 rows, tma": lambda: launch_channel(22_000_000, 97, 136, 16, 1, variant="tma"),
    "mixer_norm, long, tma": lambda: launch_mixer(60_000, 300, 136, 96, "sequence", 2, variant="tma"),
    "mixer_norm, long, 2^31 rows, tma":
        lambda: launch_mixer(15_000_000, 131, 140, 16, "sequence", 0, variant="tma"),
    "swiglu_norm, wide": lambda: launch_channel(300_000, 97, 136, 136, 1),
    "swiglu_norm, the down product normalises": lambda: launch_channel(300_000, 97, 100, 100, 0),
    "swiglu_norm, narrow": lambda: launch_channel(1_500_000, 97, 24, 32, 2),
    "swiglu_norm, 2^31 rows": lambda: launch_channel(22_000_000, 97, 24, 16, 0),
    "swiglu_norm, wide, 2^31 rows": lambda: launch_channel(22_000_000, 97, 136, 16, 1),
    "mixer_norm": lambda: launch_mixer(300_000, 97, 136, 96, "sequence", 2),
    "mixer_norm, hidden": lambda: launch_mixer(300_000, 97, 136, 96, "hidden", 0),
    "mixer_norm, long": lambda: launch_mixer(60_000, 300, 136, 96, "sequence", 1),
    "mixer_norm, 2^31 rows": lambda: launch_mixer(15_000_000, 17, 140, 16, "sequence", 1),
    "mixer_norm, long, 2^31 rows": lambda: launch_mixer(15_000_000, 131, 140, 16, "sequence", 0),
    "attention_norm": lambda: launch_attention(300_000, 97, 160, 2, 2, True, True),
    "attention_norm, odd": lambda: launch_attention(500_000, 97, 50, 2, 1, True, True),
    "attention_norm, 2^31 rows": lambda: launch_attention(22_000_000, 97, 300, 2, 0, True, True),
    **{
        f"halting, {policy}": partial(launch_halting, batch, 97, 512, policy)
        for policy, batch in (
            ("q", 50_000), ("q_continue", 50_000), ("cumulative_token", 23_000_000), ("settle=2/0.1", 23_000_000),
        )
    },
    "conv_swiglu_norm": lambda: launch_conv((1_500_000, 97, 8, 16), (2,), 0),
    "conv_swiglu_norm, grid": lambda: launch_conv((160_000, 901, 8, 16), (3, 3), 1),
    "conv_swiglu_norm, small grids": lambda: launch_conv((60_000_000, 4, 8, 4), (3, 3), 0),
    "conv_swiglu_norm, 2^31 rows": lambda: launch_conv((23_000_000, 97, 8, 4), (2,), 0),
    "stablemax": lambda: launch_loss(22_000_000, 97, 11, True),
    "softmax": lambda: launch_loss(22_000_000, 97, 70, False),
    **{
        f"{op}, stride {HALF} over {axis}": partial(use, strides=tuple(HALF if a == axis else 1 for a in "BLD"))
        for axis in "BLD"
        for op, use in {
            "swiglu_norm": partial(launch_channel, 5, 7, 24, 16, 0),
            "swiglu_norm, wide": partial(launch_channel, 5, 7, 140, 16, 2),
            "mixer_norm": partial(launch_mixer, 5, 7, 24, 16, "sequence", 0),
            "mixer_norm, long": partial(launch_mixer, 5, 131, 24, 16, "hidden", 1),
            "stablemax": partial(launch_loss, 5, 7, 24, True),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_offsets_beyond_2_31_elements(name: str, cells: Callable[[int], None]) -> None:
    with sanitized({}) as seen:
        SCENARIOS[name]()
    assert seen
    cells(len(seen))


PERSISTENT = [(46_000, 97, "sequence"), (46_000, 97, "hidden")]


@pytest.mark.parametrize("sizes", PERSISTENT, ids=str)
def test_offsets_of_the_persistent_kernel(sizes: tuple[Any, ...]) -> None:
    made = launch_persistent(1, *sizes[1:], launch=False)
    program = made.recursion.program
    written = torch.tensor([numbers(program)[program.output]], dtype=torch.int32)
    tape = layer_rows(program, made.recursion.weights.stack_layers)
    with sanitized({"tape_ptr": tape, "written_ptr": written}) as seen:
        launch_persistent(*sizes, grid=65535)
    assert seen == ["recursion_kernel"]


def test_tiles_that_32_bits_do_not_count_are_refused() -> None:
    """The programs of a row with TMA count tiles, which the hardware addresses by 32-bit coordinates."""
    with every_launch(lambda launch: None), pytest.raises(InputError, match=r"tiles=\d+ .* fewer than 2\^31"):
        launch_mixer(800_000_000, 130, 140, 16, "sequence", 0, variant="tma")


def test_programs_that_cuda_does_not_number_are_refused() -> None:
    with every_launch(lambda launch: None), pytest.raises(InputError, match=r"grid=\(\d+,\) .* fewer than 2\^31"):
        launch_mixer(1_200_000_000, 130, 140, 16, "sequence", 0)


def test_offsets_of_the_optimisers() -> None:
    with mapped() as mapping, sanitized({}) as seen:
        size = (1 << 31) + 1000
        tensors = [[mapping.vast(torch.Size((size,)), (1,), torch.float32)] for _ in range(4)]
        adam_atan2(*tensors, [torch.zeros(())], *scalars("cpu", 1e-3, None), 0.9, 0.95, 0.1)
        table = mapping.vast(torch.Size((1 << 23, 300)), (300, 1), torch.float32)
        sign_sgd(
            table, torch.tensor([5, (1 << 23) - 1, (1 << 23) - 1]), torch.ones(3, 300), *scalars("cpu", 1.0, None), 0.0
        )
        assert (table[5] == -1).all() and (table[-1] == -1).all() and not table[6].any()
    assert seen == ["adam_atan2_kernel", "sign_sgd_kernel"]


def test_offsets_of_the_queue() -> None:
    size, moved = HALF, Schedule.empty(3, 4, torch.device("cpu"))
    moved.owner.copy_(torch.tensor([0, 1, 2]))
    moved.wait([3])
    with mapped() as mapping, sanitized({}) as seen:
        queue.plan(moved, torch.tensor([False, False, True]))
        rows, fresh, result = (mapping.vast(torch.Size((n, size)), (size, 1), torch.float32) for n in (3, 4, 4))
        rows[2, -1], fresh[3, -1] = 5.0, 7.0
        queue.carry_out(moved, [Moved(rows, fresh, result)])
        assert sorted(rows[:, -1].tolist()) == [5.0, 5.0, 7.0]
    assert seen == ["plan_kernel", "move_kernel"]


def test_the_scenarios_bring_every_argument_that_grows_beyond_2_31(cells: Callable[[int], None]) -> None:
    largest: Counter[tuple[str, str]] = Counter()

    def measure(launch: Launch) -> None:
        for name, tensor in launch.tensors.items():
            largest[launch.kernel, name] = max(largest[launch.kernel, name], span(tensor.shape, tensor.stride()))

    with every_launch(measure):
        for scenario in SCENARIOS.values():
            scenario()
        for sizes in PERSISTENT:
            launch_persistent(*sizes, grid=65535)
    apart = {"adam_atan2_kernel", "sign_sgd_kernel", "plan_kernel", "move_kernel"}  # have tests of their own above
    assert {kernel for kernel, _ in largest} == kernel_names() - apart
    short = {key: n for key, n in largest.items() if n < ALMOST and key[1] not in SMALL | PER_SAMPLE}
    whole_latents = {"latents_ptr", "mixed_ptr", "inner_ptr", "y_ptr", "previous_ptr"}
    # the persistent kernel has one int64 row index for all; what has fewer elements per row stays below
    assert not {key for key in short if key[0] != "recursion_kernel" or key[1] in whole_latents}, short
    cells(len(largest))


@triton.jit
def planted_kernel(out_ptr, x_ptr, stride, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = rows.to(tl.int64) if WIDE else rows
    tl.store(out_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + rows * stride))


@pytest.mark.parametrize("wide", [False, True])
def test_a_planted_overflow_is_found(wide: bool) -> None:
    x = meta(64, 2, strides=(HALF, 1))
    with sanitized({}):
        if wide:
            planted_kernel[(4,)](torch.empty(16), x, x.stride(0), True, 16)
        else:
            with pytest.raises(AssertionError, match="int32 overflow detected for operation mul"):
                planted_kernel[(4,)](torch.empty(16), x, x.stride(0), False, 16)


def narrow_products(function: ast.FunctionDef) -> Iterator[ast.BinOp]:
    """Products whose factor is a program id that is still 32-bit, apart from remainders, which do not grow."""
    tainted: set[str] = set()

    def narrow(node: ast.AST) -> bool:
        text = ast.unparse(node)
        if isinstance(node, ast.Call) and (text.endswith(".to(tl.int64)") or text.endswith(", tl.int64)")):
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return False
        if isinstance(node, ast.Call) and text.startswith("tl.program_id"):
            return True
        if isinstance(node, ast.Call):
            return False
        return (isinstance(node, ast.Name) and node.id in tainted) or any(map(narrow, ast.iter_child_nodes(node)))

    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            tainted |= {ast.unparse(target) for target, value in pairs if narrow(value)}
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and (narrow(node.left) or narrow(node.right)):
            yield node


@pytest.mark.parametrize("path", kernel_files(), ids=lambda p: str(p.relative_to(ROOT / "rtm_kernels")))
def test_program_ids_are_wide_before_they_are_multiplied(path: Any, cells: Callable[[int], None]) -> None:
    functions = list(jit_functions(path))
    bad = [f"{path.name}:{n.lineno}: {ast.unparse(n)}" for f in functions for n in narrow_products(f)]
    assert not bad
    cells(sum(ast.unparse(f).count("tl.program_id(") for f in functions) or 1)
