"""A user's own task in a few lines, the registry, and what importing the data package does not import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rtm_kernels.data import Task, Verdict, get_task, register, task_names
from rtm_kernels.data.maze import Maze
from rtm_kernels.data.sudoku import Sudoku
from rtm_kernels.data.task import find_tasks, has_task
from rtm_kernels.errors import InputError


class LatinSquare(Task):
    """Of 4 x 4; that of docs/tasks.md has the whole verifier."""

    name, vocabulary, seq_len = "latin4", ".1234", 16

    def verify(self, puzzle: str, answer: str) -> Verdict:
        lines = [answer[i : i + 4] for i in range(0, 16, 4)]
        return Verdict(all(set(line) == set("1234") for line in lines), "a row repeats a digit")


def test_a_task_of_ones_own() -> None:
    task = LatinSquare()
    puzzle, answer = "1..." * 4, "1234214334124321"
    open_puzzle = "1" + "." * 15
    assert task.vocab_size == 6 and task.encode("12.4" * 4).tolist() == [2, 3, 1, 5] * 4
    assert task.decode(np.array([0, 1, 2, 9])) == "?.1?"
    assert task.verify(open_puzzle, answer).verified
    tokens = [task.encode(t) for t in (puzzle, open_puzzle, open_puzzle)]
    answers = [task.encode(t) for t in (answer, answer, "1" * 16)]
    assert task.verify_tokens(np.stack(tokens), np.stack(answers)).tolist() == [True, True, False]
    assert task.render(open_puzzle, answer, lambda c: f"[{c}]").startswith("1[2][3]")
    first, second = task.parse(f"{puzzle}\n\n{open_puzzle}")
    assert (first.text, second.text, second.line) == (puzzle, open_puzzle, 3)
    with pytest.raises(InputError, match="line 2: column 3: 'x' is not one of"):
        list(task.parse([puzzle, "12x4" * 4]))
    (only,) = task.parse("123", errors="report")
    assert only.error == "line 1: puzzle length=3 is not allowed: latin4 has 16 cells"
    with pytest.raises(InputError, match="the input is empty"):
        list(task.parse("\n"))
    inputs = np.stack(tokens)
    assert task.augment(inputs, inputs, np.random.default_rng(0))[0] is inputs


def test_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtm_kernels.data import task as module

    monkeypatch.setattr(module, "_TASKS", dict(module._TASKS))
    assert {"sudoku", "sudoku4", "maze", "arc"} <= set(task_names())
    assert register(LatinSquare()) is get_task("latin4")
    register(LatinSquare())
    with pytest.raises(InputError, match="task='chess' is not allowed: expected one of arc, latin4, maze, sudoku"):
        get_task("chess")

    class Other(LatinSquare):
        name = "sudoku"

    with pytest.raises(InputError, match="task name='sudoku' is not allowed: it is already registered"):
        register(Other())


def test_families_are_known_by_name_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtm_kernels.data import task as module

    monkeypatch.setattr(module, "_TASKS", dict(module._TASKS))
    assert (
        isinstance(get_task("maze9"), Maze) and get_task("maze9").seq_len == 81 and get_task("maze64").name == "maze64"
    )
    assert has_task("maze9") and has_task("maze") and "maze9" not in task_names()
    for name in ("maze4", "maze65", "maze30", "maze09", "maze-9", "mazes", "maze5 to maze64", "sudoku5"):
        assert not has_task(name)
        with pytest.raises(InputError, match="arc, maze, sudoku, sudoku16, sudoku25, sudoku4, maze5 to maze64"):
            get_task(name)
    named = {(81, 6): ["maze9"], (900, 6): ["maze"], (16, 6): ["sudoku4"], (81, 11): ["sudoku"], (80, 6): []}
    for sizes, names in named.items():
        assert [task.name for task in find_tasks(*sizes)] == names

    class Own(LatinSquare):
        name, seq_len = "own", 81

    register(Own())
    assert [task.name for task in find_tasks(81, 6)] == ["own"]


def test_sudoku_reasons() -> None:
    task = Sudoku(4)
    puzzle, answer = "1..." + "." * 12, "1234341221434321"
    assert task.verify(puzzle, answer) == Verdict(True)
    reasons = {
        "2" + answer[1:]: "the given 1 at r1c1 became 2",
        "1.34341221434321": "1 blank cell, the first at r1c2",
        "1134341221434321": "1 twice in row 1 (r1c1 and r1c2)",
        "1234": "the answer cannot be read: puzzle length=4 is not allowed: sudoku4 has 16 cells",
        "1234341221434325": "the answer cannot be read: column 16: illegal character '5'",
    }
    for text, reason in reasons.items():
        verdict = task.verify(puzzle, text)
        assert not verdict.verified and verdict.reason.startswith(reason)
    answers = np.array([task.encode(answer), np.zeros(16), np.full(16, 9)], dtype=np.int64)
    assert task.verify_tokens(task.encode(puzzle)[None].repeat(3, axis=0), answers).tolist() == [True, False, False]
    assert task.decode(np.zeros(16, int)) == "." * 16


def test_data_needs_neither_torch_nor_triton() -> None:
    code = "import sys, rtm_kernels.data.build, rtm_kernels.data.loader; print({'torch', 'triton'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
