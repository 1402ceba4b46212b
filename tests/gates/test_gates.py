"""The gates as tests. Each runs in its own process: one needs Triton compiling, the other Triton interpreting."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.gates.compile_gate import ROOT


@pytest.mark.parametrize("gate", ["compile_gate", "interpret_gate"])
def test_gate(gate: str) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", f"tests.gates.{gate}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
