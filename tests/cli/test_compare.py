from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.engine import Solver
from rtm_kernels.engine.comparison import compare
from rtm_kernels.errors import InputError
from tests.engine import fakes

PUZZLES = ["1000", "3000", "4100", "7001", "2000", "0007"]


def arrays() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.stack([fakes.TASK.encode(p) for p in PUZZLES])
    labels = np.stack([fakes.TASK.encode(p[::-1]) for p in PUZZLES]).astype(np.int32)
    return inputs, labels


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_both_protocols_by_hand(rounds: int) -> None:
    solver = Solver(fakes.model(), task=fakes.TASK, policy="verified", max_steps=5, batch_size=2)
    solver.executor = executor = fakes.ScriptedExecutor(solver.model)
    told: list[int] = []
    found = compare(solver, *arrays(), rounds=rounds, on_round=told.append)
    # right after 1, 3, 4, never within 5, 2 steps; the last one turns to NaN in its second step unless it left before
    assert (found.adaptive.exact_accuracy, found.fixed.exact_accuracy) == (5 / 6, 4 / 6)
    assert found.adaptive.mean_steps == (1 + 3 + 4 + 5 + 2 + 1) / 6 and found.fixed.mean_steps == (5 * 5 + 2) / 6
    assert found.steps_ratio == found.fixed.mean_steps / found.adaptive.mean_steps
    assert (found.only_adaptive, found.only_fixed) == (1, 0)
    assert len(found.speed_ratios) == rounds and told[-1] == 6
    assert min(found.speed_ratios) <= found.speed_ratio <= max(found.speed_ratios)
    assert sum(executor.batch_sizes) == 16 + 27 and str(solver.policy) == "verified"


def test_labels_that_do_not_count_and_bad_arguments() -> None:
    solver = Solver(fakes.model(), task=fakes.TASK, policy="q", max_steps=2)
    solver.executor = fakes.ScriptedExecutor(solver.model)
    inputs, labels = arrays()
    assert compare(solver, inputs, np.full_like(labels, -100), rounds=2).fixed.exact_accuracy == 5 / 6
    for rounds in (0, 7):
        with pytest.raises(InputError, match="rounds"):
            compare(solver, inputs, labels, rounds=rounds)
    with pytest.raises(InputError, match=r"inputs\.shape"):
        compare(solver, inputs, labels[:, :3])


@pytest.mark.usefixtures("oracle")
def test_the_command(model_folder: Path, puzzles: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("puzzle,solution\n" + "".join(f"{p},{s}\n" for p, s in puzzles))
    command = ["compare", str(path), "--model", str(model_folder), "--executor", "oracle", "--rounds", "2"]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    depths = [p.count(".") % 3 + 1 for p, _ in puzzles]
    assert found["n"] == 6 and found["adaptive"]["exact_accuracy"] == found["fixed"]["exact_accuracy"] == 1
    assert found["steps_ratio"] == pytest.approx(6 / (sum(depths) / 6)) and len(found["speed_ratios"]) == 2
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "times fewer steps" in shown.stdout and "6/6 puzzles, both ways" in shown.stderr
    worse = CliRunner().invoke(app, [*command, "--json", "--halt", "settle=1", "--limit", "6"])
    assert worse.exit_code == int(json.loads(worse.stdout)["adaptive"]["exact_accuracy"] < 1)
