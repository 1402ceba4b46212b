"""The exchange of samples between ACT steps: who leaves, enters and moves up, with its own row."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from rtm_kernels.errors import InputError
from rtm_kernels.recursion.queue import schedule as by_torch
from rtm_kernels.recursion.queue.runner import HaltingQueue
from rtm_kernels.recursion.queue.schedule import ACTIVE, Moved, Schedule
from tests.recursion.support import Recorder


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
