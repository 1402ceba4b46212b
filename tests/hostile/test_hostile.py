"""Seeded damage to every input that a stranger may give: no crash, no hang, one clear line.

`pytest tests/hostile --hostile 20000 --hostile-seed 7` tries more, and repeats a failure: attack i of seed s is the
same in every run.
"""

from __future__ import annotations

import random
import time

import pytest

from tests.hostile import targets
from tests.hostile.mutations import damage_bytes, damage_json, damage_text

CPU_SECONDS = 1.0
"""Processor time that no single input may take; an input that hangs is far above it."""


def attack(target: targets.Target, request: pytest.FixtureRequest, share: float = 1.0) -> None:
    seed = request.config.getoption("--hostile-seed")
    for number in range(max(1, int(share * request.config.getoption("--hostile")))):
        rng = random.Random(f"{seed} {number}")
        start = time.process_time()
        try:
            tried = target(rng)
        except BaseException as error:
            pytest.fail(f"attack {number} of seed {seed}: {error!r:.1500}")
        spent = time.process_time() - start
        assert spent < CPU_SECONDS, f"attack {number} of seed {seed}: {spent:.1f} s of processor time: {tried}"


def test_trace_files(hostile_trace, tmp_path, request) -> None:
    attack(targets.trace_files(hostile_trace, tmp_path), request, 3)


def test_command_line(hostile_model, hostile_trace, tmp_path, monkeypatch, request) -> None:
    monkeypatch.chdir(tmp_path)
    attack(targets.command_line(hostile_model, hostile_trace, tmp_path), request)


def test_tool_arguments(hostile_solvers, request) -> None:
    attack(targets.tool_arguments(hostile_solvers), request)


def test_the_mutator_is_seeded_and_reaches_far() -> None:
    def run(seed: int) -> list[object]:
        rng = random.Random(seed)
        value = {"a": [1, 2, {"b": "c"}], "d": None}
        return [[damage_bytes(b"hello world", rng), damage_text("hello", rng), repr(damage_json(value, rng))]
                for _ in range(50)]  # fmt: skip

    assert run(1) == run(1) != run(2)
    assert len({repr(found) for found in run(1)}) == 50
