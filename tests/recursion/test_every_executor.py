"""Every executor, every program, every prefix: reference = Triton op by op = persistent = C++.

A new model is a new program: `NEW` exists nowhere else, and no executor knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from rtm_kernels.engine import executor as executors
from rtm_kernels.errors import InputError
from rtm_kernels.impl import launches, why_not_triton
from rtm_kernels.program import Program, Step
from rtm_kernels.recursion import native, reference
from rtm_kernels.recursion.tape import MAX_TERMS, encode, why_not_program
from tests.recursion.support import NEW, PROGRAMS, assert_within_budget, random_state, small_stacks

LENGTH, WIDTH, INNER = 7, 20, (12, 24)
State = Mapping[str, Tensor]
Stacks = Mapping[str, nn.Module]
Run = Callable[[Program, State, Tensor, Stacks], dict[str, Tensor]]


def by_triton(program: Program, latents: State, x: Tensor, stacks: Stacks) -> dict[str, Tensor]:
    before = launches.total()
    values = reference.run(program, latents, x, executors.by_triton(stacks))
    assert launches.total() > before or not len(program)
    return values


def by_persistent(program: Program, latents: State, x: Tensor, stacks: Stacks) -> dict[str, Tensor]:
    from rtm_kernels.recursion.persistent.runner import PersistentExecutor, why_not

    reason = why_not(program, stacks, x.device, x.dtype, x.shape[1])
    if reason is not None:
        pytest.skip(reason)
    if len(program) == 0:
        return dict(latents)
    before = launches.total()
    found = PersistentExecutor(program, stacks).run(latents, x)
    assert launches.total() == before + 1, "one launch for the whole program"
    assert found.q is None and (found.change is None) == (program.output not in program.carried)
    return found.latents


def by_native(program: Program, latents: State, x: Tensor, stacks: Stacks) -> dict[str, Tensor]:
    reason = native.why_not() or why_not_program(program)
    if reason is not None or x.is_cuda:
        pytest.skip(reason or "it runs on the CPU")
    return native.NativeExecutor(program, stacks).run(latents, x)


EXECUTORS: dict[str, Run] = {"triton": by_triton, "persistent": by_persistent, "native": by_native}


@pytest.mark.parametrize("kind", ["sequence", "hidden"])
def test_no_executor_refuses_the_new_program(kind: str, device: torch.device) -> None:
    """So that none of the cases below that it is in is skipped for what the program is."""
    pytest.importorskip("triton")
    from rtm_kernels.recursion.persistent import runner

    stacks = small_stacks(NEW.stacks, LENGTH, WIDTH, INNER, kind)
    assert runner.why_not(NEW, stacks, device, torch.float32, LENGTH) is None
    assert why_not_triton(device) is None and why_not_program(NEW) is None


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize(("program", "kind"), PROGRAMS, ids=lambda p: getattr(p, "name", str(p)))
def test_every_prefix_is_within_the_budget(program: Program, kind: str, name: str, device: torch.device) -> None:
    if name == "triton" and (reason := why_not_triton(device)) is not None:
        pytest.skip(reason)
    small = small_stacks(program.stacks, LENGTH, WIDTH, INNER, kind)
    stacks = {key: stack.to(device) for key, stack in small.items()}
    latents, x = random_state(program, 2, LENGTH, WIDTH)
    latents, x = {key: t.to(device) for key, t in latents.items()}, x.to(device)
    with torch.no_grad():
        for n in range(len(program) + 1):
            got = EXECUTORS[name](program[:n], latents, x, stacks)
            assert_within_budget(got, program[:n], latents, x, stacks)


@pytest.mark.parametrize("role", ["state", "inject"])
def test_a_sum_that_no_tape_holds_is_refused_by_name(role: str) -> None:
    fits, long = ({"state": ("y",), role: ("y",) * n} for n in (MAX_TERMS, MAX_TERMS + 1))
    assert why_not_program(Program("p", (Step("y", **fits),), "y")) is None
    with pytest.raises(InputError, match=rf"steps\[1\]\.{role} sums 9 latents, and a tape holds at most 8"):
        encode(Program("p", (Step("y", ("y",)), Step("y", **long)), "y"))
