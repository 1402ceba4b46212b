"""Every seeded defect of the kernels is noticed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.proof.launching import ROOT
from tests.proof.mutants import FOLDERS

pytest.importorskip("triton")


@pytest.mark.proof("mutation")
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_mutant_is_killed(folder: str, cells: Callable[[int], None]) -> None:
    command = [sys.executable, "-m", "tests.proof.mutate", f"{folder}/"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    cells(int(re.search(r"(\d+) mutants", result.stdout)[1]))  # type: ignore[index]
