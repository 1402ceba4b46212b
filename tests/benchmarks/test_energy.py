"""Energy by a fake counter of 100 W on a fake clock: what is divided by what, and null where nothing is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import energy, machine
from benchmarks.cases import Case
from benchmarks.harness import run_case
from benchmarks.providers import REFERENCE
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.engine.solver import Solver
from rtm_kernels.model import RecursiveReasoner

WATTS = 100.0


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only moves when told to, and a counter that runs with it."""
    now = [0.0]

    def move(seconds: float) -> None:
        now[0] += seconds

    machine.idle_watts.cache_clear()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine.time, "sleep", move)
    monkeypatch.setattr(
        machine, "energy_counter", lambda device: EnergyCounter("a fake", [(lambda: WATTS * now[0], 0)])
    )
    return move


def test_joules_are_those_of_the_window_over_its_calls(tick: Callable[[float], None]) -> None:
    found = machine.energy(lambda i: tick(0.5), "cpu", 30.0)
    assert found is not None and found["covers"] == "a fake"
    assert found["joules_per_call"] == pytest.approx(50.0) and found["watts"] == pytest.approx(WATTS)
    assert found["window_s"] >= 30.0
    assert machine.idle_watts("cpu", 10.0) == pytest.approx(WATTS)


def test_a_counter_that_wraps_or_stands_still_gives_nothing(
    tick: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for values in ([10.0, 10.0, 10.0], [10.0, 10.0, 2.0]):
        reading = iter(values)
        monkeypatch.setattr(
            machine, "energy_counter", lambda device, r=reading: EnergyCounter("a fake", [(lambda: next(r), 0)])
        )
        assert machine.energy(lambda i: tick(1.0), "cpu", 3.0) is None


def test_energy_per_act_step_puzzle_and_verified_puzzle(
    tick: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = energy.measure(Case("small", "act_step", 1, "float32", "cpu"), [REFERENCE.name], 0.0) or [{}]
    assert row["reason"] is None and row["energy"] is None, "a window without a call has no energy"
    monkeypatch.setattr(energy, "caller", lambda provider, problem: lambda i: tick(2.0))
    (row,) = energy.measure(Case("small", "act_step", 1, "float32", "cpu"), [REFERENCE.name], 30.0)
    assert row["joules_per_act_step"] == pytest.approx(200.0) and row["joules_per_puzzle"] == pytest.approx(3200.0)

    solver = Solver(RecursiveReasoner.from_pretrained("sudoku"), executor="reference", max_steps=4)
    good, wrong = example_puzzles()[0], "." * 81
    solve = solver.solve
    monkeypatch.setattr(solver, "solve", lambda puzzles: (tick(8.0), solve(puzzles))[1])
    row = energy.measure_solver(solver, [good, wrong], 8.0)
    assert row["verified"] == 1, "the empty grid is not solved within these steps"
    total = row["energy"]["joules_per_call"]
    assert total == pytest.approx(800.0) and row["joules_per_puzzle"] == pytest.approx(total / 2)
    assert row["joules_per_verified"] == pytest.approx(total) and row["joules_per_act_step"] < row["joules_per_puzzle"]


def test_without_a_counter_the_file_says_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.idle_watts.cache_clear()
    monkeypatch.setattr(machine, "energy_counter", lambda device: None)
    assert energy.main(["--folder", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "energy.json").read_text())
    assert found["idle_watts"] is None and found["rows"] == []


def test_rows_carry_joules_and_idle_watts(tick: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import harness

    monkeypatch.setattr(machine, "limits", lambda device, dtype: {"tflops": 1.0, "gbs": 1.0})
    monkeypatch.setattr(harness, "interleave", lambda calls, *a, **k: {name: [1.0, 1.0] for name in calls})
    monkeypatch.setattr(harness, "caller", lambda provider, problem: lambda i: tick(0.25))
    (row,) = run_case(Case("small", "channel", 1, "float32", "cpu"), [REFERENCE], energy_seconds=30.0)
    assert row.facts["joules"] == pytest.approx(25.0) and row.facts["idle_watts"] == pytest.approx(WATTS)
