"""Seeded damage to every input that a stranger may give: no crash, no hang, one clear line.

`pytest tests/hostile --hostile 20000 --hostile-seed 7` tries more, and repeats a failure: attack i of seed s is the
same in every run.
"""

from __future__ import annotations

import importlib.util
import random
import time

import pytest

from tests.hostile.build import TARGETS
from tests.hostile.mutations import damage_bytes, damage_json, damage_text

CPU_SECONDS = 1.0
"""Processor time that no single input may take; an input that hangs is far above it."""
WARM_UP = 10
"""Inputs that are tried first, so that imports do not count."""

NEEDS = {"tool_arguments": "mcp", "http": "fastapi"}
TIMES = {"command_line": 0.3, "http": 3}
"""How many inputs a target gets, in units of --hostile: few where one takes long."""


@pytest.mark.parametrize("name", TARGETS)
def test_damaged(name: str, tmp_path, monkeypatch, request) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"no package {NEEDS[name]} here: {name} stay untried")
    monkeypatch.chdir(tmp_path)
    seed = request.config.getoption("--hostile-seed")
    target = TARGETS[name](tmp_path)
    for number in range(WARM_UP):
        target(random.Random(f"warm {number}"))()
    for number in range(int(request.config.getoption("--hostile") * TIMES.get(name, 1))):
        seconds = []
        while not seconds or (min(seconds) > CPU_SECONDS and len(seconds) < 3):
            attack = target(random.Random(f"{seed} {number}"))
            start = time.process_time()
            try:
                tried, _ = attack()
            except BaseException as error:
                pytest.fail(f"attack {number} of seed {seed}: {error!r:.1500}")
            seconds.append(time.process_time() - start)
        assert min(seconds) < CPU_SECONDS, f"attack {number} of seed {seed}: {seconds} s of processor time: {tried}"


def test_the_mutator_is_seeded_and_reaches_far() -> None:
    def run(seed: int) -> list[object]:
        rng = random.Random(seed)
        value = {"a": [1, 2, {"b": "c"}], "d": None}
        return [[damage_bytes(b"hello world", rng), damage_text("hello", rng), repr(damage_json(value, rng))]
                for _ in range(50)]  # fmt: skip

    assert run(1) == run(1) != run(2)
    assert len({repr(found) for found in run(1)}) == 50
