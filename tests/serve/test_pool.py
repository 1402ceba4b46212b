"""The queue, and workers that end in the middle of their work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rtm_kernels.engine import Solver
from rtm_kernels.serve.jobs import Job
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics
from rtm_kernels.serve.pool import Pool
from rtm_kernels.serve.refusal import Refused
from tests.engine.fakes import TASK, ScriptedExecutor, model
from tests.serve.support import SETUP, SLOTS, WAIT, Workers


def run(workers: Workers, test: Callable[[Pool], Awaitable[None]], **limits: float) -> None:
    """`test` with a pool that has started."""

    async def main() -> None:
        pool = Pool(SETUP, Limits(**limits), Metrics())  # type: ignore[arg-type]
        await pool.start()
        try:
            await asyncio.wait_for(test(pool), WAIT)
        finally:
            for worker in workers:
                worker.gate(10_000)
            await pool.stop()

    asyncio.run(main())


async def collect(pool: Pool, job: Job) -> dict[int, dict[str, Any]]:
    return {index: solution async for index, solution in pool.outcomes(job)}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def expected(puzzles: list[str]) -> list[tuple[Any, ...]]:
    solver = Solver(model(), task=TASK, max_steps=8)
    solver.executor = ScriptedExecutor(solver.model)
    return [(s.answer, s.status, s.steps) for s in solver.solve(puzzles)]


def test_a_worker_that_dies_loses_nothing(workers: Workers) -> None:
    puzzles = [f"{a}{b}0{a}" for a in range(1, 7) for b in range(6)]

    async def test(pool: Pool) -> None:
        for stop in (1, 2):
            workers[-1].hold()
            task = asyncio.create_task(collect(pool, pool.submit("reverse", puzzles, 8, 30)))
            await until(lambda: pool._queues["reverse"].running >= SLOTS - 2)
            workers[-1].gate(stop)  # some are solved, some are in slots, some wait
            await asyncio.sleep(0.05)
            pool.kill_worker("a test")
            found = await task
            rows = [(found[i]["answer"], found[i]["status"], found[i]["steps"]) for i in range(len(puzzles))]
            assert rows == expected(puzzles)
        assert len(workers) == 3 and pool.metrics.restarts._value.get() == 2
        await pool.probe()

    run(workers, test)


def test_a_puzzle_that_ends_every_worker_is_refused(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        workers.held = True
        workers[-1].hold()
        task = asyncio.create_task(collect(pool, pool.submit("reverse", ["7000"], 8, 30)))
        for number in range(1, 4):
            await until(lambda number=number: len(workers) == number and pool._queues["reverse"].running == 1)
            workers.held = number < 3
            pool.kill_worker("a test")
        with pytest.raises(Refused, match="kept failing") as refused:
            await task
        assert (refused.value.status, refused.value.code) == (503, "worker_failed")
        assert (await collect(pool, pool.submit("reverse", ["1000"], 8, 30)))[0]["answer"] == "0001"

    run(workers, test)


def test_a_stuck_worker_is_replaced_and_health_says_so_meanwhile(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        workers[-1].hold()
        with pytest.raises(Refused, match="did not answer in time"):
            await collect(pool, pool.submit("reverse", ["1000"], 8, 0.1))
        await until(lambda: len(workers) == 2 and pool._worker is not None)
        await pool.probe()
        workers[-1].hold()
        pool._healthy_at = -10.0
        with pytest.raises(Refused, match="golden puzzle was not solved in time"):
            await pool.probe()

    run(workers, test, grace=0.2, probe=2.0)


def test_the_first_golden_puzzle_has_more_time_than_a_probe(workers: Workers) -> None:
    """A machine that is busy when the server starts is no reason not to start."""

    async def test(pool: Pool) -> None:
        assert pool._golden["reverse"][:3] == ("0000", "verified", 1)

    workers.held = True
    opening = threading.Timer(0.5, lambda: workers[0].gate(100))
    opening.start()
    run(workers, test, probe=0.01)
    opening.join()


def test_a_front_that_was_stopped_itself_does_not_blame_the_worker(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        workers[0].hold()
        job = pool.submit("reverse", ["1000"], 8, 30)
        await until(lambda: len(job.running) == 1)
        job.expires -= 100  # as if nothing had run for long
        pool._give_up(job)
        workers[0].gate(2)
        assert (await collect(pool, job))[0]["answer"] == "0001" and len(workers) == 1

    run(workers, test)


def test_health_notices_other_bits(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        assert pool._golden["reverse"][:3] == ("0000", "verified", 1)
        pool._golden["reverse"] = ("0001", *pool._golden["reverse"][1:])
        pool._healthy_at = -10.0
        with pytest.raises(Refused, match="not solved as before"):
            await pool.probe()
        await until(lambda: len(workers) == 2)

    run(workers, test)


def test_a_large_request_delays_another_by_one_step(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        executor = workers[0].executors["reverse"]
        workers[0].hold()
        large = asyncio.create_task(collect(pool, pool.submit("reverse", ["7000"] * 64, 8, 30)))
        await until(lambda: len(executor.batches) > 1 and pool._queues["reverse"].running == SLOTS - 2)
        workers[0].gate(1)
        await asyncio.sleep(0.05)
        begun = len(executor.batches)  # the step that runs, and is held, while the other request arrives
        small = asyncio.create_task(collect(pool, pool.submit("reverse", ["1111"], 8, 30)))
        await until(lambda: pool._queues["reverse"].running == SLOTS - 1)
        await asyncio.sleep(0.05)
        workers[0].gate(1)
        await until(lambda: len(executor.batches) > begun)
        assert "1111" in executor.batches[begun] and len(executor.batches[begun]) == SLOTS - 1
        workers[0].gate(1)
        assert (await small)[0]["answer"] == "1111" and not large.done()
        workers[0].gate(100)
        assert len(await large) == 64

    run(workers, test)


def test_leaving_early_withdraws_the_rest(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        workers[0].hold()
        job = pool.submit("reverse", ["1000"] + ["7000"] * 40, 8, 30)
        workers[0].gate(2)
        outcomes = pool.outcomes(job)
        assert (await anext(outcomes))[1]["answer"] == "0001"
        await outcomes.aclose()
        assert (pool.waiting, pool._queues["reverse"].running, pool._worker and pool._worker.running) == (0, 0, {})
        workers[0].gate(1000)  # a step of what was withdrawn may still be on its way
        assert (await collect(pool, pool.submit("reverse", ["1000"], 8, 30)))[0]["answer"] == "0001"

    run(workers, test)


def test_draining_answers_what_it_can_and_refuses_the_rest(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        workers[0].hold()
        soon, never = (asyncio.create_task(collect(pool, pool.submit("reverse", [p], 8, 30))) for p in ("1000", "7000"))
        await until(lambda: pool._queues["reverse"].running == 2)
        pool.drain()
        with pytest.raises(Refused, match="shutting down"):
            pool.submit("reverse", ["1000"], 8, 30)
        workers[0].gate(2)
        assert (await soon)[0]["answer"] == "0001"
        with pytest.raises(Refused) as refused:
            await never
        assert (refused.value.code, refused.value.retry_after) == ("draining", 5)

    run(workers, test, drain=0.5)


def test_the_queue_takes_all_puzzles_of_a_request_or_none(workers: Workers) -> None:
    async def test(pool: Pool) -> None:
        workers[0].hold()
        free = SLOTS - 2
        held = pool.submit("reverse", ["1000"] * (free + 10), 8, 30)
        assert pool.waiting == 10
        with pytest.raises(Refused, match="10 puzzles are waiting, of at most 20"):
            pool.submit("reverse", ["1000"] * 11, 8, 30)
        pool.submit("reverse", ["1000"] * 10, 8, 30)
        assert len(held.running) == free

    run(workers, test, queued=20)
