"""The comparison of symmetric layers runs, and reports every way of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cpu_symmetric
from rtm_kernels.recursion import native

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")


def test_the_report_has_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        cpu_symmetric.WAYS, "whole matrices, compiled", {"compile": False}
    )  # the compiler takes minutes
    out = tmp_path / "rows.json"
    sizes = ["--batches", "2", "--batch", "2", "--rounds", "2", "--warm", "0", "--preset", "sudoku-small"]
    assert cpu_symmetric.main([*sizes, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    steps = [f"ACT step, batch 2, {name}" for name in ("reference", "native", "symmetric")]
    assert [row["way"] for row in report["rows"]] == [
        *steps,
        *(f"training step, batch 2, {w}" for w in cpu_symmetric.WAYS),
    ]
    assert all(row["cpu_ms"] > 0 and row["quartiles"][0] <= row["quartiles"][1] for row in report["rows"])
    assert report["rows"][0]["speedup"] == report["rows"][3]["speedup"] == 1
