from __future__ import annotations

from functools import partial

import pytest
import torch

from rtm_kernels.data.task import Puzzle
from rtm_kernels.engine import HaltingPolicy, Solution, Solver
from rtm_kernels.engine.executor import ActStep
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner
from tests.engine.fakes import TASK, ScriptedExecutor, config, model, scripted


def outcome(solution: Solution) -> tuple[object, ...]:
    return solution.input, solution.answer, solution.status, solution.steps, solution.reason


def test_a_refused_answer_goes_on_to_the_cap_and_says_so() -> None:
    (solution,) = scripted(max_steps=4).solve(["7200"])
    assert outcome(solution) == ("7200", "1111", "unverified", 4, "max_steps")
    assert solution.halt_probability == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())
    assert solution.answer_step == 4


@pytest.mark.parametrize(
    ("policy", "puzzle", "expected"),
    [
        ("verified", "1000", ("0001", "verified", 1, "verified")),
        ("verified", "5000", ("0005", "verified", 5, "verified")),
        ("verified", "4100", ("0014", "verified", 4, "verified")),
        (HaltingPolicy(("verified",), min_steps=5, max_steps=8), "2000", ("0002", "verified", 5, "verified")),
        (HaltingPolicy(("verified",), max_steps=1), "1000", ("0001", "verified", 1, "verified")),
        (HaltingPolicy(("verified",), max_steps=1), "2000", ("1111", "unverified", 1, "max_steps")),
        ("q", "2300", ("0032", "verified", 3, "q")),
        ("q", "6300", ("1111", "unverified", 3, "q")),
        ("q=0.95", "2300", ("0032", "verified", 8, "max_steps")),
        ("q", "2000", ("0002", "verified", 8, "max_steps")),
        ("settle=2", "6000", ("1111", "unverified", 3, "settle")),
        ("settle=6", "3000", ("0003", "verified", 8, "max_steps")),
        ("settle=4", "3000", ("0003", "verified", 7, "settle")),
        ("q+settle=2", "6200", ("1111", "unverified", 2, "q")),
        ("verified+settle=2", "2000", ("0002", "verified", 2, "verified")),
        ("fixed", "1100", ("0011", "verified", 8, "max_steps")),
        ("cumulative", "6000", ("0006", "verified", 8, "max_steps")),
        ("cumulative", "4300", ("1111", "unverified", 3, "cumulative")),
    ],
)
def test_policies(policy: HaltingPolicy | str, puzzle: str, expected: tuple[object, ...]) -> None:
    # p is 0.12 before the head says halt and 0.88 after: "4300" accumulates 0.12 + 0.12 + 0.88
    (solution,) = scripted(policy).solve([puzzle])
    assert (solution.answer, solution.status, solution.steps, solution.reason) == expected
    assert policy != "verified" or solution.answer_step == solution.steps


def test_slots_are_refilled_at_once_and_the_batch_shrinks_at_the_end() -> None:
    solver = scripted(batch_size=2)
    solver.solve(["1000", "4000", "2000", "1000", "6000"])
    executor = solver.executor
    assert isinstance(executor, ScriptedExecutor)
    # slot 0: 1 step, then 2, then 1; slot 1: 4 steps, then 6 of its own while slot 0 is empty
    assert executor.batch_sizes == [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]


def test_fixed_shape_keeps_the_batch_size() -> None:
    solver = scripted(batch_size=4, batch_invariant=True)
    assert [s.steps for s in solver.solve(["1000", "3000"])] == [1, 3]
    assert isinstance(solver.executor, ScriptedExecutor)
    assert solver.executor.batch_sizes == [4, 4, 4]


def test_a_sample_that_is_not_finite_never_answers_and_leaves_the_others_alone() -> None:
    puzzles = ["4007", "4000", "3100", "1007"]
    alone = [scripted().solve([p])[0] for p in puzzles]
    together = scripted(batch_size=4).solve(puzzles)
    assert [outcome(s) for s in together] == [outcome(s) for s in alone]
    assert outcome(together[0]) == ("4007", None, "non_finite", 2, "non_finite")
    assert together[3].status == "verified"


@pytest.mark.parametrize("where", ["logits", "q", "z_H"])
def test_nan_anywhere_in_a_sample_is_seen(where: str) -> None:
    solver = scripted(batch_size=3)
    inner = solver.executor.step

    def poison(latents: dict, x: torch.Tensor) -> ActStep:
        new, logits, q, *_ = inner(latents, x)
        target = {"logits": logits, "q": q, "z_H": new["z_H"]}[where]
        target.view(len(target), -1)[1, -1] = float("inf") if where == "z_H" else float("nan")
        return ActStep(new, logits, q)

    solver.executor.step = poison  # type: ignore[method-assign]
    assert [s.status for s in solver.solve(["1000", "1001", "1002"])] == ["verified", "non_finite", "verified"]


def test_invalid_puzzles_are_reported_in_place_without_control_characters() -> None:
    bad = ["1000", "10", "10\x1b[2J", "x000", Puzzle("", line=3, error="line 3: broken"), "2000"]
    solutions = scripted().solve(bad)
    assert [s.status for s in solutions] == ["verified", *["invalid"] * 4, "verified"]
    assert solutions[1].error is not None and "4 cells" in solutions[1].error
    assert solutions[4].error == "line 3: broken"
    for s in solutions[1:5]:
        assert s.answer is None and s.steps == 0 and s.input.isprintable() and (s.error or "").isprintable()
    assert "error" not in solutions[0].to_dict() and solutions[1].to_dict()["error"]


def test_headless_model() -> None:
    (solution,) = scripted("settle=2", halting="settle").solve(["6000"])
    assert (solution.reason, solution.halt_probability) == ("settle", None)
    (capped,) = scripted(max_steps=3, halting="settle").solve(["3000"])
    assert (capped.status, capped.answer_step) == ("verified", 3)
    with pytest.raises(InputError, match="no halting head"):
        scripted("q", halting="settle")


def test_the_head_that_compares_reads_both_logits() -> None:
    (solution,) = scripted("q", halting="q_continue").solve(["2300"])
    assert solution.steps == 3
    assert solution.halt_probability == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())


def test_bad_arguments_are_named() -> None:
    reasoner = model()
    for options, name in (
        ({"batch_size": 0}, "batch_size"),
        ({"max_steps": 0}, "max_steps"),
        ({"policy": "sometimes"}, "policy"),
        ({"executor": "magic"}, "executor"),
        ({"task": None}, "seq_len=4 and vocab_size=9: none"),
        ({"task": "no such task"}, "task"),
        ({"task": "sudoku"}, "it needs seq_len=81, and the model has seq_len=4"),
    ):
        with pytest.raises(InputError, match=name):
            Solver(reasoner, **({"task": TASK} | options))
    with pytest.raises(InputError, match="expected a list"):
        scripted().solve("1000")


def test_depth_of_thousands_of_steps_ends_where_the_latent_settles() -> None:
    # the scripted latent grows by 1 per step: |dy| / |y| = 1 / step falls below 5e-4 after step 2000
    policy = HaltingPolicy(("settle",), max_steps=20_000, settle_tolerance=5e-4)
    for solution in scripted(policy).solve(["3000", "5100"]):
        assert (solution.reason, solution.steps, solution.status) == ("settle", 2001, "verified")
        assert solution.residual == pytest.approx(1 / 2001)


def test_fixed_steps_equal_the_official_evaluation() -> None:
    torch.manual_seed(3)
    reasoner = RecursiveReasoner(config(halt_max_steps=4, L_cycles=2)).eval()
    puzzles = ["0123", "3210", "7070", "1111"]
    batch = {
        "inputs": torch.stack([torch.from_numpy(TASK.encode(p)).int() for p in puzzles]),
        "puzzle_identifiers": torch.zeros(4, dtype=torch.int32),
    }
    carry = reasoner.initial_carry(batch)
    with torch.no_grad():
        for _ in range(4):
            carry, outputs = reasoner(carry=carry, batch=batch)
    official = [TASK.decode(row.numpy()) for row in outputs["logits"].argmax(-1)]
    solutions = Solver(reasoner, task=TASK, policy="fixed").solve(puzzles)
    assert [s.answer for s in solutions] == official
    assert [s.steps for s in solutions] == [4] * 4
    expected = torch.sigmoid(outputs["q_halt_logits"]).tolist()
    assert [s.halt_probability for s in solutions] == pytest.approx(expected)


def test_weights_that_change_between_two_runs_are_those_of_the_second_one() -> None:
    torch.manual_seed(3)
    reasoner, other = (RecursiveReasoner(config(halt_max_steps=2)).eval() for _ in range(2))
    (wanted,) = Solver(other, task=TASK, policy="fixed").solve(["0123"])
    solver = Solver(reasoner, task=TASK, policy="fixed")
    assert solver.solve(["0123"])[0].residual != wanted.residual
    reasoner.load_state_dict(other.state_dict())
    assert solver.solve(["0123"])[0].residual == wanted.residual


def test_a_program_that_carries_nothing_is_solved_in_one_step() -> None:
    reasoner = RecursiveReasoner(config(arch="rins", layers={"A": 1, "B": 1}, halting="fixed"))
    (solution,) = Solver(reasoner, task=TASK, policy="settle=1", max_steps=5).solve(["1234"])
    assert (solution.steps, solution.reason) == (2, "settle")
    with pytest.raises(InputError, match="not carried"):
        Solver(reasoner, task=TASK, policy=HaltingPolicy(("settle",), settle_tolerance=0.1))


@pytest.mark.parametrize(
    "text",
    [
        "verified", "fixed", "q", "q=0.9", "settle", "settle=5", "q=0.75+settle=2",
        "cumulative", "cumulative_token+verified", "settle=3/0.001", "settle=2/1e-06", "settle=5/0.25+q=0.9",
    ],
)  # fmt: skip
def test_text_round_trip(text: str) -> None:
    assert str(HaltingPolicy.parse(text)) == text


def test_parse_reads_numbers_and_caps() -> None:
    policy = HaltingPolicy.parse("q=0.9+settle=4", min_steps=2, max_steps=7)
    assert policy == HaltingPolicy(("q", "settle"), min_steps=2, max_steps=7, q_threshold=0.9, settle_steps=4)


@pytest.mark.parametrize(
    "text",
    [
        "", "Q", "q=", "q=1.5", "q=0", "q=1..2", "settle=1.5", "settle=0", "fixed+q",
        "verified=2", "q+", "nope", "q=0.9/3", "settle=/0.1", "settle=3/0.1/2", "settle=3/1.5", "cumulative_token=1",
    ],
)  # fmt: skip
def test_bad_text_is_one_clear_error(text: str) -> None:
    with pytest.raises(InputError, match="is not allowed"):
        HaltingPolicy.parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_steps", 0), ("max_steps", 20_001), ("max_steps", 2.0), ("max_steps", True), ("min_steps", 0),
     ("min_steps", 17), ("q_threshold", 1.0), ("q_threshold", float("nan")), ("settle_steps", 0),
     ("settle_tolerance", -0.1)],
)  # fmt: skip
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        HaltingPolicy(**{field: value})


def test_confidence_is_a_verdict_or_what_the_head_says() -> None:
    made = partial(Solution, task="t", input="0", answer="1", halt_probability=0.25)
    assert made(status="verified").confidence == 1.0
    assert made(status="unverified").confidence == 0.25
    assert made(status="unverified", halt_probability=None).confidence is None
    assert made(status="non_finite", answer=None).confidence is None
