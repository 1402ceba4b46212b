"""Every seeded defect is noticed, and the runner itself notices defects that are none or do not apply."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.proof.launching import ROOT

pytest.importorskip("triton")
pytestmark = [pytest.mark.proof("mutation"), pytest.mark.skipif(sys.platform != "linux", reason="needs fork")]

SELF_TEST = """
from tests.proof import mutate
from tests.proof.mutants import FUSED, Mutant

mutate.take_loop_bounds()
TILES = "rtm_kernels/ops/swiglu/tiles.py"
found = [
    Mutant(TILES, "gate, up = tl.split(z)", "gate, up = tl.split(z)  # the same", FUSED),
    Mutant(TILES, "no such text", "", FUSED),
    Mutant(TILES, "tl.load(", "tl.load(", FUSED),
    Mutant(TILES, "gate, up = tl.split(z)", "gate, up = tl.no_such_function(z)", FUSED),
    Mutant(TILES, "gate, up = tl.split(z)", "up, gate = tl.split(z)", ("swiglu_norm", "no such shape")),
]
print(*(verdict.status for verdict in mutate.run(found, 2)))
"""


def test_every_mutant_is_killed(cells: Callable[[int], None]) -> None:
    result = subprocess.run([sys.executable, "-m", "tests.proof.mutate"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    total, killed = map(int, re.search(r"(\d+) mutants, (\d+) killed", result.stdout).groups())  # type: ignore[union-attr]
    assert killed == total >= 40
    cells(total)


def test_a_mutant_that_survives_or_does_not_apply_is_not_killed() -> None:
    result = subprocess.run([sys.executable, "-c", SELF_TEST], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["survived"] + ["invalid"] * 4, result.stdout + result.stderr
