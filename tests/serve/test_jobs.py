"""Whose puzzle gets the next slot."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from rtm_kernels.serve.jobs import FairQueue, Job, Ticket

NUMBERS = count()


def job(queue: FairQueue, puzzles: int, priority: int = 0) -> Job:
    made = Job("m", 4, 1e9, priority)
    made.add([str(i) for i in range(puzzles)])
    queue.jobs.append(made)
    return made


def fill(queue: FairQueue) -> list[Ticket]:
    taken = []
    for ticket in queue.take():
        ticket.job.running[next(NUMBERS)] = ticket
        taken.append(ticket)
    return taken


def test_a_large_request_leaves_room_and_newcomers_find_it() -> None:
    queue = FairQueue(16)
    large = job(queue, 64)
    assert len(fill(queue)) == 14 and queue.reserve == 2 and large.unfinished == 64
    for _ in range(2):
        newcomer = job(queue, 5)
        assert [ticket.job for ticket in fill(queue)] == [newcomer]
    late = job(queue, 1)
    assert fill(queue) == []
    large.running.pop(next(iter(large.running)))
    assert [ticket.job for ticket in fill(queue)] == [late]


def test_slots_are_shared_evenly_and_in_order() -> None:
    queue = FairQueue(12)
    jobs = [job(queue, 9) for _ in range(3)]
    taken = fill(queue)
    assert [len(j.running) for j in jobs] == [4, 4, 3]
    assert [t.index for t in taken if t.job is jobs[0]] == [0, 1, 2, 3]


def test_a_probe_never_waits_for_a_slot() -> None:
    queue = FairQueue(1)
    job(queue, 3)
    assert len(fill(queue)) == 1
    probe = job(queue, 1, priority=1)
    assert [ticket.job for ticket in fill(queue)] == [probe]


@given(st.integers(1, 40), st.lists(st.integers(1, 64), min_size=1, max_size=12))
def test_never_more_than_the_slots_and_all_get_their_turn(slots: int, sizes: list[int]) -> None:
    queue = FairQueue(slots)
    jobs = [job(queue, size) for size in sizes]
    left = sum(sizes)
    while left:
        fill(queue)
        assert 0 < queue.running <= slots
        busy = max(jobs, key=lambda j: len(j.running))
        busy.running.pop(next(iter(busy.running)))
        left -= 1
    assert not queue.waiting and not queue.running
