"""Every stage of `make gpu` once over a simulated device: the first minute of a real one is not for typing errors."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from benchmarks import (
    cases,
    choose,
    energy,
    gpu,
    harness,
    loops,
    machine,
    peers,
    profile,
    report,
    run,
    tune,
)  # fmt: skip
from benchmarks.cases import Case
from benchmarks.harness import Row
from benchmarks.problem import make
from benchmarks.providers import PERSISTENT, PROVIDERS
from benchmarks.timing import interleave
from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.errors import InputError
from rtm_kernels.recursion import choice
from rtm_kernels.recursion.choice import ANY, ChoiceRow
from tests.cases import small_cases
from tests.cases.case import Tuned
from tests.recursion.simulated_cuda import OnCpu, simulate

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")

TINY = ModelConfig(vocab_size=7, seq_len=6, hidden_size=16, num_heads=2, H_cycles=1, L_cycles=1, expansion=1,
                   layers={"L_level": 1}, halt_max_steps=2, puzzle_emb_ndim=16, num_puzzle_identifiers=8)  # fmt: skip


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A simulated GPU, a tiny model in float32, and limits that are not measured."""
    simulate(monkeypatch)
    monkeypatch.setitem(cases.MODELS, "sudoku", TINY)
    monkeypatch.setattr(cases, "GPU_DTYPE", "float32")
    monkeypatch.setattr(peers, "COMPILED", ())
    of_cpu = torch.profiler.profile  # there is no CUPTI to simulate
    monkeypatch.setattr(profile, "profile", lambda activities: of_cpu(activities=activities[:1]))
    monkeypatch.setattr(harness, "_launches", lambda call: 0)
    monkeypatch.setattr(harness, "make", partial(make, copies=1))
    monkeypatch.setattr(harness, "interleave", partial(interleave, min_rounds=1, max_rounds=2))
    monkeypatch.setattr(machine, "limits", lambda device, dtype: {"tflops": 1.0, "gbs": 1.0})
    with OnCpu():
        yield


def test_choose_measures_both_paths_and_writes_rows_that_can_be_applied(tmp_path: Path) -> None:
    assert choose.main(["--folder", str(tmp_path), "--batch", "1", "--batch", "3", "--seconds", "0"]) == 0
    found = json.loads((tmp_path / "choice.json").read_text())
    assert [(r["case"].split("-")[2], r["path"], r["status"]) for r in found["rows"]] == [
        (batch, path, "measured") for batch in ("B1", "B3") for path in choose.PROVIDER_OF
    ]
    assert found["table"][-1]["limit"] == ANY and "Simulated GPU at" in found["table"][-1]["measured"]
    source = tmp_path / "choice.py"
    source.write_text(choose.SOURCE.read_text())
    assert [vars(row) for row in choose.apply(tmp_path / "choice.json", source)] == found["table"]
    applied = runpy.run_path(str(source), run_name="rtm_kernels.recursion.choice")["TABLE"]
    assert [vars(row) for row in applied if row.family == "interpreter"] == found["table"]
    assert len(applied) == len(found["table"]) + len(choice.TABLE), "other families keep their rows"
    rows = [r for r in json.loads((tmp_path / "summary.json").read_text()) if r["metric"] == "bucket_latency"]
    assert [(r["case"].split("-")[2], r["path"]) for r in rows] == [
        (batch, path) for batch in ("B1", "B3") for path in choose.PROVIDER_OF
    ]
    assert all(r["value"] > 0 and r["ratio"] > 0 and r["gpu"] == "Simulated GPU" for r in rows), "the loser's too"
    assert [sum(r["chosen"] for r in rows if r["case"] == case) for case in {r["case"] for r in rows}] == [1, 1]


def test_choose_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    measured: list[int] = []

    def measure(case: Case, seconds: float) -> dict[str, Row]:
        measured.append(case.batch)
        facts = {"device": "cuda", "machine": "a GPU", "threads": 1, "clock_mhz": None, "versions": machine.versions()}
        facts |= {"commit": "abc", "fraction_of_limit": 0.5}
        row = Row(case.name, "i", "measured", "", "i", 1.0, (1.0, 1.0), 1.0, (1.0, 1.0), [1.0], facts)
        return {"graph": row, "persistent": replace(row, ratio=2.0)}

    monkeypatch.setattr(choose, "measure", measure)
    to = ["--folder", str(tmp_path)]
    assert choose.main([*to, "--batch", "1"]) == 0
    assert choose.main([*to, "--batch", "1", "--batch", "3"]) == 0
    assert measured == [1, 3]
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [r["chosen"] for r in found if r["metric"] == "bucket_latency"] == [False, True] * 2
    monkeypatch.setattr(machine, "commit", lambda: "def")
    assert choose.main([*to, "--batch", "1"]) == 0 and measured == [1, 3, 1]


def test_choose_says_what_stops_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = replace(PERSISTENT, name="rtm_persistent_graph", why_not=lambda case: "no MLP mixer")
    others = [p for p in PROVIDERS if p.name != refused.name]
    found = choose.measure(Case("sudoku", "act_step", 1, "float32", "cuda"), 0.0, [*others, refused])
    assert found["persistent"].reason == "no MLP mixer" and choose.winner(found) == "graph"
    with pytest.raises(InputError, match="not a file of measured choices"):
        choose.apply(tmp_path / "nothing.json")


def test_rows_follow_from_the_winners() -> None:
    winners = {1: "persistent", 2: "persistent", 4: "graph", 8: "persistent", 16: "graph", 32: "graph"}
    assert choose.table(winners, "hopper", "here") == (
        ChoiceRow("hopper", 2, "persistent", "here"),
        ChoiceRow("hopper", 4, "graph", "here"),
        ChoiceRow("hopper", 8, "persistent", "here"),
        ChoiceRow("hopper", ANY, "graph", "here"),
    )
    assert choose.table({}, "hopper", "here") == ()
    both = {"graph": Row("c", "g", "measured", ratio=1.0), "persistent": Row("c", "p", "measured", ratio=0.7)}
    assert choose.winner(both) == "graph" and choose.winner({"graph": Row("c", "g", "refused")}) is None


def test_tune_tries_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_bench_measures_by_worth_and_writes_after_each_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"sudoku": {"act_step": (1,), "block": (1,)}}
    monkeypatch.setattr(cases, "GPU_SIZES", sizes)
    monkeypatch.setattr(cases, "BATCHES", ())
    arguments = ["--results", str(tmp_path / "r.json"), "--folder", str(tmp_path), "--seconds", "0"]
    assert run.main(arguments) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert rows[0]["case"].startswith("sudoku-act_step-B1")
    measured = {(r["case"].split("-")[1], r["impl"]) for r in rows if r["metric"] == "latency"}
    ours = {"rtm_triton", "rtm_triton_graph", "rtm_graph_runner", "rtm_persistent", "rtm_persistent_graph"}
    assert {("act_step", impl) for impl in (*ours, "official_eager")} <= measured
    assert ("block", "rtm_persistent_graph") in measured
    assert all(row["gpu"] == "Simulated GPU" for row in rows)


def test_whole_training_steps_are_measured_captured_and_compared_with_the_official_structure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "GPU_SIZES", {"sudoku": {"train_step": (2,)}})
    monkeypatch.setattr(cases, "BATCHES", ())
    monkeypatch.setattr(peers, "COMPILED", (("sudoku", "train_step", 2),))
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    arguments = ["--results", str(tmp_path / "r.json"), "--folder", str(tmp_path), "--seconds", "0"]
    (train,) = [s for s in gpu.stages(tmp_path) if s.name == "train"]
    assert run.main([*arguments, "--only", train.command[train.command.index("--only") + 1]]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    for metric in ("latency", "peak_memory_bytes"):
        measured = {r["impl"] for r in rows if r["metric"] == metric}
        assert {"official_compiled", "official_autotuned_graph", "rtm_triton", "rtm_triton_graph"} <= measured


def test_the_gap_between_steps_of_both_loops(tmp_path: Path) -> None:
    assert loops.main(["--folder", str(tmp_path), "--batch", "2", "--seconds", "0"]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [(r["metric"], r["impl"]) for r in rows] == [
        ("run", "replays"), ("run", "poll"), ("step_gap", "poll"), ("run", "while"), ("step_gap", "while")
    ]  # fmt: skip
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows if r["metric"] == "step_gap")
    assert "us between steps" in report.page(rows, tmp_path)


def test_profile_and_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
