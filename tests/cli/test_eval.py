from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.build import build_arc, build_maze
from rtm_kernels.data.dataset import Examples, write_dataset
from rtm_kernels.data.maze import generate as generate_mazes
from rtm_kernels.data.task import get_task
from rtm_kernels.engine import Measurement
from rtm_kernels.model import RecursiveReasoner
from tests.cli.conftest import invoke, refused

ORACLE = ("--executor", "oracle")
KEYS = {"model", "data", "n", "exact_accuracy", "token_accuracy", "verified", "mean_steps", "depth_histogram",
        "seconds", "puzzles_per_second"}  # fmt: skip


@pytest.fixture
def labelled(tmp_path: Path, puzzles) -> str:
    path = tmp_path / "puzzles.csv"
    path.write_text("puzzle,solution\n" + "\n".join(",".join(pair) for pair in puzzles))
    return str(path)


@pytest.mark.usefixtures("oracle")
def test_both_protocols_are_measured_and_compared_in_turns(rtm, labelled: str, puzzles) -> None:
    whole = json.loads(rtm("eval", labelled, "--json", *ORACLE).stdout)
    steps = [p.count(".") % 3 + 1 for p, _ in puzzles]
    assert set(whole) >= KEYS and (whole["n"], whole["data"]) == (6, labelled)
    assert whole["exact_accuracy"] == whole["token_accuracy"] == whole["verified"] == 1
    assert whole["mean_steps"] == pytest.approx(sum(steps) / 6)
    assert whole["depth_histogram"] == {str(d): steps.count(d) for d in sorted(set(steps))}
    assert whole["fixed"]["depth_histogram"] == {"6": 6} and whole["fixed"]["exact_accuracy"] == 1
    alone = json.loads(rtm("eval", labelled, "--json", *ORACLE, "--no-fixed").stdout)
    turns = json.loads(rtm("eval", labelled, "--json", *ORACLE, "--rounds", "3").stdout)
    assert "fixed" not in alone and "comparison" not in alone and alone["complete"]
    for name in ("n", "exact_accuracy", "mean_steps", "depth_histogram"):
        assert alone[name] == turns[name] == whole[name] and turns["fixed"][name] == whole["fixed"][name]
    assert turns["accuracy_by_step"] == [] and len(whole["accuracy_by_step"]) == 3
    ratios = turns["comparison"]["speed_ratios"]
    assert len(ratios) == 3 and min(ratios) <= turns["comparison"]["speed_ratio"] <= max(ratios)
    assert turns["comparison"]["steps_ratio"] == whole["comparison"]["steps_ratio"] == 6 / whole["mean_total_steps"]
    shown = rtm("eval", labelled, *ORACLE, "--rounds", "2").stdout.replace("\n", " ")
    assert "fixed steps (official)" in shown and "100.00 %" in shown
    assert "times fewer steps" in shown and "over 2 rounds" in shown and "as the cap grows" not in shown


def test_a_run_that_has_not_ended_is_measured_at_its_best(
    rtm, labelled: str, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "run" / "best")
    options = ("--model", str(tmp_path / "run"), "--max-steps", "1", "--limit", "2")
    result = rtm("eval", labelled, *options)
    assert result.exit_code == 0 and f"{tmp_path / 'run'} (best) on" in result.stdout.replace("\n", "")
    report = json.loads(rtm("eval", labelled, *options, "--json").stdout)
    assert report["n"] == 2 and report["exact_accuracy"] == report["verified"] == 0 < report["token_accuracy"] < 0.5


@pytest.mark.usefixtures("oracle")
def test_eval_reads_the_public_csv_form_with_a_row_per_source(rtm, labelled: str, tmp_path: Path, puzzles) -> None:
    other = tmp_path / "mixed.csv"
    rows = [f"{name},{puzzle},{solution},3" for name, (puzzle, solution) in zip("aab", puzzles[:3], strict=True)]
    other.write_text("\n".join(["source,question,answer,rating", *rows]))
    report = json.loads(rtm("eval", str(other), "--json", *ORACLE).stdout)
    assert {name: row["n"] for name, row in report["sources"].items()} == {"a": 2, "b": 1}
    result = rtm("eval", labelled, str(other), *ORACLE, "--json")
    report = json.loads(result.stdout)
    assert {name: row["n"] for name, row in report["sources"].items()} == {"puzzles": 6, "mixed": 3}
    assert report["n"] == 9 and report["accuracy_by_step"][-1] == 1 and len(report["fixed"]["accuracy_by_step"]) == 6
    assert report["halting_accuracy"] == 1 and "eval 9/18: verified, exact so far 100.0 %" in result.stderr
    assert "mixed" in rtm("eval", labelled, str(other), *ORACLE).stdout


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize(
    ("model_is_a_run", "after", "told"),
    [(False, 2, "2 of 6 puzzles"), (False, 6, "6 of 6 puzzles"), (True, 12, "0 of 6 puzzles for best")],
    ids=["in the first pass", "between the passes", "between two models"],
)
def test_an_interrupted_eval_reports_what_has_finished(
    rtm, labelled: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_is_a_run: bool,
    after: int, told: str,
) -> None:  # fmt: skip
    original, calls = Measurement._finished, []
    for name in ("model", "best"):
        shutil.copytree(model_folder, tmp_path / "run" / name)

    def interrupting(self: Measurement, done: object) -> None:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(done)
        original(self, done)

    monkeypatch.setattr(Measurement, "_finished", interrupting)
    model = ("--model", str(tmp_path / "run")) if model_is_a_run else ()
    result = rtm("eval", labelled, *model, *ORACLE, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 130 and f"interrupted: these are the figures of {told}\n" in result.stderr
    assert report["n"] == min(after, 6) and report["complete"] == (after >= 6)
    assert ("fixed" in report) is model_is_a_run and "best" not in report


def test_eval_votes_on_an_arc_data_set(rtm, tmp_path: Path) -> None:
    grids = {"train": [([[1]], [[2]])], "test": [([[3, 4]], [[4, 3]]), ([[5], [5]], [[6]])]}
    puzzle = {part: [tuple(map(np.array, pair)) for pair in pairs] for part, pairs in grids.items()}
    build_arc(tmp_path / "arc", {}, {"p": puzzle}, augmentations=3)
    config = ModelConfig(vocab_size=12, seq_len=900, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         layers={"L_level": 1}, halt_max_steps=2, num_puzzle_identifiers=5)  # fmt: skip
    folder = RecursiveReasoner(config).save_pretrained(tmp_path / "model")
    answers = tmp_path / "submission.json"
    result = invoke("eval", tmp_path / "arc", "--model", folder, "--json", "--submission", answers)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["pass_at"] == {str(k): 0.0 for k in (1, 2, 5, 10, 100, 1000)}
    assert [set(test) for test in json.loads(answers.read_text())["p"]] == [{"attempt_1", "attempt_2"}] * 2


ROW = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "either files to read or puzzles to --generate"),
        (["--generate", "seeds=1"], "'seeds' is not one of task, difficulty"),
        (["--generate", "task=maze"], "--generate='maze9' is not allowed: puzzles of the model's task sudoku"),
        (["--generate", "count"], "expected key=value"),
        (["good.csv", "--rounds", "0"], "error: rounds=0 is not allowed: from 1 to"),
        (["good.csv", "--rounds", "7"], "error: rounds=7 is not allowed: from 1 to"),
        (["good.csv", "--submission", "nowhere/s.json"], "is not allowed: a file in a folder that exists"),
        (["good.csv", "--submission", "."], "is not allowed: a file in a folder that exists"),
        (["unsolved.csv"], "line 1: no solution"),
        (["bad.csv"], "line 2, column 1"),
        (["empty.csv"], "empty"),
        (["."], "dataset.json"),
        (["maze"], "error: maze: (seq_len, vocab_size)=(81, 6) is not allowed: the model's task sudoku has (81, 11)"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    rtm, labelled: str, arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(labelled).parent)
    Path(labelled).rename("good.csv")
    for name, content in (("unsolved", f"{ROW}\n"), ("bad", "puzzle,solution\ny,z\n"), ("empty", "")):
        Path(f"{name}.csv").write_text(content)
    if "maze" in arguments:
        build_maze("maze", generate_mazes(4, seed=1, side=9, path_cells=12), test=1, side=9)
    refused(rtm("eval", *arguments), named)


@pytest.mark.usefixtures("oracle")
def test_eval_generates_the_puzzles_that_it_is_told(rtm) -> None:
    result = rtm("eval", "--generate", "count=5", "--generate", "seed=1001", "--generate", "clues=[30,36]", "--json",
                 *ORACLE)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["n"] == 5 and report["exact_accuracy"] == 1 and report["data"] == "count=5, seed=1001, clues=[30,36]"


@pytest.mark.usefixtures("oracle")
def test_eval_reads_the_official_layout(rtm, tmp_path: Path, puzzles) -> None:
    task = get_task("sudoku")
    inputs, labels = (np.stack([task.encode(pair[i]) for pair in puzzles]) for i in (0, 1))
    labels[0, :5] = 0  # padding, which does not count
    write_dataset(tmp_path / "data", {"test": Examples.of_single(inputs, labels)}, vocab_size=11)
    for path in ("data", "data/test"):
        result = rtm("eval", str(tmp_path / path), "--json", *ORACLE, "--limit", "3")
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        assert (report["n"], report["exact_accuracy"], report["token_accuracy"]) == (3, 1, 1)
