from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load, save

from rtm_kernels.data.build import build_sudoku
from rtm_kernels.data.sudoku import generate, to_text
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train.configure import RECIPES, load_recipe
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.telemetry import read_csv
from tests.cli.conftest import invoke, refused

SMALL = ["sudoku-4x4", "model.hidden_size=16", "model.expansion=1", "stages.0.steps=4", "stages.1.steps=3",
         "eval_every=3", "sources.all.count=40", "test.count=10", "eval_limit=20", "model.forward_dtype=float32",
         "eval_steps=2"]  # fmt: skip


def rtm(*arguments: object):
    return invoke("train", *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = rtm(*SMALL, "--out", str(out), "--json")
    assert result.exit_code == 0 and result.stderr == ""
    assert json.loads(result.stdout) == json.loads((out / "summary.json").read_text()) | {"interrupted": False}
    return out


def test_a_run_leaves_a_model_that_solves_and_everything_that_was_measured(finished: Path) -> None:
    out, summary = finished, json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 7 and summary["unseen_puzzles"] == 20 and len(summary["exact_accuracy_by_step"]) == 2
    rows = read_csv(out / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["step"] for row in rows if row["test_exact_accuracy"] is not None] == [3, 6, 7]
    assert len(summary["halt_confidence_by_step"]) == len(summary["latent_delta_by_step"]) == 2
    assert rows[-1]["test_latent_delta"] == summary["latent_delta_by_step"][-1] > 0
    assert sum(summary["depth_histogram"].values()) == sum(row["count"] for row in rows)
    assert summary["samples_per_second"] > 0 and summary["tflops"] > 0 and "joules" not in summary
    assert load_recipe(out / "recipe.json").model.hidden_size == 16
    assert RecursiveReasoner.from_pretrained(out / "model").config.forward_dtype == "float32"
    marks = [(row["test_exact_accuracy"], -row["step"]) for row in (rows[2], rows[5], rows[6])]
    best = {"model": str(out / "best"), "step": -max(marks)[1], "exact_accuracy": max(marks)[0]}
    best_model, last_model = (RecursiveReasoner.from_pretrained(out / name) for name in ("best", "model"))
    assert summary["best"] == best and best_model.config == last_model.config
    assert (out / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    both = invoke("eval", summary["unseen_data"], "--model", out, "--max-steps", "2", "--json")
    report = json.loads(both.stdout)
    assert report["fixed"]["exact_accuracy"] == summary["exact_accuracy"]
    assert report["best"]["fixed"]["exact_accuracy"] == best["exact_accuracy"]
    solved = invoke("solve", "--model", out / "model", "1...............", "--json")
    assert solved.exit_code == 1 and json.loads(solved.stdout)["task"] == "sudoku4"


def test_a_person_sees_progress_a_table_and_why_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a))
    result = rtm(*SMALL, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0 and "note: no picture: the package matplotlib is not installed" in result.stderr
    assert not (tmp_path / "run" / "curve.png").exists()
    assert "exact on unseen puzzles" in result.stdout and "twin trained on" in result.stdout
    assert all(name in result.stdout for name in ("by ACT steps", "training loss", "best"))
    assert "step 7/7: loss" in result.stderr and "steps/s" in result.stderr


def test_an_interrupted_run_continues_to_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = SimpleNamespace(init=lambda **_: None, finish=lambda: None,
                              log=lambda _, step: step == 2 and signal.raise_signal(signal.SIGINT))  # fmt: skip
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    cut = tmp_path / "cut"
    result = rtm(*SMALL, "--out", str(cut), "--track", "trackio", "--json")
    stopped = json.loads(result.stdout)
    assert result.exit_code == 130 and stopped["interrupted"] and stopped["steps"] == 2
    assert capfd.readouterr().err.startswith("stopping after this step, which is saved; once more to stop at once")
    assert "continue with: rtm train sudoku-4x4 --resume" in result.stderr
    assert rtm("sudoku-4x4", "--resume", "--out", str(cut), "--json").exit_code == 0
    for name in ("model/model.safetensors", "model/config.json", "best/model.safetensors", "metrics.csv"):  # fmt: skip
        assert (finished / name).read_bytes() == (cut / name).read_bytes(), name


def test_one_command_runs_a_recipe_in_slices(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, codes = [*SMALL, "--out", "runs/slices", "--minutes", "0.0005"], [75]
    while codes[-1] == 75 and len(codes) < 15:
        codes.append(rtm(*command).exit_code)
    assert codes[-1] == 0 and codes.count(75) > 3
    for name in ("model.safetensors", "config.json"):
        assert Path("runs/slices/model", name).read_bytes() == (finished / "model" / name).read_bytes()
    refused(rtm(*SMALL, "lr=1", "--out", "runs/slices", "--minutes", "1"), "the run in it has another recipe")


def test_the_full_size_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_sudoku("data", generate(70, seed=3, size=4, clues=(5, 9)), test=10, size=4)
    small = ["model.hidden_size=16", "model.expansion=1", "model.num_heads=2", "stages.*.batch_size=8", "eval_limit=10",
             "model.forward_dtype=float32", "data=data", "warmup_steps=2"]  # fmt: skip
    first = ["sudoku-full", *small, *(f"stages.{i}.steps=1" for i in range(17)), "eval_every=6", "eval_steps=2",
             "stages.*.H_cycles=2", "stages.*.L_cycles=1", "model.H_cycles=2", "model.L_cycles=1"]  # fmt: skip
    assert rtm(*first, "--json").exit_code == 0
    second = rtm("sudoku-full-halting", *small, "stages.0.steps=4", "stages.0.halt_max_steps=2", "eval_steps=2",
                 "stages.0.H_cycles=1", "stages.0.L_cycles=1", "model.H_cycles=1", "model.L_cycles=1", "--minutes", "9",
                 "--json")  # fmt: skip
    assert second.exit_code == 0 and json.loads(second.stdout)["halt_confidence_by_step"][0] > 0


STATE = "state.safetensors"
HARD = ["sudoku-small-hard", "model.hidden_size=16", "compile=false", "sources.easy.count=20"]


@pytest.fixture(scope="module")
def broken_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of puzzle files, one of them damaged, and a data set."""
    folder = tmp_path_factory.mktemp("broken")
    puzzles, solutions = generate(6, seed=3)
    rows = [f"{to_text(p)},{to_text(s)}" for p, s in zip(puzzles, solutions, strict=True)]
    (folder / "good.csv").write_text("puzzle,solution\n" + "\n".join(rows))
    (folder / "bad.csv").write_text("puzzle,solution\n" + "1" * 81 + "\n")
    build_sudoku(folder / "set", generate(40, seed=3, size=4, clues=(5, 9)), test=10, size=4)
    return folder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sudoku"], "PRESET='sudoku' is not allowed: expected one of sudoku-4x4"),
        (["sudoku-4x4", "lr=fast"], "lr='fast' is not allowed: expected a valid number"),
        (["trm-maze-repo"], "data=''"),
        (["trm-maze-repo", "data=/nowhere"], "/nowhere"),
        (["sudoku-4x4", "--resume"], "holds no run"),
        (["sudoku-4x4", "lr=1", "--resume"], "'lr=1' cannot change it"),
        (["sudoku-4x4", "--track", "notes"], "--track='notes'"),
        ([*SMALL, "--track", "wandb"], "the package wandb is not installed"),
        ([*SMALL, "--out", "set"], "exists already"),
        (HARD, "error: data/17_clue.csv: cannot be read: No such file or directory"),
        ([*HARD, "sources.few_clues.path=good.csv", "sources.hardest.path=good.csv", "sources.hinted.path=good.csv",
          "sources.hinted_more.path=bad.csv"], "error: bad.csv: line 2"),
        ([*SMALL, "init=runs/none/model"], "error: unknown model 'runs/none/model'"),
        ([*SMALL, "graph=true"], "error: graph=True cannot run"),
        (["trm-sudoku-repo", "data=set", "stages.0.steps=2"],
         "error: override 'stages.0.steps=2' is not allowed: epochs=50000 counts the steps; add epochs=none"),
    ],
)  # fmt: skip
def test_what_cannot_begin_leaves_nothing_behind(
    arguments: list[str], named: str, broken_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(broken_data)
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = sorted(broken_data.rglob("*"))
    refused(rtm(*arguments, "--device", "cpu"), named)
    assert sorted(broken_data.rglob("*")) == before


def test_a_run_that_was_killed_before_its_first_state_begins_again(finished: Path, tmp_path: Path) -> None:
    whole, killed = finished, tmp_path / "killed"
    (killed / "checkpoints" / ".step-9.x").mkdir(parents=True)
    shutil.copy(whole / "recipe.json", killed)
    (killed / "metrics.csv").write_text("".join((whole / "metrics.csv").read_text().splitlines(True)[:3]))
    assert rtm(*SMALL[:1], "--resume", "--out", str(killed), "--json").exit_code == 0
    for name in ("model/model.safetensors", "metrics.csv"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert not (killed / "checkpoints" / ".step-9.x").exists()


@pytest.fixture(scope="module")
def cut_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was cut after its second evaluation."""
    out = shutil.copytree(finished, tmp_path_factory.mktemp("cut") / "run")
    shutil.rmtree(out / "checkpoints" / "step-7")
    return out


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("recipe.json", b'{"mo', "recipe.json: is not JSON"),
        ("recipe.json", b"[" * 100_000, "recipe.json: is not JSON"),
        ("recipe.json", b"[1]", "recipe.json: recipe=[1] is not allowed: expected an object"),
        ("recipe.json", b'{"lr": "x"}', "recipe.json: lr='x' is not allowed: expected a valid number"),
        ("metrics.csv", b"a,b\n1,x\n", "metrics.csv: not the rows of a run"),
        ("metrics.csv", bytes(range(128, 256)), "metrics.csv: not the rows of a run"),
        (STATE, b"nan", "holds values that are not finite"),
    ],
)
def test_a_damaged_run_is_told_by_its_file(
    name: str, content: bytes, named: str, cut_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(cut_run, run)
    if name == STATE:
        for state in (run / "checkpoints").iterdir():
            tensors = load(state.joinpath(name).read_bytes())
            tensors["model.lm_head.weight"][0, 0] = float("nan")
            (state / name).write_bytes(save(tensors))
            digests = {f: hashlib.sha256((state / f).read_bytes()).hexdigest() for f in ("state.json", STATE)}
            (state / "manifest.json").write_text(json.dumps({"sha256": digests}))
    else:
        (run / name).write_bytes(content)
    result = rtm("sudoku-4x4", "--resume", "--out", run, "--json")
    refused(result, named)
    assert str(run) in result.stderr


def test_the_recipes_are_listed_and_shown() -> None:
    assert list(json.loads(rtm("--json").stdout)) == list(RECIPES)
    shown = json.loads(rtm("rsm-sudoku", "lr=0.5", "--show").stdout)
    assert shown["lr"] == 0.5 and shown["objective"]["kind"] == "final_loss"


def test_trackers_get_depths_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    module = SimpleNamespace(init=lambda config, **_: told.append((0, config)),
                             log=lambda metrics, step: told.append((step, metrics)), finish=lambda: None)  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert rtm(*SMALL, "--out", tmp_path / "run", "--track", "wandb", "--json").exit_code == 0
    first, third = ({key for at, metrics in told if at == step for key in metrics} for step in (1, 3))
    assert first >= {"depth_1", "halt_confidence", "latent_delta", "samples_per_second", "tflops", "seconds", "loss",
                     "grad_norm", "exact_accuracy"} and "test_exact_accuracy" in third  # fmt: skip
    assert told[0][1]["lr"] == PRESETS["sudoku-4x4"].lr
