"""Mazes: the verifier against a slow one, generation, reading, symmetries, and the published data."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtm_kernels.data import maze
from rtm_kernels.data.maze import GOAL, OPEN, PATH, START, WALL, Maze
from rtm_kernels.errors import InputError, RTMError

SMALL = Maze(6)
TEXT = "S.....\n.####.\n.#....\n.#.##.\n.#.G..\n......\n"
SOLVED = "S     o#### o#    o# ## o# G  oooo  "
LONGER = "Sooooo ####o #   o # ##o # Goo      "


def slow_steps(field: np.ndarray) -> int | None:
    """Steps of a shortest path by a queue."""
    (start,), (goal,) = np.argwhere(field == START).tolist(), np.argwhere(field == GOAL).tolist()
    queue, steps = deque([tuple(start)]), {tuple(start): 0}
    while queue:
        row, column = queue.popleft()
        for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= r < len(field) and 0 <= c < len(field)
            if inside and field[r, c] != WALL and (r, c) not in steps:
                steps[r, c] = steps[row, column] + 1
                queue.append((r, c))
    return steps.get(tuple(goal))


def slow_verify(field: np.ndarray, answer: np.ndarray) -> bool:
    """Walk from S along the marked cells, which must be a chain of the shortest length."""
    marked = {tuple(cell) for cell in np.argwhere(answer == PATH).tolist()}
    same = all(
        field[cell] == OPEN if tuple(cell) in marked else field[cell] == answer[cell]
        for cell in np.ndindex(field.shape)
    )
    if not same or slow_steps(field) != len(marked) + 1:
        return False
    ((row, column),) = np.argwhere(field == START).tolist()
    while marked:
        beside = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        following = [cell for cell in beside if cell in marked]
        if not following:
            return False
        row, column = following[0]
        marked.discard((row, column))
    (goal,) = np.argwhere(field == GOAL).tolist()
    return abs(goal[0] - row) + abs(goal[1] - column) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_verifier_agrees_with_a_slow_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mazes, answers = maze.generate(4, seed=seed, side=7, path_cells=6, walls=(0.2, 0.4))
    answers = answers.copy()
    for answer in answers[1:]:  # damage: another mark, a missing mark, a moved cell
        cell = rng.integers(0, 49)
        answer[cell] = rng.choice([PATH, OPEN, WALL])
    fields, marked = mazes.reshape(-1, 7, 7), answers.reshape(-1, 7, 7)
    expected = [slow_verify(field, answer) for field, answer in zip(fields, marked, strict=True)]
    task = Maze(7)
    assert expected[0] and task.verify_tokens(mazes, answers).tolist() == expected
    texts = [(task.decode(m), task.decode(a)) for m, a in zip(mazes, answers, strict=True)]
    assert [task.verify(m, a).verified for m, a in texts if a.count("S") == a.count("G") == 1] == [
        right for right, (_, a) in zip(expected, texts, strict=True) if a.count("S") == a.count("G") == 1
    ]
    assert maze.shortest(fields).tolist() == [slow_steps(field) for field in fields]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (SOLVED, ""),
        (TEXT, "the marked cells do not lead from S to G"),
        (SOLVED.replace("oooo", "o oo"), "the marked cells do not lead from S to G"),
        (LONGER, "a path of 11 steps; a shortest one has 9"),
        (SOLVED.replace("oooo  ", "oooo o"), "a shortest path, but 1 more cells are marked"),
        (SOLVED.replace("####", "o###"), "the cell in row 2, column 2 does not keep the maze"),
        (SOLVED.replace("#", " ", 1), "the cell in row 2, column 2 does not keep the maze"),
        (SOLVED[:35], "the answer cannot be read: puzzle length=35"),
        (SOLVED[:35] + "\x1b", r"the answer cannot be read: column 36: '\x1b' is not one of"),
    ],
)
def test_reasons(answer: str, reason: str) -> None:
    verdict = SMALL.verify(TEXT, answer)
    assert verdict.verified == (not reason) and reason in verdict.reason


def test_generation() -> None:
    mazes, answers = maze.generate(6, seed=3)
    assert mazes.shape == (6, 900) and mazes.dtype == np.uint8
    assert Maze().verify_tokens(mazes, answers).all()
    assert (answers == PATH).sum(axis=1).min() >= 108
    assert 0.27 < (mazes == WALL).mean() < 0.46
    again = maze.generate(6, seed=3)
    assert np.array_equal(again[0], mazes) and np.array_equal(again[1], answers)
    assert not np.array_equal(maze.generate(6, seed=4)[0], mazes)
    assert len(maze.generate(1, seed=0, side=64)[0])
    with pytest.raises(RTMError, match="no maze of side 8 with a path of 60 cells"):
        maze.generate(1, seed=0, side=8, path_cells=60)


def test_reading() -> None:
    one_line = TEXT.replace("\n", "").replace(".", " ")
    for text in (TEXT, TEXT + "\n" + TEXT, one_line, "question,answer\n" + one_line + ","):
        assert {p.text for p in SMALL.parse(text)} == {one_line}
    (puzzle,) = SMALL.parse(f"source,question,answer,rating\nx,{one_line},{SOLVED},1")
    assert puzzle.solution == SOLVED and puzzle.line == 2
    assert SMALL.render(one_line, SOLVED, str.upper).splitlines()[5] == "OOOO  "
    assert SMALL.decode(SMALL.encode(TEXT)) == one_line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the input is empty"),
        (TEXT + "S....\n", "line 7: puzzle length=5 is not allowed: maze6 has 36 cells"),
        ("x" * 36, "line 1: column 1: 'x' is not one of '# SGo'"),
        (" " * 35 + "S", "line 1: number of G=0 is not allowed"),
        (SOLVED, "line 1: maze='o' is not allowed: a puzzle holds no path"),
        (f"question,answer\n{SOLVED.replace('o', ' ')},{SOLVED.replace('o', ' ')}", "line 2: solution"),
    ],
)
def test_faults(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        list(SMALL.parse(text))
    assert message in str(caught.value)
    if text:
        assert [p.error for p in SMALL.parse(text, errors="report") if p.error] == [str(caught.value)]


def test_symmetries_keep_answers_right() -> None:
    mazes, answers = maze.generate(40, seed=5, side=9, path_cells=12)
    twins, solved = Maze(9).augment(mazes, answers, np.random.default_rng(0))
    assert Maze(9).verify_tokens(twins, solved).all()
    assert np.array_equal(maze.solve(twins.reshape(-1, 9, 9)).reshape(solved.shape), solved)
    images = {mazes[0][index].tobytes() for index in maze.dihedral_indices(9)}
    assert len(images) == 8


def test_a_path_is_as_long_as_the_distance() -> None:
    rng = np.random.default_rng(4)
    fields = np.where(rng.random((200, 7, 7)) < 0.4, WALL, OPEN)
    fields[:, 0, 0], fields[np.arange(200), rng.integers(0, 7, 200), 6] = START, GOAL
    expected = maze.shortest(fields)
    assert [maze.path_length(field, field != WALL) for field in fields] == expected.tolist()
    assert (expected < 0).any() and (expected > 12).any()


FOLDERS = [parent / "shared" / "data" / "maze-30x30-hard-1k" for parent in Path(__file__).resolve().parents]
HARD = next((folder for folder in FOLDERS if folder.is_dir()), None)


def test_labels_follow_one_rule() -> None:
    """A walk from S to the first of the cells below, left, right and above that is nearer to G."""
    mazes, answers = maze.generate(12, seed=8, side=8)
    for field, answer in zip(mazes.reshape(-1, 8, 8), answers.reshape(-1, 8, 8), strict=True):
        away, walked = np.full((10, 10), 99), field.copy()
        inner = away[1:-1, 1:-1]
        for _ in range(64):
            nearest = np.minimum.reduce([away[2:, 1:-1], away[1:-1, :-2], away[1:-1, 2:], away[:-2, 1:-1]]) + 1
            inner[:] = np.where(field == GOAL, 0, np.where(field == WALL, 99, nearest))
        ((row, column),) = np.argwhere(field == START)
        while inner[row, column] > 1:
            steps = [(row + r, column + c) for r, c in ((1, 0), (0, -1), (0, 1), (-1, 0))]
            row, column = next(at for at in steps if away[at[0] + 1, at[1] + 1] == inner[row, column] - 1)
            walked[row, column] = PATH
        assert np.array_equal(walked, answer.reshape(8, 8))


@pytest.mark.skipif(HARD is None, reason="the published mazes are not here")
@pytest.mark.parametrize("split", ["train", "test"])
def test_published_labels_are_ours(split: str) -> None:
    assert HARD is not None
    mazes, labels = (np.load(HARD / split / f"all__{name}.npy") for name in ("inputs", "labels"))
    assert np.array_equal(maze.solve(mazes.reshape(-1, 30, 30)).reshape(labels.shape), labels)
