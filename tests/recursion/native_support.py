"""What the tests of the native CPU executor share: programs, stacks, states and the error budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.program import Program
from rtm_kernels.recursion import native, reference
from rtm_kernels.recursion.native_weights import StackWeights

PROGRAMS = {
    "trm": programs.trm(2, 2),
    "trm_singlez": programs.trm_singlez(2, 2),
    "trm_hier6": programs.trm_hier6(1, 6),
    "hrm": programs.hrm(2, 2),
    "rsm": programs.rsm(2, 2, chained=True),
    "rins": programs.rins(3),
    "rtm": programs.rtm(3),
    "transformer": programs.transformer(),
}

needs_native = pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")
ISAS = native.isas() if native.why_not() is None else ()
REDUCED = [p for p in native.PRECISIONS if p != "float32" and native.why_not_precision(p) is None]
Stacks = dict[str, Stack]
CosSin = tuple[Tensor, Tensor]

MLP: dict[str, Any] = {"mixer": "mlp"}
RSM: dict[str, Any] = {"mixer": "mlp", "norm_axis": "hidden"}
ATTENTION: dict[str, Any] = {"mixer": "attention", "num_heads": 4, "causal": True, "qk_norm": True}
OPTIONS = pytest.mark.parametrize("options", [MLP, RSM, ATTENTION], ids=["mlp", "hidden_norm", "attention"])


@pytest.fixture
def one_thread_without_autograd() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def make_stacks(program: Program, L: int, D: int, *, layers: int = 2, seed: int = 0, **options: Any) -> Stacks:
    torch.manual_seed(seed)
    return {name: Stack([FusedTRMBlock(D, L, **options) for _ in range(layers)]) for name in program.stacks}


def make_latents(program: Program, B: int, L: int, D: int) -> tuple[dict[str, Tensor], Tensor]:
    latents = {name: torch.randn(B, L, D) for name in program.latents}
    return latents, torch.randn(B, L, D)


def tables(stacks: Stacks, L: int, rope: bool) -> CosSin | None:
    block = next(iter(stacks.values())).layers[0]
    width = block.mlp.down_proj.weight.shape[0]
    return rope_tables(L, width // block.num_heads, 10000.0) if rope else None


def weights(stacks: Stacks, cos_sin: CosSin | None = None) -> dict[str, StackWeights]:
    return {name: StackWeights.from_module(stack, cos_sin) for name, stack in stacks.items()}


def callables(stacks: Stacks, cos_sin: CosSin | None = None) -> dict[str, reference.ApplyStack]:
    def bind(stack: Stack) -> reference.ApplyStack:
        return lambda state, injection: stack(state, injection, cos_sin)

    return {name: bind(stack) for name, stack in stacks.items()}


def double(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in latents.items()}


def enough(L: int, D: int) -> int:
    """Samples for an error to be a statistic and not one draw: at least 500 elements."""
    return max(2, 500 // (L * D))


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(value - truth) / torch.linalg.vector_norm(truth))


def assert_within_budget(value: dict[str, Tensor], float32: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """The error is at most twice that of the float32 reference and one rounding."""
    assert value.keys() == truth.keys()
    for name in truth:
        allowed = 2 * (relative_error(float32[name], truth[name]) + 2**-24)
        assert relative_error(value[name], truth[name]) <= allowed, name


def after_every_prefix(
    program: Program, stacks: dict[str, reference.ApplyStack], latents: dict[str, Tensor], x: Tensor
) -> list[dict[str, Tensor]]:
    """The reference's latents after 0, 1, ... steps, in the dtype of x."""
    states = [latents]
    for n in range(len(program)):
        states.append(reference.run(program[n : n + 1], states[-1], x, stacks))
    return states


def reference_and_truth(
    program: Program, stacks: Stacks, latents: dict[str, Tensor], x: Tensor, cos_sin: CosSin | None = None
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """After every prefix: the latents of the float32 reference and of the float64 one."""
    float32 = after_every_prefix(program, callables(stacks, cos_sin), latents, x)
    wide = callables({name: copy.deepcopy(stack).double() for name, stack in stacks.items()}, cos_sin)
    return list(zip(float32, after_every_prefix(program, wide, double(latents), x.double()), strict=True))


def sliced(latents: dict[str, Tensor], start: int, count: int = 1) -> dict[str, Tensor]:
    return {name: value[start : start + count] for name, value in latents.items()}


def assert_each_as_alone(
    run: Callable[[dict[str, Tensor], Tensor], Mapping[str, Tensor]], latents: dict[str, Tensor], x: Tensor
) -> None:
    """65 samples have the bits that each has alone, in batches of many sizes and with one thread and two."""
    torch.set_num_threads(1)
    alone = [run(sliced(latents, i), x[i : i + 1]) for i in range(65)]
    for count in (1, 2):
        torch.set_num_threads(count)
        for batch in (1, 2, 3, 7, 8, 65):
            start = 65 - batch
            together = run(sliced(latents, start, batch), x[start:])
            for i in range(batch):
                for name, value in alone[start + i].items():
                    assert torch.equal(together[name][i : i + 1], value), (count, batch, i, name)
