"""Mazes of any side, from data to the viewer: the task is told by the model's sizes and named by the side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtm_kernels.data.maze import generate
from rtm_kernels.data.task import get_task
from tests.cli.conftest import invoke as rtm
from tests.cli.conftest import refused

TINY = ["model.hidden_size=16", "model.num_heads=2", "model.expansion=1", "model.L_cycles=1", "model.H_cycles=1",
        "model.forward_dtype=float32", "stages.*.batch_size=8", "stages.*.halt_max_steps=2", "warmup_steps=1",
        "eval_steps=2", "eval_limit=10", "eval_every=2"]  # fmt: skip
SOURCES = ["sudoku-4x4", "symmetric=false", "model.seq_len=25", "stages.0.steps=2", "stages.1.steps=2",
           "sources.all.task=maze", "sources.all.size=5", "sources.all.count=40",
           "test.task=maze", "test.size=5", "test.count=10"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of mazes of side 9, and a model trained on it for a moment."""
    folder = tmp_path_factory.mktemp("maze")
    result = rtm("data", "maze", folder / "data", "--side", "9", "--count", "40", "--test", "8", "--json")
    assert json.loads(result.stdout)["test"] == 8
    recipe = ["trm-maze-repo", f"data={folder / 'data'}", "epochs=1", "augment=true", "model.puzzle_emb_ndim=16", *TINY]
    result = rtm("train", *recipe, "--out", folder / "run", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["unseen_puzzles"] == 8, result.stderr
    return folder


def test_it_is_measured_solved_and_traced_by_the_name_of_its_side(folder: Path) -> None:
    task, model, mazes = get_task("maze9"), folder / "run" / "model", folder / "mazes.csv"
    pairs = zip(*generate(8, seed=5, side=9), strict=True)
    lines = [f"{task.decode(maze)},{task.decode(answer)}" for maze, answer in pairs]
    mazes.write_text("\n".join(["question,answer", *lines]))
    generated = ["--generate", "task=maze", "--generate", "size=9", "--generate", "count=8", "--generate", "seed=3"]
    for source in ([folder / "data"], [mazes], generated):
        report = json.loads(rtm("eval", *source, "--model", folder / "run", "--max-steps", "1", "--json").stdout)
        assert report["n"] == 8 and 0 <= report["verified"] <= 1 and "best" in report
    solved = rtm("solve", mazes, "--model", model, "--max-steps", "1", "--json")
    answers = [json.loads(line) for line in solved.stdout.splitlines()]
    assert {answer["task"] for answer in answers} == {"maze9"} and {len(answer["input"]) for answer in answers} == {81}
    shown = rtm("solve", mazes, "--model", model, "--max-steps", "1", "--show", "1")
    assert answers[0]["input"][:9].strip() in shown.stdout
    trace = folder / "trace.jsonl"
    rtm("trace", "record", mazes, "--model", model, "--max-steps", "2", "--limit", "2", "--out", trace)
    header = json.loads(trace.read_text().splitlines()[0])
    assert header["task"] == "maze9" and (header["layout"]["rows"], header["layout"]["columns"]) == (9, 9)
    assert "identical: 2 puzzles" in rtm("trace", "replay", trace).stdout


def test_recipes_generate_them_too(folder: Path) -> None:
    out = folder / "generated"
    result = rtm("train", *SOURCES, *TINY, "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(rtm("eval", str(out / "unseen.csv"), "--model", str(out), "--max-steps", "1", "--json").stdout)
    assert report["n"] == 10


def test_a_side_that_no_maze_has_is_refused_and_others_are_solved(folder: Path) -> None:
    refused(rtm("eval", "--generate", "task=maze", "--generate", "size=65"), "size=65 is not allowed: a side of a maze")
    # attention with RoPE runs at every length
    few = ["--limit", "2", "--max-steps", "1", "--rollouts", "1", "--json"]
    solved = rtm("solve", "--model", folder / "run" / "model", *few).stdout
    assert [json.loads(line)["task"] for line in solved.splitlines()] == ["maze7", "maze9"]


def test_the_bundled_model_solves_every_side(tmp_path: Path) -> None:
    mazes = [get_task(f"maze{side}").render(get_task(f"maze{side}").decode(generate(1, seed=4, side=side)[0][0]))
             for side in (5, 7, 10)]  # fmt: skip
    (tmp_path / "mazes.txt").write_text("\n\n".join(mazes))
    solved = rtm("solve", tmp_path / "mazes.txt", "--json")
    answers = [json.loads(line) for line in solved.stdout.splitlines()]
    assert [answer["task"] for answer in answers] == ["maze5", "maze7", "maze10"] and solved.exit_code == 0
    shown = rtm("solve", mazes[1], "--show", "1")
    assert shown.exit_code == 0 and "verified after" in shown.stdout
    refused(rtm("solve", "S..G", "--model", "maze"), "puzzle length=4 is not allowed: a square, of side 5 to 64")
    examples = rtm("solve", "--example", "maze", "--limit", "3", "--json")
    assert examples.exit_code == 0 and examples.stdout.count('"status": "verified"') == 3
    measured = rtm("eval", "--generate", "task=maze", "--generate", "size=8", "--generate", "count=6", "--json")
    assert json.loads(measured.stdout)["verified"] == 1
    trace = tmp_path / "trace.jsonl"
    rtm("trace", "record", mazes[2], "--out", trace)
    assert json.loads(trace.read_text().splitlines()[0])["task"] == "maze10"
    assert "identical: 1 puzzles" in rtm("trace", "replay", trace).stdout
