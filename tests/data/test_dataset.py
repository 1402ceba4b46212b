"""Data sets on disk: round trips, the published one, and what hostile files and arrays are answered with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rtm_kernels.data import dataset as module
from rtm_kernels.data.build import build_maze, build_sudoku
from rtm_kernels.data.dataset import Examples, Metadata, PuzzleDataset, write_dataset
from rtm_kernels.data.loader import Arrays, TrainLoader, read_examples
from rtm_kernels.data.maze import Maze
from rtm_kernels.data.maze import generate as generate_mazes
from rtm_kernels.data.sudoku import Sudoku, augment, generate, to_text, verify
from rtm_kernels.data.sudoku.canonical import canonical
from rtm_kernels.errors import InputError

BOARDS = generate(24, seed=9)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "sudoku"
    build_sudoku(out, BOARDS, test=4, augmentations=2)
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of a data set, to damage."""
    return shutil.copytree(built, tmp_path / "sudoku")


def test_round_trip(tmp_path: Path) -> None:
    inputs = np.arange(24, dtype=np.uint8).reshape(6, 4) % 5
    labels = (inputs.astype(np.int32) + 1) % 5
    examples = Examples(inputs, labels, np.array([1, 0, 2]), np.array([0, 1, 3, 6]), np.array([0, 2, 3]))
    metadata = Metadata.of(examples, 5, num_puzzle_identifiers=3)
    write_dataset(tmp_path / "d", {"train": examples}, 5, identifiers=["<blank>", "a", "b"])
    found = PuzzleDataset.open(tmp_path / "d")
    assert found.metadata == metadata and found.identifiers() == ["<blank>", "a", "b"]
    assert (metadata.total_groups, metadata.total_puzzles, metadata.mean_puzzle_examples) == (2, 3, 2.0)
    for name in module.FIELDS:
        assert np.array_equal(getattr(found.sets["all"], name), getattr(examples, name))
    arrays = {p.name: np.load(p, allow_pickle=False).dtype for p in (tmp_path / "d" / "train").glob("*.npy")}
    assert arrays == {f"all__{n}.npy": np.uint8 if n in ("inputs", "labels") else np.int32 for n in module.FIELDS}
    content = json.loads((tmp_path / "d" / "train" / "dataset.json").read_text())
    assert content == {**content, "pad_id": 0, "ignore_label_id": 0, "sets": ["all"], "seq_len": 4, "vocab_size": 5}


def test_sudoku_builder(folder: Path, tmp_path: Path) -> None:
    train, test = (PuzzleDataset.open(folder, split).sets["all"] for split in ("train", "test"))
    assert len(train.inputs) == 60 and len(test.inputs) == 4
    assert np.array_equal(train.group_indices, np.arange(0, 61, 3))
    for examples in (train, test):
        assert verify(examples.inputs - 1, examples.labels - 1).all()
    forms = [{bytes(f) for f in canonical(np.array(e.inputs) - 1, np.array(e.labels) - 1)} for e in (train, test)]
    assert len(forms[0]) == 20 and len(forms[1]) == 4 and not forms[0] & forms[1]
    made_by = json.loads((folder / "manifest.json").read_text())["made_by"]
    assert made_by["builder"] == "sudoku" and made_by["augmentations"] == 2 and made_by["seed"] == 0
    again = tmp_path / "again"
    build_sudoku(again, BOARDS, test=4, augmentations=2)
    assert (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_twins_never_straddle_the_split(tmp_path: Path) -> None:
    puzzles, solutions = BOARDS
    twins = augment(puzzles[:10], solutions[:10], np.random.default_rng(1))
    counts = build_sudoku(tmp_path / "a", BOARDS, test=twins)
    assert counts == {"train": 14, "test": 10, "twins_dropped": 10}
    both = tuple(np.concatenate([a, b]) for a, b in zip(BOARDS, twins, strict=True))
    counts = build_sudoku(tmp_path / "b", both, test=5, subsample=12)
    assert counts["train"] == 12 and counts["test"] == 5
    with pytest.raises(InputError, match="every training puzzle is a twin"):
        build_sudoku(tmp_path / "c", tuple(b[:10] for b in BOARDS), test=twins)


def test_csv_without_solutions_is_solved(tmp_path: Path) -> None:
    texts = [to_text(p) for p in BOARDS[0]]
    answers = [to_text(s) if i % 2 else "" for i, s in enumerate(BOARDS[1])]
    rows = [f"x,{text},{answer},{i}" for i, (text, answer) in enumerate(zip(texts, answers, strict=True))]
    (tmp_path / "s.csv").write_text("\n".join(["source,question,answer,rating", *rows]))
    counts = build_sudoku(tmp_path / "a", tmp_path / "s.csv", test=2, min_rating=4)
    assert counts == {"train": 18, "test": 2, "twins_dropped": 0}
    labels = PuzzleDataset.open(tmp_path / "a").sets["all"].labels
    assert {Sudoku().decode(row) for row in labels} <= {to_text(s) for s in BOARDS[1][4:]}
    (tmp_path / "bad.csv").write_text("puzzle\n" + "\n".join([texts[0], "." * 81]))
    with pytest.raises(InputError, match=r"bad\.csv: puzzle 2 has more than one solution"):
        build_sudoku(tmp_path / "b", tmp_path / "bad.csv", test=1)
    assert not (tmp_path / "b").exists()


def test_only_a_data_set_is_replaced_and_only_on_request(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="it exists already"):
        build_sudoku(folder, BOARDS, test=5)
    for place in (kept, kept / "notes.txt"):
        with pytest.raises(InputError, match="overwrite replaces a data set or an empty folder, nothing else"):
            build_sudoku(place, BOARDS, test=5, overwrite=True)
    assert (kept / "notes.txt").read_text() == "mine"
    (tmp_path / "link").symlink_to(folder)
    build_sudoku(tmp_path / "link", BOARDS, test=5, overwrite=True)
    assert (tmp_path / "link").is_symlink() and len(PuzzleDataset.open(folder, "test").sets["all"].inputs) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "sudoku"]


def test_mazes_are_turned_or_named(tmp_path: Path) -> None:
    (maze, answer), task = generate_mazes(12, seed=1, side=9, path_cells=12), Maze(9)
    counts = build_maze(tmp_path / "m", (maze, answer), test=3, side=9, augmented=True)
    assert counts == {"train": 72, "test": 3, "twins_dropped": 0}
    train = PuzzleDataset.open(tmp_path / "m").sets["all"]
    assert len({bytes(row) for row in train.inputs[:8]}) == 8 and len(train.group_indices) == 10
    texts = task.decode(maze[0]), task.decode(answer[0])
    for rows, named in (
        (f"{texts[0]},", "line 2: no solution"),
        (f"{texts[0]},{texts[0]}", "line 2: solution is not allowed: the marked cells do not lead from S to G"),
        (f"{texts[0][1:]},{texts[1]}", "line 2: puzzle length=80"),
        ("", "the input is empty"),
    ):
        (tmp_path / "m.csv").write_text(f"question,answer\n{rows}\n")
        with pytest.raises(InputError, match=r"m\.csv: .*" + named):
            build_maze(tmp_path / "out", tmp_path / "m.csv", test=1, side=9)
    assert not (tmp_path / "out").exists()


def save(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda split: np.save(split / f"all__{name}.npy", array)


def edit(**changes: object) -> Callable[[Path], None]:
    def change(split: Path) -> None:
        path = split / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda split: (split / name).write_bytes(content)


def header(text: str) -> Callable[[Path], None]:
    size = (len(text) + 1).to_bytes(2, "little")
    return write("all__inputs.npy", b"\x93NUMPY\x01\x00" + size + text.encode() + b"\n")


def pickled(split: Path) -> None:
    np.save(split / "all__labels.npy", np.array([{}, None], dtype=object), allow_pickle=True)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (pickled, "dtype='object' is not allowed"),
    "float": (save("inputs", np.zeros((60, 81))), "dtype='float64'"),
    "shape": (save("labels", np.ones((60, 80), np.uint8)), r"labels.shape=\(60, 80\)"),
    "fortran": (save("inputs", np.asfortranarray(np.ones((60, 81), np.uint8))), "order='Fortran'"),
    "falling": (save("puzzle_indices", np.arange(60, -1, -1)), "puzzle_indices=.* expected increasing"),
    "identifier": (save("puzzle_identifiers", np.full(60, 7)), "puzzle_identifiers=.* expected 0 to 0"),
    "truncated": (header("{'descr':'|u1','fortran_order':False,'shape':(60,81)}"), "size="),
    "vast": (header("{'descr':'<i8','fortran_order':False,'shape':(4611686018427387904,4)}"), "size="),
    "code": (header("__import__('os').abort()"), "not a .npy"),
    "no json": (write("dataset.json", b"{"), "is not JSON"),
    "nested": (write("dataset.json", b"[" * 100_000), "is not JSON"),
    "long json": (write("dataset.json", b" " * (1 << 21)), "size of .*expected at most"),
    "traversal": (edit(sets=["../../secret"]), "sets="),
    "text": (edit(seq_len="81"), "seq_len='81'"),
    "nan": (edit(mean_puzzle_examples=float("nan")), "mean_puzzle_examples=nan"),
    "pad": (edit(pad_id=11), "pad_id=11"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_clear_error(folder: Path, name: str) -> None:
    attack, message = HOSTILE[name]
    attack(folder / "train")
    with pytest.raises(InputError, match=message) as caught:
        PuzzleDataset.open(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_tokens_outside_the_vocabulary_and_absent_files_are_named(folder: Path) -> None:
    path = folder / "train" / "all__inputs.npy"
    tokens = np.load(path)
    tokens[7, 3] = 11
    np.save(path, tokens)
    found = PuzzleDataset.open(folder)
    with pytest.raises(InputError, match=r"train/all: inputs\[7, 3\]=11 is not allowed: expected 0 to 10"):
        found.check_tokens()
    (folder / "train" / "all__labels.npy").unlink()
    with pytest.raises(InputError, match=r"all__labels\.npy='absent'"):
        PuzzleDataset.open(folder)
    with pytest.raises(InputError, match=r"nothing/train/dataset\.json='absent'"):
        PuzzleDataset.open(folder.parent / "nothing")
    os.mkfifo(folder / "train" / "all__labels.npy")
    with pytest.raises(InputError, match="absent"):
        PuzzleDataset.open(folder)


def test_metadata_of_the_published_mazes_lacks_a_count() -> None:
    content = {"pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 6, "seq_len": 900}
    content |= {"num_puzzle_identifiers": 1, "total_groups": 1000, "mean_puzzle_examples": 1.0, "sets": ["all"]}
    assert Metadata.from_json(content).total_puzzles == 0
    with pytest.raises(InputError, match="seq_len='absent'"):
        Metadata.from_json({"vocab_size": 6})


TASK = Sudoku(4)
PUZZLES, SOLUTIONS = generate(60, seed=1, size=4)


def in_memory(examples: Examples, vocab_size: int, num_puzzle_identifiers: int = 1) -> PuzzleDataset:
    return PuzzleDataset(Metadata.of(examples, vocab_size, num_puzzle_identifiers), {"all": examples})


DATASET = in_memory(Examples.of_single(PUZZLES + 1, SOLUTIONS + 1, puzzles_per_group=3), 6)


def numbered(sizes: list[int], puzzles_per_group: int = 2) -> PuzzleDataset:
    """Puzzle p has sizes[p] examples; every token of example e is e + 1."""
    ends = np.cumsum([0, *sizes])
    tokens = (1 + np.arange(ends[-1]))[:, None].repeat(4, axis=1)
    groups = np.arange(0, len(sizes) + 1, puzzles_per_group)
    examples = Examples(tokens, tokens, np.arange(len(sizes)), ends, groups)
    return in_memory(examples, int(ends[-1]) + 1, num_puzzle_identifiers=len(sizes))


def same(first: Arrays, second: Arrays) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_the_sampling_is_the_official_one() -> None:
    """One Philox stream per pass: a permutation of the groups, then one puzzle per group, drawn one after the other."""
    loader = TrainLoader(DATASET, 8, seed=5)
    for passed in (1, 2):
        rng = np.random.Generator(np.random.Philox(seed=5 + passed))
        rows = [int(rng.integers(3 * group, 3 * group + 3)) for group in rng.permutation(20)]
        found = np.concatenate([loader.next_batch()["inputs"] for _ in range(2)])  # the rest of 20 is dropped
        assert np.array_equal(found, DATASET.sets["all"].inputs[rows[:16]]) and found.dtype == np.int32


def test_puzzles_of_many_examples_fill_batches() -> None:
    sizes = [3, 3, 2, 2, 5, 5, 1, 1]
    ends = np.cumsum([0, *sizes])
    seen: set[int] = set()
    loader = TrainLoader(numbered(sizes), 4, seed=2)
    for _ in range(60):
        batch = loader.next_batch()
        examples, owners = batch["inputs"][:, 0] - 1, batch["puzzle_identifiers"]
        assert len(examples) == 4 and len(set(examples.tolist())) == 4
        assert np.array_equal(np.searchsorted(ends, examples, side="right") - 1, owners)
        assert len({int(owner) // 2 for owner in owners}) == len(set(owners.tolist()))  # one puzzle per group
        seen |= set(examples.tolist())
    assert seen == set(range(ends[-1]))


def test_resuming_at_any_batch_is_exact() -> None:
    for dataset, twin in ((DATASET, TASK.augment), (numbered([3, 1, 2, 2, 5, 4, 1, 6]), None)):
        first = TrainLoader(dataset, 5, seed=3, augment=twin)
        states, whole = [], []
        for _ in range(12):
            states.append(first.state_dict())
            whole.append(first.next_batch())
        for cut, state in enumerate(states):
            second = TrainLoader(dataset, 5, seed=3, augment=twin)
            second.load_state_dict(state)
            assert all(same(second.next_batch(), batch) for batch in whole[cut:])


def test_augmentation_streams_fresh_twins_and_ignored_labels_become_minus_100() -> None:
    loader = TrainLoader(DATASET, 20, seed=1, augment=TASK.augment)
    first, second = loader.next_batch(), loader.next_batch()
    for batch in (first, second):
        assert verify(batch["inputs"] - 1, batch["labels"] - 1).all()
    plain = TrainLoader(DATASET, 20, seed=1).next_batch()
    assert not same(first, plain)
    assert np.array_equal((first["inputs"] > 1).sum(axis=1), (plain["inputs"] > 1).sum(axis=1))
    labels = np.where(PUZZLES > 0, 0, SOLUTIONS + 1)
    arrays, _ = read_examples(in_memory(Examples.of_single(PUZZLES + 1, labels), 6))
    assert np.array_equal(arrays["labels"] == -100, PUZZLES > 0)


@pytest.mark.parametrize("limit", [None, 5, 99])
def test_examples_are_read_in_order_up_to_a_limit(limit: int | None) -> None:
    arrays, names = read_examples(numbered([3, 1, 2, 2, 5, 4]), limit)
    assert arrays["inputs"][:, 0].tolist() == list(range(1, 18))[:limit] == arrays["labels"][:, 0].tolist()
    assert arrays["puzzle_identifiers"].tolist() == np.repeat(range(6), [3, 1, 2, 2, 5, 4]).tolist()[:limit]
    assert names == ["all"] * len(arrays["inputs"])


@pytest.mark.parametrize(
    ("arguments", "state", "message"),
    [({"batch_size": 0}, {}, "batch_size=0"), ({"batch_size": 21}, {}, "a pass gives 20 examples"),
     ({"seed": -1}, {}, "seed=-1"), ({}, {"seed": 3}, r"state\['seed'\]=3 is not allowed: this loader has 0"),
     ({}, {"batch": -1}, r"state\['batch'\]=-1")],
)  # fmt: skip
def test_wrong_settings(arguments: dict, state: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader = TrainLoader(DATASET, **{"batch_size": 4, "seed": 0, **arguments})
        loader.load_state_dict({**loader.state_dict(), **state})
        loader.next_batch()
