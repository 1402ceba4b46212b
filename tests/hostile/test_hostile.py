"""Seeded damage to every input that a stranger may give: no crash, no hang, one clear line.

`pytest tests/hostile --hostile 20000 --hostile-seed 7` tries more, and repeats a failure: attack i of seed s is the
same in every run.
"""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import files, http, targets

CPU_SECONDS = 1.0
"""Processor time that no single input may take; an input that hangs is far above it."""
WARM_UP = 10
"""Inputs that are tried first, so that imports do not count."""

NEEDS = {"tool_arguments": "mcp", "http": "fastapi"}
SLOW = {"command_line": 0.3}
"""Share of --hostile that a target gets."""
TARGETS = (
    files.model_files, files.data_sets, targets.trace_files, targets.command_line, targets.tool_arguments, http.http,
)  # fmt: skip


@pytest.mark.parametrize("build", TARGETS, ids=lambda build: build.__name__)
def test_damaged(build: Callable[[Path], targets.Target], tmp_path, monkeypatch, request) -> None:
    name = build.__name__
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"no package {NEEDS[name]} here: {name} stay untried")
    monkeypatch.chdir(tmp_path)
    seed = request.config.getoption("--hostile-seed")
    target = build(tmp_path)
    for number in range(WARM_UP):
        target(random.Random(f"warm {number}"))()
    for number in range(int(request.config.getoption("--hostile") * SLOW.get(name, 1))):
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
