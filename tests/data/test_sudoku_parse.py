"""Reading puzzles: every format, every fault with its place, and long inputs in bounded memory."""

from __future__ import annotations

import contextlib
import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtm_kernels.data import get_task
from rtm_kernels.data.sudoku import Sudoku, generate, read_boards, read_puzzles, to_text
from rtm_kernels.errors import InputError

PUZZLES, SOLUTIONS = generate(4, seed=21)
TEXTS = [to_text(board) for board in PUZZLES]
ANSWERS = [to_text(board) for board in SOLUTIONS]
GRID = Sudoku().render(TEXTS[0])


def read(text: str, **options: object) -> list[str]:
    return [p.text for p in read_puzzles(io.StringIO(text), **options)]


ROWS = list(zip(TEXTS, ANSWERS, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "\r\n".join(TEXTS) + "\r\n",
        "# a list\n\n" + "\n\n".join(t.replace(".", "0") for t in TEXTS),
        "\ufeff" + "\n".join(t.replace(".", "*") for t in TEXTS),
        "\n".join("\n".join(t[i : i + 9] for i in range(0, 81, 9)) for t in TEXTS),
        "\n".join(Sudoku().render(t).replace("------+-------+------", "") for t in TEXTS),
        "+---+\n" + "\n".join("| " + Sudoku().render(t).replace("\n", " |\n| ") + " |" for t in TEXTS),
        "puzzle\n" + "\n".join(TEXTS),
        "Solutions,Quizzes\n" + "\n".join(f"{s},{p.replace('.', '0')}" for p, s in ROWS),
        "source,question,answer,rating\n" + "\n".join(f'"a,b",{p},{s},7' for p, s in ROWS),
    ],
)
def test_formats(text: str) -> None:
    assert read(text) == TEXTS
    assert [p.text for p in Sudoku().parse(text)] == TEXTS


def test_lines_solutions_and_ratings(tmp_path: Path) -> None:
    text = f"\nsource,question,answer,rating\nx,{TEXTS[0]},{ANSWERS[0]},3\nx,{TEXTS[1]},,\n"
    first, second = read_puzzles(text.splitlines())
    assert (first.line, first.solution, first.rating) == (3, ANSWERS[0], 3.0)
    assert (second.line, second.solution, second.rating) == (4, None, None)
    (tmp_path / "p.csv").write_text(text)
    puzzles, solutions = read_boards(tmp_path / "p.csv")
    assert np.array_equal(puzzles, PUZZLES[:2]) and np.array_equal(solutions[0], SOLUTIONS[0])
    assert not solutions[1].any()
    assert len(read_boards(tmp_path / "p.csv", min_rating=2)[0]) == 1


@pytest.mark.parametrize("size", [4, 16])
def test_other_sizes(size: int) -> None:
    puzzles, _ = generate(1, seed=1, size=size)
    task = Sudoku(size)
    texts = [to_text(p) for p in puzzles]
    assert read("\n".join(t.lower() for t in texts), size=size) == texts
    assert read("\n\n".join(task.render(t) for t in texts), size=size) == texts
    assert np.array_equal(np.stack([task.encode(t) for t in texts]), puzzles + 1)
    assert [task.decode(task.encode(t)) for t in texts] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no puzzle found: the input is empty"),
        ("puzzle,solution\n", "no puzzle found: the input is empty"),
        (f"{TEXTS[0]}\n{TEXTS[1][:80]}x\n", "line 2, column 81: illegal character 'x', expected 1-9 or . 0 * _ for"),
        ("\n" + TEXTS[0][:40] + "\x1b[31m" + TEXTS[0][40:], r"line 2, column 41: illegal character '\x1b'"),
        ("5 3 . | . 7 . | a . .\n", "line 1, column 17: illegal character 'a'"),
        ("." * 80, "line 1, column 80: 80 cells, expected 81 (a puzzle) or 9 (a row)"),
        ("55" + "." * 79, "line 1: contradictory givens: 5 twice in row 1 (r1c1 and r1c2)"),
        ("." * 81 + "\n7" + "." * 71 + "7........", "line 2: contradictory givens: 7 twice in column 1"),
        (".........\n" * 8, "line 8: the grid that began on line 1 has 8 of 9 rows"),
        (".........\n" * 4 + "\n", "line 5: the grid that began on line 1 has 4 of 9 rows"),
        (".........\n........\n", "line 2, column 8: 8 cells, expected 9 (a row of a grid)"),
        (f"{TEXTS[0]},1", "line 1, column 82: illegal character ',', expected 1-9 or . 0 * _ for a blank; csv"),
        (f"puzzle,solution\n{TEXTS[0]},{ANSWERS[1]}", "line 2: the solution is wrong: the given"),
        (f"puzzle,solution\n{TEXTS[0]},{ANSWERS[0][:80]}", "line 2, column 163: solution of 80 cells, expected 81"),
        (f"source,puzzle\nx,{TEXTS[0][:80]}?", "line 2, column 83: illegal character '?'"),
        (f"puzzle,rating\n{TEXTS[0]},hard", "line 2, column 83: rating 'hard' is not a number"),
        ("solution,puzzle\n123", "line 2, column 1: puzzle of 0 cells, expected 81"),
        ("1" * 70_000, "line 1: longer than 65536 characters"),
        ("\ud800\x00", r"line 1, column 1: illegal character '\ud800'"),
    ],
)
def test_faults_name_their_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_faults_are_raised_or_reported_in_place() -> None:
    with pytest.raises(InputError, match="line 2: contradictory"):
        list(read_puzzles([TEXTS[0], "11" + "." * 79, "x"]))
    lines = [TEXTS[0], "." * 5, *GRID.splitlines()[:2], "12345678x", "123456789", "", TEXTS[1], "11" + "." * 79,
             "9........"]  # fmt: skip
    found = list(read_puzzles(lines, errors="report"))
    assert [p.line for p in found] == [1, 2, 5, 8, 9, 10]
    assert [p.error is None for p in found] == [True, False, False, True, False, False]
    assert [p.text for p in found if not p.error] == TEXTS[:2]
    assert found[-1].error == "line 10: the grid that began on line 10 has 1 of 9 rows"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXTS[0].encode() + b"\r\n\xff\xfe")
    with pytest.raises(InputError, match=rf"{path}: line 2, column 1: illegal character '\\ufffd'"):
        list(Sudoku().read(path))
    with pytest.raises(InputError, match=r"nothing\.txt: cannot be read: No such file"):
        list(Sudoku().read(str(tmp_path / "nothing.txt")))
    for place in (tmp_path, "nul\0byte\n"):
        with pytest.raises(InputError, match="cannot be read"):
            list(Sudoku().read(place))


def test_a_line_without_end_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "one_line.txt"
    path.write_bytes(b"1" * 20_000_000 + b"\n" + TEXTS[0].encode())
    tracemalloc.start()
    long, puzzle = Sudoku().read(path, errors="report")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert puzzle.text == TEXTS[0] and long.error == f"{path}: line 1: longer than 65536 characters"
    lines = iter([TEXTS[0]] * 5000)  # no more than a chunk is read ahead
    assert next(read_puzzles(lines)).line == 1 and len(list(lines)) >= 5000 - 1024


PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SNAKE = "/".join(("." * 30, "." + "#" * 29, "." * 30, "#" * 29 + ".")[i % 4] for i in range(30)).replace("/", "")
MAZE = "S" + SNAKE[1:-1] + "G"
TABLE = "puzzle,solution,rating\n"
LINES = [("", "\n"), (TABLE, "x,y,z\n"), ("", f"55{PUZZLE[2:]}\n"), (TABLE, f'{PUZZLE},"",3\n'), ("", "53..7....\n"),
         ("", f"{MAZE}\n"), (TABLE, f"{MAZE},{MAZE.replace('.', 'o')}\n")]  # fmt: skip


def calls(task: str, text: str) -> int:
    """Calls of functions of Python and of C that it takes to read a text as puzzles of `task`."""
    count, parse = 0, get_task(task).parse

    def event(frame: Any, kind: str, argument: Any) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    sys.setprofile(event)
    with contextlib.suppress(InputError):
        list(parse(io.StringIO(text), errors="report"))
    sys.setprofile(None)
    return count


@pytest.mark.parametrize("task", ["sudoku", "maze", "arc"])
@pytest.mark.parametrize(("head", "line"), LINES)
def test_a_line_costs_the_same_in_a_file_of_any_size(task: str, head: str, line: str) -> None:
    calls(task, head + line)  # caches
    small, large = (calls(task, head + line * count) for count in (100, 200))
    assert large <= 2.1 * small + 500 and large - small <= 180 * 100
