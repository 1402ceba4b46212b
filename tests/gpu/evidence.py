"""pytest plugin of `benchmarks.gpu_tests`: how many launches ran as compiled and how many were interpreted, in its last
lines; tests that have passed in an earlier run are left out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from triton import knobs
from triton.runtime import interpreter

launches: Counter[str] = Counter()


def pytest_configure() -> None:
    call = interpreter.GridExecutor.__call__

    def interpreted(self: Any, *args: Any, **kwargs: Any) -> None:
        launches["interpreted"] += 1
        call(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = interpreted
    knobs.runtime.launch_enter_hook.add(lambda metadata: launches.update(["compiled"]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passed = set(Path(os.environ["RTM_GPU_TESTS_PASSED"]).read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"launches: {launches['compiled']} compiled, {launches['interpreted']} interpreted")
