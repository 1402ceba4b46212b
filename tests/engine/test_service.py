from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout

import pytest
from torch import Tensor

from rtm_kernels.engine import Closed, Overloaded, Rollouts, Service, Solver
from rtm_kernels.engine.executor import ActStep
from rtm_kernels.engine.service import finished
from rtm_kernels.errors import InputError
from tests.engine.fakes import TASK, ScriptedExecutor, model

WAIT = 60.0


class GatedExecutor(ScriptedExecutor):
    """Plays the script, one step for each time the test opens the gate, and remembers who was in each batch."""

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver.model)
        self.gate, self.stepped = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        tokens = (x[..., 0] / x.shape[-1] ** 0.5).round().long().numpy()
        self.batches.append([TASK.decode(row) for row in tokens])
        self.stepped.release()
        assert self.gate.acquire(timeout=WAIT)
        return super().step(latents, x)

    def open(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.gate.release()

    def wait(self) -> None:
        """Until the next step has begun."""
        assert self.stepped.acquire(timeout=WAIT)


def make(batch_size: int = 1, **options: object) -> tuple[Solver, GatedExecutor]:
    solver = Solver(model(), task=TASK, batch_size=batch_size, **options)  # type: ignore[arg-type]
    gated = GatedExecutor(solver)
    solver.executor = gated
    return solver, gated


@pytest.fixture
def gated() -> Iterator[tuple[Service, GatedExecutor]]:
    solver, executor = make()
    service = Service(solver, max_queued=3)
    yield service, executor
    executor.open(10_000)
    service.close()


def test_the_highest_priority_goes_first_then_the_earliest(gated: tuple[Service, GatedExecutor]) -> None:
    service, executor = gated
    futures = [service.submit("1000")]
    executor.wait()
    futures += [service.submit(p, priority=priority) for p, priority in (("1001", 0), ("1002", 5), ("1003", 0))]
    executor.open(4)
    assert [f.result(WAIT).status for f in futures] == ["verified"] * 4
    assert executor.batches == [["1000"], ["1002"], ["1001"], ["1003"]]


def test_a_full_queue_refuses_a_call_as_a_whole(gated: tuple[Service, GatedExecutor]) -> None:
    service, executor = gated
    running = service.submit("2000")
    executor.wait()
    waiting = service.submit_all(["1000", "1001"])
    with pytest.raises(Overloaded, match="2 puzzles are waiting, of at most 3"):
        service.submit_all(["1003", "1004"])
    assert (service.queued, service.running) == (2, 1)
    waiting += [service.submit("1002"), service.submit("1005", priority=1)]  # one that may not be refused
    with pytest.raises(Overloaded):
        service.submit("1006")
    executor.open(10)
    assert [f.result(WAIT).answer for f in (running, *waiting)] == ["0002", "0001", "1001", "2001", "5001"]
    assert executor.batches[2] == ["1005"]


def test_calls_take_turns(gated: tuple[Service, GatedExecutor]) -> None:
    """The first puzzle of a new call goes before the later ones of a call that waits, but calls do not starve."""
    service, executor = gated
    futures = service.submit_all(["1000", "1001", "1002"])
    executor.wait()
    futures += service.submit_all(["1003"])
    executor.open()
    executor.wait()
    futures += service.submit_all(["1004"])
    executor.open(10)
    assert all(f.result(WAIT).status == "verified" for f in futures)
    assert executor.batches == [["1000"], ["1003"], ["1004"], ["1001"], ["1002"]]


def test_cancelling_frees_the_slot(gated: tuple[Service, GatedExecutor]) -> None:
    service, executor = gated
    endless, queued, following = (service.submit(p) for p in ("7000", "1001", "1002"))
    executor.wait()
    assert endless.cancel() and queued.cancel()
    executor.open(2)
    assert following.result(WAIT).status == "verified"
    assert executor.batches == [["7000"], ["1002"]]
    with pytest.raises(CancelledError):
        endless.result(0)
    assert (service.queued, service.running) == (0, 0)


def test_a_deadline_returns_the_best_answer_so_far(gated: tuple[Service, GatedExecutor]) -> None:
    service, executor = gated
    started = service.submit("7000", deadline=0.2)
    never_started = service.submit("7001", deadline=0.2)
    executor.wait()
    with pytest.raises(FutureTimeout):
        started.result(0.3)
    executor.open()
    first, second = started.result(WAIT), never_started.result(WAIT)
    assert (first.status, first.reason, first.answer, first.steps) == ("unverified", "deadline", "1111", 1)
    assert (second.status, second.reason, second.answer, second.steps) == ("unverified", "deadline", None, 0)


def test_max_steps_of_a_request_lowers_the_cap(gated: tuple[Service, GatedExecutor]) -> None:
    service, executor = gated
    executor.open(100)
    assert service.submit("7000", max_steps=3).result(WAIT).steps == 3
    assert service.submit("7000", max_steps=300).result(WAIT).steps == 7


def test_invalid_puzzles_and_arguments(gated: tuple[Service, GatedExecutor]) -> None:
    service, _ = gated
    assert service.submit("x").result(0).status == "invalid"
    for options in ({"solver": "nope"}, {"max_steps": 0}, {"deadline": 0.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            service.submit("1000", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_queued"):
        Service(make()[0], max_queued=0)


def test_answers_do_not_depend_on_arrival() -> None:
    puzzles = [f"{a}{b}0{c}" for a in range(1, 8) for b in (0, 3) for c in (0, 5, 7)]
    expected = {p: Solver.solve(make_plain(), [p])[0] for p in puzzles}
    for seed in range(3):
        order = random.Random(seed).sample(puzzles, len(puzzles))
        with Service(make_plain(batch_size=5)) as service:
            futures = {p: service.submit(p, priority=int(p) % 3) for p in order}
            for puzzle, future in futures.items():
                got, want = future.result(WAIT), expected[puzzle]
                assert (got.answer, got.status, got.steps) == (want.answer, want.status, want.steps)


def make_plain(batch_size: int = 3, **options: object) -> Solver:
    solver = Solver(model(), task=TASK, batch_size=batch_size, **options)  # type: ignore[arg-type]
    solver.executor = ScriptedExecutor(solver.model)
    return solver


def test_several_solvers_take_turns() -> None:
    with Service({"short": make_plain(max_steps=2), "long": make_plain(max_steps=6)}) as service:
        with pytest.raises(InputError, match="solver"):
            service.submit("7000")
        futures = {n: [service.submit("7000", solver=n) for _ in range(7)] for n in ("short", "long")}
        assert {n: {f.result(WAIT).steps for f in fs} for n, fs in futures.items()} == {"short": {2}, "long": {6}}
        assert service.queued == service.running == 0


def test_rollouts_are_served_and_evicted_as_one_puzzle() -> None:
    with Service(make_plain(rollouts=Rollouts(4, noise=0.0), max_steps=3)) as service:
        solution = service.submit("7000").result(WAIT)
        assert (solution.status, solution.total_steps) == ("unverified", 12)
    solver, executor = make(batch_size=2, rollouts=Rollouts(4, noise=0.0))
    with Service(solver) as service:
        late = service.submit("7000", deadline=0.2)
        executor.wait()
        with pytest.raises(FutureTimeout):
            late.result(0.3)
        executor.open(100)
        assert late.result(WAIT).reason == "deadline"
        assert service.submit("1000").result(WAIT).status == "verified"


def test_close_drains_or_cancels() -> None:
    solver, executor = make()
    service = Service(solver)
    futures = [service.submit(p) for p in ("1000", "1001")]
    executor.open(100)
    service.close()
    assert [f.result(0).status for f in futures] == ["verified"] * 2
    with pytest.raises(Closed, match="closed"):
        service.submit("1000")
    solver, executor = make()
    service = Service(solver)
    futures = [service.submit(p) for p in ("7000", "1001")]
    executor.wait()
    executor.open(100)
    service.close(drain=False)
    assert all(f.cancelled() for f in futures)


def test_a_failing_executor_fails_every_puzzle_instead_of_hanging() -> None:
    solver = make_plain()

    def broken(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        raise RuntimeError("device lost")

    solver.executor.step = broken  # type: ignore[method-assign]
    service = Service(solver)
    with pytest.raises(Closed, match="the service failed: device lost"):
        service.submit("1000").result(WAIT)
    with pytest.raises(Closed, match="device lost"):
        service.submit("1000")
    service.close()


def test_async_solve_and_cancel() -> None:
    async def main() -> None:
        solver, executor = make(batch_size=2)
        service = Service(solver)
        task = asyncio.create_task(service.solve("7000"))
        while not executor.batches:
            await asyncio.sleep(0.01)
        task.cancel()
        executor.open(100)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await service.solve("2000")).answer == "0002"
        found = await service.solve_all(["4000", "x", "2000"])
        assert [s.status for s in found] == ["verified", "invalid", "verified"]
        pairs = finished(service.submit_all(["4000", "x", "7007"]))
        assert sorted([index async for index, _ in pairs]) == [0, 1, 2]
        pairs = finished(service.submit_all(["7000", "x"]))
        assert (await anext(pairs))[0] == 1
        await pairs.aclose()
        assert (service.queued, service.running) == (0, 0)
        await asyncio.to_thread(service.close)

    asyncio.run(main())
