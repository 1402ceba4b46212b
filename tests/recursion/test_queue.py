"""Halting on the device: who leaves, enters and moves up, and that none of it changes a sample's result."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
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
from rtm_kernels.recursion.queue.runner import HaltingQueue
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


def simulate(owner: list[int], alive: list[bool], waiting: list[int]) -> tuple[list[int], list[int]]:
    """Owners after an exchange and the samples that left, slot by slot, in plain Python."""
    left = [o for o, goes_on in zip(owner, alive, strict=True) if o >= 0 and not goes_on]
    after, line = [], iter(waiting)
    for o, goes_on in zip(owner, alive, strict=True):
        if o >= 0 and goes_on:
            after.append(o)
        elif (entering := next(line, None)) is not None:
            after.append(entering)
    return after + [-1] * (len(owner) - len(after)), left


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_every_sample_enters_once_and_leaves_once_with_its_own_row(impl: str, device: torch.device) -> None:
    how, draw = implementation(impl), random.Random(0)
    for slots, total in ((1, 3), (5, 0), (7, 12)):
        schedule = Schedule.empty(slots, max(total, 1), device)
        rows, fresh = torch.zeros(slots, 3, device=device), torch.arange(3.0 * total, device=device).view(total, 3)
        results = torch.full_like(fresh, torch.nan)
        count = torch.full((slots, 1), 7, dtype=torch.int32, device=device)
        moved = [Moved(rows, fresh, results), Moved(count, torch.zeros_like(count[:1]))]
        line = draw.sample(range(total), total)
        schedule.floor.fill_(2)
        schedule.wait(line[: total // 2])
        owner, entered, seen = [-1] * slots, 0, list[int]()
        for turn in range(2 * total + 2):
            if turn == 1:  # more have come; those that wait still are handed over again
                entered += int(schedule.line[0])
                schedule.wait(line[entered:])
            alive = [draw.random() < 0.7 for _ in range(slots)] if turn < 2 * total else [False] * slots
            waiting = line[: total // 2] if turn == 0 else line[entered:]
            want, left = simulate(owner, alive, waiting[int(schedule.line[0]) :])
            how.plan(schedule, torch.tensor(alive, device=device))
            how.carry_out(schedule, moved)
            owner, counts = schedule.owner.tolist(), schedule.counts.tolist()
            active = sum(o >= 0 for o in want)
            assert owner == want and bool(schedule.more) == (active > 2)
            seen += left
            assert counts[ACTIVE:] == [active, len(seen), len(waiting) - int(schedule.line[0])]
            assert torch.equal(rows[:active], fresh[owner[:active]]), "a row did not move with its sample"
            assert torch.equal(results[: len(seen)], fresh[seen]), "results follow each other as samples finish"
            count[:active] += 1
        assert sorted(seen) == list(range(total))


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


@dataclass(frozen=True)
class Halted:
    """How N samples ended: the output latent [N, L, D], their halting state [N, U], and their last logits [N, U, 2]."""

    output: Tensor
    state: HaltingState
    logits: Tensor


class Halting:
    """ACT steps of `act_step_` on a queue."""

    def __init__(
        self, stacks: Any, head: HaltingHead, initial: dict[str, Tensor], *, slots: int, capacity: int, **options: Any
    ) -> None:
        like = next(iter(initial.values()))
        names = dict.fromkeys((*PROGRAM.latents, *initial))
        fresh = {name: initial.get(name, torch.zeros_like(like))[None].clone() for name in names}
        units, self.capacity = head.units(LENGTH), capacity
        self.stacks, self.head, self.impl = stacks, head, options.get("impl", "auto")
        self.latents = {name: t.repeat(slots, 1, 1) for name, t in fresh.items()}
        self.x, self.embedded = (like.new_zeros(n, *like.shape) for n in (slots, capacity))
        self.output = like.new_zeros(capacity, *like.shape)
        self.state, new, self.result = (initial_state(n, units, like.device) for n in (slots, 1, capacity))
        self.logits, self.last = (torch.zeros(n, units, 2, device=like.device) for n in (slots, capacity))
        self.number, self.numbers = (
            torch.zeros(n, 1, dtype=torch.int32, device=like.device) for n in (slots, capacity)
        )
        every = torch.arange(capacity, dtype=torch.int32, device=like.device)[:, None]
        moved = [Moved(t, fresh[n], self.output if n == PROGRAM.output else None) for n, t in self.latents.items()]
        moved += [Moved(self.x, self.embedded), Moved(self.logits, torch.zeros_like(self.last[:1]), self.last)]
        moved += [Moved(*(getattr(state, f.name) for state in (self.state, new, self.result))) for f in STATE]
        moved.append(Moved(self.number, every, self.numbers))
        alive = torch.zeros(slots, dtype=torch.bool, device=like.device)
        self.queue = HaltingQueue(
            [self.step], alive, moved, capacity=capacity, limit=capacity * head.max_steps, **{"impl": "auto"} | options
        )

    def step(self, n: int) -> None:
        state = HaltingState(**{f.name: getattr(self.state, f.name)[:n] for f in STATE})
        latents = {name: t[:n] for name, t in self.latents.items()}
        act_step_(PROGRAM, self.stacks, self.head, latents, self.x[:n], state, self.logits[:n], self.impl)
        self.queue.alive[:n].copy_(state.active_samples)

    def run(self, x: Tensor) -> Halted:
        """Let every sample of x [N, L, D] run until it halts."""
        order, ended = list[Tensor](), list[dict[str, Tensor]]()
        buckets, results = self.queue.buckets, {"output": self.output, "logits": self.last, **vars(self.result)}
        with self.queue.exclusive():
            self.embedded[: len(x)].copy_(x)
            self.queue.schedule.wait(range(len(x)))
            self.queue.exchange()
            active = self.queue.counts().active
            while active:
                found = self.queue.launch(active, max(b for b in (0, *buckets) if b < active))
                active, n = found.active, found.finished
                order.append(self.numbers[:n, 0].clone())
                rows = {
                    "output": self.output,
                    "logits": self.last,
                    **{f.name: getattr(self.result, f.name) for f in STATE},
                }
                ended.append({name: t[:n].clone() for name, t in rows.items()})
        back = torch.argsort(torch.cat([self.numbers[:0, 0], *order]))
        whole = {name: torch.cat([t[:0], *(e[name] for e in ended)])[back] for name, t in results.items()}
        return Halted(whole.pop("output"), logits=whole.pop("logits"), state=HaltingState(**whole))


STATE = fields(HaltingState)


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
    state = HaltingState(**{f.name: torch.cat([getattr(s, f.name) for _, s, _ in ended]) for f in STATE})
    return Halted(torch.cat([e[0] for e in ended]), state, torch.cat([e[2] for e in ended]))


def halted_bits(halted: Halted) -> dict[str, bytes]:
    state = {f.name: getattr(halted.state, f.name) for f in STATE}
    return bits({"output": halted.output, "logits": halted.logits, **state})


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; the test below runs on the GPU")
@pytest.mark.parametrize(("policy", "pool"), [("q", "first"), ("settle", "first"), ("cumulative_token", "token")])
def test_result_and_halting_step_are_those_of_running_alone(policy: str, pool: str) -> None:
    stacks, head = triton_stacks(), make_head(policy, pool)
    initial, x = samples(6)
    halting = Halting(stacks, head, initial, slots=4, capacity=9, impl="triton", buckets=(1, 2, 4), capture=Recorder())
    got, want = halting.run(x), alone(stacks, head, initial, x)
    assert halted_bits(got) == halted_bits(want)
    assert len(set(want.state.sample_steps.tolist())) > 1, "the case must halt samples at different steps"
    taken = list(halting.queue.taken)
    assert taken == sorted(taken, reverse=True) and taken[-1] < halting.queue.buckets[-1]
    again = halting.run(x[[4, 1]])
    assert bits({"y": again.output}) == bits({"y": want.output[[4, 1]]}), "a run leaves nothing behind"
    assert halting.queue.taken[len(taken)] == 2 and halting.run(x[:0]).output.shape == (0, LENGTH, WIDTH)


def test_a_sample_that_is_not_finite_keeps_to_itself() -> None:
    head, stacks = make_head("q"), small_stacks(PROGRAM.stacks, LENGTH, WIDTH)
    initial, x = samples(5)
    halting = Halting(stacks, head, initial, slots=2, capacity=5, buckets=(2,), capture=Recorder())
    clean = halting.run(x)
    x[1] = torch.nan
    poisoned = halting.run(x)
    for sample in (0, 2, 3, 4):
        assert torch.equal(poisoned.output[sample], clean.output[sample])
        assert poisoned.state.steps[sample] == clean.state.steps[sample]
    assert poisoned.state.steps[1] == head.max_steps and poisoned.output[1].isnan().all()


class TestRefusals:
    def make(self, **changes: Any) -> HaltingQueue:
        options = {"capacity": 3, "buckets": (1, 2), "capture": Recorder()} | changes
        return HaltingQueue(
            [lambda n: None] * options.pop("stages", 1), torch.zeros(2, dtype=torch.bool), [], **options
        )

    def test_buckets_beside_the_slots(self) -> None:
        with pytest.raises(InputError, match=r"buckets=\(1, 4\) is not allowed: up to the number of slots, 2"):
            self.make(buckets=(1, 4))

    def test_no_room(self) -> None:
        with pytest.raises(InputError, match="capacity=0"):
            self.make(capacity=0)

    def test_more_than_a_bucket_holds(self) -> None:
        queue = self.make()
        with queue.exclusive(), pytest.raises(InputError, match="batch=3"):
            queue.launch(3)

    def test_a_host_that_takes_part_in_a_loop_on_the_device(self) -> None:
        with pytest.raises(InputError, match="loop='while' is not allowed: poll where the host takes part"):
            self.make(loop="while", stages=2)

    def test_while_with_another_recorder(self) -> None:
        queue = self.make(loop="while")
        with queue.exclusive(), pytest.raises(InputError, match="it nests CUDA graphs"):
            queue.launch(1)

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
    halting = Halting(stacks, head, initial, slots=16, capacity=128, buckets=(1, 2, 4, 8, 16), loop=loop)
    for _ in range(3):
        assert halted_bits(halting.run(x)) == want
