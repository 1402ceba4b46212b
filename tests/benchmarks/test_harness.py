"""The harness judges as it should: a slowed provider is reported slower, a wrong one is refused and never timed."""

from __future__ import annotations

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

from benchmarks import harness, machine, rows, timing
from benchmarks.cases import MODELS, TASKS, Case, cases, layer_flops, useful_flops
from benchmarks.gate import refusal, within_budget
from benchmarks.problem import Inputs, Problem, make
from benchmarks.providers import BASELINE, NATIVE, PROVIDERS, REFERENCE, Layer, Provider, run_of
from benchmarks.timing import Clock, interleave, median_interval, speedup
from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter

TINY = ModelConfig(vocab_size=7, seq_len=9, hidden_size=32, num_heads=2, expansion=1, H_cycles=2, L_cycles=2,
                   puzzle_emb_ndim=32, num_puzzle_identifiers=3, halt_max_steps=2)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes milliseconds, and limits that need no measuring."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
    attention = replace(TINY, mixer="attention", pos_encodings="rope")
    monkeypatch.setitem(MODELS, "tiny_hrm", replace(attention, arch="hrm", layers={"H_level": 1, "L_level": 2}))
    monkeypatch.setattr(machine, "limits", lambda device, dtype: {"tflops": 1.0, "gbs": 1.0})


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


def first_sample_only(y: Tensor, calls: int) -> Tensor:
    return y * torch.tensor([1.0, 1.0, 0.99]).view(3, 1, 1)


def test_a_slowed_provider_is_reported_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is counted here, not waited for: a call costs one unit, or three."""
    now = [0.0]

    def costing(seconds: float) -> Callable[[Tensor, int], Tensor]:
        def change(y: Tensor, calls: int) -> Tensor:
            now[0] += seconds
            return y

        return change

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    providers = [changed("normal", costing(0.01)), changed("slowed", costing(0.03))]
    normal, slow = harness.run_case(case(), providers, seconds=1.0)
    assert (normal.status, slow.status, slow.baseline) == ("measured", "measured", "normal")
    assert slow.seconds == pytest.approx(0.03) and normal.seconds == pytest.approx(0.01)
    assert slow.ratio == pytest.approx(1 / 3) and slow.ratio_interval == pytest.approx((1 / 3, 1 / 3))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("zero", lambda y, calls: y * 0, "error 1 of its size"),
        ("scaled", lambda y, calls: y * 1.001, "error 0.001 of its size"),
        ("last sample", first_sample_only, "max error"),
        ("nan", lambda y, calls: y.fill_(float("nan")), "not finite"),
        ("short", lambda y, calls: y[:, :-1], "has shape"),
        ("late", lambda y, calls: y if calls == 1 else y + 1, "max error"),
    ],
)
def test_a_wrong_provider_is_refused_and_never_timed(
    name: str, change: Callable[[Tensor, int], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []
    monkeypatch.setattr(harness, "interleave", lambda calls, *a, **k: timed.extend(calls) or {n: [1.0] for n in calls})
    good, wrong = harness.run_case(case(), [REFERENCE, changed(name, change)])
    assert (good.status, wrong.status) == ("measured", "refused") and timed == ["rtm_reference"]
    assert reason in wrong.reason and wrong.seconds is None and wrong.ratio is None


def test_a_provider_that_raises_is_refused_with_its_words() -> None:
    def layer(problem: Problem) -> Layer:
        raise RuntimeError("no such kernel")

    assert "RuntimeError: no such kernel" in (refusal(Provider("broken", layer, REFERENCE.step), make(case())) or "")


@pytest.mark.parametrize("model", ["tiny", "tiny_hrm", "small_hidden"])
@pytest.mark.parametrize("task", TASKS)
def test_baseline_and_executors_pass_the_gate(task: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_prefix = replace(TINY, puzzle_emb_ndim=0)
    monkeypatch.setitem(MODELS, "small_hidden", no_prefix)
    problem = make(case(task, model))
    for provider in (BASELINE, NATIVE):
        if provider.why_not(problem.case) is None:
            assert refusal(provider, problem) is None, provider.name


@pytest.mark.parametrize("task", TASKS)
def test_the_official_structure_gives_the_references_results(task: str) -> None:
    problem = make(case(task))
    mine, theirs = (run_of(p, problem)(problem.inputs[0]) for p in (REFERENCE, BASELINE))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_noise_is_refused_however_inexact_the_reference_is() -> None:
    truth = [torch.randn(64, dtype=torch.float64)]
    base, noise = [torch.randn(64)], [torch.randn(64)]
    assert within_budget(noise, base, truth, band=4) is not None
    assert within_budget([truth[0].float()], base, truth, band=4) is None


def test_ratios_compare_rounds_not_averages() -> None:
    """A machine that slows down halfway slows both, and the ratio does not move."""
    base = [1.0] * 10 + [3.0] * 10
    ratio, low, high = speedup(base, [b / 2 for b in base])
    assert (ratio, low, high) == (2.0, 2.0, 2.0)
    median, low, high = median_interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert median == 3.0 and 1.0 <= low <= 3.0 <= high <= 100.0


def test_pytest_benchmark_reports_the_interleaved_samples(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "test_replay.py").write_text(
        "import pytest\nfrom benchmarks.test_benchmarks import Replay\n\nclock = Replay()\n\n"
        "@pytest.mark.benchmark(timer=clock)\ndef test_it(benchmark):\n    clock.tell([3.0, 1.0, 2.5])\n"
        "    benchmark.extra_info['status'] = 'measured'\n    benchmark.pedantic(lambda: None, rounds=3)\n"
    )
    file, command = tmp_path / "out.json", [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(machine.ROOT), "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    subprocess.run([*command, f"--benchmark-json={file}", "."], cwd=tmp_path, env=environment, check=True)
    (result,) = rows.read(file)
    assert result.samples == [3.0, 1.0, 2.5]


def test_every_round_times_every_contestant_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def call(name: str, i: int) -> None:
        order.append(name)
        now[0] += 1.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    samples = interleave({n: partial(call, n) for n in "abc"}, Clock("cpu"), seconds=0.0, min_rounds=3)
    assert samples == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}
    assert "".join(order[-9:]) == "abcbcacab"


def test_flops_are_those_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for task, model in (("mixer", "tiny"), ("channel", "tiny"), ("block", "tiny"), ("train", "tiny")):
        problem = make(case(task, model))
        run = run_of(REFERENCE, problem)
        with FlopCounterMode(display=False) as counter:
            run(problem.inputs[0])
        embedding_and_heads = counter.get_total_flops() - useful_flops(problem.case)
        assert 0 <= embedding_and_heads <= (0.1 * useful_flops(problem.case) if task == "train" else 0), task
    assert layer_flops(MODELS["sudoku"], 1) == 610_271_232  # 152.6 M and 457.7 M, worked out by hand


def test_each_case_runs_or_says_why_not() -> None:
    listed = list(cases("cpu"))
    assert len({c for c, _ in listed}) == len(listed)
    assert {c.task for c, reason in listed if reason is None} == set(TASKS)
    assert all(reason for _, reason in listed if reason is not None)
    assert any(c.batch == 768 and reason for c, reason in listed)
    assert {c.batch for c, reason in cases("cuda") if reason is None and c.model == "sudoku"} >= {1, 8, 64, 768}


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name)
def test_a_provider_that_cannot_run_here_says_why(provider: Provider) -> None:
    reason = provider.why_not(case())
    assert reason is None or len(reason) > 10
    if provider.graph:
        assert reason == "CUDA graphs need a CUDA device"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name", "expected"),
    [
        ("AuthenticAMD", 26, 2, "AMD EPYC", "AMD EPYC, Zen5"),
        ("AuthenticAMD", 25, 0x11, "AMD EPYC", "AMD EPYC, Zen4"),
        ("AuthenticAMD", 25, 0x01, "AMD EPYC", "AMD EPYC, Zen3"),
        ("AuthenticAMD", 23, 0x31, "AMD EPYC", "AMD EPYC, Zen2"),
        ("AuthenticAMD", 99, 7, "AMD EPYC", "AMD EPYC, family 99 model 7"),
        ("GenuineIntel", 6, 143, "Intel(R) Xeon(R)", "Intel(R) Xeon(R), family 6 model 143"),
    ],
)
def test_processors_of_one_name_are_told_apart(vendor: str, family: int, model: int, name: str, expected: str) -> None:
    lines = {
        "processor": 0,
        "vendor_id": vendor,
        "cpu family": family,
        "model": model,
        "model name": name,
        "stepping": 1,
    }
    one = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    assert machine.processor(f"{one}\n{one}") == expected


def test_a_processor_without_family_has_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.processor("processor\t: 0\nBogoMIPS\t: 50.00\n") == "aarch64"
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(machine, "processor", lambda: "AMD EPYC, Zen5")
    assert machine.slug("cpu") == "amd-epyc-zen5-2-cores"


def test_energy_is_measured_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "energy_counter", lambda device: None)
    assert machine.energy(lambda i: None, "cpu", 0.01) is None and machine.idle_watts("cpu", 0.01) is None
    counter = iter([99.0, 100.0, 103.0])
    monkeypatch.setattr(
        machine, "energy_counter", lambda device: EnergyCounter("a counter", [(lambda: next(counter), 0)])
    )
    calls: list[int] = []
    found = machine.energy(calls.append, "cpu", 0.01)
    assert found is not None and found["joules_per_call"] == pytest.approx(3.0 / (len(calls) - 1))
