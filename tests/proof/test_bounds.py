"""Nothing is accessed beyond either end of a tensor; an access would end the process that `fences` runs in."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.proof.launching import ROOT

pytest.importorskip("triton")
pytestmark = [pytest.mark.proof("bounds"), pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")]


@pytest.fixture(scope="module")
def ended() -> str:
    """What the processes of `fences` said, each on its own line."""
    command = [sys.executable, "-m", "tests.proof.fences"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("side", ["end", "start"])
def test_every_kernel_stays_within_its_tensors(side: str, ended: str, cells: Callable[[int], None]) -> None:
    assert f"{side} ended with 0\n" in ended, ended
    cells(int(re.search(rf"^{side} (\d+) launches", ended, re.M)[1]))  # type: ignore[index]


@pytest.mark.parametrize("side", ["read", "write"])
def test_a_planted_access_beyond_the_fence_ends_the_process(side: str, ended: str) -> None:
    assert f"{side} ended with {-signal.SIGSEGV}\n" in ended, ended
