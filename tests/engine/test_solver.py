from __future__ import annotations

import itertools
from collections.abc import Iterator

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


def test_leaves_when_the_verifier_confirms_whatever_the_head_says() -> None:
    early, late, head_lies = scripted().solve(["1000", "5000", "4100"])
    assert outcome(early) == ("1000", "0001", "verified", 1, "verified")
    assert outcome(late) == ("5000", "0005", "verified", 5, "verified")
    assert outcome(head_lies) == ("4100", "0014", "verified", 4, "verified")


def test_a_refused_answer_goes_on_to_the_cap_and_says_so() -> None:
    (solution,) = scripted(max_steps=4).solve(["7200"])
    assert outcome(solution) == ("7200", "1111", "unverified", 4, "max_steps")
    assert solution.halt_probability == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())
    assert solution.answer_step == 4


@pytest.mark.parametrize(
    ("policy", "puzzle", "expected"),
    [
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
def test_policies(policy: str, puzzle: str, expected: tuple[object, ...]) -> None:
    # p is 0.12 before the head says halt and 0.88 after: "4300" accumulates 0.12 + 0.12 + 0.88
    (solution,) = scripted(policy).solve([puzzle])
    assert (solution.answer, solution.status, solution.steps, solution.reason) == expected


def test_min_steps_holds_a_confirmed_answer_until_it_may_leave() -> None:
    (solution,) = scripted(HaltingPolicy(("verified",), min_steps=5, max_steps=8)).solve(["2000"])
    assert (solution.answer, solution.steps, solution.answer_step, solution.status) == ("0002", 5, 2, "verified")


def test_max_steps_one() -> None:
    solved, unsolved = scripted(max_steps=1).solve(["1000", "2000"])
    assert outcome(solved) == ("1000", "0001", "verified", 1, "verified")
    assert outcome(unsolved) == ("2000", "1111", "unverified", 1, "max_steps")


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


def test_order_and_batch_size_do_not_matter() -> None:
    puzzles = ["1000", "5000", "3007", "2100", "6000", "1007", "7000", "4000"]
    expected = {p: outcome(scripted().solve([p])[0]) for p in puzzles}
    for size, shift in itertools.product((1, 2, 3, 8, 20), range(0, 8, 3)):
        order = puzzles[shift:] + puzzles[:shift]
        solutions = scripted(batch_size=size).solve(order)
        assert [outcome(s) for s in solutions] == [expected[p] for p in order]


def test_duplicates_and_empty_list() -> None:
    assert scripted().solve([]) == []
    solutions = scripted().solve(["3000"] * 7)
    assert [outcome(s) for s in solutions] == [("3000", "0003", "verified", 3, "verified")] * 7


def test_stream_yields_as_they_finish_and_reads_only_what_fits() -> None:
    read: list[str] = []

    def puzzles() -> Iterator[str]:
        for text in ("4000", "1000", "2000", "1000"):
            read.append(text)
            yield text

    stream = scripted(batch_size=2).stream(puzzles())
    assert read == []
    assert next(stream)[0] == 1
    assert len(read) == 2
    assert [index for index, _ in stream] == [2, 0, 3]


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


@pytest.mark.parametrize("arch", ["trm", "hrm", "trm_singlez", "trm_hier6", "rsm", "rtm", "transformer"])
def test_a_real_model_gives_alone_what_it_gives_in_a_batch(arch: str) -> None:
    torch.manual_seed(7)
    stacks = {"trm": ["L_level"], "hrm": ["L_level", "H_level"], "rsm": ["core"], "rtm": ["core"],
              "transformer": ["H_level"]}.get(arch, ["L_level"])  # fmt: skip
    changes = {"arch": arch, "layers": dict.fromkeys(stacks, 1), "L_cycles": 2, "forward_dtype": "float64"}
    reasoner = RecursiveReasoner(config(**changes))
    torch.nn.init.normal_(reasoner.q_head.weight, std=2.0)
    puzzles = ["".join(p) for p in itertools.islice(itertools.product("0123", repeat=4), 0, 64, 3)]
    first = Solver(reasoner, task=TASK, policy="fixed", max_steps=1).solve(puzzles)
    median = sorted(s.halt_probability or 0 for s in first)[len(first) // 2]
    policy = HaltingPolicy(("q",), max_steps=6, q_threshold=median)
    together = Solver(reasoner, task=TASK, policy=policy, batch_size=5).solve(puzzles)
    one = Solver(reasoner, task=TASK, policy=policy, batch_size=1)
    assert len({s.steps for s in together}) > 1
    for solution, puzzle in zip(together, puzzles, strict=True):
        (alone,) = one.solve([puzzle])
        assert outcome(alone) == outcome(solution)
        assert alone.halt_probability == pytest.approx(solution.halt_probability, rel=1e-6)


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


def test_settle_tolerance_waits_for_the_latent() -> None:
    # the scripted latent grows by 1 per step, so |dy| / |y| = 1 / step falls below 0.3 at step 4
    policy = HaltingPolicy(("settle",), settle_steps=1, settle_tolerance=0.3)
    assert scripted(policy).solve(["1000"])[0].steps == 4


def test_a_program_that_carries_nothing_is_solved_in_one_step() -> None:
    reasoner = RecursiveReasoner(config(arch="rins", layers={"A": 1, "B": 1}, halting="fixed"))
    (solution,) = Solver(reasoner, task=TASK, policy="settle=1", max_steps=5).solve(["1234"])
    assert (solution.steps, solution.reason) == (2, "settle")
    with pytest.raises(InputError, match="not carried"):
        Solver(reasoner, task=TASK, policy=HaltingPolicy(("settle",), settle_tolerance=0.1))
