"""The persistent kernel on a GPU at the official sizes: what the interpreter cannot show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.launch import multiprocessors
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.persistent.pack import PackedLayers
from rtm_kernels.recursion.persistent.runner import PersistentRecursion
from rtm_kernels.recursion.tape import why_not_program
from tests.recursion.support import PROGRAMS, assert_within_budget, bits, random_state, run_persistent, small_stacks

pytestmark = pytest.mark.gpu

LENGTH, WIDTH = 97, 512
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ON_GPU = [(program, kind) for program, kind in PROGRAMS if kind != "attention" and why_not_program(program) is None]


def make_stacks(program: Program, norm_axis: str) -> dict[str, nn.Module]:
    stacks = small_stacks(program.stacks, LENGTH, WIDTH, (512, 1536), norm_axis, layers=2)
    return {name: stack.cuda() for name, stack in stacks.items()}


def make_state(program: Program, batch: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    latents, x = random_state(program, batch, LENGTH, WIDTH)
    return {name: t.to("cuda", dtype) for name, t in latents.items()}, x.to("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("program", "norm_axis"), ON_GPU, ids=lambda p: getattr(p, "name", str(p)))
def test_every_step_is_within_the_budget(program: Program, norm_axis: str, dtype: torch.dtype) -> None:
    stacks = make_stacks(program, norm_axis)
    weights = PackedLayers(stacks, dtype)
    values, x = make_state(program, 2, dtype)
    for n in range(len(program)):
        step = program[n : n + 1]
        got = run_persistent(step, values, x, weights)
        got.pop("change", None)
        assert_within_budget(got, step, values, x, stacks)
        values = reference.run(step, values, x, stacks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_launch_has_the_bits_of_one_launch_per_step(dtype: torch.dtype) -> None:
    program = programs.trm(2, 3)
    weights = PackedLayers(make_stacks(program, "sequence"), dtype)
    values, x = make_state(program, 3, dtype)
    together = run_persistent(program, values, x, weights)
    for n in range(len(program)):
        step = run_persistent(program[n : n + 1], values, x, weights)
        values = {name: step[name] for name in values}
    assert bits({name: together[name] for name in values}) == bits(values)


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_bits_do_not_depend_on_the_grid_and_250_runs_agree(norm_axis: str) -> None:
    program = programs.trm(3, 6)
    weights = PackedLayers(make_stacks(program, norm_axis), torch.bfloat16)
    latents, x = make_state(program, 4, torch.bfloat16)
    head = torch.randn(2, WIDTH).cuda(), torch.zeros(2).cuda()
    expected = None
    everywhere = multiprocessors(x.device, 1)
    for grid in (1, 7, everywhere - 1, *[everywhere] * 250):
        got = bits(run_persistent(program, latents, x, weights, head=head, grid=grid))
        expected = expected or got
        assert got == expected, f"grid {grid}"


def test_replays_of_a_captured_launch_equal_launches() -> None:
    program = programs.trm(1, 2)
    weights = PackedLayers(make_stacks(program, "sequence"), torch.bfloat16)
    recursion = PersistentRecursion(program, weights)
    latents, x = make_state(program, 2, torch.bfloat16)
    recursion.load(latents, x).step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loaded = recursion.load(latents, x)
        loaded.step()
    for _ in range(1000):
        for t in (*latents.values(), x):
            t.normal_()
        graph.replay()
        expected = run_persistent(program, latents, x, weights)
        assert bits({**loaded.values(latents), "change": loaded.change}) == bits(expected)


def test_the_head_in_bfloat16() -> None:
    program = programs.trm(1, 2)
    weights = PackedLayers(make_stacks(program, "sequence"), torch.bfloat16)
    latents, x = make_state(program, 3, torch.bfloat16)
    head = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2)).cuda(), torch.tensor([0.2, -0.1]).cuda()
    got = run_persistent(program, latents, x, weights, head=head)
    y = got["z_H"].double()
    torch.testing.assert_close(got["q"].double(), y @ head[0].double().T + head[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got["change"].double(), relative_change(y, latents["z_H"].double()), rtol=1e-4, atol=0)
