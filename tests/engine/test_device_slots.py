"""Slots on the device against slots on the host: the same answers after the same steps, whoever else is there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rtm_kernels.engine import HaltingPolicy, Rollouts, Service, Solution, Solver
from rtm_kernels.engine.device_slots import DeviceSlots
from rtm_kernels.engine.executor import Act, executor
from rtm_kernels.engine.rollouts import RolloutSlots
from rtm_kernels.engine.slots import Finished, Sample
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner
from tests.engine import test_twins
from tests.engine.fakes import TASK, ScriptedExecutor, config, model
from tests.recursion.support import Recorder

PUZZLES = ["1000", "5200", "3007", "2140", "6030", "1007", "7000", "4450", "0110", "3777", "2222", "6540"]
POLICIES = ("fixed", "q=0.6", "settle=2", "settle=2/0.3", "cumulative", "q=0.9+settle=3", "verified", "settle+verified")
WAIT = 60.0


def on_device(solver: Solver, made: list[DeviceSlots] | None = None, **options: Any) -> Solver:
    """The solver with its slots on a device that is recorded; those it makes are added to `made`."""
    several = solver.rollouts.count > 1
    guesses = several and solver.rollouts.of(solver.task) == "guesses"
    options = {"impl": "reference", "fixed_shape": solver.batch_invariant, "guesses": guesses} | options

    def slots(observer: None = None, *, ahead: bool = False) -> DeviceSlots | RolloutSlots:
        slots = DeviceSlots(
            solver.model, solver.executor, solver.policy, solver.task.verify_tokens, solver.batch_size,
            ahead=solver.batch_size if ahead and not several else 0, **{"capture": Recorder()} | options,
        )  # fmt: skip
        if made is not None:
            made.append(slots)
        return RolloutSlots(slots, solver.rollouts, solver.task, solver.policy) if several else slots

    solver.slots = slots  # type: ignore[method-assign]
    return solver


def scripted(policy: HaltingPolicy | str = "verified", **options: Any) -> Solver:
    solver = Solver(model(), task=TASK, policy=policy, **options)
    solver.executor = ScriptedExecutor(solver.model)
    return solver


def told(found: Solution | Finished) -> tuple[object, ...]:
    """All that is said of a sample but the time it took."""
    values = dict(vars(found))
    if isinstance(found, Finished):
        values["answer"] = None if found.answer is None else found.answer.tolist()
    return tuple(value for name, value in values.items() if name != "seconds")


@pytest.mark.parametrize("floor", [1, 4])
@pytest.mark.parametrize("text", POLICIES)
def test_every_result_is_that_of_the_host_and_of_solving_alone(text: str, floor: int) -> None:
    alone = {p: scripted(text, min_steps=floor, batch_size=1).solve([p])[0] for p in PUZZLES}
    draw = random.Random(floor)
    for size in (1, 3, 5, 16):
        order = draw.sample(PUZZLES, len(PUZZLES))
        host = scripted(text, min_steps=floor, batch_size=size).solve(order)
        device = on_device(scripted(text, min_steps=floor, batch_size=size)).solve(order)
        assert [told(s) for s in device] == [told(s) for s in host] == [told(alone[p]) for p in order]
    assert len({s.steps for s in alone.values()}) > 1 or text == "fixed"
    assert "non_finite" in {s.status for s in alone.values()}


@pytest.mark.parametrize("policy", ["cumulative_token", "cumulative", "q=0.3+verified"])
@pytest.mark.parametrize("prefix", [0, 16])
def test_a_real_model_halts_where_it_does_on_the_host(policy: str, prefix: int) -> None:
    torch.manual_seed(4)
    reasoner = RecursiveReasoner(config(L_cycles=2, puzzle_emb_ndim=prefix))
    with torch.no_grad():
        reasoner.q_head.weight.normal_(std=1.5)
        reasoner.q_head.bias.fill_(-1.0)

    class Recorded:
        name, batch_invariant = "reference", False

        def __init__(self) -> None:
            self.step = self.recorded = executor("reference", reasoner).step

    found = []
    for place in (lambda solver: solver, on_device):
        solver = Solver(reasoner, task=TASK, policy=policy, max_steps=12, batch_size=4, batch_invariant=True)
        solver.executor = Recorded()
        found.append([told(s) for s in place(solver).solve(PUZZLES)])
    assert found[0] == found[1] and len({steps for _, _, _, _, steps, *_ in found[0]}) > 1


def test_the_bucket_shrinks_with_the_samples_and_with_a_fixed_shape_it_does_not() -> None:
    made: list[DeviceSlots] = []
    on_device(scripted(batch_size=6), made).solve(["1000"] * 9 + ["2000", "3000", "7000"])
    # six leave after a step and six enter, of which three leave after one more; then those of 2, 3 and 7 steps
    assert made[0].buckets_taken == [6, 6, 4, 2, 1, 1, 1, 1]
    on_device(scripted(batch_size=6, batch_invariant=True), made).solve(["1000", "3000"])
    assert made[1].buckets_taken == [6, 6, 6]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("policy", ["verified+q", "settle=2"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_caller_does_it_sees_what_it_sees_on_the_host(seed: int, policy: str, ahead: int) -> None:
    draw, ended, admitted = random.Random(seed), dict[str, dict[int, object]](), 0
    solver = scripted(policy, batch_size=4)
    slots = {
        "host": solver.slots(),
        "device": DeviceSlots(
            solver.model, solver.executor, solver.policy, TASK.verify_tokens, 4, ahead=ahead, impl="reference",
            capture=Recorder(),
        ),
    }  # fmt: skip
    ended = {name: {} for name in slots}
    while admitted < 40 or slots["host"].active:
        act = draw.choice(["admit", "step", "step", "evict", "tighten"] if admitted < 40 else ["step"])
        free, key, cap = slots["host"].free, draw.randrange(admitted + 1), draw.randint(1, 6)
        new = [
            Sample(admitted + i, TASK.encode(draw.choice(PUZZLES)), max_steps=draw.choice([None, 1, 3]))
            for i in range(draw.randint(0, free))
        ]
        for name, each in slots.items():
            if act == "admit":
                each.admit(new)
            elif act == "step":
                ended[name] |= {done.key: told(done) for done in each.step()}
            elif act == "tighten":
                each.tighten(key, cap)
            elif (done := each.evict(key, "deadline")) is not None:
                ended[name][key] = told(done)
        admitted += len(new) if act == "admit" else 0
        assert ended["host"] == ended["device"]
        assert slots["host"].active == slots["device"].active == slots["device"].free * -1 + 4 + ahead
    assert sorted(ended["device"]) == list(range(admitted))


def test_a_sample_that_waits_on_the_device_can_be_taken_out() -> None:
    solver = scripted(batch_size=1)
    slots = DeviceSlots(
        solver.model, solver.executor, solver.policy, TASK.verify_tokens, 1, ahead=2, impl="reference",
        capture=Recorder(),
    )  # fmt: skip
    slots.admit([Sample(i, TASK.encode(p)) for i, p in enumerate(("2000", "7000", "1000"))])
    assert slots.free == 0
    with pytest.raises(InputError, match="samples=1 is not allowed: at most the 0 that are free"):
        slots.admit([Sample(3, TASK.encode("1000"))])
    waited = slots.evict(1, "deadline")
    assert waited is not None and (waited.answer, waited.steps, waited.reason) == (None, 0, "deadline")
    assert slots.evict(1, "deadline") is None
    assert [(d.key, d.steps) for _ in range(3) for d in slots.step()] == [(0, 2), (2, 1)]


def test_the_service_does_not_care() -> None:
    puzzles = [f"{a}{b}0{c}" for a in range(1, 8) for b in (0, 3) for c in (0, 7)]
    alone = {p: scripted(batch_size=1).solve([p])[0] for p in puzzles}
    with Service(on_device(scripted(batch_size=5))) as service:
        futures = {p: service.submit(p, priority=int(p) % 3) for p in random.Random(1).sample(puzzles, len(puzzles))}
        endless, late = service.submit("7000"), service.submit("7001", max_steps=2)
        endless.cancel()
        assert {p: told(f.result(WAIT)) for p, f in futures.items()} == {p: told(s) for p, s in alone.items()}
        assert late.result(WAIT).steps == 2
        assert service.queued == 0


def test_the_highest_priority_enters_the_next_free_slot() -> None:
    solver = on_device(scripted(batch_size=1))
    order: list[str] = []
    with Service(solver) as service:
        blocker = service.submit("7000")
        for text, priority in (("1001", 0), ("1002", 5), ("1003", 0)):
            service.submit(text, priority=priority).add_done_callback(lambda f, text=text: order.append(text))
        assert blocker.result(WAIT).steps == 7
    assert order == ["1002", "1001", "1003"]


class Picky(test_twins.Picky):
    @property
    def recorded(self) -> Act:
        return self.step


def test_rollouts_of_twins_choose_the_same() -> None:
    found = []
    for place in (lambda solver: solver, on_device):
        solver, _ = test_twins.solver(6, batch_size=4)
        solver.executor = Picky()
        found.append([told(s) for s in place(solver).solve(test_twins.puzzles())])
    assert found[0] == found[1] and any(solution[-3] for solution in found[0]), "some other rollout than the first"


def test_what_is_read_ahead_is_one_batch() -> None:
    read: list[str] = []

    def puzzles() -> Iterator[str]:
        for text in ("4000", "1000", "2000", "1000", "1000", "1000"):
            read.append(text)
            yield text

    stream = on_device(scripted(batch_size=2)).stream(puzzles())
    assert read == [] and next(stream)[0] == 1 and len(read) == 4
    assert sorted(index for index, _ in stream) == [0, 2, 3, 4, 5]


def test_what_cannot_halt_on_the_device_says_why() -> None:
    with pytest.raises(BackendUnavailable, match="halting='device' cannot run: the model is on cpu"):
        Solver(model(), task=TASK, halting="device")
    with pytest.raises(InputError, match="halting='moon'"):
        Solver(model(), task=TASK, halting="moon")
    assert Solver(model(), task=TASK, halting="host").why_host() == "halting='host'"
    solver = scripted()
    assert solver.why_host(observed=True) == "an observer sees every step of every sample"
    solver.rollouts = Rollouts(4)
    assert solver.why_host() == "the noise of rollouts is drawn by the host"
    arguments = solver.model, executor("reference", solver.model), solver.policy, TASK.verify_tokens, 2
    with pytest.raises(BackendUnavailable, match="the executor reference cannot be recorded as a graph"):
        DeviceSlots(*arguments, capture=Recorder())
    slots = DeviceSlots(solver.model, solver.executor, *arguments[2:], capture=Recorder(), impl="reference")
    with pytest.raises(InputError, match=r"noise=0\.5 is not allowed"):
        slots.admit([Sample(0, TASK.encode("1000"), noise=0.5)])
    with pytest.raises(
        InputError, match="open_token=1 is not allowed: that of padding in slots that were made without"
    ):
        slots.admit([Sample(0, TASK.encode("1000"), open_token=1)])
    with pytest.raises(InputError, match="loop='while' is not allowed: poll where the host takes part"):
        DeviceSlots(solver.model, solver.executor, *arguments[2:], capture=Recorder(), loop="while")


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["q=0.6", "settle=2", "cumulative_token", "verified"])
@pytest.mark.parametrize("name", ["triton", "graph", "persistent", "auto"])
def test_on_a_gpu_the_device_gives_the_bits_of_the_host(name: str, policy: str) -> None:
    torch.manual_seed(2)
    reasoner = RecursiveReasoner(config(hidden_size=64, L_cycles=3, layers={"L_level": 2}))
    torch.nn.init.normal_(reasoner.q_head.weight)
    puzzles = [f"{a}{b}{a}{b}" for a in range(8) for b in range(8)]
    found = {}
    for halting in ("host", "device"):
        solver = Solver(
            reasoner, task=TASK, executor=name, policy=policy, max_steps=5, batch_size=16, batch_invariant=True,
            halting=halting, device="cuda",
        )  # fmt: skip
        found[halting] = [[told(s) for s in solver.solve(order)] for order in (puzzles, puzzles[::-1], puzzles[:1])]
    assert found["host"] == found["device"] and found["device"][0] == found["device"][1][::-1]
    assert found["device"][2] == found["device"][0][:1]
