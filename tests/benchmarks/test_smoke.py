"""One case of each kind from the providers to the report: that everything is wired, never how long it takes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import harness, machine, report, rows
from benchmarks.cases import CPU_THREADED, MODELS, TASKS, TRAINING, cases
from benchmarks.gate import refusal
from benchmarks.problem import make
from benchmarks.providers import PROVIDERS, REFERENCE, Provider
from tests.benchmarks.test_harness import TINY, case

WANTED = {
    "case", "impl", "status", "baseline", "ratio", "ratio_interval", "seconds", "seconds_interval", "machine", "device",
    "dtype", "threads", "shapes", "useful_flops", "useful_bytes", "tflops", "gbs", "fraction_of_limit", "limit_tflops",
    "limit_gbs", "launches", "peak_memory_bytes", "joules", "versions", "commit", "clock_mhz", "rounds", "cache",
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setitem(MODELS, "tiny_attention", replace(TINY, mixer="attention", pos_encodings="rope"))


@pytest.mark.parametrize("task", TASKS)
def test_a_case_of_each_kind_is_measured_and_reported(task: str, tmp_path: Path) -> None:
    found = harness.run_case(case(task), seconds=0.0)
    measured = [row for row in found if row.status == "measured"]
    assert {row.impl for row in found} == {p.name for p in PROVIDERS}
    assert all(row.reason for row in found if row.status == "not run") and not [
        r for r in found if r.status == "refused"
    ]
    assert {"official_eager", "rtm_reference"} <= {row.impl for row in measured}
    rows.write(tmp_path / "results.json", [rows.Result(row.as_dict(), row.samples) for row in measured])
    back = rows.read(tmp_path / "results.json")
    assert all(set(result.facts) >= WANTED for result in back)
    summary = report.write(back, tmp_path / "profile")
    text = (tmp_path / "profile" / "README.md").read_text()
    assert all(f"| {row.case} | {row.impl} |" in text for row in measured)
    assert len([r for r in summary if r["metric"] == "latency"]) == len(measured)
    assert len((tmp_path / "profile" / "facts.jsonl").read_text().splitlines()) == len(measured)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")
@pytest.mark.parametrize("task", [task for task in TASKS if task not in TRAINING])
@pytest.mark.parametrize("model", ["tiny", "tiny_attention"])
def test_onnx_runtime_gives_the_references_results(task: str, model: str) -> None:
    onnx = next(p for p in PROVIDERS if p.name == "onnxruntime")
    problem = make(case(task, model))
    assert onnx.why_not(problem.case) is None and refusal(onnx, problem) is None


def test_the_command_that_engineers_run(tmp_path: Path) -> None:
    """pytest benchmarks --benchmark-json, then the report."""
    results, left = tmp_path / "results.json", tmp_path / "left.json"
    environment = os.environ | {"PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"}
    for name in ("PYTEST_XDIST_WORKER", "TRITON_INTERPRET"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-k", "small-channel-B64",
               "--seconds=0", f"--benchmark-json={results}", f"--left={left}", "--benchmark-quiet"]  # fmt: skip
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "small-channel-B64-float32-cpu: " in done.stdout or torch.cuda.is_available()
    command = [sys.executable, "-m", "benchmarks.report", str(results), "--left", str(left), "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "rtm_reference" in done.stdout
    noted = json.loads((tmp_path / "not_run.json").read_text())
    reasons = {e["impl"]: e["reason"] for e in noted if e["case"] == "small-channel-B64-float32-cpu"}
    assert reasons["official_precast"] == "the weights are already float32"


def test_a_refused_provider_stands_in_the_report(tmp_path: Path) -> None:
    wrong = Provider("wrong", lambda problem: lambda inputs: 2 * REFERENCE.layer(problem)(inputs), REFERENCE.step)
    good, bad = harness.run_case(case(), [REFERENCE, wrong], seconds=0.0)
    assert (good.status, bad.status) == ("measured", "refused")
    left = [{"case": bad.case, "impl": bad.impl, "status": bad.status, "reason": bad.reason}]
    report.write([rows.Result(good.as_dict(), good.samples)], tmp_path, left)
    assert f"- {bad.case}, wrong: {bad.reason}" in (tmp_path / "README.md").read_text()


def test_threads_are_those_of_the_case_and_a_busy_machine_is_no_place_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    two = replace(case(), threads=2)
    assert two.name == case().name + "-t2"
    monkeypatch.setattr(
        machine, "limits", lambda device, dtype: seen.append(torch.get_num_threads()) or {"tflops": 1.0, "gbs": 1.0}
    )
    monkeypatch.setattr(machine, "why_not_threads", lambda threads: None)
    before = torch.get_num_threads()
    (row,) = harness.run_case(two, [REFERENCE], seconds=0.0)
    assert row.facts["threads"] == 2 and seen == [2] and torch.get_num_threads() == before
    monkeypatch.setattr(machine, "why_not_threads", lambda threads: f"{threads} threads gain nothing here, now")
    (row,) = harness.run_case(two, [REFERENCE], seconds=0.0)
    assert (row.status, row.reason) == ("not run", "2 threads gain nothing here, now")
    monkeypatch.undo()
    listed = {c.name: reason for c, reason in cases("cpu", cores=4)}
    assert all(listed[f"{name}-float32-cpu-t4"] is None for name in CPU_THREADED)
    assert all(reason == "there is one core" for c, reason in cases("cpu", cores=1) if c.threads > 1)
