from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.data.sudoku import generate, to_text
from tests.cli.conftest import invoke, refused


def made_by(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["made_by"]


def test_generated_sudokus_become_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("data", "sudoku", tmp_path / "data", "--size", 4, "--clues", 5, 9, "--count", 80, "--test", 9,
               "--augmentations", 2)  # fmt: skip
    counts = json.loads(invoke(*command, "--json").stdout)
    assert counts["test"] == 9 and counts["train"] % 3 == 0 and counts["train"] > 60
    dataset = PuzzleDataset.open(tmp_path / "data", "train")
    assert dataset.metadata.vocab_size == 6 and len(dataset.sets["all"].inputs) == counts["train"]
    assert made_by(tmp_path / "data")["augmentations"] == 2
    with monkeypatch.context() as patch:
        patch.setattr("rtm_kernels.data.sudoku.generate", lambda *_, **__: pytest.fail("made before it is asked"))
        refused(invoke(*command), "exists already")
    again = invoke(*command, "--overwrite")
    assert again.exit_code == 0 and "rtm train sudoku-4x4" in again.stdout


def test_sudokus_of_files(tmp_path: Path) -> None:
    puzzles, solutions = generate(14, seed=3)
    rows = [f"{to_text(p)},{to_text(s)}" for p, s in zip(puzzles, solutions, strict=True)]
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    for path, part in ((train, rows[:10]), (test, rows[10:])):
        path.write_text("puzzle,solution\n" + "\n".join(part))
    options = ("--source", train, "--test", test, "--subsample", 6, "--json")
    counts = json.loads(invoke("data", "sudoku", tmp_path / "out", *options).stdout)
    assert (counts["train"], counts["test"], counts["twins_dropped"]) == (6, 4, 0)
    counts = json.loads(
        invoke("data", "sudoku", tmp_path / "both", "--source", train, "--source", test, "--test", 2, "--json").stdout
    )
    assert (counts["train"], counts["test"]) == (12, 2)
    assert made_by(tmp_path / "both")["source"] == "train.csv, test.csv"


def test_generated_mazes_become_a_data_set(tmp_path: Path) -> None:
    options = ("--side", 8, "--path-cells", 8, "--count", 12, "--test", 3, "--augmented")
    result = invoke("data", "maze", tmp_path / "m", *options)
    assert result.exit_code == 0 and "rtm train trm-maze-repo" in result.stdout
    assert len(PuzzleDataset.open(tmp_path / "m", "train").sets["all"].inputs) == 9 * 8


def test_arc_puzzles_of_folders(tmp_path: Path) -> None:
    pair = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
    for part in ("training", "evaluation"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{part}.json").write_text(json.dumps({"train": [pair, pair], "test": [pair]}))
    options = ("--train", tmp_path / "training", "--test", tmp_path / "evaluation", "--augmentations", 3, "--json")
    counts = json.loads(invoke("data", "arc", tmp_path / "arc", *options).stdout)
    assert (counts["train"], counts["test"], counts["identifiers"]) == (4 * 5, 4, 9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sudoku", "--size", "5"], "size=5"),
        (["sudoku", "--difficulty", "hard"], "difficulty='hard'"),
        (["sudoku", "--source", "/nowhere.csv"], "/nowhere.csv"),
        (["sudoku", "--count", "20", "--test", "20"], "test=20"),
        (["maze", "--side", "4"], "side=4"),
        (["maze", "--side", "65"], "side=65"),
        (["arc", "--train", "/nowhere", "--test", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_arguments_end_in_one_line_and_code_2(arguments: list[str], named: str, tmp_path: Path) -> None:
    refused(invoke("data", arguments[0], tmp_path / "out", *arguments[1:]), named)
    assert not (tmp_path / "out").exists()
