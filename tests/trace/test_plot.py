"""The figures behind the plots, by hand on a trace whose every step is known."""

from __future__ import annotations

import csv
import importlib.util
import math
from pathlib import Path

import pytest

from rtm_kernels.engine import Solver
from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.trace import Trace, read_trace, record, write_plots
from rtm_kernels.trace.plot import by_step
from tests.engine import fakes


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Four puzzles: right from step 1, 2, 4 and never within five; heads say halt from step 0, 2, 1, 0."""
    path, model = tmp_path_factory.mktemp("plots") / "t.jsonl", fakes.model()
    solver = Solver(model, task=fakes.TASK, policy="verified", max_steps=5, executor="reference", batch_size=4)
    solver.executor = fakes.ScriptedExecutor(model)
    record(solver, ["1000", "2200", "4100", "7000"], path, model_name="scripted")
    return read_trace(path)


def test_the_rows(scripted: Trace) -> None:
    rows = by_step(scripted)
    assert [row.step for row in rows] == [1, 2, 3, 4, 5]
    assert [row.taken for row in rows] == [4, 3, 2, 2, 1]
    assert [row.left for row in rows] == [1, 1, 0, 1, 1]
    assert [row.accuracy for row in rows] == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert [row.accuracy_best for row in rows] == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert [row.compute for row in rows] == [1, 1.75, 2.25, 2.75, 3]
    halts, goes_on = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(4))
    assert goes_on < rows[1].p_halt < halts
    first = scripted.puzzles[2]
    first.steps[1]["verified"] = True
    rows = by_step(scripted)
    first.steps[1]["verified"] = False
    assert rows[2].accuracy == 0.5 and rows[2].accuracy_best == 0.75


def test_files(scripted: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(BackendUnavailable, match="plots need the package matplotlib"):
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        write_plots(scripted, tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    pytest.importorskip("matplotlib", reason="no matplotlib here: the PNG files stay unproven")
    table, *pictures = write_plots(scripted, tmp_path / "new" / "folder")
    assert [path.name for path in pictures] == ["depth.png", "confidence.png", "no_regret.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    with table.open() as file:
        assert [int(row["left"]) for row in csv.DictReader(file)] == [1, 1, 0, 1, 1]
