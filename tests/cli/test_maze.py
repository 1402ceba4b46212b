"""Mazes of any side, from data to the viewer: the task is told by the model's sizes and named by the side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.data.maze import generate
from rtm_kernels.data.task import get_task

TINY = ["model.hidden_size=16", "model.num_heads=2", "model.expansion=1", "model.L_cycles=1", "model.H_cycles=1",
        "model.forward_dtype=float32", "stages.*.batch_size=8", "stages.*.halt_max_steps=2", "warmup_steps=1",
        "eval_steps=2", "eval_limit=10", "eval_every=2"]  # fmt: skip
SOURCES = ["sudoku-4x4", "symmetric=false", "model.seq_len=25", "stages.0.steps=2", "stages.1.steps=2",
           "sources.all.task=maze", "sources.all.size=5", "sources.all.count=40",
           "test.task=maze", "test.size=5", "test.count=10"]  # fmt: skip


def rtm(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maze")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """A data set of mazes of side 9."""
    result = rtm("data", "maze", str(folder / "data"), "--side", "9", "--count", "40", "--test", "8", "--json")
    assert json.loads(result.stdout)["test"] == 8
    return folder / "data"


@pytest.fixture(scope="module")
def mazes(folder: Path) -> str:
    """A csv file of mazes of side 9 with their solutions."""
    task = get_task("maze9")
    pairs = zip(*generate(8, seed=5, side=9), strict=True)
    lines = [f"{task.decode(maze)},{task.decode(answer)}" for maze, answer in pairs]
    (folder / "mazes.csv").write_text("\n".join(["question,answer", *lines]))
    return str(folder / "mazes.csv")


@pytest.fixture(scope="module")
def model(folder: Path, data: Path) -> Path:
    """A model trained on it for a moment."""
    out = folder / "run"
    recipe = ["trm-maze-repo", f"data={data}", "epochs=1", "augment=true", "model.puzzle_emb_ndim=16", *TINY]
    result = rtm("train", *recipe, "--out", str(out), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["unseen_puzzles"] == 8, result.stderr
    return out


def test_it_is_measured_and_solved_by_the_name_of_its_side(model: Path, data: Path, mazes: str) -> None:
    for source in (str(data), mazes):
        report = json.loads(rtm("eval", source, "--model", str(model), "--max-steps", "2", "--json").stdout)
        assert report["n"] == 8 and 0 <= report["verified"] <= 1 and "best" in report
    generated = ["--generate", "task=maze", "--generate", "size=9", "--generate", "count=5", "--generate", "seed=3"]
    assert json.loads(rtm("eval", *generated, "--model", str(model), "--max-steps", "1", "--json").stdout)["n"] == 5
    solved = rtm("solve", mazes, "--model", str(model / "model"), "--max-steps", "1", "--json")
    answers = [json.loads(line) for line in solved.stdout.splitlines()]
    assert {answer["task"] for answer in answers} == {"maze9"} and {len(answer["input"]) for answer in answers} == {81}
    shown = rtm("solve", mazes, "--model", str(model / "model"), "--max-steps", "1", "--show", "1")
    assert answers[0]["input"][:9].strip() in shown.stdout


def test_its_trace_is_replayed_and_drawn(model: Path, mazes: str, folder: Path) -> None:
    trace, page = folder / "trace.jsonl", folder / "page.html"
    arguments = [mazes, "--model", str(model / "model"), "--max-steps", "2", "--limit", "2"]
    assert rtm("trace", "record", *arguments, "--out", str(trace)).exit_code == 0
    header = json.loads(trace.read_text().splitlines()[0])
    assert header["task"] == "maze9" and (header["layout"]["rows"], header["layout"]["columns"]) == (9, 9)
    assert "identical: 2 puzzles" in rtm("trace", "replay", str(trace)).stdout
    assert rtm("trace", "view", str(trace), "--out", str(page)).exit_code == 0 and "maze9" in page.read_text()


def test_recipes_generate_them_too(folder: Path) -> None:
    out = folder / "generated"
    result = rtm("train", *SOURCES, *TINY, "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(rtm("eval", str(out / "unseen.csv"), "--model", str(out), "--max-steps", "1", "--json").stdout)
    assert report["n"] == 10


@pytest.mark.parametrize("side", ["4", "65"])
def test_other_sides_and_bundled_mazes_are_refused(side: str, folder: Path, model: Path) -> None:
    assert rtm("data", "maze", str(folder / side), "--side", side).exit_code == 2
    result = rtm("eval", "--generate", "task=maze", "--generate", f"size={side}")
    assert result.exit_code == 2 and f"size={side} is not allowed: a side of a maze: 5 to 64" in result.stderr

    result = rtm("solve", "--model", str(model / "model"))
    assert result.exit_code == 2
    assert "no puzzles were given, and there are bundled examples only of sudoku, not of maze9" in result.stderr
