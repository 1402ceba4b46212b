"""ARC grids: encoding, augmentations and their inverses, reading, the data set built of them, and votes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtm_kernels.data.arc import Arc, Augmentation, Votes, decode_grid, dihedral, encode_grid, read_arc
from rtm_kernels.data.build import build_arc
from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)


def random_grid(rng: np.random.Generator, most: int = 30) -> np.ndarray:
    height, width = rng.integers(1, most + 1, 2)
    return rng.integers(0, 10, (height, width)).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_grids_and_augmentations_go_there_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid, augmentation = random_grid(rng), Augmentation.random(rng)
    tokens = encode_grid(grid)
    assert tokens.shape == (900,) and tokens.max() < 12
    assert np.array_equal(decode_grid(tokens), grid)
    assert np.array_equal(augmentation.invert(augmentation.apply(grid)), grid)
    assert Augmentation.from_name(augmentation.name("abc")) == ("abc", augmentation)
    assert np.array_equal(grid == 0, augmentation.invert(augmentation.apply(grid)) == 0)


def test_layout_of_tokens() -> None:
    canvas = encode_grid(np.array([[0, 9]]), row=1, column=2).reshape(30, 30)
    assert canvas[1, 2:4].tolist() == [2, 11] and canvas[2, 2:4].tolist() == [1, 1] and canvas[1, 4] == 1
    assert (canvas > 0).sum() == 5
    assert decode_grid(np.zeros(900, int)).size == 0
    full = np.full((30, 30), 3)
    assert np.array_equal(decode_grid(encode_grid(full)), full)


def test_the_eight_symmetries_are_numbered_as_published() -> None:
    grid = np.arange(6).reshape(2, 3)
    expected = [grid, np.rot90(grid), np.rot90(grid, 2), np.rot90(grid, 3), grid[:, ::-1], grid[::-1], grid.T,
                np.rot90(grid)[:, ::-1]]  # fmt: skip
    assert all(np.array_equal(dihedral(grid, turn), image) for turn, image in enumerate(expected))
    assert Augmentation(3, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)).name("a") == "a|||t3|||0213456789"
    with pytest.raises(InputError, match="identifier="):
        Augmentation.from_name("a|||t9|||0123456789")


def test_task() -> None:
    task = Arc()
    assert task.decode(task.encode("012/345")) == "012/345" == task.decode(task.encode("012\n345\n"))
    assert task.vocab_size == 12 and task.render("01/23") == "01\n23"
    verdict = task.verify("0", "012/345")
    assert not verdict.verified and verdict.reason == "a 2 x 3 grid; ARC has no rule that checks an answer"
    assert "not a grid" in task.verify("0", "01/2").reason
    for text in ("", "0a", "0" * 31, "/".join("0" * 31)):
        with pytest.raises(InputError):
            task.encode(text)


def puzzle(rng: np.random.Generator, pairs: int) -> dict:
    return {"train": [(random_grid(rng, 8), random_grid(rng, 8)) for _ in range(pairs)],
            "test": [(random_grid(rng, 8), random_grid(rng, 8))]}  # fmt: skip


def test_build(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = {"a": puzzle(rng, 3), "b": puzzle(rng, 2)}, {"c": puzzle(rng, 4)}
    counts = build_arc(tmp_path / "arc", train, test, augmentations=5)
    assert counts == {"train": 6 * (4 + 3 + 4), "test": 6, "identifiers": 1 + 18}
    trained, tested = (PuzzleDataset.open(tmp_path / "arc", split) for split in ("train", "test"))
    trained.check_tokens()
    names = trained.identifiers()
    assert names[0] == "<blank>" and [n.split("|||")[0] for n in names[1:]] == ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    examples = tested.sets["all"]
    for row, identifier in enumerate(examples.puzzle_identifiers.tolist()):
        name, augmentation = Augmentation.from_name(names[identifier])
        grid, answer = test[name]["test"][0]
        assert np.array_equal(augmentation.invert(decode_grid(examples.inputs[row])), grid)
        assert np.array_equal(augmentation.invert(decode_grid(examples.labels[row])), answer)
    assert trained.metadata.total_groups == 3 and np.diff(trained.sets["all"].group_indices).tolist() == [6, 6, 6]


def test_read(tmp_path: Path) -> None:
    raw = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3, 4]]}]}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "p.json").write_text(json.dumps(raw))
    (tmp_path / "arc_challenges.json").write_text(json.dumps({"p": raw}))
    (tmp_path / "arc_solutions.json").write_text(json.dumps({"p": [[[5, 6]]]}))
    assert read_arc(tmp_path / "one")["p"]["test"] == []
    (pair,) = read_arc(tmp_path / "arc_challenges.json")["p"]["test"]
    assert [grid.tolist() for grid in pair] == [[[3, 4]], [[5, 6]]]


GRID = [[1]]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "='list' is not allowed: expected a JSON object"),
        ({"p": 3}, "puzzle 'p': train='NoneType' is not allowed: expected a list of pairs under train and under test"),
        ({"p": {"train": [3], "test": []}}, r"train\[0\]='int' is not allowed: expected an object"),
        ({"p": {"train": [], "test": [{"output": GRID}]}}, r"test\[0\]='dict' is not allowed: expected an object"),
        ({"p": {"train": [{"input": [[1], [2, 3]], "output": GRID}], "test": []}}, r"train\[0\].input is not allowed"),
        ({"p": {"train": [{"input": GRID, "output": [[1, 12]]}], "test": []}}, r"train\[0\].output=12 is not allowed"),
        ({"p": {"train": [{"input": [[1.5]], "output": GRID}], "test": []}}, r"input=1.5 is not allowed: expected int"),
    ],
)
def test_what_is_no_puzzle_is_named(tmp_path: Path, content: object, named: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=named) as found:
        read_arc(path)
    assert str(path) in str(found.value)


def test_what_holds_no_puzzles_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"='no .json file' is not allowed"):
        read_arc(tmp_path)
    with pytest.raises(InputError, match="nowhere='absent' is not allowed"):
        read_arc(tmp_path / "nowhere")
    (tmp_path / "a_challenges.json").write_text(json.dumps({"p": {"train": [], "test": [{"input": GRID}]}}))
    (tmp_path / "a_solutions.json").write_text(json.dumps({"p": [GRID, GRID]}))
    with pytest.raises(InputError, match="puzzle 'p': solutions='list' is not allowed: expected a list of 1 grids"):
        read_arc(tmp_path / "a_challenges.json")
    puzzles = {"p": {"train": [(np.array([[1]]), np.array([[2]]))], "test": []}}
    with pytest.raises(InputError, match="test='1 puzzles' is not allowed: at least one of them with a test pair"):
        build_arc(tmp_path / "arc", {}, puzzles, augmentations=1)
    with pytest.raises(InputError, match="either for training or for testing"):
        build_arc(tmp_path / "arc", puzzles, puzzles)
    assert not (tmp_path / "arc").exists()


RNG = np.random.default_rng(4)
TWINS = [Augmentation(), *(Augmentation.random(RNG) for _ in range(5))]
NAMES = ["<blank>", *(twin.name("p") for twin in TWINS), "q"]
INPUT, ANSWER = np.array([[1, 2, 0], [3, 0, 4]], np.uint8), np.array([[5, 6], [7, 8], [9, 1]], np.uint8)
WRONG, OTHER = np.array([[2]], np.uint8), np.array([[3, 3]], np.uint8)


def votes_of(answers: list[tuple[np.ndarray, float]]) -> Votes:
    """One test pair of puzzle p, its twin i predicted as `answers[i]`, and one of puzzle q that nobody predicts."""
    votes = Votes(NAMES)
    for i, twin in enumerate(TWINS, start=1):
        votes.expect(i, encode_grid(twin.apply(INPUT)), encode_grid(twin.apply(ANSWER)))
    votes.expect(len(TWINS) + 1, encode_grid(WRONG), encode_grid(OTHER))
    for i, (answer, confidence) in enumerate(answers):
        twin = TWINS[i]
        votes.add(i + 1, encode_grid(twin.apply(INPUT)), encode_grid(twin.apply(answer)), confidence)
    return votes


def test_twins_vote_for_one_test_input() -> None:
    votes = votes_of([(WRONG, 0.9), (ANSWER, 0.1), (ANSWER, 0.2), (OTHER, 0.99)])
    assert votes.pass_at((1, 2)) == {1: 0.5, 2: 0.5}
    assert votes.submission() == {
        "p": [{"attempt_1": ANSWER.tolist(), "attempt_2": OTHER.tolist()}],
        "q": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }


def test_equal_counts_rank_by_mean_confidence() -> None:
    votes = votes_of([(WRONG, 0.9), (ANSWER, 0.6), (WRONG, 0.1), (ANSWER, 0.5), (OTHER, 1.0)])
    assert votes.pass_at((1,)) == {1: 0.5}
    votes = votes_of([(WRONG, 0.9), (ANSWER, 0.6), (WRONG, 0.5), (ANSWER, 0.5), (OTHER, 1.0)])
    assert votes.pass_at((1, 2)) == {1: 0.0, 2: 0.5}


def test_a_puzzle_counts_by_the_share_of_its_tests() -> None:
    votes = votes_of([(ANSWER, 0.5)])
    votes.expect(1, encode_grid(OTHER), encode_grid(WRONG))
    votes.add(1, encode_grid(OTHER), encode_grid(ANSWER), 0.5)
    assert votes.pass_at((1,)) == {1: (0.5 + 0.0) / 2}
    assert [len(tests) for tests in votes.submission().values()] == [2, 1]


def test_figures_so_far_are_of_the_test_inputs_that_were_tried() -> None:
    votes = votes_of([(ANSWER, 0.5)])
    assert votes.pass_at((1,)) == {1: 0.5} and votes.pass_at((1,), tried=True) == {1: 1.0}
    votes.add(len(TWINS) + 1, encode_grid(WRONG), None, 0.0)  # run, but its latents were not finite
    assert votes.pass_at((1,), tried=True) == {1: 0.5}
    with pytest.raises(InputError, match="identifier=0"):
        votes.add(0, encode_grid(INPUT), encode_grid(ANSWER), 0.5)
