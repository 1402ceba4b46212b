"""The benchmark of rollouts counts what the solver itself confirms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rollouts
from rtm_kernels.data import sudoku
from rtm_kernels.data.task import get_task
from rtm_kernels.engine import Rollouts, Solver
from rtm_kernels.model import RecursiveReasoner


@pytest.mark.parametrize("kind", ["guesses", "twins", "noise"])
def test_each_kind_confirms_what_the_solver_confirms_with_it(kind: str, tmp_path: Path) -> None:
    texts = [sudoku.to_text(board) for board in sudoku.generate(6, seed=8, difficulty="search")[0]]
    path, out = tmp_path / "puzzles.txt", tmp_path / "rollouts.json"
    path.write_text("\n".join(texts))
    assert rollouts.main([str(path), "--rollouts", "3", "--depth", "4", "--kinds", kind, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["n"] == 6 and list(report["rollouts"]) == [kind]
    found = {int(k): v["verified"] for k, v in report["rollouts"][kind].items()}
    model = RecursiveReasoner.from_pretrained("sudoku")
    for count in (1, 3):
        solver = Solver(model, task=get_task("sudoku"), rollouts=Rollouts(count, kind=kind))
        assert found[count] == sum(s.status == "verified" for s in solver.solve(texts))
    assert found[1] <= found[2] <= found[3]
