"""`rtm trace` as a person calls it: files, messages and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import invoke, refused
from tests.trace.support import edited, lines, written


@pytest.fixture(scope="module")
def traced(model_folder: Path, puzzles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    texts = [puzzle for puzzle, _ in puzzles[:2]]
    result = invoke(
        "trace", "record", *texts, "--model", model_folder, "--out", path, "--max-steps", "3", "--executor", "reference"
    )
    assert result.exit_code == 0 and f"{path}: 2 puzzles, 0 verified, 6 steps" in result.stdout
    header = json.loads(path.read_text().splitlines()[0])
    assert header["batch_invariant"] is True and header["batch_size"] == 16 and header["executor"] == "reference"
    return path


def test_replay_says_identical(traced: Path) -> None:
    result = invoke("trace", "replay", traced)
    assert result.exit_code == 0 and "identical: 2 puzzles, 6 steps, bit for bit" in result.stdout
    report = json.loads(invoke("trace", "replay", traced, "--json").stdout)
    assert report == {"trace": str(traced), "identical": True, "difference": None, "puzzles": 2, "steps": 6}


def test_replay_names_the_difference(traced: Path, tmp_path: Path) -> None:
    result = invoke("trace", "replay", written(tmp_path, edited(lines(traced), 4, p_halt=0.5)))
    assert result.exit_code == 1 and "line 5: puzzle 1, step 1, p_halt: recorded 0.5" in result.stderr


def test_bad_input(traced: Path, tmp_path: Path, model_folder: Path) -> None:
    path = written(tmp_path, edited(lines(traced), 0, weights_sha256="0" * 64))
    refused(invoke("trace", "replay", path), "weights_sha256 of the model is")
    path.write_text("not a trace\n")
    for command in ("replay", "view"):
        refused(invoke("trace", command, path), "line 1: not JSON")
    result = invoke("trace", "record", "12", "--model", model_folder, "--out", tmp_path / "none.jsonl")
    assert result.exit_code == 2 and not (tmp_path / "none.jsonl").exists()
    refused(
        invoke("trace", "record", "--model", model_folder, "--out", tmp_path / "no" / "f.jsonl", "--limit", "1"),
        "No such file",
    )


def test_a_puzzle_that_cannot_be_read_is_named_and_the_others_are_traced(model_folder: Path, puzzles, tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    result = invoke(
        "trace", "record", puzzles[0][0], "12", "--model", model_folder, "--out", path, "--max-steps", "1", "--json"
    )
    assert result.exit_code == 2 and "argument 2" in result.stderr
    assert json.loads(result.stdout) == {"trace": str(path), "puzzles": 1, "verified": 0, "steps": 1}


def test_view_writes_a_page(traced: Path, tmp_path: Path) -> None:
    result = invoke("trace", "view", traced, "--out", tmp_path / "t.html")
    assert result.exit_code == 0 and (tmp_path / "t.html").read_text().startswith("<!doctype html>")
