"""Captured slots against eager ones: the same answers after the same steps, whoever else is there. Then the signal
`cumulative_token` against the halting mixture of training, step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rtm_kernels.engine import HaltingPolicy, Rollouts, Solver, Step
from rtm_kernels.engine.executor import Executor, executor, replayed
from rtm_kernels.engine.samples import Sample
from rtm_kernels.engine.slots import Slots
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.mixture import halting_update, initial_state
from rtm_kernels.ops.halting.reference import halting_logits
from rtm_kernels.program import SEED
from tests.engine.fakes import TASK, captured, config, scripted, told
from tests.recursion.support import Recorder

PUZZLES = ["1000", "5200", "3007", "2140", "6030", "1007", "7000", "4450", "0110", "3777", "2222", "6540"]
POLICIES = ("fixed", "q=0.6", "settle=2", "settle=2/0.3", "cumulative", "q=0.9+settle=3", "verified", "settle+verified")
WAIT = 60.0


def slots_of(solver: Solver, capacity: int, ahead: int = 0, kind: str = "") -> Slots:
    return Slots(
        solver.model, solver.executor, solver.policy, TASK.verify_tokens, capacity, ahead=ahead, kind=kind,
        impl="reference", capture=Recorder(),
    )  # fmt: skip


@pytest.mark.parametrize("floor", [1, 4])
@pytest.mark.parametrize("text", POLICIES)
def test_every_result_is_that_of_solving_alone_eager_or_captured(text: str, floor: int) -> None:
    alone = {p: scripted(text, min_steps=floor, batch_size=1).solve([p])[0] for p in PUZZLES}
    draw = random.Random(floor)
    for size in (1, 5, 16):
        order = draw.sample(PUZZLES, len(PUZZLES))
        for place in (lambda solver: solver, captured):
            found = place(scripted(text, min_steps=floor, batch_size=size)).solve(order)
            assert [told(s) for s in found] == [told(alone[p]) for p in order]
    assert len({s.steps for s in alone.values()}) > 1 or text == "fixed"
    assert "non_finite" in {s.status for s in alone.values()}


@pytest.mark.parametrize("place", [lambda solver: solver, captured], ids=["eager", "captured"])
def test_a_step_that_failed_on_the_device_gives_no_answer(place: Callable[[Solver], Solver]) -> None:
    solver, checks = scripted("q", batch_size=2), list[int]()

    def check() -> None:
        checks.append(1)
        if len(checks) == 2:
            raise BackendUnavailable("the kernel gave up")

    solver.executor.check = check  # type: ignore[method-assign]
    found = place(solver).stream(["0100", "0300"])
    assert next(found)[0] == 0
    with pytest.raises(BackendUnavailable, match="gave up"):
        list(found)


@pytest.mark.parametrize("policy", ["cumulative_token", "cumulative", "q=0.3+verified"])
@pytest.mark.parametrize("prefix", [0, 16])
def test_a_real_model_halts_where_it_does_eagerly(policy: str, prefix: int) -> None:
    model = reasoner(puzzle_emb_ndim=prefix)
    found, step = [], executor("reference", model).step
    for place in (lambda solver: solver, captured):
        solver = Solver(model, task=TASK, policy=policy, max_steps=12, batch_size=4, batch_invariant=True)
        solver.executor = Executor("reference", step, recorded=step)
        found.append([told(s) for s in place(solver).solve(PUZZLES)])
    assert found[0] == found[1] and len({steps for _, _, _, _, steps, *_ in found[0]}) > 1


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("policy", ["verified+q", "settle=2"])
@pytest.mark.parametrize("seed", range(2))
def test_whatever_a_caller_does_it_sees_the_same(seed: int, policy: str, ahead: int) -> None:
    draw, admitted = random.Random(seed), 0
    solver = scripted(policy, batch_size=4)
    slots = {"eager": solver.slots(), "captured": slots_of(solver, 4, ahead)}
    ended: dict[str, dict[int, object]] = {name: {} for name in slots}
    while admitted < 40 or slots["eager"].active:
        act = draw.choice(["admit", "step", "step", "evict", "tighten"] if admitted < 40 else ["step"])
        free, key, cap = slots["eager"].free, draw.randrange(admitted + 1), draw.randint(1, 6)
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
                each.tighten(key, cap)  # type: ignore[union-attr]
            elif (done := each.evict(key, "deadline")) is not None:
                ended[name][key] = told(done)
        admitted += len(new) if act == "admit" else 0
        assert ended["eager"] == ended["captured"]
        assert slots["eager"].active == slots["captured"].active == slots["captured"].free * -1 + 4 + ahead
    assert sorted(ended["captured"]) == list(range(admitted))


def test_a_sample_that_waits_in_device_memory_can_be_taken_out() -> None:
    slots = slots_of(scripted(), 1, ahead=2)
    slots.admit([Sample(i, TASK.encode(p)) for i, p in enumerate(("2000", "7000", "1000"))])
    assert slots.free == 0
    with pytest.raises(InputError, match="samples=1 is not allowed: at most the 0 that are free"):
        slots.admit([Sample(3, TASK.encode("1000"))])
    waited = slots.evict(1, "deadline")
    assert waited is not None and (waited.answer, waited.steps, waited.reason) == (None, 0, "deadline")
    assert slots.evict(1, "deadline") is None
    assert [(d.key, d.steps) for _ in range(3) for d in slots.step()] == [(0, 2), (2, 1)]


@pytest.mark.parametrize(("place", "ahead"), [(lambda solver: solver, 2), (captured, 4)])
def test_a_stream_reads_what_fits_and_one_batch_ahead_where_steps_are_captured(place: Any, ahead: int) -> None:
    read: list[str] = []

    def puzzles() -> Iterator[str]:
        for text in ("4000", "1000", "2000", "1000", "1000", "1000"):
            read.append(text)
            yield text

    stream = place(scripted(batch_size=2)).stream(puzzles())
    assert read == [] and next(stream)[0] == 1 and len(read) == ahead
    assert sorted(index for index, _ in stream) == [0, 2, 3, 4, 5]


def test_an_admission_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for slots in (scripted().slots(), slots_of(scripted(), 2)):
        free, sample = slots.free, Sample(0, TASK.encode("1000"))
        with monkeypatch.context() as patch:
            patch.setattr(RecursiveReasoner, "embed", lambda *_: torch.zeros(7, 7))
            with pytest.raises(RuntimeError):
                slots.admit([sample])
        assert (slots.free, slots.active) == (free, 0)
        slots.admit([sample])
        assert [done.steps for done in slots.step()] == [1]


@pytest.mark.parametrize(("field", "value"), [("noise", 0.5), ("open_token", 1)])
def test_samples_of_another_kind_are_refused(field: str, value: float) -> None:
    for slots in (scripted().slots(), slots_of(scripted(), 2)):
        with pytest.raises(InputError, match=f"{field}={value} is not allowed: .* in slots that were made without"):
            slots.admit([Sample(0, TASK.encode("1000"), **{field: value})])  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["q=0.6", "settle=2", "cumulative_token", "verified"])
@pytest.mark.parametrize("name", ["triton", "graph", "persistent", "auto"])
def test_on_a_gpu_captured_steps_give_the_bits_of_eager_ones(name: str, policy: str) -> None:
    torch.manual_seed(2)
    reasoner = RecursiveReasoner(config(hidden_size=64, L_cycles=3, layers={"L_level": 2}))
    torch.nn.init.normal_(reasoner.q_head.weight)
    solver = Solver(
        reasoner, task=TASK, executor=name, policy=policy, max_steps=5, batch_size=16, batch_invariant=True,
        device="cuda",
    )  # fmt: skip
    puzzles = [f"{a}{b}{a}{b}" for a in range(8) for b in range(8)]
    samples = [Sample(p, TASK.encode(p)) for p in puzzles]
    eager = {done.key: told(done) for done in solver.run(samples, lambda step: None)}
    for order in (samples, samples[::-1], samples[:1]):
        assert {done.key: told(done) for done in solver.run(order)} == {s.key: eager[s.key] for s in order}


TOKENS = ["0123", "7654", "1111", "2053", "6420"]


def test_the_noise_of_a_model_depends_on_the_seed_alone() -> None:
    """EqR draws noise in every step: the same alone, in a batch, captured and by the graph executor; not by a seed."""
    model = reasoner(arch="eqr", noise=0.5, state_ema=0.1)

    def solve(batch_size: int, seed: int = 3, place: Callable[[Solver], Solver] = lambda solver: solver) -> list[Any]:
        solver = Solver(
            model, task=TASK, policy="fixed", max_steps=4, batch_size=batch_size, batch_invariant=True,
            executor="reference", rollouts=Rollouts(1, seed=seed),
        )  # fmt: skip
        solver.executor.recorded = solver.executor.step
        return [(s.input, s.answer, pytest.approx(s.residual, rel=1e-3)) for s in place(solver).solve(PUZZLES)]

    alone = solve(1)
    assert alone == solve(5) == solve(5, place=captured)
    assert alone != solve(1, seed=4)
    latents = {**model.initial_latents(3, torch.arange(3)), SEED: torch.tensor([5, 6, 5])}
    x = torch.ones(3, model.config.latent_len, model.config.hidden_size)
    step = executor("reference", model).step(latents, x)
    graph = replayed(model, capture=Recorder()).step(latents, x)
    for name, latent in step.latents.items():
        torch.testing.assert_close(latent, graph.latents[name])
        assert SEED not in step.latents and not torch.equal(latent[0], latent[1])


def reasoner(**changes: object) -> RecursiveReasoner:
    torch.manual_seed(4)
    model = RecursiveReasoner(config(L_cycles=2, layers={"L_level": 2}, **changes))
    with torch.no_grad():
        model.q_head.weight.normal_(std=1.5)
        model.q_head.bias.fill_(-1.0)
    return model.eval()


def expected(model: RecursiveReasoner, puzzle: str, min_steps: int, max_steps: int) -> tuple[int, list[int]]:
    """Steps of a sample, and its answer: each token as decoded in its last active step."""
    latents = {name: latent.clone() for name, latent in model.initial_latents(1).items()}
    x = model.embed(torch.from_numpy(TASK.encode(puzzle))[None].int(), torch.zeros(1, dtype=torch.int32))
    state = initial_state(1, model.config.latent_len)
    answer = [0] * 4
    while state.active.any():
        active = state.active[0, -4:].tolist()
        with torch.no_grad():
            values, logits, _ = model.act_step(latents, x)
            output = values[model.program.output]
            token = halting_logits(output, model.q_head.weight, model.q_head.bias, True)
        latents = {name: values[name] for name in latents}
        decoded = logits[0].argmax(-1).tolist()
        answer = [new if goes_on else old for new, old, goes_on in zip(decoded, answer, active, strict=True)]
        state = halting_update(state, "cumulative_token", token, max_steps=max_steps, min_steps=min_steps)
    return int(state.sample_steps[0]), answer


@pytest.mark.parametrize("prefix", [0, 16])
@pytest.mark.parametrize("min_steps", [1, 4])
def test_tokens_halt_when_the_reference_lets_them(prefix: int, min_steps: int) -> None:
    model = reasoner(puzzle_emb_ndim=prefix)
    policy = HaltingPolicy(("cumulative_token",), min_steps=min_steps, max_steps=12)
    depths = set()
    for batch_size in (1, 3):
        solver = Solver(model, task=TASK, policy=policy, executor="reference", batch_size=batch_size)
        found = {d.key: d for d in solver.run(Sample(p, TASK.encode(p)) for p in TOKENS)}
        for puzzle in TOKENS:
            steps, answer = expected(model, puzzle, min_steps, 12)
            assert (found[puzzle].steps, found[puzzle].answer.tolist()) == (steps, answer)
            depths.add(steps)
    assert len(depths) > 1 and min(depths) >= min_steps


def test_the_observer_sees_halted_tokens_stay_and_the_smallest_sum_grow() -> None:
    model = reasoner()
    seen: list[Step] = []
    solver = Solver(model, task=TASK, policy="cumulative_token", max_steps=12, batch_size=1)
    (done,) = solver.run([Sample(0, TASK.encode(TOKENS[1]))], seen.append)
    assert [step.number for step in seen] == list(range(1, done.steps + 1))
    assert seen[-1].answer.tolist() == done.answer.tolist()
    sums = [step.accumulated for step in seen]
    assert sums == sorted(sums) and sums[-2] < 1 <= sums[-1]
