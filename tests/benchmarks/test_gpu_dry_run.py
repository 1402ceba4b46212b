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
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cases, choose, energy, gpu, gpu_tests, harness, machine, peers, profile, run, tune
from benchmarks.problem import make
from benchmarks.rows import Row
from benchmarks.timing import interleave
from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.engine.executor import EXECUTORS
from rtm_kernels.recursion.persistent.runner import measured_batch
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
    assert found["entry"] is None or found["entry"]["measured"]["batch"] == 3
    assert "Simulated GPU at abc" in capsys.readouterr().out
    faster = found["rows"][1] | {"status": "measured", "ratio": 1.5, "ratio_interval": [1.4, 1.6]}
    both = {"graph": Row.of(found["rows"][0]), "persistent": Row.of(faster)}
    table = tmp_path / "tuned.json"
    monkeypatch.setattr(choose, "TUNED", table)
    monkeypatch.setattr(choose, "_earlier", lambda path: {1: both, 2: both, 4: both | {"persistent": both["graph"]}})
    assert choose.main([*arguments[:-4], "--batch", "1", "--write"]) == 0
    measured = [entry | {"bits": 32} for entry in json.loads(table.read_text())]
    here, config = SimpleNamespace(type="cuda"), cases.MODELS["sudoku"]
    for name, width, most in (("Simulated GPU", 16, 2), ("another", 16, 0), ("Simulated GPU", 32, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_, name=name: name)
        assert measured_batch(here, torch.float32, config.latent_len, width, measured) == most


@pytest.mark.parametrize(
    ("name", "task", "wanted"),
    [
        ("headlines", "act_step",
         {"rtm_triton", "rtm_triton_graph", "rtm_graph_runner", "rtm_persistent", "rtm_persistent_graph"}),
        ("bench", "train_step", {"rtm_triton", "rtm_triton_graph", "rtm_reference"}),
        ("peers", "act_step",
         {"official_eager", "official_compiled", "official_autotuned_graph", "rtm_triton_graph"}),
    ],
)  # fmt: skip
def test_the_stages_measure_every_way(
    device: None, name: str, task: str, wanted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "GPU_SIZES", {"sudoku": {task: (2,)}})
    monkeypatch.setattr(peers, "COMPILED", (("sudoku", "act_step", 2),))
    (stage,) = [s for s in gpu.stages(tmp_path) if s.name == name]
    given = ["300" if part == gpu.SECONDS else part for part in stage.command[2:]]
    assert run.main([*given, "--only", "sudoku", "--seconds", "0", "--results", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    for metric in ("latency", "peak_memory_bytes"):
        assert wanted <= {r["impl"] for r in found if r["metric"] == metric}
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
    solved = {"case": "solver", "impl": "solver", "reason": None, "energy": {"joules_per_call": 1.0}}
    monkeypatch.setattr(energy, "Solver", lambda model, device: None)
    monkeypatch.setattr(energy, "measure_solver", lambda solver, puzzles, window: solved)
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    arguments = ["--model", "sudoku", "--batch", "1", "--window", "0.01", "--folder", str(tmp_path)]
    assert energy.main([*arguments, "--limit", "-1"]) == run.UNFINISHED
    assert energy.main(arguments) == 0
    monkeypatch.setattr(energy, "measure", None)
    assert energy.main(arguments) == 0, "what was measured is not measured again"
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
