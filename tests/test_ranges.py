"""NVTX ranges: nested as the recursion is, and absent, not merely cheap, where no profiler listens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from rtm_kernels import ranges
from rtm_kernels.ops.swiglu_norm import api
from rtm_kernels.recursion import reference

ROOT = Path(__file__).resolve().parent.parent


def test_without_a_profiler_functions_are_left_as_they_are() -> None:
    if ranges.attached() is not None:
        pytest.skip("a profiler runs these tests")

    def plain() -> None:
        return None

    assert ranges.ranged("name")(plain) is plain
    assert not hasattr(reference.run, "__wrapped__") and not hasattr(api.swiglu_norm, "__wrapped__")


def test_a_missing_package_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert ranges.attached.__wrapped__() is None


def test_a_compiled_function_is_traced_without_its_range() -> None:
    listener = Mock()
    double = torch.compile(ranges.ranged("double", listener)(lambda x: x * 2), backend="eager", fullgraph=True)
    assert double(torch.ones(2)).tolist() == [2.0, 2.0] and not listener.push_range.called


NESTED = """
import sys, types
class Domain:
    depth = 0
    def push_range(self, message):
        print("  " * self.depth + message); self.depth += 1
    def pop_range(self):
        self.depth -= 1
domain = Domain()
sys.modules["nvtx"] = types.SimpleNamespace(get_domain=lambda name: domain)
import torch
from rtm_kernels.config import ModelConfig
from rtm_kernels.model import RecursiveReasoner
model = RecursiveReasoner(ModelConfig(vocab_size=5, seq_len=4, hidden_size=8, num_heads=1, H_cycles=1, L_cycles=1,
                                      layers={"L_level": 1}, expansion=1))
with torch.no_grad():
    model.act_step(model.initial_latents(1), model.embed(torch.ones(1, 4, dtype=torch.int32), torch.zeros(1)))
"""


def test_ranges_nest_as_the_recursion_does() -> None:
    done = subprocess.run([sys.executable, "-c", NESTED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step = "    step {} <- L_level\n      mixer_norm\n      swiglu_norm\n"
    assert done.stdout == f"ACT step\n  recursion trm\n{step.format('z_L')}{step.format('z_H')}"
