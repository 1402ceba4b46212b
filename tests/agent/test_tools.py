"""What an agent gets back: verdicts, candidates, and refusals that name the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.data import maze as mazes
from rtm_kernels.data.sudoku import generate, to_text
from rtm_kernels.engine import Overloaded
from rtm_kernels.errors import InputError
from tests.agent.conftest import with_client

MAZE = "\n".join(["S..." + "." * 26, *["####" + "." * 26] * 2, *["." * 30] * 26, "." * 29 + "G"])


def sudoku() -> tuple[str, str]:
    """A puzzle that the oracle solves in step 2, and its solution."""
    boards, solutions = generate(20, seed=5)
    i = ((boards == 0).sum(1) % 3).tolist().index(1)
    return to_text(boards[i]), to_text(solutions[i])


def test_a_verified_sudoku_says_so_in_text_and_structure(call) -> None:
    puzzle, solution = sudoku()
    grid = "\n".join(puzzle[i : i + 9] for i in range(0, 81, 9))
    for text in (puzzle, puzzle.replace(".", "0"), grid):
        found = call("solve_sudoku", puzzle=text)
        assert not found.is_error
        wanted = {"task": "sudoku", "verified": True, "status": "verified", "answer": solution, "fault": "", "steps": 2}
        assert wanted.items() <= found.structured_content.items()
        assert found.content[0].text.startswith("VERIFIED by the rules, after 2 steps.\n")
        assert " | ".join(" ".join(solution[i : i + 3]) for i in (0, 3, 6)) in found.content[0].text


def test_an_unconfirmed_answer_is_a_candidate_with_its_fault(call) -> None:
    found = call("solve_sudoku", puzzle=sudoku()[0], max_steps=1)
    assert not found.is_error and not found.structured_content["verified"]
    assert found.structured_content["stopped_by"] == "max_steps"
    text = found.content[0].text
    assert text.startswith("NOT VERIFIED after 1 step (stopped by max_steps): ") and "Best candidate:" in text
    assert found.structured_content["fault"] and found.structured_content["fault"] in text


def test_a_maze_is_verified_by_its_shortest_path(call) -> None:
    found = call("solve_maze", maze=MAZE).structured_content
    assert found["verified"] and found["path_steps"] == found["shortest_steps"] == 58
    assert found["answer"].count("o") == 57
    unmarked = call("solve_maze", maze=MAZE, max_steps=1).structured_content
    assert (unmarked["verified"], unmarked["path_steps"], unmarked["shortest_steps"]) == (False, None, 58)


def test_a_longer_path_is_told_from_none() -> None:
    task = mazes.Maze(4)
    maze = "S..G" + "...." * 3
    longer = "S..G" + "oooo" + "...." * 2
    assert task.path_steps(maze, "SooG" + "...." * 3) == (3, 3)
    assert task.path_steps(maze, longer) == (5, 3) and not task.verify(maze, longer).verified
    assert task.path_steps(maze, maze) == (None, 3) and task.path_steps(maze, None) == (None, 3)
    assert task.path_steps(maze, "S#oG" + "...." * 3) == (None, 3)
    walled = "S#.G" + "####" + "...." * 2
    assert task.path_steps(walled, walled) == (None, None)


def test_arc_candidates_vote_and_are_never_verified(call) -> None:
    grid = [[1, 2, 3], [4, 5, 6]]
    found = call("solve_arc_candidates", test_input=grid, augmentations=6, candidates=3)
    answer = found.structured_content
    assert (answer["verified"], answer["runs"]) == (False, 6)
    (candidate,) = answer["candidates"]
    assert candidate["grid"] == grid and candidate["votes"] == 6
    assert found.content[0].text.startswith("ARC has no rule that checks an answer")


def test_models_are_listed(call, model_folders: dict[str, Path]) -> None:
    found = call("list_models").structured_content
    assert [m["task"] for m in found["models"]] == ["sudoku", "maze", "arc"] and found["tasks_without_model"] == []
    assert found["models"][0]["name"] == str(model_folders["sudoku"])
    assert found["models"][0]["default_max_steps"] == 4 and found["models"][0]["rollouts"] == 1


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("solve_sudoku", {"puzzle": "y" * 81}, "solve_sudoku: line 1, column 1: illegal character 'y'"),
    ("solve_sudoku", {"puzzle": "55" + "." * 79}, "contradictory givens: 5 twice in row 1"),
    ("solve_sudoku", {"puzzle": "." * 80}, "solve_sudoku: line 1, column 80: 80 cells"),
    ("solve_sudoku", {"puzzle": "." * 16}, "no model for sudoku4 is loaded (there are: sudoku, maze, arc)"),
    ("solve_sudoku", {"puzzle": "." * 70_000}, "puzzle: String should have at most 65536 characters"),
    ("solve_sudoku", {}, "puzzle: Field required"),
    ("solve_sudoku", {"puzzle": "." * 81, "path": "/etc"}, "path: Extra inputs are not permitted"),
    ("solve_sudoku", {"puzzle": "." * 81, "max_steps": 65}, "max_steps: Input should be less than or equal to 64"),
    ("solve_sudoku", {"puzzle": "." * 81, "\x1b[31m": 1}, "?[31m: Extra inputs are not permitted"),
    ("solve_maze", {"maze": "SG"}, "maze='2 cells' is not allowed: the loaded models take a side of 30"),
    ("solve_maze", {"maze": "." * 900}, "number of S=0 is not allowed"),
    ("solve_arc_candidates", {"test_input": [[1], [1, 2]]}, "its rows differ in length"),
    ("solve_arc_candidates", {"test_input": [[10]]}, "test_input.0.0: Input should be less than 10"),
    ("rm", {}, "Unknown tool: rm"),
]


def test_refusals_name_the_argument_and_echo_nothing(ask) -> None:
    for (name, _, expected), found in zip(BAD, ask(*(call[:2] for call in BAD)), strict=True):
        (block,) = found.content
        assert found.is_error and expected in block.text, (name, block.text)
        assert block.text.isprintable() and len(block.text) < 400 and "Traceback" not in block.text


def test_schemas_are_strict(solvers) -> None:
    from rtm_kernels.agent.server import build

    tools = with_client(build(solvers), lambda client: client.list_tools()).tools
    assert [t.name for t in tools] == ["solve_sudoku", "solve_maze", "solve_arc_candidates", "list_models"]
    for tool in tools:
        assert (
            tool.input_schema["additionalProperties"] is False and tool.output_schema["additionalProperties"] is False
        )
        assert tool.annotations is not None and tool.annotations.read_only_hint and tool.description
    assert tools[0].input_schema["properties"]["puzzle"]["maxLength"] == 65536


def test_a_busy_service_says_so(call, solvers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise Overloaded("256 puzzles are waiting")

    monkeypatch.setattr(solvers.service, "submit_all", full)
    answer = call("solve_sudoku", puzzle=sudoku()[0])
    assert answer.is_error and "busy: 256 puzzles are waiting; try again" in answer.content[0].text


def test_wrong_models_are_named(model_folders: dict[str, Path]) -> None:
    from rtm_kernels.agent.solvers import Solvers

    for models, message in (
        (["nope"], "unknown model 'nope'"),
        ([f"sudoku={model_folders['maze']}"], "it needs seq_len=81, and the model has seq_len=900"),
        ([str(model_folders["maze"]), f"maze={model_folders['maze']}"], "the task maze has a model already"),
    ):
        with pytest.raises(InputError, match=message):
            Solvers(models)
