"""Halting on the device: who leaves, enters and moves up, and that none of it changes a sample's result."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.halting.reference import HaltingState, initial_state
from rtm_kernels.recursion import conditional, fused
from rtm_kernels.recursion.act_step import act_step_
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.queue import schedule as by_torch
from rtm_kernels.recursion.queue.runner import Halted, HaltingQueue
from rtm_kernels.recursion.queue.schedule import ACTIVE, Moved, Schedule
from tests.recursion.support import Recorder, bits, small_stacks

LENGTH, WIDTH, CPU = 9, 24, torch.device("cpu")
PROGRAM = programs.rtm(1)


def implementation(name: str) -> Any:
    if name == "reference":
        return by_torch
    pytest.importorskip("triton")
    from rtm_kernels.recursion.queue import kernels

    return kernels


def simulate(owner: list[int], alive: list[bool], following: int, total: int) -> tuple[list[int], list[int]]:
    """Owners after an exchange and the samples that left, slot by slot, in plain Python."""
    left = [o for o, goes_on in zip(owner, alive, strict=True) if o >= 0 and not goes_on]
    after = []
    for o, goes_on in zip(owner, alive, strict=True):
        if o >= 0 and goes_on:
            after.append(o)
        elif following < total:
            after.append(following)
            following += 1
    return after + [-1] * (len(owner) - len(after)), left


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_every_sample_enters_once_and_leaves_once_with_its_own_row(impl: str, device: torch.device) -> None:
    how, draw = implementation(impl), random.Random(0)
    for slots, total in ((1, 3), (5, 0), (7, 12)):
        schedule = Schedule.empty(slots + 2, device)
        rows, fresh = torch.zeros(slots + 2, 3, device=device), torch.arange(3.0 * total, device=device).view(total, 3)
        results = torch.full_like(fresh, torch.nan)
        count = torch.full((slots + 2, 1), 7, dtype=torch.int32, device=device)
        moved = [Moved(rows, fresh, results), Moved(count, torch.zeros_like(count[:1]))]
        schedule.start(total)
        owner, seen = [-1] * slots, 0
        for turn in range(2 * total + 2):
            alive = [draw.random() < 0.7 for _ in range(slots)] if turn < 2 * total else [False] * slots
            following = int(schedule.following)
            want, left = simulate(owner, alive, following, total)
            how.plan(schedule, torch.tensor(alive, device=device), 2)
            how.carry_out(schedule, moved)
            owner = schedule.owner[:slots].tolist()
            active = int(schedule.counts[ACTIVE])
            assert owner == want and active == sum(o >= 0 for o in want) and bool(schedule.more) == (active > 2)
            assert torch.equal(rows[:active], fresh[owner[:active]]), "a row did not move with its sample"
            assert torch.equal(results[left], fresh[left])
            seen += len(left)
            count[:active] += 1
        assert seen == total == int(schedule.following) and torch.equal(results, fresh)


def make_head(policy: str, pool: str = "first", max_steps: int = 4) -> HaltingHead:
    weight = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)) * WIDTH**-0.5
    bias = torch.tensor([0.6 if pool == "token" else -0.3, 0.1])
    return HaltingHead(policy, max_steps, weight, bias, pool, tolerance=0.4)


def samples(count: int, device: torch.device = CPU) -> tuple[dict[str, Tensor], Tensor]:
    """Initial latents [L, D], and inputs [N, L, D]."""
    generator = torch.Generator().manual_seed(1)
    initial = {name: torch.randn(LENGTH, WIDTH, generator=generator) for name in PROGRAM.carried}
    x = torch.randn(count, LENGTH, WIDTH, generator=generator)
    return {name: t.to(device) for name, t in initial.items()}, x.to(device)


def triton_stacks(device: torch.device = CPU) -> Any:
    reason = fused.why_not(device, torch.float32)
    if reason is not None:
        pytest.skip(reason)
    stacks = small_stacks(PROGRAM.stacks, LENGTH, WIDTH)
    return fused.stacks_of({name: stack.to(device) for name, stack in stacks.items()})


def alone(stacks: Any, head: HaltingHead, initial: dict[str, Tensor], x: Tensor) -> Halted:
    """Each sample by itself, one ACT step after the other."""
    ended = []
    for sample in x:
        units = head.units(LENGTH)
        latents = {name: initial.get(name, torch.zeros_like(sample))[None].clone() for name in PROGRAM.latents}
        state, logits = initial_state(1, units, x.device), torch.zeros(1, units, 2, device=x.device)
        while state.active.any():
            act_step_(PROGRAM, stacks, head, latents, sample[None], state, logits, "triton")
        ended.append((latents[PROGRAM.output], state, logits))
    state = HaltingState(**{f.name: torch.cat([getattr(s, f.name) for _, s, _ in ended]) for f in fields(HaltingState)})
    return Halted(torch.cat([e[0] for e in ended]), state, torch.cat([e[2] for e in ended]))


def halted_bits(halted: Halted) -> dict[str, bytes]:
    state = {f.name: getattr(halted.state, f.name) for f in fields(HaltingState)}
    return bits({"output": halted.output, "logits": halted.logits, **state})


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; the test below runs on the GPU")
@pytest.mark.parametrize(("policy", "pool"), [("q", "first"), ("settle", "first"), ("cumulative_token", "token")])
def test_result_and_halting_step_are_those_of_running_alone(policy: str, pool: str) -> None:
    stacks, head = triton_stacks(), make_head(policy, pool)
    initial, x = samples(6)
    queue = HaltingQueue(
        PROGRAM, stacks, head, initial, slots=3, capacity=9, impl="triton", buckets=(1, 2, 4), capture=Recorder()
    )
    got, want = queue.run(x), alone(stacks, head, initial, x)
    assert halted_bits(got) == halted_bits(want)
    assert len(set(want.state.sample_steps.tolist())) > 1, "the case must halt samples at different steps"
    assert queue.taken == sorted(queue.taken, reverse=True) and queue.taken[-1] < queue.buckets[-1]
    again = queue.run(x[[4, 1]])
    assert bits({"y": again.output}) == bits({"y": want.output[[4, 1]]}), "a run leaves nothing behind"
    assert queue.taken[0] == 2 and queue.run(x[:0]).output.shape == (0, LENGTH, WIDTH)


def test_a_sample_that_is_not_finite_keeps_to_itself() -> None:
    head, stacks = make_head("q"), small_stacks(PROGRAM.stacks, LENGTH, WIDTH)
    initial, x = samples(5)
    queue = HaltingQueue(PROGRAM, stacks, head, initial, slots=2, capacity=5, buckets=(2,), capture=Recorder())
    clean = queue.run(x)
    x[1] = torch.nan
    poisoned = queue.run(x)
    for sample in (0, 2, 3, 4):
        assert torch.equal(poisoned.output[sample], clean.output[sample])
        assert poisoned.state.steps[sample] == clean.state.steps[sample]
    assert poisoned.state.steps[1] == head.max_steps and poisoned.output[1].isnan().all()


class TestRefusals:
    def make(self, **changes: Any) -> HaltingQueue:
        initial, _ = samples(1)
        arguments = {"slots": 2, "capacity": 3, "capture": Recorder(), "initial": initial, "head": make_head("q")}
        arguments |= changes
        stacks = small_stacks(PROGRAM.stacks, LENGTH, WIDTH)
        return HaltingQueue(PROGRAM, stacks, arguments.pop("head"), arguments.pop("initial"), **arguments)

    def test_more_samples_than_it_holds(self) -> None:
        with pytest.raises(InputError, match="N=4 is not allowed: at most capacity=3"):
            self.make().run(samples(4)[1])

    def test_another_shape(self) -> None:
        with pytest.raises(InputError, match=r"x=\(1, 9, 5\) is not allowed: \[N, L, D\] = \[N, 9, 24\]"):
            self.make().run(torch.zeros(1, 9, 5))

    def test_a_minimum_for_each_slot(self) -> None:
        head = HaltingHead("fixed", 4, min_steps=torch.tensor([1, 2]))
        with pytest.raises(InputError, match="samples change slots"):
            self.make(head=head)

    def test_a_missing_latent(self) -> None:
        with pytest.raises(InputError, match="z_H is read and not given"):
            self.make(initial={"other": torch.zeros(LENGTH, WIDTH)})

    def test_while_with_another_recorder(self) -> None:
        with pytest.raises(InputError, match="it nests CUDA graphs"):
            self.make(loop="while").run(samples(1)[1])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
    def test_no_gpu(self) -> None:
        with pytest.raises(BackendUnavailable, match="no CUDA device is available"):
            self.make(capture=None)


@pytest.mark.gpu
@pytest.mark.parametrize("loop", ["poll", "while"])
@pytest.mark.parametrize(("policy", "pool"), [("q", "first"), ("settle", "first"), ("cumulative_token", "token")])
def test_on_a_gpu_both_loops_give_the_bits_of_running_alone(policy: str, pool: str, loop: str) -> None:
    if loop == "while" and (reason := conditional.why_not()) is not None:
        pytest.skip(reason)
    cuda = torch.device("cuda")
    plain = make_head(policy, pool, max_steps=8)
    assert plain.weight is not None and plain.bias is not None
    head = HaltingHead(policy, 8, plain.weight.to(cuda), plain.bias.to(cuda), pool, tolerance=0.4)
    stacks = triton_stacks(cuda)
    initial, x = samples(100, cuda)
    want = halted_bits(alone(stacks, head, initial, x))
    queue = HaltingQueue(PROGRAM, stacks, head, initial, slots=16, capacity=128, loop=loop)
    for _ in range(3):
        assert halted_bits(queue.run(x)) == want
