"""Every executor, every program, every prefix: reference = Triton op by op = persistent = graph = C++.

A new model is a new program: the one below exists nowhere else, and no executor knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.impl import launches
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import fused, native, reference
from rtm_kernels.recursion.graph import GraphRunner, Tensors
from rtm_kernels.recursion.native_weights import StackWeights
from rtm_kernels.recursion.tape import why_not_program
from tests.recursion.support import Recorder, assert_within_budget, random_state, small_stacks

LENGTH, WIDTH, INNER = 7, 20, (12, 24)
NEW = Program(
    "a model of tomorrow",
    (
        Step("plan", (INPUT, INPUT), ("memory",), stack="think"),
        Step("memory", ("memory", "plan", "memory"), (INPUT, "plan", "draft"), stack="recall"),
        Step("draft", ("plan",), stack="write"),
        Step("plan", ("draft", "plan"), ("draft",) * 8, stack="recall"),
        Step("answer", ("memory",), ("plan", "draft"), stack="write"),
        Step("memory", ("answer",), stack="think"),
    ),
    output="answer",
)
"""Four latents of which two are carried, an output written once, eight terms in a sum, three stacks out of order."""

PROGRAMS = [
    (NEW, "sequence"),
    (NEW, "hidden"),
    (programs.trm(1, 2), "sequence"),
    (programs.trm_singlez(1, 1), "sequence"),
    (programs.trm_hier6(1, 2), "sequence"),
    (programs.hrm(1, 1), "sequence"),
    (programs.rsm(1, 1), "hidden"),
    (programs.rins(2), "sequence"),
    (programs.rtm(2), "sequence"),
    (programs.averaged(programs.rtm(2), 0.25), "sequence"),
    (programs.transformer(), "sequence"),
]

Run = Callable[[Program, Mapping[str, Tensor], Tensor, Mapping[str, nn.Module]], dict[str, Tensor]]


def by_triton(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    before = launches.total()
    values = reference.run(program, latents, x, fused.stacks_of(stacks))
    assert launches.total() > before or not len(program)
    return values


def by_graph(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """The fused ops replayed: by CUDA graphs on a GPU, elsewhere by a recorder that behaves as they do."""
    ours = fused.stacks_of(stacks)

    @torch.no_grad()
    def step(inputs: Tensors) -> Tensors:
        return reference.run(program, {n: t for n, t in inputs.items() if n != INPUT}, inputs[INPUT], ours)

    capture = None if x.is_cuda else Recorder()
    return GraphRunner(step, max_batch=len(x), buckets=(len(x),), capture=capture)({**latents, INPUT: x})


def by_persistent(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    from rtm_kernels.recursion.persistent.executor import PersistentExecutor, why_not

    reason = why_not(program, stacks, x.device, x.dtype, x.shape[1])
    if reason is not None:
        pytest.skip(reason)
    if len(program) == 0:
        return dict(latents)
    before = launches.total()
    found = PersistentExecutor(program, stacks).run(latents, x).latents
    assert launches.total() == before + 1, "one launch for the whole program"
    return found


def by_native(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    reason = native.why_not() or why_not_program(program)
    if reason is not None or x.is_cuda:
        pytest.skip(reason or "it runs on the CPU")
    weights = {name: StackWeights.from_module(stack) for name, stack in stacks.items()}
    return native.NativeExecutor(program, weights).run(latents, x)


EXECUTORS: dict[str, Run] = {
    "triton": by_triton, "persistent": by_persistent, "graph": by_graph, "native": by_native
}  # fmt: skip


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_no_executor_refuses_the_new_program(norm_axis: str, device: torch.device) -> None:
    """So that none of the cases below that it is in is skipped for what the program is."""
    pytest.importorskip("triton")
    from rtm_kernels.recursion.persistent import executor

    stacks = small_stacks(NEW.stacks, LENGTH, WIDTH, INNER, norm_axis)
    assert executor.why_not(NEW, stacks, device, torch.float32, LENGTH) is None
    assert fused.why_not(device, torch.float32) is None and why_not_program(NEW) is None


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize(("program", "norm_axis"), PROGRAMS, ids=lambda p: getattr(p, "name", str(p)))
def test_every_prefix_is_within_the_budget(program: Program, norm_axis: str, name: str, device: torch.device) -> None:
    if name in ("triton", "graph") and (reason := fused.why_not(device, torch.float32)) is not None:
        pytest.skip(reason)
    stacks = {
        key: stack.to(device) for key, stack in small_stacks(program.stacks, LENGTH, WIDTH, INNER, norm_axis).items()
    }
    latents, x = random_state(program, 2, LENGTH, WIDTH)
    latents, x = {key: t.to(device) for key, t in latents.items()}, x.to(device)
    with torch.no_grad():
        # a recorder runs the launches of `triton` five times: here the whole program, on a GPU every prefix
        whole = name == "graph" and device.type == "cpu"
        for n in range(len(program) if whole else 0, len(program) + 1):
            got = EXECUTORS[name](program[:n], latents, x, stacks)
            assert_within_budget(got, program[:n], latents, x, stacks)
