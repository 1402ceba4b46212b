"""The cost of batches: each stream is drawn from, and the demand grows with the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import loader
from rtm_kernels.train.recipe import PRESETS


def test_every_stream_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(loader, "BATCH", 16)
    assert loader.main(["--count", "40", "--batches", "2", "--out", str(tmp_path / "loader.json")]) == 0
    rows = json.loads((tmp_path / "loader.json").read_text())["rows"]
    assert len(rows) == 5 == len(capsys.readouterr().out.splitlines())
    for row in rows:
        assert row["samples_per_cpu_second"] > 0
        assert row["share_of_step"] == pytest.approx(row["cpu_ms_per_batch"] / row["modelled_step_ms"], abs=0.01)


def test_a_step_of_a_longer_sequence_takes_longer() -> None:
    short, long = (loader.step_milliseconds(PRESETS[name].model) for name in ("trm-sudoku-repo", "trm-maze-repo"))
    assert 0 < short < long / 5
