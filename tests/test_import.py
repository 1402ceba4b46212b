"""`import rtm_kernels` works with no GPU, no compiled code and no triton, and what is missing is named."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import needs_triton

ROOT = Path(__file__).resolve().parent.parent

HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def without(cls, name, path=None, target=None):
    return None if name in ("triton", "rtm_kernels._cuda") else find(name, path, target)
PathFinder.find_spec = classmethod(without)
"""

USE = """
import sys, torch, rtm_kernels
from rtm_kernels import FusedTRMBlock, ModelConfig, Program, RecursiveReasoner
from rtm_kernels.errors import BackendUnavailable
y = FusedTRMBlock(hidden_size=16, seq_len=5)(torch.ones(2, 5, 16))
assert y.shape == (2, 5, 16) and bool(torch.isfinite(y).all())
print(sorted(name for name in sys.modules if name.startswith("rtm_kernels.")))
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert "rtm_kernels._cuda" not in sys.modules, "the extension was imported"
library = sys.modules.get("rtm_kernels.recursion.library")
assert library is None or not library.loaded.cache_info().currsize, "the C++ library was loaded"
try:
    FusedTRMBlock(hidden_size=16, seq_len=5, impl="triton")(torch.ones(2, 5, 16))
except BackendUnavailable as error:
    print(error)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, in which Triton would not interpret."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def output(code: str) -> str:
    done = python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bare_import_loads_nothing_heavy() -> None:
    output("import sys, rtm_kernels\nassert not {'torch', 'triton', 'numpy', 'safetensors'} & set(sys.modules)")


@pytest.mark.parametrize(("hidden", "why"), [("", "need a CUDA device"), (HIDE, "triton is not installed")])
def test_use_on_cpu_needs_no_kernel_no_cuda_no_extension(hidden: str, why: str) -> None:
    pytest.importorskip("triton")
    loaded, message = output(hidden + USE).splitlines()
    assert "rtm_kernels.block" in ast.literal_eval(loaded)
    assert not [name for name in ast.literal_eval(loaded) if needs_triton(name)]
    assert "impl='triton' cannot run" in message and why in message


def test_every_public_name_resolves_and_no_other() -> None:
    import rtm_kernels

    for name in rtm_kernels.__all__:
        assert getattr(rtm_kernels, name).__name__ == name
    assert set(rtm_kernels.__all__) <= set(dir(rtm_kernels))
    with pytest.raises(AttributeError, match="has no attribute 'FusedTRMBlok'"):
        _ = rtm_kernels.FusedTRMBlok


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("'2.4.1+cu121'", "rtm_kernels needs torch >= 2.10, and this is torch 2.4.1+cu121"),
        ("missing()", "rtm_kernels needs torch >= 2.10, and torch is not installed"),
    ],
)
def test_a_torch_that_is_too_old_or_missing_is_named(version: str, message: str) -> None:
    code = f"""
from importlib import metadata
def missing():
    raise metadata.PackageNotFoundError("torch")
metadata.version = lambda name: {version}
import rtm_kernels
"""
    done = python(code)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"ImportError: {message}"
