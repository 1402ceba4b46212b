from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rtm_kernels import energy
from rtm_kernels.cli import source
from tests.cli.conftest import lines, refused

KEYS = {"task", "input", "answer", "status", "steps", "halt_probability", "confidence", "seconds"}
ORACLE = ("--executor", "oracle")


def text_file(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


@pytest.mark.usefixtures("oracle")
def test_json_prints_one_object_per_puzzle_in_order(rtm, puzzles, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path / "none")
    options = ("--json", "--batch-size", "2", "--stats", str(tmp_path / "stats.json"))
    result = rtm("solve", *[p for p, _ in puzzles], *options, *ORACLE)
    found = lines(result.stdout)
    assert result.exit_code == 0 and result.stderr == ""
    assert [s["input"] for s in found] == [p for p, _ in puzzles]
    assert [s["answer"] for s in found] == [a for _, a in puzzles]
    assert {s["confidence"] for s in found} == {1.0}
    assert {s["status"] for s in found} == {"verified"} and {s["task"] for s in found} == {"sudoku"}
    depths = [p.count(".") % 3 + 1 for p, _ in puzzles]
    assert [s["steps"] for s in found] == depths and all(set(s) >= KEYS and "error" not in s for s in found)
    figures = json.loads((tmp_path / "stats.json").read_text())
    assert figures["puzzles"] == 6 and figures["statuses"] == {"verified": 6} and figures["by_further_rollouts"] == 0
    assert figures["depth_histogram"] == {str(d): depths.count(d) for d in sorted(set(depths))}
    assert figures["mean_steps"] == figures["mean_total_steps"] == sum(depths) / 6
    assert figures["puzzles_per_second"] > 0 and figures["joules_per_puzzle"] is None


@pytest.mark.usefixtures("oracle")
def test_puzzles_come_from_files_and_standard_input(rtm, puzzles, tmp_path) -> None:
    texts = [p for p, _ in puzzles[:3]]
    grids = "\n\n".join("\n".join(p[i : i + 9] for i in range(0, 81, 9)) for p in texts)
    table = "puzzle,solution\r\n" + "\r\n".join(",".join(pair) for pair in puzzles[:3])
    for result in (
        rtm("solve", text_file(tmp_path, "puzzles.txt", table), "--json", *ORACLE),
        rtm("solve", "-", "--json", *ORACLE, input=grids),
    ):
        assert result.exit_code == 0, result.stderr
        assert [s["input"] for s in lines(result.stdout)] == texts


@pytest.mark.usefixtures("oracle")
def test_a_person_reads_grids_and_a_summary(rtm, puzzles) -> None:
    result = rtm("solve", *[p for p, _ in puzzles], "--show", "1", *ORACLE)
    assert result.exit_code == 0
    answer = puzzles[0][1]
    row = " | ".join(" ".join(answer[i : i + 3]) for i in (0, 3, 6))
    assert row in result.stdout and "verified after" in result.stdout and "puzzle 2" not in result.stdout
    assert "6 (100.0 %)" in result.stdout and "puzzles/s" in result.stdout and "oracle on cpu" in result.stdout
    assert result.stderr == ""
    bundled = rtm("solve", "--show", "0", "--limit", "5", *ORACLE)
    assert bundled.exit_code == 0 and "5 (100.0 %)" in bundled.stdout


def test_answers_that_break_the_rules_are_not_called_solved(rtm, puzzles) -> None:
    result = rtm("solve", puzzles[0][0], "--show", "1", "--max-steps", "2")
    assert result.exit_code == 1
    assert "not solved in 2 steps, best candidate: " in result.stdout and "0 (0.0 %)" in result.stdout
    (found,) = lines(rtm("solve", puzzles[0][0], "--json", "--max-steps", "2").stdout)
    assert (found["status"], found["reason"], len(found["answer"])) == ("unverified", "max_steps", 81)
    assert found["confidence"] == found["halt_probability"] < 1


@pytest.mark.parametrize(
    ("options", "steps", "total"),
    [
        (("--rollouts", "1", "--max-steps", "5"), 5, 5),
        (("--rollouts", "4", "--max-steps", "5"), 4, 4),  # guesses: one run takes the steps of all
        (("--rollouts", "4", "--max-steps", "3"), 3, 3),
        (("--rollouts", "2"), 12, 12),
        (("--rollouts", "2", "--max-steps", "5", "--rollout-kind", "twins"), 2, 4),
        (("--rollouts", "9", "--max-steps", "3", "--rollout-kind", "twins"), 1, 3),
        (("--rollouts", "2", "--rollout-kind", "twins"), 6, 12),
    ],
)
def test_max_steps_bounds_the_steps_of_all_runs_together(rtm, puzzles, options, steps: int, total: int) -> None:
    (found,) = lines(rtm("solve", puzzles[0][0], "--json", *options).stdout)
    assert (found["status"], found["steps"], found["total_steps"]) == ("unverified", steps, total)


@pytest.mark.usefixtures("oracle")
def test_invalid_puzzles_are_reported_and_the_others_solved(rtm, puzzles, tmp_path) -> None:
    good, bad = puzzles[0][0], "y" + puzzles[1][0][1:]
    path = text_file(tmp_path, "mixed.txt", f"{good}\n{bad}\n{good[:80]}\n")
    result = rtm("solve", path, "--json", *ORACLE)
    assert result.exit_code == 2
    assert [s["status"] for s in lines(result.stdout)] == ["verified", "invalid", "invalid"]
    assert lines(result.stdout)[1]["error"].startswith(f"{path}: line 2, column 1: illegal character 'y'")
    assert [line.split(": ")[2].split(",")[0] for line in result.stderr.splitlines()] == ["line 2", "line 3"]


ROW = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (ROW[:80], "80 cells"),
        (ROW[:10] + "\x1b" + ROW[11:], "line 1, column 11: illegal character"),
        ("55" + ROW[2:], "contradictory givens: 5 twice in row 1"),
        ("5" * 5000, "5000 cells"),
        ("\n\n  \n", "empty"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_bad_puzzles_end_in_one_line_and_code_2(rtm, tmp_path, content: str, named: str, as_file: bool) -> None:
    refused(rtm("solve", text_file(tmp_path, "bad.txt", content) if as_file else content), named)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.csv"], "missing.csv: no such file"),
        (["no/such/file"], "no/such/file: no such file"),
        (["."], ".: is a folder"),
        (["--model", "nope", "1"], "unknown model 'nope'; bundled: "),
        (["--max-steps", "0", "1"], "max_steps=0 is not allowed"),
        (["--batch-size", "-1", "1"], "batch_size=-1 is not allowed"),
        (["--device", "tpu9", "1"], "device='tpu9' is not allowed"),
        (["--device", "cuda:99", "1"], "device='cuda:99' is not here"),
        (["--executor", "warp", "1"], "executor='warp' is not allowed"),
        (["--precision", "int4", "1"], "precision='int4' is not allowed"),
        (["--precision", "int8", "--executor", "reference", "1"], "executor='reference' is not allowed"),
        (["--halt", "never", "1"], "policy='never' is not allowed"),
        (["--limit", "0", "1"], "--limit=0 is not allowed"),
        (["--limit", "9" * 400, "1"], "1 cells"),
        (["--rollouts", "0", "1"], "rollouts=0 is not allowed"),
        (["--noise", "nan", "1"], "noise=nan is not allowed"),
    ],
)
def test_bad_arguments_end_in_one_line_and_code_2(rtm, arguments: list[str], expected: str) -> None:
    refused(rtm("solve", *arguments), expected)


def test_too_many_puzzles_are_refused_before_any_is_solved(rtm, puzzles, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(source, "MAX_PUZZLES", 3)
    path = text_file(tmp_path, "many.txt", (puzzles[0][0] + "\n") * 4)
    refused(rtm("solve", path), "error: more than 3 puzzles in one run; --limit N takes the first N\n")
    assert len(lines(rtm("solve", path, "--json", "--limit", "2", "--max-steps", "1").stdout)) == 2


def test_many_bad_lines_are_summed_up(rtm, tmp_path) -> None:
    result = rtm("solve", text_file(tmp_path, "garbage.txt", "hello\n" * 500))
    assert result.exit_code == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 11
    assert result.stderr.splitlines()[-1] == "error: 490 more puzzles could not be read"


def test_help_needs_no_torch_and_shows_examples() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from rtm_kernels.cli.main import app; "
        "out = [CliRunner().invoke(app, [*c, '--help']) for c in ([], ['solve'], ['eval'], ['info'])]; "
        "assert all(r.exit_code == 0 for r in out), out; "
        "assert all('rtm ' + c in r.stdout for r, c in zip(out[1:], ('solve', 'eval', 'info'))); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("options, name", [((), "symmetric"), (("--precision", "int8"), "native-int8")])
def test_the_bundled_model_is_solved_in_cpp_and_the_report_says_so(rtm, options: tuple[str, ...], name: str) -> None:
    from rtm_kernels.recursion import native

    reason = native.why_not_precision("int8" if options else "float32")
    if reason is not None:
        pytest.skip(reason)
    result = rtm("solve", "--model", "sudoku", "--limit", "1", "--device", "cpu", *options)
    assert result.exit_code == 0, result.stderr
    assert re.search(rf"(?m)executor\W+{name} on cpu\W*$", result.stdout), result.stdout
