"""The harness: a wrong provider is refused and never timed, all others agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import energy, harness, machine, report, timing
from benchmarks.cases import MODELS, TASKS, Case
from benchmarks.problem import Inputs, Problem
from benchmarks.providers import PROVIDERS, REFERENCE, Layer, Provider
from rtm_kernels.config import ModelConfig
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.engine.solver import Solver
from rtm_kernels.model import RecursiveReasoner

TINY = ModelConfig(vocab_size=7, seq_len=9, hidden_size=32, num_heads=2, expansion=1, H_cycles=2, L_cycles=2,
                   puzzle_emb_ndim=32, num_puzzle_identifiers=3, halt_max_steps=2)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes milliseconds, and limits that need no measuring."""
    attention = replace(TINY, mixer="attention", pos_encodings="rope")
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setitem(MODELS, "tiny_hrm", replace(attention, arch="hrm", layers={"H_level": 1, "L_level": 2}))
    monkeypatch.setitem(MODELS, "small_short", replace(TINY, puzzle_emb_ndim=0, L_cycles=1))
    monkeypatch.setattr(machine, "limits", lambda device, dtype: {"tflops": 1.0, "gbs": 1.0})
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)


def case(task: str = "block", model: str = "tiny", batch: int = 3) -> Case:
    return Case(model, task, batch, "float32", "cpu")


def changed(name: str, change: Callable[[Tensor, int], Tensor]) -> Provider:
    """The reference with `change(output, calls so far)` applied to what a layer gives."""
    calls = [0]

    def layer(problem: Problem) -> Layer:
        inner = REFERENCE.layer(problem)

        def run(inputs: Inputs) -> Tensor:
            calls[0] += 1
            return change(inner(inputs), calls[0])

        return run

    return Provider(name, layer, REFERENCE.step)


def raises(y: Tensor, calls: int) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y, calls: y * 0, "error 1 of its size"),
        (lambda y, calls: y * 1.001, "error 0.001 of its size"),
        (lambda y, calls: y * torch.tensor([1.0, 1.0, 0.99]).view(3, 1, 1), "max error"),
        (lambda y, calls: y.fill_(float("nan")), "not finite"),
        (lambda y, calls: y[:, :-1], "has shape"),
        (lambda y, calls: y if calls == 1 else y + 1, "max error"),
        (raises, "RuntimeError: no such kernel"),
    ],
    ids=["zero", "scaled", "last sample", "nan", "short", "late", "raises"],
)
def test_a_wrong_provider_is_refused_and_never_timed(
    change: Callable[[Tensor, int], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed: list[str] = []
    monkeypatch.setattr(harness, "interleave", lambda calls, *a, **k: timed.extend(calls) or {n: [1.0] for n in calls})
    good, wrong = harness.run_case(case(), [REFERENCE, changed("wrong", change)])
    assert (good.status, wrong.status) == ("measured", "refused") and timed == ["rtm_reference"]
    assert reason in wrong.reason and wrong.seconds is None and wrong.ratio is None
    report.write([good, wrong], tmp_path)
    assert f"- {wrong.case}, wrong: {wrong.reason}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("task", "model"),
    [*((task, "tiny") for task in TASKS), ("act_step", "tiny_hrm"), ("train", "tiny_hrm"), ("act_step", "small_short")],
)
def test_every_provider_of_this_machine_is_measured_or_says_why_not(
    task: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "interleave", partial(timing.interleave, min_rounds=1, max_rounds=1))
    found = harness.run_case(case(task, model), seconds=0.0)
    assert {row.impl for row in found} == {p.name for p in PROVIDERS}
    assert not [row for row in found if row.status == "refused"]
    assert all(len(row.reason) > 10 for row in found if row.status == "not run")
    measured = {row.impl for row in found if row.status == "measured"}
    assert {"official_eager", "rtm_reference"} <= measured
    if model == "small_short":
        assert "official_bfloat16" in measured and ("rtm_native" in measured) == ("rtm_native_int8" in measured)


def test_the_command_that_engineers_run(tmp_path: Path) -> None:
    """pytest benchmarks --benchmark-json: what pytest-benchmark reports are the interleaved samples."""
    pytest.importorskip("pytest_benchmark")
    environment = os.environ | {"PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"}
    for name in ("PYTEST_XDIST_WORKER", "TRITON_INTERPRET"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-k", "small-channel-B64",
               "--seconds=0", f"--benchmark-json={tmp_path / 'b.json'}", f"--report={tmp_path}"]  # fmt: skip
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    if torch.cuda.is_available():
        return
    summary = json.loads((tmp_path / "summary.json").read_text())
    latency = {entry["impl"]: entry["value"] for entry in summary if entry["metric"] == "latency"}
    content = json.loads((tmp_path / "b.json").read_text())["benchmarks"]
    medians = {one["extra_info"]["impl"]: one["stats"]["median"] for one in content}
    assert medians == pytest.approx(latency) and "rtm_reference" in medians
    assert "| small-channel-B64-float32-cpu | rtm_reference |" in done.stdout


def test_energy_per_puzzle_and_verified_puzzle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "energy", lambda call, device, window: {"joules_per_call": 800.0})
    solver = Solver(RecursiveReasoner.from_pretrained("sudoku"), executor="reference", max_steps=2)
    row = energy.measure_solver(solver, [example_puzzles()[0], "." * 81], 8.0)
    assert (row["verified"], row["joules_per_puzzle"], row["joules_per_verified"]) == (1, 400.0, 800.0)
