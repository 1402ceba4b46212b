"""What is trained on: pools and data sets, resumable; and that nothing held out is trained on, nor a twin of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rtm_kernels.data.build import build_sudoku
from rtm_kernels.data.maze import Maze, solve
from rtm_kernels.data.sudoku import generate, to_text
from rtm_kernels.data.sudoku.canonical import canonical
from rtm_kernels.errors import InputError
from rtm_kernels.train.recipe import SUDOKU_4X4
from rtm_kernels.train.schema import Source
from rtm_kernels.train.stream import DatasetStream, PoolStream, load_pool


def keys(inputs, labels) -> set[bytes]:
    puzzles, solutions = (np.asarray(part - 1, dtype=np.uint8) for part in (inputs, labels))
    return {row.tobytes() for row in canonical(puzzles, solutions)}


def test_no_twin_of_an_unseen_4x4_puzzle_is_ever_trained_on() -> None:
    stream = PoolStream(SUDOKU_4X4.sources or {}, seed=0, test=SUDOKU_4X4.test)
    test = stream.test_arrays(1000)
    assert test is not None and len(test["inputs"]) == 1000
    unseen = keys(test["inputs"], test["labels"])
    assert len(unseen) == len(stream.held_out[0]) > 250  # type: ignore[index]
    batch = stream.batch(2000, {"all": 1.0})
    trained = keys(batch["inputs"].numpy(), batch["labels"].numpy())
    assert len(trained) > 700 and not trained & unseen
    assert f"twins of {len(unseen)} puzzles" in stream.unseen


@pytest.mark.parametrize("size", [4, 9])
def test_a_csv_with_or_without_solutions_is_a_pool(size: int, tmp_path: Path) -> None:
    puzzles, solutions = generate(6, seed=3, size=size)
    with_solutions, without = tmp_path / "a.csv", tmp_path / "b.txt"
    rows = [f"{to_text(p)},{to_text(s)}" for p, s in zip(puzzles, solutions, strict=True)]
    with_solutions.write_text("puzzle,solution\n" + "\n".join(rows))
    without.write_text("\n".join(to_text(p) for p in puzzles))
    for path in (with_solutions, without):
        found = load_pool(Source(path=str(path), size=size))
        assert np.array_equal(found[0], puzzles + 1) and np.array_equal(found[1], solutions + 1)
    without.write_text("." * size * size)
    with pytest.raises(InputError, match=r"b\.txt: puzzle 1 has more than one solution"):
        load_pool(Source(path=str(without), size=size))


def test_hints_are_cells_of_the_solution_as_many_as_are_drawn() -> None:
    plain = Source(size=4, clues=(4, 5), count=30, seed=1)
    stream = PoolStream({"all": dataclasses.replace(plain, hints=(2, 4))}, seed=0)
    position = stream.state()
    batch = stream.batch(600, {"all": 1.0})
    inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
    given = inputs == labels
    assert (given | (inputs == 1)).all() and given.any(axis=0).all()
    assert stream.unseen == "none: the recipe has no test puzzles"
    clues = (load_pool(plain)[0] > 1).sum(axis=1)
    counts = set(given.sum(axis=1).tolist())
    assert counts == set(range(clues.min() + 2, clues.max() + 5))
    stream.load_state(position)
    assert torch.equal(stream.batch(600, {"all": 1.0})["inputs"], batch["inputs"])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    build_sudoku(tmp_path / "data", generate(60, seed=1, size=4, clues=(5, 9)), test=8, size=4)
    return str(tmp_path / "data")


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("cut", [1, 9])
def test_a_data_set_is_read_resumably(augmented: bool, cut: int, folder: str) -> None:
    stream = DatasetStream(folder, 0, 8, augmented)
    batches = []
    for step in range(12):
        if step == cut:
            state = stream.state()
        batches.append(stream.batch(8, {}))
    resumed = DatasetStream(folder, 0, 8, augmented)
    resumed.load_state(state)
    for expected in batches[cut:]:
        found = resumed.batch(8, {})
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(InputError, match="batch_size=9"):
        stream.batch(9, {})


def test_mazes_are_a_pool_whose_labels_stay_those_of_the_generator(tmp_path: Path) -> None:
    sources = {"all": Source(task="maze", size=7, count=300, seed=1)}
    stream = PoolStream(sources, seed=0, test=Source(task="maze", size=7, count=40, seed=2))
    task, batch = Maze(7), stream.batch(64, {"all": 1.0})
    inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
    assert task.verify_tokens(inputs, labels).all()
    assert np.array_equal(solve(inputs.reshape(-1, 7, 7)).reshape(-1, 49), labels)
    unseen = stream.test_arrays(60)
    assert unseen is not None and len(unseen["inputs"]) == 60
    trained = set(task.keys(*stream.pools["all"]).tolist())
    assert not trained & set(task.keys(unseen["inputs"].astype(np.uint8), unseen["labels"]).tolist())
    assert len(stream.pools["all"][0]) <= 300
    rows = [f"{task.decode(x)},{task.decode(y)}" for x, y in zip(inputs, labels, strict=True)]
    (tmp_path / "mazes.csv").write_text("question,answer\n" + "\n".join(rows))
    mazes, answers = load_pool(Source(task="maze", size=7, path=str(tmp_path / "mazes.csv"), count=50))
    assert np.array_equal(mazes, inputs[:50]) and np.array_equal(answers, labels[:50])


def test_bad_sources_are_refused() -> None:
    for hints in ((-1, 2), (3, 2)):
        with pytest.raises(InputError, match=r"hints=.* is not allowed: two numbers from 0, in order"):
            Source(hints=hints)
    sources = {"all": Source(size=4, count=4, seed=1), "other": Source(task="maze", size=5, count=4)}
    with pytest.raises(InputError, match="one task and size"):
        PoolStream(sources, seed=0)
