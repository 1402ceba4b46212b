from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.data.sudoku import generate, to_text


def rtm(*arguments: str):
    return CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)


def made_by(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["made_by"]


def test_generated_sudokus_become_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data"
    options = ("--size", "4", "--clues", "5", "9", "--count", "80", "--test", "9", "--augmentations", "2", "--json")
    counts = json.loads(rtm("sudoku", str(out), *options).stdout)
    assert counts["test"] == 9 and counts["train"] % 3 == 0 and counts["train"] > 60
    dataset = PuzzleDataset.open(out, "train")
    assert dataset.metadata.vocab_size == 6 and len(dataset.sets["all"].inputs) == counts["train"]
    assert made_by(out)["augmentations"] == 2
    monkeypatch.setattr("rtm_kernels.data.sudoku.generate", lambda *_, **__: pytest.fail("made before it is asked"))
    again = rtm("sudoku", str(out), *options)
    assert again.exit_code == 2 and "exists already" in again.stderr
    monkeypatch.undo()
    assert rtm("sudoku", str(out), *options, "--overwrite").exit_code == 0


def test_sudokus_of_a_file_and_a_test_file(tmp_path: Path) -> None:
    puzzles, solutions = generate(14, seed=3)
    rows = [f"{to_text(p)},{to_text(s)}" for p, s in zip(puzzles, solutions, strict=True)]
    for name, part in (("train.csv", rows[:10]), ("test.csv", rows[10:])):
        (tmp_path / name).write_text("puzzle,solution\n" + "\n".join(part))
    result = rtm("sudoku", str(tmp_path / "out"), "--source", str(tmp_path / "train.csv"),
                 "--test", str(tmp_path / "test.csv"), "--subsample", "6", "--json")  # fmt: skip
    both = [option for name in ("train.csv", "test.csv") for option in ("--source", str(tmp_path / name))]
    counts = json.loads(rtm("sudoku", str(tmp_path / "both"), *both, "--test", "2", "--json").stdout)
    assert (counts["train"], counts["test"]) == (12, 2)
    assert made_by(tmp_path / "both")["source"] == "train.csv, test.csv"
    assert json.loads(result.stdout) | {"seconds": 0, "data": ""} == {
        "data": "", "train": 6, "test": 4, "twins_dropped": 0, "seconds": 0,
    }  # fmt: skip


def test_what_to_train_next_fits_the_size(tmp_path: Path) -> None:
    small = rtm("sudoku", str(tmp_path / "4"), "--size", "4", "--clues", "5", "9", "--count", "40", "--test", "4")
    assert "rtm train sudoku-4x4" in small.stdout
    plain = rtm("sudoku", str(tmp_path / "9"), "--count", "20", "--test", "4")
    assert "rtm train trm-sudoku-repo" in plain.stdout


def test_generated_mazes_become_a_data_set(tmp_path: Path) -> None:
    result = rtm(
        "maze", str(tmp_path / "m"), "--side", "8", "--path-cells", "8", "--count", "12", "--test", "3", "--augmented"
    )
    assert result.exit_code == 0 and "rtm train trm-maze-repo" in result.stdout
    assert len(PuzzleDataset.open(tmp_path / "m", "train").sets["all"].inputs) == 9 * 8


def test_arc_puzzles_of_folders(tmp_path: Path) -> None:
    pair = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
    for part in ("training", "evaluation"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{part}.json").write_text(json.dumps({"train": [pair, pair], "test": [pair]}))
    folders = ("--train", str(tmp_path / "training"), "--test", str(tmp_path / "evaluation"))
    result = rtm("arc", str(tmp_path / "arc"), *folders, "--augmentations", "3", "--json")
    counts = json.loads(result.stdout)
    assert (counts["train"], counts["test"], counts["identifiers"]) == (4 * 5, 4, 9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sudoku", "--size", "5"], "size=5"),
        (["sudoku", "--difficulty", "hard"], "difficulty='hard'"),
        (["sudoku", "--source", "/nowhere.csv"], "/nowhere.csv"),
        (["sudoku", "--count", "20", "--test", "20"], "test=20"),
        (["maze", "--side", "99"], "side=99"),
        (["arc", "--train", "/nowhere"], "--train and --test"),
    ],
)
def test_bad_arguments_end_in_one_line_and_code_2(arguments: list[str], named: str, tmp_path: Path) -> None:
    result = rtm(arguments[0], str(tmp_path / "out"), *arguments[1:])
    assert result.exit_code == 2 and named in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
