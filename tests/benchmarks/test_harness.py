"""The harness: a slowed provider is reported as slower, a wrong one is refused and never timed, all others agree."""

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
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import energy, harness, machine, profile, report, rows, timing
from benchmarks.cases import MODELS, TASKS, Case, cases, useful_flops
from benchmarks.gate import within_budget
from benchmarks.problem import Inputs, Problem, make
from benchmarks.providers import PROVIDERS, REFERENCE, Layer, Provider, run_of
from rtm_kernels.config import ModelConfig
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.energy import EnergyCounter
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


def test_a_slowed_provider_is_reported_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is counted here, not waited for: a call costs one unit, or three; the machine slows down halfway."""
    now, begin = [0.0], 1.0

    def costing(seconds: float) -> Callable[[Tensor, int], Tensor]:
        def change(y: Tensor, calls: int) -> Tensor:
            now[0] += seconds * (2 if now[0] > begin else 1)
            return y

        return change

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    providers = [changed("normal", costing(0.01)), changed("slowed", costing(0.03))]
    normal, slow = harness.run_case(case(), providers, seconds=20.0)
    assert (normal.status, slow.status, slow.baseline) == ("measured", "measured", "normal")
    assert len(slow.samples) == len(normal.samples) > 7 and max(slow.samples) == pytest.approx(0.06)
    assert slow.ratio == pytest.approx(1 / 3) and slow.ratio_interval == pytest.approx((1 / 3, 1 / 3))


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


def test_noise_is_refused_however_inexact_the_reference_is() -> None:
    truth = [torch.randn(64, dtype=torch.float64)]
    base, noise = [torch.randn(64)], [torch.randn(64)]
    near = [(1.05 * truth[0]).float()]
    assert within_budget(noise, base, truth, band=4) is not None
    assert within_budget([truth[0].float()], base, truth, band=4) is None
    assert within_budget(near, [truth[0].float()], truth, band=4) is not None
    assert within_budget(near, [truth[0].float()], truth, band=4, reduced=0.1) is None
    assert within_budget(noise, base, truth, band=4, reduced=0.1) is not None


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


def test_rows_are_written_and_read_and_reported(tmp_path: Path) -> None:
    found = harness.run_case(case(), seconds=0.0)
    rows.write(tmp_path / "rows.json", found)
    assert rows.read(tmp_path / "rows.json") == [replace(row, **_as_json(row)) for row in found]
    report.write(found, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert all(f"| {row.case} | {row.impl} |" in text for row in found if row.status == "measured")
    left = {e["impl"]: e["reason"] for e in json.loads((tmp_path / "not_run.json").read_text()) if "tiny" in e["case"]}
    assert left["official_precast"] == "the weights are already float32"


def _as_json(row: rows.Row) -> dict[str, object]:
    names = ("seconds_interval", "ratio_interval", "facts")
    return {name: json.loads(json.dumps(getattr(row, name))) for name in names}


def test_flops_are_those_that_pytorch_counts() -> None:
    for task in ("mixer", "channel", "block", "train"):
        problem = make(case(task))
        run = run_of(REFERENCE, problem)
        with FlopCounterMode(display=False) as counter:
            run(problem.inputs[0])
        embedding_and_heads = counter.get_total_flops() - useful_flops(problem.case)
        assert 0 <= embedding_and_heads <= (0.1 * useful_flops(problem.case) if task == "train" else 0), task


def test_each_case_runs_or_says_why_not() -> None:
    listed = list(cases("cpu", cores=2))
    assert len({c for c, _ in listed}) == len(listed)
    assert {c.task for c, reason in listed if reason is None} == set(TASKS)
    assert {c.threads for c, reason in listed if reason is None} == {1, 2}
    assert {c.batch for c, reason in cases("cuda") if reason is None and c.model == "sudoku"} >= {1, 8, 64, 768}
    assert all(reason == "there is one core" for c, reason in cases("cpu", cores=1) if c.threads > 1)


def test_threads_are_those_of_the_case_and_need_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    two, before = replace(case(), threads=2), torch.get_num_threads()
    monkeypatch.setattr(machine, "why_not_threads", lambda threads: None)
    (row,) = harness.run_case(two, [REFERENCE], seconds=0.0)
    assert row.facts["threads"] == 2 and torch.get_num_threads() == before and two.name == case().name + "-t2"
    monkeypatch.setattr(machine, "why_not_threads", lambda threads: "two threads gain nothing here, now")
    (row,) = harness.run_case(two, [REFERENCE], seconds=0.0)
    assert (row.status, row.reason) == ("not run", "two threads gain nothing here, now")


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


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name", "expected"),
    [
        ("AuthenticAMD", 26, 2, "AMD EPYC", "AMD EPYC, Zen5"),
        ("AuthenticAMD", 25, 0x11, "AMD EPYC", "AMD EPYC, Zen4"),
        ("AuthenticAMD", 25, 0x01, "AMD EPYC", "AMD EPYC, Zen3"),
        ("GenuineIntel", 6, 143, "Intel(R) Xeon(R)", "Intel(R) Xeon(R), family 6 model 143"),
    ],
)
def test_processors_of_one_name_are_told_apart(vendor: str, family: int, model: int, name: str, expected: str) -> None:
    facts = {"vendor_id": vendor, "cpu family": family, "model": model, "model name": name, "stepping": 1}
    one = "".join(f"{key}\t: {value}\n" for key, value in facts.items())
    assert machine.processor(f"{one}\n{one}") == expected


def test_the_profile_of_a_step_adds_up(tmp_path: Path) -> None:
    MODELS["tiny"] = TINY
    assert profile.main(["tiny", "--repeats", "1", "--impl", "rtm_reference", "--folder", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("act_step_*.json")
    found = json.loads(path.read_text())["rows"]
    assert sum(row["share"] for row in found) == pytest.approx(1.0) and any("mm" in row["op"] for row in found)


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only moves when told to, and an energy counter of 100 W that runs with it."""
    now = [0.0]

    def move(seconds: float) -> None:
        now[0] += seconds

    machine.idle_watts.cache_clear()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine.time, "sleep", move)
    monkeypatch.setattr(machine, "energy_counter", lambda device: EnergyCounter("a fake", [(lambda: 100 * now[0], 0)]))
    return move


def test_energy_per_call_step_puzzle_and_verified_puzzle(
    tick: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine.energy(lambda i: tick(0.5), "cpu", 30.0)
    assert found is not None and found["joules_per_call"] == pytest.approx(50.0) and found["window_s"] >= 30.0
    assert machine.idle_watts("cpu", 10.0) == pytest.approx(100.0)
    monkeypatch.setattr(harness, "caller", lambda provider, problem: lambda i: tick(2.0))
    (row,) = energy.measure(case("act_step", batch=2), [REFERENCE.name], 30.0)
    assert row["joules_per_act_step"] == pytest.approx(100.0) and row["joules_per_puzzle"] == pytest.approx(200.0)

    solver = Solver(RecursiveReasoner.from_pretrained("sudoku"), executor="reference", max_steps=2)
    solve, puzzles = solver.solve, [example_puzzles()[0], "." * 81]
    monkeypatch.setattr(solver, "solve", lambda puzzles: (tick(8.0), solve(puzzles))[1])
    row = energy.measure_solver(solver, puzzles, 8.0)
    assert row["verified"] == 1, "the empty grid is not solved within these steps"
    assert row["joules_per_puzzle"] == pytest.approx(400.0) and row["joules_per_verified"] == pytest.approx(800.0)


def test_without_a_counter_energy_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.idle_watts.cache_clear()
    monkeypatch.setattr(machine, "energy_counter", lambda device: None)
    assert machine.energy(lambda i: None, "cpu", 0.01) is None
    assert energy.main(["--folder", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "energy.json").read_text())
    assert found["idle_watts"] is None and found["rows"] == []
