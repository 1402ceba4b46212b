"""Every stage of `make gpu` over a simulated device: the first minute of a real one is not for typing errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from benchmarks import cases, choose, energy, gpu, gpu_tests, harness, machine, peers, profile, run, tune
from benchmarks.problem import make
from benchmarks.timing import interleave
from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.engine.executor import EXECUTORS
from tests.cases import small_cases
from tests.cases.case import Tuned
from tests.recursion.simulated_cuda import OnCpu, simulate

pytest.importorskip("triton")
TINY = ModelConfig(vocab_size=7, seq_len=6, hidden_size=16, num_heads=2, H_cycles=1, L_cycles=1, expansion=1,
                   layers={"L_level": 1}, halt_max_steps=2, puzzle_emb_ndim=16, num_puzzle_identifiers=8)  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A simulated GPU, a tiny model in float32, and limits that are not measured."""
    if torch.cuda.is_available():
        pytest.skip("there is a real device")
    simulate(monkeypatch)
    monkeypatch.setitem(cases.MODELS, "sudoku", TINY)
    monkeypatch.setattr(cases, "GPU_DTYPE", "float32")
    monkeypatch.setattr(cases, "BATCHES", ())
    of_cpu = torch.profiler.profile  # there is no CUPTI to simulate
    monkeypatch.setattr(profile, "profile", lambda activities: of_cpu(activities=activities[:1]))
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    monkeypatch.setattr(harness, "_launches", lambda call: 0)
    monkeypatch.setattr(harness, "make", partial(make, copies=1))
    monkeypatch.setattr(harness, "interleave", partial(interleave, min_rounds=1, max_rounds=2))
    monkeypatch.setattr(machine, "limits", lambda device, dtype: {"tflops": 1.0, "gbs": 1.0})
    for name in ("graph", "native", "symmetric"):  # a simulated device is not the device of a tensor
        reason = None if name == "graph" else "it runs on a CPU"
        monkeypatch.setitem(EXECUTORS, name, EXECUTORS[name]._replace(why_not=lambda model, reason=reason: reason))
    with OnCpu():
        yield


def test_choose_measures_both_paths_and_prints_rows(
    device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    arguments = ["--folder", str(tmp_path), "--batch", "3", "--seconds", "0"]
    assert choose.main(arguments) == 0
    found = json.loads((tmp_path / "choice.json").read_text())
    assert [(r["case"].split("-")[2], r["path"], r["status"]) for r in found["rows"]] == [
        ("B3", path, "measured") for path in choose.PROVIDER_OF
    ]
    assert list(found["persistent_batch"].values()) in ([0], [3])
    assert "Simulated GPU at abc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("act_step", {"rtm_triton", "rtm_triton_graph", "rtm_graph_runner", "rtm_persistent", "rtm_persistent_graph"}),
        ("train_step", {"official_compiled", "official_autotuned_graph", "rtm_triton", "rtm_triton_graph"}),
    ],
)
def test_the_stages_bench_and_train_measure_every_way(
    device: None, task: str, wanted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "GPU_SIZES", {"sudoku": {task: (2,)}})
    monkeypatch.setattr(peers, "COMPILED", (("sudoku", "train_step", 2),))
    (stage,) = [s for s in gpu.stages(tmp_path) if s.name == {"act_step": "bench", "train_step": "train"}[task]]
    arguments = [*stage.command[2:], "--seconds", "0", "--results", str(tmp_path / "r.json")]
    assert run.main(arguments) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    for metric in ("latency", "peak_memory_bytes"):
        assert wanted | {"official_eager"} <= {r["impl"] for r in found if r["metric"] == metric}
    assert all(row["gpu"] == "Simulated GPU" for row in found)


def test_tune_tries_candidates(device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {case.op: case for case in small_cases()}
    chosen = [small[op] for op in ("token_loss", "adam_atan2", "persistent")]
    uses = [Tuned(case.op, lambda _, case=case: case, 1, torch.float32) for case in chosen]
    monkeypatch.setattr(tune, "uses", lambda: uses)
    monkeypatch.setattr(tune, "candidates", lambda row: iter([replace(row, num_warps=8)]))
    monkeypatch.setattr(tune, "variants", lambda row, table: [])
    assert tune.main(["--folder", str(tmp_path), "--limit", "300"]) == 0
    found = json.loads((tmp_path / "tuned.json").read_text())["found"]
    assert {f["use"] for f in found} == {use.name for use in uses}
    assert not [f for f in found if f["status"].startswith("refused")]


def test_profile_and_energy(device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile.main(["sudoku", "--folder", str(tmp_path), "--repeats", "1", "--impl", "rtm_triton"]) == 0
    assert list(tmp_path.glob("act_step_sudoku-act_step-B1-float32-cuda.json"))
    joules = count()
    monkeypatch.setattr(
        machine, "energy_counter", lambda device: EnergyCounter("a counter", [(lambda: float(next(joules)), 0)])
    )
    monkeypatch.setattr(machine, "idle_watts", lambda device: 70.0)
    solved = {"case": "solver", "impl": "auto", "reason": None, "energy": {"joules_per_call": 1.0}}
    monkeypatch.setattr(energy, "Solver", lambda model, device: None)
    monkeypatch.setattr(energy, "measure_solver", lambda solver, puzzles, window: solved)
    assert energy.main(["--model", "sudoku", "--batch", "1", "--window", "0.01", "--folder", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "energy.json").read_text())
    assert [row["reason"] for row in found["rows"]] == [None, None, None] and found["idle_watts"] == 70.0


BARE = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
absent = {"typer", "rich", "hypothesis", "matplotlib", "nvtx", "xdist", "pytest_benchmark", "execnet"}
PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None:
                                   None if name.partition(".")[0] in absent else find(name, path, target))
"""


def test_stages_import_and_gpu_tests_are_collected_on_a_bare_machine() -> None:
    modules = [s.command[1] for s in gpu.stages(Path("folder"))]
    files = gpu_tests.files()
    assert set(gpu_tests.FIRST) <= set(files)
    options = gpu_tests.pytest_command("--collect-only", "-q", "-m", "gpu", *files)[3:]
    code = BARE + f"for name in {modules}: __import__(name)\nimport pytest; raise SystemExit(pytest.main({options!r}))"
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert not [file for file in files if f"{file}::" not in done.stdout]
