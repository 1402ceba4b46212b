"""The WHILE node's native code: it compiles for Hopper, loads, and says what is missing where it cannot run."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks import build
from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.recursion import graph


@pytest.fixture(scope="module")
def extension_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """csrc/cuda compiled for sm_80 and sm_90a and linked as a Python extension named `_cuda`."""
    reason = build.why_not()
    if reason is not None:
        pytest.skip(reason)
    return build.compile_cuda(tmp_path_factory.mktemp("cuda"), "-O1")


def test_the_sources_compile_and_hold_a_kernel_for_hopper(extension_path: Path) -> None:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", extension_path], check=True, capture_output=True, text=True)
    assert "sm_90a" in usage.stdout and "sm_80" in usage.stdout
    assert usage.stdout.count("decide") == 2 and "STACK:0" in usage.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_the_extension_loads_without_a_gpu_and_names_the_call_that_fails(extension_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("_cuda", extension_path)
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    assert extension.runtime_version >= graph.MINIMUM
    with pytest.raises(RuntimeError, match="cudaGraphCreate"):
        extension.WhileGraph(step=0, active=0, count=1, steps=0, max_steps=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_where_it_cannot_run_the_reason_is_given() -> None:
    reason = graph.why_not_loop()
    assert reason is not None
    assert "rtm_kernels._cuda" in reason or "CUDA" in reason
    with pytest.raises(BackendUnavailable, match="a WHILE node cannot run: "):
        graph.while_active(Mock(), torch.ones(2, dtype=torch.bool), torch.zeros(1, dtype=torch.int32), 4)
