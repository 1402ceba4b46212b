"""The native CPU executor against the reference: every prefix of every program, and the same bits everywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.program import Program
from rtm_kernels.recursion import native, reference

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

needs_native = pytest.mark.skipif(not native.available(), reason=f"{native.why_not()}")
Stacks = dict[str, Stack]


@pytest.fixture(autouse=True)
def no_autograd() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_stacks(program: Program, L: int, D: int, *, layers: int = 2, seed: int = 0, **options: object) -> Stacks:
    torch.manual_seed(seed)
    return {name: Stack([FusedTRMBlock(D, L, **options) for _ in range(layers)]) for name in program.stacks}


def make_latents(program: Program, B: int, L: int, D: int) -> tuple[dict[str, Tensor], Tensor]:
    latents = {name: torch.randn(B, L, D) for name in program.latents}
    return latents, torch.randn(B, L, D)


def weights(stacks: Stacks) -> dict[str, native.StackWeights]:
    return {name: native.StackWeights.from_module(stack) for name, stack in stacks.items()}


def callables(stacks: Stacks) -> dict[str, reference.Stack]:
    return {name: lambda state, injection, stack=stack: stack(state, injection) for name, stack in stacks.items()}


def double(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in latents.items()}


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(value - truth) / torch.linalg.vector_norm(truth))


def assert_within_budget(value: dict[str, Tensor], float32: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """The error is at most twice that of the float32 reference and one rounding."""
    assert value.keys() == truth.keys()
    for name in truth:
        allowed = 2 * (relative_error(float32[name], truth[name]) + 2**-24)
        assert relative_error(value[name], truth[name]) <= allowed, name


def after_every_prefix(
    program: Program, stacks: Stacks, latents: dict[str, Tensor], x: Tensor
) -> list[dict[str, Tensor]]:
    """The reference's latents after 0, 1, ... steps, in the dtype of x."""
    states = [latents]
    for n in range(len(program)):
        states.append(reference.run(program[n : n + 1], states[-1], x, callables(stacks)))
    return states


def reference_and_truth(
    program: Program, stacks: Stacks, latents: dict[str, Tensor], x: Tensor
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """After every prefix: the latents of the float32 reference and of the float64 one."""
    float32 = after_every_prefix(program, stacks, latents, x)
    wide = {name: copy.deepcopy(stack).double() for name, stack in stacks.items()}
    return zip(float32, after_every_prefix(program, wide, double(latents), x.double()), strict=True)


@needs_native
@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_prefix_is_within_the_error_budget(name: str, norm_axis: str) -> None:
    program = PROGRAMS[name]
    stacks = make_stacks(program, 17, 48, norm_axis=norm_axis)
    latents, x = make_latents(program, 2, 17, 48)
    executor = native.NativeExecutor(program, weights(stacks))
    for n, (float32, truth) in enumerate(reference_and_truth(program, stacks, latents, x)):
        assert_within_budget(executor.run(latents, x, end=n), float32, truth)


@needs_native
@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
@pytest.mark.parametrize("L, D", [(7, 24), (81, 64), (97, 100), (81, 128), (1, 1), (131, 33), (97, 512)])
def test_sizes_and_instruction_sets(L: int, D: int, norm_axis: str) -> None:
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D, norm_axis=norm_axis, seed=L + D)
    latents, x = make_latents(program, 2, L, D)
    *_, (float32, truth) = reference_and_truth(program, stacks, latents, x)
    for isa in native.isas():
        assert_within_budget(native.NativeExecutor(program, weights(stacks), isa=isa).run(latents, x), float32, truth)
